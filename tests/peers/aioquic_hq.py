"""The aioquic peer: `python -m tests.peers.aioquic_hq serve|get`, see hq.py for the options."""

from __future__ import annotations

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import CipherSuite

from tests.peers import hq

LIBRARY = hq.Library(
    name="aioquic",
    configuration=QuicConfiguration,
    protocol=QuicConnectionProtocol,
    events=events,
    ciphers={
        "aes128": CipherSuite.AES_128_GCM_SHA256,
        "aes256": CipherSuite.AES_256_GCM_SHA384,
        "chacha20": CipherSuite.CHACHA20_POLY1305_SHA256,
    },
    serve=serve,
    connect=connect,
    may_open=lambda quic, stream_id: True,  # it queues them itself
)

if __name__ == "__main__":
    hq.run(LIBRARY)

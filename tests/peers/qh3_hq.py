"""The qh3 peer: `python -m tests.peers.qh3_hq serve|get`, see hq.py for the options."""

from __future__ import annotations

from typing import Any

from qh3.asyncio import server
from qh3.asyncio.client import connect
from qh3.asyncio.protocol import QuicConnectionProtocol
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.tls import CipherSuite

from tests.peers import hq


class PatientConnection(QuicConnection):
    """qh3's connection, without a defect of 2.1.0's server.

    When the anti-amplification credit left (RFC 9000 section 8.1) is smaller than a packet's overhead,
    polling for the next datagram raises "packet builder capacity exhausted" and the datagrams built before it
    are lost with the exception. Here they are sent, and the rest waits for more credit.
    """

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        datagrams: list[tuple[bytes, Any]] = []
        while self._core is not None:
            try:
                transmit = self._call_core(self._core.poll_transmit, now)
            except QuicConnectionError as error:
                if "capacity exhausted" not in error.reason_phrase:
                    raise
                break
            if transmit is None:
                break
            datagrams.append((transmit[0], transmit[1]))
        return datagrams


# The server module makes its connections itself and offers no other way in.
setattr(server, "QuicConnection", PatientConnection)  # noqa: B010

LIBRARY = hq.Library(
    name="qh3",
    configuration=QuicConfiguration,
    protocol=QuicConnectionProtocol,
    events=events,
    ciphers={
        "aes128": CipherSuite.AES_128_GCM_SHA256,
        "aes256": CipherSuite.AES_256_GCM_SHA384,
        "chacha20": CipherSuite.CHACHA20_POLY1305_SHA256,
    },
    serve=server.serve,
    connect=connect,
    may_open=lambda quic, stream_id: stream_id // 4 < quic.max_concurrent_bidi_streams,
)

if __name__ == "__main__":
    hq.run(LIBRARY)

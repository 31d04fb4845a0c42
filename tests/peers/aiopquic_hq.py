"""aiopquic (picoquic behind an interface of qh3's shape) for tests.peers.perf; not a peer of the
interoperability tests. It needs Python 3.12: `python -m tests.peers.install perf` gives it an environment of
its own.

picoquic's thread and asyncio's share the core. Settings other than its own: AES-128-GCM, windows and rings
that one response fits in, socket buffers like ours.
"""

from __future__ import annotations

from typing import Any

from aiopquic.asyncio.client import connect
from aiopquic.asyncio.protocol import QuicConnectionProtocol
from aiopquic.asyncio.server import serve
from aiopquic.quic import events
from aiopquic.quic.configuration import QuicConfiguration

from tests.peers import hq

RING_BYTES = 64 << 20
SOCKET_BYTES = 8 << 20


class Protocol(QuicConnectionProtocol):  # type: ignore[misc]
    """Its network thread sends by itself; the others have to be told."""

    def transmit(self) -> None:
        pass

    def _transmit_soon(self) -> None:
        pass


def configuration(*, cipher_suites: list[int], max_datagram_size: int, **same: Any) -> Any:
    """In its words. The size of datagrams is its path-MTU discovery's."""
    return QuicConfiguration(
        cipher_suite=cipher_suites[0],
        stream_ring_cap=RING_BYTES,
        tx_max_queued_bytes=None,
        socket_buffer_size=SOCKET_BYTES,
        max_connections=10_000,
        **same,
    )


LIBRARY = hq.Library(
    name="aiopquic",
    configuration=configuration,
    protocol=Protocol,
    events=events,
    ciphers={"aes128": 0x1301},
    serve=serve,
    connect=connect,
    may_open=lambda quic, stream_id: True,
)

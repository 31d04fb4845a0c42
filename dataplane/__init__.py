"""STOQ's data plane for asyncio: every packet in C, a handful of names here.

    async with Datapath(Config(server=False), handshakes) as datapath:
        async with await datapath.connect("[fd00::2]:9292") as connection:
            async with await connection.open_stream() as stream:
                stream.write(b"hello")
                stream.write_eof()
                print(await stream.read_all())

The TLS side (`handshakes`) comes from `control.handshake`.
"""

from dataplane.address import STOQ_PORT, Address, parse_address, resolve_address
from dataplane.config import Config
from dataplane.connection import Connection
from dataplane.datapath import Datapath
from dataplane.errors import (
    AddressError,
    ConfigError,
    ConnectionClosed,
    DatagramTooLarge,
    DatapathError,
    HandshakeFailed,
    IncompleteRead,
    PeerUnavailable,
    PoolClosed,
    PoolError,
    PoolFull,
    StoqError,
    StreamError,
    StreamReset,
    StreamStopped,
)
from dataplane.handshake import Target
from dataplane.pool import ConnectionPool, PeerStats, PoolConfig, PoolStats
from dataplane.stats import ConnectionStats, PerfResult
from dataplane.stream import Stream

__all__ = [
    "STOQ_PORT",
    "Address",
    "AddressError",
    "Config",
    "ConfigError",
    "Connection",
    "ConnectionClosed",
    "ConnectionPool",
    "ConnectionStats",
    "DatagramTooLarge",
    "Datapath",
    "DatapathError",
    "HandshakeFailed",
    "IncompleteRead",
    "PeerStats",
    "PeerUnavailable",
    "PerfResult",
    "PoolClosed",
    "PoolConfig",
    "PoolError",
    "PoolFull",
    "PoolStats",
    "StoqError",
    "Stream",
    "StreamError",
    "StreamReset",
    "StreamStopped",
    "Target",
    "parse_address",
    "resolve_address",
]

"""Streams for many callers on few connections.

    async with ConnectionPool(datapath) as pool:
        async with pool.stream("[fd00::2]:9292") as stream:
            stream.write(b"hello")
            stream.write_eof()
            print(await stream.read_all())

A peer is an address, the name its certificate must carry and the protocols offered: streams share a
connection only when all three are the same. Everything is bounded (PoolConfig): at the bound a caller waits,
in turn; when too many wait it gets PoolFull, and when the peer cannot be reached PeerUnavailable. For how
long a caller waits at most is its own affair (`asyncio.timeout`). What happens on a stream that was opened is
told to its caller and to nobody else: the pool repeats nothing, because it cannot know what the peer has done
with it. `pool_peer.py` is how one peer is looked after.

Streams that the peer opens on a pooled connection are not taken by the pool; protocols that need them want
a connection of their own.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict
from types import TracebackType

from dataplane.address import Address, check_peer, host_of, resolve_address
from dataplane.errors import PoolClosed, PoolFull
from dataplane.handshake import Target
from dataplane.pool_config import PeerStats, PoolConfig, PoolCounters, PoolStats
from dataplane.pool_peer import Dialler, Member, PeerPool
from dataplane.stream import Stream

__all__ = ["ConnectionPool", "PeerStats", "PoolConfig", "PoolCounters", "PoolStats", "PooledStream"]


class PooledStream:
    """``async with pool.stream(peer) as stream``: leaving the block ends the stream as Stream does (FIN, or
    by an exception a reset) and gives its place back. To be entered once."""

    __slots__ = ("_member", "_peer", "_pool", "_stream", "_to", "_unidirectional")

    def __init__(self, pool: ConnectionPool, to: Target | str, unidirectional: bool) -> None:
        self._pool = pool
        self._to = to
        self._unidirectional = unidirectional
        self._peer: PeerPool | None = None
        self._member: Member | None = None
        self._stream: Stream | None = None

    async def __aenter__(self) -> Stream:
        if self._peer is not None:
            raise RuntimeError("a pooled stream is entered once: ask the pool for another")
        target = self._to if isinstance(self._to, Target) else await self._pool.target(self._to)
        self._peer = self._pool._peer(target)
        self._member, self._stream = await self._peer.acquire(unidirectional=self._unidirectional)
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peer, member, stream = self._peer, self._member, self._stream
        assert peer is not None and member is not None and stream is not None
        self._member = self._stream = None
        try:
            await stream.__aexit__(kind, error, trace)
        finally:
            peer.release(member)


class ConnectionPool:
    """See the module's text. `seed` makes the jitter of back-offs repeatable, for tests."""

    def __init__(
        self, datapath: Dialler, config: PoolConfig | None = None, *, seed: int | None = None
    ) -> None:
        self.config = config or PoolConfig()
        self.counters = PoolCounters()
        self._datapath = datapath
        self._rng = random.Random(seed)
        self._peers: dict[Target, PeerPool] = {}
        self._closing: set[asyncio.Task[None]] = set()  # Peers that had to make room.
        self._closed = False

    # ---- streams ----

    async def target(
        self, to: Address | str, *, server_name: str | None = None, alpns: tuple[str, ...] = ()
    ) -> Target:
        """The peer at `to`, a name being looked up; `server_name` is what its certificate must name, by
        default the host as written. Who asks often keeps it. Raises AddressError."""
        if isinstance(to, str):
            name, address = server_name or host_of(to), await resolve_address(to)
        else:
            name, address = server_name or to.ip, to
        return Target(check_peer(address), name, alpns)

    def stream(self, to: Target | str, *, unidirectional: bool = False) -> PooledStream:
        """``async with pool.stream(peer) as stream``. Entering it waits for a connection with room; it raises
        PoolFull, PoolClosed, PeerUnavailable or AddressError, and may be cancelled."""
        return PooledStream(self, to, unidirectional)

    def _peer(self, target: Target) -> PeerPool:
        if self._closed:
            raise PoolClosed("the pool was closed")
        peer = self._peers.get(target)
        if peer is None:
            if len(self._peers) >= self.config.max_peers:
                self._make_room()
            peer = PeerPool(
                target,
                self._datapath,
                self.config,
                self.counters,
                self._rng,
                lambda it: self._forget(target, it),
            )
            self._peers[target] = peer
        return peer

    def _make_room(self) -> None:
        """Give up the peer that was not used for longest. Raises PoolFull when all are in use."""
        unused = [peer for peer in self._peers.values() if not peer.in_use]
        if not unused:
            self.counters.refused += 1
            raise PoolFull(f"{len(self._peers)} peers are in use already (max_peers)")
        peer = min(unused, key=lambda peer: peer.used_at)
        del self._peers[peer.target]
        closing = asyncio.ensure_future(peer.close(self.config.drain_seconds))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _forget(self, target: Target, peer: PeerPool) -> None:
        if self._peers.get(target) is peer:
            del self._peers[target]

    # ---- what people want to know ----

    def stats(self) -> PoolStats:
        """Now."""
        peers = [peer.stats() for peer in self._peers.values()]
        return PoolStats(
            connections=sum(peer.connections for peer in peers),
            draining=sum(peer.draining for peer in peers),
            dialling=sum(peer.dialling for peer in peers),
            streams=sum(peer.streams for peer in peers),
            waiting=sum(peer.waiting for peer in peers),
            counters=asdict(self.counters),
            peers=peers,
        )

    # ---- life ----

    async def close(self) -> None:
        """Give out no more streams, tell who waits (PoolClosed), let streams finish for `drain_seconds`,
        close the connections. Idempotent."""
        self._closed = True
        peers, self._peers = list(self._peers.values()), {}
        await asyncio.gather(*(peer.close(self.config.drain_seconds) for peer in peers), *self._closing)

    async def __aenter__(self) -> ConnectionPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

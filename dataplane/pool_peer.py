"""One peer's part of a connection pool: its connections, who waits for a stream, when it is dialled.

      caller ──acquire──▶ a slot of the connection with most room ──▶ open_stream ──▶ caller ──▶ release
                 │ none free
                 ▼
              waiters (FIFO, bounded) ◀── serve: a slot freed, a connection up, more credit from the peer
                 │
                 ▼
              dial ──ok──▶ READY ──probe unanswered──▶ DRAINING ──its streams finished──▶ closed
               ▲  │ failed         └──idle too long───────▲           └──closed by either side──▶ gone
               └──┘ after back-off with jitter

A slot is a stream that a caller holds; it is taken before the stream is opened, so that connections never
carry more than `max_streams`. A connection that is not READY gets no new streams, those it has go on. What
has happened on an open stream is its caller's affair: nothing is sent twice here. A caller whose connection
ends before its stream was opened has sent nothing, and waits again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dataplane.connection import Connection
from dataplane.errors import (
    AddressError,
    ConfigError,
    ConnectionClosed,
    HandshakeFailed,
    PeerUnavailable,
    PoolClosed,
    PoolFull,
    StoqError,
)
from dataplane.handshake import Target
from dataplane.pool_config import PeerStats, PoolConfig, PoolCounters
from dataplane.stream import Stream

if TYPE_CHECKING:
    from dataplane.address import Address

log = logging.getLogger("stoq.pool")

JITTER = 0.5  # A back-off is shortened by up to this part, so that many clients do not come back at once.
MAX_DOUBLINGS = 30  # Of a back-off: beyond, the number means nothing and would not fit a float.


class Dialler(Protocol):
    """What the pool needs of a Datapath."""

    async def connect(
        self, to: Address | str, *, server_name: str | None = None, alpns: tuple[str, ...] = ()
    ) -> Connection: ...


class Member:
    """One connection of the pool."""

    __slots__ = ("connection", "draining", "made_at", "opening", "received", "served", "streams", "used_at")

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.draining = False
        self.served = False  # A caller was done with a stream and the connection still stood.
        self.streams = 0  # Slots taken.
        self.opening = [0, 0]  # Of these, by kind, those whose stream is not open yet.
        self.received = -1  # Packets received when it was last looked at.
        self.made_at = self.used_at = now

    def room(self, most: int, unidirectional: bool) -> int:
        """How many streams may be given out now."""
        if self.draining or not self.connection.usable:
            return 0
        credit = self.connection.streams_openable(unidirectional=unidirectional)
        return min(most - self.streams, credit - self.opening[unidirectional])


Waiter = asyncio.Future[Member]


class PeerPool:
    """See the module's text. `unused` is called when nothing is left of it."""

    def __init__(
        self,
        target: Target,
        dialler: Dialler,
        config: PoolConfig,
        counters: PoolCounters,
        rng: random.Random,
        unused: Callable[[PeerPool], None],
    ) -> None:
        self.target = target
        self.used_at = asyncio.get_running_loop().time()
        self._dialler = dialler
        self._config = config
        self._counters = counters
        self._rng = rng
        self._unused = unused
        self._members: list[Member] = []
        # By kind: who waits for a bidirectional stream does not wait behind those for the other kind.
        self._waiters: tuple[deque[Waiter], deque[Waiter]] = (deque(), deque())
        self._users = 0  # Callers that hold a stream or wait for one.
        self._dials: set[asyncio.Task[None]] = set()
        self._keepers: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._final = False  # Of the last failure: another dial would end the same way.
        self._retry_at = 0.0
        self._error: StoqError | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<PeerPool {self.target.server_name} {self.target.address}>"

    # ---- for callers ----

    async def acquire(self, *, unidirectional: bool) -> tuple[Member, Stream]:
        """A stream, on whichever connection has room. Cancelled, it leaves nothing taken. Raises PoolFull,
        PoolClosed, PeerUnavailable."""
        self._users += 1
        try:
            while True:
                member = await self._slot(unidirectional)
                member.opening[unidirectional] -= 1
                try:
                    # There is credit, so this does not wait; but the connection may have ended meanwhile.
                    stream = await member.connection.open_stream(unidirectional=unidirectional)
                except ConnectionClosed:
                    self._give_back(member)
                    continue
                except BaseException:
                    self._give_back(member)
                    raise
                self._counters.streams_opened += 1
                return member, stream
        except BaseException:
            self._users -= 1
            self._tidy()
            raise

    def release(self, member: Member) -> None:
        """The caller is done with its stream."""
        if member.connection.usable:
            member.served = True
            self._well()
        self._users -= 1
        self._give_back(member)
        self._tidy()

    @property
    def in_use(self) -> bool:
        """Does a caller hold a stream or wait for one?"""
        return self._users > 0

    @property
    def _waiting(self) -> int:
        return len(self._waiters[0]) + len(self._waiters[1])

    def stats(self) -> PeerStats:
        """Now."""
        ready = [member for member in self._members if not member.draining]
        return PeerStats(
            peer=f"{self.target.server_name} {self.target.address}",
            connections=len(ready),
            draining=len(self._members) - len(ready),
            dialling=len(self._dials),
            streams=sum(member.streams for member in self._members),
            waiting=self._waiting,
            failures=self._failures,
            error=str(self._error) if self._error is not None else "",
        )

    async def close(self, drain_seconds: float) -> None:
        """Tell who waits, let streams finish for so long, close the connections."""
        self._closed = True
        self._fail_waiters(lambda: PoolClosed("the pool was closed"))
        for task in (*self._dials, *self._keepers):
            task.cancel()
        await asyncio.gather(*self._dials, *self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._finish(member, drain_seconds) for member in list(self._members)))

    # ---- slots ----

    async def _slot(self, unidirectional: bool) -> Member:
        self._check_open()
        now = asyncio.get_running_loop().time()
        self.used_at = now
        if not self._waiters[unidirectional] and (member := self._roomiest(unidirectional)) is not None:
            return self._take(member, unidirectional)
        if self._given_up and now < self._retry_at:
            self._counters.refused += 1
            raise self._unavailable()
        if self._waiting >= self._config.max_waiting:
            self._counters.refused += 1
            raise PoolFull(
                f"{self._waiting} callers wait for a stream to {self.target.address} already "
                "(max_waiting): as many connections and streams are in use as the pool permits"
            )
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiters[unidirectional].append(waiter)
        self._fill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was served in the turn in which it was cancelled.
                waiter.result().opening[unidirectional] -= 1
                self._give_back(waiter.result())
            elif waiter in self._waiters[unidirectional]:
                self._waiters[unidirectional].remove(waiter)
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool was closed")

    def _ready(self) -> list[Member]:
        return [member for member in self._members if not member.draining and member.connection.usable]

    def _roomiest(self, unidirectional: bool) -> Member | None:
        """The connection with most room, so that the load is even."""
        most = self._config.max_streams
        best = max(self._ready(), key=lambda member: member.room(most, unidirectional), default=None)
        return best if best is not None and best.room(most, unidirectional) > 0 else None

    def _take(self, member: Member, unidirectional: bool) -> Member:
        member.streams += 1
        member.opening[unidirectional] += 1
        return member

    def _give_back(self, member: Member) -> None:
        member.streams -= 1
        member.used_at = self.used_at = asyncio.get_running_loop().time()
        self._serve()

    def _serve(self) -> None:
        """Hand out what room there is, in the order of asking."""
        for unidirectional in (False, True):
            waiters = self._waiters[unidirectional]
            while waiters:
                member = self._roomiest(unidirectional)
                if member is None:
                    break
                waiter = waiters.popleft()
                if not waiter.done():  # Else it was cancelled, and has not run yet.
                    waiter.set_result(self._take(member, unidirectional))
        self._fill()

    def _fail_waiters(self, error: Callable[[], Exception]) -> None:
        for waiters in self._waiters:
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(error())
                    self._counters.refused += 1

    # ---- dialling ----

    def _fill(self) -> None:
        """Dial as many connections as those who wait need and the bounds permit."""
        most = self._config.max_connections
        while not self._closed and self._wanted(dials := len(self._dials)):
            active = sum(not member.draining for member in self._members)
            if active + dials >= most or len(self._members) + dials >= 2 * most:
                return
            if dials and self._failures:  # A peer in trouble is tried one at a time.
                return
            task = asyncio.ensure_future(self._dial())
            self._dials.add(task)
            task.add_done_callback(self._dialled)

    def _wanted(self, dials: int) -> bool:
        """Is a connection missing when `dials` are on their way?"""
        config = self._config
        return (
            self._waiting > dials * config.max_streams or len(self._ready()) + dials < config.min_connections
        )

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect, of the handshake's factory perhaps: nobody may wait for ever because of it.
            log.error("dialling %s failed", self.target.address, exc_info=error)
            self._failed(StoqError(f"internal error: {error!r}"), final=True)
        self._serve()
        self._tidy()

    async def _dial(self) -> None:
        loop, target = asyncio.get_running_loop(), self.target
        if (delay := self._retry_at - loop.time()) > 0:
            await asyncio.sleep(delay)
            if not self._wanted(len(self._dials) - 1):
                return  # Those who waited have gone.
        try:
            connection = await self._dialler.connect(
                target.address, server_name=target.server_name, alpns=target.alpns
            )
        except StoqError as error:
            self._failed(error, final=_is_final(error))
            return
        self._counters.connections_made += 1
        member = Member(connection, loop.time())
        self._members.append(member)
        keeper = asyncio.ensure_future(self._keep(member))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    def _failed(self, error: StoqError, *, final: bool) -> None:
        """A dial failed. `final`: another would end the same way, so who waits is told at once."""
        self._counters.dial_failures += 1
        self._error, self._final = error, final
        self._back_off()
        log.info("dialling %s failed (%d in a row): %s", self.target.address, self._failures, error)
        if self._given_up:
            self._fail_waiters(self._unavailable)

    @property
    def _given_up(self) -> bool:
        """Are there no connections, and so many failures that nobody is to wait for the next dial?"""
        return not self._ready() and (self._final or self._failures >= self._config.dial_attempts)

    def _well(self) -> None:
        """The peer has answered or served."""
        self._failures, self._final, self._error = 0, False, None

    def _back_off(self) -> None:
        config = self._config
        self._failures += 1
        doubled = config.backoff_first * 2.0 ** min(self._failures - 1, MAX_DOUBLINGS)
        pause = min(config.backoff_most, doubled) * (1 - JITTER * self._rng.random())
        self._retry_at = asyncio.get_running_loop().time() + pause

    def _unavailable(self) -> PeerUnavailable:
        assert self._error is not None
        retry_in = max(0.0, self._retry_at - asyncio.get_running_loop().time())
        return PeerUnavailable(str(self.target.address), self._error, self._failures, retry_in)

    # ---- a connection's life ----

    async def _keep(self, member: Member) -> None:
        """Serve when the peer permits more; look after the connection while it is quiet; take it out when it
        ends."""
        loop, config, connection = asyncio.get_running_loop(), self._config, member.connection
        look_at = loop.time() + config.probe_seconds
        try:
            while not member.draining:
                self._serve()  # Also for what the peer permitted while we asked whether it is alive.
                try:
                    async with asyncio.timeout_at(look_at):
                        await connection.wait_streams_permitted()
                    continue
                except TimeoutError:
                    look_at = loop.time() + config.probe_seconds
                if self._is_idle(member):
                    self._counters.connections_idle += 1
                    member.draining = True
                elif await self._alive(member):
                    self._well()
                else:
                    self._counters.probes_unanswered += 1
                    log.info("%r does not answer: no more streams for it", connection)
                    member.draining = True
                    self._serve()
            await connection.wait_streams_finished()
            connection.close()
            await connection.wait_closed()
            self._gone(member)
        except ConnectionClosed as error:
            self._counters.connections_lost += 1
            if not member.served and loop.time() - member.made_at < config.backoff_most:
                # Made and lost at once, time and again, must not become a busy loop.
                self._error = error
                self._back_off()
            self._gone(member)

    def _is_idle(self, member: Member) -> bool:
        now = asyncio.get_running_loop().time()
        spare = len(self._ready()) > self._config.min_connections
        return not member.streams and spare and now - member.used_at >= self._config.idle_seconds

    async def _alive(self, member: Member) -> bool:
        """Has anything come since the last look? If not, does it answer a PING?"""
        try:
            async with asyncio.timeout(self._config.probe_timeout):
                received = (await member.connection.stats()).packets_received
                if received == member.received:
                    self._counters.probes += 1
                    await member.connection.ping()
                    received = (await member.connection.stats()).packets_received
                member.received = received
        except TimeoutError:
            return False
        return True

    async def _finish(self, member: Member, seconds: float) -> None:
        """At the pool's end."""
        member.draining = True
        try:
            async with asyncio.timeout(seconds):
                await member.connection.wait_streams_finished()
        except TimeoutError:
            pass
        finally:
            member.connection.close()
        await member.connection.wait_closed()
        self._gone(member)

    def _gone(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
        self._serve()
        self._tidy()

    def _tidy(self) -> None:
        """Nothing left, nothing to remember: away with us."""
        if not (self._users or self._members or self._dials or self._failures or self._closed):
            self._unused(self)


def _is_final(error: StoqError) -> bool:
    """Would another attempt end the same way? A certificate that is refused, an address that is none."""
    if isinstance(error, HandshakeFailed):
        return error.alert is not None or error.version
    return isinstance(error, AddressError | ConfigError)

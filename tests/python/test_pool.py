"""The connection pool: sharing, bounds, health, re-dialling, ends. On the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from control.handshake import TlsFactory
from dataplane import (
    Address,
    Config,
    ConfigError,
    Connection,
    ConnectionClosed,
    ConnectionPool,
    DatapathError,
    HandshakeFailed,
    PeerUnavailable,
    PoolClosed,
    PoolConfig,
    PoolFull,
    Stream,
    Target,
)
from dataplane.sim import Impairment, Simulation
from tests.python.conftest import Pki
from tests.python.simulated import PATIENCE, WIRE

DEAD = Impairment(loss=1.0)
BOTH = 2  # Virtual seconds in which a stream's end has reached both sides.


@dataclass
class Scene:
    """A server that answers every stream with its bytes turned round, and a dialler that can be made to
    fail."""

    simulation: Simulation
    serving: list[Connection] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    dialled_at: list[float] = field(default_factory=list)
    failures: int = 0  # Of so many dials to come.
    hold: asyncio.Event = field(default_factory=asyncio.Event)  # Answers wait for it.

    @property
    def target(self) -> Target:
        return Target(self.simulation.server_address, "node-b")

    async def connect(
        self, to: Address | str, *, server_name: str | None = None, alpns: tuple[str, ...] = ()
    ) -> Connection:
        """As Datapath.connect."""
        self.dialled_at.append(self.simulation.now)
        if self.failures:
            self.failures -= 1
            raise DatapathError("made to fail")
        return await self.simulation.client.connect(to, server_name=server_name, alpns=alpns)

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            async for connection in self.simulation.server.accept_connections():
                self.serving.append(connection)
                group.create_task(self._serve_one(connection, group))

    async def _serve_one(self, connection: Connection, group: asyncio.TaskGroup) -> None:
        try:
            async for stream in connection.accept_streams():
                group.create_task(self._answer(stream))
        except ConnectionClosed:
            pass

    async def _answer(self, stream: Stream) -> None:
        try:
            async with stream:
                request = await stream.read_all()
                self.requests.append(request)
                await self.hold.wait()
                stream.write(request[::-1])
        except Exception:
            pass

    async def ask(self, pool: ConnectionPool, text: bytes, to: Target | None = None) -> bytes:
        """One request."""
        async with pool.stream(to or self.target) as stream:
            stream.write(text)
            stream.write_eof()
            return await stream.read_all()


def run(
    pki: Pki,
    main: Callable[[Scene, ConnectionPool], Awaitable[None]],
    *,
    client: Config | None = None,
    server: Config | None = None,
    wire: Impairment = WIRE,
    **limits: float,
) -> None:
    """`main` with a pool of these limits."""

    async def scene(simulation: Simulation) -> None:
        scene = Scene(simulation)
        scene.hold.set()
        serving = asyncio.ensure_future(scene.serve())
        try:
            async with ConnectionPool(scene, PoolConfig(**limits), seed=1) as pool:  # type: ignore[arg-type]
                async with asyncio.timeout(1000):  # Probes would let a test wait for ever.
                    await main(scene, pool)
        finally:
            serving.cancel()

    ends = client or Config(), server or Config(server=True)
    Simulation(
        1,
        TlsFactory(pki.client),
        TlsFactory(pki.server),
        client=ends[0],
        server=ends[1],
        up=wire,
        down=wire,
    ).run(scene)


@asynccontextmanager
async def holding(scene: Scene, pool: ConnectionPool, count: int) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    """`count` requests in flight, which are answered on leaving."""
    scene.hold.clear()
    tasks = [asyncio.ensure_future(scene.ask(pool, b"held")) for _ in range(count)]
    await asyncio.sleep(BOTH)
    try:
        yield tasks
    finally:
        scene.hold.set()


def test_many_callers_share_few_connections(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 40) as asking:
            stats = pool.stats()
            assert (stats.connections, stats.streams, stats.waiting) == (2, 10, 30)
            assert len(scene.requests) == 10, "no more than were given a place"
        assert await asyncio.gather(*asking) == [b"dleh"] * 40
        stats = pool.stats()
        assert (stats.connections, stats.streams, stats.waiting) == (2, 0, 0)
        assert stats.counters["streams_opened"] == 40
        assert stats.counters["connections_made"] == len(scene.serving) == 2

    run(pki, main, max_connections=2, max_streams=5)


def test_one_connection_does_while_it_has_room(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await asyncio.gather(*(scene.ask(pool, b"x") for _ in range(50)))
        for _ in range(20):
            assert await scene.ask(pool, b"ab") == b"ba"
        assert len(scene.serving) == 1

    run(pki, main)


def test_address_name_and_protocols_are_the_key(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        by_text = await pool.target(str(scene.simulation.server_address))
        assert by_text.server_name == by_text.address.ip
        again = await pool.target(scene.simulation.server_address, server_name="node-b")
        assert again == scene.target
        others = [scene.target, again, Target(again.address, "node-b", ("stoq/1",))]
        for target in others:
            assert await scene.ask(pool, b"xy", target) == b"yx"
        assert len(scene.serving) == len(pool.stats().peers) == 2

    run(pki, main)


def test_too_many_callers_are_refused(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")  # While it dials, everybody waits.
        async with holding(scene, pool, 5) as asking:
            with pytest.raises(PoolFull, match="max_waiting"):
                await scene.ask(pool, b"too many")
            assert pool.stats().counters["refused"] == 1
        assert await asyncio.gather(*asking) == [b"dleh"] * 5
        assert b"too many" not in scene.requests

    run(pki, main, max_connections=1, max_streams=2, max_waiting=3)


def test_the_peer_s_own_limit_makes_callers_wait(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        answers = await asyncio.gather(*(scene.ask(pool, b"%d" % n) for n in range(10, 40)))
        assert answers == [(b"%d" % n)[::-1] for n in range(10, 40)]
        assert len(scene.serving) == 1

    run(pki, main, server=Config(server=True, max_streams_bidi=3), max_connections=1)


def test_unidirectional_streams_do_not_hold_up_the_others(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with pool.stream(scene.target, unidirectional=True) as first:
            assert not first.can_read

            async def second() -> None:
                async with pool.stream(scene.target, unidirectional=True):
                    pass

            waiting = asyncio.ensure_future(second())
            await asyncio.sleep(BOTH)
            assert not waiting.done()
            assert await scene.ask(pool, b"ab") == b"ba"
        await waiting

    run(pki, main, server=Config(server=True, max_streams_uni=1), max_connections=1)


def test_cancelled_callers_leave_their_places(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 6) as asking:
            asking[0].cancel()  # Holds a stream.
            asking[
                4
            ].cancel()  # Waits; and so does the next, served in the very turn in which it is cancelled.
            asking[2].cancel()
            await asyncio.sleep(0)  # One that waits may be served and cancelled in the same turn.
            asking[3].cancel()
            await asyncio.sleep(BOTH)
            assert pool.stats().streams == 2
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
            True, False, True, True, True, False,
        ]  # fmt: skip
        assert (pool.stats().streams, pool.stats().waiting) == (0, 0)
        async with holding(scene, pool, 3):
            assert (pool.stats().streams, pool.stats().waiting) == (2, 1)

    run(pki, main, max_connections=1, max_streams=2)


def test_a_dial_outlives_the_caller_that_wanted_it(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        first = asyncio.ensure_future(scene.ask(pool, b"ab"))
        second = asyncio.ensure_future(scene.ask(pool, b"cd"))
        await asyncio.sleep(0.001)
        first.cancel()
        assert await second == b"dc"
        assert len(scene.dialled_at) == 1

    run(pki, main)


def test_a_lost_connection_is_told_and_nothing_is_repeated(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 3) as asking:
            scene.serving[0].close(7, "out of order")
            for answer in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(answer, ConnectionClosed) and answer.code == 7
        assert scene.requests == [b"held"] * 3
        assert pool.stats().connections == 0
        assert await scene.ask(pool, b"ab") == b"ba"
        assert (len(scene.serving), pool.stats().counters["connections_lost"]) == (2, 1)

    run(pki, main)


def test_who_waits_is_served_by_the_next_connection(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 2) as asking:
            scene.serving[0].close()
            scene.hold.set()
            assert isinstance((await asyncio.gather(asking[0], return_exceptions=True))[0], ConnectionClosed)
            assert await asking[1] == b"dleh"
        assert len(scene.serving) == 2

    run(pki, main, max_connections=1, max_streams=1)


def test_failing_dials_back_off_and_tell_who_waits(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        scene.failures = 8
        for attempts in (3, 4, 5, 6, 7, 8):
            with pytest.raises(PeerUnavailable, match="made to fail") as caught:
                await scene.ask(pool, b"x")
            assert isinstance(caught.value.cause, DatapathError)
            assert len(scene.dialled_at) == attempts
            with pytest.raises(PeerUnavailable):
                await scene.ask(pool, b"x")
            assert len(scene.dialled_at) == attempts, "told at once, without a dial"
            await asyncio.sleep(2.1)
        gaps = [after - before for before, after in zip(scene.dialled_at, scene.dialled_at[1:], strict=False)]
        assert 0.5 <= gaps[0] < 1.001 and 1.0 <= gaps[1] < 2.001, "doubled, less some jitter"
        assert all(gap < 2.2 for gap in gaps), "bounded"
        assert await scene.ask(pool, b"ab") == b"ba"
        (peer,) = pool.stats().peers
        assert (peer.failures, peer.error) == (0, "")
        assert pool.stats().counters["dial_failures"] == 8

    run(pki, main, backoff_first=1.0, backoff_most=2.0, dial_attempts=3)


def test_a_refused_certificate_is_told_at_once(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        with pytest.raises(PeerUnavailable) as caught:
            await scene.ask(pool, b"x", Target(scene.simulation.server_address, "somebody-else"))
        assert isinstance(caught.value.cause, HandshakeFailed)
        assert "after 1 attempt " in str(caught.value)
        assert len(scene.dialled_at) == 1
        assert await scene.ask(pool, b"ab") == b"ba"

    run(pki, main)


def test_quiet_connections_are_kept_alive(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")
        await asyncio.sleep(200)
        assert await scene.ask(pool, b"ab") == b"ba"
        counters = pool.stats().counters
        assert (counters["connections_made"], counters["connections_lost"]) == (1, 0)
        assert counters["probes"] >= 8 and counters["probes_unanswered"] == 0

    run(pki, main, idle_seconds=1000)


def test_a_silent_peer_gets_no_more_streams(pki: Pki) -> None:
    """Long before the idle timeout; a stream that is open goes on when the path comes back."""

    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 1) as asking:
            scene.simulation.impair(DEAD, DEAD)
            await asyncio.sleep(2 * 3 + 1.5)
            stats = pool.stats()
            assert (stats.connections, stats.draining, stats.counters["probes_unanswered"]) == (0, 1, 1)
            scene.simulation.impair(WIRE, WIRE)
            scene.hold.set()
            assert await scene.ask(pool, b"ab") == b"ba"
            assert len(scene.serving) == 2
        assert await asking[0] == b"dleh"
        await asyncio.sleep(BOTH)
        assert (pool.stats().connections, pool.stats().draining) == (1, 0)
        ended = await scene.serving[0].wait_closed()
        assert ended.clean and ended.remote

    run(pki, main, probe_seconds=3, probe_timeout=1)


def test_unused_connections_are_closed(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")
        await asyncio.sleep(30)
        assert (await scene.serving[0].wait_closed()).clean
        stats = pool.stats()
        assert (stats.connections, stats.peers, stats.counters["connections_idle"]) == (0, [], 1)
        assert await scene.ask(pool, b"ab") == b"ba"

    run(pki, main, idle_seconds=5, probe_seconds=3)


def test_connections_to_be_kept_are_made_again(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")
        await asyncio.sleep(PATIENCE)
        assert pool.stats().connections == 2
        scene.failures = 2
        scene.serving[0].close(1)
        await asyncio.sleep(PATIENCE)
        assert pool.stats().connections == 2
        assert (len(scene.dialled_at), len(scene.serving)) == (5, 3)

    run(pki, main, min_connections=2, idle_seconds=1, probe_seconds=1)


def test_a_peer_that_hangs_up_at_once_is_no_busy_loop(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")

        async def hang_up() -> None:
            seen = 0
            while True:
                for connection in scene.serving[seen:]:
                    connection.close()
                    seen += 1
                await asyncio.sleep(0.01)

        hanging_up = asyncio.ensure_future(hang_up())
        await asyncio.sleep(60)
        hanging_up.cancel()
        assert len(scene.dialled_at) < 15

    run(pki, main, min_connections=1)


def test_peers_make_room_for_each_other(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        other = Target(scene.target.address, "node-b", ("stoq/1",))
        await scene.ask(pool, b"x")
        assert await scene.ask(pool, b"ab", other) == b"ba"
        assert len(scene.serving) == 2 and len(pool.stats().peers) == 1
        async with pool.stream(other):
            with pytest.raises(PoolFull, match="max_peers"):
                await scene.ask(pool, b"x")
        assert (await scene.serving[0].wait_closed()).clean

    run(pki, main, max_peers=1)


def test_close_lets_streams_finish_and_tells_who_waits(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with pool.stream(scene.target) as stream:
            stream.write(bytes(300_000))
        async with holding(scene, pool, 2) as asking:
            closing = asyncio.ensure_future(pool.close())
            await asyncio.sleep(0.5)
            assert isinstance(asking[1].exception(), PoolClosed)
            scene.hold.set()
            assert await asking[0] == b"dleh"
            await closing
        assert bytes(300_000) in scene.requests
        with pytest.raises(PoolClosed):
            await scene.ask(pool, b"x")
        assert (await scene.serving[0].wait_closed()).clean
        await pool.close()

    run(pki, main, max_connections=1, max_streams=1)


def test_close_does_not_wait_for_ever(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        async with holding(scene, pool, 1) as asking:
            began = scene.simulation.now
            await pool.close()
            assert 2 <= scene.simulation.now - began < 3
            with pytest.raises(ConnectionClosed):
                await asking[0]

    run(pki, main, drain_seconds=2)


def test_an_exception_resets_the_stream_and_gives_its_place_back(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        with pytest.raises(RuntimeError):
            async with pool.stream(scene.target) as stream:
                stream.write(b"half")
                raise RuntimeError
        assert await scene.ask(pool, b"ab") == b"ba"
        assert scene.requests == [b"ab"]
        pooled = pool.stream(scene.target)
        async with pooled:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            await pooled.__aenter__()

    run(pki, main, max_connections=1, max_streams=1)


def test_ping_takes_a_round_trip(pki: Pki) -> None:
    async def main(scene: Scene, pool: ConnectionPool) -> None:
        await scene.ask(pool, b"x")
        await asyncio.sleep(1)
        (connection,) = scene.simulation.client.connections
        assert 0.01 <= await connection.ping() < 0.1
        scene.simulation.impair(DEAD, DEAD)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await connection.ping()
        scene.simulation.impair(WIRE, WIRE)
        assert await connection.ping() < 5

    run(pki, main)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_streams": 0},
        {"max_waiting": -1},
        {"probe_seconds": 0},
        {"min_connections": 5},
        {"backoff_first": 3.0, "backoff_most": 1.0},
    ],
)
def test_impossible_limits(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PoolConfig(**limits)  # type: ignore[arg-type]

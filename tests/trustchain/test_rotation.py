"""Keys change and certificates are revoked while nodes talk: what is good goes on without a byte lost, what is not ends
within seconds, on both ends with the reason."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from control.ctlog.precert import embedded_scts, key_hash
from control.ctlog.site import load_log_key
from control.rpc import RpcClient
from control.trustchain import agent
from control.trustchain import messages as m
from control.trustchain.actor import Actor
from control.trustchain.bundle import LogRecord, PinRecord, RevocationRecord, load_bundle
from control.trustchain.directory import load_root_key
from control.trustchain.home import Home
from control.trustchain.keys import spki
from control.trustchain.pins import format_pin
from control.trustchain.profiles import CLOCK_SKEW_S
from control.trustchain.roles import Role
from control.trustchain.server import Served
from control.trustchain.trust import TRUST, TrustConfig
from dataplane import Connection, HandshakeFailed, Stream
from tests.trustchain.world import PATIENCE, Node, World, ended, until

PUSHED = 5.0  # Seconds in which a revocation must have arrived.
PIECE = 32 << 10


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes look for an authority that has gone ten times as often as they would."""
    monkeypatch.setattr(agent, "FIRST_PAUSE", agent.FIRST_PAUSE / 10)


@dataclass
class Half:
    """What one end sent and received."""

    sent: int = 0
    received: int = 0
    sent_hash: bytes = b""
    received_hash: bytes = b""


class Traffic:
    """Data in both directions on one stream, without a pause, until it is told to end."""

    def __init__(self, ours: Connection, theirs: Connection) -> None:
        self.connections = (ours, theirs)
        self.halves = (Half(), Half())
        self._end = asyncio.Event()

    async def _send(self, stream: Stream, half: Half, seed: int) -> None:
        digest, made = hashlib.sha256(), random.Random(seed)
        while not self._end.is_set():
            piece = made.randbytes(PIECE)
            digest.update(piece)
            stream.write(piece)
            await stream.drain()
            half.sent += len(piece)
            await asyncio.sleep(0.002)
        stream.write_eof()
        half.sent_hash = digest.digest()

    async def _receive(self, stream: Stream, half: Half) -> None:
        digest = hashlib.sha256()
        async for data in stream:
            digest.update(data)
            half.received += len(data)
        half.received_hash = digest.digest()

    async def flows(self) -> None:
        """Something has arrived, at both ends, that was sent from now on."""
        before = [half.received for half in self.halves]
        goal = [sent + 2 * PIECE for sent in (self.halves[1].sent, self.halves[0].sent)]
        await until(lambda: all(half.received >= want for half, want in zip(self.halves, goal, strict=True)), f"{before}")

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """It runs inside the block; afterwards all must have arrived, and the connection be as good as ever."""
        ours = await self.connections[0].open_stream()
        ours.write(b"!")
        theirs = await asyncio.wait_for(self.connections[1].accept_stream(), PATIENCE)
        assert await theirs.readexactly(1) == b"!"
        async with asyncio.TaskGroup() as tasks:
            for seed, (stream, half) in enumerate(zip((ours, theirs), self.halves, strict=True)):
                tasks.create_task(self._send(stream, half, seed))
                tasks.create_task(self._receive(stream, half))
            yield
            self._end.set()
        one, other = self.halves
        assert (one.sent, one.sent_hash) == (other.received, other.received_hash)
        assert (other.sent, other.sent_hash) == (one.received, one.received_hash)
        assert all(connection.usable for connection in self.connections), "a connection was lost"


@asynccontextmanager
async def _pair(world: World, served: Served) -> AsyncIterator[tuple[Node, Node]]:
    one, other = await world.member(served, "node-a"), await world.member(served, "node-b")
    async with world.node(one) as a, world.node(other) as b:
        await until(lambda: served.trust.followers >= 2, "both follow")
        yield a, b


async def _followed(served: Served, *nodes: Node) -> None:
    """All of these judge by the newest bundle."""
    wanted = served.trust.bundle.generation
    await until(lambda: all(node.generation == wanted for node in nodes), "the newest bundle is everywhere")


def _write_trust(world: World, config: TrustConfig) -> None:
    (world.ca / TRUST).write_bytes(msgspec.json.encode(config))


async def _trust(world: World, served: Served, config: TrustConfig, *nodes: Node) -> None:
    _write_trust(world, config)
    assert served.trust.refresh()
    await _followed(served, *nodes)


def test_a_revocation_reaches_who_is_connected(tmp_path: Path) -> None:
    """Within five seconds the peer closes, both ends know why, and the revoked node gets in nowhere any more. Traffic
    with others goes on."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init()
        refused: list[HandshakeFailed] = []
        async with (
            world.serve(refused=refused) as served,
            _pair(world, served) as (a, b),
            world.node(await world.member(served, "node-c")) as c,
        ):
            await until(lambda: served.trust.followers == 3, "all follow")
            good, bad = Traffic(*await a.reach(c)), await a.reach(b)
            async with good.going():
                begin = time.monotonic()
                await served.authority.revoke("node-b", "keyCompromise", Actor.local())
                ours, theirs = await asyncio.gather(*(ended(end, PUSHED) for end in bad))
                took = time.monotonic() - begin
                for error, remote in ((ours, False), (theirs, True)):
                    assert isinstance(error, HandshakeFailed) and error.alert_name == "certificate_revoked"
                    assert "node-b" in str(error) and "keyCompromise" in str(error) and error.remote is remote
                assert took < PUSHED and a.agent.closed == 1 and "keyCompromise" in a.said("revoked")[0]
                # Its own connection to the authority ended likewise, and it is not let in again.
                await until(lambda: any("certificate_revoked" in text for text in b.said("trust-trouble")), "b hears")
                await until(lambda: any(one.alert_name == "certificate_revoked" for one in refused), "and is refused")
                with pytest.raises(HandshakeFailed, match="keyCompromise"):
                    connection = await b.datapath.connect(a.datapath.local_address, server_name="node-a")
                    raise await ended(connection)
                assert a.refused and "keyCompromise" in str(a.refused[-1])
                await good.flows()
            print(f"revocation to close: {took * 1e3:.0f} ms")
            assert served.trust.followers == 2

    asyncio.run(main())


def test_who_was_away_learns_it_on_return(tmp_path: Path) -> None:
    """A node that did not follow when it happened, with a connection open: it ends as soon as the node follows again."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init()
        async with world.serve() as served:
            one, other = await world.member(served, "node-a"), await world.member(served, "node-b")
            async with world.node(one, agent=False) as a, world.node(other, agent=False) as b:
                ours, theirs = await a.reach(b)
                await served.authority.revoke("node-b", "cessationOfOperation", Actor.local())
                await until(lambda: served.trust.bundle.revocations, "it is in the bundle")
                assert (await a.reach(b))[0].usable and ours.usable  # Nobody has told a.
                begin = time.monotonic()
                async with a.membership.running(a.datapath, a.factory, lambda what, text: None):
                    error = await ended(theirs, PUSHED)
                assert "cessationOfOperation" in str(error) and time.monotonic() - begin < PUSHED
                assert Home.read(one.directory).bundle().revocations  # And kept.

    asyncio.run(main())


def test_the_authority_restarts(tmp_path: Path) -> None:
    """Nodes go on without it, find it again, and hear what is new; also when its bundle was lost or damaged."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init()
        async with world.serve() as served:
            one, other = await world.member(served, "node-a"), await world.member(served, "node-b")
        async with world.node(one) as a, world.node(other) as b:
            traffic = Traffic(*await a.reach(b))
            async with traffic.going():
                before = a.generation
                path = world.ca / "bundle.json"
                for number, damage in enumerate((None, b'{"generation":', b"gone")):
                    if damage == b"gone":
                        path.unlink()
                    elif damage is not None:
                        path.write_bytes(damage)
                    async with world.serve() as served:
                        await until(functools.partial(_follow, served, 2), "both are back")
                        await world.credentials(served, f"victim-{number}", Role.NODE)
                        await served.authority.revoke(f"victim-{number}", "superseded", Actor.local())
                        await until(functools.partial(_knows, a, number + 1), "heard")
                        assert a.generation > before and len(load_bundle(path).revocations) == number + 1
                        before = a.generation
                        await _followed(served, a, b)
                        await traffic.flows()

    asyncio.run(main())


def _follow(served: Served, count: int) -> bool:
    return served.trust.followers == count


def _knows(node: Node, revocations: int) -> bool:
    return len(node.membership.verifier.bundle.revocations) == revocations


def test_rotation_under_traffic_loses_nothing(tmp_path: Path) -> None:
    """Node certificates and keys, the intermediate, and the logs' keys all change while one connection carries data both
    ways: it is never lost, no byte is, and no node restarts."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init()
        async with AsyncNodes(world) as nodes:
            a, b = nodes.pair
            traffic = Traffic(*await a.reach(b))
            async with traffic.going():
                async with world.serve() as served:
                    await until(lambda: served.trust.followers == 2, "both follow")
                    await _renewals(nodes, traffic)
                    await _intermediate(world, served, nodes, traffic)
                    await world.make_log("c")
                    async with world.node(nodes.old) as old:  # It hears of the log, and then is away for the rest.
                        await _announce(world, served, "c", a, b, old)
                async with world.serve(("b", "c")) as served:  # Log a is gone, its record is kept.
                    await _relogged(served, nodes, traffic, {"localhost/b", "localhost/c"})
                async with world.serve(("c",)) as served:
                    await _relogged(served, nodes, traffic, {"localhost/c"})
                    # With certificates from before all that: SCTs of logs that are gone, the first intermediate.
                    async with world.node(Home.read(nodes.old.directory)) as old:
                        await until(functools.partial(_follow, served, 3), "it is back")
                        assert old.factory.config.credentials is not None
                        for ends in (await a.reach(old), await old.reach(a)):
                            assert all(end.usable for end in ends)
                await traffic.flows()
            sent = sum(half.sent for half in traffic.halves)
            print(f"{sent / 1e6:.0f} MB, {a.agent.renewals + b.agent.renewals} renewals, 0 connections lost")
            assert a.agent.closed == b.agent.closed == 0 and not a.refused and not b.refused

    asyncio.run(main())


class AsyncNodes:
    """Two nodes and the home of a third, of an authority that does not run just now."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stack = AsyncExitStack()
        self.pair: tuple[Node, Node]
        self.old: Home

    async def __aenter__(self) -> AsyncNodes:
        async with self._world.serve() as served:
            homes = [await self._world.member(served, name) for name in ("node-a", "node-b", "old")]
        self.old = homes[2]
        nodes = [await self._stack.enter_async_context(self._world.node(home)) for home in homes[:2]]
        self.pair = (nodes[0], nodes[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def _renewals(nodes: AsyncNodes, traffic: Traffic) -> None:
    """Both ends get new keys, three times; new connections show them, the old one goes on."""
    a, b = nodes.pair
    for _ in range(3):
        was = b.factory.config.credentials
        await asyncio.gather(a.agent.renew(), b.agent.renew())
        new = b.factory.config.credentials
        assert was is not None and new is not None and was.node_id != new.node_id
        fresh, other = await a.reach(b)
        assert fresh.identity is not None and fresh.identity.node_id == new.node_id
        async with fresh:
            pass
        await ended(other)
        await traffic.flows()


async def _intermediate(world: World, served: Served, nodes: AsyncNodes, traffic: Traffic) -> None:
    """The next intermediate issues; who never restarted takes its certificates, and those of the former."""
    a, b = nodes.pair
    authority = served.authority
    former = authority.issuer
    await authority.rotate_intermediate(load_root_key(world.ca, authority.config, None), Actor.local())
    assert authority.issuer.certificate != former.certificate
    newcomer = await world.member(served, f"new-{authority.issuer.number}")
    async with world.node(newcomer) as c:
        leaf = c.membership.credentials.certificate
        assert leaf.issuer == authority.issuer.certificate.subject
        for ends in (await a.reach(c), await c.reach(b)):
            assert all(end.usable for end in ends)
        await a.agent.renew()
        renewed = a.factory.config.credentials
        assert renewed is not None and renewed.certificate.issuer == authority.issuer.certificate.subject
        for ends in (await a.reach(b), await b.reach(a), await c.reach(a)):
            assert all(end.usable for end in ends)
        await traffic.flows()


async def _announce(world: World, served: Served, name: str, *nodes: Node) -> None:
    """trust.json gets every log that is known now, and one that is to come."""
    known = served.trust.bundle.logs
    key = spki(load_log_key(str(world.log(name) / "log.pem")))
    new = LogRecord(name=f"localhost/{name}", key=key, begins=known[0].begins)
    await _trust(world, served, TrustConfig(logs=(*known, new)), *nodes)


async def _relogged(served: Served, nodes: AsyncNodes, traffic: Traffic, logs: set[str]) -> None:
    """The authority submits to other logs: nodes find it, renew, and take each other's certificates."""
    a, b = nodes.pair
    await until(lambda: served.trust.followers == 2, "both are back")
    await _followed(served, a, b)
    await a.agent.renew()
    credentials = a.factory.config.credentials
    assert credentials is not None
    known = {one.log_id: one.name for one in a.membership.verifier.rules.logs.values()}
    named = {known[sct.log_id] for sct in embedded_scts(credentials.certificate)}
    assert named and named <= logs, named
    for ends in (await a.reach(b), await b.reach(a)):
        assert all(end.usable for end in ends)
    await traffic.flows()


def test_renewals_go_on(tmp_path: Path) -> None:
    """Each renewal is of the newest certificate: also when the one that the node came with has long expired. And it is
    made by itself when two thirds of the life are over."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            home = await world.member(served, "node")
            short = await world.credentials(served, "node", Role.NODE, lifetime_s=60)
            home.write_credentials(short.key, [short.certificate, *short.chain])  # type: ignore[arg-type]
            async with world.node(home) as node:
                await until(lambda: served.trust.followers == 1, "it follows")
                await node.agent.renew()
                await until(lambda: served.calls.following == 1, "it follows with the new one")
                world.clock.ahead = 60 + CLOCK_SKEW_S + 1
                await node.agent.renew()
                connection = node.agent._connection
                await until(lambda: served.trust.followers == 1 and node.agent._connection is not connection, "and again")
                assert not node.said("trust-trouble")
                # Whoever holds the newest key is who is revoked.
                await served.authority.revoke("node", "superseded", Actor.local())
                await until(lambda: node.said("trust-trouble"), "the authority lets go of it")
        async with world.serve(("a",)) as served:
            home = await world.member(served, "other")
        world.clock.ahead += 17 * 3600.0
        async with world.serve(("a",)) as served, world.node(home) as node:
            await until(lambda: node.agent.renewals == 1, "renewed in time")
            fresh = Home.read(home.directory).credentials().certificate
            assert fresh.not_valid_after_utc.timestamp() > world.clock() + 20 * 3600

    asyncio.run(main())


def test_an_intermediate_is_revoked(tmp_path: Path) -> None:
    """By its key, in trust.json: whoever rests on it is let go of with the reason; what the next one issued stays."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            old = [await world.member(served, name) for name in ("old-a", "old-b")]
            authority = served.authority
            former = authority.issuer.certificate
            await authority.rotate_intermediate(load_root_key(world.ca, authority.config, None), Actor.local())
        async with (
            world.serve(("a",)) as served,  # With a certificate of the new one.
            world.node(await world.member(served, "new-a")) as a,
            world.node(await world.member(served, "new-b")) as b,
            world.node(old[0]) as c,
            world.node(old[1]) as d,
        ):
            await until(lambda: served.trust.followers == 4, "all follow")
            good, bad, worse = await a.reach(b), await a.reach(c), await d.reach(b)
            begin = time.monotonic()
            at = served.trust.bundle.issued_at
            _write_trust(
                world, TrustConfig(revocations=(RevocationRecord(at=at, reason="cACompromise", key_hash=key_hash(former)),))
            )
            assert served.trust.refresh()
            for end in (*bad, *worse):
                assert "cACompromise" in str(await ended(end, PUSHED))
            assert time.monotonic() - begin < PUSHED and all(end.usable for end in good)
            with pytest.raises(HandshakeFailed, match="cACompromise"):
                await a.datapath.connect(d.datapath.local_address, server_name="old-b")

    asyncio.run(main())


def test_a_follower_that_reads_nothing(tmp_path: Path) -> None:
    """It is pushed no more than fits, and nobody else waits for it."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served, max_stream_data=4096) as callers:
            home = await world.member(served, "node")
            lazy = await callers.connect(await world.credentials(served, "lazy", Role.NODE))
            async with world.node(home) as node, await lazy.open_stream() as stream:
                RpcClient(lazy)._request(stream, m.FOLLOW, m.FollowBody(0), None)
                await until(lambda: served.calls.following == 2, "both follow")
                for round_ in range(4):
                    # Large, and another each time.
                    pins = {f"peer-{round_}-{one}": pinned for one in range(1500)}
                    begin = time.monotonic()
                    await _trust(world, served, TrustConfig(pins=pins), node)
                    assert time.monotonic() - begin < PUSHED
                assert served.calls.following == 2
            await until(lambda: served.calls.following == 1, "the lazy one is given up once it has left")

    pinned = PinRecord((format_pin(bytes(32)), format_pin(bytes(31) + b"1")))
    asyncio.run(main())

"""The authority over STOQ: many requests at once, a sustained mix, a restart."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import time
from pathlib import Path

import pytest

from control.ctlog.precert import embedded_scts
from control.handshake import Credentials
from control.rpc import RpcClient
from control.trustchain import messages
from control.trustchain.actor import Actor
from control.trustchain.bundle import decode_bundle
from control.trustchain.errors import NotIssued
from control.trustchain.membership import Membership
from control.trustchain.profiles import Names
from control.trustchain.requests import make_csr
from control.trustchain.roles import Role
from control.trustchain.server import Served
from control.trustchain.verifier import TrustVerifier
from dataplane import StoqError
from tests.trustchain.load import run_load
from tests.trustchain.world import World, chain_of, ended, new_key, until

AT_ONCE = 100


def test_a_hundred_requests_at_once(tmp_path: Path) -> None:
    """All answered, all distinct, each with an SCT of both logs, each good to whoever judges by the bundle."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(min_scts=2)
        async with world.serve() as served, world.callers(served) as callers:
            registrar = await world.credentials(served, "registrar", Role.REGISTRAR)
            connections = [await callers.calls(registrar) for _ in range(4)]
            keys = [new_key() for _ in range(AT_ONCE)]

            def request(index: int) -> messages.IssueBody:
                name = f"node-{index}"
                return messages.IssueBody(make_csr(keys[index], name, Names.parse([name], ["::1"])), "node", name)

            begin = time.monotonic()
            answers = await asyncio.gather(
                *(
                    connections[index % len(connections)].call(messages.ISSUE, request(index), messages.ChainAnswer)
                    for index in range(AT_ONCE)
                )
            )
            seconds = time.monotonic() - begin
            verifier = TrustVerifier(served.trust.bundle)
            known = {one.log_id for one in verifier.rules.logs.values()}
            leaves = [chain_of(answer.chain)[0] for answer in answers]
            assert len({leaf.serial_number for leaf in leaves}) == AT_ONCE
            for index, (answer, leaf) in enumerate(zip(answers, leaves, strict=True)):
                assert leaf.public_key() == keys[index].public_key()
                assert {sct.log_id for sct in embedded_scts(leaf)} == known and len(known) == 2
                verdict = verifier.judge(list(answer.chain), f"node-{index}", _now(world))
                assert verdict.good, verdict.text
            assert all(one.head.size == AT_ONCE + 2 for one in served.logs.values())  # And two of our own.
            print(f"{AT_ONCE} certificates in {seconds:.2f} s")
        assert world.audit().intact

    asyncio.run(main())


def _now(world: World) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(world.clock(), datetime.UTC)


def test_a_mix_of_calls_at_fifty_a_second(tmp_path: Path) -> None:
    """Without an error. `python -m tests.trustchain.load` does the same for a minute."""
    seed = 20260101
    summary = asyncio.run(run_load(tmp_path, 4.0, 50.0, seed))
    assert summary["errors"] == 0, summary
    assert summary["failures"] == 0 and summary["audit_intact"], summary


def test_a_storm(tmp_path: Path) -> None:
    """Sixty followers; sixty revocations at once reach each within seconds, in few bundles; all go and come back at
    once; in the end nothing of them is left."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            nodes = [await world.credentials(served, f"node-{one}", Role.NODE) for one in range(6)]
            victims = [await world.credentials(served, f"victim-{one}", Role.NODE) for one in range(60)]
            for round_ in range(2):
                generation = served.trust.bundle.generation
                calls = [await callers.calls(nodes[one % len(nodes)]) for one in range(60)]
                following = [asyncio.ensure_future(_follow_until(one, generation, 30 * (round_ + 1))) for one in calls]
                await until(lambda: served.trust.followers == 60, "all follow")
                begin = time.monotonic()
                now = victims[30 * round_ : 30 * (round_ + 1)]
                await asyncio.gather(*(_revoke(served, one) for one in now))
                bundles = await asyncio.gather(*following)
                assert time.monotonic() - begin < 5 and max(bundles) <= 20, bundles
                for one in calls:
                    one._connection.close(0, "all at once")
                await until(lambda: served.trust.followers == 0, "they have gone")
                await until(lambda: not served.datapath.connections, "and their connections")
            await until(lambda: served.calls.following == served.calls.at_work == 0, "nothing is left")

    asyncio.run(main())


async def _revoke(served: Served, one: Credentials) -> None:
    await served.authority.revoke(f"{one.certificate.serial_number:040x}", "superseded", Actor.local())


async def _follow_until(calls: RpcClient, generation: int, revocations: int) -> int:
    """Until so many are revoked; how many bundles that took."""
    count = 0
    async for answer in calls.follow(messages.FOLLOW, messages.FollowBody(generation), messages.BundleAnswer):
        count += 1
        if len(decode_bundle(answer.bundle).revocations) >= revocations:
            break
    return count


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """Nothing is signed meanwhile, and that is said; revocations are decided and pushed all the same. An authority whose
    clock is behind its last decision does not start."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.node(await world.member(served, "node")) as node:
            await until(lambda: served.trust.followers == 1, "it follows")
            await world.credentials(served, "victim", Role.NODE)
            before = served.trust.bundle.generation
            world.clock.ahead = -3600
            with pytest.raises(NotIssued, match=r"the clock is 36\d\d s behind"):
                await world.credentials(served, "another", Role.NODE)
            await served.authority.revoke("victim", "keyCompromise", Actor.local())
            await until(lambda: node.membership.verifier.bundle.revocations, "it is pushed")
            assert node.generation == served.trust.bundle.generation > before
            world.clock.ahead = 0
            await world.credentials(served, "another", Role.NODE)
        world.clock.ahead = -3600
        with pytest.raises(NotIssued, match="behind"):
            async with world.serve(("a",)):
                pytest.fail("it runs")
        world.clock.ahead = 0
        async with world.serve(("a",)):
            pass
        assert world.audit().intact

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("node.json", b"", "cannot be read"),
        ("node.json", b'{"name":"x"}', "cannot be read"),
        ("node.json", None, "no node's home"),
        ("identity.pem", b"", "identity.pem"),
        ("identity.pem", "half", "identity.pem"),
        ("identity.pem", None, "identity.pem"),
        ("identity.pem", "open", "chmod"),
        ("bundle.json", b"", "bundle.json"),
        ("bundle.json", "half", "bundle.json"),
        ("bundle.json", None, "bundle.json"),
        ("bundle.json", b"\xff" * 64, "bundle.json"),
    ],
    ids=str,
)
def test_a_damaged_home(tmp_path: Path, homes: Path, name: str, damage: bytes | str | None, words: str) -> None:
    """What is missing, cut short or open to others is named; what an interrupted write left beside it is not looked at."""
    home = tmp_path / "home"
    shutil.copytree(homes, home)
    (home / f".{name}.4711").write_bytes(b"half a fi")
    Membership(home)
    path = home / name
    if damage is None:
        path.unlink()
    elif damage == "open":
        path.chmod(0o644)
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoqError, match=words):
        Membership(home)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a member."""

    async def main() -> Path:
        world = World(tmp_path_factory.mktemp("world"))
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            return (await world.member(served, "node")).directory

    return asyncio.run(main())


def test_a_bundle_that_cannot_be_kept(tmp_path: Path) -> None:
    """A node that cannot keep a bundle judges by it all the same: who was revoked is let go of."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            one, other = await world.member(served, "node-a"), await world.member(served, "node-b")
            async with world.node(one) as a, world.node(other, agent=False) as b:
                await until(lambda: served.trust.followers == 1, "it follows")
                ours, _ = await a.reach(b)
                blocked = one.directory / f".bundle.json.{os.getpid()}"
                blocked.mkdir()  # Where the next bundle would be written first.
                try:
                    await served.authority.revoke("node-b", "keyCompromise", Actor.local())
                    assert "keyCompromise" in str(await ended(ours, 5.0))
                    assert "cannot write" in (await until(lambda: a.said("trust-trouble"), "it says so"))[0]
                    assert served.trust.followers == 1 and not Membership(one.directory).verifier.bundle.revocations
                finally:
                    blocked.rmdir()

    asyncio.run(main())

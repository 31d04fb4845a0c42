"""Floods from the link layer against a node with the XDP guard: every frame has the verdict that is its due,
a transfer goes on beside, honest clients get in. `make floods` measures what it costs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable

import pytest

from dataplane.tables import Verdict
from tests.hostile.siege import ATTACK, Books, Siege, siege

SECONDS = 0.5  # Of an attack.
PPS = 12_000  # Little enough for a machine that does other things too.
FOR_EVER_FRAMES = 1 << 62  # An attack that is stopped.
HONEST_SECONDS = 20.0  # On a busy machine; alone it is some tens of milliseconds.
WINDOWS = 16  # A second: GUARD_WINDOWS_A_SECOND of csrc/bpf/rates.h.


def missing() -> str | None:
    """What keeps these tests from running here."""
    if os.geteuid() != 0:
        return "network namespaces and XDP need root"
    if shutil.which("ip") is None:
        return "iproute2 is missing: apt-get install iproute2"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def besieged(backend: str, main: Callable[[Siege], Awaitable[None]], *, guard: bool = True) -> None:
    async def run() -> None:
        async with siege(backend=backend, guard=guard, pin=False) as scene:
            await main(scene)

    asyncio.run(run())


async def endure(scene: Siege, kind: str) -> tuple[Books, int, float]:
    """An attack of SECONDS, or longer until a transfer beside it has carried something meanwhile; it also
    goes on before and after. The books, what was sent, and how long it took. Frames and verdicts
    agree exactly."""
    start = await scene.quiet()
    transfer = await scene.transfer()
    attack = await scene.attack(kind, PPS, FOR_EVER_FRAMES)
    during = scene.carried
    await asyncio.sleep(SECONDS)
    await scene.until_carried(during + 1)
    sent = await attack.stop()
    await scene.goes_on()
    assert not transfer.connection.closed
    await transfer.end()
    books = (await scene.quiet()).since(start)
    assert sent["sent"] > 0
    assert books.verdicts is not None and books.unaccounted(sent["sent"]) == 0, books
    assert books.verdicts[Verdict.ERROR] == 0
    return books, int(sent["sent"]), float(sent["seconds"])


def strangers(books: Books) -> int:
    """Frames of the attack that the guard let through: what it took less what the client sent."""
    assert books.verdicts is not None
    return books.verdicts.taken - books.client["datagrams_sent"] + books.refused


@pytest.mark.parametrize("backend", ["io_uring", "afxdp"])
def test_ipv4_is_dropped(backend: str) -> None:
    async def main(scene: Siege) -> None:
        books, sent, _ = await endure(scene, "ipv4")
        assert books.verdicts is not None and books.verdicts[Verdict.DROP_IPV4] == sent
        assert strangers(books) == 0

    besieged(backend, main)


@pytest.mark.parametrize("backend", ["io_uring", "afxdp"])
def test_long_chains_of_extension_headers_are_dropped(backend: str) -> None:
    async def main(scene: Siege) -> None:
        books, sent, _ = await endure(scene, "extensions")
        assert books.verdicts is not None and books.verdicts[Verdict.DROP_EXTENSIONS] == sent
        assert strangers(books) == 0

    besieged(backend, main)


@pytest.mark.parametrize("backend", ["io_uring", "afxdp"])
def test_garbage_is_dropped_and_what_may_be_answered_is_limited(backend: str) -> None:
    async def main(scene: Siege) -> None:
        policy = scene.node.guard.policy if scene.node.guard else None
        books, sent, seconds = await endure(scene, "garbage")
        verdicts = books.verdicts
        assert verdicts is not None and policy is not None
        reasons = (
            *(Verdict.DROP_SHORT, Verdict.DROP_FIXED_BIT, Verdict.DROP_HEADER, Verdict.DROP_VERSION),
            *(Verdict.DROP_UNKNOWN_CID, Verdict.DROP_INITIAL_SMALL),
        )
        passed = strangers(books)
        assert sum(verdicts[reason] for reason in reasons) + passed == sent
        # A quarter each of random bytes has a zero fixed bit with either form; what has the long form's
        # zero bit but another version is of that version first.
        assert verdicts[Verdict.DROP_FIXED_BIT] > sent / 8 and verdicts[Verdict.DROP_UNKNOWN_CID] > 0
        # Unknown ids and versions are let through within their rates, rounded up to whole windows.
        rate = policy.unknown_limit + policy.version_limit + 2 * WINDOWS
        assert 0 < passed <= rate * (seconds + 3 / WINDOWS)

    besieged(backend, main)


@pytest.mark.parametrize("backend", ["io_uring", "afxdp"])
def test_copies_of_a_transfers_packets_are_dropped(backend: str) -> None:
    async def main(scene: Siege) -> None:
        books, sent, _ = await endure(scene, "replay")
        verdicts = books.verdicts
        assert verdicts is not None
        # A copy passes when its original has been forgotten: then the engine knows it for what it is.
        passed = strangers(books)
        assert verdicts[Verdict.DROP_REPLAY] + passed == sent
        assert passed < sent / 10
        assert books.drops["duplicate"] + books.drops["aead"] >= passed

    besieged(backend, main)


@pytest.mark.parametrize("backend", ["io_uring", "afxdp"])
@pytest.mark.parametrize("kind", ["initials", "hellos"])
def test_spoofed_initials_are_answered_with_retry_and_honest_clients_get_in(backend: str, kind: str) -> None:
    async def main(scene: Siege) -> None:
        assert scene.node.guard is not None
        policy = scene.node.guard.policy
        books, sent, seconds = await endure(scene, kind)
        verdicts = books.verdicts
        assert verdicts is not None
        # `hellos` were captured from a client that connected, once, while nobody flooded.
        answered, limited = verdicts[Verdict.ANSWER_RETRY], verdicts[Verdict.DROP_RETRY_RATE]
        passed = strangers(books)
        assert answered + limited + passed == sent and answered > 0
        assert passed <= (policy.retry_above + WINDOWS) * (seconds + 3 / WINDOWS)
        if kind == "initials":
            assert books.counters["connections_accepted"] == 1  # The transfer's.

        # Honest clients meet the Retry too (the rate is long past its limit), and answer it.
        before = scene.client.counters()["retries_received"]
        start = scene.verdicts()
        attack = await scene.attack(kind, PPS, FOR_EVER_FRAMES)
        retried = 0
        try:
            for _ in range(5):
                assert await scene.honest(HONEST_SECONDS) is not None
                retried = scene.client.counters()["retries_received"] - before
        finally:
            await attack.stop()
        now = scene.verdicts()
        assert retried > 0
        assert now is not None and start is not None
        assert now.since(start)[Verdict.ANSWER_RETRY] >= retried

    besieged(backend, main)


def test_without_a_guard_the_engine_meets_it_all() -> None:
    """The comparison stands on feet: the same frames, and each garbage Initial is one failed decryption."""

    async def main(scene: Siege) -> None:
        start = await scene.quiet()
        attack = await scene.attack("initials", PPS // 4, 1500)
        sent = await attack.end()
        books = (await scene.quiet()).since(start)
        assert books.verdicts is None
        assert books.drops["aead"] + books.io["rx_dropped_queue"] == sent["sent"]

    besieged("io_uring", main, guard=False)


def test_the_attacker_is_built() -> None:
    assert ATTACK.exists(), "build/hostile/attack is not built: run `make test-build`"

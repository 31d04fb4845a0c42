"""Garbage at a live node: each kind counted under its reason; a flood survived with the books in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.hostile.scene import Scene, endure, live, table

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

EACH = 2000  # Fit the node's receive queue of 8 MiB at once, so that none is lost there.
FLOOD = 200_000  # `make hostile N=10000000` sends more.

# Where each kind may end: drops by reason; "+" an answer; "io:" a counter of the backend.
FATES = {
    "short_header": {"unknown_cid", "reset_limit"},
    "short_header_cut": {"short"},
    "fixed_bit": {"fixed_bit"},
    "initial": {"aead"},
    "initial_token": {"aead"},
    "initial_small": {"initial_small"},
    "initial_dcid_small": {"dcid_small"},
    "coalesced": {"aead"},
    "version": {"version_limit", "+version_negotiations_sent"},
    "version_small": {"version_small"},
    # An answer to ids of other versions' lengths may not fit: header.
    "version_cids": {"version_limit", "header", "+version_negotiations_sent"},
    "handshake": {"not_initial"},
    "zero_rtt": {"zero_rtt"},
    "retry": {"retry"},
    "version_negotiation": {"version_negotiation", "header"},  # A list that is no multiple of 4 bytes.
    "initial_cut": {"short", "header"},
    "oversized_cid": {"cid_length"},
    "false_length": {"short", "header"},
    "one_byte": {"short", "fixed_bit"},
    "empty": {"io:rx_dropped_empty"},
    # Anything but an opened packet; the first two have every first byte, the third every header.
    "random": set(),
    "huge": set(),
    "corrupt": set(),
}


def on_the_wire(main: Callable[[Scene], Awaitable[None]], **config: Any) -> None:
    async def run() -> None:
        async with live(**config) as scene:
            await main(scene)

    asyncio.run(run())


def test_each_kind_is_counted_under_its_reason() -> None:
    async def main(scene: Scene) -> None:
        for number, (kind, fates) in enumerate(FATES.items()):
            count = EACH if kind != "huge" else EACH // 40
            start = await scene.quiet()
            flood = await scene.flood("--kind", kind, "--count", str(count), "--seed", str(number))
            books = (await scene.quiet()).since(start)
            assert flood["sent"] == {name: count if name == kind else 0 for name in flood["sent"]}
            books.check_engine()
            books.check_wire(flood)
            assert books.counters["packets_received"] == 0, kind
            found = books.dropped
            answers = books.counters["version_negotiations_sent"]
            found |= {"+version_negotiations_sent": answers} if answers else {}
            found |= {f"io:{name}": n for name, n in books.io.items() if name.startswith("rx_dropped") and n}
            assert sum(found.values()) == count, (kind, found)
            assert not fates or set(found) <= fates, (kind, found)
            # What the node says it answered is what came back, and it is never more than what provoked it.
            heard = flood["answers"]
            assert heard["version_negotiation"] == answers, kind
            assert heard["stateless_reset"] == books.counters["stateless_resets_sent"], kind
            assert heard["other"] == 0 and heard["bytes"] <= flood["bytes"], kind
        assert set(FATES) == set(flood["sent"]), "every kind has its fate"
        assert scene.node.pool_stats() == scene.pools

    on_the_wire(main)


def test_retry_is_an_answer_too_and_has_its_limit() -> None:
    async def main(scene: Scene) -> None:
        start = await scene.quiet()
        flood = await scene.flood("--kind", "initial", "--count", str(EACH))
        books = (await scene.quiet()).since(start)
        books.check_engine()
        books.check_wire(flood)
        assert books.dropped == {"retry_limit": EACH - books.counters["retries_sent"]}
        assert books.counters["connections_opened"] == 0 and flood["answers"]["bytes"] <= flood["bytes"]
        await scene.close(await scene.connect())  # Who answers the Retry gets in.

    on_the_wire(main, retry_always=True)


@pytest.mark.parametrize(
    ("train", "backend"),
    [(1, "io_uring"), (32, "io_uring"), (1, "afxdp")],
    ids=["single", "trains", "afxdp"],
)
def test_a_flood_is_survived(train: int, backend: str) -> None:
    async def main(scene: Scene) -> None:
        outcome = await endure(scene, f"--count={FLOOD}", f"--seed={train}", f"--train={train}")
        print(table(outcome))
        assert outcome.flood["datagrams"] == FLOOD
        assert bool(outcome.flood["trains"]) == (train > 1)
        assert outcome.files >= 2 and outcome.during_bytes > 0
        if backend == "afxdp":
            guard = outcome.books.guard
            assert sum(guard.values()) > FLOOD / 2, "most of it ends in the XDP program"
            assert min(guard[f"drop_{why}"] for why in ("short", "fixed_bit", "header", "unknown_cid")) > 0

    on_the_wire(main, backend=backend)

"""An anchor that ends anywhere goes on at the next start, and anchors nothing twice."""

from __future__ import annotations

import asyncio
import random
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from control.ctlog.anchor.interface import Phase
from control.ctlog.anchor.state import State, StateFile
from dataplane.errors import ConfigError
from tests.ctlog.anchor.world import (
    LOG_ID,
    OTHER_LOG,
    Relay,
    World,
    mined,
    publish,
    root,
    until,
    waiting,
    world,
)

CarryOut = Callable[[], Awaitable[web.Response]]


async def _finish(w: World, state: Path, size: int) -> None:
    """A new start: the log publishes its head again, and blocks come."""
    anchor = w.anchor(state)
    try:
        anchor.start()
        await publish(anchor, size)
        end = time.monotonic() + 10
        while (found := anchor.status().final) is None or found.size != size:
            assert time.monotonic() < end, f"still {anchor.status()}"
            await mined(w.node, 1)
            await asyncio.sleep(0.005)
        assert found.root == root(size)
        assert not anchor.status().conflict
    finally:
        await anchor.close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_at_any_question_to_the_chain_is_gone_on_from(tmp_path: Path, after: bool) -> None:
    """The process ends just before, or just after, the node has carried out its nth call; for every n to the end. The
    state file is kept, and for every third n lost."""
    with world() as w:
        ended_in: set[Phase] = set()

        async def one(n: int, state: Path) -> bool:
            """Returns whether there was an nth call."""
            reached, never = asyncio.Event(), asyncio.Event()

            async def ends(
                call: dict[str, Any], carry_out: Callable[[], Awaitable[web.Response]]
            ) -> web.StreamResponse:
                if len(relay.calls) < n:
                    return await carry_out()
                if after and not reached.is_set():
                    await carry_out()
                reached.set()
                await never.wait()
                return web.Response(status=500)

            async with Relay(w.node.url, ends) as relay:
                anchor = w.anchor(state, chain=w.chain(relay.url, timeout_seconds=20.0))
                try:
                    anchor.start()
                    await publish(anchor, 10)
                    end = time.monotonic() + 10
                    while not reached.is_set() and anchor.status().anchored == 0:
                        assert time.monotonic() < end, f"still {anchor.status()}"
                        # A block for the transaction, and more only when it was seen in there.
                        if anchor.status().phase is Phase.INCLUDED or w.node.ask("txpool_status")["pending"] != "0x0":
                            await mined(w.node, 1)
                        await asyncio.sleep(0.01)
                    if reached.is_set():
                        ended_in.add(anchor.status().phase)
                finally:
                    await anchor.close()
                    never.set()
                return reached.is_set()

        async def main() -> None:
            n = 0
            while True:
                n += 1
                snapshot = w.node.ask("evm_snapshot")
                state = tmp_path / f"{n}"
                there = await one(n, state)
                if n % 3 == 0:
                    state.unlink(missing_ok=True)
                await _finish(w, state, 10)
                assert w.logs() == 1 and w.transactions() == 1, f"after an end at call {n}"
                w.node.ask("evm_revert", snapshot)
                if not there:
                    break
            assert n > 13 and ended_in == set(Phase)

        asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_heads_become_final_in_order_and_once(tmp_path: Path, seed: int) -> None:
    """Heads, blocks, reorganisations as deep as they can be before finality, lost transactions, errors and restarts, in
    a random order."""
    rng = random.Random(seed)
    with world() as w:

        async def main() -> None:
            broken = False

            async def sometimes(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
                answer = await carry_out()
                return web.Response(status=500) if broken and rng.random() < 0.5 else answer

            size = 0
            finals: list[int] = []
            async with Relay(w.node.url, sometimes) as relay:
                anchor = w.anchor(tmp_path / "state", chain=w.chain(relay.url))
                anchor.start()
                for _ in range(60):
                    event = rng.choice(
                        ("publish", "mine", "mine", "mine", "reorganise", "lose", "restart", "break", "wait")
                    )
                    if event == "publish":
                        size += rng.randint(1, 9)
                        await publish(anchor, size)
                    elif event == "mine":
                        await mined(w.node, 1)
                    elif event == "reorganise":
                        await asyncio.to_thread(w.node.ask, "anvil_reorg", rng.randint(1, 2), [])
                    elif event == "lose":
                        await asyncio.to_thread(w.node.ask, "anvil_dropAllTransactions")
                    elif event == "restart":
                        await anchor.close()
                        anchor = w.anchor(tmp_path / "state", chain=w.chain(relay.url))
                        anchor.start()
                        if size:
                            await publish(anchor, size)
                    elif event == "break":
                        broken = not broken
                    await asyncio.sleep(rng.choice((0.0, 0.005, 0.02)))
                    found = anchor.status().final
                    assert not anchor.status().conflict, seed
                    if found is not None and finals[-1:] != [found.size]:
                        finals.append(found.size)
                await anchor.close()
            await _finish(w, tmp_path / "state", size + 1)
            assert finals == sorted(finals)
            # Nothing that was final is missing, and what is there grows.
            chain = w.chain()
            last = await chain.newest(LOG_ID)
            assert last is not None and last.index + 1 == w.logs()
            for one in finals:
                head = await chain.newest_up_to_size(LOG_ID, one)
                assert head is not None and (head.size, head.root) == (one, root(one)), seed
            await chain.close()

        asyncio.run(main())


def test_the_same_bytes_are_sent_again_when_the_node_forgot_them(tmp_path: Path) -> None:
    with world() as w:

        async def main() -> None:
            anchor = w.anchor(tmp_path / "state")
            anchor.start()
            await publish(anchor, 10)
            first = await waiting(w.node)
            await anchor.close()
            await asyncio.to_thread(w.node.ask, "anvil_dropTransaction", first["hash"])
            anchor = w.anchor(tmp_path / "state")
            anchor.start()
            try:
                assert (await waiting(w.node))["hash"] == first["hash"]
                assert anchor.status().submissions == 0 or anchor.status().submissions == 1
            finally:
                await anchor.close()
            await _finish(w, tmp_path / "state", 10)
            assert w.transactions() == 1

        asyncio.run(main())


def test_a_reorganisation_while_it_was_down_is_seen_at_the_start(tmp_path: Path) -> None:
    with world() as w:

        async def main() -> None:
            anchor = w.anchor(tmp_path / "state")
            anchor.start()
            await publish(anchor, 10)
            await waiting(w.node)
            await mined(w.node, 1)
            await until(anchor, lambda s: s.phase is Phase.INCLUDED)
            await anchor.close()
            await asyncio.to_thread(w.node.ask, "anvil_reorg", 1, [])
            anchor = w.anchor(tmp_path / "state")
            anchor.start()
            await until(anchor, lambda s: s.reorganisations == 1 and s.resubmissions == 1)
            await anchor.close()
            await _finish(w, tmp_path / "state", 10)
            assert w.logs() == 1 and w.transactions() == 1

        asyncio.run(main())


def test_what_is_final_and_counted_is_remembered(tmp_path: Path) -> None:
    with world() as w:

        async def main() -> None:
            await _finish(w, tmp_path / "state", 10)
            anchor = w.anchor(tmp_path / "state")
            status = anchor.status()
            assert status.final is not None and status.final.size == 10 and status.anchored == 1
            assert status.finality == "finalized tag"
            await anchor.close()
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600

        asyncio.run(main())


def test_a_full_disk_sends_nothing_and_is_told(tmp_path: Path) -> None:
    """What cannot be made durable is not sent; a directory in the new file's place stands for a disk that is full."""
    with world() as w:

        async def main() -> None:
            anchor = w.anchor(tmp_path / "state")
            (tmp_path / "state.new").mkdir()
            anchor.start()
            try:
                await publish(anchor, 10)
                status = await until(anchor, lambda s: s.errors_in_row >= 2)
                assert "state cannot be stored" in status.last_error and status.phase is Phase.IDLE
                (tmp_path / "state.new").rmdir()
                assert (await waiting(w.node))["nonce"] == "0x0"  # The nonces of the tries in vain were given back.
            finally:
                await anchor.close()
            await _finish(w, tmp_path / "state", 10)

        asyncio.run(main())


def test_state_files_that_are_damaged_or_of_others(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = StateFile(path)
    state = State(LOG_ID, 1, "0xabc")
    file.save(state)
    assert file.load(LOG_ID, 1, "0xabc") == state
    for other in ((OTHER_LOG, 1, "0xabc"), (LOG_ID, 2, "0xabc"), (LOG_ID, 1, "0xabd")):
        with pytest.raises(ConfigError, match="belongs to log"):
            file.load(*other)
    with pytest.raises(ConfigError, match="another process"):
        StateFile(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], b"\xff" * 40, b"[" * 100_000):
        path.write_bytes(damaged)
        assert file.load(LOG_ID, 1, "0xabc") == state
        assert file.damaged is not None and file.damaged.read_bytes() == damaged and not path.exists()
    path.write_bytes(whole.replace(b'"format":1', b'"format":9'))
    with pytest.raises(ConfigError, match="format 9"):
        file.load(LOG_ID, 1, "0xabc")
    file.close()
    StateFile(path).close()
    with pytest.raises(ConfigError, match="cannot open"):
        StateFile(tmp_path / "none" / "state")

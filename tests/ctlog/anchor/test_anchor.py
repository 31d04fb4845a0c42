"""An anchor against a real chain: from queued to final, through reorganisations, stuck transactions and bad nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from control.ctlog.anchor.admin import Admin
from control.ctlog.anchor.anchor import AnchorConfig, ChainAnchor, Publisher
from control.ctlog.anchor.chain import GWEI, ChainConfig
from control.ctlog.anchor.interface import AnchoredHead, AnchorStatus, AnchorUnavailable, HeadAnchor, Phase, check_log
from control.ctlog.anchor.rpc import Node
from control.ctlog.errors import LogStopped
from dataplane.errors import ConfigError
from tests.ctlog.anchor.world import (
    BEGAN,
    FAST,
    LOG_ID,
    OTHER_LOG,
    OWNER,
    PUBLISHER,
    STRANGER,
    Relay,
    World,
    mined,
    passes,
    publish,
    root,
    until,
    waiting,
    world,
)

CarryOut = Callable[[], Awaitable[web.Response]]


def run(w: World, state: Path, check: Callable[[ChainAnchor], Awaitable[None]], **changes: Any) -> None:
    """Run a check with a started anchor, and close it."""

    async def main() -> None:
        anchor = w.anchor(state, **changes)
        try:
            anchor.start()
            await check(anchor)
        finally:
            await anchor.close()

    asyncio.run(main())


def replaced_or_capped(n: int, status: AnchorStatus) -> bool:
    return status.replacements == n or status.over_fee_cap > 0


def more_errors(before: int, status: AnchorStatus) -> bool:
    return status.errors > before


def told(text: str, status: AnchorStatus) -> bool:
    return text in status.last_error


async def included(w: World, anchor: ChainAnchor, size: int) -> None:
    """Publish a head and mine its block."""
    await publish(anchor, size)
    await until(anchor, lambda s: s.phase is Phase.SUBMITTED)
    await mined(w.node, 1)
    await until(anchor, lambda s: s.phase is Phase.INCLUDED)


async def final(w: World, anchor: ChainAnchor, size: int) -> None:
    """Mine until the head that is under way is final."""
    end = time.monotonic() + 10
    while (found := anchor.status().final) is None or found.size < size:
        assert time.monotonic() < end, f"still {anchor.status()}"
        await mined(w.node, 1)
        await asyncio.sleep(0.02)
    assert (found.size, found.root) == (size, root(size))


def test_a_head_counts_once_it_is_final_and_not_before(tmp_path: Path) -> None:
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            protocol: HeadAnchor = anchor
            assert await protocol.newest_final(LOG_ID) is None
            await included(w, anchor, 7)
            await mined(w.node, 1)  # One block short of final: the tag is two behind.
            turns = 5
            await asyncio.sleep(FAST.poll_seconds * turns)
            assert anchor.status().phase is Phase.INCLUDED and anchor.status().anchored == 0
            assert await anchor.newest_final(LOG_ID) is None
            await mined(w.node, 1)
            status = await until(anchor, lambda s: s.phase is Phase.IDLE)
            head = AnchoredHead(LOG_ID, 7, root(7), BEGAN + 7, 0, w.node.number() - 2)
            assert status.final == head == await anchor.newest_final(LOG_ID)
            assert (status.anchored, status.submissions, status.errors) == (1, 1, 0)
            assert status.finality == "finalized tag"
            assert await anchor.newest_final(OTHER_LOG) is None

        run(w, tmp_path / "state", check)


def test_only_the_newest_of_the_heads_that_come_meanwhile_is_anchored(tmp_path: Path) -> None:
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            await included(w, anchor, 1)
            for size in (1, 2, 3, 4, 4):
                await publish(anchor, size)
            await final(w, anchor, 4)
            assert w.logs() == 2 and anchor.status().queued_size == 0
            with pytest.raises(ValueError, match="no tree head"):
                await anchor.publish(0, root(0), BEGAN)

        run(w, tmp_path / "state", check)


def test_heads_wait_for_their_time_or_for_enough_entries(tmp_path: Path) -> None:
    now = [1000.0]
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            await included(w, anchor, 5)
            await mined(w.node, 3)
            await until(anchor, lambda s: s.anchored == 1)
            await publish(anchor, 14)
            await asyncio.sleep(0.1)
            assert anchor.status().phase is Phase.IDLE and anchor.status().queued_size == 14
            await publish(anchor, 15)  # Ten more than the last.
            await until(anchor, lambda s: s.submitted_size == 15)
            await final(w, anchor, 15)
            await publish(anchor, 16)
            await asyncio.sleep(0.1)
            assert anchor.status().phase is Phase.IDLE
            now[0] += 3600.0
            await publish(anchor, 17)
            await final(w, anchor, 17)
            now[0] -= 10**6  # A clock that was set back does not hold heads up.
            await publish(anchor, 18)
            await final(w, anchor, 18)

        run(
            w,
            tmp_path / "state",
            check,
            config=replace(FAST, every_seconds=3600.0, every_entries=10),
            clock=lambda: now[0],
        )


@pytest.mark.parametrize("back_in_pool", [True, False])
def test_a_head_that_a_reorganisation_undoes_is_sent_again_and_final_once(tmp_path: Path, back_in_pool: bool) -> None:
    """By anvil_reorg, which drops the transactions of the blocks it replaces, and by the loss of the block alone."""
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            snapshot = await asyncio.to_thread(w.node.ask, "evm_snapshot")
            await included(w, anchor, 30)
            if back_in_pool:
                await asyncio.to_thread(w.node.ask, "evm_revert", snapshot)
                await mined(w.node, 1)
            else:
                await asyncio.to_thread(w.node.ask, "anvil_reorg", 1, [])
            await until(anchor, lambda s: s.reorganisations == 1 and s.phase is Phase.SUBMITTED)
            await waiting(w.node)
            await final(w, anchor, 30)
            status = anchor.status()
            assert (status.reorganisations, status.resubmissions, status.anchored) == (1, 1, 1)
            assert w.logs() == 1 and w.transactions() == 1
            assert any("reorganised" in text for text in w.said)
            await publish(anchor, 31)
            await final(w, anchor, 31)

        run(w, tmp_path / "state", check)


def test_a_head_that_moves_to_another_block_is_final_only_there(tmp_path: Path) -> None:
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            await included(w, anchor, 30)
            taken = str(w.node.ask("eth_getBlockByNumber", "latest", False)["transactions"][0])
            raw = w.node.ask("eth_getRawTransactionByHash", taken)
            # The same transaction in the block's successor, two blocks later than before.
            await asyncio.to_thread(w.node.ask, "anvil_reorg", 3, [[raw, 2]])
            await until(anchor, lambda s: s.reorganisations == 1)
            await final(w, anchor, 30)
            assert anchor.status().resubmissions == 0 and w.logs() == 1

        run(w, tmp_path / "state", check)


def test_a_stuck_transaction_is_replaced_up_to_the_fee_cap(tmp_path: Path) -> None:
    with world() as w:
        now = [10.0**6]
        cap = 3 * GWEI

        async def check(anchor: ChainAnchor) -> None:
            await publish(anchor, 3)
            await until(anchor, lambda s: s.phase is Phase.SUBMITTED)
            hashes = set()
            for replaced in range(1, 20):
                end = time.monotonic() + 10
                while (transaction := await waiting(w.node))["hash"] in hashes:
                    assert time.monotonic() < end, "the replacement does not come"
                hashes.add(transaction["hash"])
                assert int(transaction["maxFeePerGas"], 16) <= cap
                now[0] += 61
                status = await until(anchor, partial(replaced_or_capped, replaced))
                if status.over_fee_cap:
                    break
            assert len(hashes) == status.replacements + 1 > 1
            assert "cap of 3 gwei" in status.last_error
            await mined(w.node, 1)
            await final(w, anchor, 3)
            assert w.logs() == 1 and w.transactions() == 1

        chain = w.chain(fee_cap_wei=cap)
        run(w, tmp_path / "state", check, chain=chain, clock=lambda: now[0])


def test_nothing_is_paid_above_the_fee_cap(tmp_path: Path) -> None:
    with world() as w:
        w.node.ask("anvil_setNextBlockBaseFeePerGas", hex(500 * GWEI))
        w.node.mine()

        async def check(anchor: ChainAnchor) -> None:
            await publish(anchor, 3)
            status = await until(anchor, lambda s: s.over_fee_cap >= 2)
            assert status.phase is Phase.IDLE and status.queued_size == 3 and status.submissions == 0
            assert "the cap of 200 gwei" in status.last_error
            await asyncio.to_thread(w.node.ask, "anvil_setNextBlockBaseFeePerGas", hex(GWEI))
            await mined(w.node, 1)
            await final(w, anchor, 3)

        run(w, tmp_path / "state", check)


def test_a_chain_without_base_fees_gets_legacy_transactions(tmp_path: Path) -> None:
    with world("--hardfork", "berlin") as w:

        async def check(anchor: ChainAnchor) -> None:
            await included(w, anchor, 3)
            block: Any = w.node.ask("eth_getBlockByNumber", "latest", True)
            assert [t["type"] for t in block["transactions"]] == ["0x0"] and "baseFeePerGas" not in block
            await final(w, anchor, 3)

        run(w, tmp_path / "state", check)


def test_a_nonce_that_somebody_else_used_costs_no_head(tmp_path: Path) -> None:
    with world() as w:

        async def check(anchor: ChainAnchor) -> None:
            await publish(anchor, 3)
            await until(anchor, lambda s: s.phase is Phase.SUBMITTED)
            await asyncio.to_thread(w.node.ask, "anvil_dropTransaction", (await waiting(w.node))["hash"])
            payment = {
                "chainId": 31337,
                "nonce": 0,
                "gas": 21000,
                "gasPrice": 9 * GWEI,
                "to": OWNER.address,
                "value": 1,
            }
            raw = PUBLISHER.sign_transaction(payment).raw_transaction
            await asyncio.to_thread(w.node.ask, "eth_sendRawTransaction", "0x" + raw.hex())
            await final(w, anchor, 3)
            assert w.logs() == 1 and w.transactions() == 2

        run(w, tmp_path / "state", check)


def test_two_logs_share_an_account(tmp_path: Path) -> None:
    with world() as w:

        async def main() -> None:
            chain = w.chain()
            w.node.ask("evm_setAutomine", True)
            await Admin(chain, OWNER, poll_seconds=0.01).set_publisher(OTHER_LOG, PUBLISHER.address)
            await chain.close()
            w.node.ask("evm_setAutomine", False)
            publisher = Publisher(PUBLISHER)
            first = w.anchor(tmp_path / "first", publisher=publisher)
            second = ChainAnchor(w.chain(), publisher, OTHER_LOG, tmp_path / "second", FAST)
            try:
                for anchor in (first, second):
                    anchor.start()
                    await publish(anchor, 3)
                    await until(anchor, lambda s: s.phase is Phase.SUBMITTED)
                await mined(w.node, 4)
                for anchor in (first, second):
                    await until(anchor, lambda s: s.anchored == 1)
                assert w.logs() == 2 and w.transactions() == 2
            finally:
                await first.close()
                await second.close()

        asyncio.run(main())


def test_confirmations_count_where_the_chain_has_no_finalized_tag(tmp_path: Path) -> None:
    async def without_tag(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
        if call["params"] and call["params"][0] == "finalized":
            return web.json_response({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32602, "message": "no"}})
        return await carry_out()

    with world() as w:

        async def main() -> None:
            async with Relay(w.node.url, without_tag) as relay:
                anchor = w.anchor(tmp_path / "state", chain=w.chain(relay.url))
                anchor.start()
                try:
                    await included(w, anchor, 3)
                    await mined(w.node, 2)
                    await asyncio.sleep(0.1)
                    assert anchor.status().phase is Phase.INCLUDED
                    await mined(w.node, 1)
                    status = await until(anchor, lambda s: s.anchored == 1)
                    assert status.finality == "3 confirmations"
                    # Once it was there its absence is trouble, not a weaker promise.
                    relay.handler = passes
                    await publish(anchor, 4)
                    await until(anchor, lambda s: s.finality == "finalized tag")
                    relay.handler = without_tag
                    status = await until(anchor, lambda s: s.errors)
                    assert "knows no finalized block" in status.last_error
                finally:
                    await anchor.close()

        asyncio.run(main())


async def _refuses(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.Response(status=503)


async def _error(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.json_response({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": "overloaded"}})


async def _slow(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    await asyncio.sleep(0.5)
    return await carry_out()


async def _garbage(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.Response(body=b"<html>\xff")


async def _nested(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.Response(body=b"[" * 200_000)


async def _endless(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.Response(body=b" " * (5 << 20))


async def _wrong_types(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.json_response({"jsonrpc": "2.0", "id": call["id"], "result": [1, {"a": None}]})


async def _redirect(call: dict[str, Any], carry_out: CarryOut) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "http://[::1]:1/"})


TROUBLES = {
    "HTTP status 503": _refuses,
    "error -32000: overloaded": _error,
    "does not answer": _slow,
    "is not JSON-RPC": _garbage,
    "not JSON-RPC: is it": _nested,
    "more than 4194304 bytes": _endless,
    "where": _wrong_types,
    "HTTP status 307|not JSON-RPC": _redirect,
}


def test_a_node_in_trouble_is_counted_and_waited_for(tmp_path: Path) -> None:
    """Each kind of trouble, while a head is under way; then everything goes on. The log is never held up."""
    with world() as w:

        async def main() -> None:
            async with Relay(w.node.url) as relay:
                anchor = w.anchor(tmp_path / "state", chain=w.chain(relay.url, timeout_seconds=0.15))
                anchor.start()
                try:
                    size = 0
                    for text, trouble in TROUBLES.items():
                        size += 1
                        relay.handler = trouble
                        before = anchor.status().errors
                        await asyncio.wait_for(publish(anchor, size), 0.05)
                        status = await until(anchor, partial(more_errors, before))
                        assert any(part in status.last_error for part in text.split("|")), (text, status.last_error)
                        assert len(status.last_error) < 500
                        relay.handler = passes
                        await final(w, anchor, size)
                        assert anchor.status().errors_in_row == 0
                    assert w.logs() == size
                finally:
                    await anchor.close()

        asyncio.run(main())


def test_a_node_that_is_down_is_waited_for(tmp_path: Path) -> None:
    with world() as w:
        chain = w.chain("http://[::1]:9")  # Nobody listens on the discard port.

        async def check(anchor: ChainAnchor) -> None:
            await publish(anchor, 3)
            status = await until(anchor, lambda s: s.errors_in_row >= 3)
            assert "cannot be reached" in status.last_error
            with pytest.raises(AnchorUnavailable, match="cannot be reached"):
                await anchor.newest_final(LOG_ID)

        run(w, tmp_path / "state", check, chain=chain)


def test_another_chain_and_other_code_are_refused(tmp_path: Path) -> None:
    with world() as w:

        async def check() -> None:
            chains = {
                "is a node of chain 31337, not of chain 1:": w.chain(chain_id=1),
                "no contract at": w.chain(contract=STRANGER.address),
                "another contract at": w.chain(contract=token),
            }
            for text, chain in chains.items():
                with pytest.raises(ConfigError, match=text):
                    await chain.newest_final(LOG_ID)
                anchor = w.anchor(tmp_path / str(chain.config.chain_id) / chain.address, chain=chain)
                anchor.start()
                await publish(anchor, 1)
                await until(anchor, partial(told, text))
                await anchor.close()

        token = "0x" + "77" * 20
        w.node.ask("anvil_setCode", token, "0x6001")
        for name in ("1", "31337"):
            (tmp_path / name).mkdir()
        asyncio.run(check())
        assert w.transactions() == 0


def test_contradictions_stop_the_anchor_and_not_the_log(tmp_path: Path) -> None:
    with world() as w:

        async def first(anchor: ChainAnchor) -> None:
            await included(w, anchor, 10)
            await final(w, anchor, 10)
            await anchor.publish(10, root(11), BEGAN)
            assert "another root at 10 entries" in anchor.status().conflict
            await publish(anchor, 20)
            await asyncio.sleep(0.1)
            assert anchor.status().submissions == 1

        async def rolled_back(anchor: ChainAnchor) -> None:
            await publish(anchor, 9)
            await until(anchor, lambda s: "final on the chain" in s.conflict or "a head of 10" in s.conflict)

        async def forked(anchor: ChainAnchor) -> None:
            await anchor.publish(10, root(99), BEGAN)
            await until(anchor, lambda s: root(10).hex() in s.conflict)

        run(w, tmp_path / "state", first)
        run(w, tmp_path / "state", rolled_back)
        run(w, tmp_path / "lost", rolled_back)
        run(w, tmp_path / "lost", forked)
        assert w.logs() == 1


def test_a_log_is_compared_with_what_is_final_at_its_start() -> None:
    head = AnchoredHead(LOG_ID, 10, root(10), BEGAN, 0, 5)

    async def root_at(size: int) -> bytes:
        return root(size)

    async def other_root(size: int) -> bytes:
        return root(size + 1)

    asyncio.run(check_log(None, 0, other_root))
    asyncio.run(check_log(head, 10, root_at))
    asyncio.run(check_log(head, 11, root_at))
    with pytest.raises(LogStopped, match="rolled back"):
        asyncio.run(check_log(head, 9, root_at))
    with pytest.raises(LogStopped, match="not the log that was anchored"):
        asyncio.run(check_log(head, 11, other_root))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://127.0.0.1:8545", "IPv4"),
        ("http://[::ffff:127.0.0.1]:8545", "IPv4"),
        ("ws://[::1]:8545", "must be like"),
        ("http://[::1", "cannot be read"),
        ("http://[::1]:99999", "cannot be read"),
    ],
)
def test_urls_that_cannot_be_used(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Node(url)


def test_secrets_of_a_url_stay_out_of_what_is_shown() -> None:
    node = Node("https://user:hunter2@node.example:8545/v3/secret?key=secret")
    assert node.place == "https://node.example:8545"


def test_configurations_that_cannot_be() -> None:
    node = Node("http://[::1]:8545")
    for make in (
        lambda: ChainConfig(node, 0),
        lambda: ChainConfig(node, 1, "0x12"),
        lambda: ChainConfig(node, 1, fee_cap_wei=0),
        lambda: AnchorConfig(every_seconds=-1),
        lambda: AnchorConfig(poll_seconds=10, backoff_most=1),
    ):
        with pytest.raises(ConfigError):
            make()

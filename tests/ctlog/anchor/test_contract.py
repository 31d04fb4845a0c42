"""The contract, on a real chain: who may do what, and that nothing of it can be undone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from control.ctlog.anchor.admin import Admin
from control.ctlog.anchor.chain import Chain
from control.ctlog.anchor.compiler import compile_contract
from control.ctlog.anchor.contract import contract
from control.ctlog.anchor.interface import AnchorRefused
from control.ctlog.anchor.proof import head_slots
from tests.ctlog.anchor.world import BEGAN, LOG_ID, OTHER_LOG, OWNER, PUBLISHER, STRANGER, World, root, world

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

NOBODY = "0x" + "0" * 40


def test_contract_json_is_what_the_source_compiles_to() -> None:
    begin = time.monotonic()
    made = compile_contract()
    assert time.monotonic() - begin < 5
    assert made == contract(), "contract.json is stale: python -m control.ctlog.anchor.compiler"


def on_chain(check: Callable[[World, Chain], Awaitable[None]], *arguments: str) -> None:
    """Run a check on a chain that mines each transaction at once."""

    async def run(w: World) -> None:
        chain = w.chain()
        try:
            await check(w, chain)
        finally:
            await chain.close()

    with world(*arguments) as w:
        w.node.ask("evm_setAutomine", True)
        asyncio.run(run(w))


async def anchor(
    chain: Chain, account: LocalAccount, size: int, *, log_id: bytes = LOG_ID, timestamp: int | None = None
) -> None:
    call = chain.encode("anchor", [log_id, size, root(size), BEGAN + size if timestamp is None else timestamp])
    nonce = await chain.next_nonce(account.address)
    signed = await chain.sign(account, chain.address, call, nonce, await chain.fees())
    await chain.send(signed.raw)
    end = time.monotonic() + 10
    while (receipt := await chain.receipt(signed.hash)) is None:
        assert time.monotonic() < end, "the transaction is in no block"
        await asyncio.sleep(0.005)
    assert receipt.succeeded


async def refused(attempt: Awaitable[None], reason: str) -> None:
    with pytest.raises(AnchorRefused) as caught:
        await attempt
    assert caught.value.reason == reason


def test_heads_only_grow_and_only_the_publisher_adds_them() -> None:
    async def check(w: World, chain: Chain) -> None:
        assert await chain.newest(LOG_ID) is None
        await refused(anchor(chain, PUBLISHER, 0), "size does not grow")
        await anchor(chain, PUBLISHER, 10)
        for size in (10, 9, 1):
            await refused(anchor(chain, PUBLISHER, size), "size does not grow")
        await refused(anchor(chain, PUBLISHER, 11, timestamp=BEGAN + 9), "timestamp goes back")
        ahead = int((time.time() + 2 * 86400) * 1000)
        await refused(anchor(chain, PUBLISHER, 11, timestamp=ahead), "timestamp is in the future")
        for account in (OWNER, STRANGER):
            await refused(anchor(chain, account, 11), "not the publisher of this log")
        await refused(anchor(chain, PUBLISHER, 11, log_id=OTHER_LOG), "not the publisher of this log")
        await anchor(chain, PUBLISHER, 11, timestamp=BEGAN + 10)  # The same time twice is no step back.
        newest = await chain.newest(LOG_ID)
        assert newest is not None
        assert (newest.size, newest.root, newest.timestamp, newest.index) == (11, root(11), BEGAN + 10, 1)
        assert newest.block_number == w.node.number()
        assert w.logs() == 2

    on_chain(check)


def test_publishers_are_per_log_and_can_be_rotated_by_the_owner_alone() -> None:
    async def check(w: World, chain: Chain) -> None:
        owner = Admin(chain, OWNER, poll_seconds=0.01)
        await anchor(chain, PUBLISHER, 10)
        await refused(Admin(chain, PUBLISHER).set_publisher(LOG_ID, STRANGER.address), "not the owner")
        await owner.set_publisher(LOG_ID, STRANGER.address)
        await owner.set_publisher(OTHER_LOG, PUBLISHER.address)
        await refused(anchor(chain, PUBLISHER, 20), "not the publisher of this log")
        await refused(anchor(chain, STRANGER, 9), "size does not grow")
        await anchor(chain, STRANGER, 20)
        await anchor(chain, PUBLISHER, 5, log_id=OTHER_LOG)
        await owner.set_publisher(LOG_ID, NOBODY)
        await refused(anchor(chain, STRANGER, 30), "not the publisher of this log")
        assert await chain.publisher(LOG_ID) == NOBODY
        assert await chain.publisher(OTHER_LOG) == PUBLISHER.address

    on_chain(check)


def test_ownership_passes_in_two_steps() -> None:
    async def check(w: World, chain: Chain) -> None:
        owner, stranger = (Admin(chain, account, poll_seconds=0.01) for account in (OWNER, STRANGER))
        not_offered = "ownership was not offered to this account"
        await refused(stranger.offer_ownership(STRANGER.address), "not the owner")
        await refused(stranger.take_ownership(), not_offered)
        await owner.offer_ownership(STRANGER.address)
        await owner.offer_ownership(NOBODY)
        await refused(stranger.take_ownership(), not_offered)
        await owner.offer_ownership(STRANGER.address)
        await owner.set_publisher(OTHER_LOG, PUBLISHER.address)  # Still the owner's.
        await stranger.take_ownership()
        await refused(owner.set_publisher(OTHER_LOG, OWNER.address), "not the owner")
        await refused(stranger.take_ownership(), not_offered)
        await stranger.set_publisher(OTHER_LOG, STRANGER.address)

    on_chain(check)


def test_searches_and_storage_agree_with_what_was_anchored() -> None:
    async def check(w: World, chain: Chain) -> None:
        sizes = [3, 4, 9, 20, 21, 50]
        blocks = []
        for size in sizes:
            await anchor(chain, PUBLISHER, size)
            blocks.append(w.node.number())
        for size in range(53):
            found = await chain.newest_up_to_size(LOG_ID, size)
            assert (found.size if found else 0) == max((s for s in sizes if s <= size), default=0)
        for number in range(blocks[0] - 2, blocks[-1] + 3):
            found = await chain.newest_up_to_block(LOG_ID, number)
            before = [s for s, b in zip(sizes, blocks, strict=True) if b <= number]
            assert (found.size if found else 0) == max(before, default=0)
        for index, size in enumerate(sizes):
            slot, _ = head_slots(LOG_ID, index)
            stored = w.node.ask("eth_getStorageAt", chain.address, f"0x{slot:064x}", "latest")
            assert stored == "0x" + root(size).hex()

    on_chain(check)


def test_every_function_is_known_and_none_removes() -> None:
    """A function added to the contract has to be thought of here."""
    changing = {f["name"] for f in contract().abi if f["type"] == "function" and f["stateMutability"] != "view"}
    assert changing == {"anchor", "set_publisher", "offer_ownership", "take_ownership"}

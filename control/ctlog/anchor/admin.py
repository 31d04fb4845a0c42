"""What an operator does with the contract, a transaction each, waited for: deploy it, say who publishes, hand it over.

The owner's key is needed for these only and belongs offline; a log runs with its publisher's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from control.ctlog.anchor.chain import Chain, Receipt
from control.ctlog.anchor.contract import contract
from control.ctlog.anchor.interface import AnchorError, AnchorUnavailable, check_log_id

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount


class Admin:
    """The contract's owner. A transaction that is not in a block after `timeout_seconds` is an AnchorUnavailable that
    names it: it may still get in."""

    def __init__(
        self,
        chain: Chain,
        account: LocalAccount,
        *,
        timeout_seconds: float = 300.0,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._account = account
        self._timeout_seconds = timeout_seconds
        self._poll_seconds = poll_seconds
        self._clock = clock

    async def deploy(self) -> str:
        """Put the contract on the chain; its owner is this account. Returns its address."""
        await self._chain.check_chain()
        receipt = await self._transact(None, bytes.fromhex(contract().bytecode.removeprefix("0x")))
        if receipt.contract is None:
            raise AnchorError("the chain's node names no address for the deployed contract")
        return receipt.contract

    async def set_publisher(self, log_id: bytes, publisher: str) -> None:
        """Who publishes for a log from now on, instead of who did. The zero address: nobody."""
        await self._call("set_publisher", [check_log_id(log_id), publisher])

    async def offer_ownership(self, candidate: str) -> None:
        """First step: name who may take over. The zero address takes the offer back."""
        await self._call("offer_ownership", [candidate])

    async def take_ownership(self) -> None:
        """Second step, by the candidate."""
        await self._call("take_ownership", [])

    async def _call(self, function: str, arguments: list[object]) -> None:
        await self._chain.check()
        await self._transact(self._chain.address, self._chain.encode(function, arguments))

    async def _transact(self, to: str | None, call: bytes) -> Receipt:
        """Raises AnchorRefused, OverFeeCap, AnchorUnavailable, AnchorError for one that failed in its block."""
        chain = self._chain
        nonce = await chain.next_nonce(self._account.address)
        signed = await chain.sign(self._account, to, call, nonce, await chain.fees())
        await chain.send(signed.raw)
        end = self._clock() + self._timeout_seconds
        while (receipt := await chain.receipt(signed.hash)) is None:
            if self._clock() >= end:
                raise AnchorUnavailable(f"transaction 0x{signed.hash.hex()} is in no block yet; look for it later")
            await asyncio.sleep(self._poll_seconds)
        if not receipt.succeeded:
            raise AnchorError(f"transaction 0x{signed.hash.hex()} failed in block {receipt.block_number}")
        return receipt

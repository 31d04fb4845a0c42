"""Brings a log's heads to the chain, one at a time, and knows of each whether it can still be undone.

                 due                     in a block                final
    IDLE ─────────────────▶ SUBMITTED ─────────────────▶ INCLUDED ──────▶ counted, IDLE
      ▲                      │  ▲  │ stuck: a higher fee      │
      └── superseded ────────┘  │  └─ lost: the same bytes    │ the block is gone: counted, sent again
                                └─────────────────────────────┘

- The contract's own state is the authority: each turn asks it first. What a transaction became matters only when the
  head is not there.
- Signed → durable in the state file → sent. So after a crash anywhere the same bytes are sent again; they cannot count
  twice, since they carry the same nonce and the contract takes a size once.
- While one head is under way only the newest of those that come is kept; it proves all before it. A head is due
  `every_seconds` after the last, or sooner once the log has grown by `every_entries`.
- Nothing here holds the log up, and no trouble of the chain's ends the loop: a turn that fails is counted and tried
  again, ever more seldom, up to `backoff_most`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from control.ctlog.anchor.chain import Chain, Fees, OverFeeCap, Signed
from control.ctlog.anchor.interface import (
    AnchoredHead,
    AnchorError,
    AnchorStatus,
    AnchorUnavailable,
    Phase,
    check_head,
    check_log_id,
)
from control.ctlog.anchor.rpc import NodeError
from control.ctlog.anchor.state import Counters, State, StateFile, Transaction, UnderWay
from control.ctlog.anchor.wire import data
from dataplane.errors import ConfigError, StoqError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

MAX_TEXT = 400


@dataclass(frozen=True, slots=True)
class AnchorConfig:
    """How often, and how patiently. Seconds; `every_entries` 0: time alone decides."""

    every_seconds: float = 3600.0
    every_entries: int = 0
    poll_seconds: float = 6.0  # Half a slot of Ethereum: what happens is seen within one.
    stuck_seconds: float = 120.0  # A transaction that ten slots did not take offers too little.
    backoff_most: float = 300.0

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if min(self.every_seconds, self.every_entries, self.stuck_seconds) < 0:
            raise ConfigError("an anchor's intervals must not be negative")
        if self.poll_seconds <= 0 or self.backoff_most < self.poll_seconds:
            raise ConfigError("an anchor's poll_seconds must be above 0 and at most backoff_most")


@dataclass(frozen=True, slots=True)
class QueuedHead:
    """A head that waits for its turn."""

    size: int
    root: bytes
    timestamp: int


class Publisher:
    """An account that anchors of several logs in this process may share, and the nonces that they have in use. No
    other program may send from this account: it would take nonces that are spoken for."""

    def __init__(self, account: LocalAccount) -> None:
        self.account = account
        self._in_use: set[int] = set()

    @property
    def address(self) -> str:
        """Of the account."""
        return str(self.account.address)

    def take(self, first: int) -> int:
        """The lowest nonce from `first` that nobody here uses."""
        nonce = first
        while nonce in self._in_use:
            nonce += 1
        self._in_use.add(nonce)
        return nonce

    def reserve(self, nonce: int) -> None:
        """In use since before this process."""
        self._in_use.add(nonce)

    def free(self, nonce: int) -> bool:
        """Does nobody here use it?"""
        return nonce not in self._in_use

    def release(self, nonce: int) -> None:
        """No longer in use."""
        self._in_use.discard(nonce)


class ChainAnchor:
    """The HeadAnchor of one log on one chain. `start` it in a running event loop; `close` it."""

    def __init__(
        self,
        chain: Chain,
        publisher: Publisher,
        log_id: bytes,
        state_path: Path,
        config: AnchorConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`clock` gives seconds since 1970; `say` gets what an operator should read. Raises ConfigError."""
        self._chain = chain
        self._publisher = publisher
        self._log_id = check_log_id(log_id)
        self._config = config or AnchorConfig()
        self._clock = clock
        self._say = say
        self._file = StateFile(state_path)
        try:
            self._state = self._file.load(log_id, chain.config.chain_id, chain.address)
        except ConfigError:
            self._file.close()
            raise
        if self._file.damaged is not None:
            say(f"the anchor's state could not be read and was moved to {self._file.damaged}; going on without it")
        chain.finalized_seen = chain.finalized_seen or self._state.finalized_seen
        if self._state.under_way is not None and self._state.under_way.transaction is not None:
            publisher.reserve(self._state.under_way.transaction.nonce)
        self._queued: QueuedHead | None = None
        self._conflict = ""
        self._errors_in_row = 0
        self._last_error = ""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._saving: asyncio.Future[None] | None = None

    # ---- what the log uses ----

    def start(self) -> None:
        """Begin to work."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="anchor")

    async def publish(self, size: int, root: bytes, timestamp: int) -> None:
        """See HeadAnchor."""
        check_head(size, root, timestamp)
        for known in (self._state.final, self._state.under_way, self._queued):
            if known is None or size > known.size:
                continue
            if size == known.size and root != known.root:
                self._contradicted(f"the log shows another root at {size} entries than it anchored before")
            elif self._state.final is not None and size < self._state.final.size:
                self._contradicted(f"the log has {size} entries, and {self._state.final.size} are final on the chain")
            return
        self._queued = QueuedHead(size, root, timestamp)
        self._wake.set()

    def status(self) -> AnchorStatus:
        """See HeadAnchor."""
        state, under_way = self._state, self._state.under_way
        counters = state.counters
        return AnchorStatus(
            place=self._chain.place,
            phase=Phase.IDLE if under_way is None else under_way.phase,
            queued_size=0 if self._queued is None else self._queued.size,
            submitted_size=0 if under_way is None else under_way.size,
            final=state.final,
            finality=self._chain.finality,
            anchored=counters.anchored,
            submissions=counters.submissions,
            replacements=counters.replacements,
            reorganisations=counters.reorganisations,
            resubmissions=counters.resubmissions,
            errors=counters.errors,
            errors_in_row=self._errors_in_row,
            last_error=self._last_error,
            over_fee_cap=counters.over_fee_cap,
            conflict=self._conflict,
        )

    async def newest_final(self, log_id: bytes) -> AnchoredHead | None:
        """See HeadAnchor."""
        return await self._chain.newest_final(log_id)

    async def close(self) -> None:
        """See HeadAnchor. Closes the chain, too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._saving is not None:
            await asyncio.gather(self._saving, return_exceptions=True)
        self._file.close()
        await self._chain.close()

    # ---- the loop ----

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
            except OverFeeCap as error:
                self._count(over_fee_cap=1)
                self._last_error = str(error)
                delay = self._config.poll_seconds
            except Exception as error:  # A library's surprise must not end what has to go on for months.
                delay = self._failed(error)
            else:
                self._errors_in_row = 0
                wait = self._until_due()
                if wait is None or self._state.under_way is None:
                    self._wake.clear()
                    try:
                        await asyncio.wait_for(self._wake.wait(), wait)
                    except TimeoutError:
                        pass
                    continue
                delay = wait
            await asyncio.sleep(delay)

    def _failed(self, error: Exception) -> float:
        self._count(errors=1)
        self._errors_in_row += 1
        text = str(error) if isinstance(error, StoqError) else f"{type(error).__name__}: {error}"
        if text != self._last_error:
            self._say(f"anchoring failed, and is tried again: {text[:MAX_TEXT]}")
        self._last_error = text[:MAX_TEXT]
        return min(self._config.poll_seconds * (1 << min(self._errors_in_row - 1, 16)), self._config.backoff_most)

    def _until_due(self) -> float | None:
        """Seconds to the next turn; None: nothing to do before the next head comes."""
        if self._conflict:
            return None
        if self._state.under_way is not None:
            return self._config.poll_seconds
        if self._queued is None:
            return None
        grown = self._queued.size - self._state.begun_size
        if self._state.begun_size == 0:
            return 0.0  # The first.
        if self._config.every_entries and grown >= self._config.every_entries:
            return 0.0
        elapsed = self._clock() - self._state.begun_at
        # A clock that was set back must not put anchors off.
        return max(0.0, self._config.every_seconds - elapsed) if elapsed >= 0 else 0.0

    async def turn(self) -> None:
        """Ask the chain, and take the step that is to be taken. Raises AnchorError, ConfigError, OSError; may be called
        again after any of them."""
        if self._conflict:
            return
        if self._state.under_way is not None:
            await self._follow(self._state.under_way)
        # A head that became final may have another right behind it.
        if self._state.under_way is None and self._queued is not None and self._until_due() == 0.0:
            await self._begin(self._queued)

    async def _begin(self, head: QueuedHead) -> None:
        newest = await self._chain.newest(self._log_id)
        final = self._state.final
        if final is not None and (newest is None or newest.size < final.size):
            self._count(reorganisations=1)
            self._state = replace(self._state, final=None)
            self._say(
                f"the head of {final.size} entries was final ({self._chain.finality}) and is gone from the chain: ask "
                f"for more confirmations. The log's newest head is anchored again"
            )
        if newest is not None and newest.size >= head.size:
            if newest.size > head.size or newest.root != head.root:
                self._contradicted(
                    f"the log has {head.size} entries with root {head.root.hex()}, and the chain a head of "
                    f"{newest.size} with root {newest.root.hex()}"
                )
                return
            # Somebody was there before us, most likely we ourselves before the state file was lost.
            transaction = None
            phase = Phase.INCLUDED
        else:
            transaction = await self._sign(head, None)
            phase = Phase.SUBMITTED
        under_way = UnderWay(head.size, head.root, head.timestamp, phase, transaction)
        state = replace(self._state, under_way=under_way, begun_at=self._clock(), begun_size=head.size)
        await self._save_signed(state, transaction, None)
        if self._queued is head:
            self._queued = None
        if transaction is not None:
            self._count(submissions=1)
            await self._send(transaction)
        else:
            await self._follow(under_way)

    async def _follow(self, under_way: UnderWay) -> None:
        # Final is asked first: what the newest state holds of blocks up to there stays.
        final = await self._chain.final_block()
        newest = await self._chain.newest(self._log_id)
        found = newest
        if newest is not None and newest.size > under_way.size:
            found = await self._chain.newest_up_to_size(self._log_id, under_way.size)
        if found is not None and found.size == under_way.size:
            if found.root != under_way.root:
                self._contradicted(
                    f"at {found.size} entries the log's root is {under_way.root.hex()}, the chain's {found.root.hex()}"
                )
                return
            await self._found(under_way, found, final)
            return
        if under_way.phase is Phase.INCLUDED:
            under_way = await self._undone(under_way)
        if newest is not None and newest.size > under_way.size:
            await self._superseded(under_way, newest)
            return
        await self._push(under_way)

    async def _found(self, under_way: UnderWay, found: AnchoredHead, final: int | None) -> None:
        block = await self._chain.block(found.block_number)
        if block is None:
            raise AnchorUnavailable(f"the chain's node knows no block {found.block_number}, which it spoke of before")
        block_hash = data(block.get("hash"), 32)
        if under_way.phase is Phase.INCLUDED and under_way.block_hash not in (b"", block_hash):
            self._count(reorganisations=1)
            self._say(
                f"the chain was reorganised: the head of {found.size} entries is in another block now, "
                f"{found.block_number}"
            )
        if final is not None and found.block_number <= final:
            counters = self._state.counters
            counters = replace(counters, anchored=counters.anchored + 1)
            await self._save(replace(self._state, under_way=None, final=found, counters=counters))
            self._release(under_way)
            return
        seen = replace(under_way, phase=Phase.INCLUDED, block_number=found.block_number, block_hash=block_hash)
        if seen != under_way:
            await self._save(replace(self._state, under_way=seen))

    async def _undone(self, under_way: UnderWay) -> UnderWay:
        """A head that was in a block is not any more."""
        block = await self._chain.block(under_way.block_number)
        if block is not None and data(block.get("hash"), 32) == under_way.block_hash:
            raise AnchorUnavailable(
                "the chain's node contradicts itself: it has the block of our head and not the head; it may lag behind"
            )
        self._count(reorganisations=1, resubmissions=1)
        self._say(
            f"the chain was reorganised: block {under_way.block_number} with the head of {under_way.size} entries is "
            f"gone; the head is sent again"
        )
        back = replace(under_way, phase=Phase.SUBMITTED, block_number=0, block_hash=b"")
        await self._save(replace(self._state, under_way=back))
        return back

    async def _superseded(self, under_way: UnderWay, newest: AnchoredHead) -> None:
        """The chain has a larger head and not ours, which it can never take any more. Whether that larger one is the
        log's the next head shows."""
        self._say(
            f"the head of {under_way.size} entries is given up: the chain has one of {newest.size} already. Does "
            f"another instance of this log run?"
        )
        await self._save(replace(self._state, under_way=None))
        self._release(under_way)

    async def _push(self, under_way: UnderWay) -> None:
        """The head is not on the chain: see that a transaction is on its way that can bring it there."""
        transaction = under_way.transaction
        unused = await self._chain.next_nonce(self._publisher.address)
        if transaction is not None and unused <= transaction.nonce:
            known = await self._chain.knows(transaction.hash)
            if self._clock() - transaction.signed_at < self._config.stuck_seconds:
                if not known:
                    await self._send(transaction)
                return
        else:
            # The nonce was used. By our own transaction, if it got in between our two questions; else by one of ours
            # that failed, or by a stranger.
            newest = await self._chain.newest(self._log_id)
            if newest is not None and newest.size >= under_way.size:
                return
        head = QueuedHead(under_way.size, under_way.root, under_way.timestamp)
        try:
            signed = await self._sign(head, transaction, unused)
        except OverFeeCap:
            if transaction is not None and unused <= transaction.nonce and not known:
                await self._send(transaction)  # What can be offered may do one day.
            raise
        await self._save_signed(
            replace(self._state, under_way=replace(under_way, transaction=signed)), signed, transaction
        )
        self._count(submissions=1, replacements=1 if transaction is not None else 0)
        await self._send(signed)

    async def _sign(self, head: QueuedHead, former: Transaction | None, unused: int | None = None) -> Transaction:
        """A transaction for a head, with the nonce and a better fee than a `former` one that is still waiting."""
        above = None
        if unused is None:
            unused = await self._chain.next_nonce(self._publisher.address)
        if former is not None and former.nonce >= unused:
            priority = None if former.fee_priority is None else int(former.fee_priority)
            above = Fees(int(former.fee_most), priority)
        fees = await self._chain.fees(above)
        if former is None or former.nonce < unused or (former.nonce > unused and self._publisher.free(unused)):
            # Also when nothing will ever use a nonce before ours: transactions do not jump over a gap.
            nonce = self._publisher.take(unused)
            taken = True
        else:
            nonce, taken = former.nonce, False
        try:
            call = self._chain.encode("anchor", [self._log_id, head.size, head.root, head.timestamp])
            signed = await self._chain.sign(self._publisher.account, self._chain.address, call, nonce, fees)
        except BaseException:
            if taken:
                self._publisher.release(nonce)
            raise
        return _transaction(signed, self._clock())

    async def _send(self, transaction: Transaction) -> None:
        try:
            await self._chain.send(transaction.raw)
        except NodeError:
            # Nodes say in many words that they have it already; whether they have it says it in one.
            if not await self._chain.knows(transaction.hash):
                raise

    # ---- bookkeeping ----

    def _release(self, under_way: UnderWay) -> None:
        if under_way.transaction is not None:
            self._publisher.release(under_way.transaction.nonce)

    async def _save_signed(self, state: State, signed: Transaction | None, former: Transaction | None) -> None:
        """Save, and give back the nonce that is not used then: the former one, or ours when it cannot be saved."""
        kept, gone = signed, former
        try:
            await self._save(state)
        except AnchorError:
            kept, gone = former, signed
            raise
        finally:
            if gone is not None and (kept is None or kept.nonce != gone.nonce):
                self._publisher.release(gone.nonce)

    def _contradicted(self, text: str) -> None:
        if not self._conflict:
            self._conflict = text
            self._say(f"nothing is anchored any more: {text}")

    def _count(self, **by: int) -> None:
        """Written with the next save: a counter is not worth one of its own."""
        counters: Counters = self._state.counters
        self._state = replace(
            self._state, counters=replace(counters, **{name: getattr(counters, name) + n for name, n in by.items()})
        )

    async def _save(self, state: State) -> None:
        """Durable, and then the state. Raises AnchorError when it cannot be made durable; nothing has changed then."""
        state = replace(state, finalized_seen=self._chain.finalized_seen)
        self._saving = asyncio.ensure_future(asyncio.to_thread(self._file.save, state))
        try:
            await asyncio.shield(self._saving)
        except OSError as error:
            raise AnchorError(f"the anchor's state cannot be stored: {error.strerror}") from None
        self._state = state


def _transaction(signed: Signed, now: float) -> Transaction:
    priority = signed.fees.priority
    return Transaction(
        signed.raw, signed.hash, signed.nonce, str(signed.fees.most), None if priority is None else str(priority), now
    )

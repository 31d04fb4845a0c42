"""Decisions made durable, many at once: the audit log's lines and the store's changes, in one order.

    collect ──▶ changes (transaction open) ──▶ audit lines, fdatasync ──▶ audit head, COMMIT ──▶ answer
      ▲  what comes meanwhile waits and is the next batch                                          │
      └────────────────────────────────────────────────────────────────────────────────────────────┘

A decision takes effect only when its line is on the disk: the change is committed after it, and the caller goes on after
that. A crash in between leaves lines beyond the database's head, about decisions that never took effect; the audit log
keeps them. A change that raises a TrustError is undone alone and audited as refused; the others of its batch go on.

The changes run in the event loop's thread, because they are short, and a second thread would have to win the interpreter
lock at every statement; waiting for the disk is done in a thread of its own, so that the loop signs meanwhile.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from control.trustchain.audit import AuditLog, AuditRecord, Decision, Head
from control.trustchain.errors import Busy, StoreError, TrustError
from control.trustchain.store import Store, put_head, savepoint

MAX_WAITING = 8192  # Decisions not yet durable; each is one caller.
MAX_BATCH = 512

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]


def _no_step(name: str) -> None:
    """Nothing between two steps."""


@dataclass(slots=True)
class _Entry:
    """One decision that waits: its lines, its change, its outcome, and who waits for it."""

    records: Sequence[AuditRecord]
    change: Change[Any] | None
    waiter: asyncio.Future[Any] | None
    result: Any = None
    error: BaseException | None = None
    settled: bool = False  # It is durable, or failed for good.
    lines: list[AuditRecord] = field(default_factory=list)


class Journal:
    """The only writer of store and audit log. `on_step` is called with the name of each step that was just made durable, or
    is about to be: fault tests end the process there."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        clock: Callable[[], float],
        on_step: Callable[[str], None] = _no_step,
    ) -> None:
        self.audit = audit
        self.time = 0.0  # The latest that was written; it does not go back when the clock does.
        self._store = store
        self._clock = clock
        self._on_step = on_step
        self._waiting: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "trustchain-journal")
        # Held from a batch's first change to its commit, which another thread does: released by that one.
        self._batch = threading.Lock()
        self._undone: tuple[int, int] | None = None  # Records that are durable and did not take effect.
        self._closed = False

    @property
    def head(self) -> Head:
        """The audit log's head."""
        return self.audit.head

    async def commit(self, records: Sequence[AuditRecord], change: Change[T] | None = None) -> T:
        """Decide: durable when this returns; the change's value. Raises what the change raised (TrustError, then audited as
        refused), StoreError when nothing could be made durable, Busy when too much waits."""
        if self._closed:
            raise StoreError("the authority was closed")
        if len(self._waiting) >= MAX_WAITING:
            raise Busy("too many decisions wait for the disk: try again later")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Entry(records, change, waiter))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await waiter

    def commit_now(self, records: Sequence[AuditRecord], change: Change[T] | None = None) -> T:
        """The same, without an event loop: blocks until it is durable."""
        if self._closed:
            raise StoreError("the authority was closed")
        entry = _Entry(records, change, None)
        self._begin([entry])
        self._settle([entry])
        if entry.error is not None:
            raise entry.error
        return cast(T, entry.result)

    async def close(self) -> None:
        """Wait for what is under way; nothing more is taken."""
        self._closed = True
        task = self._task
        if task is not None and not task.done():
            await asyncio.wait([task])
        self.close_now()

    def close_now(self) -> None:
        """Close, when no loop runs any more."""
        self._closed = True
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        batch: list[_Entry] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                self._begin(batch)
                settled = self._thread.submit(self._settle, batch)
                await _patiently(settled)
                self._answer(batch)
        finally:
            # When the loop ends under us, nobody may wait for ever.
            lost, self._waiting = [*batch, *self._waiting], []
            for entry in lost:
                if not entry.settled:
                    entry.error = StoreError("the authority's event loop ended; nothing was decided")
            self._answer(lost)

    def _answer(self, batch: list[_Entry]) -> None:
        for entry in batch:
            if entry.waiter is None or entry.waiter.done():
                continue
            if entry.error is not None:
                entry.waiter.set_exception(entry.error)
            else:
                entry.waiter.set_result(entry.result)

    def _begin(self, batch: list[_Entry]) -> None:
        """Make the changes, uncommitted; on return the batch lock is held."""
        self._batch.acquire()
        try:
            db = self._store.writer
            db.execute("BEGIN IMMEDIATE")
            for entry in batch:
                self._change(db, entry)
        except (sqlite3.Error, TrustError) as error:
            self._fail(batch, error)

    def _change(self, db: sqlite3.Connection, entry: _Entry) -> None:
        entry.lines = list(entry.records)
        if entry.change is None:
            return
        try:
            with savepoint(db):
                entry.result = entry.change(db)
        except TrustError as error:
            entry.error = error
            entry.lines = [
                replace(record, decision=Decision.REFUSED, detail=f"{type(error).__name__}: {error}")
                for record in entry.records[:1]
            ]
        except sqlite3.IntegrityError as error:
            entry.error = StoreError(f"{self._store.path} does not take this: {error}")
            entry.lines = _failed(entry, error)
        except sqlite3.Error:
            raise
        except Exception as error:  # A fault of ours is one decision's end, not the journal's.
            entry.error = error
            entry.lines = _failed(entry, error)

    def _settle(self, batch: list[_Entry]) -> None:
        """Make it durable: lines first, then the changes they are about. Releases the batch lock."""
        try:
            db = self._store.writer
            if not db.in_transaction:
                return  # _begin failed and said so.
            try:
                self._make_durable(db, batch)
            except (sqlite3.Error, TrustError, OSError) as error:
                self._fail(batch, error)
        finally:
            for entry in batch:
                entry.settled = True
            self._batch.release()

    def _make_durable(self, db: sqlite3.Connection, batch: list[_Entry]) -> None:
        now = self._clock()
        lines = [line for entry in batch for line in entry.lines]
        if self._undone is not None:
            first, last = self._undone
            what = f"records {first} to {last} did not take effect: the database could not be written"
            lines.insert(0, AuditRecord("authority", "store.write", Decision.FAILED, "", what))
        before = self.audit.head
        self._on_step("decided")
        head = self.audit.extend(lines, now) if lines else before
        self._on_step("audited")
        try:
            put_head(db, head, max(now, self.time))
            db.execute("COMMIT")
        except sqlite3.Error:
            if head.seq > before.seq:
                self._undone = (self._undone[0] if self._undone else before.seq + 1, head.seq)
            raise
        self._undone = None
        self.time = max(now, self.time)
        self._on_step("committed")

    def _fail(self, batch: list[_Entry], error: Exception) -> None:
        """Nothing of the batch happened."""
        db = self._store.writer
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite rolled back by itself.
        text = f"{self._store.path} cannot be written ({error}): nothing was decided; make room or repair it"
        for entry in batch:
            entry.error = error.again() if isinstance(error, TrustError) else StoreError(text)


def _failed(entry: _Entry, error: Exception) -> list[AuditRecord]:
    what = f"{type(error).__name__}: {error}"
    return [replace(record, decision=Decision.FAILED, detail=what) for record in entry.records[:1]]


async def _patiently(settled: Future[None]) -> None:
    """Wait for the disk, to the end even when we are cancelled: the batch is half made."""
    try:
        await asyncio.shield(asyncio.wrap_future(settled))
    except asyncio.CancelledError:
        settled.result()
        raise

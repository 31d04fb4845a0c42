"""Follows a log and believes nothing: every head's signature, every consistency proof, every entry.

    head ──▶ signed? ──▶ not against an earlier one? ──▶ consistency proof ──▶ accepted: kept, the next must go on it
                                                                                  │
    entries ──▶ leaf hashes ──▶ the edge of our own tree ──▶ its root is the head's root ──▶ proven
       └──▶ looked at one by one (`watched.Examiner`)

What does not hold becomes an `Alert` with evidence (`alerts`), is told once as long as it lasts, and is never accepted: the
newest accepted head stays what later ones have to go on.

Memory is bounded by some pages of entries and the edge. The state (`WatchState`) is written whole, after what it speaks of
was told: after a crash an alert may come again, and none is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from control.ctlog import merkle
from control.ctlog.alerts import Alert, Evidence, HeadRecord, contradiction, replace_file, utc
from control.ctlog.errors import LogError, Malformed, NotFound, ProofError, Refused, Unavailable
from control.ctlog.note import TreeHead
from control.ctlog.structs import LogKey, key_id, leaf_bytes, verify_sct
from control.ctlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tree
from control.ctlog.watched import Examiner, Extra, Finding, Promise

MAX_STATE_BYTES = 1 << 20
REMEMBERED = 4096  # Findings that are not told again.
LOOK_AT_ONCE = 64  # Entries examined before others get their turn.


@dataclass(frozen=True, slots=True)
class Options:
    """Seconds, and counts of entries. `mmd`: the maximum merge delay. `tolerance`: an older head is not told of when it is
    younger than the newest by so much: many servers of one log need not be of one mind."""

    mmd: float = 86400.0
    clock_skew: float = 300.0
    tolerance: float = 0.0
    ahead: int = 3  # Pages that are fetched while one is looked at.
    paths: int = 256  # Entries, in one look, whose path to the root is asked for to stand in the evidence.
    save_every: int = 65536


RawEntry = tuple[bytes, Extra | Malformed]
"""A leaf, and what came beside it; or why that is none."""


class Source(Protocol):
    """Where heads and entries come from; two are in `sources`. Nothing of it is believed. Every method raises Unavailable
    (later, perhaps), Refused or NotFound (the log says no) and Malformed."""

    page: int  # Entries asked for at a time, a power of two.

    async def head(self) -> TreeHead:
        """The newest head; its signature is checked by the monitor. May raise ProofError."""

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `new` goes on that of `old`."""

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path from an entry to the root of the tree of `size`."""

    async def left(self, old: int, new: int) -> bytes:
        """The root of the first `old` leaves in the tree of `new`, of which `old` is a power of two; empty: unknown."""

    async def entries(self, start: int, end: int) -> list[RawEntry]:
        """Entries from `start`, at least one, none at or after `end`."""

    async def shows(self, leaf: bytes, index: int | None, head: TreeHead, tree: Tree) -> None:
        """Returns when the log shows that `leaf` is in the tree of `head`, whose edge `tree` is. Raises NotFound or
        ProofError when it does not."""

    async def close(self) -> None:
        """Give up connections."""


# ---- state ----


class TreeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tree's edge in a file."""

    size: int = 0
    edge: tuple[tuple[bytes, ...], ...] = ()

    @classmethod
    def of(cls, tree: Tree) -> TreeRecord:
        """To be written."""
        return cls(tree.size, tuple(tuple(level) for level in tree.edge))

    @property
    def tree(self) -> Tree:
        """As it was. Raises Malformed."""
        whole = range(len(self.edge))
        if (
            self.size < 0
            or self.size >> (TILE_HEIGHT * len(self.edge))
            or any(len(self.edge[level]) != (self.size >> (TILE_HEIGHT * level)) % TILE_WIDTH for level in whole)
            or any(len(one) != merkle.HASH_BYTES for level in self.edge for one in level)
        ):
            raise Malformed(f"the edge of a tree of {self.size} has other hashes than these")
        return Tree(self.size, self.edge)


class WatchState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a monitor knows. `head`: the newest accepted one. `proven`: the entries that were shown to lead to a head;
    `tree`: those and more, fetched since."""

    log_id: bytes
    head: HeadRecord | None = None
    proven: TreeRecord = TreeRecord()
    tree: TreeRecord = TreeRecord()
    alerts: int = 0
    format: int = 1


class StateFile:
    """Where the state is kept; no path: nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self, key: LogKey) -> WatchState:
        """What was kept, or the beginning. Raises LogError when it is damaged or of another log."""
        new = WatchState(key_id(key))
        if self.path is None or not self.path.exists():
            return new
        hint = "remove it to begin anew, and what the log does to its past before then is not seen"
        try:
            if self.path.stat().st_size > MAX_STATE_BYTES:
                raise Malformed("it is too large")
            state = msgspec.json.decode(self.path.read_bytes(), type=WatchState)
            if state.log_id != new.log_id:
                raise LogError(f"{self.path} is of log {state.log_id.hex()[:16]}, not of {new.log_id.hex()[:16]}")
            proven, tree, size = state.proven.tree, state.tree.tree, 0
            if state.head is not None:
                state.head.head.verify(key)
                size = state.head.size
                if proven.size == size and proven.root() != state.head.root:
                    raise Malformed("its hashes do not lead to its head")
            if not proven.size <= tree.size <= size:
                raise Malformed("its sizes do not fit each other")
        except (OSError, msgspec.MsgspecError, Malformed, ProofError) as error:
            raise LogError(f"the state in {self.path} cannot be used ({error}): {hint}") from None
        return state

    def save(self, state: WatchState) -> None:
        """Durably, in place of what was there. Raises LogError."""
        if self.path is not None:
            replace_file(self.path, msgspec.json.encode(state) + b"\n")


# ---- the monitor ----


@dataclass(slots=True)
class Counts:
    """What happened in this run."""

    polls: int = 0
    entries: int = 0
    alerts: int = 0
    promises: int = 0  # Shown to be kept.


class Monitor:
    """One log. `tell` gets each alert and must keep it before it returns; `progress` gets entries done and of how many."""

    def __init__(
        self, name: str, source: Source, key: LogKey, state: StateFile, examiner: Examiner, options: Options,
        clock: Callable[[], float], tell: Callable[[Evidence], None],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:  # fmt: skip
        self.counts = Counts()
        self.examiner = examiner
        self._name = name
        self._source = source
        self._key = key
        self._file = state
        self._options = options
        self._clock = clock
        self._tell = tell
        self._progress = progress
        self._pages = _Pages(source, options.ahead)
        kept = state.load(key)
        self._log_id = kept.log_id
        self._head = kept.head.head if kept.head is not None else None
        self._proven, self._tree = kept.proven.tree, kept.tree.tree
        self._alerts = kept.alerts
        self._told: OrderedDict[bytes, None] = OrderedDict()
        self._standing: set[Alert] = set()  # Of the poll before: not told again.
        self._now: set[Alert] = set()
        self._promises: OrderedDict[bytes, Promise] = OrderedDict()
        self._paths_left = 0

    @property
    def head(self) -> TreeHead | None:
        """The newest accepted head."""
        return self._head

    @property
    def proven(self) -> int:
        """So many entries were shown to lead to a signed head, and looked at."""
        return self._proven.size

    @property
    def promises_open(self) -> int:
        """SCTs whose entries were not shown yet."""
        return len(self._promises)

    def expect(self, promises: Sequence[Promise]) -> None:
        """SCTs whose entries the log must have; those of other logs are left out. Raises ProofError for one that this log's
        key did not sign: it would accuse the log wrongly."""
        ours: OrderedDict[bytes, Promise] = OrderedDict()
        for one in promises:
            if one.sct.log_id == self._log_id:
                verify_sct(one.sct, one.entry, self._key)
                ours[leaf_bytes(one.entry, one.sct.timestamp, one.sct.extensions)] = one
        self._promises = ours

    async def poll(self) -> None:
        """Look once. Raises Unavailable when the log does not answer."""
        self.counts.polls += 1
        self._now = set()
        self._paths_left = self._options.paths
        try:
            head = await self._look()
            if head is not None:
                await self._follow(head)
                await self._check_promises(head)
        except LogError:
            self._standing |= self._now  # What was not reached may last.
            raise
        else:
            self._standing = self._now
        finally:
            self._save()

    def _save(self) -> None:
        head = HeadRecord.of(self._head) if self._head is not None else None
        record = WatchState(
            self._log_id, head, TreeRecord.of(self._proven), TreeRecord.of(self._tree), self._alerts
        )
        self._file.save(record)

    def _alert(self, alert: Alert, text: str, *, entry: bool = False, **evidence: object) -> None:
        """Tell, unless it was told: of an entry once, of the log once as long as it lasts."""
        self._now.add(alert)
        if not entry and alert in self._standing:
            return
        self.counts.alerts += 1
        self._alerts += 1
        fields = {"log": self._name, "log_id": self._log_id, "seen": self._clock(), **evidence}
        self._tell(Evidence(alert=alert, text=text, **fields))  # type: ignore[arg-type]

    # ---- heads ----

    async def _look(self) -> TreeHead | None:
        """The newest head, accepted; None: there is none to go on with."""
        try:
            head = await self._source.head()
        except (Malformed, Refused, NotFound) as error:
            raise Unavailable(f"the log at {self._name} gives no tree head: {error}") from None
        except ProofError as error:
            self._alert(Alert.BAD_SIGNATURE, str(error))
            return None
        record = HeadRecord.of(head)
        try:
            head.verify(self._key)
        except ProofError as error:
            self._alert(Alert.BAD_SIGNATURE, str(error), heads=(record,))
            return None
        self._check_time(head)
        known = self._head
        if known is None:
            self._head = head
            return head
        pair = (HeadRecord.of(known), record)
        if (found := contradiction(known, head)) is not None:
            self._alert(*found, heads=pair)
            return None
        if (head.size, head.timestamp) < (known.size, known.timestamp):
            if known.timestamp - head.timestamp > self._options.tolerance * 1000:
                text = f"a head of {utc(head.timestamp)}, size {head.size}, is given out after one of {utc(known.timestamp)}"
                self._alert(Alert.OLDER_HEAD, f"{text}, size {known.size}", heads=pair)
            await self._goes_on(head, known, lagging=True)
            return None
        if not await self._goes_on(known, head):
            return None
        self._head = head
        return head

    def _check_time(self, head: TreeHead) -> None:
        now = self._clock() * 1000
        if head.timestamp > now + self._options.clock_skew * 1000:
            text = f"the head of size {head.size} is of {utc(head.timestamp)}: the log's clock is ahead, or ours behind"
            self._alert(Alert.HEAD_FROM_FUTURE, text, heads=(HeadRecord.of(head),))
        if head.timestamp < now - self._options.mmd * 1000:
            text = f"the newest head, of size {head.size}, is of {utc(head.timestamp)}: older than {self._options.mmd:.0f} s"
            self._alert(Alert.HEAD_TOO_OLD, text, heads=(HeadRecord.of(head),))

    async def _goes_on(self, small: TreeHead, large: TreeHead, *, lagging: bool = False) -> bool:
        """Is the larger tree shown to go on the smaller? `lagging`: who gave out the smaller may not know the larger."""
        heads = (HeadRecord.of(small), HeadRecord.of(large))
        proof: list[bytes] = []
        if 0 < small.size < large.size:
            try:
                proof = await self._source.consistency(small.size, large.size)
            except (Refused, NotFound, Malformed) as error:
                text = f"no proof that the tree of {large.size} goes on that of {small.size}: {error}"
                if not lagging:
                    self._alert(Alert.NO_CONSISTENCY_PROOF, text, heads=heads)
                return False
        try:
            merkle.verify_consistency(small.size, large.size, small.root, large.root, proof)
        except ProofError as error:
            left = await self._left(small.size, large.size)
            self._alert(Alert.BAD_CONSISTENCY_PROOF, str(error), heads=heads, proof=tuple(proof), left=left)
            return False
        return True

    async def _left(self, small: int, large: int) -> bytes:
        if small == 0 or small & (small - 1):
            return b""
        try:
            return await self._source.left(small, large)
        except LogError:
            return b""

    # ---- entries ----

    async def _follow(self, head: TreeHead) -> None:
        """Fetch, hash and look at all entries up to the head."""
        unsaved = 0
        heads = (HeadRecord.of(head),)
        try:
            async for page in self._pages.read(self._tree.size, head.size):
                hashes = []
                for place, (leaf, extra) in enumerate(page):
                    if place % LOOK_AT_ONCE == LOOK_AT_ONCE - 1:
                        await asyncio.sleep(0)
                    hashes.append(merkle.leaf_hash(leaf))
                    index = self._tree.size + place
                    for finding in self._examine(index, leaf, extra):
                        await self._alert_entry(finding, index, leaf, extra, head)
                self._tree.append(hashes)
                self.counts.entries += len(page)
                unsaved += len(page)
                self._progress(self._tree.size, head.size)
                if unsaved >= self._options.save_every:
                    unsaved = 0
                    self._save()
        except (Refused, NotFound, Malformed) as error:
            text = f"entry {self._tree.size} of the signed tree of {head.size} is not given out: {error}"
            self._alert(Alert.WITHHELD_ENTRIES, text, heads=heads)
            return
        if self._tree.root() != head.root:
            text = (
                f"entries {self._proven.size} to {head.size - 1} as given out hash to {self._tree.root().hex()}, and the "
                f"log signed {head.root.hex()}"
            )
            self._alert(Alert.WRONG_ENTRIES, text, heads=heads)
            self._tree = self._proven.copy()
            return
        self._proven = self._tree.copy()

    def _examine(self, index: int, leaf: bytes, extra: Extra | Malformed) -> list[Finding]:
        if isinstance(extra, Malformed):
            return [Finding(Alert.MALFORMED_ENTRY, f"entry {index}: {extra}")]
        return self.examiner.examine(index, leaf, extra)

    async def _alert_entry(
        self, finding: Finding, index: int, leaf: bytes, extra: Extra | Malformed, head: TreeHead
    ) -> None:
        key = hashlib.sha256(f"{finding.alert} {index} ".encode() + leaf).digest()
        if key in self._told:
            return
        path = await self._path(index, leaf, head)
        self._told[key] = None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        beside = Extra(b"", ()) if isinstance(extra, Malformed) else extra
        self._alert(
            finding.alert, finding.text, entry=True, index=index, leaf=leaf, path=tuple(path),
            submitted=beside.precertificate, chain=beside.chain, heads=(HeadRecord.of(head),),
        )  # fmt: skip

    async def _path(self, index: int, leaf: bytes, head: TreeHead) -> list[bytes]:
        """From the entry to the root; empty: none that holds was given, and the alert has to do without."""
        if self._paths_left <= 0:
            return []
        self._paths_left -= 1
        try:
            path = await self._source.inclusion(index, head.size)
            merkle.verify_inclusion(index, head.size, merkle.leaf_hash(leaf), path, head.root)
        except LogError:
            return []
        return path

    # ---- promises ----

    async def _check_promises(self, head: TreeHead) -> None:
        if self._proven.size != head.size:
            return
        for leaf, promise in list(self._promises.items()):
            sct = promise.sct
            due = sct.timestamp + self._options.mmd * 1000
            try:
                await self._source.shows(leaf, sct.leaf_index, head, self._proven)
            except (NotFound, Refused, Malformed, ProofError) as error:
                if head.timestamp >= due:
                    text = (
                        f"it promised an entry for {promise.name} at {utc(sct.timestamp)} and does not show it in the tree "
                        f"of {head.size}: {error}"
                    )
                    key = hashlib.sha256(b"promise" + leaf).digest()
                    if key not in self._told:
                        self._told[key] = None
                        self._alert(
                            Alert.PROMISE_BROKEN, text, entry=True, heads=(HeadRecord.of(head),), leaf=leaf,
                            sct=sct.encode(), mmd=self._options.mmd,
                        )  # fmt: skip
                continue
            del self._promises[leaf]
            self.counts.promises += 1


class _Pages:
    """Pages of entries in order, some fetched ahead. Requests end at multiples of a power of two that the log is found to
    answer whole, so that all but the first and last are full, and caches can hold them."""

    def __init__(self, source: Source, ahead: int) -> None:
        self._source = source
        self._ahead = ahead

    async def read(self, at: int, end: int) -> AsyncIterator[list[RawEntry]]:
        """From `at` to before `end`."""
        tasks: OrderedDict[int, asyncio.Task[list[RawEntry]]] = OrderedDict()
        try:
            ask, step = at, self._source.page
            while at < end:
                while ask < end and len(tasks) <= self._ahead:
                    stop = min(end, ask // step * step + step)
                    tasks[ask] = asyncio.ensure_future(self._source.entries(ask, stop))
                    ask = stop
                page = await tasks.pop(at)
                yield page
                at += len(page)
                if at < end and at != ask and at not in tasks:
                    # Less than was asked for: ask for no more than that from now on.
                    await _cancel(tasks)
                    ask = at
                    step = max(1, min(step // 2, 1 << (len(page).bit_length() - 1)))
        finally:
            await _cancel(tasks)


async def _cancel(tasks: OrderedDict[int, asyncio.Task[list[RawEntry]]]) -> None:
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    tasks.clear()



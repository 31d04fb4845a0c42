"""Looks at every object of a log and says which are damaged: `stoq ct fsck`.

Truth comes from the signed head alone. The walk goes over the tree from left to right, one tile in memory a level:

    data tile ─ leaf hashes ─▶ hash tile of level 0 ─ its hash ─▶ level 1 ─▶ … ─▶ root  ═  the head in the lock store

Each hash tile is known twice: computed from below, and stored. Where the two differ, the stored tile above says which
one is right; where that is silent too, what was computed is taken. In the end the root decides: when it is the head's,
every choice is proven, since no other leaves have that root. When it is not, a second walk believes what is stored
where it is undecided; if that leads nowhere either, nothing is proven and nothing is repaired.

Not under the root are the parts of an entry that RFC 6962 does not hash: the precertificate as it was submitted and the
chain. They are checked by what they are: the precertificate must give the entry, and each certificate must be signed
by the next one (`chains`).

Repaired is only what can be made again from what is proven: hash tiles, the checkpoint (from the lock), the index. A
lost or damaged data tile, or issuer, has to come from a backup or a mirror.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from control.ctlog.errors import LogError, LogStopped, Malformed, NotFound, ProofError
from control.ctlog.index import Index, row_of
from control.ctlog.merkle import EMPTY_ROOT
from control.ctlog.note import TreeHead, open_checkpoint
from control.ctlog.precert import precertificate_entry
from control.ctlog.sequencer import CHECKPOINT, Overlay, decode_staged, issuer_key, staging_key
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import EntryType, LogEntry, LogKey, key_id
from control.ctlog.tiles import (
    DATA,
    TILE_WIDTH,
    Fetch,
    Tree,
    level_width,
    split_entries,
    split_hashes,
    subtree,
    tile_path,
)

MAX_FINDINGS = 1000  # Kept; more are counted.
MAX_REPAIRS = 1024  # Hash tiles, 8 KiB each, that one run rewrites.
MAX_ISSUERS = 1024
EDGE_TRIES = 8  # While the log grows, what the edge was made of goes away.

Progress = Callable[[int, int], None]


@runtime_checkable
class Listing(Protocol):
    """A storage that can say what it holds."""

    async def names(self, prefix: str) -> list[str]:
        """Keys below `prefix/`, and leftovers there that are no keys."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `damage`: False for what does no harm."""

    key: str
    what: str
    repaired: bool = False
    damage: bool = True


@dataclass(slots=True)
class FsckReport:
    """What was found. `proven`: the leaves lead to the signed head, so no entry's hash is lost."""

    size: int = 0
    root: bytes = b""
    proven: bool = False
    entries: int = 0  # Read and right.
    tiles: int = 0  # Hash tiles read and right.
    issuers: int = 0
    findings: list[Finding] = field(default_factory=list)
    more: int = 0  # Findings beyond those kept.

    @property
    def damaged(self) -> list[Finding]:
        """What is damaged and was not repaired."""
        return [one for one in self.findings if one.damage and not one.repaired]

    @property
    def clean(self) -> bool:
        """Everything is as it should be, maybe now only."""
        return self.proven and not self.damaged and not self.more

    def add(self, finding: Finding) -> None:
        """Remember it, within bounds."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.more += 1


@dataclass(frozen=True, slots=True)
class _Head:
    head: TreeHead
    note: bytes
    unfinished: bool  # A round is under way, or was interrupted: its tiles are read from where they are staged.
    get: Fetch
    hashes: list[list[bytes] | None]  # The edge's hash tiles as stored, by level; None: damaged.
    data: bytes | None  # The data tile that is not full.


async def check(
    origin: str,
    key: LogKey,
    storage: Storage,
    *,
    lock: LockStore | None = None,
    index: Index | None = None,
    repair: bool = False,
    chains: bool = True,
    progress: Progress = lambda done, total: None,
) -> FsckReport:
    """Check a log whole. Without a `lock` the checkpoint's signature is all that says which tree is meant. `repair`
    and `index` want a log that does not run. `chains`: also what lies beside the entries (signatures; the slow part).
    `progress` gets entries done and in all. Raises LogStopped when there is no head to go by, Unavailable."""
    report = FsckReport()
    checkpoint = await _get_checkpoint(origin, key, storage)
    head = await _load(origin, key, storage, lock, checkpoint)
    report.size, report.root = head.head.size, head.head.root
    repair = repair and not head.unfinished
    check_ = _Check(head, report, _Issuers(storage, report) if chains else None, index, progress)
    report.proven = await check_.walk(believe_stored=False) or await check_.walk(believe_stored=True)
    check_.finish()
    if not report.proven:
        report.add(Finding("tree", f"the leaf hashes do not lead to the signed root {head.head.root.hex()}"))
    if report.proven and repair:
        for path, data in check_.rewritten.items():
            await storage.put({path: data})
    _report_repairs(report, check_.rewritten, done=report.proven and repair)
    if lock is not None:
        await _check_checkpoint(report, storage, checkpoint, head, repair=repair)
    if index is not None:
        await _check_index(report, storage, head, index, check_.index_wrong, repair=repair)
    if isinstance(storage, Listing):
        for name in (await storage.names("staging"))[:MAX_FINDINGS]:
            report.add(Finding(name, "staged for a round that never was, or left behind", damage=False))
    return report


def _report_repairs(report: FsckReport, rewritten: dict[str, bytes], *, done: bool) -> None:
    report.findings = [
        Finding(one.key, one.what, repaired=done, damage=one.damage) if one.key in rewritten else one
        for one in report.findings
    ]


# ---- the head ----


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    note: bytes | None
    head: TreeHead | None
    error: str = ""


async def _get_checkpoint(origin: str, key: LogKey, storage: Storage) -> _Checkpoint:
    try:
        note = await storage.get(CHECKPOINT)
    except NotFound:
        return _Checkpoint(None, None, "it is missing")
    try:
        return _Checkpoint(note, open_checkpoint(note, origin, key))
    except (Malformed, ProofError) as error:
        return _Checkpoint(note, None, str(error))


async def _load(origin: str, key: LogKey, storage: Storage, lock: LockStore | None, checkpoint: _Checkpoint) -> _Head:
    """The head and the tiles of its edge, before a log that runs removes them."""
    if lock is None:
        if checkpoint.note is None or checkpoint.head is None:
            raise LogStopped(f"there is no signed head to go by: {CHECKPOINT}: {checkpoint.error}")
        return await _edge(storage.get, checkpoint.head, checkpoint.note, unfinished=False)
    log_id, previous = key_id(key), b""
    for _ in range(EDGE_TRIES):
        note = await lock.load(log_id)
        if note is None:
            raise LogStopped(f"{lock.describe()} knows no log {log_id.hex()[:16]}")
        try:
            head = open_checkpoint(note, origin, key)
        except (Malformed, ProofError) as error:
            raise LogStopped(f"the head in {lock.describe()} is not this log's: {error}") from None
        staged = await _staged(storage, head) if checkpoint.note != note else None
        get = Overlay(storage, staged).get if staged else storage.get
        found = await _edge(get, head, note, unfinished=bool(staged))
        if note == previous or (found.data is not None and None not in found.hashes):
            break
        previous = note
    return found


async def _staged(storage: Storage, head: TreeHead) -> dict[str, bytes]:
    try:
        return decode_staged(await storage.get(staging_key(head.size, head.root)))
    except (NotFound, Malformed):
        return {}


async def _edge(get: Fetch, head: TreeHead, note: bytes, *, unfinished: bool) -> _Head:
    hashes: list[list[bytes] | None] = []
    level = 0
    while count := level_width(head.size, level):
        number, width = divmod(count, TILE_WIDTH)
        hashes.append(await _stored(get, level, number, width) if width else [])
        level += 1
    number, width = divmod(head.size, TILE_WIDTH)
    data: bytes | None = b""
    if width:
        try:
            data = await get(tile_path(DATA, number, width))
        except NotFound:
            data = None
    return _Head(head, note, unfinished, get, hashes, data)


async def _stored(get: Fetch, level: int, number: int, width: int = TILE_WIDTH) -> list[bytes] | None:
    """A hash tile as stored; None when it is lost, or not of its size."""
    try:
        return split_hashes(await get(tile_path(level, number, width)), width)
    except (NotFound, Malformed):
        return None


# ---- the walk ----


class _Check:
    """One walk, perhaps two, over the tree."""

    def __init__(
        self, head: _Head, report: FsckReport, issuers: _Issuers | None, index: Index | None, progress: Progress
    ) -> None:
        self._head = head
        self._get = head.get
        self._size = head.head.size
        self._report = report
        self._issuers = issuers
        self._index = index
        self._progress = progress
        self._believe_stored = False
        self._tiles = 0
        self._entries = 0
        self._gaps = 0  # Tiles whose hashes are believed although those below say another thing, or nothing.
        self._last = 0  # Timestamp of the entry before.
        self._found: dict[str, Finding] = {}
        self._found_more = 0
        self._computed: list[list[bytes | None]] = []  # By level, the tile that is being filled.
        self._above: dict[int, tuple[int, list[bytes] | None]] = {}  # By level, the stored tile looked at last.
        self.rewritten: dict[str, bytes] = {}
        self.index_wrong = 0

    async def walk(self, *, believe_stored: bool) -> bool:
        """True: everything that was chosen is proven by the head."""
        self._believe_stored = believe_stored
        self._tiles = self._entries = self._gaps = self._last = self._found_more = self.index_wrong = 0
        self._found.clear()
        self._above.clear()
        self.rewritten.clear()
        self._computed = [[] for _ in self._head.hashes]
        full, rest = divmod(self._size, TILE_WIDTH)
        for number in range(full):
            stored = await _stored(self._get, 0, number)
            await self._push(0, number, await self._leaves(number, stored), stored)
            self._progress((number + 1) * TILE_WIDTH, self._size)
        if rest:
            self._computed[0] = await self._leaves(full, self._head.hashes[0]) or [None] * rest
        self._progress(self._size, self._size)
        return self._root()

    def finish(self) -> None:
        """Put what the last walk found into the report."""
        self._report.entries, self._report.tiles = self._entries, self._tiles
        for finding in self._found.values():
            self._report.add(finding)
        self._report.more += self._found_more

    def _find(self, key: str, what: str) -> None:
        if key in self._found:
            return
        if len(self._found) < MAX_FINDINGS:
            self._found[key] = Finding(key, what)
        else:
            self._found_more += 1

    async def _leaves(self, number: int, stored: list[bytes] | None) -> list[bytes | None] | None:
        """The leaf hashes of a data tile; None: it is lost or damaged."""
        width = min(TILE_WIDTH, self._size - number * TILE_WIDTH)
        path = tile_path(DATA, number, width)
        try:
            data = await self._get(path) if width == TILE_WIDTH else self._head.data
            if data is None:
                raise NotFound("it is missing")
            entries = split_entries(data, width)
        except (NotFound, Malformed) as error:
            self._find(path, f"{error}: entries {number * TILE_WIDTH} to {number * TILE_WIDTH + width - 1} are lost")
            return None
        for place, entry in enumerate(entries):
            if entry.index != number * TILE_WIDTH + place:
                self._find(path, f"entry {number * TILE_WIDTH + place} says that it is {entry.index}")
                return None
            if not self._last <= entry.timestamp <= self._head.head.timestamp:
                self._find(path, f"entry {entry.index} is of another time than its place")
            self._last = max(self._last, min(entry.timestamp, self._head.head.timestamp))
        if b"".join([entry.encode() for entry in entries]) != data:
            self._find(path, "it is not encoded as static-ct-api says")
        leaves: list[bytes | None] = [entry.leaf_hash for entry in entries]
        # Against the stored hashes at once: what is found in an entry is told only of one that is right.
        if stored is not None and stored != leaves and self._wins(stored, leaves, await self._expected(0, number)):
            wrong = [number * TILE_WIDTH + at for at in range(width) if stored[at] != leaves[at]]
            self._find(path, f"entry {wrong[0]} ({len(wrong)} in all) does not lead to the signed head")
            return None
        self._entries += width
        await self._beside(path, entries)
        return leaves

    async def _beside(self, path: str, entries: Sequence[LogEntry]) -> None:
        if self._issuers is not None:
            for entry in entries:
                if error := await self._issuers.check(entry):
                    self._find(path, f"entry {entry.index}: {error}")
        if self._index is not None and not self._index.damaged:
            rows = [row_of(entry) for entry in entries]
            try:
                leaves = await self._index.leaves([leaf for leaf, _, _ in rows])
                submissions = await self._index.submissions([submission for _, submission, _ in rows])
            except LogError:
                self.index_wrong += len(rows)
                return
            for (_, _, at), leaf, first in zip(rows, leaves, submissions, strict=True):
                # Of two equal submissions the first one is in the index.
                self.index_wrong += leaf != at or first is None or first > at

    async def _expected(self, level: int, number: int) -> bytes | None:
        """The hash of a full tile as the stored tile above it has it."""
        parent, place = divmod(number, TILE_WIDTH)
        held = self._above.get(level + 1)
        if held is None or held[0] != parent:
            count = level_width(self._size, level + 1)
            if parent < count // TILE_WIDTH:
                tile = await _stored(self._get, level + 1, parent)
            else:
                tile = self._head.hashes[level + 1] if level + 1 < len(self._head.hashes) else None
            held = self._above[level + 1] = (parent, tile)
        return held[1][place] if held[1] is not None and place < len(held[1]) else None

    def _wins(self, stored: list[bytes], computed: Sequence[bytes | None], expected: bytes | None) -> bool:
        """Is it the stored tile that is right?"""
        if None in computed:
            return True
        if len(stored) == TILE_WIDTH and expected is not None:
            if subtree([one for one in computed if one is not None]) == expected:
                return False
            if subtree(stored) == expected:
                return True
        return self._believe_stored

    async def _push(
        self, level: int, number: int, computed: Sequence[bytes | None] | None, stored: list[bytes] | None
    ) -> None:
        """A full tile of a level is known as far as it can be: decide on it, and hand its hash upwards."""
        path = tile_path(level, number)
        expected = await self._expected(level, number)
        chosen = self._choose(level, path, stored, list(computed or [None]), expected)
        digest = subtree(chosen) if chosen is not None else expected
        if level + 1 == len(self._computed):
            self._computed.append([])
        above = self._computed[level + 1]
        above.append(digest)
        if len(above) == TILE_WIDTH:
            self._computed[level + 1] = []
            parent = number // TILE_WIDTH
            await self._push(level + 1, parent, above, await _stored(self._get, level + 1, parent))

    def _choose(
        self,
        level: int,
        path: str,
        stored: list[bytes] | None,
        computed: Sequence[bytes | None],
        expected: bytes | None,
    ) -> list[bytes] | None:
        whole = [one for one in computed if one is not None]
        if stored is not None and (stored == whole or self._wins(stored, computed, expected)):
            self._tiles += 1
            # Leaf hashes stand for themselves; a node that those below do not give proves nothing of them.
            self._gaps += level > 0 and stored != whole
            return stored
        if len(whole) < len(computed):
            self._find(path, "it is lost, and cannot be computed from what is below it")
            return None
        self._find(path, "it is missing or not of its size" if stored is None else "its hashes are not those below it")
        if len(self.rewritten) < MAX_REPAIRS:
            self.rewritten[path] = b"".join(whole)
        return whole

    def _root(self) -> bool:
        """Decide on the edge's tiles, and compare the root."""
        edge: list[list[bytes]] = []
        for level, stored in enumerate(self._head.hashes):
            computed = self._computed[level]
            number, width = divmod(level_width(self._size, level), TILE_WIDTH)
            path = tile_path(level, number, width)
            chosen = self._choose(level, path, stored, computed, None) if width else []
            if chosen is None:
                return False
            edge.append(chosen)
        return not self._gaps and (Tree(self._size, edge).root() if self._size else EMPTY_ROOT) == self._head.head.root


# ---- beside the tree ----


class _Issuers:
    """The certificates that chains are made of, each checked once."""

    def __init__(self, storage: Storage, report: FsckReport) -> None:
        self._storage = storage
        self._report = report
        self._known: OrderedDict[bytes, x509.Certificate | None] = OrderedDict()
        self._links: OrderedDict[tuple[bytes, bytes], bool] = OrderedDict()
        self._told: set[bytes] = set()

    async def check(self, entry: LogEntry) -> str:
        """What is wrong with what lies beside an entry; empty: nothing."""
        chain = []
        for fingerprint in entry.chain:
            issuer = await self._get(fingerprint)
            if issuer is None:
                return f"{issuer_key(fingerprint)} of its chain is lost or damaged"
            chain.append(issuer)
        precert = entry.entry.kind is EntryType.PRECERT
        try:
            leaf = x509.load_der_x509_certificate(entry.precertificate if precert else entry.entry.certificate)
            if precert and precertificate_entry(leaf, chain) != entry.entry:
                return "its precertificate is not the one that was logged"
            if chain:
                leaf.verify_directly_issued_by(chain[0])
        except (Malformed, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            return f"its certificate does not belong to its chain {error}".strip()
        for place in range(len(chain) - 1):
            if not self._linked(entry.chain[place : place + 2], chain[place : place + 2]):
                return "its chain is not one in which each certificate is issued by the next"
        return ""

    async def _get(self, fingerprint: bytes) -> x509.Certificate | None:
        if fingerprint in self._known:
            self._known.move_to_end(fingerprint)
            return self._known[fingerprint]
        found, what = None, ""
        try:
            data = await self._storage.get(issuer_key(fingerprint))
            if hashlib.sha256(data).digest() == fingerprint:
                found = x509.load_der_x509_certificate(data)
                self._report.issuers += 1
            else:
                what = "it has another SHA-256 than its name"
        except NotFound:
            what = "it is missing"
        except ValueError as error:
            what = str(error)
        if found is None and fingerprint not in self._told and len(self._told) < MAX_FINDINGS:
            self._told.add(fingerprint)
            self._report.add(Finding(issuer_key(fingerprint), what))
        self._known[fingerprint] = found
        if len(self._known) > MAX_ISSUERS:
            self._known.popitem(last=False)
        return found

    def _linked(self, fingerprints: Sequence[bytes], pair: Sequence[x509.Certificate]) -> bool:
        link = (fingerprints[0], fingerprints[1])
        if link not in self._links:
            try:
                pair[0].verify_directly_issued_by(pair[1])
                self._links[link] = True
            except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                self._links[link] = False
            if len(self._links) > MAX_ISSUERS:
                self._links.popitem(last=False)
        return self._links[link]


async def _check_checkpoint(
    report: FsckReport, storage: Storage, checkpoint: _Checkpoint, head: _Head, *, repair: bool
) -> None:
    published, signed = checkpoint.head, head.head
    newest = await _get_newest(storage)
    if head.note in (checkpoint.note, newest):
        return
    if published is None:
        what = f"it is no head of this log: {checkpoint.error}"
    elif published.timestamp > signed.timestamp or published.size > signed.size:
        # Never overwritten: it is the witness of what the lock store forgot.
        if newest == checkpoint.note:
            what = f"it is a signed head of {published.size} entries that the lock store, at {signed.size}, forgot"
            report.add(Finding(CHECKPOINT, what))
        return
    else:
        if head.unfinished:
            what = "a round is under way, or was interrupted: a start of the log finishes it"
            report.add(Finding(CHECKPOINT, what, damage=False))
            return
        if newest != checkpoint.note:
            return  # The log runs.
        what = f"it is a head of {published.size} entries; the lock store has one of {signed.size}"
    repaired = repair and report.proven
    if repaired:
        await storage.put({CHECKPOINT: head.note})
    report.add(Finding(CHECKPOINT, what, repaired))


async def _get_newest(storage: Storage) -> bytes | None:
    try:
        return await storage.get(CHECKPOINT)
    except NotFound:
        return None


async def _check_index(
    report: FsckReport, storage: Storage, head: _Head, index: Index, wrong: int, *, repair: bool
) -> None:
    size = head.head.size
    if not wrong and not index.damaged and index.size == size:
        return
    what = f"{wrong} entries are not found where they are; it covers {index.size} of {size}"
    repaired = repair and report.proven and not report.damaged
    if repaired:
        await index.reset()
        for number in range(-(-size // TILE_WIDTH)):
            width = min(TILE_WIDTH, size - number * TILE_WIDTH)
            entries = split_entries(await storage.get(tile_path(DATA, number, width)), width)
            await index.add([row_of(entry) for entry in entries], number * TILE_WIDTH + width)
    report.add(Finding("index", what, repaired))

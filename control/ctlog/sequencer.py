"""The sequencer: how a log grows, and what must be durable before what.

    1. stage      the new tiles, in one object `staging/<size>-<root>`          storage, untrusted
    2. commit     compare and swap the signed head in the lock store            lock, trusted
    3. tiles      the same tiles, each in its place                             storage
    4. publish    the signed head as `checkpoint`                               storage
    5. answer     index, then SCTs

What a crash leaves behind, by the step after which it came:

    1   a staged object that no head names: never looked at, removed some day
    2   the lock's head is newer than the checkpoint, its staged object is there: 3 and 4 are done at the next start
    3   the same; writing the tiles again writes the same bytes
    4   the entries are in the log; who asks again gets their SCTs, the same promise, since entries are not logged twice

So an SCT is given only for an entry that is in a published tree, and a head is in the lock store before anybody sees
it. The lock decides who sequences: a head that cannot be swapped was replaced by somebody else, and then this one
stops.

What a start demands: the lock's head is ours; the checkpoint, if it is another one, is an older head of the same tree;
the tiles of the right edge lead to the head. Anything else is a `LogStopped`, which names what is wrong, and nothing is
signed.

A tree head's time is later than that of the one before. While the clock is behind (it was stepped back) nothing is
signed, submissions are refused as unavailable, and the log goes on when the clock has caught up.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from control.ctlog.errors import LockConflict, LogError, LogStopped, Malformed, NotFound, ProofError, Unavailable
from control.ctlog.merkle import HASH_BYTES, root_plan
from control.ctlog.note import TreeHead, open_checkpoint
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import LogEntry, SignedEntry
from control.ctlog.tiles import (
    DATA,
    TILE_WIDTH,
    TileReader,
    Tree,
    level_width,
    parse_tile_path,
    split_entries,
    split_hashes,
    tile_path,
)

log = logging.getLogger("stoq.ctlog")

CHECKPOINT = "checkpoint"
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # Seconds between tries of what has to succeed; doubled.
MAX_CLOCK_BEHIND_MS = 5  # So little is waited for by taking the next millisecond instead.


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to be logged. `chain`: certificates above the leaf (DER), issuer first, root last."""

    entry: SignedEntry
    precertificate: bytes
    chain: tuple[bytes, ...]
    fingerprints: tuple[bytes, ...]  # SHA-256 of each of `chain`.


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    rounds: int = 0
    entries: int = 0
    retries: int = 0
    failed_rounds: int = 0
    clock_behind: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """A head that everybody may see, with the edge of its tree."""

    head: TreeHead
    note: bytes
    tree: Tree = field(compare=False)


def staging_key(size: int, root: bytes) -> str:
    """Where a round's tiles are staged."""
    return f"staging/{size}-{root.hex()}"


def encode_staged(tiles: Mapping[str, bytes]) -> bytes:
    """A round's tiles as one object, behind their SHA-256: not all of an entry hangs on the tree's root."""
    body = msgspec.msgpack.encode(tiles)
    return hashlib.sha256(body).digest() + body


def decode_staged(data: bytes) -> dict[str, bytes]:
    """A round's tiles by key. Raises Malformed."""
    body = data[HASH_BYTES:]
    if hashlib.sha256(body).digest() != data[:HASH_BYTES]:
        raise Malformed("they are not those of their hash")
    try:
        tiles = msgspec.msgpack.decode(body, type=dict[str, bytes])
        for key in tiles:
            parse_tile_path(key)
    except (msgspec.MsgspecError, NotFound) as error:
        raise Malformed(str(error)) from None
    return tiles


def issuer_key(fingerprint: bytes) -> str:
    """Where an issuer's certificate lies (static-ct-api)."""
    return f"issuer/{fingerprint.hex()}"


class Sequencer:
    """Made by `open`. `sequence` is called by one task at a time."""

    def __init__(
        self, signer: Signer, storage: Storage, lock: LockStore, clock: Callable[[], float], state: Published,
        data_edge: list[bytes],
    ) -> None:  # fmt: skip
        self._signer = signer
        self._storage = storage
        self._lock = lock
        self._clock = clock
        self._data_edge = data_edge  # Encoded entries of the data tile that is not full.
        self._committed = state.note  # What the lock store holds.
        self._issuers: set[bytes] = set()  # Fingerprints known to be stored.
        self._orphans: list[str] = []  # Staged objects of rounds that failed since the last one that did not.
        self.published = state
        self.reader = TileReader(storage.get, state.tree)
        self.counts = Counts()
        self.stopped: LogStopped | None = None

    # ---- start ----

    @classmethod
    async def create(
        cls, signer: Signer, storage: Storage, lock: LockStore, clock: Callable[[], float]
    ) -> Sequencer:
        """A new, empty log. Raises LogError when there is one."""
        tree = Tree()
        head = signer.head(int(clock() * 1000), 0, tree.root())
        note = signer.checkpoint(head)
        try:
            old = await storage.get(CHECKPOINT)
        except NotFound:
            old = None
        if old is not None:
            raise LogError(f"{storage.describe()} holds a log already, and the lock store does not know it")
        try:
            await lock.create(signer.log_id, note)
        except LockConflict:
            raise LogError(f"{lock.describe()} holds a head of this log already: open it instead") from None
        await storage.put({CHECKPOINT: note})
        return cls(signer, storage, lock, clock, Published(head, note, tree), [])

    @classmethod
    async def open(
        cls, signer: Signer, storage: Storage, lock: LockStore, clock: Callable[[], float]
    ) -> Sequencer:
        """The log as it was left; finishes a round that a crash interrupted. Raises LogStopped when what is there
        does not fit together."""
        # The checkpoint first: whoever else is at work, the lock is then at it or further on.
        published = await _checkpoint(storage, signer)
        note = await lock.load(signer.log_id)
        if note is None:
            raise LogError(
                f"{lock.describe()} knows no log {signer.log_id.hex()[:16]}: make one with `stoq ct init`"
            )
        head = _own_head(note, signer, "the lock store")
        if published is None or published.note != note:
            await _recover(storage, published, head, note)
        tree, entries = await load_edge(storage, head)
        return cls(signer, storage, lock, clock, Published(head, note, tree), entries)

    # ---- a round ----

    def _ready(self) -> None:
        if self.stopped is None and self._committed != self.published.note:
            # The call that committed it was cancelled or met what trying again does not cure. To go on from the
            # published tree would fork the committed one; a start finishes it.
            self._stop("a round was committed and not finished: start it anew, which finishes it")
        if self.stopped is not None:
            raise self.stopped.again()

    def _timestamp(self) -> int:
        now, last = int(self._clock() * 1000), self.published.head.timestamp
        if now + MAX_CLOCK_BEHIND_MS < last:
            self.counts.clock_behind += 1
            raise Unavailable(
                f"the clock is {(last - now) / 1000:.1f} s behind the last tree head: nothing is signed until "
                "it has caught up"
            )
        return max(now, last + 1)

    async def sequence(self, submissions: Sequence[Submission]) -> list[LogEntry]:
        """One round; with no submissions it signs the same tree anew. When it returns the entries are in the
        published tree. Raises Unavailable when nothing was committed (try again), LogStopped when nothing may be
        signed any more."""
        self._ready()
        before, timestamp = self.published, self._timestamp()
        tree = before.tree.copy()
        entries = [
            LogEntry(one.entry, timestamp, tree.size + place, one.fingerprints, one.precertificate)
            for place, one in enumerate(submissions)
        ]
        tiles, data_edge = self._grow(tree, entries)
        head = self._signer.head(timestamp, tree.size, tree.root())
        note = self._signer.checkpoint(head)
        staged = staging_key(tree.size, head.root)
        try:
            await self._store_issuers(submissions)
            if tiles:
                await self._storage.put({staged: encode_staged(tiles)})
            await self._commit(note)
        except LogError:
            # A head that the lock store seemed to refuse could still arrive there, until another one is swapped in:
            # so long its tiles must stay staged.
            self._orphans.append(staged)
            self.counts.failed_rounds += 1
            raise
        # From here on the head is committed: the rest has to be done, here or at the next start.
        if tiles:
            await self._insist("write tiles", lambda: self._storage.put(tiles))
        await self._insist("publish the checkpoint", lambda: self._storage.put({CHECKPOINT: note}))
        self.published = Published(head, note, tree)
        self.reader.at(tree)
        self._data_edge = data_edge
        self.counts.rounds += 1
        self.counts.entries += len(entries)
        await self._tidy(staged, tiles)
        return entries

    def _grow(self, tree: Tree, entries: Sequence[LogEntry]) -> tuple[dict[str, bytes], list[bytes]]:
        """Append to the tree: the tiles that changed, and the new edge of the entries."""
        edge, number = list(self._data_edge), tree.size // TILE_WIDTH
        changed = tree.append([entry.leaf_hash for entry in entries])
        tiles = {tile_path(*key): data for key, data in changed.items()}
        edge += [entry.encode() for entry in entries]
        while len(edge) >= TILE_WIDTH:
            tiles[tile_path(DATA, number)] = b"".join(edge[:TILE_WIDTH])
            del edge[:TILE_WIDTH]
            number += 1
        if edge and entries:
            tiles[tile_path(DATA, number, len(edge))] = b"".join(edge)
        return tiles, edge

    async def _store_issuers(self, submissions: Iterable[Submission]) -> None:
        new: dict[bytes, bytes] = {}
        for one in submissions:
            for fingerprint, certificate in zip(one.fingerprints, one.chain, strict=True):
                if fingerprint not in self._issuers:
                    new.setdefault(fingerprint, certificate)
        if new:
            await self._storage.put({issuer_key(one): certificate for one, certificate in new.items()})
            if len(self._issuers) > 100_000:
                self._issuers.clear()
            self._issuers |= set(new)

    async def _commit(self, note: bytes) -> None:
        """Swap the head. When the lock store does not say what became of it, it is asked until it does: only then is
        it known whether the round was, and nothing may be signed before."""
        old = self._committed
        try:
            await self._lock.replace(self._signer.log_id, old, note)
        except LockConflict as error:
            # A lock store that tried twice may conflict with itself; one that answered from the past with nobody.
            held = await self._load_head()
            if held == old:
                raise Unavailable(f"the lock store saw another head for a moment: {error}") from None
            if held != note:
                raise self._stop(f"{error}; this sequencer stops, so that there are never two") from None
        except (Unavailable, OSError) as error:
            held = await self._load_head()
            if held == old:
                raise Unavailable(f"the lock store refused the head: {error}") from None
            if held != note:
                raise self._stop("the lock store holds a head that is neither the old nor the new one") from None
        self._committed = note

    async def _load_head(self) -> bytes | None:
        found: list[bytes | None] = []

        async def load() -> None:
            found.append(await self._lock.load(self._signer.log_id))

        await self._insist("ask the lock store what it holds", load)
        return found[-1]

    def _stop(self, text: str) -> LogStopped:
        self.stopped = LogStopped(f"log {self._signer.origin} has stopped: {text}")
        log.critical("%s", self.stopped)
        return self.stopped

    async def _insist(self, what: str, step: Callable[[], object]) -> None:
        """Try until it is done."""
        pause = FIRST_PAUSE
        while True:
            try:
                await step()  # type: ignore[misc]
                return
            except (Unavailable, OSError) as error:
                self.counts.retries += 1
                log.error("log %s cannot %s: %s; trying again in %.2f s", self._signer.origin, what, error, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _tidy(self, staged: str, tiles: Mapping[str, bytes]) -> None:
        """Remove what nobody needs: the staged object, partial forms of tiles that are full now."""
        done, self._orphans = [staged, *self._orphans], []
        try:
            for key in done if tiles or len(done) > 1 else ():
                await self._storage.delete(key)
            for key in tiles:
                if key.startswith("tile/") and ".p/" not in key:
                    await self._storage.delete(key + ".p")
        except (LogError, OSError) as error:
            log.warning("log %s: left behind in the storage: %s", self._signer.origin, error)


# ---- what a start looks at ----


def _own_head(note: bytes, signer: Signer, where: str) -> TreeHead:
    try:
        return open_checkpoint(note, signer.origin, signer.key.public_key())
    except (Malformed, ProofError) as error:
        raise LogStopped(f"the head in {where} is not ours: {error}") from None


async def _checkpoint(storage: Storage, signer: Signer) -> Published | None:
    try:
        note = await storage.get(CHECKPOINT)
    except NotFound:
        return None
    return Published(_own_head(note, signer, f"{storage.describe()} (checkpoint)"), note, Tree())


async def _recover(storage: Storage, published: Published | None, head: TreeHead, note: bytes) -> None:
    """The checkpoint is not the lock's head: finish the round, or find out that the storage is another one."""
    if published is not None:
        old = published.head
        other = old.size == head.size and old.root != head.root
        if old.size > head.size or old.timestamp > head.timestamp or other:
            raise LogStopped(
                f"the storage has a signed head of {old.size} entries that the lock store, at {head.size}, does not "
                "know: the lock store was rolled back, or two were in use; bring back the right one"
            )
    if published is None and head.size == 0:
        await storage.put({CHECKPOINT: note})
        return
    if published is None or published.head.size < head.size:
        tiles: dict[str, bytes] = {}
        try:
            staged = await storage.get(staging_key(head.size, head.root))
            tiles = decode_staged(staged)
        except NotFound:
            # Another sequencer that was held up may have put an older checkpoint over the newest one.
            if published is None or not await _in_place(storage, published.head, head):
                have = "no checkpoint" if published is None else f"a checkpoint of {published.head.size} entries"
                raise LogStopped(
                    f"the lock store knows {head.size} entries, {storage.describe()} has {have} and nothing staged: it "
                    "was rolled back or lost; restore the newest state, a backup of it must never be served"
                ) from None
        except Malformed as error:
            raise LogStopped(f"the staged tiles of {head.size} entries are damaged: {error}") from None
        if tiles:
            begin = published.head.size if published else 0
            log.warning("recovering entries %d to %d from the staged tiles", begin, head.size - 1)
            # What is staged is trusted as little as anything in the storage: nothing is written before all of it is
            # seen to lead to the head, and the head to go on the published one.
            await _check_new(Overlay(storage, tiles), published.head if published else None, head)
            await storage.put(tiles)
    await storage.put({CHECKPOINT: note})
    try:
        await storage.delete(staging_key(head.size, head.root))
    except (LogError, OSError) as error:
        log.warning("left behind in the storage: %s", error)


async def _in_place(storage: Storage, old: TreeHead, head: TreeHead) -> bool:
    try:
        await _check_new(storage, old, head)
    except LogStopped:
        return False
    return True


async def _check_new(storage: Storage | Overlay, old: TreeHead | None, head: TreeHead) -> None:
    """The tiles of the entries since `old` lead to `head`, and `head` goes on `old`. Raises LogStopped. Of a storage
    without a checkpoint only the last round's are looked at, and of all tiles the right edge."""
    tree, _ = await load_edge(storage, head)
    reader = TileReader(storage.get, tree)
    if old is not None and old.size:
        plan = root_plan(old.size)
        if plan.fold(await reader.nodes(plan.nodes))[0] != old.root:
            raise LogStopped(f"the lock's head does not go on the published one of {old.size} entries")
    begin = old.size if old is not None else head.size
    numbers = set(range(begin // TILE_WIDTH, -(-head.size // TILE_WIDTH)))
    if isinstance(storage, Overlay):
        numbers |= storage.data_tiles
    for number in sorted(numbers):
        await reader.entries(number)


class Overlay:
    """Reads staged tiles before those in place."""

    def __init__(self, storage: Storage, tiles: Mapping[str, bytes]) -> None:
        self._storage = storage
        self._tiles = tiles

    @property
    def data_tiles(self) -> set[int]:
        """Numbers of the staged data tiles."""
        found = (parse_tile_path(key) for key in self._tiles)
        return {number for level, number, _ in found if level == DATA}

    async def get(self, key: str) -> bytes:
        """See Storage."""
        staged = self._tiles.get(key)
        return staged if staged is not None else await self._storage.get(key)


async def load_edge(storage: Storage | Overlay, head: TreeHead) -> tuple[Tree, list[bytes]]:
    """The right edge of the tree of this head, and the encoded entries of the data tile that is not full. Raises
    LogStopped when they do not lead to the head."""
    edge: list[list[bytes]] = []
    level = 0
    while level_width(head.size, level):
        number, width = divmod(level_width(head.size, level), TILE_WIDTH)
        key = tile_path(level, number, width)
        try:
            edge.append(split_hashes(await _edge_object(storage, key), width) if width else [])
        except Malformed as error:
            raise LogStopped(f"{key} is damaged ({error}): run `stoq ct fsck`") from None
        level += 1
    tree = Tree(head.size, edge)
    if tree.root() != head.root:
        raise LogStopped(
            f"the tiles of the right edge do not lead to the signed head of {head.size} entries: run `stoq ct fsck`"
        )
    number, width = divmod(head.size, TILE_WIDTH)
    if not width:
        return tree, []
    key = tile_path(DATA, number, width)
    try:
        entries = split_entries(await _edge_object(storage, key), width)
    except Malformed as error:
        raise LogStopped(f"{key} is damaged: {error}") from None
    if [entry.leaf_hash for entry in entries] != edge[0]:
        raise LogStopped(f"the entries of {key} do not lead to the signed head: run `stoq ct fsck`")
    return tree, [entry.encode() for entry in entries]


async def _edge_object(storage: Storage | Overlay, key: str) -> bytes:
    try:
        return await storage.get(key)
    except NotFound:
        raise LogStopped(f"{key} is missing in the storage: run `stoq ct fsck`") from None

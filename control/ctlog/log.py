"""One log (one shard): it takes submissions, puts many into one round of the sequencer, and answers what is asked about
its tree.

Rounds follow each other while there is something to log, with `Options.period` between two beginnings at least, so that
a round is worth its syncs. A submission waits for the round it is in; one that is in the log already, or on its way, is
answered with the same entry and logged once.

What is read is read at the published head, and nothing leaves unless it leads there: see `tiles.TileReader`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from control.ctlog import merkle
from control.ctlog.chains import Acceptor
from control.ctlog.errors import LogError, LogStopped, NotFound, ProofError, Refused, Unavailable
from control.ctlog.index import Index, row_of, submission_hash
from control.ctlog.note import TreeHead
from control.ctlog.sequencer import Published, Sequencer, Submission, issuer_key
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import LogEntry, Sct
from control.ctlog.tiles import DATA, TILE_WIDTH, Tree, tile_path, tile_width

logger = logging.getLogger("stoq.ctlog")

MAX_ISSUERS = 1024  # Certificates of issuers kept in memory.
ROUND_BYTES = 16 << 20  # Certificates in one round; with the tile that is not full it makes one object below 64 MiB.
CLOSE_SECONDS = 10.0  # A round that the storage holds up longer is finished by the next start.
INDEX_ROWS = 4096  # Entries read at a time when the index is made anew.


@dataclass(frozen=True, slots=True)
class Options:
    """Seconds, and bounds."""

    period: float = 0.05  # Between the beginnings of two rounds.
    round_entries: int = 4096  # Most in one round.
    queue: int = 16384  # Submissions that wait; more are refused as unavailable.
    refresh: float = 600.0  # A head that is older is signed anew, so that it is seen that the log lives.
    get_entries: int = 1024  # Most in one answer to get-entries.


@dataclass(slots=True)
class _Waiting:
    submission: Submission
    answer: asyncio.Future[LogEntry]


class Log:
    """See the module's text. Made by `open`; `close` ends it. Every call may raise LogStopped."""

    def __init__(
        self, signer: Signer, acceptor: Acceptor, sequencer: Sequencer, storage: Storage, index: Index,
        clock: Callable[[], float], options: Options,
    ) -> None:  # fmt: skip
        self.signer = signer
        self.acceptor = acceptor
        self.options = options
        self.duplicates = 0
        self.refused = 0
        self._sequencer = sequencer
        self._storage = storage
        self._index = index
        self._clock = clock
        self._queue: OrderedDict[bytes, _Waiting] = OrderedDict()
        self._wake = asyncio.Event()
        self._issuers: OrderedDict[bytes, bytes] = OrderedDict()
        self._listeners: list[Callable[[Published], None]] = []
        self._cosigned = (sequencer.published, sequencer.published.note)
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, signer: Signer, acceptor: Acceptor, storage: Storage, lock: LockStore, index: Index,
        clock: Callable[[], float], options: Options = Options(),
    ) -> Log:  # fmt: skip
        """A log that exists. Raises LogStopped when it cannot be shown to be consistent."""
        sequencer = await Sequencer.open(signer, storage, lock, clock)
        log = cls(signer, acceptor, sequencer, storage, index, clock, options)
        await log._catch_up()
        log._task = asyncio.create_task(log._run(), name=f"ct {signer.origin}")
        return log

    async def close(self) -> None:
        """Finish the round that is under way, refuse what waits. Storage and lock stay the caller's."""
        task, self._task = self._task, None
        if task is not None:
            self._wake.set()
            _, late = await asyncio.wait({task}, timeout=CLOSE_SECONDS)
            for one in late:
                one.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fail_all(Unavailable("the log is ending: try again later"))
        await self._index.close()

    # ---- what it is ----

    @property
    def head(self) -> TreeHead:
        """The newest published tree head."""
        return self._sequencer.published.head

    @property
    def published(self) -> Published:
        """The newest published head, as head and as note."""
        return self._sequencer.published

    @property
    def note(self) -> bytes:
        """The newest published checkpoint, with the cosignatures that have come for it."""
        return self._cosigned[1] if self._cosigned[0] is self.published else self.published.note

    async def publish_note(self, published: Published, note: bytes) -> None:
        """The checkpoint of `published` with more signatures takes its place, unless the log has gone on."""
        if published is self.published:
            self._cosigned = (published, note)

    @property
    def stopped(self) -> LogStopped | None:
        """Why it signs nothing any more."""
        return self._sequencer.stopped

    def stop(self, error: LogStopped) -> None:
        """Sign nothing more: somebody who watches the log has found it inconsistent."""
        if self._sequencer.stopped is None:
            self._sequencer.stopped = error
            logger.critical("log %s has stopped: %s", self.signer.origin, error)

    @property
    def waiting(self) -> int:
        """Submissions that wait for a round."""
        return len(self._queue)

    @property
    def sequencer(self) -> Sequencer:
        """For counters."""
        return self._sequencer

    def on_publish(self, listener: Callable[[Published], None]) -> None:
        """Is called with each new head, in the loop; must not block or raise."""
        self._listeners.append(listener)

    # ---- submissions ----

    async def add_chain(self, chain: Sequence[bytes], *, precertificate: bool) -> tuple[Sct, LogEntry]:
        """Log a chain (DER, leaf first) and promise it: when this returns the entry is in the published tree. Raises
        Malformed, Refused, Unavailable."""
        try:
            submission = self.acceptor.submission(chain, precertificate=precertificate)
        except Refused:
            self.refused += 1
            raise
        entry = await self.add(submission)
        return self.signer.sct(entry), entry

    async def add(self, submission: Submission) -> LogEntry:
        """Log what was checked already."""
        if self.stopped is not None:
            raise self.stopped.again()
        if self._task is None:
            raise Unavailable("the log is ending: try again later")
        key = submission_hash(submission.entry)
        waiting = self._queue.get(key)
        if waiting is None:
            if len(self._queue) >= self.options.queue:
                raise Unavailable(f"{len(self._queue)} submissions wait already: try again later")
            waiting = _Waiting(submission, asyncio.get_running_loop().create_future())
            self._queue[key] = waiting
            self._wake.set()
        else:
            self.duplicates += 1
        # Many may wait for one: who gives up does not take it away from the others.
        return await asyncio.shield(waiting.answer)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._task is not None and self.stopped is None:
            begin = loop.time()
            try:
                async with asyncio.timeout(self.options.refresh):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._task is None:
                return
            batch, started = self._batch(), loop.time()
            try:
                await self._round(batch)
            except (LogError, OSError) as error:
                logger.warning("log %s: a round failed: %s", self.signer.origin, error)
                self._answer(batch, Unavailable(str(error)))
            except LogStopped as error:
                # Also when it is what was read that does not lead to the head.
                self._sequencer.stopped = self._sequencer.stopped or error
                self._fail_all(error)
                return
            except Exception as error:
                # Not foreseen: what is durable is not known any more.
                logger.exception("log %s met an unexpected error", self.signer.origin)
                self._sequencer.stopped = LogStopped(f"log {self.signer.origin} has stopped: {error!r}")
                self._fail_all(self._sequencer.stopped)
                return
            if self._queue:
                self._wake.set()
            # After a long round (S3) those whom it answered come again, and go into one round with those who came
            # meanwhile: without the pause there would be two half-empty rounds in turn.
            now = loop.time()
            await asyncio.sleep(max(begin + self.options.period - now, min(self.options.period, now - started)))

    def _batch(self) -> list[tuple[bytes, _Waiting]]:
        """What goes into the next round: bounded also in bytes, since all of it is staged as one object."""
        batch: list[tuple[bytes, _Waiting]] = []
        size = 0
        for key, waiting in self._queue.items():
            one = waiting.submission
            size += len(one.entry.certificate) + len(one.precertificate)
            if batch and (len(batch) >= self.options.round_entries or size > ROUND_BYTES):
                break
            batch.append((key, waiting))
        return batch

    async def _round(self, batch: Sequence[tuple[bytes, _Waiting]]) -> None:
        if self._index.damaged or self._index.size != self.head.size:
            await self._catch_up()  # It failed in an earlier round.
        found = await self._known([key for key, _ in batch])
        fresh = [item for item in batch if item[0] not in found]
        self.duplicates += len(found)
        if fresh or not batch:
            entries = await self._sequencer.sequence([waiting.submission for _, waiting in fresh])
            if entries:
                rows = [(one.leaf_hash[:16], key[:16], one.index) for (key, _), one in zip(fresh, entries, strict=True)]
                await self._index.add(rows, self.head.size)
                found |= {key: one for (key, _), one in zip(fresh, entries, strict=True)}
            for listener in self._listeners:
                listener(self.published)
        for key, waiting in batch:
            self._queue.pop(key, None)
            if not waiting.answer.done():
                waiting.answer.set_result(found[key])

    async def _known(self, keys: Sequence[bytes]) -> dict[bytes, LogEntry]:
        """Those submissions that are in the log."""
        found = {}
        for key, index in zip(keys, await self._index.submissions(keys), strict=True):
            if index is not None and index < self.head.size:
                entry = await self.entry(index)
                if submission_hash(entry.entry) == key:
                    found[key] = entry
        return found

    def _answer(self, batch: Sequence[tuple[bytes, _Waiting]], error: Exception) -> None:
        for key, waiting in batch:
            self._queue.pop(key, None)
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # Whoever asked may have given up; that is no error of ours.

    def _fail_all(self, error: Exception) -> None:
        self._answer(list(self._queue.items()), error)

    async def _catch_up(self) -> None:
        """The index may lack the newest entries, or be of another tree."""
        reader, size = self._sequencer.reader, self.head.size
        if self._index.damaged or self._index.size > size or (self._index.size and not await self._index_fits()):
            logger.warning("log %s: the index is not of this tree and is made anew", self.signer.origin)
            await self._index.reset()
        at = self._index.size
        while at < size:
            end = min(size, at + INDEX_ROWS)
            rows = []
            for number in range(at // TILE_WIDTH, (end - 1) // TILE_WIDTH + 1):
                rows += [row_of(one) for one in await reader.entries(number) if at <= one.index < end]
            await self._index.add(rows, end)
            at = end

    async def _index_fits(self) -> bool:
        last = await self.entry(self._index.size - 1)
        try:
            return await self._index.leaf(last.leaf_hash) == last.index
        except Unavailable:
            if self._index.damaged:
                return False
            raise

    # ---- questions ----

    async def _at(self, size: int | None) -> int:
        now = self.head.size
        if size is None:
            return now
        if not 0 <= size <= now:
            raise NotFound(f"a tree of {size} is asked for; the published one has {now} entries")
        return size

    async def _hashes(self, plan: merkle.Plan) -> list[bytes]:
        return plan.fold(await self._sequencer.reader.nodes(plan.nodes))

    async def root(self, size: int) -> bytes:
        """The root of the tree as it was at `size`."""
        size = await self._at(size)
        return (await self._hashes(merkle.root_plan(size)))[0] if size else merkle.EMPTY_ROOT

    async def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """An inclusion proof of the entry at `index` in the tree of `size`. Raises NotFound."""
        size = await self._at(size)
        try:
            return await self._hashes(merkle.inclusion_plan(index, size))
        except ProofError as error:
            raise NotFound(str(error)) from None

    async def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """A proof that the tree of `new` goes on that of `old`. Raises NotFound."""
        new = await self._at(new)
        try:
            return await self._hashes(merkle.consistency_plan(old, new))
        except ProofError as error:
            raise NotFound(str(error)) from None

    async def find(self, leaf_hash: bytes) -> int:
        """The index of the entry with this leaf hash. Raises NotFound."""
        index = await self._index.leaf(leaf_hash)
        if index is not None and index < self.head.size:
            hashes = await self._sequencer.reader.hashes(0, index // TILE_WIDTH)
            if hashes[index % TILE_WIDTH] == leaf_hash:
                return index
        raise NotFound(f"no entry has the leaf hash {leaf_hash.hex()}")

    async def entry(self, index: int) -> LogEntry:
        """One entry. Raises NotFound."""
        return await self._sequencer.reader.entry(index)

    async def entries(self, start: int, end: int) -> list[LogEntry]:
        """The entries `start` to `end`, both included, fewer if that is many (RFC 6962 section 4.6): an answer ends
        with a tile, so that those that follow can be cached. Raises NotFound."""
        size = self.head.size
        if not 0 <= start <= end or start >= size:
            raise NotFound(f"entries {start} to {end} are asked for; there are 0 to {size - 1}")
        most = start // TILE_WIDTH * TILE_WIDTH + self.options.get_entries
        end = min(end, size - 1, most - 1)
        found: list[LogEntry] = []
        for number in range(start // TILE_WIDTH, end // TILE_WIDTH + 1):
            found += await self._sequencer.reader.entries(number)
        first = start // TILE_WIDTH * TILE_WIDTH
        return found[start - first : end + 1 - first]

    async def issuer(self, fingerprint: bytes) -> bytes:
        """The certificate (DER) with this SHA-256. Raises NotFound; LogStopped when the storage has another one."""
        known = self._issuers.get(fingerprint)
        if known is None:
            known = await self._storage.get(issuer_key(fingerprint))
            if hashlib.sha256(known).digest() != fingerprint:
                raise LogStopped(f"{issuer_key(fingerprint)} is damaged: run `stoq ct fsck`")
            self._issuers[fingerprint] = known
            if len(self._issuers) > MAX_ISSUERS:
                self._issuers.popitem(last=False)
        return known

    async def tile(self, level: int, number: int, width: int) -> bytes:
        """A tile (level `tiles.DATA`: of entries) as static-ct-api has it. Raises NotFound."""
        if not 1 <= width <= tile_width(self.head.size, level, number):
            path = tile_path(level, number, width)
            raise NotFound(f"{path} is not in the published tree of {self.head.size}")
        reader = self._sequencer.reader
        if level == DATA:
            return b"".join([one.encode() for one in (await reader.entries(number))[:width]])
        return b"".join((await reader.hashes(level, number))[:width])

    @property
    def tree(self) -> Tree:
        """The edge of the published tree."""
        return self._sequencer.published.tree



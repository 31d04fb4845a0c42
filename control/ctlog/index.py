"""From a hash to an entry's index: which leaf hash lies where (get-proof-by-hash), and which submission is in the log
already. Derived data: it can be lost, and is then made again from the tiles.

Keys are 16 bytes of a hash, so what is found must be compared with the entry itself. In SQLite with a write-ahead log
that is not synced: after a power failure it may lack the newest entries, and `size` says which.

The newest rows are kept in memory and written many at a time, in the order of their keys: a row whose key is random
dirties a page of its own, so that small batches cost the more the larger the tables are. A crash loses what was not
written, and the log reads it from the tiles again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from control.ctlog.errors import Unavailable
from control.ctlog.structs import LogEntry, SignedEntry

KEY_BYTES = 16
TABLES = ("leaves", "submissions")
CACHE_KIB = 65536  # Both tables of a million entries are 60 MB: within it an insert costs no read.

log = logging.getLogger("stoq.ctlog")

BATCH_ROWS = 65536  # Written at once; so many, and those of a batch that is being written, are in memory: some 30 MB.
MAX_BATCHES = 4  # That cannot be written, until adding fails.

T = TypeVar("T")
Row = tuple[bytes, bytes, int]  # Leaf key, submission key, index.


def submission_hash(entry: SignedEntry) -> bytes:
    """What makes two submissions the same: entry type, issuer, certificate or TBS."""
    return hashlib.sha256(entry.encode()).digest()


def row_of(entry: LogEntry) -> Row:
    """An entry's row."""
    return entry.leaf_hash[:KEY_BYTES], submission_hash(entry.entry)[:KEY_BYTES], entry.index


def _is_damage(error: sqlite3.Error) -> bool:
    """Is the file broken or not ours? Else it may pass: a full disk, another process's lock."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class _Recent:
    """Rows that are not written yet."""

    __slots__ = ("leaves", "submissions")

    def __init__(self) -> None:
        self.leaves: dict[bytes, int] = {}
        self.submissions: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.leaves)

    def add(self, rows: Iterable[Row]) -> None:
        """Of two equal keys the first one stays."""
        for leaf, submission, index in rows:
            self.leaves.setdefault(leaf, index)
            self.submissions.setdefault(submission, index)

    def table(self, name: str) -> dict[bytes, int]:
        """One of the two."""
        return self.leaves if name == "leaves" else self.submissions


class Index:
    """See the module's text. `batch_rows` 0: every call of `add` writes what it was given before it returns."""

    def __init__(self, path: Path, batch_rows: int = BATCH_ROWS) -> None:
        self._path = path
        self._batch_rows = batch_rows
        # Reading does not wait for writing: each has a connection and a thread of its own.
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="ct-index")
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="ct-index-writer")
        self._recent = _Recent()
        self._writing: _Recent | None = None
        self._task: asyncio.Task[None] | None = None
        self.damaged = False  # SQLite found it so: `reset` it and add everything again.
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise Unavailable(f"the index {path} cannot be opened: {error}") from None
            # Derived: what cannot be read is made again.
            self._remove()
            self._open()

    def _open(self) -> None:
        self._writer = self._connect()
        self._reader = self._connect()
        row = self._reader.execute("SELECT size FROM state").fetchone()
        self.size = int(row[0]) if row else 0

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        database.execute("PRAGMA wal_autocheckpoint=4000")
        for table in TABLES:
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, idx INTEGER NOT NULL) WITHOUT ROWID"
            )
        database.execute("CREATE TABLE IF NOT EXISTS state (size INTEGER NOT NULL)")
        return database

    async def _call(self, pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function)
        except sqlite3.Error as error:
            self.damaged = self.damaged or _is_damage(error)
            raise Unavailable(f"the index {self._path} does not answer: {error}") from None

    # ---- writing ----

    async def add(self, rows: Sequence[Row], size: int) -> None:
        """Add entries; the index then covers a tree of `size`. Of two equal submissions the first one stays. Raises
        Unavailable when so much could not be written that no more is kept."""
        if len(self._recent) >= max(1, self._batch_rows) * MAX_BATCHES:
            await self.flush()
        self._recent.add(rows)
        self.size = size
        if self._batch_rows == 0:
            await self.flush()
        elif len(self._recent) >= self._batch_rows and self._task is None:
            self._begin()

    def _begin(self) -> asyncio.Task[None]:
        self._writing, self._recent = self._recent, _Recent()
        self._task = asyncio.create_task(self._write(self._writing, self.size), name="ct index")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # It is looked at in `flush`.
        return self._task

    async def _write(self, rows: _Recent, size: int) -> None:
        def work() -> None:
            database = self._writer
            database.execute("BEGIN")
            try:
                for table in TABLES:
                    database.executemany(
                        f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", sorted(rows.table(table).items())
                    )
                database.execute("DELETE FROM state")
                database.execute("INSERT INTO state VALUES (?)", (size,))
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # Some errors have rolled it back already.
                    database.execute("ROLLBACK")
                raise

        try:
            await self._call(self._writers, work)
        except BaseException:
            # Nothing is lost: what was not written goes before what came since.
            for table in TABLES:
                rows.table(table).update(self._recent.table(table))
            self._recent = rows
            raise
        finally:
            self._writing, self._task = None, None

    async def flush(self) -> None:
        """Write what is in memory. Raises Unavailable, and it is still there."""
        if self._task is not None:
            await asyncio.wait({self._task})
        if len(self._recent):
            await self._begin()

    async def reset(self) -> None:
        """Forget everything: it does not belong to this tree."""
        if self._task is not None:
            await asyncio.wait({self._task})
        self._recent = _Recent()

        def work() -> None:
            self._writer.close()
            self._reader.close()
            self._remove()
            self._open()

        await self._call(self._writers, work)
        self.size, self.damaged = 0, False

    # ---- reading ----

    async def _lookup(self, table: str, hashes: Iterable[bytes]) -> list[int | None]:
        wanted = [one[:KEY_BYTES] for one in hashes]

        def work() -> list[int | None]:
            query = f"SELECT idx FROM {table} WHERE key = ?"
            rows = [self._reader.execute(query, (key,)).fetchone() for key in wanted]
            return [int(row[0]) if row else None for row in rows]

        memory = [one.table(table) for one in (self._writing, self._recent) if one is not None]
        found = await self._call(self._readers, work)
        return [
            known if known is not None else next((held[key] for held in memory if key in held), None)
            for key, known in zip(wanted, found, strict=True)
        ]

    async def leaf(self, leaf_hash: bytes) -> int | None:
        """The index of the entry that may have this leaf hash."""
        return (await self._lookup("leaves", [leaf_hash]))[0]

    async def leaves(self, hashes: Iterable[bytes]) -> list[int | None]:
        """Many at once."""
        return await self._lookup("leaves", hashes)

    async def submission(self, submission: bytes) -> int | None:
        """The index of the entry that may be of this submission (`submission_hash`)."""
        return (await self._lookup("submissions", [submission]))[0]

    async def submissions(self, hashes: Iterable[bytes]) -> list[int | None]:
        """Many at once."""
        return await self._lookup("submissions", hashes)

    async def close(self) -> None:
        """Write what is in memory, if that can be done, and close the database."""
        try:
            if not self.damaged:
                await self.flush()
        except Unavailable as error:
            log.warning("%s; it will be made good from the tiles", error)
        await self._call(self._writers, self._writer.close)
        await self._call(self._readers, self._reader.close)
        self._writers.shutdown(wait=True)
        self._readers.shutdown(wait=True)

"""From a hash to an entry's index: which leaf hash lies where (get-proof-by-hash), and which submission is in the log
already. Derived data: it can be lost, and is then made again from the tiles.

Keys are 16 bytes of a hash, so what is found must be compared with the entry itself. In SQLite with a write-ahead log
that is not synced: after a power failure it may lack the newest entries, and `size` says which.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from control.ctlog.errors import Unavailable
from control.ctlog.structs import LogEntry, SignedEntry

KEY_BYTES = 16
CACHE_KIB = 65536  # Both tables of a million entries are 60 MB: within it an insert costs no read.

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


class Index:
    """See the module's text. All calls but `lookup` go through one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ct-index")
        self.damaged = False  # SQLite found it so: `reset` it and add everything again.
        try:
            self._database = self._connect()
            self.size = self._read_size()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise Unavailable(f"the index {path} cannot be opened: {error}") from None
            # Derived: what cannot be read is made again.
            self._remove()
            self._database = self._connect()
            self.size = 0

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
        for table in ("leaves", "submissions"):
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, idx INTEGER NOT NULL) WITHOUT ROWID"
            )
        database.execute("CREATE TABLE IF NOT EXISTS state (size INTEGER NOT NULL)")
        return database

    def _read_size(self) -> int:
        row = self._database.execute("SELECT size FROM state").fetchone()
        return int(row[0]) if row else 0

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function)
        except sqlite3.Error as error:
            self.damaged = self.damaged or _is_damage(error)
            raise Unavailable(f"the index {self._path} does not answer: {error}") from None

    async def add(self, rows: Sequence[Row], size: int) -> None:
        """Add entries; the index then covers a tree of `size`. Of two equal submissions the first one stays."""

        def work() -> None:
            database = self._database
            database.execute("BEGIN")
            try:
                database.executemany(
                    "INSERT OR IGNORE INTO leaves VALUES (?, ?)", ((leaf, index) for leaf, _, index in rows)
                )
                database.executemany(
                    "INSERT OR IGNORE INTO submissions VALUES (?, ?)",
                    ((submission, index) for _, submission, index in rows),
                )
                database.execute("DELETE FROM state")
                database.execute("INSERT INTO state VALUES (?)", (size,))
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # Some errors have rolled it back already.
                    database.execute("ROLLBACK")
                raise

        await self._call(work)
        self.size = size

    async def reset(self) -> None:
        """Forget everything: it does not belong to this tree."""

        def work() -> None:
            self._database.close()
            self._remove()
            self._database = self._connect()

        await self._call(work)
        self.size, self.damaged = 0, False

    def _lookup(self, table: str, key: bytes) -> int | None:
        row = self._database.execute(f"SELECT idx FROM {table} WHERE key = ?", (key[:KEY_BYTES],)).fetchone()
        return int(row[0]) if row else None

    async def leaf(self, leaf_hash: bytes) -> int | None:
        """The index of the entry that may have this leaf hash."""
        return await self._call(lambda: self._lookup("leaves", leaf_hash))

    async def leaves(self, hashes: Iterable[bytes]) -> list[int | None]:
        """Many at once."""
        wanted = list(hashes)
        return await self._call(lambda: [self._lookup("leaves", one) for one in wanted])

    async def submission(self, submission: bytes) -> int | None:
        """The index of the entry that may be of this submission (`submission_hash`)."""
        return await self._call(lambda: self._lookup("submissions", submission))

    async def submissions(self, hashes: Iterable[bytes]) -> list[int | None]:
        """Many at once."""
        wanted = list(hashes)
        return await self._call(lambda: [self._lookup("submissions", one) for one in wanted])

    async def close(self) -> None:
        """Close the database."""
        await self._call(self._database.close)
        self._pool.shutdown(wait=True)

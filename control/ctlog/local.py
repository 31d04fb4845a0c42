"""A log on a local disk: objects are files, the lock store is a SQLite database.

A file appears whole or not at all: it is written beside its place, synced, renamed, and its directory synced. SQLite
commits with a sync too (`synchronous=EXTRA`), and two processes that replace a head are told apart by one UPDATE.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from control.ctlog.errors import LockConflict, LogError, NotFound, Unavailable
from control.ctlog.storage import check_key

T = TypeVar("T")
BUSY_SECONDS = 5.0  # Another process's transaction may take so long; it is one row.
TEMPORARY = ".new"  # No object's name ends so: a dot begins no part, and ours all end like this.


class _Threaded:
    """One thread of its own: calls stay in order and never block the loop."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def close(self) -> None:
        """See Storage."""
        self._pool.shutdown(wait=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalStorage(_Threaded):
    """A `Storage` below a directory, which is made when it is missing."""

    def __init__(self, root: Path) -> None:
        super().__init__("ct-files")
        self._root = root
        self._temporary = f".{secrets.token_hex(4)}{TEMPORARY}"  # Another process may write the same object.
        self._known: set[Path] = set()  # Directories that are there and synced; bounded by what we made.
        root.mkdir(parents=True, exist_ok=True)

    def describe(self) -> str:
        """See Storage."""
        return f"directory {self._root}"

    async def put(self, objects: Mapping[str, bytes]) -> None:
        """See Storage."""
        await self._call(lambda: self._put(objects))

    def _put(self, objects: Mapping[str, bytes]) -> None:
        directories, temporary = set(), None
        try:
            for key, data in objects.items():
                path = self._root / check_key(key)
                directories |= self._make(path.parent)
                temporary = path.with_name(path.name + self._temporary)
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(descriptor)
                temporary.rename(path)
                temporary = None
                directories.add(path.parent)
            for directory in directories:
                _sync_directory(directory)
        except OSError as error:
            self._known.clear()
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            hint = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise Unavailable(f"cannot write to {self._root}: {error.strerror}{hint}") from None

    def _make(self, directory: Path) -> set[Path]:
        """Make a directory; returns those whose entries changed and are to be synced."""
        if directory in self._known:
            return set()
        directory.mkdir(parents=True, exist_ok=True)
        if len(self._known) > 4096:
            self._known.clear()
        # Also those that were there: who made them may have been killed before they were synced.
        changed, inner = set(), directory
        while inner not in self._known:
            changed.add(inner.parent)
            self._known.add(inner)
            if inner == self._root:
                break
            inner = inner.parent
        return changed

    async def get(self, key: str) -> bytes:
        """See Storage."""
        path = self._root / check_key(key)
        try:
            # From the page cache as a rule: a thread would cost more than the read.
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"there is no {key}") from None
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror}") from None

    async def names(self, prefix: str) -> list[str]:
        """What lies below `prefix/`: keys, and what an interrupted write left behind."""
        top = self._root / check_key(prefix)
        return await self._call(
            lambda: sorted(str(one.relative_to(self._root)) for one in top.rglob("*") if one.is_file())
        )

    async def delete(self, prefix: str) -> None:
        """See Storage."""
        path = self._root / check_key(prefix)

        def remove() -> None:
            self._known = {one for one in self._known if one != path and path not in one.parents}
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise Unavailable(f"cannot remove {path}: {error.strerror}") from None

        await self._call(remove)


class SqliteLock(_Threaded):
    """A `LockStore` in one file. Raises LogError when it is no such database."""

    def __init__(self, path: Path) -> None:
        super().__init__("ct-lock")
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS heads (log_id BLOB PRIMARY KEY, head BLOB NOT NULL) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            raise LogError(f"{path} cannot serve as lock store: {error}") from None
        self._database: sqlite3.Connection | None = None

    def describe(self) -> str:
        """See LockStore."""
        return f"SQLite {self._path}"

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # A rollback journal, not a write-ahead log: one file to back up, and its removal is the commit.
        database.execute("PRAGMA journal_mode=TRUNCATE")
        database.execute("PRAGMA synchronous=EXTRA")
        return database

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            try:
                if self._database is None:
                    self._database = self._connect()
                return work(self._database)
            except sqlite3.Error as error:
                # The connection may hold half a transaction: another one starts clean.
                self._drop()
                raise Unavailable(f"the lock store {self._path} does not answer: {error}") from None

        return await self._call(run)

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error:
                pass

    async def load(self, log_id: bytes) -> bytes | None:
        """See LockStore."""

        def work(database: sqlite3.Connection) -> bytes | None:
            row = database.execute("SELECT head FROM heads WHERE log_id = ?", (log_id,)).fetchone()
            return bytes(row[0]) if row else None

        return await self._run(work)

    async def create(self, log_id: bytes, head: bytes) -> None:
        """See LockStore."""

        def work(database: sqlite3.Connection) -> None:
            try:
                database.execute("INSERT INTO heads VALUES (?, ?)", (log_id, head))
            except sqlite3.IntegrityError:
                raise LockConflict(f"{self._path} has a head of this log already") from None

        await self._run(work)

    async def replace(self, log_id: bytes, old: bytes, new: bytes) -> None:
        """See LockStore."""

        def work(database: sqlite3.Connection) -> None:
            changed = database.execute(
                "UPDATE heads SET head = ? WHERE log_id = ? AND head = ?", (new, log_id, old)
            ).rowcount
            if changed != 1:
                raise LockConflict(f"{self._path} holds another head: somebody else sequences this log")

        await self._run(work)

    async def close(self) -> None:
        """See LockStore."""
        await self._call(self._drop)
        await super().close()

"""The file beneath the store: one SQLite connection, one thread, one transaction a call.

SQLite blocks, and a commit waits for the disk, so all of it happens in a thread of its own; callers await. One thread
also means that calls are made one after the other, each whole: no other lock is needed. Write-ahead log with
synchronous=FULL: what was answered to a client is on disk.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from control.trustchain.errors import StoreError

VERSION = 1

_SCHEMA = """
CREATE TABLE accounts (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    jwk TEXT NOT NULL,
    thumbprint TEXT NOT NULL UNIQUE,
    contact TEXT NOT NULL,
    agreed INTEGER NOT NULL,
    external TEXT,
    created REAL NOT NULL
) STRICT;
CREATE TABLE external_accounts (
    kid TEXT PRIMARY KEY,
    secret BLOB NOT NULL,
    expires REAL NOT NULL,
    account TEXT
) STRICT;
CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts ON DELETE CASCADE,
    status TEXT NOT NULL,
    identifiers TEXT NOT NULL,
    expires REAL NOT NULL,
    csr BLOB,
    error TEXT,
    replaces TEXT,
    created REAL NOT NULL
) STRICT;
CREATE INDEX orders_account ON orders (account);
CREATE INDEX orders_expires ON orders (expires);
CREATE TABLE authorizations (
    id TEXT PRIMARY KEY,
    order_id TEXT NOT NULL REFERENCES orders ON DELETE CASCADE,
    account TEXT NOT NULL,
    identifier TEXT NOT NULL,
    wildcard INTEGER NOT NULL,
    status TEXT NOT NULL,
    expires REAL NOT NULL
) STRICT;
CREATE INDEX authorizations_order ON authorizations (order_id);
CREATE INDEX authorizations_account ON authorizations (account, identifier);
CREATE TABLE challenges (
    id TEXT PRIMARY KEY,
    authorization TEXT NOT NULL REFERENCES authorizations ON DELETE CASCADE,
    type TEXT NOT NULL,
    token TEXT NOT NULL,
    status TEXT NOT NULL,
    validated REAL,
    error TEXT
) STRICT;
CREATE INDEX challenges_authorization ON challenges (authorization);
CREATE TABLE certificates (
    id TEXT PRIMARY KEY,
    order_id TEXT NOT NULL UNIQUE REFERENCES orders ON DELETE CASCADE,
    account TEXT NOT NULL,
    chain BLOB NOT NULL,
    fingerprint TEXT NOT NULL UNIQUE,
    renewal_id TEXT NOT NULL,
    not_before REAL NOT NULL,
    not_after REAL NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX certificates_renewal ON certificates (renewal_id);
"""


class Database:
    """One file, used from one thread. Made by `open`, given up by `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acme-store")
        self._connection: sqlite3.Connection | None = None

    @property
    def rows(self) -> sqlite3.Connection:
        """The connection, for the store's own thread."""
        if self._connection is None:
            raise StoreError(f"the ACME store {self.path} is closed")
        return self._connection

    async def _start(self) -> Self:
        """Open the file, which is made (0600) if there is none. Raises StoreError."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connect)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def _connect(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the ACME store {self.path}: {error}") from None
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
            elif version != VERSION:
                raise StoreError(
                    f"{self.path} has layout {version}, this program knows {VERSION}: use the matching one"
                )
        except sqlite3.Error as error:
            connection.close()
            raise StoreError(f"{self.path} is not an ACME store or is damaged: {error}") from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    async def close(self) -> None:
        """Give up file and thread; what was called before is done first."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


D = TypeVar("D", bound=Database)
P = ParamSpec("P")
R = TypeVar("R")


def transaction(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], Coroutine[Any, Any, R]]:
    """A method of a Database as one transaction in its thread: all of it is committed, or on an exception none.

    What was begun is finished even if who awaits is cancelled. Raises StoreError for the disk's failures.
    """

    def whole(self: D, args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        rows = self.rows
        try:
            rows.execute("BEGIN IMMEDIATE")
            try:
                result = method(self, *args, **kwargs)  # type: ignore[arg-type]
            except BaseException:
                rows.execute("ROLLBACK")
                raise
            rows.execute("COMMIT")
        except sqlite3.Error as error:
            if rows.in_transaction:
                rows.execute("ROLLBACK")
            raise StoreError(f"the ACME store {self.path} failed: {error}") from None
        return result

    async def run(self: D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._connection is None:
            raise StoreError(f"the ACME store {self.path} is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, whole, self, args, kwargs)

    functools.update_wrapper(run, method)
    return run

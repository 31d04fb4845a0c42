"""What the authority knows, in one SQLite file: certificates, join tokens, the requests of the last minutes, counters, and
the audit log's head.

Write-ahead log, synchronous=FULL: a commit is on the disk when it returns. Only `control.trustchain.journal` commits, many
decisions at once; the functions here that take a connection are called inside its transaction. Reads have a connection of
their own and see what is committed.

Every table is bounded (`Limits`); what is expired for long enough goes, a bound that is reached is a `Busy`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from control.trustchain.audit import Head
from control.trustchain.errors import BadRequest, Busy, CaError, NotFound, Replayed, StoreError

SCHEMA_VERSION = 1
SERIAL_BYTES = 20  # RFC 5280 section 4.1.2.2.
BUSY_TIMEOUT_MS = 5000
MAX_PAGE = 1000  # Rows of one listing.
WAL_PAGES = 4096  # 16 MiB between checkpoints.
CACHE_KIB = 32 * 1024
PRUNE_ROWS = 200  # At a time, so that no decision waits for long.

_SCHEMA = """
CREATE TABLE IF NOT EXISTS certificates (
    serial BLOB NOT NULL, state TEXT NOT NULL, profile TEXT NOT NULL, subject TEXT NOT NULL, names TEXT NOT NULL,
    roles TEXT NOT NULL, spki BLOB NOT NULL, fingerprint BLOB NOT NULL, der BLOB NOT NULL, issuer INTEGER NOT NULL,
    not_before INTEGER NOT NULL, not_after INTEGER NOT NULL, lineage BLOB NOT NULL, requester TEXT NOT NULL,
    issued_at REAL NOT NULL, scts INTEGER NOT NULL, token BLOB, revoked_at REAL, reason TEXT, revocation INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS certificate_serial ON certificates (serial);
CREATE INDEX IF NOT EXISTS certificate_fingerprint ON certificates (fingerprint);
CREATE INDEX IF NOT EXISTS certificate_spki ON certificates (spki);
CREATE INDEX IF NOT EXISTS certificate_subject ON certificates (subject);
CREATE INDEX IF NOT EXISTS certificate_expiry ON certificates (not_after);
CREATE INDEX IF NOT EXISTS certificate_unfinished ON certificates (state) WHERE state = 'precertificate';
CREATE UNIQUE INDEX IF NOT EXISTS revocation_number ON certificates (revocation) WHERE revocation IS NOT NULL;
CREATE INDEX IF NOT EXISTS certificate_lineage ON certificates (lineage);
CREATE INDEX IF NOT EXISTS revoked_lineage ON certificates (lineage) WHERE revocation IS NOT NULL;
CREATE INDEX IF NOT EXISTS revoked_key ON certificates (spki) WHERE revocation IS NOT NULL;
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, profile TEXT NOT NULL, subject TEXT NOT NULL, dns TEXT NOT NULL, addresses TEXT NOT NULL,
    roles TEXT NOT NULL, created_at REAL NOT NULL, created_by TEXT NOT NULL, expires REAL NOT NULL,
    used_at REAL, serial BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (id BLOB PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS request_expiry ON requests (expires);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL, size INTEGER NOT NULL,
    time REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept. `expired_s`: how long a certificate is kept after its end."""

    certificates: int = 5_000_000
    tokens: int = 10_000
    requests: int = 1_000_000
    expired_s: float = 30 * 86400


class State(StrEnum):
    """How far an issuance came."""

    PRECERTIFICATE = "precertificate"  # Signed and perhaps logged, not handed out.
    FINAL = "final"


class Row(msgspec.Struct, frozen=True):
    """A certificate as it is kept. `serial` has 20 bytes; times are Unix seconds; `lineage` is the serial of the first of
    its line of renewals, `issuer` the intermediate's number."""

    serial: bytes
    state: State
    profile: str
    subject: str
    names: tuple[str, ...]
    roles: tuple[str, ...]
    spki: bytes
    fingerprint: bytes
    der: bytes
    issuer: int
    not_before: int
    not_after: int
    lineage: bytes
    requester: str
    issued_at: float
    scts: int
    token: bytes | None = None
    revoked_at: float | None = None
    reason: str | None = None
    revocation: int | None = None


class TokenRow(msgspec.Struct, frozen=True):
    """A join token as it is kept: `hash` is SHA-256 of its secret."""

    hash: bytes
    profile: str
    subject: str
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    created_at: float
    created_by: str
    expires: float
    used_at: float | None = None
    serial: bytes | None = None


_ROW_FIELDS = Row.__struct_fields__
_TOKEN_FIELDS = TokenRow.__struct_fields__
_ROW_SQL = ", ".join(_ROW_FIELDS)
_TOKEN_SQL = ", ".join(_TOKEN_FIELDS)
_INSERT_ROW = f"INSERT INTO certificates ({_ROW_SQL}) VALUES ({', '.join('?' * len(_ROW_FIELDS))})"
_INSERT_TOKEN = f"INSERT INTO tokens ({_TOKEN_SQL}) VALUES ({', '.join('?' * len(_TOKEN_FIELDS))})"


def _plain(values: Iterable[object]) -> list[object]:
    return [msgspec.json.encode(value).decode() if isinstance(value, tuple) else value for value in values]


def _texts(value: str) -> tuple[str, ...]:
    return msgspec.json.decode(value, type=tuple[str, ...])


def _row(found: sqlite3.Row) -> Row:
    values = dict(found)
    values.update(names=_texts(values["names"]), roles=_texts(values["roles"]), state=State(values["state"]))
    return Row(**values)


def _token(found: sqlite3.Row) -> TokenRow:
    values = dict(found)
    values.update({name: _texts(values[name]) for name in ("dns", "addresses", "roles")})
    return TokenRow(**values)


def serial_bytes(serial: int) -> bytes:
    """A serial number as it is kept. Raises BadRequest when it is none."""
    if not 0 < serial < 1 << (8 * SERIAL_BYTES):
        raise BadRequest("a serial number is positive and has at most 20 bytes")
    return serial.to_bytes(SERIAL_BYTES, "big")


class Store:
    """The open file: `writer` for the journal, reads through methods."""

    def __init__(self, path: Path, writer: sqlite3.Connection | None, reader: sqlite3.Connection, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self._writer = writer
        self._reader = reader

    @classmethod
    def open(cls, path: Path, *, create: bool = False, read_only: bool = False, limits: Limits | None = None) -> Store:
        """Raises CaError when the file is missing, damaged, or of another version."""
        if not create and not path.is_file():
            raise CaError(f"there is no {path}: is this the directory of an authority? (`stoq ca init` makes one)")
        writer = None
        try:
            if not read_only:
                writer = _connect(path, "rwc" if create else "rw")
                _prepare(writer, path)
            reader = _connect(path, "ro" if writer is None else "rw")
            reader.execute("PRAGMA query_only = ON")
            _check_version(reader, path)
        except sqlite3.Error as error:
            if writer is not None:
                writer.close()
            raise CaError(f"{path} cannot be opened: {error}") from None
        return cls(path, writer, reader, limits or Limits())

    @property
    def writer(self) -> sqlite3.Connection:
        """The journal's connection. Raises CaError when the store is open for reading."""
        if self._writer is None:
            raise CaError(f"{self.path} is open for reading only")
        return self._writer

    def close(self) -> None:
        """Close both connections."""
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from None

    def head(self) -> tuple[Head, float]:
        """The audit log's head, and when it was written."""
        found = self._all("SELECT seq, hash, size, time FROM audit_head")
        return (Head(found[0][0], found[0][1], found[0][2]), found[0][3]) if found else (Head(), 0.0)

    def certificate(self, serial: bytes) -> Row | None:
        """By serial number (20 bytes)."""
        found = self._all(f"SELECT {_ROW_SQL} FROM certificates WHERE serial = ?", (serial,))
        return _row(found[0]) if found else None

    def by_fingerprint(self, fingerprint: bytes) -> Row | None:
        """By SHA-256 of its DER (32 bytes)."""
        found = self._all(f"SELECT {_ROW_SQL} FROM certificates WHERE fingerprint = ?", (fingerprint,))
        return _row(found[0]) if found else None

    def find(self, text: str) -> Row:
        """One certificate by serial number or fingerprint in hexadecimal (also the beginning, from 8 digits), or the newest
        of a subject. Raises NotFound, and BadRequest for a beginning that several have."""
        digits = text.replace(":", "").lower()
        if len(digits) >= 8 and all(c in "0123456789abcdef" for c in digits):
            for column, width in (("serial", 2 * SERIAL_BYTES), ("fingerprint", 64)):
                full = digits.zfill(width) if column == "serial" and len(digits) > 32 else digits
                low, high = full.ljust(width, "0"), full.ljust(width, "f")
                if len(full) > width:
                    continue
                found = self._all(
                    f"SELECT {_ROW_SQL} FROM certificates WHERE {column} BETWEEN ? AND ? LIMIT 2",
                    (bytes.fromhex(low), bytes.fromhex(high)),
                )
                if len(found) == 2:
                    raise BadRequest(f"several certificates' {column}s begin with {text}: give more digits")
                if found:
                    return _row(found[0])
        found = self._all(
            f"SELECT {_ROW_SQL} FROM certificates WHERE subject = ? ORDER BY issued_at DESC, rowid DESC LIMIT 1", (text,)
        )
        if not found:
            raise NotFound(f"no certificate has the serial number, fingerprint or subject {text[:80]!r}: see `stoq ca list`")
        return _row(found[0])

    def listing(
        self, *, now: float, subject: str = "", profile: str = "", live: bool = False, after: int = 0, limit: int = 100
    ) -> tuple[list[Row], int]:
        """Newest first, and where the next page goes on (0: nowhere). `after`: that number of the page before."""
        where, values = ["1"], list[object]()
        if subject:
            where.append("subject = ?")
            values.append(subject)
        if profile:
            where.append("profile = ?")
            values.append(profile)
        if live:
            where.append("not_after >= ? AND revocation IS NULL AND state = 'final'")
            values.append(now)
        if after:
            where.append("rowid < ?")
            values.append(after)
        limit = max(1, min(limit, MAX_PAGE))
        sql = f"SELECT rowid AS place, {_ROW_SQL} FROM certificates WHERE {' AND '.join(where)} ORDER BY rowid DESC LIMIT ?"
        found = self._all(sql, (*values, limit))
        rows = [_row_without_place(one) for one in found]
        return rows, int(found[-1]["place"]) if len(found) == limit else 0

    def revoked_of(self, issuer: int, now: float, grace_s: float) -> list[tuple[bytes, float, str]]:
        """Serial, time and reason of an issuer's revoked certificates that are not long expired: what a CRL lists."""
        found = self._all(
            "SELECT serial, revoked_at, reason FROM certificates INDEXED BY revocation_number "
            "WHERE revocation IS NOT NULL AND issuer = ? AND not_after >= ? ORDER BY revocation",
            (issuer, now - grace_s),
        )
        return [(row[0], row[1], row[2]) for row in found]

    def revocations(self, after: int, limit: int) -> list[Row]:
        """Revoked certificates whose revocation has a number above `after`, in order."""
        sql = f"SELECT {_ROW_SQL} FROM certificates WHERE revocation > ? ORDER BY revocation LIMIT ?"
        return [_row(found) for found in self._all(sql, (after, max(1, min(limit, MAX_PAGE))))]

    def tokens(self, now: float) -> list[TokenRow]:
        """Tokens that can still be used."""
        sql = f"SELECT {_TOKEN_SQL} FROM tokens WHERE used_at IS NULL AND expires >= ? ORDER BY expires"
        return [_token(found) for found in self._all(sql, (now,))]

    def token(self, token_hash: bytes) -> TokenRow | None:
        """A token by SHA-256 of its secret, also one that was used."""
        return get_token(self._reader, token_hash)

    def unfinished(self) -> list[Row]:
        """Issuances that never came to their end: what a crash leaves."""
        sql = f"SELECT {_ROW_SQL} FROM certificates WHERE state = 'precertificate' AND token IS NOT NULL"
        return [_row(found) for found in self._all(sql)]

    def counter(self, name: str) -> int:
        """A counter's value; 0 before its first use."""
        found = self._all("SELECT value FROM counters WHERE name = ?", (name,))
        return int(found[0][0]) if found else 0

    def count(self, now: float) -> dict[str, int]:
        """How many certificates: all, live, revoked; and tokens."""
        found = self._all(
            "SELECT (SELECT count(*) FROM certificates), "
            "(SELECT count(*) FROM certificates WHERE not_after >= ? AND revocation IS NULL AND state = 'final'), "
            "(SELECT count(*) FROM certificates WHERE revocation IS NOT NULL), "
            "(SELECT count(*) FROM tokens WHERE used_at IS NULL AND expires >= ?)",
            (now, now),
        )[0]
        return dict(zip(("certificates", "live", "revoked", "tokens"), map(int, found), strict=True))


def _row_without_place(found: sqlite3.Row) -> Row:
    values = dict(found)
    del values["place"]
    values.update(names=_texts(values["names"]), roles=_texts(values["roles"]), state=State(values["state"]))
    return Row(**values)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection


def _prepare(writer: sqlite3.Connection, path: Path) -> None:
    path.chmod(0o600)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = FULL")
    writer.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    if writer.execute("PRAGMA user_version").fetchone()[0] == 0:
        writer.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")


def _check_version(reader: sqlite3.Connection, path: Path) -> None:
    version = reader.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise CaError(f"{path} has format {version}; this program knows {SCHEMA_VERSION}")


# What follows runs inside the journal's transaction.


@contextmanager
def savepoint(db: sqlite3.Connection) -> Iterator[None]:
    """One decision's changes: all, or with an exception none."""
    db.execute("SAVEPOINT decision")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK TO decision")
            db.execute("RELEASE decision")
        raise
    db.execute("RELEASE decision")


def put_head(db: sqlite3.Connection, head: Head, now: float) -> None:
    """The audit log's head, with the decisions it ends in."""
    db.execute("INSERT OR REPLACE INTO audit_head VALUES (1, ?, ?, ?, ?)", (head.seq, head.hash, head.size, now))


def _count(db: sqlite3.Connection, table: str) -> int:
    """Rows of a table whose rowids are given in order and not far apart: by its newest and oldest."""
    found = db.execute(f"SELECT max(rowid), min(rowid) FROM {table}").fetchone()
    return 0 if found[0] is None else int(found[0]) - int(found[1]) + 1


def put_certificate(db: sqlite3.Connection, row: Row, limits: Limits) -> None:
    """A new certificate. Raises Busy at the bound."""
    if _count(db, "certificates") >= limits.certificates:
        raise Busy(f"the authority keeps {limits.certificates} certificates and not more: raise the limit")
    db.execute(_INSERT_ROW, _plain(getattr(row, name) for name in _ROW_FIELDS))


def finish_certificate(db: sqlite3.Connection, serial: bytes, der: bytes, fingerprint: bytes, scts: int) -> None:
    """The final certificate in its precertificate's place. Raises NotFound when there is none."""
    done = db.execute(
        "UPDATE certificates SET state = 'final', der = ?, fingerprint = ?, scts = ? "
        "WHERE serial = ? AND state = 'precertificate'",
        (der, fingerprint, scts, serial),
    )
    if done.rowcount != 1:
        raise NotFound(f"there is no precertificate {serial.hex()} to finish")


def is_revoked(db: sqlite3.Connection, serial: bytes) -> bool:
    """Was this certificate revoked (meanwhile)?"""
    found = db.execute("SELECT revocation FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return found is not None and found[0] is not None


def revoked_line(db: sqlite3.Connection, lineage: bytes) -> bool:
    """Was any certificate of a line of renewals revoked, other than because another took its place?"""
    sql = "SELECT 1 FROM certificates WHERE lineage = ? AND revocation IS NOT NULL AND reason != 'superseded' LIMIT 1"
    return db.execute(sql, (lineage,)).fetchone() is not None


def revoked_key(db: sqlite3.Connection, spki: bytes) -> bool:
    """Was a certificate for this key revoked because the key is no longer its holder's alone?"""
    sql = "SELECT 1 FROM certificates WHERE spki = ? AND revocation IS NOT NULL AND reason = 'keyCompromise' LIMIT 1"
    return db.execute(sql, (spki,)).fetchone() is not None


def next_counter(db: sqlite3.Connection, name: str, step: int = 1) -> int:
    """A counter's next value; it begins at 0."""
    found = db.execute(
        "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = value + ?2 RETURNING value",
        (name, step),
    ).fetchone()
    return int(found[0])


def set_revoked(db: sqlite3.Connection, serial: bytes, now: float, reason: str) -> int:
    """Mark a certificate as revoked; the revocation's number. Raises NotFound, and BadRequest when it was before."""
    found = db.execute("SELECT revocation FROM certificates WHERE serial = ?", (serial,)).fetchone()
    if found is None:
        raise NotFound(f"there is no certificate with the serial number {serial.hex()}")
    if found[0] is not None:
        raise BadRequest(f"the certificate {serial.hex()} was revoked before")
    number = next_counter(db, "revocation")
    db.execute(
        "UPDATE certificates SET revoked_at = ?, reason = ?, revocation = ? WHERE serial = ?",
        (now, reason, number, serial),
    )
    return number


def live_of_line(db: sqlite3.Connection, lineage: bytes, now: float, *, other_than: bytes) -> list[Row]:
    """The certificates of a line of renewals that are neither ended nor revoked, but for one."""
    sql = f"SELECT {_ROW_SQL} FROM certificates WHERE lineage = ? AND revocation IS NULL AND not_after >= ? AND serial != ?"
    cursor = db.cursor()
    cursor.row_factory = sqlite3.Row
    return [_row(found) for found in cursor.execute(sql, (lineage, now, other_than))]


def see_request(db: sqlite3.Connection, request_id: bytes, now: float, expires: float, limits: Limits) -> None:
    """Remember a request's id until `expires`. Raises Replayed when it came before, Busy at the bound."""
    sql = "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE expires < ? LIMIT 16)"
    gone = db.execute(sql, (now,)).rowcount
    try:
        db.execute("INSERT INTO requests VALUES (?, ?)", (request_id, expires))
    except sqlite3.IntegrityError:
        raise Replayed("this request came before: make a new one, with a new request id") from None
    count = next_counter(db, "requests", 1 - gone)
    if count > limits.requests:
        raise Busy(f"{count} requests in the last minutes, and not more can be told apart: try again later")


def put_token(db: sqlite3.Connection, token: TokenRow, now: float, limits: Limits) -> None:
    """A new join token. Raises Busy at the bound."""
    db.execute("DELETE FROM tokens WHERE expires < ?", (now - limits.expired_s,))
    live = db.execute("SELECT count(*) FROM tokens WHERE used_at IS NULL AND expires >= ?", (now,)).fetchone()[0]
    if live >= limits.tokens:
        raise Busy(f"{live} tokens wait to be used, and not more are kept: cancel some")
    db.execute(_INSERT_TOKEN, _plain(getattr(token, name) for name in _TOKEN_FIELDS))


def get_token(db: sqlite3.Connection, token_hash: bytes) -> TokenRow | None:
    """A token by SHA-256 of its secret."""
    found = db.execute(f"SELECT {_TOKEN_SQL} FROM tokens WHERE hash = ?", (token_hash,)).fetchone()
    return _token(found) if found else None


def use_token(db: sqlite3.Connection, token_hash: bytes, now: float, serial: bytes) -> bool:
    """Spend a token for a certificate; False: it was spent before, or is over."""
    done = db.execute(
        "UPDATE tokens SET used_at = ?, serial = ? WHERE hash = ? AND used_at IS NULL AND expires >= ?",
        (now, serial, token_hash, now),
    )
    return done.rowcount == 1


def release_token(db: sqlite3.Connection, serial: bytes) -> None:
    """Give back the token that an issuance spent which came to nothing, and forget that it did."""
    db.execute("UPDATE tokens SET used_at = NULL, serial = NULL WHERE serial = ?", (serial,))
    db.execute("UPDATE certificates SET token = NULL WHERE serial = ?", (serial,))


def cancel_token(db: sqlite3.Connection, token_hash: bytes) -> None:
    """Remove an unused token. Raises NotFound."""
    if db.execute("DELETE FROM tokens WHERE hash = ? AND used_at IS NULL", (token_hash,)).rowcount != 1:
        raise NotFound("there is no such unused token: see `stoq ca token --list`")


def prune(db: sqlite3.Connection, now: float, limits: Limits) -> int:
    """Forget certificates that expired long ago; how many went."""
    done = db.execute(
        "DELETE FROM certificates WHERE rowid IN (SELECT rowid FROM certificates WHERE not_after < ? LIMIT ?)",
        (now - limits.expired_s, PRUNE_ROWS),
    )
    return done.rowcount

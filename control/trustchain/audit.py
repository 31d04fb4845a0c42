"""The audit log: every decision of the authority, one JSON object a line, each line bound to the one before by its hash.

    line n   {"seq":n,"time":…,"actor":…,"operation":…,"decision":…,"subject":…,"detail":…,"prev":P,"hash":H}
    P        the hash of line n-1 (zeros before the first)
    H        SHA-256 over P's 32 bytes and the line's own bytes less `,"hash":"…"`

The head (number and hash of the last line, and the file's length there) also stands in the authority's database, written
in the transaction that the lines decide about. So: a line that is altered, removed, inserted or moved breaks the chain; a
tail that is removed leaves the file shorter than the head says; lines beyond the head are decisions that a crash kept from
taking effect, and only what lies beyond the head may ever be cut off (a line torn by the crash).

What this does not stop: somebody who can write both the file and the database can make a new history. The head is shown
by `stoq ca audit`; noted down elsewhere it binds them too.

One process writes: it holds flock(2) on the file.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from control.trustchain.errors import AuditBroken, CaError, StoreError

ZERO = bytes(32)
MAX_FIELD_CHARS = 512
MAX_DETAIL_CHARS = 2048
MAX_LINE_BYTES = 64 * 1024
_HASH_FIELD = b',"hash":"'
_HASH_TAIL = len(_HASH_FIELD) + 64 + 2  # …"}


class Decision(StrEnum):
    """What became of it."""

    GRANTED = "granted"
    REFUSED = "refused"
    DONE = "done"  # What was granted is complete.
    FAILED = "failed"  # What was granted did not come about.


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One decision: who, what, about what."""

    actor: str
    operation: str
    decision: Decision
    subject: str = ""
    detail: str = ""


class AuditLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it stands in the file; `time` is UTC, `prev` and `hash` are hexadecimal."""

    seq: int
    time: str
    actor: str
    operation: str
    decision: str
    subject: str
    detail: str
    prev: str
    hash: str = ""


class _Unhashed(msgspec.Struct, frozen=True):
    """A line before its hash is known; the same fields in the same order."""

    seq: int
    time: str
    actor: str
    operation: str
    decision: str
    subject: str
    detail: str
    prev: str


@dataclass(frozen=True, slots=True)
class Head:
    """The last line: its number (0: none yet), its hash, and the file's length in bytes with it."""

    seq: int = 0
    hash: bytes = ZERO
    size: int = 0


class Damage(StrEnum):
    """What happened to the first line that is not as it was written."""

    ALTERED = "altered"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TAIL_REMOVED = "tail removed"
    TORN = "torn"  # Not complete, and beyond the head: a crash; repaired when the authority starts.


@dataclass(frozen=True, slots=True)
class Finding:
    """The first damage: the file's line (from 1), the number that the record there has or should have, and what to say."""

    damage: Damage
    line: int
    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a verification found: `lines` that hold, the head they end in, and the first damage, if any."""

    lines: int
    head: Head
    finding: Finding | None

    @property
    def intact(self) -> bool:
        """Nothing is wrong. A line torn beyond the head is not either: it never counted."""
        return self.finding is None or self.finding.damage is Damage.TORN


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AuditLine)


def _cut(text: str, limit: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # Lone surrogates cannot be encoded.
    return text if len(text) <= limit else text[: limit - 1] + "…"


def utc(now: float) -> str:
    """A time (Unix seconds) as text."""
    return datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encode(record: AuditRecord, seq: int, time: str, prev: bytes) -> tuple[bytes, bytes]:
    """A line with its newline, and its hash."""
    body = _encoder.encode(
        _Unhashed(
            seq,
            time,
            _cut(record.actor, MAX_FIELD_CHARS),
            record.operation,
            record.decision.value,
            _cut(record.subject, MAX_FIELD_CHARS),
            _cut(record.detail, MAX_DETAIL_CHARS),
            prev.hex(),
        )
    )
    digest = hashlib.sha256(prev + body).digest()
    return body[:-1] + _HASH_FIELD + digest.hex().encode() + b'"}\n', digest


def _decode(raw: bytes) -> tuple[AuditLine, bytes] | None:
    """A line without its newline, and its hash; None: it is not one that we wrote."""
    try:
        line = _decoder.decode(raw)
        prev = bytes.fromhex(line.prev)
    except (msgspec.MsgspecError, ValueError):
        return None
    body = raw[:-_HASH_TAIL] + b"}"
    digest = hashlib.sha256(prev + body).digest()
    if raw[-_HASH_TAIL:] != _HASH_FIELD + digest.hex().encode() + b'"}':
        return None
    return line, digest


def _lines(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The file's lines with their newlines; a line that is too long comes in pieces, and then does not hold."""
    with path.open("rb") as file:
        file.seek(offset)
        while raw := file.readline(MAX_LINE_BYTES):
            yield raw


def read_audit(path: Path, *, last: int | None = None) -> list[AuditLine]:
    """The lines that can be read, oldest first; `last`: only so many. Nothing is verified. Raises CaError."""
    found: list[AuditLine] = []
    try:
        for raw in _lines(path):
            try:
                found.append(_decoder.decode(raw))
            except msgspec.MsgspecError:
                continue
            if last is not None and len(found) > 2 * last:
                del found[:-last]
    except OSError as error:
        raise CaError(f"cannot read {path}: {error.strerror}") from None
    return found if last is None else found[-last:] if last else []


def verify_audit(path: Path, head: Head | None = None) -> AuditReport:
    """Follow the chain from the first line; `head`: what the database says the file reaches to. Raises CaError when the
    file cannot be read."""
    try:
        return _verify(path, head)
    except OSError as error:
        raise CaError(f"cannot read {path}: {error.strerror}") from None


def _verify(path: Path, head: Head | None) -> AuditReport:
    at, before = Head(), ZERO
    for number, raw in enumerate(_lines(path), 1):
        found = _decode(raw[:-1]) if raw.endswith(b"\n") else None
        if found is None:
            beyond = head is not None and at.seq >= head.seq
            if not raw.endswith(b"\n") and len(raw) < MAX_LINE_BYTES and beyond:
                text = f"line {number} is torn: a crash cut it before it counted; it goes when the authority starts"
                return AuditReport(at.seq, at, Finding(Damage.TORN, number, at.seq + 1, text))
            return _damaged(at, Damage.ALTERED, number, at.seq + 1, "its bytes do not match its hash")
        line, digest = found
        prev = bytes.fromhex(line.prev)
        if line.seq != at.seq + 1 or prev != at.hash:
            return _out_of_line(path, number, line, at, before)
        if head is not None and line.seq == head.seq and digest != head.hash:
            return _damaged(at, Damage.ALTERED, number, line.seq, "the database holds another hash for it")
        before, at = at.hash, Head(line.seq, digest, at.size + len(raw))
    if head is not None and at.seq < head.seq:
        text = f"the file ends at record {at.seq}, the database says that record {head.seq} was written"
        return AuditReport(at.seq, at, Finding(Damage.TAIL_REMOVED, at.seq + 1, at.seq + 1, text))
    return AuditReport(at.seq, at, None)


def _damaged(at: Head, damage: Damage, number: int, seq: int, why: str) -> AuditReport:
    return AuditReport(at.seq, at, Finding(damage, number, seq, f"line {number} (record {seq}) was {damage}: {why}"))


def _out_of_line(path: Path, number: int, line: AuditLine, at: Head, before: bytes) -> AuditReport:
    """Line `number` is whole, but does not follow record `at.seq`, which follows a line with hash `before`."""
    expected = at.seq + 1
    if line.seq > expected:
        rest = {found[0].seq for raw in _lines(path) if (found := _decode(raw.rstrip(b"\n"))) is not None}
        if expected in rest:
            return _damaged(at, Damage.REORDERED, number, expected, f"record {line.seq} stands in its place")
        return _damaged(at, Damage.REMOVED, number, expected, f"record {line.seq} follows record {at.seq}")
    if line.seq == at.seq and bytes.fromhex(line.prev) == before and number > 1:
        why = f"the next line is record {line.seq} too, and follows the same one"
        return _damaged(at, Damage.INSERTED, number - 1, at.seq, why)
    if line.seq < expected:
        return _damaged(at, Damage.INSERTED, number, line.seq, f"record {line.seq} stands earlier already")
    if number == 1:
        return _damaged(at, Damage.ALTERED, 1, 1, "the first record follows no other")
    return _damaged(at, Damage.ALTERED, number - 1, at.seq, "the line after it holds another hash for it")


class AuditLog:
    """The writer. Blocking; `control.trustchain.journal` calls it for many decisions at once."""

    def __init__(self, path: Path, descriptor: int, head: Head, repaired: int) -> None:
        self.path = path
        self.head = head
        self.repaired_bytes = repaired  # Cut off when it was opened: what a crash had torn.
        self._descriptor = descriptor
        self._failed = ""

    @classmethod
    def open(cls, path: Path, head: Head, *, create: bool = False) -> AuditLog:
        """Take the file over, as far as `head` at least. Raises CaError when another process has it or it cannot be
        opened, AuditBroken when it does not hold the head."""
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            raise AuditBroken(f"the audit log {path} is gone: bring it back") from None
        except OSError as error:
            raise CaError(f"cannot open the audit log {path}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CaError(
                    f"{path.parent} is in use by another process (`stoq ca serve`?): ask it by "
                    "`stoq ca remote --home HOME`, with a home that joined as operator, or stop it"
                ) from None
            reached, repaired = _recover(path, descriptor, head)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, reached, repaired)

    def extend(self, records: Sequence[AuditRecord], now: float) -> Head:
        """Append, durable when this returns; the new head. Raises StoreError: then nothing was appended."""
        if self._failed:
            raise StoreError(self._failed)
        head, time, lines = self.head, utc(now), []
        seq, digest = head.seq, head.hash
        for record in records:
            seq += 1
            raw, digest = _encode(record, seq, time, digest)
            lines.append(raw)
        data = b"".join(lines)
        try:
            _write_all(self._descriptor, data)
        except OSError as error:
            self._take_back(head)
            raise StoreError(_why(self.path, error)) from None
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            # What is on the disk now is unknown; only reading it anew can tell.
            self._take_back(head)
            self._failed = f"{self.path} could not be made durable earlier ({error.strerror}): restart the authority"
            raise StoreError(_why(self.path, error)) from None
        self.head = Head(seq, digest, head.size + len(data))
        return self.head

    def _take_back(self, head: Head) -> None:
        try:
            os.ftruncate(self._descriptor, head.size)
        except OSError as error:
            self._failed = f"{self.path} cannot be cut back ({error.strerror}): restart the authority"

    def close(self) -> None:
        """Give the file up."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _why(path: Path, error: OSError) -> str:
    advice = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"refused, because the audit log {path} cannot be written ({error.strerror}){advice}"


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _recover(path: Path, descriptor: int, head: Head) -> tuple[Head, int]:
    """Where the file really ends, at or after `head`, and how many bytes beyond it were torn and are cut off now."""
    size = os.fstat(descriptor).st_size
    if not _holds(descriptor, size, head):
        raise AuditBroken(
            f"{path} does not hold record {head.seq} as the database has it: lines were removed or altered; "
            "`stoq ca audit --verify` names the first one"
        )
    at = head
    for raw in _lines(path, head.size):
        found = _decode(raw[:-1]) if raw.endswith(b"\n") else None
        if found is None or found[0].seq != at.seq + 1 or bytes.fromhex(found[0].prev) != at.hash:
            break
        at = Head(at.seq + 1, found[1], at.size + len(raw))
    if at.size < size:
        try:
            os.ftruncate(descriptor, at.size)
            os.fsync(descriptor)
        except OSError as error:
            raise CaError(f"cannot repair {path}: {error.strerror}") from None
    return at, size - at.size


def _holds(descriptor: int, size: int, head: Head) -> bool:
    """Does the file have the head's line where the head says?"""
    if head.seq == 0:
        return True
    if size < head.size:
        return False
    begin = max(0, head.size - MAX_LINE_BYTES)
    window = os.pread(descriptor, head.size - begin, begin)
    raw = window[window.rfind(b"\n", 0, -1) + 1 :]
    found = _decode(raw[:-1]) if raw.endswith(b"\n") else None
    return found is not None and found[0].seq == head.seq and found[1] == head.hash

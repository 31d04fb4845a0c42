"""The audit log: every way to alter it is found and named, and a crash is not taken for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from control.trustchain.audit import (
    ZERO,
    AuditLog,
    AuditRecord,
    Damage,
    Decision,
    Head,
    read_audit,
    verify_audit,
)
from control.trustchain.errors import AuditBroken, CaError

COUNT = 12


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, Head]:
    """Twelve records."""
    path = tmp_path / "audit.jsonl"
    audit = AuditLog.open(path, Head(), create=True)
    for number in range(COUNT // 3):
        subject = f"node {number}"
        records = [AuditRecord(f"actor {n}", "ca.issue", Decision.GRANTED, subject, "…\n\x00") for n in range(3)]
        audit.extend(records, 1e9 + number)
    audit.close()
    return path, audit.head


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _rehash(line: bytes, **change: object) -> bytes:
    """A line changed by somebody who knows how the hash is made."""
    fields = {**json.loads(line), **change}
    del fields["hash"]
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(bytes.fromhex(str(fields["prev"])) + body).hexdigest()
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}\n'


def test_what_is_written_holds(log: tuple[Path, Head]) -> None:
    path, head = log
    report = verify_audit(path, head)
    assert (report.lines, report.head, report.finding, report.intact) == (COUNT, head, None, True)
    assert [line.seq for line in read_audit(path, last=3)] == [10, 11, 12]
    assert read_audit(path)[0].prev == ZERO.hex()
    # The helper that forges lines makes what the log itself makes: else the tests below would prove nothing.
    assert _rehash(_lines(path)[4]) == _lines(path)[4]


Edit = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("edit", "damage", "seq"),
    [
        (lambda x: [*x[:4], x[4].replace(b"node 1", b"node 7"), *x[5:]], Damage.ALTERED, 5),
        (lambda x: [*x[:4], _rehash(x[4], subject="node 7"), *x[5:]], Damage.ALTERED, 5),
        (lambda x: [_rehash(x[0], subject="node 7"), *x[1:]], Damage.ALTERED, 1),
        (lambda x: [*x[:-1], _rehash(x[-1], subject="node 7")], Damage.ALTERED, COUNT),
        (lambda x: [*x[:4], b"not a record\n", *x[5:]], Damage.ALTERED, 5),
        (lambda x: [*x[:4], x[4].rstrip(b"\n"), *x[5:]], Damage.ALTERED, 5),
        (lambda x: [*x[:4], *x[5:]], Damage.REMOVED, 5),
        (lambda x: x[1:], Damage.REMOVED, 1),
        (lambda x: [*x[:4], *x[9:]], Damage.REMOVED, 5),
        (lambda x: x[:-1], Damage.TAIL_REMOVED, COUNT),
        (lambda x: [], Damage.TAIL_REMOVED, 1),
        (lambda x: x[:5], Damage.TAIL_REMOVED, 6),
        (lambda x: [*x[:4], x[5], x[4], *x[6:]], Damage.REORDERED, 5),
        (lambda x: [x[-1], *x[:-1]], Damage.REORDERED, 1),
        (lambda x: [*x[:6], x[2], *x[6:]], Damage.INSERTED, 3),
        (lambda x: [*x[:4], _rehash(x[4], subject="forged"), *x[4:]], Damage.INSERTED, 5),
        (lambda x: [*x[:-1], x[-1][:40]], Damage.ALTERED, COUNT),
    ],
)
def test_every_change_is_found_and_named(log: tuple[Path, Head], edit: Edit, damage: Damage, seq: int) -> None:
    path, head = log
    path.write_bytes(b"".join(edit(_lines(path))))
    report = verify_audit(path, head)
    assert not report.intact
    assert report.finding is not None
    assert (report.finding.damage, report.finding.seq) == (damage, seq)


def test_any_flipped_bit_is_found(log: tuple[Path, Head]) -> None:
    path, head = log
    data = path.read_bytes()
    for at in range(0, len(data), 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not verify_audit(path, head).intact, at


def test_a_rewritten_history_does_not_match_the_head(log: tuple[Path, Head]) -> None:
    path, head = log
    forged, prev = [], ZERO
    for line in _lines(path):
        forged.append(_rehash(line, actor="somebody else", prev=prev.hex()))
        prev = bytes.fromhex(json.loads(forged[-1])["hash"])
    path.write_bytes(b"".join(forged))
    assert verify_audit(path).intact  # The chain alone cannot know.
    report = verify_audit(path, head)
    assert report.finding is not None and report.finding.damage is Damage.ALTERED
    with pytest.raises(AuditBroken, match="record 12"):
        AuditLog.open(path, head)


def test_a_removed_tail_keeps_the_authority_shut(log: tuple[Path, Head]) -> None:
    path, head = log
    path.write_bytes(b"".join(_lines(path)[:-1]))
    with pytest.raises(AuditBroken, match="removed or altered"):
        AuditLog.open(path, head)
    path.unlink()
    with pytest.raises(AuditBroken, match="gone"):
        AuditLog.open(path, head)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_line_beyond_the_head_is_repaired(log: tuple[Path, Head], cut: int) -> None:
    path, head = log
    whole = path.read_bytes()
    audit = AuditLog.open(path, head)
    audit.extend([AuditRecord("a", "ca.issue", Decision.GRANTED)] * 2, 1e9)
    audit.close()
    first_end = path.read_bytes().index(b"\n", len(whole)) + 1
    path.write_bytes(path.read_bytes()[: first_end + cut])
    report = verify_audit(path, head)
    assert report.intact and report.finding is not None and report.finding.damage is Damage.TORN
    audit = AuditLog.open(path, head)
    assert audit.repaired_bytes == cut
    assert audit.head.seq == COUNT + 1  # Whole lines beyond the head stay: decisions that never took effect.
    audit.extend([AuditRecord("a", "ca.issue", Decision.REFUSED)], 1e9)
    audit.close()
    assert verify_audit(path, audit.head).lines == COUNT + 2
    # Torn within what counted it is no crash, and nothing is cut off.
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(AuditBroken):
        AuditLog.open(path, audit.head)


def test_only_one_writes(log: tuple[Path, Head]) -> None:
    path, head = log
    first = AuditLog.open(path, head)
    with pytest.raises(CaError, match="in use by another process"):
        AuditLog.open(path, head)
    first.close()
    AuditLog.open(path, head).close()


def test_what_callers_say_cannot_break_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog.open(path, Head(), create=True)
    nasty = ['x","seq":9', "\n", "\ud800", "a" * 100_000, "\x1b[2J", '{"hash":"'] + [chr(n) for n in range(32)]
    audit.extend([AuditRecord(text, "ca.issue", Decision.REFUSED, text, text) for text in nasty], 1e9)
    audit.close()
    assert verify_audit(path, audit.head).lines == len(nasty)
    assert max(map(len, _lines(path))) < 64 * 1024

"""What a monitor may have to say of a log, and the evidence it keeps, which others can hold against the log's key
without asking the log or trusting the monitor (`check_evidence`).

Not all evidence can convince a third party: a head is signed, what get-entries answers is not. What does:

    two-roots, rolled-back    two signed heads that no append-only tree has
    bad-consistency-proof     two signed heads, and hashes that lead to the later one and to another earlier one
    malformed-entry           a leaf that is no MerkleTreeLeaf, and the path from it to a signed root

Some shows a debt, and only asking the log shows whether it is paid: an SCT, and a head signed after the maximum merge
delay, are had of honest logs too (promise-broken). The rest says what a monitor was told; where a path leads from the entry
to a signed root, it shows at least that the log has the entry: enough to hold against who issued it.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from control.ctlog import merkle
from control.ctlog.errors import LogError, Malformed, ProofError
from control.ctlog.note import TreeHead
from control.ctlog.structs import LogKey, decode_leaf, decode_sct, key_id, verify_sct

MAX_EVIDENCE_BYTES = 16 << 20


class Alert(StrEnum):
    """One kind of alert."""

    UNEXPECTED_CERTIFICATE = "unexpected-certificate"  # For a watched name, and nobody announced it.
    MALFORMED_ENTRY = "malformed-entry"  # A leaf or a certificate that cannot be parsed.
    LEAF_MISMATCH = "leaf-mismatch"  # The leaf is not what is logged of the certificate beside it.
    OUTSIDE_WINDOW = "outside-window"  # A certificate that ends outside the log's shard.
    BAD_SIGNATURE = "bad-signature"  # A tree head that the log's key did not sign.
    TWO_ROOTS = "two-roots"  # Two roots of one size.
    ROLLED_BACK = "rolled-back"  # A later head of a smaller tree, or a larger tree at no later time.
    OLDER_HEAD = "older-head"  # A head that was current once is given out again.
    HEAD_TOO_OLD = "head-too-old"  # The newest head is older than the maximum merge delay.
    HEAD_FROM_FUTURE = "head-from-future"
    NO_CONSISTENCY_PROOF = "no-consistency-proof"  # None was given.
    BAD_CONSISTENCY_PROOF = "bad-consistency-proof"  # The one that was given does not hold.
    WITHHELD_ENTRIES = "withheld-entries"  # Entries of a signed tree are not given out.
    WRONG_ENTRIES = "wrong-entries"  # What is given out does not hash to the signed root.
    PROMISE_BROKEN = "promise-broken"  # There is an SCT and no entry.


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed tree head in a file: `note.TreeHead`."""

    timestamp: int
    size: int
    root: bytes
    signature: bytes
    algorithm: tuple[int, int]

    @classmethod
    def of(cls, head: TreeHead) -> HeadRecord:
        """To be written."""
        return cls(head.timestamp, head.size, head.root, head.signature, head.algorithm)

    @property
    def head(self) -> TreeHead:
        """As it was."""
        return TreeHead(self.timestamp, self.size, self.root, self.signature, self.algorithm)


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An alert and what it rests on; bytes in base64 when written. `seen` is the monitor's clock, seconds since 1970."""

    alert: Alert
    text: str
    log: str  # Where it was asked.
    log_id: bytes
    seen: float
    heads: tuple[HeadRecord, ...] = ()  # In the order in which they were met.
    proof: tuple[bytes, ...] = ()  # The consistency proof that was given for them.
    left: bytes = b""  # The root of the smaller size's leaves in the larger tree, where the proof leaves it out.
    index: int | None = None
    leaf: bytes = b""  # Of the entry: its MerkleTreeLeaf …
    path: tuple[bytes, ...] = ()  # … the hashes from it to the root of the last head, if the log gave them …
    submitted: bytes = b""  # … what was submitted, DER …
    chain: tuple[bytes, ...] = ()  # … and its chain, DER.
    sct: bytes = b""  # The promise that was not kept, for `leaf`.
    mmd: float = 0.0  # Seconds; for promises.
    format: int = 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """What evidence shows. `proves`: anybody who has the log's key has to agree that it misbehaved. `owes`: the leaf hash
    that the log has to prove to be below the last head, or else it misbehaved."""

    proves: bool
    text: str
    owes: bytes = b""


def contradiction(one: TreeHead, other: TreeHead) -> tuple[Alert, str] | None:
    """Why no append-only log signs both heads (RFC 6962 section 3.5: each is later than the one before); None: it may."""
    if one.size == other.size:
        if one.root == other.root:
            return None
        return Alert.TWO_ROOTS, f"it signed two roots for size {one.size}: {_short(one.root)} and {_short(other.root)}"
    small, large = (one, other) if one.size < other.size else (other, one)
    if small.timestamp < large.timestamp:
        return None
    when = "the same time" if small.timestamp == large.timestamp else "a later time"
    text = f"it signed size {large.size} for {utc(large.timestamp)} and size {small.size} for {when}, {utc(small.timestamp)}"
    return Alert.ROLLED_BACK, text


def utc(milliseconds: int) -> str:
    """A timestamp for people; any number that fits a timestamp is taken."""
    try:
        time = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"
    return f"{time:%Y-%m-%d %H:%M:%S}.{milliseconds % 1000:03d} UTC"


def _short(data: bytes) -> str:
    return f"{data.hex()[:16]}…"


def consistency_roots(old: int, new: int, proof: Sequence[bytes], left: bytes) -> tuple[bytes, bytes]:
    """The roots of both sizes that a consistency proof leads to. `left`: the smaller one, which the proof leaves out when
    `old` is a power of two. Raises ProofError for a proof of the wrong length."""
    plan = merkle.consistency_plan(old, new)
    if len(proof) != len(plan.ranges):
        raise ProofError(f"a consistency proof of {len(proof)} hashes; there are {len(plan.ranges)}")
    if any(len(one) != merkle.HASH_BYTES for one in (*proof, left or merkle.EMPTY_ROOT)):
        # Else a byte could move from one child to the other, and anybody could make this of an honest log's hashes.
        raise ProofError("the consistency proof has hashes that are not 32 bytes")
    parts = {
        (nodes[0][1] << nodes[0][0], (nodes[-1][1] + 1) << nodes[-1][0]): value
        for nodes, value in zip(plan.ranges, proof, strict=True)
    }
    if old & (old - 1) == 0:
        parts[0, old] = left

    def assemble(begin: int, end: int) -> bytes:
        found = parts.get((begin, end))
        if found is not None:
            return found
        if end - begin < 2:
            raise ProofError("the consistency proof has not the hashes that it should have")
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
        return merkle.node_hash(assemble(begin, middle), assemble(middle, end))

    return assemble(0, old), assemble(0, new)


def forks(evidence: Evidence) -> bool:
    """Do the hashes lead to the larger head, and to another tree of the smaller size?"""
    if len(evidence.heads) != 2:
        return False
    small, large = sorted((one.head for one in evidence.heads), key=lambda one: one.size)
    if not 0 < small.size < large.size:
        return False
    try:
        old, new = consistency_roots(small.size, large.size, evidence.proof, evidence.left)
    except ProofError:
        return False
    return new == large.root and old != small.root


def check_evidence(evidence: Evidence, key: LogKey) -> Judgement:
    """What the evidence shows to who has only the log's key. Raises ProofError when it does not hold together."""
    if evidence.log_id != key_id(key):
        raise ProofError(f"the evidence is of log {evidence.log_id.hex()[:16]}, the key of {key_id(key).hex()[:16]}")
    heads = [one.head for one in evidence.heads]
    if evidence.alert is Alert.BAD_SIGNATURE:
        return Judgement(False, "anybody can make a head that the log did not sign: nothing is shown of the log")
    for head in heads:
        head.verify(key)
    if len(heads) == 2 and (found := contradiction(*heads)) is not None:
        return Judgement(True, found[1])
    if forks(evidence):
        sizes = sorted(head.size for head in heads)
        return Judgement(True, f"the tree of {sizes[1]} that it signed does not go on the tree of {sizes[0]} that it signed")
    if evidence.alert is Alert.PROMISE_BROKEN:
        return _broken_promise(evidence, heads, key)
    if heads and evidence.leaf and evidence.index is not None and (evidence.path or heads[-1].size == 1):
        return _logged(evidence, evidence.index, heads[-1])
    return Judgement(False, "signatures hold, but only who asked the log knows what it answered")


def _broken_promise(evidence: Evidence, heads: Sequence[TreeHead], key: LogKey) -> Judgement:
    sct = decode_sct(evidence.sct)
    entry, timestamp, extensions = decode_leaf(evidence.leaf)
    if (timestamp, extensions) != (sct.timestamp, sct.extensions):
        raise ProofError("the leaf is not the one that the SCT promises")
    verify_sct(sct, entry, key)
    if not heads or heads[-1].timestamp < sct.timestamp + evidence.mmd * 1000:
        return Judgement(False, "the log signed no head yet that must have what it promised")
    owed = merkle.leaf_hash(evidence.leaf)
    text = f"the log promised the entry {owed.hex()}: it owes a proof that its tree of {heads[-1].size} has it; ask for that"
    return Judgement(False, text, owed)


def _logged(evidence: Evidence, index: int, head: TreeHead) -> Judgement:
    merkle.verify_inclusion(index, head.size, merkle.leaf_hash(evidence.leaf), evidence.path, head.root)
    text = f"entry {index} of the tree of {head.size} that the log signed is this one"
    try:
        decode_leaf(evidence.leaf)
    except Malformed as error:
        return Judgement(True, f"{text}, which RFC 6962 does not know: {error}")
    return Judgement(False, text)


def read_evidence(data: bytes) -> Evidence:
    """Raises Malformed."""
    try:
        return msgspec.json.decode(data, type=Evidence)
    except msgspec.MsgspecError as error:
        raise Malformed(f"this is no evidence of `stoq ct watch`: {error}") from None


class EvidenceFiles:
    """A directory that evidence is kept in, a file each; `most`, and no more are written. Raises LogError."""

    def __init__(self, directory: Path, most: int = 10_000) -> None:
        self._directory = directory
        self._most = most
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._count = sum(1 for _ in directory.glob("*.json"))
        except OSError as error:
            raise LogError(f"evidence cannot be kept in {directory}: {error.strerror}") from None

    def keep(self, evidence: Evidence) -> Path | None:
        """Write it durably; None: there are too many already."""
        data = msgspec.json.format(msgspec.json.encode(evidence)) + b"\n"
        if self._count >= self._most or len(data) > MAX_EVIDENCE_BYTES:
            return None
        when = f"{datetime.datetime.fromtimestamp(evidence.seen, datetime.UTC):%Y%m%dT%H%M%S}"
        name = f"{when}-{evidence.alert}-{hashlib.sha256(data).hexdigest()[:12]}.json"
        replace_file(self._directory / name, data)
        self._count += 1
        return self._directory / name


def replace_file(path: Path, data: bytes) -> None:
    """The whole file or what was there before, whenever the power goes. Raises LogError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LogError(f"cannot write {path}: {error.strerror}") from None

"""Signed notes and checkpoints: C2SP signed-note, tlog-checkpoint, tlog-cosignature, and static-ct-api's signature.

    example.com/2026h2          origin: the log's name
    4711                        size
    base64 of the root hash
                                an empty line
    — example.com/2026h2 base64(key id, 4 bytes || signature)

A log signs with type 5: a time in milliseconds and RFC 6962's tree head signature, so that one signature serves as
checkpoint and as STH; and with type 1, plain Ed25519 over the text, which is what witnesses know logs by. Witnesses sign
with type 4, Ed25519 over a time in seconds and the text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from control.ctlog.encoding import Reader, uint
from control.ctlog.errors import Malformed, ProofError
from control.ctlog.structs import (
    HASH_BYTES,
    LogKey,
    decode_signed,
    digitally_signed,
    key_id,
    tree_head_input,
    verify_signature,
)

ED25519 = 1
COSIGNATURE_V1 = 4
RFC6962 = 5
KEY_ID_BYTES = 4
MAX_NOTE_BYTES = 64 << 10
MAX_SIGNATURES = 64
DASH = "— "


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What is signed: milliseconds, leaves, root hash; and RFC 6962's signature over it (DER) with its algorithm."""

    timestamp: int
    size: int
    root: bytes
    signature: bytes
    algorithm: tuple[int, int] = (4, 3)

    @property
    def signed(self) -> bytes:
        """TreeHeadSignature: a DigitallySigned struct, as get-sth gives it."""
        return digitally_signed(self.signature, self.algorithm)

    def verify(self, key: LogKey) -> None:
        """Raises ProofError."""
        data = tree_head_input(self.timestamp, self.size, self.root)
        verify_signature(key, self.algorithm, self.signature, data, f"the tree head of size {self.size}")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        """As it stands in the note, with its newline."""
        return f"{DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures. The text ends with a newline."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(one.line for one in self.signatures)).encode()


def check_name(name: str) -> str:
    """A key's name: not empty, without spaces and plus. Raises Malformed."""
    if not name or len(name) > 200 or "+" in name or any(c.isspace() or not c.isprintable() for c in name):
        raise Malformed(f"{name!r} is not a name for a log's origin: printable, no spaces, no plus")
    return name


def note_key_id(name: str, kind: int, public: bytes) -> bytes:
    """A signed note's key ID (4 bytes)."""
    return hashlib.sha256(name.encode() + b"\n" + bytes((kind,)) + public).digest()[:KEY_ID_BYTES]


def decode_note(data: bytes) -> Note:
    """A note's parts; no signature is checked. Raises Malformed."""
    if len(data) > MAX_NOTE_BYTES:
        raise Malformed(f"a note of {len(data)} bytes; {MAX_NOTE_BYTES} are taken")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise Malformed("a note that is not UTF-8") from None
    if any(ord(c) < 0x20 and c != "\n" for c in whole):
        raise Malformed("a note with control characters")
    at = whole.rfind("\n\n")
    if at < 0 or not whole.endswith("\n"):
        raise Malformed("a note without signatures")
    text, lines = whole[: at + 1], whole[at + 2 :].splitlines()
    if not 1 <= len(lines) <= MAX_SIGNATURES:
        raise Malformed(f"a note with {len(lines)} signatures; 1 to {MAX_SIGNATURES} are taken")
    return Note(text, tuple(decode_signature(line) for line in lines))


def decode_signature(line: str) -> NoteSignature:
    """One signature line, without its newline. Raises Malformed."""
    name, _, encoded = line.removeprefix(DASH).partition(" ")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not line.startswith(DASH) or not name or len(raw) <= KEY_ID_BYTES:
        raise Malformed("a note's signature line is malformed")
    return NoteSignature(name, raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:])


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The text that a checkpoint's signatures cover."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def encode_checkpoint(
    origin: str, head: TreeHead, key: LogKey, witnessed: ed25519.Ed25519PrivateKey | None = None
) -> bytes:
    """A log's checkpoint; signed with the key `witnessed`, too, if there is one."""
    text = checkpoint_text(origin, head.size, head.root)
    signatures = [
        NoteSignature(origin, note_key_id(origin, RFC6962, key_id(key)), uint(head.timestamp, 8) + head.signed)
    ]
    if witnessed is not None:
        identifier = note_key_id(origin, ED25519, witnessed.public_key().public_bytes_raw())
        signatures.append(NoteSignature(origin, identifier, witnessed.sign(text.encode())))
    return Note(text, tuple(signatures)).encode()


def log_vkey(origin: str, key: ed25519.Ed25519PublicKey) -> str:
    """A log's verifier key as witnesses want it (C2SP signed-note, type 1)."""
    raw = key.public_bytes_raw()
    return f"{origin}+{note_key_id(origin, ED25519, raw).hex()}+{base64.b64encode(bytes((ED25519,)) + raw).decode()}"


def parse_checkpoint(text: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint's text; further lines are extensions. Raises Malformed."""
    lines = text.split("\n")
    try:
        origin, number, encoded = lines[:3]
        root = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed("a checkpoint is origin, size and root hash, a line each") from None
    if not (number.isdigit() and number.isascii()) or len(number) > 19 or str(int(number)) != number:
        raise Malformed("a checkpoint's size is not a number")
    if len(root) != HASH_BYTES:
        raise Malformed("a checkpoint's root hash is not 32 bytes")
    return origin, int(number), root


def open_checkpoint(data: bytes, origin: str, key: LogKey) -> TreeHead:
    """A checkpoint of this log, its signature checked. Raises Malformed or ProofError."""
    note = decode_note(data)
    found, size, root = parse_checkpoint(note.text)
    if found != origin:
        raise ProofError(f"a checkpoint of {found}, not of {origin}")
    if note.text != checkpoint_text(origin, size, root):
        # RFC 6962's signature covers size and root alone: whatever else stands there is nobody's word.
        raise Malformed("a checkpoint with more than origin, size and root, or with these in another form")
    wanted = note_key_id(origin, RFC6962, key_id(key))
    for one in note.signatures:
        if one.name == origin and one.key_id == wanted:
            reader = Reader(one.signature, "the checkpoint's signature")
            timestamp = reader.uint(8)
            algorithm, signature = decode_signed(reader.take(reader.left))
            head = TreeHead(timestamp, size, root, signature, algorithm)
            head.verify(key)
            return head
    raise ProofError(f"the checkpoint carries no signature of {origin}'s key")


# ---- witnesses ----


def _cosigned(timestamp: int, text: str) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def cosign(name: str, key: ed25519.Ed25519PrivateKey, text: str, timestamp: int) -> NoteSignature:
    """A witness's signature over a checkpoint's text, at a time in seconds."""
    identifier = note_key_id(name, COSIGNATURE_V1, key.public_key().public_bytes_raw())
    return NoteSignature(name, identifier, uint(timestamp, 8) + key.sign(_cosigned(timestamp, text)))


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness by its verifier key: `name+keyid+base64(type || Ed25519 key)` (C2SP signed-note)."""

    name: str
    key: ed25519.Ed25519PublicKey

    @property
    def key_id(self) -> bytes:
        """Of its signatures."""
        return note_key_id(self.name, COSIGNATURE_V1, self.key.public_bytes_raw())

    @property
    def vkey(self) -> str:
        """As people exchange it."""
        encoded = base64.b64encode(bytes((COSIGNATURE_V1,)) + self.key.public_bytes_raw()).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, vkey: str) -> Witness:
        """Raises Malformed."""
        name, _, rest = vkey.strip().partition("+")
        given, _, encoded = rest.partition("+")
        try:
            raw = base64.b64decode(encoded, validate=True)
            # Type 1 is plain Ed25519: the same key, as some tools still name it.
            if len(raw) != 33 or raw[0] not in (ED25519, COSIGNATURE_V1):
                raise ValueError
            witness = cls(check_name(name), ed25519.Ed25519PublicKey.from_public_bytes(raw[1:]))
        except (ValueError, binascii.Error):
            raise Malformed(f"{vkey!r} is no witness's key: name+id+base64, type 4") from None
        if given not in (witness.key_id.hex(), note_key_id(name, raw[0], raw[1:]).hex()):
            raise Malformed(f"the key id in {vkey!r} is not that of the key")
        return witness

    def verify(self, signature: NoteSignature, text: str) -> int:
        """That this witness has seen `text`; returns when, in seconds. Raises Malformed or ProofError."""
        if signature.name != self.name or signature.key_id != self.key_id:
            raise ProofError(f"a signature of {signature.name}, not of {self.name}")
        reader = Reader(signature.signature, "the cosignature")
        timestamp, raw = reader.uint(8), reader.take(64)
        reader.end()
        try:
            self.key.verify(raw, _cosigned(timestamp, text))
        except InvalidSignature:
            raise ProofError(f"the cosignature is not signed by {self.name}'s key") from None
        return timestamp

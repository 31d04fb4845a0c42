"""control.ctlog.note: signed notes and checkpoints as C2SP specifies them, put together here by hand."""

from __future__ import annotations

import base64
import hashlib
import random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.errors import Malformed, ProofError
from control.ctlog.note import (
    Note,
    NoteSignature,
    Witness,
    check_name,
    checkpoint_text,
    cosign,
    decode_note,
    encode_checkpoint,
    note_key_id,
    open_checkpoint,
    parse_checkpoint,
)
from control.ctlog.signer import Signer
from tests.ctlog.world import ORIGIN, new_key

ROOT = bytes(range(32))
ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
# Of the all-zero seed, as RFC 8032 makes it.
PUBLIC = bytes.fromhex("3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")


def signer() -> Signer:
    """A log's."""
    return Signer(ORIGIN, new_key())


def test_the_example_key_of_the_specification() -> None:
    """signed-note: the verifier key of the Go checksum database, whose id is public knowledge."""
    name, given, encoded = "sum.golang.org", "033de0ae", "Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    raw = base64.b64decode(encoded)
    assert note_key_id(name, raw[0], raw[1:]).hex() == given


def test_a_checkpoint_byte_for_byte() -> None:
    log = signer()
    head = log.head(1_780_000_000_123, 4711, ROOT)
    note = log.checkpoint(head)
    text, _, lines = note.partition(b"\n\n")
    assert text.split(b"\n") == [ORIGIN.encode(), b"4711", base64.b64encode(ROOT)]
    dash, name, encoded = lines.decode().removesuffix("\n").split(" ")
    raw = base64.b64decode(encoded)
    spki = log.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    log_id = hashlib.sha256(spki).digest()
    # static-ct-api: key id = SHA-256(name || "\n" || 0x05 || log id), and an RFC6962NoteSignature behind it.
    assert (dash, name) == ("\u2014", ORIGIN)
    assert raw[:4] == hashlib.sha256(ORIGIN.encode() + b"\n\x05" + log_id).digest()[:4]
    assert int.from_bytes(raw[4:12], "big") == 1_780_000_000_123
    assert raw[12:14] == b"\4\3" and int.from_bytes(raw[14:16], "big") == len(raw) - 16
    # RFC 6962 section 3.5: the same signature is that of the signed tree head.
    signed = b"\0\1" + raw[4:12] + (4711).to_bytes(8, "big") + ROOT
    log.key.public_key().verify(raw[16:], signed, ec.ECDSA(SHA256()))
    assert open_checkpoint(note, ORIGIN, log.key.public_key()) == head


def test_a_cosignature_byte_for_byte() -> None:
    assert ED25519.public_key().public_bytes_raw() == PUBLIC
    text = checkpoint_text(ORIGIN, 4711, ROOT)
    line = cosign("witness.example/w", ED25519, text, 1_780_000_000)
    assert line.key_id == hashlib.sha256(b"witness.example/w\n\x04" + PUBLIC).digest()[:4]
    assert line.signature[:8] == (1_780_000_000).to_bytes(8, "big")
    signed = f"cosignature/v1\ntime 1780000000\n{ORIGIN}\n4711\n{base64.b64encode(ROOT).decode()}\n".encode()
    ED25519.public_key().verify(line.signature[8:], signed)
    witness = Witness.parse(f"witness.example/w+{line.key_id.hex()}+{base64.b64encode(bytes([4]) + PUBLIC).decode()}")
    assert witness.verify(line, text) == 1_780_000_000
    assert Witness.parse(witness.vkey) == witness


def test_a_cosignature_that_is_none() -> None:
    text = checkpoint_text(ORIGIN, 4711, ROOT)
    witness = Witness("w.example", ED25519.public_key())
    good = cosign("w.example", ED25519, text, 5)
    witness.verify(good, text)
    with pytest.raises(ProofError):
        witness.verify(good, checkpoint_text(ORIGIN, 4712, ROOT))
    with pytest.raises(ProofError):
        witness.verify(cosign("v.example", ED25519, text, 5), text)
    with pytest.raises(ProofError):
        witness.verify(cosign("w.example", ed25519.Ed25519PrivateKey.generate(), text, 5), text)
    later = NoteSignature(good.name, good.key_id, (6).to_bytes(8, "big") + good.signature[8:])
    with pytest.raises(ProofError):
        witness.verify(later, text)
    for signature in (b"", good.signature[:-1], good.signature + b"\0"):
        with pytest.raises(Malformed):
            witness.verify(NoteSignature(good.name, good.key_id, signature), text)


def encoded_key(kind: int, length: int = 32) -> str:
    """As it stands at a verifier key's end."""
    return base64.b64encode(bytes([kind]) + PUBLIC[:length]).decode()


@pytest.mark.parametrize(
    "vkey",
    [
        "", "w", "w+00000000", "w+00000000+", "w+00000000+AAAA", "w+00000000+!!!",
        f"+00000000+{encoded_key(4)}", f"w+00000000+{encoded_key(4)}", f"w w+00000000+{encoded_key(4)}",
        f"w+00000000+{encoded_key(5)}", f"w+00000000+{encoded_key(4, 31)}",
    ],
)  # fmt: skip
def test_no_key_of_a_witness(vkey: str) -> None:
    with pytest.raises(Malformed):
        Witness.parse(vkey)


def test_a_witnesss_key_that_says_plain_ed25519() -> None:
    """Type 1 names the same key; its cosignatures are of type 4 all the same."""
    plain = note_key_id("w", 1, PUBLIC).hex()
    witness = Witness.parse(f"w+{plain}+{base64.b64encode(bytes([1]) + PUBLIC).decode()}")
    assert witness == Witness("w", ED25519.public_key())


@pytest.mark.parametrize("size", [0, 1, 10**18, (1 << 63) - 1])
def test_sizes(size: int) -> None:
    assert parse_checkpoint(checkpoint_text(ORIGIN, size, ROOT)) == (ORIGIN, size, ROOT)


ENCODED = base64.b64encode(ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", f"{ORIGIN}\n5\n", f"{ORIGIN}\n05\n{ENCODED}\n", f"{ORIGIN}\n+5\n{ENCODED}\n", f"{ORIGIN}\n-5\n{ENCODED}\n",
        f"{ORIGIN}\n5 \n{ENCODED}\n", f"{ORIGIN}\n٥\n{ENCODED}\n", f"{ORIGIN}\n²\n{ENCODED}\n",
        f"{ORIGIN}\n5_0\n{ENCODED}\n",
        f"{ORIGIN}\n{'9' * 20}\n{ENCODED}\n", f"{ORIGIN}\n{'9' * 5000}\n{ENCODED}\n", f"{ORIGIN}\n5\n{ENCODED[:-4]}\n",
        f"{ORIGIN}\n5\n{ENCODED}AAAA\n", f"{ORIGIN}\n5\n!{ENCODED}\n", f"{ORIGIN}\n\n{ENCODED}\n",
    ],
)  # fmt: skip
def test_no_checkpoint(text: str) -> None:
    with pytest.raises(Malformed):
        parse_checkpoint(text)


def test_a_checkpoint_with_more_than_is_signed_is_refused() -> None:
    """The log's signature covers size, root and time: whoever stores it could write anything else into it."""
    log = signer()
    key = log.key.public_key()
    note = decode_note(log.checkpoint(log.head(5, 7, ROOT)))
    spoiled = ENCODED[:-2] + chr(ord(ENCODED[-2]) + 1) + "="  # The same bytes, other base64.
    assert base64.b64decode(spoiled) == ROOT
    for text in (note.text + "an extension\n", note.text.replace(ENCODED, spoiled)):
        with pytest.raises(Malformed):
            open_checkpoint(Note(text, note.signatures).encode(), ORIGIN, key)


def test_a_checkpoint_of_another_log_key_size_or_root() -> None:
    log, other = signer(), signer()
    key = log.key.public_key()
    head = log.head(5, 7, ROOT)
    note = log.checkpoint(head)
    with pytest.raises(ProofError):
        open_checkpoint(note, "other.example", key)
    with pytest.raises(ProofError):
        open_checkpoint(note, ORIGIN, other.key.public_key())
    with pytest.raises(ProofError):
        open_checkpoint(note.replace(b"\n7\n", b"\n8\n"), ORIGIN, key)
    with pytest.raises(ProofError):
        open_checkpoint(note.replace(ENCODED.encode(), base64.b64encode(ROOT[::-1])), ORIGIN, key)
    with pytest.raises(ProofError):  # The other's signature under this key's name and id.
        open_checkpoint(encode_checkpoint(ORIGIN, other.head(5, 7, ROOT), key), ORIGIN, key)
    # More signatures do no harm, wherever they stand.
    parsed = decode_note(note)
    witness = cosign("w", ED25519, parsed.text, 9)
    for signatures in ((witness, *parsed.signatures), (*parsed.signatures, witness, witness)):
        assert open_checkpoint(Note(parsed.text, signatures).encode(), ORIGIN, key) == head


def test_hostile_notes_are_refused_and_nothing_else() -> None:
    log = signer()
    key, note = log.key.public_key(), log.checkpoint(log.head(5, 7, ROOT))
    open_checkpoint(note, ORIGIN, key)
    for at in range(len(note)):
        with pytest.raises((Malformed, ProofError)):
            open_checkpoint(note[:at], ORIGIN, key)
    for wrong in (
        note + b"\n",
        note + b"x",
        b"\n" + note,
        note.replace(b"\n", b"\r\n"),
        note[:-1] + b"\0\n",
        note + b"\xff\n",
    ):
        with pytest.raises((Malformed, ProofError)):
            open_checkpoint(wrong, ORIGIN, key)
    many = decode_note(note)
    with pytest.raises(Malformed):
        decode_note(Note(many.text, many.signatures * 65).encode())
    with pytest.raises(Malformed):
        decode_note(Note("x" * (64 << 10) + "\n", many.signatures).encode())
    dice, accepted = random.Random(10), 0
    for _ in range(4000):
        data = bytearray(note)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.choice((10, 32, 43, 0x80, 0xE2, dice.randrange(256)))
        try:
            head = open_checkpoint(bytes(data), ORIGIN, key)
            accepted += 1
            assert (head.size, head.root, head.timestamp) == (7, ROOT, 5)
        except (Malformed, ProofError):
            pass
    assert accepted < 100


@pytest.mark.parametrize("name", ["", " ", "a b", "a+b", "a\nb", "a\u2003b", "a\x00b", "x" * 201])
def test_no_name(name: str) -> None:
    with pytest.raises(Malformed):
        check_name(name)

"""control.ctlog.structs: round trips, and bytes of people who mean no good."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from control.ctlog.encoding import Reader, vector
from control.ctlog.errors import Malformed, ProofError
from control.ctlog.signer import Signer
from control.ctlog.structs import (
    MAX_LEAF_INDEX,
    SHA256_RSA,
    EntryType,
    LogEntry,
    Sct,
    SignedEntry,
    decode_leaf,
    decode_sct,
    decode_sct_list,
    decode_signed,
    digitally_signed,
    encode_sct_list,
    index_extension,
    key_id,
    leaf_index,
    read_log_entry,
    sct_input,
    verify_sct,
)
from tests.ctlog.world import ORIGIN, new_key

X509 = SignedEntry(EntryType.X509, b"certificate")
PRECERT = SignedEntry(EntryType.PRECERT, b"tbs certificate", bytes(range(32)))
ENTRIES = [
    LogEntry(X509, 1, 0, ()),
    LogEntry(X509, (1 << 63) - 1, MAX_LEAF_INDEX, (b"a" * 32, b"b" * 32)),
    LogEntry(PRECERT, 1_780_000_000_000, 4711, (b"a" * 32,), b"precertificate"),
    LogEntry(SignedEntry(EntryType.X509, b""), 0, 1, ()),
]


def decode_entry(data: bytes) -> LogEntry:
    """One and no more."""
    reader = Reader(data, "the entry")
    entry = read_log_entry(reader)
    reader.end()
    return entry


def sct() -> Sct:
    """Not signed by anybody."""
    return Sct(bytes(range(32)), 1_780_000_000_123, index_extension(77), b"signature" * 8)


def test_bytes_as_rfc_6962_has_them() -> None:
    """Written out by hand from sections 3.1 to 3.4 and static-ct-api."""
    entry = LogEntry(SignedEntry(EntryType.PRECERT, b"T", b"k" * 32), 0x0102, 0x0304, (b"f" * 32,), b"P")
    extensions = bytes.fromhex("0000050000000304")
    signed = bytes.fromhex("0001") + b"k" * 32 + bytes.fromhex("000001") + b"T"
    assert entry.leaf == bytes.fromhex("00000000000000000102") + signed + b"\x00\x08" + extensions
    tile = bytes.fromhex("0000000000000102") + signed + b"\x00\x08" + extensions
    assert entry.encode() == tile + b"\x00\x00\x01P" + b"\x00\x20" + b"f" * 32
    assert sct_input(entry.entry, entry.timestamp, entry.extensions) == entry.leaf  # Both 0, 0: versions and kinds.
    one = Sct(b"i" * 32, 5, b"", b"S")
    assert one.encode() == b"\0" + b"i" * 32 + bytes(7) + b"\5" + b"\0\0" + b"\4\3" + b"\0\1S"
    assert encode_sct_list([one]) == b"\0\x32\0\x30" + one.encode()


def test_round_trips() -> None:
    for entry in ENTRIES:
        assert decode_entry(entry.encode()) == entry
        assert decode_leaf(entry.leaf) == (entry.entry, entry.timestamp, entry.extensions)
    for count in range(4):
        scts = (sct(),) * count
        assert decode_sct_list(encode_sct_list(scts)) == scts
    assert decode_sct(sct().encode()) == sct() and sct().leaf_index == 77
    assert decode_signed(digitally_signed(b"s", (4, 1))) == ((4, 1), b"s")
    for index in (0, 1, MAX_LEAF_INDEX):
        assert leaf_index(index_extension(index)) == index
    assert leaf_index(b"") is None
    assert leaf_index(bytes.fromhex("070001ff") + index_extension(5)) == 5  # One that is not known is passed over.


def test_what_does_not_fit_is_refused() -> None:
    for index in (-1, MAX_LEAF_INDEX + 1):
        with pytest.raises(Malformed):
            index_extension(index)
    with pytest.raises(Malformed):
        vector(b"\0" * 65536, 2)
    with pytest.raises(Malformed):
        encode_sct_list([Sct(b"i" * 32, 5, b"", b"S" * 60000)] * 2)
    for wrong in (index_extension(1) * 2, bytes.fromhex("00000400000001"), b"\0", bytes.fromhex("0000050000")):
        with pytest.raises(Malformed):
            leaf_index(wrong)
    with pytest.raises(Malformed):
        decode_sct(b"\1" + sct().encode()[1:])
    # In a list an SCT of another version is passed over, an empty one is not.
    other = vector(vector(b"\1whatever", 2) + vector(sct().encode(), 2), 2)
    assert decode_sct_list(other) == (sct(),)
    with pytest.raises(Malformed):
        decode_sct_list(vector(vector(b"", 2), 2))
    with pytest.raises(Malformed):
        decode_entry(ENTRIES[0].encode().replace(index_extension(0), bytes.fromhex("0900050000000000")))


DECODERS: list[tuple[Callable[[bytes], object], list[bytes]]] = [
    (decode_sct, [sct().encode()]),
    (decode_sct_list, [encode_sct_list([sct(), sct()])]),
    (decode_leaf, [entry.leaf for entry in ENTRIES]),
    (decode_signed, [digitally_signed(b"signature")]),
    (leaf_index, [index_extension(5) + bytes.fromhex("070001ff")]),
    (decode_entry, [entry.encode() for entry in ENTRIES]),
]


@pytest.mark.parametrize(("decode", "samples"), DECODERS, ids=lambda one: getattr(one, "__name__", ""))
def test_hostile_bytes_are_malformed_and_nothing_else(decode: Callable[[bytes], object], samples: list[bytes]) -> None:
    dice, refused = random.Random(6), 0
    for sample in samples:
        decode(sample)
        for at in range(len(sample)):
            cut = sample[:at]
            if decode is leaf_index and at in (0, 8):
                continue  # Whole extensions, fewer of them.
            with pytest.raises(Malformed):
                decode(cut)
        if decode is not leaf_index:
            with pytest.raises(Malformed):
                decode(sample + b"\0")
        for _ in range(4000):
            data = bytearray(sample)
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(data) + 1)
                kind = dice.randrange(4)
                if kind == 0:
                    data[at:at] = dice.randbytes(dice.randint(1, 5))
                elif kind == 1:
                    del data[at : at + dice.randint(1, 5)]
                elif at < len(data):
                    data[at] = dice.choice((0, 0xFF, 0x80, dice.randrange(256)))
            try:
                decode(bytes(data))
            except Malformed:
                refused += 1
    assert refused > 500


def test_scts_are_of_one_log_for_one_entry_at_one_time() -> None:
    signer = Signer(ORIGIN, new_key())
    key = signer.key.public_key()
    for entry in ENTRIES[:3]:
        good = signer.sct(entry)
        verify_sct(good, entry.entry, key)
        wrong = [
            (Sct(good.log_id, good.timestamp + 1, good.extensions, good.signature), entry.entry),
            (Sct(good.log_id, good.timestamp, index_extension(9), good.signature), entry.entry),
            (Sct(good.log_id, good.timestamp, b"", good.signature), entry.entry),
            (Sct(bytes(32), good.timestamp, good.extensions, good.signature), entry.entry),
            (Sct(good.log_id, good.timestamp, good.extensions, good.signature[:-1]), entry.entry),
            (Sct(good.log_id, good.timestamp, good.extensions, b""), entry.entry),
            (Sct(good.log_id, good.timestamp, good.extensions, good.signature, SHA256_RSA), entry.entry),
            (good, SignedEntry(EntryType.X509, b"another")),
            (good, SignedEntry(EntryType.PRECERT, entry.entry.certificate, b"z" * 32)),
        ]
        for one, what in wrong:
            with pytest.raises(ProofError):
                verify_sct(one, what, key)
        with pytest.raises(ProofError):
            verify_sct(good, entry.entry, new_key().public_key())


def test_scts_of_a_log_with_an_rsa_key() -> None:
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key()
    signature = key.sign(sct_input(X509, 7, b""), padding.PKCS1v15(), SHA256())
    one = Sct(key_id(public), 7, b"", signature, SHA256_RSA)
    verify_sct(one, X509, public)
    with pytest.raises(ProofError):
        verify_sct(Sct(one.log_id, 7, b"", signature), X509, public)
    with pytest.raises(ProofError):
        verify_sct(Sct(one.log_id, 8, b"", signature, SHA256_RSA), X509, public)


def test_a_logs_key_is_on_p256() -> None:
    from control.ctlog.errors import LogError

    with pytest.raises(LogError):
        Signer(ORIGIN, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(LogError):
        Signer("two words", new_key())

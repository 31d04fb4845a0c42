"""What a Certificate Transparency log signs, hashes and stores: RFC 6962 section 3 and the tile leaf of static-ct-api.

    SCT        = version, log id, timestamp, extensions, signature over (timestamp, entry, extensions)
    leaf       = version, leaf type, timestamp, entry, extensions          leaf hash = SHA-256(0x00 || leaf)
    tree head  = signature over (timestamp, size, root hash)

Pure functions of bytes. A timestamp is in milliseconds since 1970; a hash, a log ID and a key hash are 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.encoding import Reader, uint, vector
from control.ctlog.errors import Malformed, ProofError

LogKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

V1 = 0
CERTIFICATE_TIMESTAMP = 0  # SignatureType, RFC 6962 section 3.2.
TREE_HASH = 1
TIMESTAMPED_ENTRY = 0  # MerkleLeafType.
SHA256_ECDSA = (4, 3)  # DigitallySigned's algorithm, RFC 5246 section 7.4.1.4.1.
SHA256_RSA = (4, 1)
HASH_BYTES = 32
LEAF_INDEX_EXTENSION = 0  # static-ct-api: CtExtensions, the entry's index in 5 bytes.
MAX_LEAF_INDEX = (1 << 40) - 1


class EntryType(IntEnum):
    """LogEntryType, RFC 6962 section 3.1."""

    X509 = 0
    PRECERT = 1


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """What is logged of a submission. `certificate` is the leaf's DER; of a precertificate its TBSCertificate without
    the poison, as the final certificate has it less its SCTs. `issuer_key_hash`: SHA-256 of the final issuer's
    SubjectPublicKeyInfo, for a precertificate only."""

    kind: EntryType
    certificate: bytes
    issuer_key_hash: bytes = b""

    def encode(self) -> bytes:
        """entry_type and signed_entry, as they stand in an SCT's input and in a leaf."""
        body = vector(self.certificate, 3)
        if self.kind is EntryType.PRECERT:
            body = self.issuer_key_hash + body
        return uint(self.kind, 2) + body


def _read_entry(reader: Reader) -> SignedEntry:
    number = reader.uint(2)
    if number == EntryType.X509:
        return SignedEntry(EntryType.X509, reader.vector(3))
    if number == EntryType.PRECERT:
        issuer_key_hash = reader.take(HASH_BYTES)
        return SignedEntry(EntryType.PRECERT, reader.vector(3), issuer_key_hash)
    raise Malformed(f"an entry of type {number} is neither a certificate nor a precertificate")


@dataclass(frozen=True, slots=True)
class Sct:
    """A SignedCertificateTimestamp, version 1. `signature` is DER, `algorithm` (hash, signature) of TLS 1.2."""

    log_id: bytes
    timestamp: int
    extensions: bytes
    signature: bytes
    algorithm: tuple[int, int] = SHA256_ECDSA

    def encode(self) -> bytes:
        """As it stands in a list, without its length."""
        return b"".join(
            (
                uint(V1, 1),
                self.log_id,
                uint(self.timestamp, 8),
                vector(self.extensions, 2),
                bytes(self.algorithm),
                vector(self.signature, 2),
            )
        )

    @property
    def leaf_index(self) -> int | None:
        """The entry's index, when the log says it in the SCT (static-ct-api). Raises Malformed."""
        return leaf_index(self.extensions)


def decode_sct(data: bytes) -> Sct:
    """One SCT. Raises Malformed, also for a version other than 1."""
    reader = Reader(data, "the SCT")
    if (version := reader.uint(1)) != V1:
        raise Malformed(f"an SCT of version {version + 1}; version 1 is known here")
    log_id, timestamp = reader.take(HASH_BYTES), reader.uint(8)
    extensions, algorithm = reader.vector(2), reader.take(2)
    sct = Sct(log_id, timestamp, extensions, reader.vector(2), (algorithm[0], algorithm[1]))
    reader.end()
    return sct


def encode_sct_list(scts: Sequence[Sct]) -> bytes:
    """SignedCertificateTimestampList (RFC 6962 section 3.3)."""
    return vector(b"".join(vector(sct.encode(), 2) for sct in scts), 2)


def decode_sct_list(data: bytes) -> tuple[Sct, ...]:
    """The SCTs of a list that are of version 1; those of others are passed over. Raises Malformed."""
    outer = Reader(data, "the SCT list")
    reader = Reader(outer.vector(2), "the SCT list")
    outer.end()
    scts = []
    while reader.left:
        one = reader.vector(2)
        if not one:
            raise Malformed("an empty SCT in the list")
        if one[0] == V1:
            scts.append(decode_sct(one))
    return tuple(scts)


def index_extension(index: int) -> bytes:
    """CtExtensions that name an entry's index (static-ct-api)."""
    if not 0 <= index <= MAX_LEAF_INDEX:
        raise Malformed(f"an entry's index is between 0 and 2^40 - 1, not {index}")
    return uint(LEAF_INDEX_EXTENSION, 1) + vector(uint(index, 5), 2)


def leaf_index(extensions: bytes) -> int | None:
    """The index that CtExtensions name; None: they name none. Raises Malformed."""
    reader, found = Reader(extensions, "the SCT's extensions"), None
    while reader.left:
        kind, body = reader.uint(1), reader.vector(2)
        if kind == LEAF_INDEX_EXTENSION:
            if found is not None or len(body) != 5:
                raise Malformed("an SCT names its entry's index twice, or not in five bytes")
            found = int.from_bytes(body, "big")
    return found


def sct_input(entry: SignedEntry, timestamp: int, extensions: bytes) -> bytes:
    """What an SCT's signature covers (RFC 6962 section 3.2)."""
    head = uint(V1, 1) + uint(CERTIFICATE_TIMESTAMP, 1) + uint(timestamp, 8)
    return head + entry.encode() + vector(extensions, 2)


def leaf_bytes(entry: SignedEntry, timestamp: int, extensions: bytes) -> bytes:
    """The MerkleTreeLeaf (RFC 6962 section 3.4)."""
    head = uint(V1, 1) + uint(TIMESTAMPED_ENTRY, 1) + uint(timestamp, 8)
    return head + entry.encode() + vector(extensions, 2)


def decode_leaf(data: bytes) -> tuple[SignedEntry, int, bytes]:
    """A MerkleTreeLeaf: entry, timestamp, extensions. Raises Malformed."""
    reader = Reader(data, "the Merkle tree leaf")
    if reader.uint(1) != V1 or reader.uint(1) != TIMESTAMPED_ENTRY:
        raise Malformed("a Merkle tree leaf of an unknown version or type")
    timestamp, entry = reader.uint(8), _read_entry(reader)
    extensions = reader.vector(2)
    reader.end()
    return entry, timestamp, extensions


def tree_head_input(timestamp: int, size: int, root: bytes) -> bytes:
    """What a tree head's signature covers (RFC 6962 section 3.5)."""
    return uint(V1, 1) + uint(TREE_HASH, 1) + uint(timestamp, 8) + uint(size, 8) + root


def digitally_signed(signature: bytes, algorithm: tuple[int, int] = SHA256_ECDSA) -> bytes:
    """A DigitallySigned struct of TLS 1.2."""
    return bytes(algorithm) + vector(signature, 2)


def decode_signed(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Algorithm and signature of a DigitallySigned struct. Raises Malformed."""
    reader = Reader(data, "the signature")
    algorithm = reader.take(2)
    signature = reader.vector(2)
    reader.end()
    return (algorithm[0], algorithm[1]), signature


def key_id(key: LogKey) -> bytes:
    """A log's ID, and an issuer's key hash: SHA-256 of the SubjectPublicKeyInfo."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def verify_signature(key: LogKey, algorithm: tuple[int, int], signature: bytes, data: bytes, what: str) -> None:
    """A log's signature over `data`. Raises ProofError."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm == SHA256_ECDSA:
            key.verify(signature, data, ec.ECDSA(SHA256()))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm == SHA256_RSA:
            key.verify(signature, data, padding.PKCS1v15(), SHA256())
        else:
            raise ProofError(f"{what} has a signature algorithm {algorithm} that is not for the log's key")
    except InvalidSignature:
        raise ProofError(f"{what} is not signed by the log's key") from None


def verify_sct(sct: Sct, entry: SignedEntry, key: LogKey) -> None:
    """That the log whose key this is promised `entry`. Raises ProofError."""
    if sct.log_id != key_id(key):
        raise ProofError(f"the SCT is of log {sct.log_id.hex()[:16]}, the key of {key_id(key).hex()[:16]}")
    data = sct_input(entry, sct.timestamp, sct.extensions)
    verify_signature(key, sct.algorithm, sct.signature, data, "the SCT")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry as the log stores it (static-ct-api's TileLeaf). `chain` has the SHA-256 of each certificate above
    the leaf, its issuer first, the root last."""

    entry: SignedEntry
    timestamp: int
    index: int
    chain: tuple[bytes, ...]
    precertificate: bytes = b""  # As submitted; empty for a certificate.

    @property
    def extensions(self) -> bytes:
        """CtExtensions of its SCT and leaf."""
        return index_extension(self.index)

    @property
    def leaf(self) -> bytes:
        """Its MerkleTreeLeaf."""
        return leaf_bytes(self.entry, self.timestamp, self.extensions)

    @property
    def leaf_hash(self) -> bytes:
        """Its hash in the tree."""
        return hashlib.sha256(b"\x00" + self.leaf).digest()

    def encode(self) -> bytes:
        """Its TileLeaf."""
        parts = [uint(self.timestamp, 8), self.entry.encode(), vector(self.extensions, 2)]
        if self.entry.kind is EntryType.PRECERT:
            parts.append(vector(self.precertificate, 3))
        parts.append(vector(b"".join(self.chain), 2))
        return b"".join(parts)


def read_log_entry(reader: Reader) -> LogEntry:
    """The next TileLeaf of a data tile. Raises Malformed."""
    timestamp, entry = reader.uint(8), _read_entry(reader)
    index = leaf_index(reader.vector(2))
    if index is None:
        raise Malformed("an entry of the data tile does not name its index")
    precertificate = reader.vector(3) if entry.kind is EntryType.PRECERT else b""
    chain = reader.vector(2)
    if len(chain) % HASH_BYTES:
        raise Malformed("the fingerprints of an entry's chain are not 32 bytes each")
    fingerprints = tuple(chain[at : at + HASH_BYTES] for at in range(0, len(chain), HASH_BYTES))
    return LogEntry(entry, timestamp, index, fingerprints, precertificate)

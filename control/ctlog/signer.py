"""A log's key, and everything that it signs: SCTs and tree heads (RFC 6962 sections 3.2 and 3.5)."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256

from control.ctlog.errors import LogError
from control.ctlog.note import TreeHead, check_name, encode_checkpoint
from control.ctlog.structs import LogEntry, Sct, key_id, sct_input, tree_head_input

ECDSA = ec.ECDSA(SHA256())


@dataclass(frozen=True)
class Signer:
    """`origin` is the log's name: its submission prefix without scheme (static-ct-api). `key` is on P-256, as RFC 6962
    section 2.1.4 demands; it may live in a token. `witnessed` signs checkpoints besides, for witnesses. Raises LogError."""

    origin: str
    key: ec.EllipticCurvePrivateKey
    witnessed: ed25519.Ed25519PrivateKey | None = None
    log_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        check_name(self.origin)
        if not isinstance(self.key, ec.EllipticCurvePrivateKey) or self.key.curve.name != "secp256r1":
            raise LogError("a log signs with ECDSA on P-256 (RFC 6962 section 2.1.4)")
        object.__setattr__(self, "log_id", key_id(self.key.public_key()))

    def sct(self, entry: LogEntry) -> Sct:
        """The promise for an entry that is in the tree. ECDSA's nonce is random: two are not the same bytes."""
        data = sct_input(entry.entry, entry.timestamp, entry.extensions)
        return Sct(self.log_id, entry.timestamp, entry.extensions, self.key.sign(data, ECDSA))

    def head(self, timestamp: int, size: int, root: bytes) -> TreeHead:
        """A tree head. Whoever calls this answers for its being consistent with every one before."""
        return TreeHead(timestamp, size, root, self.key.sign(tree_head_input(timestamp, size, root), ECDSA))

    def checkpoint(self, head: TreeHead) -> bytes:
        """A tree head as a signed note."""
        return encode_checkpoint(self.origin, head, self.key.public_key(), self.witnessed)

"""Merkle-Patricia proofs: is this value what an Ethereum state trie has at this key? A pure function of the trie's root
and the nodes on the way (Ethereum yellow paper, appendices C and D; EIP-1186).

Every node is found by its hash, from the root down, and every node given must be used; so no byte of a proof can be
altered without its being refused. Nodes shorter than 32 bytes lie inside their parents. Only inclusion is shown: a
key that the trie does not have is a ProofError, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from control.ctlog.anchor.interface import LibraryMissing
from control.ctlog.errors import ProofError

try:
    import rlp  # type: ignore[import-untyped]
    from eth_hash.auto import keccak as _keccak
except ImportError as missing:
    raise LibraryMissing(missing) from None

MAX_NODES = 65  # A key has 64 nibbles, and there may be a leaf below the last of them.
MAX_NODE_BYTES = 17 * 33 + 64  # A branch of sixteen hashes, its own length, and a value of our kinds.


def keccak(value: bytes) -> bytes:
    """Keccak-256, 32 bytes."""
    return bytes(_keccak(value))


def verify_value(root: bytes, key: bytes, nodes: Sequence[bytes]) -> bytes:
    """The value at `keccak(key)` in the secure trie with this root, RLP as it stands there. Raises ProofError."""
    if len(nodes) > MAX_NODES or any(len(node) > MAX_NODE_BYTES for node in nodes):
        raise ProofError("the chain's proof is larger than any can be")
    return value_at(root, nibbles_of(keccak(key)), nodes)


def value_at(root: bytes, path: tuple[int, ...], nodes: Sequence[bytes]) -> bytes:
    """The value at a path of nibbles in the trie with this root. Raises ProofError."""
    given = list(nodes)
    item: object = _next(root, given)
    while True:
        if not isinstance(item, list):
            raise ProofError("the chain's proof holds a node that is none")
        if len(item) == 17:
            if not path:
                return _end(item[16], given)
            child, path = item[path[0]], path[1:]
        elif len(item) == 2:
            shared, is_leaf = _shared(item[0])
            if path[: len(shared)] != shared:
                raise ProofError("the chain's proof shows that the state does not have this key")
            path = path[len(shared) :]
            if is_leaf:
                if path:
                    raise ProofError("the chain's proof shows that the state does not have this key")
                return _end(item[1], given)
            if not shared:
                raise ProofError("the chain's proof holds an extension of nothing")
            child = item[1]
        else:
            raise ProofError(f"the chain's proof holds a node of {len(item)} items; a trie's have 2 or 17")
        if isinstance(child, list):
            item = child  # Inside its parent; decoding has bounded the depth by the parent's length.
        elif child == b"":
            raise ProofError("the chain's proof shows that the state does not have this key")
        else:
            item = _next(child, given)


def decode_rlp(encoded: bytes, what: str) -> object:
    """Bytes, or lists of such; exactly as long as it should be. Raises ProofError."""
    try:
        decoded: object = rlp.decode(encoded)
    except (rlp.exceptions.RLPException, RecursionError):
        raise ProofError(f"{what} is not RLP") from None
    return decoded


def uint(value: object, what: str) -> int:
    """An RLP integer of at most 256 bits: no leading zeros. Raises ProofError."""
    if not isinstance(value, bytes) or len(value) > 32 or value[:1] == b"\0":
        raise ProofError(f"{what} is no integer")
    return int.from_bytes(value, "big")


def _next(wanted: object, given: list[bytes]) -> object:
    if not given:
        raise ProofError("the chain's proof ends before its value")
    node = given.pop(0)
    if keccak(node) != wanted:
        raise ProofError("the chain's proof does not hold: a node is not the one that its parent names")
    return decode_rlp(node, "a node of the chain's proof")


def _end(value: object, given: list[bytes]) -> bytes:
    if given:
        raise ProofError("the chain's proof goes on behind its value")
    if not isinstance(value, bytes) or not value:
        raise ProofError("the chain's proof shows that the state does not have this key")
    return value


def nibbles_of(value: bytes) -> tuple[int, ...]:
    """Two a byte, the high one first."""
    return tuple(nibble for byte in value for nibble in (byte >> 4, byte & 15))


def _shared(encoded: object) -> tuple[tuple[int, ...], bool]:
    """A hex-prefix encoding: nibbles, and whether they end in a leaf."""
    if not isinstance(encoded, bytes) or not encoded or encoded[0] >> 6 or len(encoded) > 33:
        raise ProofError("the chain's proof holds a path that is none")
    nibbles, flags = nibbles_of(encoded), encoded[0] >> 4
    if not flags & 1 and nibbles[1]:
        raise ProofError("the chain's proof holds a path that is none")
    return nibbles[1:] if flags & 1 else nibbles[2:], bool(flags & 2)

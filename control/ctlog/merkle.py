"""The Merkle tree of RFC 6962 section 2.1 (RFC 9162 section 2.1 says the same and how to verify): hashes, proofs, and
which nodes a proof is made of.

A node `(level, index)` is the root of the perfect subtree over the leaves `[index << level, (index + 1) << level)`.
What a tree of any size is asked for, its root, an inclusion or a consistency proof, is a list of hashes, each of a
range of leaves `[begin, end)`; a range that is no perfect subtree is folded from those it consists of. A `Plan` names
the nodes; whoever has them (tiles, a table, a test) hands them over, and `Plan.fold` makes the answer. No I/O here.

Sizes and indexes are numbers of leaves; hashes are 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from control.ctlog.errors import ProofError

HASH_BYTES = 32
MAX_PROOF_HASHES = 64  # Of a tree of 2^63 leaves; longer ones are refused unread.
EMPTY_ROOT = hashlib.sha256(b"").digest()

Node = tuple[int, int]


def leaf_hash(data: bytes) -> bytes:
    """Of a leaf's bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def perfect_subtrees(begin: int, end: int) -> list[Node]:
    """The perfect subtrees that the range consists of, from left to right; `begin` is a multiple of the power of two
    that is not less than the range's length, as it is for every range of a proof."""
    nodes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        nodes.append((level, begin >> level))
        begin += 1 << level
    return nodes


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash of a range from those of its perfect subtrees, largest first."""
    value = hashes[-1]
    for one in reversed(hashes[:-1]):
        value = node_hash(one, value)
    return value


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes that an answer is made of: one range a hash of the answer."""

    ranges: tuple[tuple[Node, ...], ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of them, in the order that `fold` takes their hashes in."""
        return tuple(node for nodes in self.ranges for node in nodes)

    def fold(self, hashes: Iterable[bytes]) -> list[bytes]:
        """The answer, from the hashes of `nodes`."""
        given = iter(hashes)
        return [fold([next(given) for _ in nodes]) for nodes in self.ranges]


def _plan(ranges: Iterable[tuple[int, int]]) -> Plan:
    return Plan(tuple(tuple(perfect_subtrees(begin, end)) for begin, end in ranges))


def _split(count: int) -> int:
    """The largest power of two that is less than `count` (which is 2 or more)."""
    return 1 << ((count - 1).bit_length() - 1)


def root_plan(size: int) -> Plan:
    """The root of a tree of `size` leaves, which is 1 or more: one hash."""
    return _plan([(0, size)])


def inclusion_plan(index: int, size: int) -> Plan:
    """PATH(index, D[size]): RFC 6962 section 2.1.1. Raises ProofError when there is no such leaf."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    begin, end, ranges = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return _plan(reversed(ranges))


def consistency_plan(old: int, new: int) -> Plan:
    """PROOF(old, D[new]): RFC 6962 section 2.1.2; nothing when the sizes are equal or `old` is 0. Raises ProofError."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves has no proof that it goes on one of {old}")
    if old in (0, new):
        return Plan(())
    begin, end, whole, ranges = 0, new, True, []
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin, whole = middle, False
    if not whole:
        ranges.append((begin, end))
    return _plan(reversed(ranges))


def _check_hashes(hashes: Sequence[bytes], what: str) -> None:
    if len(hashes) > MAX_PROOF_HASHES or any(len(one) != HASH_BYTES for one in hashes):
        raise ProofError(f"{what} is not at most {MAX_PROOF_HASHES} hashes of {HASH_BYTES} bytes")


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to from the leaf hash `leaf`: RFC 9162 section 2.1.3.2. Raises
    ProofError for a proof of the wrong length."""
    _check_hashes(proof, "the inclusion proof")
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    number, last, value = index, size - 1, leaf
    for one in proof:
        if last == 0:
            raise ProofError("the inclusion proof is longer than the path to the root")
        if number & 1 or number == last:
            value = node_hash(one, value)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            value = node_hash(value, one)
        number >>= 1
        last >>= 1
    if last:
        raise ProofError("the inclusion proof ends before the root")
    return value


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """That the leaf hash `leaf` is at `index` of the tree of `size` with this root. Raises ProofError."""
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise ProofError(f"the inclusion proof of leaf {index} does not lead to the root of the tree of {size}")


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """That the tree of `new_size` goes on the one of `old_size`: RFC 9162 section 2.1.4.2. Raises ProofError. Every
    tree goes on the empty one, whose root must be the empty one's."""
    _check_hashes(proof, "the consistency proof")
    if not 0 <= old_size <= new_size:
        raise ProofError(f"a tree of {new_size} leaves cannot go on one of {old_size}")
    if old_size in (0, new_size):
        if proof:
            raise ProofError("a consistency proof where none is needed")
        if old_size == 0 and old_root != EMPTY_ROOT:
            raise ProofError("the root of the empty tree is not the hash of nothing")
        if old_size == new_size and old_root != new_root:
            raise ProofError(f"two different roots of the tree of {new_size}")
        return
    hashes = list(proof)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise ProofError("the consistency proof is empty")
    number, last = old_size - 1, new_size - 1
    while number & 1:
        number >>= 1
        last >>= 1
    old = new = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            raise ProofError("the consistency proof is longer than the path to the root")
        if number & 1 or number == last:
            old, new = node_hash(one, old), node_hash(one, new)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            new = node_hash(new, one)
        number >>= 1
        last >>= 1
    if last or old != old_root or new != new_root:
        raise ProofError(f"the tree of {new_size} is not shown to go on that of {old_size}")

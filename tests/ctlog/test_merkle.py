"""control.ctlog.merkle against RFC 6962 section 2.1 written down as it stands there, slowly."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

import pytest

from control.ctlog import merkle
from control.ctlog.errors import ProofError

LEAVES = [hashlib.sha256(b"\x00" + b"leaf %d" % number).digest() for number in range(301)]


def largest_power_below(count: int) -> int:
    """k of section 2.1."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


@lru_cache(None)
def mth(begin: int, end: int) -> bytes:
    """MTH(D[begin:end])."""
    if begin == end:
        return hashlib.sha256().digest()
    if end - begin == 1:
        return LEAVES[begin]
    k = largest_power_below(end - begin)
    return hashlib.sha256(b"\x01" + mth(begin, begin + k) + mth(begin + k, end)).digest()


def path(index: int, begin: int, end: int) -> list[bytes]:
    """PATH(index, D[begin:end])."""
    if end - begin == 1:
        return []
    k = largest_power_below(end - begin)
    if index < k:
        return [*path(index, begin, begin + k), mth(begin + k, end)]
    return [*path(index - k, begin + k, end), mth(begin, begin + k)]


def subproof(old: int, begin: int, end: int, whole: bool) -> list[bytes]:
    """SUBPROOF(old, D[begin:end], whole)."""
    if old == end - begin:
        return [] if whole else [mth(begin, end)]
    k = largest_power_below(end - begin)
    if old <= k:
        return [*subproof(old, begin, begin + k, whole), mth(begin + k, end)]
    return [*subproof(old - k, begin + k, end, False), mth(begin, begin + k)]


def node(at: merkle.Node) -> bytes:
    """A perfect subtree's root by the definition."""
    level, index = at
    return mth(index << level, (index + 1) << level)


def answer(plan: merkle.Plan) -> list[bytes]:
    """What a plan makes of the definition's nodes."""
    return plan.fold([node(one) for one in plan.nodes])


def test_roots_and_inclusion_of_every_leaf_in_every_size_to_300() -> None:
    for size in range(1, 301):
        root = mth(0, size)
        assert answer(merkle.root_plan(size)) == [root]
        for index in range(size):
            proof = answer(merkle.inclusion_plan(index, size))
            assert proof == path(index, 0, size)
            assert merkle.root_from_inclusion(index, size, LEAVES[index], proof) == root


def test_consistency_of_every_pair_of_sizes_to_300() -> None:
    for new in range(1, 301):
        for old in range(1, new + 1):
            proof = answer(merkle.consistency_plan(old, new))
            assert proof == subproof(old, 0, new, True)
            merkle.verify_consistency(old, new, mth(0, old), mth(0, new), proof)


def test_the_empty_tree() -> None:
    empty = hashlib.sha256(b"").digest()
    assert empty == merkle.EMPTY_ROOT
    merkle.verify_consistency(0, 0, empty, empty, [])
    merkle.verify_consistency(0, 7, empty, mth(0, 7), [])
    with pytest.raises(ProofError):
        merkle.verify_consistency(0, 7, mth(0, 1), mth(0, 7), [])
    with pytest.raises(ProofError):
        merkle.verify_consistency(0, 7, empty, mth(0, 7), [mth(0, 7)])
    with pytest.raises(ProofError):
        merkle.inclusion_plan(0, 0)
    with pytest.raises(ProofError):
        merkle.root_from_inclusion(0, 0, LEAVES[0], [])


class Uniform:
    """Trees of any size whose leaves are all the same: the hash of a range hangs on its length alone, so that roots
    and proofs of huge ones come from the definition in no time. Which leaf a proof is for shows in its shape only."""

    def __init__(self) -> None:
        self._known = {1: LEAVES[0]}

    def mth(self, count: int) -> bytes:
        """Of `count` leaves."""
        if count not in self._known:
            k = largest_power_below(count)
            self._known[count] = hashlib.sha256(b"\x01" + self.mth(k) + self.mth(count - k)).digest()
        return self._known[count]


class Distinct:
    """A million different leaves, as levels of an array; perfect subtrees are looked up, the rest is the definition."""

    def __init__(self, count: int) -> None:
        level = [number.to_bytes(32, "big") for number in range(count)]
        self.levels = [level]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            level = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
            self.levels.append(level)

    def mth(self, begin: int, end: int) -> bytes:
        """MTH(D[begin:end]) for a range as the definition makes them."""
        count = end - begin
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self.levels[level][begin >> level]
        k = largest_power_below(count)
        return hashlib.sha256(b"\x01" + self.mth(begin, begin + k) + self.mth(begin + k, end)).digest()


@pytest.fixture(scope="module")
def distinct() -> Distinct:
    """2^20 leaves: a second."""
    return Distinct(1 << 20)


def test_random_sizes_to_a_million(distinct: Distinct) -> None:
    dice = random.Random(6962)
    for _ in range(600):
        size = dice.randint(1, 1_000_000)
        index, old = dice.randrange(size), dice.randint(1, size)
        root = distinct.mth(0, size)
        plans = merkle.root_plan(size), merkle.inclusion_plan(index, size), merkle.consistency_plan(old, size)
        hashes = [plan.fold([distinct.levels[level][at] for level, at in plan.nodes]) for plan in plans]
        assert hashes[0] == [root]
        leaf = distinct.levels[0][index]
        merkle.verify_inclusion(index, size, leaf, hashes[1], root)
        merkle.verify_consistency(old, size, distinct.mth(0, old), root, hashes[2])
        # Another index must not do, nor another size whose path is as long.
        for other in {index ^ 1, dice.randrange(size)} - {index}:
            with pytest.raises(ProofError):
                merkle.verify_inclusion(other, size, leaf, hashes[1], root)


def test_sizes_beyond_any_memory() -> None:
    dice, uniform = random.Random(1), Uniform()
    for bits in range(20, 63):
        size = dice.getrandbits(bits) | 1 << (bits - 1)
        index, old = dice.randrange(size), dice.randint(1, size)
        proof = merkle.inclusion_plan(index, size).fold(
            [uniform.mth(1 << level) for level, _ in merkle.inclusion_plan(index, size).nodes]
        )
        merkle.verify_inclusion(index, size, LEAVES[0], proof, uniform.mth(size))
        plan = merkle.consistency_plan(old, size)
        hashes = plan.fold([uniform.mth(1 << level) for level, _ in plan.nodes])
        merkle.verify_consistency(old, size, uniform.mth(old), uniform.mth(size), hashes)


def flipped(data: bytes, bit: int) -> bytes:
    """One bit of it changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def tampered(proof: list[bytes], dice: random.Random) -> list[list[bytes]]:
    """Every way to spoil a proof by one step."""
    spoiled = [[*proof[:at], flipped(proof[at], dice.randrange(256)), *proof[at + 1 :]] for at in range(len(proof))]
    spoiled += [[*proof[:at], *proof[at + 1 :]] for at in range(len(proof))]
    spoiled += [[*proof[:at], dice.randbytes(32), *proof[at:]] for at in range(len(proof) + 1)]
    spoiled += [[*proof[: at + 1], *proof[at:]] for at in range(len(proof))]
    spoiled += [
        [*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :]]
        for at in range(len(proof) - 1)
        if proof[at] != proof[at + 1]
    ]
    spoiled += [[*proof[:at], proof[at][:31], *proof[at + 1 :]] for at in range(len(proof))]
    return [*spoiled, [one + b"\0" for one in proof] if proof else [b""], proof * 9 + [b"\0" * 32] * 65]


def test_every_tampered_inclusion_proof_is_refused() -> None:
    dice, tried = random.Random(2), 0
    for size in [*range(1, 20), 31, 32, 33, 64, 100, 255, 256, 257, 300]:
        root = mth(0, size)
        for index in sorted({0, size - 1, size // 2, dice.randrange(size)}):
            proof, leaf = path(index, 0, size), LEAVES[index]
            merkle.verify_inclusion(index, size, leaf, proof, root)
            wrong = [(index, size, leaf, one, root) for one in tampered(proof, dice)]
            wrong += [(index, size, flipped(leaf, bit), proof, root) for bit in range(0, 256, 17)]
            wrong += [(index, size, leaf, proof, flipped(root, bit)) for bit in range(0, 256, 17)]
            wrong += [(other, size, leaf, proof, root) for other in range(-1, size + 2) if other != index]
            for at, given_size, given_leaf, given, given_root in wrong:
                tried += 1
                with pytest.raises(ProofError):
                    merkle.verify_inclusion(at, given_size, given_leaf, given, given_root)
            # A proof does not fix the size where the path is the same; the root of the other size then differs.
            for other in range(1, 301):
                if other != size and index < other:
                    with pytest.raises(ProofError):
                        merkle.verify_inclusion(index, other, leaf, proof, mth(0, other))
    assert tried > 5000


def test_every_tampered_consistency_proof_is_refused() -> None:
    dice, tried = random.Random(3), 0
    for new in [2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 33, 64, 100, 255, 256, 257, 300]:
        for old in sorted({1, new - 1, new // 2, dice.randrange(1, new), largest_power_below(new)}):
            proof, before, after = subproof(old, 0, new, True), mth(0, old), mth(0, new)
            merkle.verify_consistency(old, new, before, after, proof)
            wrong = [(old, new, before, after, one) for one in tampered(proof, dice)]
            wrong += [(old, new, flipped(before, bit), after, proof) for bit in range(0, 256, 17)]
            wrong += [(old, new, before, flipped(after, bit), proof) for bit in range(0, 256, 17)]
            wrong += [(other, new, before, after, proof) for other in range(-1, new + 2) if other != old]
            wrong += [(old, other, before, after, proof) for other in (old - 1, old, -1, new // 3) if other != new]
            wrong += [(old, new, after, before, proof), (new, old, after, before, proof)]
            for given in wrong:
                tried += 1
                with pytest.raises(ProofError):
                    merkle.verify_consistency(*given)
    assert tried > 3000


def test_two_roots_of_one_size_are_refused() -> None:
    with pytest.raises(ProofError):
        merkle.verify_consistency(5, 5, mth(0, 5), mth(0, 6), [])
    with pytest.raises(ProofError):
        merkle.verify_consistency(5, 5, mth(0, 5), mth(0, 5), [mth(0, 5)])
    for old, new in ((6, 5), (-1, 5)):
        with pytest.raises(ProofError):
            merkle.consistency_plan(old, new)

"""Block headers of Ethereum's kind: from a node's JSON to the bytes that are hashed, and what a proof needs of them.

A header is an RLP list that has grown by fields at its end with every fork (yellow paper 4.4; EIP-1559, 4895, 4844,
4788, 7685, 7928). Which fields a chain has shows in the JSON; whether they were all is shown by the hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from control.ctlog.anchor.interface import AnchorUnavailable, LibraryMissing
from control.ctlog.anchor.trie import decode_rlp, keccak, uint
from control.ctlog.anchor.wire import data, quantity
from control.ctlog.errors import ProofError

try:
    import rlp  # type: ignore[import-untyped]
except ImportError as missing:
    raise LibraryMissing(missing) from None

MAX_HEADER_BYTES = 16384  # Some 700 as a rule; chains of few validators write these into `extraData`.

# In the header's order; True: an integer.
_ALWAYS: tuple[tuple[str, bool], ...] = (
    ("parentHash", False),
    ("sha3Uncles", False),
    ("miner", False),
    ("stateRoot", False),
    ("transactionsRoot", False),
    ("receiptsRoot", False),
    ("logsBloom", False),
    ("difficulty", True),
    ("number", True),
    ("gasLimit", True),
    ("gasUsed", True),
    ("timestamp", True),
    ("extraData", False),
    ("mixHash", False),
    ("nonce", False),
)
_BY_FORK: tuple[tuple[str, bool], ...] = (
    ("baseFeePerGas", True),
    ("withdrawalsRoot", False),
    ("blobGasUsed", True),
    ("excessBlobGas", True),
    ("parentBeaconBlockRoot", False),
    ("requestsHash", False),
    ("blockAccessListHash", False),
)
_STATE_ROOT, _NUMBER = 3, 8


@dataclass(frozen=True, slots=True)
class Header:
    """Of a header: its hash, its number, and the root of the state after it."""

    hash: bytes
    number: int
    state_root: bytes


def decode_header(encoded: bytes) -> Header:
    """Take a header apart. Raises ProofError. The hash says whether it is a header that a chain has."""
    if len(encoded) > MAX_HEADER_BYTES:
        raise ProofError(f"a block header of {len(encoded)} bytes is none")
    parts = decode_rlp(encoded, "the block header")
    if not isinstance(parts, list) or len(parts) < len(_ALWAYS):
        raise ProofError("the block header has too few fields")
    state_root = parts[_STATE_ROOT]
    if not isinstance(state_root, bytes) or len(state_root) != 32:
        raise ProofError("the block header has no state root")
    return Header(keccak(encoded), uint(parts[_NUMBER], "the block's number"), state_root)


def encode_header(block: Mapping[str, object]) -> bytes:
    """The header of a block as a node gives it in JSON. Raises AnchorUnavailable when the bytes do not have the block's
    hash: the node left something out, or the chain's headers have fields that are not known here."""
    present = [field for field in _BY_FORK if block.get(field[0]) is not None]
    values = [
        rlp.sedes.big_endian_int.serialize(quantity(block.get(name))) if integer else data(block.get(name))
        for name, integer in (*_ALWAYS, *present)
    ]
    encoded = bytes(rlp.encode(values))
    if keccak(encoded) != data(block.get("hash"), 32):
        raise AnchorUnavailable(
            f"the header of block {quantity(block.get('number'), 64)} does not have its hash: the node leaves a "
            f"field out, or this chain's headers have one that is not known here"
        )
    return encoded

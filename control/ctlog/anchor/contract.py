"""The compiled contract, and where in its storage a head lies.

`contract.json` is made from `heads.vy` by `python -m control.ctlog.anchor.compiler`; a test compiles again and
compares. What the file says of the code is checked by whoever reads it from a chain: the code's hash stands in the
account that a proof shows, so that a proof is one of this append-only code and of no other.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

CONTRACT_FILE = "contract.json"
SOURCE_FILE = "heads.vy"


class Contract(msgspec.Struct, frozen=True):
    """What the compiler made. Codes are hex behind 0x, slots the positions of the contract's variables."""

    compiler: str
    source_sha256: str
    abi: list[dict[str, object]]
    bytecode: str
    bytecode_runtime: str
    slots: dict[str, int]

    @property
    def runtime(self) -> bytes:
        """The code that an account of this contract has."""
        return bytes.fromhex(self.bytecode_runtime.removeprefix("0x"))


class Word(msgspec.Struct, frozen=True):
    """What stands beside a root in the contract's storage: see heads.vy."""

    index: int
    size: int
    timestamp: int
    block_number: int


@cache
def contract() -> Contract:
    """The contract as it is delivered."""
    data = resources.files(__package__).joinpath(CONTRACT_FILE).read_bytes()
    return msgspec.json.decode(data, type=Contract)


def unpack(word: int) -> Word | None:
    """A head's word; None for 0, which means that there is no head."""
    if word == 0:
        return None
    low = (1 << 64) - 1
    return Word((word >> 192) - 1, word >> 128 & low, word >> 64 & low, word & low)

"""What a log sees of an anchor, whatever carries it: heads go in, a status comes out, and at its start the log
compares itself with what is final (RFC 6962 section 7.3: a log must not show different views to different people).

An anchor never holds the log up: `publish` only queues, and every trouble with the chain is counted and told in the
status. The one thing that stops a log is a contradiction between it and its own final head.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from control.ctlog.errors import LogError, LogStopped, Unavailable
from dataplane.errors import StoqError

LOG_ID_BYTES = 32
ROOT_BYTES = 32
MAX_UINT64 = (1 << 64) - 1


class AnchorError(LogError):
    """An anchor failed; the log goes on."""


class AnchorUnavailable(AnchorError, Unavailable):
    """The chain's node does not answer, or not with what it should. Try again later."""


class AnchorRefused(AnchorError):
    """The contract refuses a call; `reason` is its own word."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"the contract refuses {what}: {reason}")
        self.reason = reason


class LibraryMissing(StoqError, ImportError):
    """A library that only anchors need is not installed."""

    def __init__(self, cause: ImportError) -> None:
        super().__init__(f"anchoring heads on a chain needs web3 ({cause}): install it with pip install 'web3==8.0.0'")


class Phase(enum.StrEnum):
    """How far the head that is under way has come."""

    IDLE = "idle"  # Nothing is under way.
    SUBMITTED = "submitted"  # A transaction is signed and on its way.
    INCLUDED = "included"  # A block has it, and a reorganisation may still undo that.


@dataclass(frozen=True, slots=True)
class AnchoredHead:
    """A tree head as the contract has it. `timestamp` in milliseconds since 1970, `index` its place among the log's
    heads from 0, `block_number` of the block that took it."""

    log_id: bytes
    size: int
    root: bytes
    timestamp: int
    index: int
    block_number: int


@dataclass(frozen=True, slots=True)
class AnchorStatus:
    """Where an anchor is and what has happened to it since its state file began."""

    place: str  # For people: chain, node, contract; no secret.
    phase: Phase
    queued_size: int  # Of the newest head that waits; 0: none does.
    submitted_size: int  # Of the head under way; 0: none is.
    final: AnchoredHead | None  # The newest that we know to be final.
    finality: str  # How final is told: "finalized tag" or "N confirmations"; "" until it is known.
    anchored: int  # Heads that became final through us.
    submissions: int  # Transactions signed, replacements included.
    replacements: int  # Of these, ones with a higher fee for one that was stuck.
    reorganisations: int  # How often a block that had our head was no longer part of the chain.
    resubmissions: int  # How often the head had to be sent again after that.
    errors: int  # Turns that ended in an error.
    errors_in_row: int
    last_error: str
    over_fee_cap: int  # Turns in which the chain asked for more than the cap.
    conflict: str  # Not "": the chain and the log contradict each other; nothing is anchored any more.


class HeadAnchor(Protocol):
    """The backend for heads, beside the one for entries."""

    async def publish(self, size: int, root: bytes, timestamp: int) -> None:
        """Queue a head: `root` 32 bytes, `timestamp` in ms since 1970. Returns at once. Only the newest queued head
        is kept: it proves all before it. Raises ValueError for what is no head."""

    def status(self) -> AnchorStatus:
        """What is known now; asks nobody."""

    async def newest_final(self, log_id: bytes) -> AnchoredHead | None:
        """The newest final head of a log; None: it has none. Raises AnchorUnavailable."""

    async def close(self) -> None:
        """Stop, leaving what is under way to the next start."""


async def check_log(anchored: AnchoredHead | None, size: int, root_at: Callable[[int], Awaitable[bytes]]) -> None:
    """Is a log of `size` entries a continuation of what is final on the chain? `root_at(n)` gives its root at n
    entries (n ≤ size). Raises LogStopped when it is behind (rolled back) or another tree."""
    if anchored is None:
        return
    if size < anchored.size:
        raise LogStopped(
            f"the log has {size} entries, but a head of {anchored.size} is final on the chain (block "
            f"{anchored.block_number}): its storage was rolled back. Restore the newer storage and lock store"
        )
    root = await root_at(anchored.size)
    if root != anchored.root:
        raise LogStopped(
            f"at {anchored.size} entries the log's root is {root.hex()}, but {anchored.root.hex()} is final on the "
            f"chain (block {anchored.block_number}): this is not the log that was anchored. Restore the right storage"
        )


def check_head(size: int, root: bytes, timestamp: int) -> None:
    """Raises ValueError for what the contract could not hold."""
    if not 0 < size <= MAX_UINT64 or not 0 <= timestamp <= MAX_UINT64 or len(root) != ROOT_BYTES:
        raise ValueError(f"no tree head: size {size}, root of {len(root)} bytes, timestamp {timestamp}")


def check_log_id(log_id: bytes) -> bytes:
    """The log ID, if it has the right length. Raises ValueError."""
    if len(log_id) != LOG_ID_BYTES:
        raise ValueError(f"a log ID has {LOG_ID_BYTES} bytes, this one {len(log_id)}")
    return log_id

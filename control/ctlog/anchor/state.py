"""What an anchor remembers across restarts: a small JSON file, replaced whole and made durable before each step that
depends on it.

The chain is the authority on which heads are there; the file keeps what the chain cannot tell: the signed transaction
under way (so that after a restart the same bytes are sent again, and not another transaction), when it was signed,
and the counters. A file that is lost or damaged therefore costs at most a refused transaction.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from control.ctlog.anchor.interface import AnchoredHead, Phase
from dataplane.errors import ConfigError

FORMAT = 1
MAX_FILE_BYTES = 1 << 20


class Transaction(msgspec.Struct, frozen=True):
    """As signed; fees in wei for a unit of gas, `signed_at` in seconds since 1970."""

    raw: bytes
    hash: bytes
    nonce: int
    fee_most: str  # Integers of up to 256 bits: JSON's readers stop earlier.
    fee_priority: str | None
    signed_at: float


class UnderWay(msgspec.Struct, frozen=True):
    """The head that is being anchored. `transaction` None: it is on the chain, and we did not keep how it got there.
    The block is the one it was last seen in."""

    size: int
    root: bytes
    timestamp: int
    phase: Phase
    transaction: Transaction | None
    block_number: int = 0
    block_hash: bytes = b""


class Counters(msgspec.Struct, frozen=True):
    """See AnchorStatus."""

    anchored: int = 0
    submissions: int = 0
    replacements: int = 0
    reorganisations: int = 0
    resubmissions: int = 0
    errors: int = 0
    over_fee_cap: int = 0


class State(msgspec.Struct, frozen=True):
    """All of it. `begun_at` is when the last head was signed first, in seconds since 1970."""

    log_id: bytes
    chain_id: int
    contract: str
    under_way: UnderWay | None = None
    final: AnchoredHead | None = None
    begun_at: float = 0.0
    begun_size: int = 0
    finalized_seen: bool = False
    counters: Counters = Counters()
    format: int = FORMAT


class StateFile:
    """The file of one anchor; locked against a second one from opening to closing."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: no directory, or another process has it."""
        self._path = path
        self.damaged: Path | None = None  # Where a file that could not be read was moved to.
        lock = path.with_name(path.name + ".lock")
        try:
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot open {lock}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"another process anchors with {path}: one log has one") from None

    def load(self, log_id: bytes, chain_id: int, contract: str) -> State:
        """What is remembered, or a new state. Raises ConfigError for the file of another log, chain or contract."""
        new = State(log_id, chain_id, contract)
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES)
            state = msgspec.json.decode(data, type=State)
        except FileNotFoundError:
            return new
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.damaged = self._path.with_name(self._path.name + ".damaged")
            self._path.replace(self.damaged)
            return new
        if state.format != FORMAT:
            raise ConfigError(f"{self._path} has format {state.format}; {FORMAT} is known here")
        if (state.log_id, state.chain_id, state.contract) != (log_id, chain_id, contract):
            raise ConfigError(
                f"{self._path} belongs to log {state.log_id.hex()[:16]}… on chain {state.chain_id}, contract "
                f"{state.contract}: name another state file"
            )
        return state

    def save(self, state: State) -> None:
        """Durable when it returns. Raises OSError, and the file is the old one or the new one."""
        new = self._path.with_name(self._path.name + ".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._lock)

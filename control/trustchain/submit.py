"""Precertificates to logs, SCTs back: all logs at once, each with its time, and only SCTs that hold.

A log that fails rests for a while, so that one dead log does not slow every issuance; when the others do not suffice it is
asked all the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from control.ctlog.structs import LogKey, Sct, SignedEntry, verify_sct
from control.trustchain.errors import NotIssued
from control.trustchain.profiles import CLOCK_SKEW_S


class LogClient(Protocol):
    """A log, as the authority needs it: an HTTP client, or the log itself in the same process."""

    @property
    def log_id(self) -> bytes:
        """SHA-256 of its key (32 bytes)."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def key(self) -> LogKey:
        """Its public key."""

    async def add_pre_chain(self, chain: Sequence[bytes]) -> Sct:
        """Log a precertificate: DER, the precertificate first, its root last. Raises StoqError or OSError."""

    async def add_chain(self, chain: Sequence[bytes]) -> Sct:
        """Log a certificate likewise."""


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """How many SCTs a leaf needs, how long a log may take, how long the rest are waited for once there are enough, and how
    long a log that failed is spared; seconds. `allow_unlogged`: with no logs at all, issue without SCTs."""

    min_scts: int = 1
    timeout_s: float = 10.0
    linger_s: float = 1.0
    rest_s: float = 15.0
    allow_unlogged: bool = False


class Submitter:
    """The logs of an authority. `clock` is the wall clock (an SCT from the future is refused), `timer` a monotonic one."""

    def __init__(
        self, logs: Sequence[LogClient], policy: LogPolicy, clock: Callable[[], float], timer: Callable[[], float]
    ) -> None:
        self.logs = tuple(logs)
        self.policy = policy
        self._clock = clock
        self._timer = timer
        self._rests_until: dict[bytes, float] = {}
        self.failures: dict[str, str] = {}  # The last failure of each log that has not answered since.

    @property
    def wanted(self) -> bool:
        """Do leaves go to logs? Raises NotIssued when they must and there are too few."""
        if not self.logs and self.policy.allow_unlogged:
            return False
        if len(self.logs) < max(1, self.policy.min_scts):
            raise NotIssued(
                f"every leaf needs {self.policy.min_scts} SCTs and {len(self.logs)} logs are configured: add --log URL, "
                "or allow certificates without (allow_unlogged in config.json; STOQ peers refuse them)"
            )
        return True

    async def collect(self, chain: Sequence[bytes], entry: SignedEntry) -> tuple[Sct, ...]:
        """SCTs for a precertificate's chain, at most one a log, in the logs' order. Raises NotIssued when they are too
        few."""
        now = self._timer()
        rested = [log for log in self.logs if self._rests_until.get(log.log_id, 0.0) <= now]
        chosen = rested if len(rested) >= self.policy.min_scts else list(self.logs)
        tasks = {asyncio.ensure_future(self._ask(log, chain, entry)): log for log in chosen}
        try:
            await self._enough(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
        found = {}
        for task, log in tasks.items():
            if task.done() and not task.cancelled() and (sct := task.result()) is not None:
                found[log.log_id] = sct
        if len(found) < self.policy.min_scts:
            reasons = "; ".join(f"{log.name}: {self.failures.get(log.name, 'no answer')}" for log in chosen)
            raise NotIssued(f"{len(found)} of the {self.policy.min_scts} SCTs needed were had ({reasons}): try again later")
        return tuple(found[log.log_id] for log in chosen if log.log_id in found)

    async def _enough(self, pending: set[asyncio.Future[Sct | None]]) -> None:
        """Until all have answered, or enough have and the others had their chance."""
        good, deadline = 0, self._timer() + self.policy.timeout_s
        while pending:
            left = deadline - self._timer()
            done, pending = await asyncio.wait(pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return
            good += sum(task.result() is not None for task in done)
            if good >= self.policy.min_scts:
                deadline = min(deadline, self._timer() + self.policy.linger_s)

    async def _ask(self, log: LogClient, chain: Sequence[bytes], entry: SignedEntry) -> Sct | None:
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                sct = await log.add_pre_chain(chain)
            verify_sct(sct, entry, log.key)
            if sct.timestamp / 1000 > self._clock() + CLOCK_SKEW_S:
                raise NotIssued("its SCT is from the future: check both clocks")
        except TimeoutError:
            self._failed(log, f"no answer in {self.policy.timeout_s:g} s")
        except Exception as error:  # Whatever a log's client does wrong is that log's failure.
            self._failed(log, str(error) or type(error).__name__)
        else:
            self._rests_until.pop(log.log_id, None)
            self.failures.pop(log.name, None)
            return sct
        return None

    def _failed(self, log: LogClient, why: str) -> None:
        self._rests_until[log.log_id] = self._timer() + self.policy.rest_s
        self.failures[log.name] = why


def fingerprint(der: bytes) -> bytes:
    """SHA-256 of a certificate's DER."""
    return hashlib.sha256(der).digest()

"""Is what an SCT promises kept? An SCT says that a log has an entry; an inclusion proof shows it, against a tree head
that the log has signed (RFC 6962 sections 2.1.1 and 3.5).

`check_inclusion` is pure. `InclusionChecker` fetches what it needs, for use between a verdict and the delivery of the
connection. What fetches must not itself wait for such a check: a log that is read over STOQ is read with a verifier
that demands no inclusion proof.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from control.ctlog import merkle
from control.ctlog.client import LogClient
from control.ctlog.errors import LogError, LogStopped, NotFound, ProofError, Unavailable
from control.ctlog.note import TreeHead
from control.trustchain.known_logs import KnownLog, KnownLogs
from control.trustchain.reasons import Reason, Refusal

TIMEOUT_SECONDS = 5.0  # For all logs of one check; a peer waits that long at most.


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """What an accepted SCT promises: the entry's leaf hash in this log, and its index where the SCT says it.
    `timestamp` is in milliseconds since 1970."""

    log_id: bytes
    timestamp: int
    leaf_hash: bytes
    index: int | None


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Of a leaf in the tree of `head`, in the log of this ID."""

    log_id: bytes
    index: int
    hashes: tuple[bytes, ...]
    head: TreeHead


def check_inclusion(
    entry: LoggedEntry, proof: InclusionProof, log: KnownLog, now: datetime.datetime, skew: datetime.timedelta
) -> None:
    """That the entry is where the proof says, in a tree that this log has signed. Raises Refusal."""
    head, text = proof.head, ""
    if proof.log_id != entry.log_id or proof.log_id != log.log_id:
        text = "the proof is of another log than the SCT"
    elif entry.index is not None and proof.index != entry.index:
        text = f"the SCT promises entry {entry.index}, the proof is of entry {proof.index}"
    elif head.timestamp / 1000 > (now + skew).timestamp():
        text = "the tree head is from the future: check both clocks"
    else:
        try:
            head.verify(log.key)
            merkle.verify_inclusion(proof.index, head.size, entry.leaf_hash, proof.hashes, head.root)
        except ProofError as error:
            text = str(error)
    if text:
        raise Refusal(
            Reason.INCLUSION_WRONG,
            f"the log {log.name!r} does not prove that it has the certificate: {text}; "
            "keep the proof and tell the log's operator",
        )


class LogReader(Protocol):
    """Reads logs, by their ID. Both calls raise LogError."""

    async def get_sth(self, log_id: bytes) -> TreeHead:
        """The newest tree head."""

    async def get_proof_by_hash(self, log_id: bytes, leaf_hash: bytes, size: int) -> tuple[int, Sequence[bytes]]:
        """Index and proof of a leaf hash in the tree of `size`."""


class LogClients:
    """A LogReader of one client a log."""

    def __init__(self, clients: Mapping[bytes, LogClient]) -> None:
        self._clients = clients

    def _client(self, log_id: bytes) -> LogClient:
        client = self._clients.get(log_id)
        if client is None:
            raise Unavailable(f"it is not known how to reach the log {log_id.hex()[:16]}")
        return client

    async def get_sth(self, log_id: bytes) -> TreeHead:
        """See LogReader."""
        return await self._client(log_id).get_sth()

    async def get_proof_by_hash(self, log_id: bytes, leaf_hash: bytes, size: int) -> tuple[int, Sequence[bytes]]:
        """See LogReader."""
        return await self._client(log_id).get_proof_by_hash(leaf_hash, size)


class InclusionChecker:
    """Fetches proofs and checks them. Keeps the newest head of each known log, so that a burst of peers costs one
    request each."""

    def __init__(
        self,
        reader: LogReader,
        clock: Callable[[], float],
        *,
        skew: datetime.timedelta = datetime.timedelta(minutes=5),
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._skew = skew
        self._timeout = timeout
        self._heads: dict[bytes, TreeHead] = {}

    async def check(self, entries: Sequence[LoggedEntry], logs: KnownLogs) -> InclusionProof:
        """A proof for one of the entries, from the first log that gives one. Raises Refusal: with INCLUSION_WRONG as
        soon as a log gives a proof that does not hold, with INCLUSION_MISSING when a log says that it has no such
        entry, and with INCLUSION_UNAVAILABLE when none answers in time."""
        for log_id in [one for one in self._heads if one not in logs]:
            del self._heads[log_id]
        said: list[Refusal] = []
        try:
            async with asyncio.timeout(self._timeout):
                for entry in entries:
                    log = logs.get(entry.log_id)
                    if log is None:
                        continue
                    try:
                        return await self._prove(entry, log)
                    except Refusal as refusal:
                        if refusal.reason is Reason.INCLUSION_WRONG:
                            raise
                        said.append(refusal)
        except TimeoutError:
            said.append(Refusal(Reason.INCLUSION_UNAVAILABLE, f"no answer within {self._timeout:g} s"))
        missing = [one for one in said if one.reason is Reason.INCLUSION_MISSING]
        if missing:
            raise missing[0]
        texts = "; ".join(one.text for one in said) or "no SCT is of a log that is known here"
        raise Refusal(
            Reason.INCLUSION_UNAVAILABLE, f"no log proves in time that it has the certificate ({texts}): try again"
        )

    async def _prove(self, entry: LoggedEntry, log: KnownLog) -> InclusionProof:
        try:
            head = self._heads.get(log.log_id)
            if head is None or not _covers(head, entry):
                head = await self._reader.get_sth(log.log_id)
                head.verify(log.key)
                self._heads[log.log_id] = head
            if entry.index is not None and head.size <= entry.index:
                raise NotFound(f"its tree has {head.size} entries, the SCT promises number {entry.index}")
            index, hashes = await self._reader.get_proof_by_hash(log.log_id, entry.leaf_hash, head.size)
        except ProofError as error:
            raise Refusal(Reason.INCLUSION_WRONG, f"the log {log.name!r} does not answer as it must: {error}") from None
        except NotFound as error:
            raise Refusal(
                Reason.INCLUSION_MISSING,
                f"the log {log.name!r} does not have the certificate though it gave an SCT: {error}",
            ) from None
        except (LogError, LogStopped, OSError) as error:  # Malformed too: whatever answers is not the log.
            raise Refusal(Reason.INCLUSION_UNAVAILABLE, f"the log {log.name!r}: {error}") from None
        proof = InclusionProof(log.log_id, index, tuple(hashes), head)
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        check_inclusion(entry, proof, log, now, self._skew)
        return proof


def _covers(head: TreeHead, entry: LoggedEntry) -> bool:
    """Must the entry be in this tree?"""
    return head.size > entry.index if entry.index is not None else head.timestamp > entry.timestamp

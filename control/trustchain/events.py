"""Revocations as they happen, for whoever carries them on: the service that pushes them to nodes, caches that must forget.

Each has a number, counted up from 1 without a gap and kept in the store, so that a subscriber who was away asks for what
came after the last one it saw (`Authority.revocations`). A subscriber who does not take its events is cut off and told so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from control.trustchain.errors import Busy, SubscriptionOverrun
from control.trustchain.store import Row

MAX_PENDING = 4096  # Events one subscriber has not taken.
MAX_SUBSCRIBERS = 4096


@dataclass(frozen=True, slots=True)
class RevocationEvent:
    """One certificate that is no longer good. `serial` is the number, `fingerprint` SHA-256 of its DER, `spki` SHA-256 of
    its SubjectPublicKeyInfo, `issuer_key_hash` the same of its issuer's; times are Unix seconds, `reason` a CRLReason's
    name (RFC 5280 section 5.3.1)."""

    number: int
    serial: int
    fingerprint: bytes
    spki: bytes
    issuer_key_hash: bytes
    subject: str
    reason: str
    revoked_at: float
    not_after: int


def event_of(row: Row, issuer_key_hash: bytes) -> RevocationEvent:
    """The event of a revoked certificate."""
    assert row.revocation is not None and row.revoked_at is not None and row.reason is not None
    return RevocationEvent(
        row.revocation,
        int.from_bytes(row.serial, "big"),
        row.fingerprint,
        row.spki,
        issuer_key_hash,
        row.subject,
        row.reason,
        row.revoked_at,
        row.not_after,
    )


class Subscription:
    """An async iterator over events from now on; `close` it, or use it with `with`."""

    def __init__(self, owner: Subscribers) -> None:
        self._owner = owner
        self._queue: asyncio.Queue[RevocationEvent | None] = asyncio.Queue()
        self._overrun = False
        self._closed = False

    def push(self, event: RevocationEvent) -> None:
        """From the authority."""
        if self._queue.qsize() >= MAX_PENDING:
            self._overrun = True
            self.close()
        else:
            self._queue.put_nowait(event)

    def close(self) -> None:
        """No more events; iteration ends after those that wait."""
        if not self._closed:
            self._closed = True
            self._owner.remove(self)
            self._queue.put_nowait(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RevocationEvent:
        event = await self._queue.get()
        if event is not None:
            return event
        self._queue.put_nowait(None)  # For whoever asks again.
        if self._overrun:
            raise SubscriptionOverrun(f"{MAX_PENDING} revocations were not taken: read them anew from the last number seen")
        raise StopAsyncIteration


class Subscribers:
    """All of them; bounded."""

    def __init__(self) -> None:
        self._all: set[Subscription] = set()

    def add(self) -> Subscription:
        """A new one. Raises Busy at the bound."""
        if len(self._all) >= MAX_SUBSCRIBERS:
            raise Busy(f"{MAX_SUBSCRIBERS} subscribers, and not more are served")
        subscription = Subscription(self)
        self._all.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """It wants no more."""
        self._all.discard(subscription)

    def push(self, event: RevocationEvent) -> None:
        """To everyone."""
        for subscription in tuple(self._all):
            subscription.push(event)

    def close(self) -> None:
        """End all iterations."""
        for subscription in tuple(self._all):
            subscription.close()

"""Anti-replay nonces (RFC 8555 section 6.5): each is good once, for a while, and only in the process that gave it out.

A nonce is a counter and the time it was made, under a MAC whose key lives as long as the process. So giving one out
takes no memory, however many are asked for; only those that were used are remembered. That table is bounded: at the
bound the oldest used one is forgotten, and with it everything that was given out before it is refused. Whoever is
refused gets a fresh one with the answer (`badNonce`) and tries again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from heapq import heappush, heappushpop

from control.trustchain.acme.encoding import EncodingError, decode, encode

MAX_USED = 65_536  # About ten MiB; at 100 requests a second ten minutes' worth.
LIFETIME_SECONDS = 3_600.0
MAC_BYTES = 16  # 128 bits against guessing.

_BODY = struct.Struct("!QQ")


class Nonces:
    """The nonces of one server. Not thread-safe: all of it belongs to one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_used: int = MAX_USED,
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> None:
        self._clock = clock
        self._max_used = max_used
        self._lifetime_ms = int(lifetime_seconds * 1000)
        self._key = secrets.token_bytes(32)
        self._next = 1
        self._floor = 0  # Counters up to here are refused, whether they were used or not.
        self._used: set[int] = set()
        self._heap: list[int] = []

    def __len__(self) -> int:
        """How many used ones are remembered."""
        return len(self._used)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:MAC_BYTES]

    def issue(self) -> str:
        """A fresh nonce (base64url)."""
        body = _BODY.pack(self._next, int(self._clock() * 1000))
        self._next += 1
        return encode(body + self._mac(body))

    def use(self, nonce: str) -> bool:
        """True once for each nonce given out; False for one that is used up, forged, too old, or of another process."""
        try:
            raw = decode(nonce)
        except EncodingError:
            return False
        if len(raw) != _BODY.size + MAC_BYTES:
            return False
        body = raw[: _BODY.size]
        if not hmac.compare_digest(self._mac(body), raw[_BODY.size :]):
            return False
        counter, made_ms = _BODY.unpack(body)
        if counter <= self._floor or counter in self._used:
            return False
        if int(self._clock() * 1000) - made_ms > self._lifetime_ms:
            return False
        self._remember(counter)
        return True

    def _remember(self, counter: int) -> None:
        self._used.add(counter)
        if len(self._used) <= self._max_used:
            heappush(self._heap, counter)
            return
        oldest = heappushpop(self._heap, counter)
        self._used.discard(oldest)
        self._floor = oldest

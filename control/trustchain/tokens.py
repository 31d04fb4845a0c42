"""One-time join tokens: what a node needs to get its first certificate, in one line of text.

    base64url( version 1 | port 2 | IPv6 address 16 | SHA-256 of the root certificate 32 | secret 16 | expiry 8 | check 4 )

Whoever holds it knows where the authority is and which root to believe it by, and may ask once for the certificate that the
token was made for. The authority keeps SHA-256 of the secret, never the secret. `check` (the beginning of a SHA-256) tells
a mistyped token from a refused one; expiry is in Unix seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass

from control.trustchain.errors import BadRequest, Busy
from control.trustchain.profiles import Names, ProfileName
from control.trustchain.roles import Role

VERSION = 1
SECRET_BYTES = 16
MAX_TTL_S = 7 * 86400
MIN_TTL_S = 1
_LAYOUT = struct.Struct("!BH16s32s16sQ")
_CHECK_BYTES = 4
TOKEN_BYTES = _LAYOUT.size + _CHECK_BYTES

MAX_FAILURES = 10  # Of one source in a window; of all together a hundred times that.
FAILURE_WINDOW_S = 60.0
MAX_SOURCES = 4096


@dataclass(frozen=True, slots=True)
class Token:
    """A join token. `root_sha256`: the fingerprint of the authority's root certificate; `expires` in Unix seconds."""

    address: ipaddress.IPv6Address
    port: int
    root_sha256: bytes
    secret: bytes
    expires: int

    def __str__(self) -> str:
        """The text to hand over; it is a secret."""
        raw = _LAYOUT.pack(VERSION, self.port, self.address.packed, self.root_sha256, self.secret, self.expires)
        return base64.urlsafe_b64encode(raw + _check(raw)).decode().rstrip("=")

    def __repr__(self) -> str:
        return f"Token([{self.address}]:{self.port}, root {self.root_sha256.hex()[:16]}…, expires {self.expires})"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises BadRequest that says what is wrong with the text."""
        text = text.strip()
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest("this is no join token: it is not base64url") from None
        if len(raw) != TOKEN_BYTES or raw[-_CHECK_BYTES:] != _check(raw[:-_CHECK_BYTES]):
            raise BadRequest("this join token is not complete or was mistyped: copy the whole line")
        version, port, address, root, secret, expires = _LAYOUT.unpack(raw[:-_CHECK_BYTES])
        if version != VERSION:
            raise BadRequest(f"a join token of version {version}; this program knows {VERSION}")
        return cls(ipaddress.IPv6Address(address), port, root, secret, expires)

    @property
    def secret_hash(self) -> bytes:
        """What the authority knows of it."""
        return secret_hash(self.secret)


def _check(raw: bytes) -> bytes:
    return hashlib.sha256(b"stoq join token" + raw).digest()[:_CHECK_BYTES]


def secret_hash(secret: bytes) -> bytes:
    """SHA-256 of a token's secret. It has 128 random bits: nothing slower is needed."""
    return hashlib.sha256(secret).digest()


def new_secret() -> bytes:
    """A token's secret."""
    return os.urandom(SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """What a token is for. `ttl_s`: how long it may be used, in seconds; `names`: what the certificate may name."""

    names: Names
    roles: frozenset[Role] = frozenset()
    profile: ProfileName = ProfileName.NODE
    subject: str = ""
    ttl_s: float = 600

    def check(self) -> None:
        """Raises BadRequest."""
        if not MIN_TTL_S <= self.ttl_s <= MAX_TTL_S:
            raise BadRequest(f"a token lives {MIN_TTL_S} s to {MAX_TTL_S} s, not {self.ttl_s:.0f} s")


class Attempts:
    """How often who presented a wrong token lately. Sources are bounded; the ones heard of longest ago are forgotten, the
    count of all together is not."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._all = (0.0, 0)

    def check(self, source: str, now: float) -> None:
        """Raises Busy when it was too often."""
        begun, count = self._sources.get(source, (now, 0))
        if abs(now - begun) < FAILURE_WINDOW_S and count >= MAX_FAILURES:
            raise Busy(f"too many wrong tokens from {source}: wait {FAILURE_WINDOW_S:.0f} s")

    def failed(self, source: str, now: float) -> None:
        """One more. Raises Busy when it was too many from everywhere: that stops nobody who has a token, but the audit log
        does not grow with a flood."""
        begun, count = self._all
        if abs(now - begun) < FAILURE_WINDOW_S and count >= 100 * MAX_FAILURES:
            raise Busy(f"too many wrong tokens from everywhere: wait {FAILURE_WINDOW_S:.0f} s")
        self._sources[source] = _one_more(self._sources.pop(source, (now, 0)), now)
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)
        self._all = _one_more(self._all, now)


def _one_more(seen: tuple[float, int], now: float) -> tuple[float, int]:
    begun, count = seen
    return (begun, count + 1) if abs(now - begun) < FAILURE_WINDOW_S else (now, 1)

"""Pins: keys that a peer's chain must contain, whatever authority vouches for it. A pin is the SHA-256 of a
SubjectPublicKeyInfo, written "sha256/BASE64" (the fingerprint of RFC 7469 section 2.4); it may be the peer's own key or
that of any certificate its path goes through.

A set needs a backup: a second key, kept elsewhere, so that the loss of the first does not lock the peer out for as long
as somebody holds on to the pins.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from dataplane.errors import ConfigError

PREFIX = "sha256/"
HASH_BYTES = 32
MAX_PINS = 16  # Of one set.


class PinError(ConfigError):
    """A pin or a set of pins that is not acceptable; the text says what is."""


def format_pin(key_hash: bytes) -> str:
    """The pin of a key, from its SHA-256 (32 bytes)."""
    return PREFIX + base64.b64encode(key_hash).decode()


def parse_pin(text: str) -> bytes:
    """The SHA-256 (32 bytes) that a pin names. Raises PinError."""
    try:
        key_hash = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except (binascii.Error, ValueError):
        key_hash = b""
    if len(key_hash) != HASH_BYTES or format_pin(key_hash) != text:
        raise PinError(f"{text[:80]!r} is no pin: write {PREFIX} and the SHA-256 of a public key in base64")
    return key_hash


def peer_name(text: str) -> str:
    """A peer's name as pins are kept under it: a DNS name, an IPv6 address or a node id (hex), written one way."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower().removesuffix(".")


@dataclass(frozen=True, slots=True)
class PinSet:
    """The pins of one peer, as SHA-256 of keys."""

    key_hashes: frozenset[bytes]

    @classmethod
    def parse(cls, pins: Iterable[str], *, allow_single: bool = False) -> PinSet:
        """From their texts. Raises PinError, also for fewer than two different pins unless that is allowed: then
        the loss of the one key can only be mended by changing the pins everywhere."""
        hashes = frozenset(parse_pin(text) for text in pins)
        if not hashes:
            raise PinError("a set of pins without a pin would shut the peer out: leave it out instead")
        if len(hashes) == 1 and not allow_single:
            raise PinError("a set of pins needs a backup: add the pin of a second key that is kept elsewhere")
        if len(hashes) > MAX_PINS:
            raise PinError(f"{len(hashes)} pins for one peer; {MAX_PINS} are taken")
        return cls(hashes)

    def matches(self, key_hashes: Iterable[bytes]) -> bool:
        """Is one of these keys pinned?"""
        return not self.key_hashes.isdisjoint(key_hashes)

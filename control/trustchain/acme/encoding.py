"""base64url as JOSE uses it (RFC 7515 section 2): no padding, no other characters, one spelling for each value."""

from __future__ import annotations

import base64
import binascii
import re

from dataplane.errors import StoqError

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


class EncodingError(StoqError, ValueError):
    """Text that is not base64url without padding."""


def encode(data: bytes) -> str:
    """Bytes as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes. Raises EncodingError for padding, other alphabets, impossible lengths and stray bits at the end."""
    if not _ALPHABET.fullmatch(text) or len(text) % 4 == 1:
        raise EncodingError("not base64url without padding (RFC 7515 section 2)")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise EncodingError(f"not base64url: {error}") from None
    if encode(data) != text:
        raise EncodingError("not base64url: bits are set after the last byte")
    return data

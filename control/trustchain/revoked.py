"""What is revoked, in the form in which it is looked up: one table of SHA-256 digests. A certificate is found there by
its public key, or by its issuer and serial number (as a CRL names it, RFC 5280 section 5.1). Not by its fingerprint:
whoever holds a certificate can write its signature in another way that is as good (an ECDSA signature has two forms),
and then it has another fingerprint.

A verdict keeps the digests of its whole path, so whether it was revoked since is a few look-ups, without certificates.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from control.ctlog.precert import key_hash


@dataclass(frozen=True, slots=True)
class Revocation:
    """Why and when; `reason` is a CRLReason's name (RFC 5280 section 5.3.1)."""

    reason: str
    at: datetime.datetime

    def __str__(self) -> str:
        return f"revoked on {self.at:%Y-%m-%d %H:%M} UTC ({self.reason})"


RevokedTable = Mapping[bytes, Revocation]
NOTHING_REVOKED: RevokedTable = MappingProxyType({})


def issuer_and_serial(issuer_key_hash: bytes, serial: int) -> bytes:
    """The digest of a certificate as a CRL names it; `issuer_key_hash` is the SHA-256 of its issuer's
    SubjectPublicKeyInfo."""
    number = serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big")
    return hashlib.sha256(b"issuer and serial\0" + issuer_key_hash + number).digest()


@dataclass(frozen=True, slots=True)
class Digests:
    """One certificate of a path. `by_issuer` is empty for an anchor, which nobody has issued."""

    fingerprint: bytes  # Of the certificate as it was sent.
    key: bytes
    by_issuer: bytes

    def __iter__(self) -> Iterator[bytes]:
        """By which it can be revoked."""
        yield self.key
        if self.by_issuer:
            yield self.by_issuer


def path_digests(path: Sequence[x509.Certificate]) -> tuple[Digests, ...]:
    """Of each certificate of a path, leaf first, anchor last."""
    keys = [key_hash(certificate) for certificate in path]
    return tuple(
        Digests(
            certificate.fingerprint(SHA256()),
            keys[place],
            issuer_and_serial(keys[place + 1], certificate.serial_number) if place + 1 < len(path) else b"",
        )
        for place, certificate in enumerate(path)
    )


def find_revocation(revoked: RevokedTable, digests: Iterable[bytes]) -> Revocation | None:
    """The first of these that is revoked."""
    if not revoked:
        return None
    return next((revoked[one] for one in digests if one in revoked), None)

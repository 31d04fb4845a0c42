"""Which chains a log takes: RFC 6962 section 3.1. A submission must lead by signatures to a root that the log knows, so
that nobody can fill it with inventions; everything else about a certificate (it may be expired, its names may be wrong)
is what logs are there to show, and is taken.

A pure function of the submission, but for a memory of links that were verified before.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.errors import LogError, Malformed, Refused
from control.ctlog.precert import certificate_entry, is_precertificate, precertificate_entry
from control.ctlog.sequencer import Submission

MAX_CERTIFICATES = 12
MAX_CERTIFICATE_BYTES = 64 << 10
MAX_ISSUERS = 4096  # Parsed and verified issuers remembered, about 4 KiB each.


@dataclass(frozen=True, slots=True)
class Window:
    """The shard: certificates whose notAfter is at or after `start` and before `limit` (seconds since 1970) are taken;
    None: no limit."""

    start: float | None = None
    limit: float | None = None

    def check(self, certificate: x509.Certificate) -> None:
        """Raises Refused."""
        end = certificate.not_valid_after_utc.timestamp()
        if (self.start is not None and end < self.start) or (self.limit is not None and end >= self.limit):
            raise Refused(f"the certificate ends at {_day(end)}; this log takes those that end {self}")

    def __str__(self) -> str:
        begin = f"from {_day(self.start)}" if self.start is not None else ""
        end = f"before {_day(self.limit)}" if self.limit is not None else ""
        return " and ".join(part for part in (begin, end) if part) or "at any time"


def _day(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    der: bytes
    fingerprint: bytes


class Acceptor:
    """The roots of a log and its shard. Raises LogError without a root."""

    def __init__(self, roots: Sequence[x509.Certificate], window: Window = Window()) -> None:
        if not roots:
            raise LogError("a log without a root takes nothing: name the roots it is to take")
        self.window = window
        self._issuers: OrderedDict[bytes, _Issuer] = OrderedDict()
        self._links: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._roots = {one.fingerprint: one for one in map(_issuer, roots)}
        self._by_name: dict[bytes, list[_Issuer]] = {}
        for root in self._roots.values():
            self._by_name.setdefault(root.certificate.subject.public_bytes(), []).append(root)

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The roots, DER."""
        return tuple(root.der for root in self._roots.values())

    def submission(self, chain: Sequence[bytes], *, precertificate: bool) -> Submission:
        """Check a chain (DER, leaf first; the root may be left out). Raises Malformed or Refused."""
        if not 1 <= len(chain) <= MAX_CERTIFICATES:
            raise Refused(f"{len(chain)} certificates; 1 to {MAX_CERTIFICATES} are taken")
        for der in chain:
            if len(der) > MAX_CERTIFICATE_BYTES:
                raise Refused(f"a certificate of {len(der)} bytes; {MAX_CERTIFICATE_BYTES} are taken")
        leaf = _parse(chain[0])
        if precertificate != is_precertificate(leaf):
            raise Refused(
                "the certificate carries no poison: send it to add-chain"
                if precertificate
                else "this is a precertificate: send it to add-pre-chain"
            )
        self.window.check(leaf)
        issuers = self._to_root(leaf, hashlib.sha256(chain[0]).digest(), [self._find(der) for der in chain[1:]])
        if precertificate:
            entry = precertificate_entry(leaf, [one.certificate for one in issuers])
        else:
            entry = certificate_entry(leaf)
        return Submission(
            entry,
            chain[0] if precertificate else b"",
            tuple(one.der for one in issuers),
            tuple(one.fingerprint for one in issuers),
        )

    def _find(self, der: bytes) -> _Issuer:
        fingerprint = hashlib.sha256(der).digest()
        known = self._roots.get(fingerprint) or self._issuers.get(fingerprint)
        if known is None:
            known = self._issuers[fingerprint] = _issuer(_parse(der))
            if len(self._issuers) > MAX_ISSUERS:
                self._issuers.popitem(last=False)
        return known

    def _to_root(self, leaf: x509.Certificate, fingerprint: bytes, given: list[_Issuer]) -> list[_Issuer]:
        """The issuers from the leaf's up to a root, each link's signature verified."""
        path: list[_Issuer] = []
        child, child_fingerprint = leaf, fingerprint
        for issuer in given:
            self._check_link(child, child_fingerprint, issuer, remember=bool(path))
            path.append(issuer)
            if issuer.fingerprint in self._roots:
                if len(path) != len(given):
                    raise Refused("there are certificates after the root: send the chain in order, root last")
                return path
            child, child_fingerprint = issuer.certificate, issuer.fingerprint
        if fingerprint in self._roots and not given:
            return []
        for root in self._by_name.get(child.issuer.public_bytes(), ()):
            try:
                self._check_link(child, child_fingerprint, root, remember=bool(path))
            except Refused:
                continue
            return [*path, root]
        raise Refused(
            f"the chain does not lead to a root of this log: {child.issuer.rfc4514_string()!r} is none; get-roots "
            "lists them"
        )

    def _check_link(
        self, child: x509.Certificate, fingerprint: bytes, issuer: _Issuer, *, remember: bool
    ) -> None:
        link = (fingerprint, issuer.fingerprint)
        if remember and link in self._links:
            return
        try:
            child.verify_directly_issued_by(issuer.certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise Refused(
                f"{_name(child)} is not issued by {_name(issuer.certificate)}, which comes next"
                + (f": {error}" if str(error) else "")
            ) from None
        if not _may_issue(issuer.certificate):
            raise Refused(f"{_name(issuer.certificate)} is not a certificate authority's certificate")
        if remember:  # A leaf comes once; the links above it come each time.
            self._links[link] = None
            if len(self._links) > MAX_ISSUERS:
                self._links.popitem(last=False)


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
    return ca


def _parse(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.subject, certificate.issuer, certificate.not_valid_after_utc  # noqa: B018
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise Malformed(f"a certificate cannot be parsed: {error}") from None
    return certificate


def _issuer(certificate: x509.Certificate) -> _Issuer:
    der = certificate.public_bytes(Encoding.DER)
    return _Issuer(certificate, der, hashlib.sha256(der).digest())


def _name(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string()[:200] or "(no name)")

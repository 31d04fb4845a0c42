"""Revocation for strangers: CRLs (RFC 5280 section 5) and answers of an OCSP responder (RFC 6960, RFC 9654), each signed by
the intermediate whose certificates it is about; old intermediates go on signing for theirs.

Pure functions of their inputs; `Authority` keeps the numbers and decides when a CRL is made anew.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, Hash, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from control.trustchain.certificates import Issuer
from control.trustchain.errors import BadRequest
from control.trustchain.keys import signature_hash, spki_bits
from control.trustchain.profiles import CLOCK_SKEW_S
from control.trustchain.store import Row

CRL_LIFETIME_S = 24 * 3600
OCSP_LIFETIME_S = 3600
CRL_GRACE_S = 2 * CRL_LIFETIME_S  # An expired certificate stays on this long, so that every list had it (section 3.3).
MAX_OCSP_BYTES = 4096
MAX_NONCE_BYTES = 128  # RFC 9654 section 2.1.

# Reasons that a person may give; a hold would be a promise to take it back, which nobody downstream could follow.
REASONS: dict[str, x509.ReasonFlags] = {
    reason.value: reason
    for reason in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.ca_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}


def check_reason(reason: str) -> str:
    """Raises BadRequest that lists the reasons."""
    if reason not in REASONS:
        raise BadRequest(f"{reason[:40]!r} is no reason; the reasons are {', '.join(REASONS)}")
    return reason


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


@dataclass(frozen=True, slots=True)
class Crl:
    """A signed list. `der` as it is served; `stale_at`: when the next should be made; Unix seconds."""

    der: bytes
    number: int
    this_update: float
    next_update: float

    @property
    def stale_at(self) -> float:
        """Half of its life."""
        return (self.this_update + self.next_update) / 2

    @property
    def pem(self) -> bytes:
        """The same in PEM."""
        return x509.load_der_x509_crl(self.der).public_bytes(Encoding.PEM)


def build_crl(
    issuer: Issuer, number: int, revoked: Sequence[tuple[bytes, float, str]], now: float, lifetime_s: float = CRL_LIFETIME_S
) -> Crl:
    """An issuer's list. `revoked`: serial (20 bytes), time, reason of each."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(_time(now - CLOCK_SKEW_S))
        .next_update(_time(now + lifetime_s))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(issuer.authority_key_id, critical=False)
    )
    for serial, at, reason in revoked:
        entry = x509.RevokedCertificateBuilder(int.from_bytes(serial, "big"), _time(at))
        if reason != "unspecified":  # Section 5.3.1: then the extension is left out.
            entry = entry.add_extension(x509.CRLReason(REASONS[reason]), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    der = builder.sign(issuer.key, signature_hash(issuer.key)).public_bytes(Encoding.DER)
    return Crl(der, number, now, now + lifetime_s)


def _digest(algorithm: HashAlgorithm, data: bytes) -> bytes:
    hasher = Hash(algorithm)
    hasher.update(data)
    return hasher.finalize()


class OcspResponder:
    """Answers about certificates of `issuers`; `find` gives what the store has by issuer's number and serial number."""

    def __init__(self, issuers: Callable[[], Sequence[Issuer]], find: Callable[[int, int], Row | None]) -> None:
        self._issuers = issuers
        self._find = find

    def respond(self, request_der: bytes, now: float) -> bytes:
        """The answer, DER; never raises for what a request says."""
        if len(request_der) > MAX_OCSP_BYTES:
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        try:
            request = ocsp.load_der_ocsp_request(request_der)
            algorithm, nonce = request.hash_algorithm, _nonce(request)
            serial, key_hash, name_hash = request.serial_number, request.issuer_key_hash, request.issuer_name_hash
        except (ValueError, UnsupportedAlgorithm, NotImplementedError, x509.DuplicateExtension):
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        if not isinstance(algorithm, SHA1 | SHA256 | SHA384 | SHA512):
            return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
        for issuer in self._issuers():
            if (
                _digest(algorithm, spki_bits(issuer.certificate)) == key_hash
                and _digest(algorithm, issuer.certificate.subject.public_bytes()) == name_hash
            ):
                return self._answer(issuer, serial, algorithm, name_hash, key_hash, nonce, now)
        return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)  # Nobody here may speak for that issuer.

    def _answer(
        self,
        issuer: Issuer,
        serial: int,
        algorithm: HashAlgorithm,
        name_hash: bytes,
        key_hash: bytes,
        nonce: bytes | None,
        now: float,
    ) -> bytes:
        row = self._find(issuer.number, serial)
        status, revoked_at, reason = ocsp.OCSPCertStatus.UNKNOWN, None, None
        if row is not None:
            status = ocsp.OCSPCertStatus.GOOD
        if row is not None and row.revoked_at is not None and row.reason is not None:
            status, revoked_at = ocsp.OCSPCertStatus.REVOKED, _time(row.revoked_at)
            reason = REASONS[row.reason] if row.reason != "unspecified" else None
        builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
            issuer_name_hash=name_hash,
            issuer_key_hash=key_hash,
            serial_number=serial,
            algorithm=algorithm,
            cert_status=status,
            this_update=_time(now),
            next_update=_time(now + OCSP_LIFETIME_S),
            revocation_time=revoked_at,
            revocation_reason=reason,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer.certificate)
        if nonce is not None:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.sign(issuer.key, signature_hash(issuer.key)).public_bytes(Encoding.DER)


def _nonce(request: ocsp.OCSPRequest) -> bytes | None:
    """The request's nonce. Raises ValueError for one that RFC 9654 does not permit."""
    try:
        nonce = request.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None
    if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
        raise ValueError("a nonce of that length")
    return nonce


def _unsuccessful(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)

"""Is a peer's certificate chain good? A pure function of the chain, the trust anchors, the purpose, the name
and the time.

The decision is the path validation of `cryptography` (RFC 5280 in the CA/Browser Forum's profile):
signatures, validity, basic constraints, key usage, extended key usage, names. That verifier does not say in
TLS's terms why it refused, so a refusal is then diagnosed here, to send the right alert and a reason people
can act on. The diagnosis never accepts.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, VerificationError

from control.handshake.alerts import CRYPTO_ERROR, Alert, HandshakeAbort
from control.handshake.credentials import Trust

MAX_CHAIN_DEPTH = (
    16  # Intermediates in a path. Ours have at most one or two; the amplification tests use long chains.
)


class Fault(Enum):
    """What is wrong with a chain."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    UNKNOWN_CA = "unknown CA"
    PURPOSE = "wrong purpose"
    NAME = "wrong name"
    UNACCEPTABLE = "not acceptable"  # Whatever else RFC 5280 forbids; the text has the library's words.


class ChainRefused(HandshakeAbort):
    """A chain that is not good: the alert and the reason, and which kind of reason it is."""

    def __init__(self, fault: Fault, alert: Alert, reason: str) -> None:
        super().__init__(CRYPTO_ERROR + alert, reason)
        self.fault = fault


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string() or "(no name)"


def subject_of(certificate: x509.Certificate) -> str:
    """The certificate's common name, or its whole subject, or the first name it is for; never raises."""
    try:
        if not list(certificate.subject):
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return next((str(one.value) for one in names if isinstance(one, x509.DNSName | x509.IPAddress)), "(no name)")
        return _common_name(certificate.subject)
    except x509.ExtensionNotFound:
        return "(no name)"
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "(unreadable subject)"


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    trust: Trust,
    *,
    server_name: str | None,
    now: datetime.datetime,
) -> tuple[x509.Certificate, ...]:
    """Verify a server's chain for `server_name` (a DNS name or an IPv6 address), or with None a client's
    chain. Returns the path that was found, leaf first, anchor last.

    Raises ChainRefused with the TLS alert that fits.
    """
    builder = PolicyBuilder().store(trust.store).time(now).max_chain_depth(MAX_CHAIN_DEPTH)
    try:
        if server_name is None:
            return tuple(builder.build_client_verifier().verify(leaf, list(intermediates)).chain)
        return tuple(builder.build_server_verifier(_subject(server_name)).verify(leaf, list(intermediates)))
    except (VerificationError, ValueError, UnsupportedAlgorithm) as error:
        raise _diagnose(leaf, intermediates, trust, server_name, now, str(error)) from None


def _subject(server_name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(server_name))
    except ValueError:
        return x509.DNSName(server_name)


def _diagnose(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    trust: Trust,
    server_name: str | None,
    now: datetime.datetime,
    text: str,
) -> ChainRefused:
    try:
        return (
            _expired(leaf, now)
            or _unknown_ca(leaf, intermediates, trust, now)
            or _wrong_purpose(leaf, server_name)
            or _wrong_name(leaf, server_name)
            or ChainRefused(
                Fault.UNACCEPTABLE,
                Alert.BAD_CERTIFICATE,
                f"certificate of {subject_of(leaf)} is not acceptable: {text}",
            )
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        return ChainRefused(
            Fault.UNACCEPTABLE, Alert.BAD_CERTIFICATE, f"the certificate cannot be parsed: {error}"
        )


def _expired(certificate: x509.Certificate, now: datetime.datetime) -> ChainRefused | None:
    if now > certificate.not_valid_after_utc:
        return ChainRefused(
            Fault.EXPIRED,
            Alert.CERTIFICATE_EXPIRED,
            f"certificate of {subject_of(certificate)} expired on "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        )
    if now < certificate.not_valid_before_utc:
        return ChainRefused(
            Fault.NOT_YET_VALID,
            Alert.CERTIFICATE_EXPIRED,
            f"certificate of {subject_of(certificate)} is not valid before "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: check both clocks",
        )
    return None


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _unknown_ca(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], trust: Trust, now: datetime.datetime
) -> ChainRefused | None:
    """Follow the issuers upwards: None if an anchor is reached, else why not."""
    current = leaf
    for _ in range(MAX_CHAIN_DEPTH + 1):
        anchor = next((a for a in trust.anchors if a == current or _issued(current, a)), None)
        if anchor is not None:
            return _expired(anchor, now)
        parent = next((c for c in intermediates if c != current and _issued(current, c)), None)
        if parent is None:
            break
        expired = _expired(parent, now)
        if expired is not None:
            return expired
        current = parent
    return ChainRefused(
        Fault.UNKNOWN_CA,
        Alert.UNKNOWN_CA,
        f"certificate of {subject_of(leaf)} was issued by {_common_name(current.issuer)!r}, which is not "
        f"trusted here (trusted: {', '.join(repr(subject_of(a)) for a in trust.anchors[:3])})",
    )


def _wrong_purpose(leaf: x509.Certificate, server_name: str | None) -> ChainRefused | None:
    wanted = ExtendedKeyUsageOID.CLIENT_AUTH if server_name is None else ExtendedKeyUsageOID.SERVER_AUTH
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if wanted in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage:
        return None
    role = "a client" if server_name is None else "a server"
    return ChainRefused(
        Fault.PURPOSE,
        Alert.UNSUPPORTED_CERTIFICATE,
        f"certificate of {subject_of(leaf)} is not for use as {role}",
    )


def _wrong_name(leaf: x509.Certificate, server_name: str | None) -> ChainRefused | None:
    if server_name is None:
        return None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ChainRefused(
            Fault.NAME,
            Alert.BAD_CERTIFICATE,
            f"certificate of {subject_of(leaf)} carries no name (subjectAltName)",
        )
    has = [str(n.value) for n in names if isinstance(n, x509.DNSName | x509.IPAddress)]
    wanted = str(_subject(server_name).value)
    if wanted in has:
        return None
    return ChainRefused(
        Fault.NAME, Alert.BAD_CERTIFICATE, f"certificate is for {', '.join(has[:6])}, not for {server_name}"
    )

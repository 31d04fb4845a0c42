"""What is asked of the authority, and what of it can be checked without knowing who asks: the CSR's signature (proof that
the requester holds the key, RFC 2986), its key, its names, the time.

A request made elsewhere carries when it was made and an id of its own: one that is older or newer than the clock skew
allows, or whose id came before, is refused. So a recorded request cannot be sent twice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from control.trustchain.errors import BadRequest, Replayed
from control.trustchain.keys import PublicKey, SigningKey, signature_hash, spki_sha256
from control.trustchain.profiles import (
    CLOCK_SKEW_S,
    MAX_SUBJECT_CHARS,
    Names,
    Profile,
    ProfileName,
    check_address,
    check_key,
    check_names,
    check_subject,
    parse_dns,
)
from control.trustchain.roles import Role

MAX_CSR_BYTES = 16 * 1024
REQUEST_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a request was made (Unix seconds) and the id it was given then (16 random bytes)."""

    made_at: float
    request_id: bytes = field(default_factory=lambda: os.urandom(REQUEST_ID_BYTES))

    def check(self, now: float) -> None:
        """Raises Replayed outside the window in which ids are remembered."""
        if len(self.request_id) != REQUEST_ID_BYTES:
            raise BadRequest(f"a request id has {REQUEST_ID_BYTES} bytes, not {len(self.request_id)}")
        if not abs(now - self.made_at) <= CLOCK_SKEW_S:  # Also refuses what is not a number.
            raise Replayed(
                f"the request says it was made {abs(now - self.made_at):.0f} s "
                f"{'ago' if self.made_at < now else 'in the future'}; {CLOCK_SKEW_S} s are allowed: check both clocks"
            )

    @property
    def remember_until(self) -> float:
        """From then on the time alone refuses it."""
        return self.made_at + CLOCK_SKEW_S


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """A new certificate. `csr` is DER. `roles` empty: the profile's (or the token's); `lifetime_s` None: the profile's;
    `subject` empty: the CSR's common name, or its first name. `freshness` None: made here and now, by ourselves."""

    csr: bytes
    profile: ProfileName = ProfileName.NODE
    roles: frozenset[Role] = frozenset()
    lifetime_s: float | None = None
    subject: str = ""
    freshness: Freshness | None = None


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """A successor for the certificate with this SHA-256 fingerprint (32 bytes), which keeps its names and roles. `csr`: for
    the same key or a new one; it may name nothing, or exactly the same."""

    csr: bytes
    fingerprint: bytes
    lifetime_s: float | None = None
    freshness: Freshness | None = None


@dataclass(frozen=True, slots=True)
class CheckedCsr:
    """A CSR whose signature and key are good."""

    key: PublicKey
    spki_sha256: bytes
    common_name: str
    names: Names


def check_csr(der: bytes, profile: Profile) -> CheckedCsr:
    """Raises BadRequest for what the profile does not take."""
    if len(der) > MAX_CSR_BYTES:
        raise BadRequest(f"the CSR has {len(der)} bytes; at most {MAX_CSR_BYTES} are taken")
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
        check_key(profile, key)
        if not csr.is_signature_valid:
            raise BadRequest("the CSR is not signed with its own key: whoever asks must hold it")
        names = _names_of(csr, profile)
        common_name = _common_name(csr)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadRequest(f"the CSR cannot be used: {error}") from None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion) as error:
        raise BadRequest(f"the CSR's extensions cannot be used: {error}") from None
    assert isinstance(key, PublicKey)  # check_key lets no other pass.
    return CheckedCsr(key, spki_sha256(key), common_name, names)


def _common_name(csr: x509.CertificateSigningRequest) -> str:
    found = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) > 1:
        raise BadRequest("the CSR has several common names")
    return check_subject(str(found[0].value)) if found else ""


def _names_of(csr: x509.CertificateSigningRequest, profile: Profile) -> Names:
    try:
        extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Names()
    dns, addresses = [], []
    for name in extension:
        if isinstance(name, x509.DNSName):
            dns.append(parse_dns(name.value, wildcards=profile.wildcards))
        elif isinstance(name, x509.IPAddress):
            if not hasattr(name.value, "ipv4_mapped") and not hasattr(name.value, "is_link_local"):
                raise BadRequest("the CSR names a network; a certificate is for addresses")
            addresses.append(str(check_address(name.value)))  # type: ignore[arg-type]
        else:
            raise BadRequest(f"the CSR has a {type(name).__name__}; certificates here carry DNS names and IPv6 addresses")
    return Names.parse(dns, addresses, wildcards=profile.wildcards)


def subject_for(profile: Profile, wanted: str, csr: CheckedCsr, names: Names) -> str:
    """The certificate's common name: what whoever issues says, else what the CSR says, where it is one of the names or there
    are none, else the first name. Raises BadRequest."""
    texts = names.texts()
    if wanted:
        return check_subject(wanted)
    if csr.common_name and (csr.common_name in texts or not profile.names):
        return csr.common_name
    return check_subject(next((text for text in texts if len(text) <= MAX_SUBJECT_CHARS), ""))


def names_for(profile: Profile, csr: CheckedCsr, allowed: Names | None) -> Names:
    """The certificate's names: the CSR's, or when it has none what is `allowed` (None: whatever the CSR says). Raises
    BadRequest."""
    names = csr.names if len(csr.names) or allowed is None else allowed
    if allowed is not None and not names.within(allowed):
        extra = [text for text in names.texts() if text not in allowed.texts()]
        raise BadRequest(f"{', '.join(extra)}: not among the names granted ({', '.join(allowed.texts()) or 'none'})")
    check_names(profile, names)
    return names


def make_csr(key: SigningKey, subject: str = "", names: Names | None = None) -> bytes:
    """A CSR for our own key, DER. Raises BadRequest for a subject that is none."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, check_subject(subject))] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names is not None and len(names):
        builder = builder.add_extension(names.extension(), critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)

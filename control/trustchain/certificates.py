"""Certificates put together: leaves as precertificate and final certificate (RFC 6962 sections 3.1 to 3.3), intermediates,
roots. What stands in which kind is `profiles`' matter.

A leaf's poison and its SCT list are the last extension, in the same place: the precertificate less its poison and the
final certificate less its SCTs are the same bytes, which is compared before either leaves.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from control.ctlog.precert import POISON_DER, edited_tbs, sct_extension
from control.ctlog.structs import EntryType, Sct, SignedEntry
from control.trustchain.errors import NotIssued
from control.trustchain.keys import PublicKey, SigningKey, signature_hash, spki_sha256
from control.trustchain.profiles import CLOCK_SKEW_S, PROFILES, Constraints, Names, Profile, ProfileName
from control.trustchain.roles import Role, roles_extension


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate that issues, its key and its number; `chain` goes up to the root, which comes last."""

    number: int
    certificate: x509.Certificate
    key: SigningKey
    chain: tuple[x509.Certificate, ...]
    slow_key: bool = False  # In a token: each signature is a wait.
    key_hash: bytes = field(init=False)  # SHA-256 of its SubjectPublicKeyInfo.
    chain_der: tuple[bytes, ...] = field(init=False)
    authority_key_id: x509.AuthorityKeyIdentifier = field(init=False)
    not_after: int = field(init=False)  # Unix seconds.

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "key_hash", spki_sha256(self.certificate))
        put(self, "chain_der", tuple(one.public_bytes(Encoding.DER) for one in self.chain))
        put(self, "authority_key_id", _authority_key_id(self.certificate))
        put(self, "not_after", int(self.certificate.not_valid_after_utc.timestamp()))


@dataclass(frozen=True, slots=True)
class Places:
    """URLs that leaves carry, so that strangers find CRL, OCSP responder and issuer; empty: not said."""

    crl: str = ""
    ocsp: str = ""
    ca_issuers: str = ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate to be: all of it but its signature and its SCTs. Times are Unix seconds."""

    profile: Profile
    subject: str
    organization: str
    key: PublicKey
    names: Names
    roles: frozenset[Role]
    serial: int
    not_before: int
    not_after: int


def _time(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _name(common_name: str, organization: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    if ":" not in common_name:  # An address is no common name: some clients read that as a DNS name.
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


def leaf_builder(leaf: Leaf, issuer: Issuer, places: Places) -> x509.CertificateBuilder:
    """Everything but the last extension."""
    subject = _name(leaf.subject, leaf.organization)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(leaf.key)
        .serial_number(leaf.serial)
        .not_valid_before(_time(leaf.not_before))
        .not_valid_after(_time(leaf.not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(leaf.profile.key_usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(leaf.profile.purposes), critical=leaf.profile.critical_purposes
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf.key), critical=False)
        .add_extension(issuer.authority_key_id, critical=False)
    )
    if len(leaf.names):
        builder = builder.add_extension(leaf.names.extension(), critical=not list(subject))  # RFC 5280 section 4.2.1.6.
    if leaf.roles:
        builder = builder.add_extension(roles_extension(leaf.roles), critical=False)
    return _with_places(builder, places)


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _with_places(builder: x509.CertificateBuilder, places: Places) -> x509.CertificateBuilder:
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, places.ocsp),
            (AuthorityInformationAccessOID.CA_ISSUERS, places.ca_issuers),
        )
        if url
    ]
    if access:
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), critical=False)
    if places.crl:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(places.crl)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder


def sign_precertificate(builder: x509.CertificateBuilder, issuer: Issuer) -> tuple[x509.Certificate, SignedEntry]:
    """The precertificate, and what the logs log of it."""
    poisoned = builder.add_extension(x509.PrecertPoison(), critical=True)
    precertificate = poisoned.sign(issuer.key, signature_hash(issuer.key))
    logged = edited_tbs(precertificate.tbs_certificate_bytes, POISON_DER)
    return precertificate, SignedEntry(EntryType.PRECERT, logged, issuer.key_hash)


def sign_final(
    builder: x509.CertificateBuilder, issuer: Issuer, scts: Sequence[Sct], entry: SignedEntry | None
) -> x509.Certificate:
    """The final certificate, with the SCTs that were given for `entry`; without any, none. Raises NotIssued when it is not
    the very one that the logs promised."""
    if scts:
        builder = builder.add_extension(sct_extension(scts), critical=False)
    certificate = builder.sign(issuer.key, signature_hash(issuer.key))
    if scts and (entry is None or certificate.tbs_precertificate_bytes != entry.certificate):
        raise NotIssued("the final certificate differs from its precertificate: a fault of this program; not handed out")
    return certificate


def make_root(name: str, organization: str, key: SigningKey, serial: int, now: int, lifetime_s: int) -> x509.Certificate:
    """A self-signed root."""
    return _authority_certificate(
        PROFILES[ProfileName.ROOT], _name(name, organization), key.public_key(), None, key, serial, now, lifetime_s
    )


def make_intermediate(
    name: str,
    organization: str,
    key: PublicKey,
    root: x509.Certificate,
    root_key: SigningKey,
    serial: int,
    now: int,
    lifetime_s: int,
    constraints: Constraints,
    places: Places,
) -> x509.Certificate:
    """An intermediate that issues leaves, within the constraints. It does not outlive its root."""
    end = int(root.not_valid_after_utc.timestamp())
    return _authority_certificate(
        PROFILES[ProfileName.INTERMEDIATE],
        _name(name, organization),
        key,
        root,
        root_key,
        serial,
        now,
        min(lifetime_s, end - now),
        constraints,
        places,
    )


def _authority_certificate(
    profile: Profile,
    subject: x509.Name,
    key: PublicKey,
    issuer: x509.Certificate | None,
    issuer_key: SigningKey,
    serial: int,
    now: int,
    lifetime_s: int,
    constraints: Constraints | None = None,
    places: Places | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_time(now - CLOCK_SKEW_S))
        .not_valid_after(_time(now + lifetime_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=profile.path_length), critical=True)
        .add_extension(profile.key_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(_authority_key_id(issuer), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints.extension(), critical=True)
    if places is not None:
        builder = _with_places(builder, places)
    return builder.sign(issuer_key, signature_hash(issuer_key))

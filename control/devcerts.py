"""A throw-away certificate authority and node certificates, for development and tests: `stoq dev-certs DIR`.

Keys are ECDSA P-256: every TLS stack has it, and signing and verifying together cost about as much as Ed25519
here. Until TrustChain exists this is how a node gets a certificate. Writes, mode 0600 for keys, and
overwrites nothing:

    DIR/ca.pem  DIR/ca.key  DIR/NAME.pem (chain, leaf first)  DIR/NAME.key
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control.handshake.credentials import Credentials, Trust
from dataplane.errors import StoqError

CLOCK_SKEW = datetime.timedelta(minutes=5)  # Valid from a little before now: two machines' clocks differ.


class DevCertsError(StoqError):
    """Certificates cannot be made or written; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority; `issuers` are the intermediates from the one that signs leaves up to below the
    root."""

    root: x509.Certificate
    root_key: ec.EllipticCurvePrivateKey
    issuers: tuple[x509.Certificate, ...]
    signing_key: ec.EllipticCurvePrivateKey

    @property
    def trust(self) -> Trust:
        """The root as trust anchor."""
        return Trust((self.root,))


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "STOQ development"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    validity: tuple[datetime.datetime, datetime.datetime],
    names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
) -> x509.Certificate:
    """One certificate; a CA's when there are no `names`."""
    ca = not names
    issuer_public = issuer_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer.subject if issuer else _name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, SHA256())


def _validity(days: float) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    end = now + datetime.timedelta(days=days)
    return min(now, end) - CLOCK_SKEW, end


def make_authority(days: float = 30, chain_length: int = 0, name: str = "STOQ development CA") -> Authority:
    """A new root and `chain_length` intermediates below it. Negative `days`: already expired."""
    validity = _validity(days)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _certificate(name, root_key, None, root_key, validity, (), ())
    issuers: list[x509.Certificate] = []
    issuer, issuer_key = root, root_key
    for number in range(chain_length):
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = _certificate(f"{name} intermediate {number + 1}", key, issuer, issuer_key, validity, (), ())
        issuer_key = key
        issuers.insert(0, issuer)
    return Authority(root, root_key, tuple(issuers), issuer_key)


def issue(
    authority: Authority,
    name: str,
    addresses: Sequence[str] = ("::1",),
    days: float = 30,
    *,
    usages: Sequence[x509.ObjectIdentifier] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ),
) -> Credentials:
    """A node's certificate for the DNS name `name` and IPv6 `addresses`. Negative `days`: expired so many
    days ago."""
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    for text in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.IPv6Address(text)))
        except ValueError:
            raise DevCertsError(f"{text!r} is not an IPv6 address: STOQ is IPv6-only") from None
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.issuers[0] if authority.issuers else authority.root
    leaf = _certificate(name, key, issuer, authority.signing_key, _validity(days), names, usages)
    return Credentials(leaf, authority.issuers, key)


def pem_chain(credentials: Credentials) -> bytes:
    """The chain as PEM, leaf first."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in (credentials.certificate, *credentials.chain))


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write(
    directory: Path,
    names: Sequence[str],
    addresses: Sequence[str] = ("::1",),
    days: float = 30,
    chain_length: int = 0,
) -> list[Path]:
    """Make an authority and a certificate for each of `names` in `directory`; returns the files.

    Raises DevCertsError when any of the files exists already: nothing is overwritten, and then nothing is
    written.
    """
    bad = [name for name in names if name in ("", "ca", ".", "..") or "/" in name or "\0" in name]
    if bad or len(set(names)) != len(names):
        raise DevCertsError(f"node names must be distinct file names other than 'ca': {', '.join(names)}")
    authority = make_authority(days, chain_length)
    files: list[tuple[Path, bytes, int]] = [
        (directory / "ca.pem", authority.root.public_bytes(Encoding.PEM), 0o644),
        (directory / "ca.key", _pem_key(authority.root_key), 0o600),
    ]
    for name in names:
        try:
            credentials = issue(authority, name, addresses, days)
        except ValueError as error:
            raise DevCertsError(f"{name!r} cannot be a certificate's name: {error}") from None
        assert isinstance(credentials.key, ec.EllipticCurvePrivateKey)
        files.append((directory / f"{name}.pem", pem_chain(credentials), 0o644))
        files.append((directory / f"{name}.key", _pem_key(credentials.key), 0o600))
    existing = [str(path) for path, _, _ in files if path.exists()]
    if existing:
        raise DevCertsError(
            f"{', '.join(existing)} exists: nothing was overwritten; choose another directory or remove it"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data, mode in files:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except OSError as error:
        raise DevCertsError(f"cannot write {error.filename or directory}: {error.strerror}") from None
    return [path for path, _, _ in files]

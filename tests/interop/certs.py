"""Certificates for the interoperability cases: a root, a short chain, and one of several kilobytes.

The long chain is what makes a server run into the anti-amplification limit of RFC 9000 section 8.1: it cannot
go out in answer to one or two client datagrams.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LONG_CHAIN_LENGTH = 6  # leaf and five intermediates: one verifier among the peers stops at six
# About 10 KB in all: nearly three times the credit that one full client datagram gives, and well under the 16
# KiB of handshake data that common implementations buffer.
PADDING_BYTES = 1300
# Meaningless, not critical: every verifier passes over it
PADDING_OID = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")


@dataclass(frozen=True)
class Chain:
    """Paths of PEM files; `size` is the DER bytes of the chain as the server sends it."""

    certificate: Path
    key: Path
    size: int


@dataclass(frozen=True)
class Certificates:
    root: Path
    short: Chain
    long: Chain


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _issue(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    addresses: Sequence[str] = (),
    padding_bytes: int = 0,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    authority_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer.subject if issuer else _name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_key_id, critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if addresses:
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(address)) for address in addresses
        ]
        names.append(x509.DNSName("server"))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    if padding_bytes:
        # A DER OCTET STRING: tag 4, long-form length of two bytes.
        value = b"\x04\x82" + padding_bytes.to_bytes(2, "big") + bytes(padding_bytes)
        builder = builder.add_extension(x509.UnrecognizedExtension(PADDING_OID, value), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _write(
    directory: Path, name: str, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> Chain:
    certificate_path = directory / f"{name}.pem"
    key_path = directory / f"{name}.key"
    pem = serialization.Encoding.PEM
    certificate_path.write_bytes(b"".join(certificate.public_bytes(pem) for certificate in chain))
    key_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    size = sum(len(certificate.public_bytes(serialization.Encoding.DER)) for certificate in chain)
    return Chain(certificate_path, key_path, size)


def make(directory: Path, addresses: Sequence[str]) -> Certificates:
    """Write a root and both chains into `directory`; the leaves are good for the given IPv6 addresses and
    `server`.
    """
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _issue("interop root", root_key, None, root_key, authority=True)
    root_path = directory / "root.pem"
    root_path.write_bytes(root.public_bytes(serialization.Encoding.PEM))

    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = _issue("server", leaf_key, root, root_key, authority=False, addresses=addresses)
    short = _write(directory, "short", [leaf], leaf_key)

    issuer, issuer_key = root, root_key
    chain: list[x509.Certificate] = []
    for depth in range(1, LONG_CHAIN_LENGTH):
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = _issue(
            f"interop {depth}", key, issuer, issuer_key, authority=True, padding_bytes=PADDING_BYTES
        )
        issuer_key = key
        chain.insert(0, issuer)
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = _issue(
        "server",
        leaf_key,
        issuer,
        issuer_key,
        authority=False,
        addresses=addresses,
        padding_bytes=PADDING_BYTES,
    )
    long = _write(directory, "long", [leaf, *chain], leaf_key)
    return Certificates(root_path, short, long)

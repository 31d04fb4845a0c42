"""Distinct precertificates at little cost, for benchmarks of a log: one is built, the others differ from it in their serial
number and are signed anew (RFC 5280 section 4.1, RFC 6962 section 3.1)."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control.bench.processes import BenchError
from control.ctlog.precert import precertificate_entry
from control.ctlog.structs import SignedEntry

ECDSA = ec.ECDSA(SHA256())
SERIAL_BYTES = 16
ECDSA_SHA256_DER = bytes.fromhex("300a06082a8648ce3d040302")
ROOT, ISSUER, KEY = "root.pem", "issuer.pem", "issuer.key"
DAYS = 7


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begin(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


@dataclass(frozen=True, slots=True)
class Pki:
    """A root, an intermediate, and the intermediate's key."""

    root: x509.Certificate
    issuer: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls) -> Pki:
        """A new one."""
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        certificates = []
        for name, own in (("bench root", root_key), ("bench intermediate", key)):
            builder = (
                _begin(name, "bench root", own)
                .serial_number(x509.random_serial_number())
                .add_extension(x509.BasicConstraints(True, None), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            )
            certificates.append(builder.sign(root_key, SHA256()))
        root, issuer = certificates
        return cls(root, issuer, key)

    def save(self, directory: Path) -> None:
        """Into a directory that exists."""
        (directory / ROOT).write_bytes(self.root.public_bytes(Encoding.PEM))
        (directory / ISSUER).write_bytes(self.issuer.public_bytes(Encoding.PEM))
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.open(directory / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    @classmethod
    def load(cls, directory: Path) -> Pki:
        """What `save` wrote."""
        key = load_pem_private_key((directory / KEY).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        root, issuer = (x509.load_pem_x509_certificate((directory / name).read_bytes()) for name in (ROOT, ISSUER))
        return cls(root, issuer, key)

    @property
    def above(self) -> tuple[bytes, bytes]:
        """What follows a leaf in its chain: DER, issuer first."""
        return self.issuer.public_bytes(Encoding.DER), self.root.public_bytes(Encoding.DER)


class Precertificates:
    """Iterates over distinct precertificates (DER), about as large as a node's."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        serial = b"\x40" + os.urandom(SERIAL_BYTES - 1)
        template = (
            _begin("node-0.bench", "bench intermediate", leaf_key)
            .serial_number(int.from_bytes(serial, "big"))
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf_key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(pki.key.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("node-0.bench")]), critical=False)
            .add_extension(x509.PrecertPoison(), critical=True)
            .sign(pki.key, SHA256())
        ).tbs_certificate_bytes
        self._before, found, self._after = template.partition(serial)
        if not found:
            raise BenchError("the precertificate does not hold its serial number as it was given")
        self._nonce = os.urandom(SERIAL_BYTES - 9)
        self._number = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._number += 1
        serial = b"\x40" + self._nonce + self._number.to_bytes(8, "big")
        tbs = self._before + serial + self._after
        signature = self.pki.key.sign(tbs, ECDSA)
        return _der(0x30, tbs + ECDSA_SHA256_DER + _der(0x03, b"\x00" + signature))

    def entry(self, precertificate: bytes) -> SignedEntry:
        """What a log logs of it."""
        return precertificate_entry(x509.load_der_x509_certificate(precertificate), [self.pki.issuer])

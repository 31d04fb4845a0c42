"""A node's own certificate chain and key, and the certificate authorities it trusts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.verification import Store

from dataplane.errors import StoqError

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)


class CredentialsError(StoqError):
    """A certificate or key file cannot be used; the text names the file and why."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Our certificate, the intermediates sent with it (leaf's issuer first), and its key."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    @property
    def node_id(self) -> bytes:
        """SHA-256 of our SubjectPublicKeyInfo."""
        return node_id(self.certificate)

    @property
    def encoded_bytes(self) -> int:
        """Size of the chain in a TLS Certificate message, in bytes."""
        return sum(len(c.public_bytes(Encoding.DER)) + 5 for c in (self.certificate, *self.chain))


@dataclass(frozen=True, slots=True)
class Trust:
    """The anchors a peer's chain must end in."""

    anchors: tuple[x509.Certificate, ...]
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        if not self.anchors:
            raise CredentialsError("no certificate authority is given: nothing could be trusted")
        object.__setattr__(self, "store", Store(list(self.anchors)))


def node_id(certificate: x509.Certificate) -> bytes:
    """A node's identity: SHA-256 over the certificate's SubjectPublicKeyInfo (32 bytes)."""
    digest = Hash(SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read the {what} {path}: {error.strerror}") from None


def load_credentials(certificate: Path, key: Path) -> Credentials:
    """From a PEM chain (leaf first) and its PEM key. Raises CredentialsError, also when the two do not belong
    together."""
    try:
        chain = x509.load_pem_x509_certificates(_read(certificate, "certificate"))
    except ValueError as error:
        raise CredentialsError(f"{certificate} holds no PEM certificate: {error}") from None
    try:
        private = load_pem_private_key(_read(key, "key"), password=None)
    except TypeError:
        raise CredentialsError(f"{key} is encrypted: store it without a passphrase, mode 0600") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialsError(f"{key} holds no PEM private key: {error}") from None
    if not isinstance(private, PrivateKey):
        raise CredentialsError(f"{key} is of a kind TLS 1.3 cannot sign with: use ECDSA P-256")
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != chain[0].public_key().public_bytes(*spki):
        raise CredentialsError(f"{key} is not the key of the first certificate in {certificate}")
    return Credentials(chain[0], tuple(chain[1:]), private)


def load_trust(path: Path) -> Trust:
    """The CA certificates of a PEM file. Raises CredentialsError."""
    try:
        return Trust(tuple(x509.load_pem_x509_certificates(_read(path, "CA file"))))
    except ValueError as error:
        raise CredentialsError(f"{path} holds no PEM certificate: {error}") from None

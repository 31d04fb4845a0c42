"""Private keys: made, written, read and unlocked. A key is always a `cryptography` private key, whether it lies in a file or
in a PKCS#11 token (`pkcs11.py`), so that certificates, CRLs, OCSP answers and TLS's CertificateVerify are signed alike.

A key file is PKCS#8 in PEM, mode 0600, made with O_EXCL and never overwritten. One that others may read is refused. At
rest it may be encrypted: PBES2 with scrypt and AES-256-CBC (RFC 8018, RFC 7914), which `openssl pkey` reads.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from control.trustchain.errors import KeyUnavailable

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
Passphrase = Callable[[], bytes]  # Asked only when a key turns out to be encrypted.

CURVES: dict[str, type[ec.EllipticCurve]] = {"p256": ec.SECP256R1, "p384": ec.SECP384R1}
MAX_KEY_FILE_BYTES = 64 * 1024
MIN_PASSPHRASE_BYTES = 8
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 14, 8, 1  # 16 MiB: the most that OpenSSL's own limit lets its users open.
SALT_BYTES = 16
PKCS11_SCHEME = "pkcs11:"

PBES2_OID = bytes.fromhex("06092a864886f70d01050d")
SCRYPT_OID = bytes.fromhex("06092b06010401da47040b")
AES_256_CBC_OID = bytes.fromhex("060960864801650304012a")


def spki(key: x509.Certificate | x509.CertificateSigningRequest | SigningKey | PublicKey) -> bytes:
    """The SubjectPublicKeyInfo, DER."""
    public = key if isinstance(key, PublicKey) else key.public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: x509.Certificate | x509.CertificateSigningRequest | SigningKey | PublicKey) -> bytes:
    """SHA-256 over the SubjectPublicKeyInfo (32 bytes): a node's identity, and what a pin holds."""
    return hashlib.sha256(spki(key)).digest()


def spki_bits(certificate: x509.Certificate) -> bytes:
    """The public key's bits alone, as RFC 6960 hashes them; for ECDSA keys."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def signature_hash(key: SigningKey) -> SHA256 | SHA384 | None:
    """The hash an X.509 builder's `sign` wants for this key."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256:
        return SHA384()
    return SHA256()


def generate(curve: str = "p256") -> ec.EllipticCurvePrivateKey:
    """A new ECDSA key. Raises KeyUnavailable for an unknown curve."""
    if curve not in CURVES:
        raise KeyUnavailable(f"{curve!r} is no curve for a key; take one of {', '.join(CURVES)}")
    return ec.generate_private_key(CURVES[curve]())


def same_key(key: SigningKey, certificate: x509.Certificate) -> bool:
    """Is this the certificate's key?"""
    return spki(key) == spki(certificate)


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _encrypted(key: SigningKey, passphrase: bytes) -> bytes:
    """EncryptedPrivateKeyInfo (RFC 5958) as PEM; cryptography's own writer stops at 2,048 rounds of PBKDF2."""
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, iv = os.urandom(SALT_BYTES), os.urandom(16)
    secret = Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase)
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
    body = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    costs = _der(0x30, _der(0x04, salt), _integer(SCRYPT_N), _integer(SCRYPT_R), _integer(SCRYPT_P))
    derivation = _der(0x30, SCRYPT_OID, costs)
    scheme = _der(0x30, AES_256_CBC_OID, _der(0x04, iv))
    der = _der(0x30, _der(0x30, PBES2_OID, _der(0x30, derivation, scheme)), _der(0x04, body))
    return _pem("ENCRYPTED PRIVATE KEY", der)


def _pem(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()


def encode_key(key: SigningKey, passphrase: bytes | None = None) -> bytes:
    """A key as PKCS#8 PEM, encrypted when there is a passphrase. Raises KeyUnavailable for a short passphrase, and for a
    key that cannot leave its token."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    check_passphrase(passphrase)
    return _encrypted(key, passphrase)


def check_passphrase(passphrase: bytes) -> None:
    """Is it long enough to encrypt with? Raises KeyUnavailable."""
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise KeyUnavailable(
            f"a passphrase needs at least {MIN_PASSPHRASE_BYTES} bytes; this one has {len(passphrase)}"
        )


def write_file(path: Path, data: bytes, mode: int) -> None:
    """A new file, durable with its name when this returns. Raises KeyUnavailable when it exists or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise KeyUnavailable(f"{path} exists: nothing was overwritten; move it away or name another file") from None
    except OSError as error:
        raise KeyUnavailable(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # Whatever the umask says.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyUnavailable(f"cannot write {path}: {error.strerror}") from None


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_key(path: Path, key: SigningKey, passphrase: bytes | None = None) -> None:
    """A new key file, 0600. Raises KeyUnavailable; nothing is overwritten."""
    write_file(path, encode_key(key, passphrase), 0o600)


def read_private_file(path: Path, what: str = "key") -> bytes:
    """The file's bytes, when it is a file that only its owner may read; looked at through one descriptor. Raises
    KeyUnavailable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyUnavailable(f"cannot read the {what} {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise KeyUnavailable(f"{path} is not a file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise KeyUnavailable(
                f"others may read or write the {what} {path} (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 {path}, "
                f"and replace the {what} if they are not trusted"
            )
        if found.st_size > MAX_KEY_FILE_BYTES:
            raise KeyUnavailable(f"{path} is too large for a {what}: {found.st_size} bytes")
        return file.read(MAX_KEY_FILE_BYTES)


def load_key(path: Path, passphrase: Passphrase | None = None) -> SigningKey:
    """A key from its file; `passphrase` is called only when it is encrypted. Raises KeyUnavailable."""
    data = read_private_file(path)
    try:
        if b"ENCRYPTED" in data:
            if passphrase is None:
                raise KeyUnavailable(f"the key {path} is encrypted: give its passphrase (--passphrase-file, or -env)")
            key = load_pem_private_key(data, passphrase())
        else:
            key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in data:
            raise KeyUnavailable(f"the passphrase does not open {path}, or the file is damaged") from None
        raise KeyUnavailable(f"{path} holds no PEM private key: {error}") from None
    if not isinstance(key, SigningKey):
        raise KeyUnavailable(f"{path} is of a kind that is not used here: take ECDSA P-256")
    return key


def open_key(where: str, directory: Path, passphrase: Passphrase | None = None) -> SigningKey:
    """A key by what a configuration says: a `pkcs11:` URI, or a file, relative to `directory`. Raises KeyUnavailable."""
    if where.startswith(PKCS11_SCHEME):
        from control.trustchain.pkcs11 import open_token_key

        return open_token_key(where, passphrase)
    return load_key(directory / where, passphrase)


def is_token_key(where: str) -> bool:
    """Does a configuration name a token rather than a file?"""
    return where.startswith(PKCS11_SCHEME)

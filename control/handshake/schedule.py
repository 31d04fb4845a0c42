"""The TLS 1.3 key schedule and transcript (RFC 8446 sections 4.4.1 and 7.1), one C call a step.

The same interface as `aioquic.tls.KeySchedule`, which a server's context takes in its place. Every secret of
TLS 1.3 is no longer than its hash, so HKDF-Expand is a single HMAC here.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from aioquic.tls import CipherSuite

HASHES = {
    CipherSuite.AES_128_GCM_SHA256: "sha256",
    CipherSuite.AES_256_GCM_SHA384: "sha384",
    CipherSuite.CHACHA20_POLY1305_SHA256: "sha256",
}
PADDING = b" " * 64  # Before what a CertificateVerify signs: RFC 8446 section 4.4.3.


@lru_cache(maxsize=64)
def _label(label: bytes, size: int, context_size: int) -> bytes:
    """HkdfLabel up to its context's bytes."""
    full = b"tls13 " + label
    return size.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([context_size])


def expand_label(name: str, secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of at most one hash's length."""
    return hmac.digest(secret, _label(label, size, len(context)) + context + b"\x01", name)[:size]


@lru_cache(maxsize=4)
def _empty(name: str) -> bytes:
    """The hash of nothing."""
    return hashlib.new(name).digest()


@lru_cache(maxsize=4)
def _without_psk(name: str) -> tuple[bytes, bytes]:
    """Early Secret without a PSK and the salt of Handshake Secret: the same in every full handshake."""
    size = len(_empty(name))
    early = hmac.digest(bytes(size), bytes(size), name)
    return early, expand_label(name, early, b"derived", _empty(name), size)


class KeySchedule:
    """Secrets and transcript of one handshake."""

    def __init__(self, cipher_suite: CipherSuite) -> None:
        self.cipher_suite = cipher_suite
        self.name = HASHES[cipher_suite]
        self.generation = 0
        self.hash = hashlib.new(self.name)
        self.size = self.hash.digest_size
        self.secret = b""
        self._salt = bytes(self.size)  # Of the next extract(), where it is known.

    def update_hash(self, data: bytes) -> None:
        """Add a message to the transcript."""
        self.hash.update(data)

    def extract(self, key_material: bytes | None = None) -> None:
        """To the next of Early, Handshake and Master Secret."""
        if self.generation == 0 and key_material is None:
            self.secret, self._salt = _without_psk(self.name)
        else:
            empty = _empty(self.name)
            salt = self._salt or expand_label(self.name, self.secret, b"derived", empty, self.size)
            self._salt = b""
            self.secret = hmac.digest(salt, key_material or bytes(self.size), self.name)
        self.generation += 1

    def derive_secret(self, label: bytes) -> bytes:
        """Derive-Secret over the transcript so far."""
        return expand_label(self.name, self.secret, label, self.hash.digest(), self.size)

    def finished_verify_data(self, secret: bytes) -> bytes:
        """What a Finished or a PSK binder holds: RFC 8446 section 4.4.4."""
        key = expand_label(self.name, secret, b"finished", b"", self.size)
        return hmac.digest(key, self.hash.digest(), self.name)

    def certificate_verify_data(self, context_string: bytes) -> bytes:
        """What a CertificateVerify signs: RFC 8446 section 4.4.3."""
        return PADDING + context_string + b"\0" + self.hash.digest()

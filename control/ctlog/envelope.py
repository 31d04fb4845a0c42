"""Sealed objects: what the log gives to a storage that must neither read, alter, swap nor move it.

       key-encryption key (KEK) ──wraps──▶ data key ──AES-256-GCM──▶ object
       file 0600, token or KMS             32 random bytes,          random 96-bit nonce,
       never stored with the objects       one an epoch              its name authenticated

A sealed object, integers big-endian:

       "STQE" ‖ version (1) ‖ len (1) KEK id ‖ len (2) wrapped data key ‖ nonce (12) ‖ ciphertext ‖ tag (16)

Everything before the ciphertext, and the object's name in the storage, is additional authenticated data: an object
answered under another name, an altered header or a version played down all fail the one tag.

Why an epoch, and why random nonces (NIST SP 800-38D section 8). A data key of its own for each object would cost one
call into a token or KMS each; so one is drawn for each `Envelope`, lives in memory only, and seals at most
`MAX_SEALS` = 2^20 objects before the next is drawn. Counting nonces would be exact but repeat when a process forks or
a machine's snapshot resumes; random ones do not, and 2^20 of 96 bits collide with a probability below 2^-56. Wraps
are one an epoch, so their nonces (random too) stay far below the 2^32 that section 8.3 allows a key.

Rotation: new objects are sealed under the first KEK; whatever other KEKs are given are for reading. An old one may go
when no object names its id any more.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from control.ctlog.encoding import Reader, uint, vector
from control.ctlog.errors import LogError, Malformed, Unavailable

if TYPE_CHECKING:
    from types import TracebackType

MAGIC = b"STQE"
VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
MAX_SEALS = 1 << 20
# An entry bundle of 256 entries of 64 KiB each, the most static-ct-api can ask for, and room for staging.
MAX_OBJECT_BYTES = 64 << 20
MAX_WRAPPED_BYTES = 6144  # the largest ciphertext known of a KMS
MAX_SEALED_BYTES = MAX_OBJECT_BYTES + len(MAGIC) + 1 + 1 + 64 + 2 + MAX_WRAPPED_BYTES + NONCE_BYTES + TAG_BYTES
MAX_OPENED_KEYS = 1024  # data keys kept unwrapped for reading; the least recently used goes
KEY_ID = re.compile(r"[A-Za-z0-9._:@/=+-]{1,64}")
OBJECT_CONTEXT = b"stoq ctlog object\x00"
WRAP_CONTEXT = b"stoq ctlog data key\x00"


class StorageTampered(Malformed):
    """A sealed object is not what was put there under this name: altered, cut, swapped, or under a KEK not given."""


class KeyUnusable(LogError):
    """A key-encryption key cannot be used; the text says why and what to do."""


class KeyWrapper(Protocol):
    """A key-encryption key: in a file, a token, or a KMS behind this hook. Called from several threads."""

    @property
    def key_id(self) -> str:
        """Written into each object: 1 to 64 characters of `KEY_ID`, the same for the same key for ever."""

    def wrap(self, data_key: bytes) -> bytes:
        """The 32 bytes encrypted and authenticated, at most MAX_WRAPPED_BYTES. Raises Unavailable."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The 32 bytes again. Raises StorageTampered when they were not wrapped under this key, Unavailable."""


class LocalKey:
    """A KEK of 32 bytes in memory. Its id is a fingerprint, so that nobody has to name it."""

    __slots__ = ("_aead", "_id")

    def __init__(self, key: bytes) -> None:
        """Raises KeyUnusable."""
        if len(key) != KEY_BYTES:
            raise KeyUnusable(f"a key-encryption key has {KEY_BYTES} bytes, not {len(key)}")
        self._aead = AESGCM(key)
        self._id = "local:" + hashlib.sha256(b"stoq ctlog key id\x00" + key).hexdigest()[:16]

    @property
    def key_id(self) -> str:
        """`local:` and 16 hexadecimal digits."""
        return self._id

    def wrap(self, data_key: bytes) -> bytes:
        """Nonce, ciphertext, tag: 60 bytes."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, data_key, WRAP_CONTEXT + self._id.encode())

    def unwrap(self, wrapped: bytes) -> bytes:
        """See KeyWrapper."""
        _check_wrapped(wrapped, self._id)
        try:
            return self._aead.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], WRAP_CONTEXT + self._id.encode())
        except InvalidTag:
            raise _not_wrapped(self._id) from None


def create_key_file(path: Path) -> LocalKey:
    """A new KEK in a new file of mode 0600, durable. Raises KeyUnusable, also when the file exists."""
    key = os.urandom(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise KeyUnusable(f"{path} exists; a key that may have sealed objects is never overwritten") from None
    except OSError as error:
        raise KeyUnusable(f"the key {path} cannot be written: {error.strerror}") from None
    return LocalKey(key)


def load_key_file(path: Path) -> LocalKey:
    """The KEK of a file: 32 bytes, mode 0600 or less, ours. Raises KeyUnusable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyUnusable(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise KeyUnusable(f"others may read or write the key {path}; `chmod 600` it, and rotate it")
            if status.st_uid not in (0, os.geteuid()):
                raise KeyUnusable(f"the key {path} belongs to somebody else (user {status.st_uid})")
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise KeyUnusable(f"the key {path} cannot be read: {error.strerror}") from None
    if len(key) != KEY_BYTES:
        raise KeyUnusable(f"{path} is not a key of {KEY_BYTES} bytes; create one with `create_key_file`")
    return LocalKey(key)


class TokenKey:
    """A KEK that never leaves its PKCS#11 token: AES-256 with CKM_AES_GCM. Two calls an epoch reach the token."""

    def __init__(self, module: str, token: str, pin: str, label: str, *, create: bool = False) -> None:
        """The secret key `label` of the token `token` behind the library `module`; `create` makes one, sensitive and
        not extractable, where there is none. Raises KeyUnusable."""
        self._id = f"pkcs11:{label}"
        check_key_id(self._id)
        try:
            self._pkcs11: Any = importlib.import_module("pkcs11")
        except ImportError:
            raise KeyUnusable("keys in a token need python-pkcs11: pip install python-pkcs11") from None
        self._lock = threading.Lock()  # a session carries one operation at a time
        try:
            found = self._pkcs11.lib(module).get_token(token_label=token)
            try:
                self._session = found.open(rw=create, user_pin=pin)
            except self._pkcs11.UserAlreadyLoggedIn:  # another session of this process: the login is the token's
                self._session = found.open(rw=create)
            self._key = self._find(label, create)
        except (self._pkcs11.PKCS11Error, RuntimeError) as error:
            raise KeyUnusable(
                f"the key {label!r} in the token {token!r} cannot be used: {type(error).__name__} {error}".rstrip()
            ) from None

    def _find(self, label: str, create: bool) -> Any:
        pkcs11 = self._pkcs11
        try:
            return self._session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=label)
        except pkcs11.NoSuchKey:
            if not create:
                raise
        return self._session.generate_key(
            pkcs11.KeyType.AES,
            8 * KEY_BYTES,
            label=label,
            store=True,
            capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
            template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
        )

    @property
    def key_id(self) -> str:
        """`pkcs11:` and the key's label."""
        return self._id

    def wrap(self, data_key: bytes) -> bytes:
        """Nonce, ciphertext, tag: 60 bytes."""
        nonce = os.urandom(NONCE_BYTES)
        try:
            with self._lock:
                return nonce + bytes(self._key.encrypt(data_key, **self._mechanism(nonce)))
        except self._pkcs11.PKCS11Error as error:
            raise Unavailable(f"the token of key {self._id} does not encrypt: {type(error).__name__}") from None

    def unwrap(self, wrapped: bytes) -> bytes:
        """See KeyWrapper."""
        _check_wrapped(wrapped, self._id)
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            with self._lock:
                return bytes(self._key.decrypt(sealed, **self._mechanism(nonce)))
        except (self._pkcs11.EncryptedDataInvalid, self._pkcs11.EncryptedDataLenRange):
            raise _not_wrapped(self._id) from None
        except self._pkcs11.PKCS11Error as error:
            # Tokens disagree on the error of a wrong tag; one that still encrypts has looked at it and refused it.
            self.wrap(bytes(KEY_BYTES))
            raise _not_wrapped(self._id) from error

    def _mechanism(self, nonce: bytes) -> dict[str, Any]:
        aad = WRAP_CONTEXT + self._id.encode()
        return {
            "mechanism": self._pkcs11.Mechanism.AES_GCM,
            "mechanism_param": self._pkcs11.GCMParams(nonce, aad, 8 * TAG_BYTES),
        }

    def close(self) -> None:
        """End the session."""
        with self._lock:
            self._session.close()

    def __enter__(self) -> TokenKey:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Envelope:
    """Seals and opens objects. For any number of threads."""

    def __init__(self, key: KeyWrapper, older: Sequence[KeyWrapper] = (), *, max_seals: int = MAX_SEALS) -> None:
        """`key` seals and opens, `older` open. Raises KeyUnusable when two of them share an id."""
        if not 1 <= max_seals <= MAX_SEALS:
            raise KeyUnusable(f"a data key seals between 1 and {MAX_SEALS} objects, not {max_seals}")
        self._key = key
        self._wrappers: dict[str, KeyWrapper] = {}
        for wrapper in (key, *older):
            check_key_id(wrapper.key_id)
            if wrapper.key_id in self._wrappers:
                raise KeyUnusable(f"two key-encryption keys have the id {wrapper.key_id!r}")
            self._wrappers[wrapper.key_id] = wrapper
        self._max_seals = max_seals
        self._lock = threading.Lock()
        self._seals_left = 0
        self._epoch: tuple[bytes, AESGCM] | None = None  # the header up to the nonce, and the data key
        self._opened: OrderedDict[tuple[str, bytes], AESGCM] = OrderedDict()

    @property
    def key_id(self) -> str:
        """Of the KEK that seals."""
        return self._key.key_id

    def seal(self, name: str, data: bytes) -> bytes:
        """The object to store under `name`; another one each time. Raises Malformed for what is too large and
        whatever the KEK raises."""
        if len(data) > MAX_OBJECT_BYTES:
            raise Malformed(f"{name} has {len(data)} bytes; an object has at most {MAX_OBJECT_BYTES}")
        head, aead = self._sealing()
        nonce = os.urandom(NONCE_BYTES)
        header = head + nonce
        return header + aead.encrypt(nonce, data, OBJECT_CONTEXT + header + name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """What was sealed under this very name. Raises StorageTampered, and whatever the KEK raises."""
        if len(sealed) > MAX_SEALED_BYTES:
            raise StorageTampered(f"{name}: {len(sealed)} bytes are more than a sealed object can have")
        try:
            reader = Reader(sealed, name)
            magic, version = reader.take(len(MAGIC)), reader.uint(1)
            key_id, wrapped = reader.vector(1), reader.vector(2)
            nonce = reader.take(NONCE_BYTES)
            start = reader.at
        except Malformed as error:
            raise StorageTampered(f"not a sealed object: {error}") from None
        if magic != MAGIC:
            raise StorageTampered(f"{name} is not a sealed object; it was altered, or stored by something else")
        if version != VERSION:
            raise StorageTampered(f"{name} is sealed in format {version}; this is format {VERSION}")
        if reader.left < TAG_BYTES:
            raise StorageTampered(f"{name} is cut short: a sealed object ends with a tag of {TAG_BYTES} bytes")
        aead = self._opening(name, key_id, wrapped)
        try:
            return aead.decrypt(nonce, memoryview(sealed)[start:], OBJECT_CONTEXT + sealed[:start] + name.encode())
        except InvalidTag:
            raise StorageTampered(f"{name} was altered in the storage, or another object is in its place") from None

    def _sealing(self) -> tuple[bytes, AESGCM]:
        with self._lock:
            if self._epoch is None or self._seals_left == 0:
                data_key = os.urandom(KEY_BYTES)
                wrapped = self._key.wrap(data_key)
                if len(wrapped) > MAX_WRAPPED_BYTES:
                    raise KeyUnusable(f"the key {self.key_id!r} wraps 32 bytes into {len(wrapped)}; too many")
                head = MAGIC + uint(VERSION, 1) + vector(self.key_id.encode(), 1) + vector(wrapped, 2)
                self._epoch = (head, AESGCM(data_key))
                self._seals_left = self._max_seals
                self._remember((self.key_id, wrapped), self._epoch[1])
            self._seals_left -= 1
            return self._epoch

    def _opening(self, name: str, key_id: bytes, wrapped: bytes) -> AESGCM:
        wrapper = self._wrappers.get(key_id.decode("latin-1"))
        if wrapper is None:
            raise StorageTampered(
                f"{name} is sealed under the key {key_id[:64].decode('ascii', 'backslashreplace')!r}, which is none of"
                f" {', '.join(self._wrappers)}; give that key too, or the object was altered"
            )
        if len(wrapped) > MAX_WRAPPED_BYTES:
            raise StorageTampered(f"{name} names a wrapped key of {len(wrapped)} bytes")
        known = (wrapper.key_id, wrapped)
        with self._lock:
            aead = self._opened.get(known)
            if aead is not None:
                self._opened.move_to_end(known)
                return aead
        try:
            data_key = wrapper.unwrap(wrapped)  # not under the lock: it may cross a network
        except StorageTampered as error:
            raise StorageTampered(f"{name}: {error}") from None
        if len(data_key) != KEY_BYTES:
            raise StorageTampered(f"{name}: the key {wrapper.key_id!r} unwraps {len(data_key)} bytes")
        aead = AESGCM(data_key)
        with self._lock:
            self._remember(known, aead)
        return aead

    def _remember(self, known: tuple[str, bytes], aead: AESGCM) -> None:
        self._opened[known] = aead
        self._opened.move_to_end(known)
        while len(self._opened) > MAX_OPENED_KEYS:
            self._opened.popitem(last=False)


def check_key_id(key_id: str) -> str:
    """The id, if it is one. Raises KeyUnusable."""
    if not KEY_ID.fullmatch(key_id):
        raise KeyUnusable(f"{key_id!r} is no id of a key: 1 to 64 letters, digits and . _ : @ / = + -")
    return key_id


def _check_wrapped(wrapped: bytes, key_id: str) -> None:
    if len(wrapped) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
        raise _not_wrapped(key_id)


def _not_wrapped(key_id: str) -> StorageTampered:
    return StorageTampered(f"its data key was not wrapped under {key_id}; the object was altered")

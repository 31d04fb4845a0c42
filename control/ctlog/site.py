"""A log's directory, and opening what it says.

    DIR/log.json      origin, shard, where entries and heads are kept, witnesses (written by `stoq ct init`)
    DIR/log.key       the log's key, PEM, 0600; unless log.json names a token's
    DIR/log.pem       its public key, to be given to everybody
    DIR/ed25519.key   signs checkpoints besides, for witnesses; 0600
    DIR/roots.pem     the roots it takes chains to
    DIR/data/         tiles, checkpoint, issuers         \
    DIR/lock.db       the lock store                      } when they are local
    DIR/index.db      hash to index; can be made anew
    DIR/s3.key        what objects in S3 are sealed with; 0600
    DIR/anchor.json   how far heads have come on a chain
    DIR/.lock         flock(2): one process at a time opens the log
"""

from __future__ import annotations

import base64
import datetime
import fcntl
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from control.ctlog.chains import Acceptor, Window
from control.ctlog.envelope import Envelope, create_key_file, load_key_file
from control.ctlog.errors import LogError, Malformed
from control.ctlog.index import Index
from control.ctlog.local import LocalStorage, SqliteLock
from control.ctlog.note import Witness, check_name, log_vkey
from control.ctlog.sequencer import Sequencer
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import LogKey

if TYPE_CHECKING:
    from control.ctlog.s3 import S3Options

CONFIG, KEY, PUBLIC, ROOTS = "log.json", "log.key", "log.pem", "roots.pem"
WITNESSED, RESERVED = "ed25519.key", ".lock"
SHARD = re.compile(r"(\d{4})(?:h([12]))?")

LoadKey = Callable[[str], ec.EllipticCurvePrivateKey]


class S3Place(msgspec.Struct, frozen=True, tag="s3", forbid_unknown_fields=True):
    """A bucket. `key_file`: the key that seals every object (32 bytes, 0600; made by `stoq ct init`), relative to the
    log's directory; `older_key_files` still open what they sealed. Credentials come from where boto3 looks."""

    bucket: str
    key_file: str = "s3.key"
    endpoint: str = ""
    prefix: str = ""
    region: str = "us-east-1"
    plain_http: bool = False
    create_bucket: bool = False
    older_key_files: tuple[str, ...] = ()


class LocalPlace(msgspec.Struct, frozen=True, tag="local", forbid_unknown_fields=True):
    """The log's own directory."""


class WitnessPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A witness: its verifier key and where it is asked."""

    vkey: str
    url: str


class AnchorPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contract that heads are anchored in."""

    rpc: str  # http://[::1]:8545
    chain_id: int
    contract: str  # 0x and 40 digits.
    account: str = "account.key"  # File of the publisher's key, 0600, relative to the log's directory.
    every_seconds: float = 3600.0
    every_entries: int = 0
    confirmations: int = 64  # Where the chain has no finality of its own.
    poll_seconds: float = 6.0  # Between two looks at the chain.


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`log.json`."""

    origin: str
    start: float | None = None  # Of the shard: certificates that end from here …
    limit: float | None = None  # … to before here; seconds since 1970.
    storage: LocalPlace | S3Place = LocalPlace()
    lock: LocalPlace | S3Place = LocalPlace()
    key: str = KEY  # A file in the directory, or pkcs11:…
    period: float = 0.05
    witnesses: tuple[WitnessPlace, ...] = ()
    anchor: AnchorPlace | None = None
    format: int = 1

    @property
    def prefix(self) -> str:
        """The path below which the log is served: what follows the host in the origin."""
        return self.origin.partition("/")[2].strip("/")

    @property
    def window(self) -> Window:
        """The shard."""
        return Window(self.start, self.limit)


def shard_window(text: str) -> tuple[float, float]:
    """The window of a shard by its name: `2026` or `2026h2`. Raises LogError."""
    match = SHARD.fullmatch(text)
    if match is None:
        raise LogError(f"{text!r} is no shard: a year, or half of one, as 2026 or 2026h2")
    year, half = int(match[1]), match[2]
    if not 1970 <= year <= 9000:
        raise LogError(f"{text!r} is no shard: a year between 1970 and 9000")
    first = datetime.datetime(year, 7 if half == "2" else 1, 1, tzinfo=datetime.UTC)
    after = datetime.datetime(*((year, 7) if half == "1" else (year + 1, 1)), 1, tzinfo=datetime.UTC)
    return first.timestamp(), after.timestamp()


def load_log_key(text_or_path: str) -> LogKey:
    """A log's public key: a PEM file, or its base64 SubjectPublicKeyInfo. Raises LogError."""
    path = Path(text_or_path)
    try:
        key = (
            load_pem_public_key(path.read_bytes())
            if path.is_file()
            else load_der_public_key(base64.b64decode(text_or_path, validate=True))
        )
    except (ValueError, OSError):
        raise LogError(f"{text_or_path!r} is neither a PEM file nor base64 of a log's public key") from None
    if not isinstance(key, LogKey):
        raise LogError(f"{text_or_path!r} is not a log's key: ECDSA P-256 or RSA")
    return key


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet. Raises LogError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise LogError(f"{path} exists already: nothing was overwritten; choose another directory") from None
    except OSError as error:
        raise LogError(f"cannot write {path}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Site:
    """A log's directory, read."""

    directory: Path
    config: LogConfig
    roots: tuple[x509.Certificate, ...]

    @classmethod
    def read(cls, directory: Path) -> Site:
        """Raises LogError."""
        path = directory / CONFIG
        try:
            config = msgspec.json.decode(path.read_bytes(), type=LogConfig)
            check_name(config.origin)
        except FileNotFoundError:
            raise LogError(f"{directory} is no log's directory: make one with `stoq ct init`") from None
        except (msgspec.MsgspecError, Malformed, OSError) as error:
            raise LogError(f"{path} cannot be read: {error}") from None
        return cls(directory, config, load_roots(directory / ROOTS))

    def signer(self, load_key: LoadKey | None = None) -> Signer:
        """Raises LogError. `load_key` serves keys that are not files (pkcs11:…)."""
        origin, witnessed = self.config.origin, self._witnessed()
        if ":" in self.config.key and load_key is not None:
            return Signer(origin, load_key(self.config.key), witnessed)
        key = read_key(self.directory / self.config.key)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise LogError(f"{self.directory / self.config.key} is no ECDSA key: a log's is on P-256")
        return Signer(origin, key, witnessed)

    def _witnessed(self) -> ed25519.Ed25519PrivateKey | None:
        path = self.directory / WITNESSED
        if not path.exists():
            return None
        key = read_key(path)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise LogError(f"{path} is no Ed25519 key")
        return key

    @property
    def vkey(self) -> str:
        """What witnesses know the log by; empty without such a key. Raises LogError."""
        key = self._witnessed()
        return log_vkey(self.config.origin, key.public_key()) if key is not None else ""

    async def storage(self) -> Storage:
        """Where tiles are. Raises LogError."""
        place = self.config.storage
        if isinstance(place, LocalPlace):
            return LocalStorage(self.directory / "data")
        from control.ctlog import s3  # boto3 need not be there where it is not used.

        return await s3.S3Storage.open(self._s3(place), self._envelope(place))

    async def lock(self) -> LockStore:
        """Where heads are. Raises LogError."""
        place = self.config.lock
        if isinstance(place, LocalPlace):
            return SqliteLock(self.directory / "lock.db")
        from control.ctlog import s3

        return await s3.S3LockStore.open(self._s3(place), self._envelope(place))

    def _s3(self, place: S3Place) -> S3Options:
        from control.ctlog import s3

        return s3.S3Options(
            bucket=place.bucket,
            prefix=place.prefix,
            endpoint=place.endpoint,
            region=place.region,
            plain_http=place.plain_http,
            create_bucket=place.create_bucket,
        )

    def _envelope(self, place: S3Place) -> Envelope:
        return Envelope(
            load_key_file(self.directory / place.key_file),
            [load_key_file(self.directory / one) for one in place.older_key_files],
        )

    def reserve(self) -> int:
        """Take the directory for this process; closing the descriptor gives it back. Raises LogError when another process
        has it. The lock store would tell two sequencers apart, too, but by stopping one that runs."""
        try:
            descriptor = os.open(self.directory / RESERVED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogError(f"cannot open {self.directory / RESERVED}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise LogError(f"the log {self.directory} is in use by another process: stop that one first") from None
        return descriptor

    def index(self) -> Index:
        """Hash to index."""
        return Index(self.directory / "index.db")

    @property
    def witnesses(self) -> list[tuple[Witness, str]]:
        """Keys and addresses. Raises Malformed."""
        return [(Witness.parse(one.vkey), one.url) for one in self.config.witnesses]


def load_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Raises LogError."""
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise LogError(f"{path} holds no roots (PEM certificates): {error}") from None


def read_key(path: Path) -> object:
    """A private key's PEM file that only its owner may read. Raises LogError."""
    try:
        if path.stat().st_mode & 0o077:
            raise LogError(f"{path} can be read by others: chmod 600 it, and think of whether to change the key")
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise LogError(f"{path} holds no key: {error}") from None


async def create(
    directory: Path, config: LogConfig, roots: Sequence[x509.Certificate], clock: Callable[[], float],
    load_key: LoadKey | None = None,
) -> Site:  # fmt: skip
    """A new log, empty. Raises LogError; nothing is overwritten."""
    check_name(config.origin)
    Acceptor(roots)
    directory.mkdir(parents=True, exist_ok=True)
    pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if ":" not in config.key:
        write_new(directory / config.key, ec.generate_private_key(ec.SECP256R1()).private_bytes(*pkcs8), 0o600)
    write_new(directory / WITNESSED, ed25519.Ed25519PrivateKey.generate().private_bytes(*pkcs8), 0o600)
    write_new(directory / ROOTS, b"".join(one.public_bytes(Encoding.PEM) for one in roots), 0o644)
    write_new(directory / CONFIG, msgspec.json.format(msgspec.json.encode(config)) + b"\n", 0o644)
    site = Site.read(directory)
    signer = site.signer(load_key)
    public = signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_new(directory / PUBLIC, public, 0o644)
    for place in (config.storage, config.lock):
        if isinstance(place, S3Place) and not (directory / place.key_file).exists():
            create_key_file(directory / place.key_file)
    storage = await site.storage()
    try:
        lock = await site.lock()
        try:
            await Sequencer.create(signer, storage, lock, clock)
        finally:
            await lock.close()
    finally:
        await storage.close()
    return site

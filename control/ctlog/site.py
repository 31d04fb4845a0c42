"""A log's directory, and opening what it says.

    DIR/log.json      origin, shard, where entries and heads are kept, witnesses (written by `stoq ct init`)
    DIR/log.key       the log's key, PEM, 0600; unless log.json names a token's
    DIR/log.pem       its public key, to be given to everybody
    DIR/roots.pem     the roots it takes chains to
    DIR/data/         tiles, checkpoint, issuers         \
    DIR/lock.db       the lock store                      } when they are local
    DIR/index.db      hash to index; can be made anew
"""

from __future__ import annotations

import base64
import datetime
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
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
from control.ctlog.errors import LogError, Malformed
from control.ctlog.index import Index
from control.ctlog.local import LocalStorage, SqliteLock
from control.ctlog.log import Log, Options
from control.ctlog.note import Witness, check_name
from control.ctlog.sequencer import Sequencer
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import LogKey

CONFIG, KEY, PUBLIC, ROOTS = "log.json", "log.key", "log.pem", "roots.pem"
SHARD = re.compile(r"(\d{4})(?:h([12]))?")

LoadKey = Callable[[str], ec.EllipticCurvePrivateKey]


class S3Place(msgspec.Struct, frozen=True, tag="s3", forbid_unknown_fields=True):
    """A bucket. `key_file`: 32 bytes that encrypt, hex or raw, mode 0600. Credentials come from where boto3 looks."""

    endpoint: str
    bucket: str
    key_file: str
    prefix: str = ""
    region: str = "us-east-1"


class LocalPlace(msgspec.Struct, frozen=True, tag="local", forbid_unknown_fields=True):
    """The log's own directory."""


class WitnessPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A witness: its verifier key and where it is asked."""

    vkey: str
    url: str


class AnchorPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contract that heads are anchored in."""

    rpc: str
    contract: str
    account: str  # File of the publisher's key, 0600.
    interval: float = 60.0  # Seconds between two anchors.
    confirmations: int = 0  # 0: by the chain's own finality.


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
        if ":" in self.config.key and load_key is not None:
            return Signer(self.config.origin, load_key(self.config.key))
        return Signer(self.config.origin, _load_key(self.directory / self.config.key))

    def storage(self) -> Storage:
        """Where tiles are."""
        place = self.config.storage
        return LocalStorage(self.directory / "data") if isinstance(place, LocalPlace) else _s3(place)[0]

    def lock(self) -> LockStore:
        """Where heads are."""
        place = self.config.lock
        return SqliteLock(self.directory / "lock.db") if isinstance(place, LocalPlace) else _s3(place)[1]

    def index(self) -> Index:
        """Hash to index."""
        return Index(self.directory / "index.db")

    @property
    def witnesses(self) -> list[tuple[Witness, str]]:
        """Keys and addresses. Raises Malformed."""
        return [(Witness.parse(one.vkey), one.url) for one in self.config.witnesses]


def _s3(place: S3Place) -> tuple[Storage, LockStore]:
    from control.ctlog.s3 import open_s3  # boto3 is there when it is needed.

    return open_s3(place.endpoint, place.bucket, place.prefix, place.region, Path(place.key_file))


def load_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Raises LogError."""
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise LogError(f"{path} holds no roots (PEM certificates): {error}") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        if path.stat().st_mode & 0o077:
            raise LogError(f"{path} can be read by others: chmod 600 it, and think of whether to change the key")
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise LogError(f"{path} holds no log key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise LogError(f"{path} is no ECDSA key: a log's is on P-256")
    return key


async def create(
    directory: Path, config: LogConfig, roots: Sequence[x509.Certificate], clock: Callable[[], float],
    load_key: LoadKey | None = None,
) -> Site:  # fmt: skip
    """A new log, empty. Raises LogError; nothing is overwritten."""
    check_name(config.origin)
    Acceptor(roots)
    directory.mkdir(parents=True, exist_ok=True)
    if ":" not in config.key:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_new(directory / config.key, pem, 0o600)
    write_new(directory / ROOTS, b"".join(one.public_bytes(Encoding.PEM) for one in roots), 0o644)
    write_new(directory / CONFIG, msgspec.json.format(msgspec.json.encode(config)) + b"\n", 0o644)
    site = Site.read(directory)
    signer = site.signer(load_key)
    public = signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_new(directory / PUBLIC, public, 0o644)
    storage, lock = site.storage(), site.lock()
    try:
        await Sequencer.create(signer, storage, lock, clock)
    finally:
        await storage.close()
        await lock.close()
    return site


class OpenLog:
    """A log with its stores, as an async context manager."""

    def __init__(self, site: Site, clock: Callable[[], float], load_key: LoadKey | None = None) -> None:
        self._site = site
        self._clock = clock
        self._load_key = load_key
        self._stores: list[Storage | LockStore] = []
        self._log: Log | None = None

    async def __aenter__(self) -> Log:
        site = self._site
        signer = site.signer(self._load_key)
        acceptor = Acceptor(site.roots, site.config.window)
        try:
            storage, lock = site.storage(), site.lock()
            self._stores = [storage, lock]
            options = Options(period=site.config.period)
            self._log = await Log.open(signer, acceptor, storage, lock, site.index(), self._clock, options)
        except BaseException:
            await self._close_stores()
            raise
        return self._log

    async def __aexit__(self, *_: object) -> None:
        if self._log is not None:
            await self._log.close()
        await self._close_stores()

    async def _close_stores(self) -> None:
        for store in self._stores:
            await store.close()
        self._stores = []

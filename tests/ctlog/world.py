"""What the log's tests share: a certificate authority whose certificates cost little, submissions without certificates,
and a log in a directory of its own."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog import merkle
from control.ctlog.chains import Acceptor
from control.ctlog.index import Index
from control.ctlog.local import LocalStorage, SqliteLock
from control.ctlog.log import Log, Options
from control.ctlog.note import TreeHead
from control.ctlog.precert import POISON, PRECERT_SIGNING
from control.ctlog.sequencer import Sequencer, Submission
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from control.ctlog.structs import EntryType, SignedEntry

ORIGIN = "log.example/2026"
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def new_key() -> ec.EllipticCurvePrivateKey:
    """On P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def der(certificate: x509.Certificate) -> bytes:
    """A certificate's bytes."""
    return certificate.public_bytes(Encoding.DER)


def name(common_name: str) -> x509.Name:
    """With one attribute."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True)
class Issuer:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def builder(self, common_name: str, key: ec.EllipticCurvePublicKey, *, days: int = 1) -> x509.CertificateBuilder:
        """A certificate's builder, for one below this."""
        return (
            x509.CertificateBuilder()
            .subject_name(name(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(START)
            .not_valid_after(START + datetime.timedelta(days=days))
        )

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Made."""
        return builder.sign(self.key, SHA256())


def make_root(common_name: str = "root") -> Issuer:
    """A new root."""
    key = new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issuer(builder.sign(key, SHA256()), key)


def make_issuer(above: Issuer, common_name: str = "intermediate", *, precert_signing: bool = False) -> Issuer:
    """An intermediate below `above`."""
    key = new_key()
    builder = (
        above.builder(common_name, key.public_key(), days=3000)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_key_id(above), critical=False)
    )
    if precert_signing:
        builder = builder.add_extension(x509.ExtendedKeyUsage([PRECERT_SIGNING]), critical=False)
    return Issuer(above.sign(builder), key)


def authority_key_id(above: Issuer) -> x509.AuthorityKeyIdentifier:
    """Of what `above` signs."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key())


@dataclass(frozen=True)
class Ca:
    """A root, an intermediate, and one key for all leaves."""

    root: Issuer = field(default_factory=make_root)
    issuer: Issuer = field(init=False)
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        object.__setattr__(self, "issuer", make_issuer(self.root))

    def builder(self, common_name: str, *, days: int = 1) -> x509.CertificateBuilder:
        """A leaf's."""
        return self.issuer.builder(common_name, self.key.public_key(), days=days)

    def certificate(self, common_name: str, *, days: int = 1) -> list[bytes]:
        """A leaf's chain without the root."""
        return [der(self.issuer.sign(self.builder(common_name, days=days))), der(self.issuer.certificate)]

    def precertificate(self, common_name: str, *, days: int = 1) -> list[bytes]:
        """A precertificate's chain without the root."""
        builder = self.builder(common_name, days=days).add_extension(x509.PrecertPoison(), critical=True)
        return [der(self.issuer.sign(builder)), der(self.issuer.certificate)]


assert x509.PrecertPoison.oid == POISON


def submission(number: int, size: int = 40) -> Submission:
    """What is logged for a number, always the same: no certificate, and to the sequencer as good as one."""
    body = hashlib.sha512(b"submission %d" % number).digest()
    certificate = (body * (size // len(body) + 1))[:size]
    issuer = b"issuer %d" % (number % 3)
    fingerprint = hashlib.sha256(issuer).digest()
    if number % 2:
        return Submission(SignedEntry(EntryType.X509, certificate), b"", (issuer,), (fingerprint,))
    entry = SignedEntry(EntryType.PRECERT, certificate, fingerprint)
    return Submission(entry, b"precertificate" + certificate, (issuer,), (fingerprint,))


class Clock:
    """Seconds since 1970, moved by hand; each look takes a millisecond."""

    def __init__(self, now: float = 1_780_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


OPTIONS = Options(period=0.0)


@dataclass
class World:
    """A log's stores below a directory, and what is known of the log from outside."""

    directory: Path
    signer: Signer = field(default_factory=lambda: Signer(ORIGIN, new_key()))
    clock: Callable[[], float] = field(default_factory=Clock)
    storage: Storage = field(init=False)
    lock: LockStore = field(init=False)

    def __post_init__(self) -> None:
        self.storage = LocalStorage(self.directory / "data")
        self.lock = SqliteLock(self.directory / "lock.db")

    async def create(self) -> None:
        """A new log."""
        await Sequencer.create(self.signer, self.storage, self.lock, self.clock)

    async def sequencer(self) -> Sequencer:
        """A sequencer of the log as it is."""
        return await Sequencer.open(self.signer, self.storage, self.lock, self.clock)

    @asynccontextmanager
    async def log(self, acceptor: Acceptor | None = None, options: Options = OPTIONS) -> AsyncIterator[Log]:
        """The log, running."""
        index = Index(self.directory / "index.db")
        try:
            log = await Log.open(self.signer, acceptor or ACCEPTOR, self.storage, self.lock, index, self.clock, options)
        except BaseException:
            await index.close()
            raise
        try:
            yield log
        finally:
            await log.close()

    async def close(self) -> None:
        """Threads end."""
        await self.storage.close()
        await self.lock.close()


ACCEPTOR = Acceptor([make_root().certificate])


@asynccontextmanager
async def world(directory: Path, *, new: bool = True) -> AsyncIterator[World]:
    """A world, with a new log in it."""
    made = World(directory)
    try:
        if new:
            await made.create()
        yield made
    finally:
        await made.close()


async def check_heads(log: Log, heads: Sequence[TreeHead]) -> None:
    """Each of these heads, whose signature was checked, is by proof one that the log's tree goes on. Raises
    ProofError."""
    for old in heads:
        proof = await log.consistency(old.size)
        merkle.verify_consistency(old.size, log.head.size, old.root, log.head.root, proof)


async def grow(sequencer: Sequencer, counts: Sequence[int], begin: int = 0) -> int:
    """Rounds of so many submissions each; returns the next number."""
    for count in counts:
        await sequencer.sequence([submission(number) for number in range(begin, begin + count)])
        begin += count
    return begin


def run_with_deadline(main: object, seconds: float = 60.0) -> None:
    """Run a test's coroutine; whatever hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main  # type: ignore[misc]

    asyncio.run(bounded())

"""A small world to judge peers in: a root, an intermediate, logs that sign SCTs and keep a tree, certificates with
every kind of fault, and trust bundles. Everything is made with `cryptography` and `control.ctlog`, not by the authority
under test elsewhere."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control.ctlog import merkle
from control.ctlog.note import TreeHead
from control.ctlog.precert import POISON, precertificate_entry, sct_extension
from control.ctlog.structs import (
    Sct,
    SignedEntry,
    index_extension,
    key_id,
    leaf_bytes,
    sct_input,
    tree_head_input,
)
from control.handshake import Credentials, Trust
from control.trustchain.bundle import LogRecord, TrustBundle, anchors_of
from control.trustchain.known_logs import KnownLog
from control.trustchain.roles import Role, roles_extension

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
ECDSA = ec.ECDSA(SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def milliseconds(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)


@dataclass
class Log:
    """A log in memory: signs, and proves."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    leaves: list[bytes] = field(default_factory=list)  # Their hashes.
    begins: datetime.datetime = NOW - 30 * DAY
    ends: datetime.datetime | None = None
    shard: tuple[datetime.datetime | None, datetime.datetime | None] = (None, None)

    @property
    def log_id(self) -> bytes:
        return key_id(self.key.public_key())

    @property
    def known(self) -> KnownLog:
        return KnownLog(self.name, self.key.public_key(), self.begins, self.ends, *self.shard)

    @property
    def record(self) -> LogRecord:
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        start, limit = self.shard
        return LogRecord(
            name=self.name,
            key=der,
            begins=self.begins,
            ends=self.ends,
            not_after_start=start,
            not_after_limit=limit,
        )

    def sct(self, entry: SignedEntry, at: datetime.datetime = NOW - HOUR, *, indexed: bool = True) -> Sct:
        """Sequence an entry and promise it."""
        timestamp = milliseconds(at)
        extensions = index_extension(len(self.leaves)) if indexed else b""
        self.leaves.append(merkle.leaf_hash(leaf_bytes(entry, timestamp, extensions)))
        signature = self.key.sign(sct_input(entry, timestamp, extensions), ECDSA)
        return Sct(self.log_id, timestamp, extensions, signature)

    def head(self, at: datetime.datetime = NOW) -> TreeHead:
        root, timestamp, size = self._root(0, len(self.leaves)), milliseconds(at), len(self.leaves)
        return TreeHead(timestamp, size, root, self.key.sign(tree_head_input(timestamp, size, root), ECDSA))

    def _root(self, begin: int, end: int) -> bytes:
        if end - begin == 0:
            return hashlib.sha256(b"").digest()
        if end - begin == 1:
            return self.leaves[begin]
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
        return merkle.node_hash(self._root(begin, middle), self._root(middle, end))

    def proof(self, leaf: bytes, size: int) -> tuple[int, tuple[bytes, ...]]:
        index = self.leaves.index(leaf)
        begin, end, hashes = 0, size, []
        while end - begin > 1:
            middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
            if index < middle:
                hashes.append(self._root(middle, end))
                end = middle
            else:
                hashes.append(self._root(begin, middle))
                begin = middle
        return index, tuple(reversed(hashes))


@dataclass(frozen=True)
class Issuer:
    """A CA certificate with its key; `chain` is what is sent below the root, itself first."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


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


def _builder(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    issuer_name: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    begins: datetime.datetime,
    ends: datetime.datetime,
    *,
    ca: bool,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer_name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def make_root(name: str = "root") -> Issuer:
    key = new_key()
    public = key.public_key()
    built = _builder(name, public, _name(name), public, NOW - 10 * DAY, NOW + 365 * DAY, ca=True)
    return Issuer(built.sign(key, SHA256()), key)


def make_intermediate(root: Issuer, name: str = "intermediate") -> Issuer:
    key = new_key()
    subject, public = root.certificate.subject, root.key.public_key()
    built = _builder(name, key.public_key(), subject, public, NOW - 5 * DAY, NOW + 90 * DAY, ca=True)
    certificate = built.sign(root.key, SHA256())
    return Issuer(certificate, key, (certificate, *root.chain))


def issue(
    issuer: Issuer,
    name: str,
    logs: Sequence[Log] = (),
    *,
    roles: Iterable[Role] = (Role.NODE,),
    key: ec.EllipticCurvePrivateKey | None = None,
    begins: datetime.datetime = NOW - HOUR,
    ends: datetime.datetime = NOW + DAY,
    usages: Sequence[x509.ObjectIdentifier] = BOTH,
    scts: Sequence[Sct] | None = None,
    at: datetime.datetime = NOW - HOUR,
    sct_value: x509.UnrecognizedExtension | None = None,
    extra: x509.UnrecognizedExtension | None = None,
) -> Credentials:
    """A certificate for `name` and ::1, precertificate-logged in `logs`; `scts` or the whole extension `sct_value` in
    place of what those would give."""
    key = key or new_key()
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.IPv6Address("::1"))]
    subject, public = issuer.certificate.subject, issuer.key.public_key()
    built = _builder(name, key.public_key(), subject, public, begins, ends, ca=False)
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    built = built.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    roles = tuple(roles)
    if roles:
        built = built.add_extension(roles_extension(roles), critical=False)
    if extra is not None:
        built = built.add_extension(extra, critical=False)
    if logs:
        poisoned = built.add_extension(x509.PrecertPoison(), critical=True).sign(issuer.key, SHA256())
        assert poisoned.extensions.get_extension_for_oid(POISON).critical
        entry = precertificate_entry(poisoned, [issuer.certificate])
        given = tuple(log.sct(entry, at) for log in logs)
        scts = given if scts is None else scts
    if sct_value is not None:
        built = built.add_extension(sct_value, critical=False)
    elif scts:
        built = built.add_extension(sct_extension(scts), critical=False)
    return Credentials(built.sign(issuer.key, SHA256()), issuer.chain, key)


def chain_of(credentials: Credentials) -> list[bytes]:
    """As TLS sends it: DER, leaf first."""
    return [one.public_bytes(Encoding.DER) for one in (credentials.certificate, *credentials.chain)]


@dataclass
class World:
    """A root, an intermediate and two logs."""

    root: Issuer = field(default_factory=make_root)
    logs: tuple[Log, ...] = field(default_factory=lambda: (Log("north"), Log("south")))

    def __post_init__(self) -> None:
        self.intermediate = make_intermediate(self.root)

    @property
    def trust(self) -> Trust:
        return Trust((self.root.certificate,))

    def issue(self, name: str, logs: Sequence[Log] | None = None, **more: object) -> Credentials:
        return issue(self.intermediate, name, self.logs if logs is None else logs, **more)  # type: ignore[arg-type]

    def bundle(self, **more: object) -> TrustBundle:
        values: dict[str, object] = {
            "generation": 1,
            "issued_at": NOW - HOUR,
            "valid_until": NOW + 7 * DAY,
            "anchors": anchors_of([self.root.certificate]),
            "logs": tuple(log.record for log in self.logs),
        }
        return TrustBundle(**(values | more))  # type: ignore[arg-type]

"""The trust bundle: everything a node judges its peers by, in one file. Its authority makes it anew, with the next
generation number, whenever something in it changes; a node takes a newer one at any time, and never an older.

      anchors · known logs · pins · how many SCTs · inclusion policy · roles by purpose · revocations · until when

JSON, bytes in base64, times in RFC 3339. The file is not secret (0644) and carries no signature of its own: it comes
over a connection that is authenticated, or with the node's own files, and whoever can write those is trusted anyway.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.precert import key_hash
from control.handshake.credentials import Trust
from control.trustchain.errors import TrustError
from control.trustchain.known_logs import KnownLog, KnownLogs, known_logs, load_log_key
from control.trustchain.pins import PinSet, peer_name
from control.trustchain.revoked import Revocation, RevokedTable, issuer_and_serial
from control.trustchain.roles import parse_roles
from dataplane.errors import StoqError

VERSION = 1
MAX_BUNDLE_BYTES = 15 << 20  # Fits a frame to a handshake process.
MAX_ANCHORS = 64
MAX_LOGS = 256
MAX_PINNED = 10_000  # Peers.
MAX_REVOCATIONS = 80_000  # Some 180 bytes each, so that the bundle's own bound is not met first.
HASH_BYTES = 32
MAX_SERIAL_BITS = 160  # RFC 5280 section 4.1.2.2.
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class BundleError(TrustError):
    """A trust bundle that cannot be used; the text says what is wrong with it."""


class StaleBundle(BundleError):
    """A trust bundle that is older than the one in use: taking it would forget revocations."""


class InclusionMode(Enum):
    """Of which peers an inclusion proof is demanded."""

    NONE = "none"
    SAMPLED = "sampled"
    ALWAYS = "always"


class LogRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known log: KnownLog, and where to reach it. `key` is its SubjectPublicKeyInfo, DER."""

    name: str
    key: bytes
    begins: datetime.datetime
    ends: datetime.datetime | None = None
    not_after_start: datetime.datetime | None = None
    not_after_limit: datetime.datetime | None = None
    url: str = ""


class PinRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pins of one peer. `allow_single`: there is no backup, and that is meant so."""

    pins: tuple[str, ...]
    allow_single: bool = False


class InclusionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rate` of the peers that are met, where sampled. `hard`: a peer whose logs do not answer is refused; otherwise it
    is let in. A proof that is wrong, or that a log says it has not, is a refusal in any case."""

    mode: InclusionMode = InclusionMode.NONE
    rate: float = 0.01
    hard: bool = True


class RequiredRoles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Roles by what the peer is to us; one of them is enough, none: any peer will do."""

    client: tuple[str, ...] = ()
    server: tuple[str, ...] = ()


class RevocationRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One certificate, by the SHA-256 of its issuer's SubjectPublicKeyInfo and its serial number (hex); or, with
    `key_hash`, every certificate of a key, by the SHA-256 of its SubjectPublicKeyInfo. `reason`: a CRLReason's name."""

    at: datetime.datetime
    reason: str = "unspecified"
    issuer_key_hash: bytes = b""
    serial: str = ""
    key_hash: bytes = b""

    @property
    def key(self) -> bytes:
        """Under which it is looked up. Raises BundleError."""
        if self.key_hash:
            if len(self.key_hash) != HASH_BYTES or self.issuer_key_hash or self.serial:
                raise BundleError("a revocation is by a key's hash of 32 bytes, or by issuer and serial number")
            return self.key_hash
        try:
            serial = int(self.serial, 16)
        except ValueError:
            serial = -1
        if len(self.issuer_key_hash) != HASH_BYTES or serial < 0 or serial.bit_length() > MAX_SERIAL_BITS:
            raise BundleError(
                "a revocation needs its issuer's key hash (32 bytes) and a serial number in hex, "
                f"not {self.serial[:50]!r}"
            )
        return issuer_and_serial(self.issuer_key_hash, serial)


class TrustBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's text. `hard_stale`: after `valid_until` peers are refused, as what was revoked since is not
    known; otherwise they are judged by what was known then, and `TrustVerifier.stale` says so. `crl_numbers`: of the
    CRLs that the revocations come from, by issuer key hash (hex)."""

    generation: int
    issued_at: datetime.datetime
    valid_until: datetime.datetime
    anchors: tuple[bytes, ...]  # DER.
    logs: tuple[LogRecord, ...] = ()
    pins: dict[str, PinRecord] = {}
    scts_required: int = 1
    inclusion: InclusionPolicy = InclusionPolicy()
    required_roles: RequiredRoles = RequiredRoles()
    revocations: tuple[RevocationRecord, ...] = ()
    crl_numbers: dict[str, int] = {}
    hard_stale: bool = True
    version: int = VERSION

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self, order="deterministic")


@dataclass(frozen=True, slots=True)
class Rules:
    """A bundle, ready for use. `policy` changes with everything in it but revocations, generation and times."""

    bundle: TrustBundle
    anchors: Trust
    logs: KnownLogs
    pins: Mapping[str, PinSet]
    client_roles: frozenset[str]
    server_roles: frozenset[str]
    revoked: RevokedTable
    policy: bytes

    @property
    def fresh_until(self) -> datetime.datetime | None:
        """Until when peers may be judged by it; None: always."""
        return self.bundle.valid_until if self.bundle.hard_stale else None


def decode_bundle(data: bytes) -> TrustBundle:
    """From JSON. Raises BundleError."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"the trust bundle has {len(data)} bytes; {MAX_BUNDLE_BYTES} are taken")
    try:
        bundle = msgspec.json.decode(data, type=TrustBundle)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"the trust bundle cannot be read: {error}") from None
    if bundle.version != VERSION:
        raise BundleError(
            f"the trust bundle is of version {bundle.version}, {VERSION} is known here: update this node first"
        )
    return bundle


def _check(bundle: TrustBundle) -> None:
    times = [bundle.issued_at, bundle.valid_until]
    for log in bundle.logs:
        ends = (log.ends, log.not_after_start, log.not_after_limit)
        times += [log.begins, *(one for one in ends if one is not None)]
    times += [revocation.at for revocation in bundle.revocations]
    if any(one.tzinfo is None for one in times):
        raise BundleError("a time in the trust bundle has no time zone: write it as RFC 3339 does, with Z")
    if bundle.valid_until <= bundle.issued_at or bundle.generation < 0:
        raise BundleError("the trust bundle ends before it begins, or its generation is negative")
    for count, most, what in (
        (len(bundle.anchors), MAX_ANCHORS, "anchors"),
        (len(bundle.logs), MAX_LOGS, "logs"),
        (len(bundle.pins), MAX_PINNED, "pinned peers"),
        (len(bundle.revocations), MAX_REVOCATIONS, "revocations"),
    ):
        if count > most:
            raise BundleError(f"the trust bundle has {count} {what}; {most} are taken")
    if not 0 <= bundle.scts_required <= len(bundle.logs):
        raise BundleError(
            f"{bundle.scts_required} SCTs are demanded and {len(bundle.logs)} logs are known: "
            "no certificate could be good"
        )
    inclusion = bundle.inclusion
    if inclusion.mode is not InclusionMode.NONE and not bundle.scts_required:
        raise BundleError("inclusion proofs are of certificates with SCTs: demand at least one SCT")
    if inclusion.mode is InclusionMode.SAMPLED and not 0 < inclusion.rate <= 1:
        raise BundleError(f"a sample is more than 0 and at most 1 of the peers, not {inclusion.rate}")


def _log(record: LogRecord) -> KnownLog:
    return KnownLog(
        record.name,
        load_log_key(record.key, record.name),
        record.begins,
        record.ends,
        record.not_after_start,
        record.not_after_limit,
    )


def compile_bundle(bundle: TrustBundle) -> Rules:
    """Make a bundle ready for use, and find every mistake in it. Raises BundleError."""
    _check(bundle)
    try:
        anchors = Trust(tuple(x509.load_der_x509_certificate(der) for der in bundle.anchors))
        logs = known_logs(_log(record) for record in bundle.logs)
        pins: dict[str, PinSet] = {}
        for name, record in bundle.pins.items():
            if peer_name(name) in pins:
                raise BundleError(f"the peer {name!r} is pinned twice")
            pins[peer_name(name)] = PinSet.parse(record.pins, allow_single=record.allow_single)
        client_roles, server_roles = (
            frozenset(str(role) for role in parse_roles(names))
            for names in (bundle.required_roles.client, bundle.required_roles.server)
        )
    except BundleError:
        raise
    except StoqError as error:
        raise BundleError(f"the trust bundle cannot be used: {error}") from None
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise BundleError(f"an anchor in the trust bundle is no certificate: {error}") from None
    revoked = {one.key: Revocation(one.reason, one.at) for one in bundle.revocations}
    return Rules(
        bundle,
        anchors,
        logs,
        MappingProxyType(pins),
        client_roles,
        server_roles,
        MappingProxyType(revoked),
        _policy(bundle),
    )


def _policy(bundle: TrustBundle) -> bytes:
    rest = msgspec.structs.replace(
        bundle, generation=0, issued_at=EPOCH, valid_until=EPOCH, revocations=(), crl_numbers={}
    )
    return hashlib.sha256(rest.encode()).digest()


def load_bundle(path: Path) -> TrustBundle:
    """From a file. Raises BundleError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot read the trust bundle {path}: {error.strerror}") from None
    try:
        return decode_bundle(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def save_bundle(path: Path, bundle: TrustBundle) -> None:
    """Into a file, whole or not at all, mode 0644. Raises BundleError."""
    compile_bundle(bundle)
    data = bundle.encode()
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"the trust bundle has {len(data)} bytes; {MAX_BUNDLE_BYTES} are taken")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise BundleError(f"cannot write the trust bundle {path}: {error.strerror}") from None


# ---- making the next one ----


def revoke(
    bundle: TrustBundle,
    certificates: Iterable[tuple[x509.Certificate, x509.Certificate]],
    *,
    reason: str,
    at: datetime.datetime,
    valid_until: datetime.datetime | None = None,
) -> TrustBundle:
    """The next generation, in which these certificates, each with its issuer, are revoked besides."""
    records = tuple(
        RevocationRecord(
            at=at, reason=reason, issuer_key_hash=key_hash(issuer), serial=f"{certificate.serial_number:x}"
        )
        for certificate, issuer in certificates
    )
    return msgspec.structs.replace(
        bundle,
        generation=bundle.generation + 1,
        issued_at=at,
        valid_until=valid_until or max(bundle.valid_until, at + (bundle.valid_until - bundle.issued_at)),
        revocations=(*bundle.revocations, *records),
    )


def take_crl(bundle: TrustBundle, crl_der: bytes, issuer: x509.Certificate) -> TrustBundle:
    """The next generation, in which an issuer's revocations are those of its CRL (RFC 5280 section 5), and which is
    as fresh as the CRL. Raises BundleError for a CRL that the issuer has not signed or that is older than the last."""
    try:
        crl = x509.load_der_x509_crl(crl_der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        good = crl.issuer == issuer.subject and crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        records = [_crl_record(one, key_hash(issuer)) for one in crl]
    except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BundleError(f"the CRL cannot be read: {error}") from None
    if not good:
        raise BundleError("the CRL is not signed by the issuer that it is said to be of")
    name, end = key_hash(issuer).hex(), crl.next_update_utc
    if number < bundle.crl_numbers.get(name, 0):
        raise StaleBundle(f"the CRL has number {number}, the last one had {bundle.crl_numbers[name]}")
    others = [one for one in bundle.revocations if one.issuer_key_hash != key_hash(issuer)]
    return msgspec.structs.replace(
        bundle,
        generation=bundle.generation + 1,
        issued_at=crl.last_update_utc,
        valid_until=end or bundle.valid_until,
        revocations=(*others, *records),
        crl_numbers=bundle.crl_numbers | {name: number},
    )


def _crl_record(revoked: x509.RevokedCertificate, issuer_key_hash: bytes) -> RevocationRecord:
    try:
        reason = revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        reason = "unspecified"
    return RevocationRecord(
        at=revoked.revocation_date_utc,
        reason=reason,
        issuer_key_hash=issuer_key_hash,
        serial=f"{revoked.serial_number:x}",
    )


def anchors_of(certificates: Iterable[x509.Certificate]) -> tuple[bytes, ...]:
    """For `TrustBundle.anchors`."""
    return tuple(one.public_bytes(Encoding.DER) for one in certificates)

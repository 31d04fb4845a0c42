"""Is this peer good? `verify(chain, scts, context) → Verdict`: a pure function, in which nothing is fetched, no clock
is read and nothing is remembered. What it looks at, in this order; the first failure is the verdict:

      trust bundle fresh enough · path, time, purpose, name (RFC 5280; control.handshake.verify)
      · revocation of every certificate of the path · pins · role
      · SCTs: as many logs as demanded promise this very certificate (RFC 6962 section 3)
      · inclusion proof, where demanded

An SCT that a known log is said to have signed and has not is a refusal even where others would do: somebody changed it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.errors import Malformed, ProofError
from control.ctlog.merkle import leaf_hash
from control.ctlog.precert import certificate_entry, embedded_entry, embedded_scts
from control.ctlog.structs import Sct, SignedEntry, leaf_bytes, sct_input, verify_signature
from control.handshake.alerts import Alert
from control.handshake.credentials import Trust
from control.handshake.verify import ChainRefused, subject_of, verify_chain
from control.trustchain.inclusion import InclusionProof, LoggedEntry, check_inclusion
from control.trustchain.known_logs import NO_LOGS, KnownLog, KnownLogs
from control.trustchain.pins import PinSet, format_pin, peer_name
from control.trustchain.reasons import PATH_REASONS, Reason, Refusal
from control.trustchain.revoked import NOTHING_REVOKED, Digests, RevokedTable, find_revocation, path_digests
from control.trustchain.roles import roles_of
from dataplane.errors import StoqError
from dataplane.handshake import PeerIdentity

MAX_CHAIN = 16  # Certificates looked at; TLS bounds their bytes.
MAX_SCTS = 32
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Where several SCTs fail for different reasons, the one that tells most is told.
TELLING = (Reason.SCT_FUTURE, Reason.SCT_LOG_RETIRED, Reason.SCT_WRONG_SHARD, Reason.SCT_UNKNOWN_LOG)


class Inclusion(Enum):
    """What is known about a log's having the certificate."""

    NOT_DEMANDED = "not-demanded"
    PROVED = "proved"


@dataclass(frozen=True, slots=True)
class Context:
    """By what a peer is judged. `server_name`: the peer is a server and must have this name; None: it is a client.
    Of `required_roles` the peer must have one. `proof_demanded`: without a good one of `proofs` it is refused."""

    anchors: Trust
    now: datetime.datetime
    server_name: str | None = None
    logs: KnownLogs = field(default_factory=lambda: NO_LOGS)
    scts_required: int = 1  # From as many different logs; 0: none is looked at but those that come are checked.
    required_roles: frozenset[str] = frozenset()
    revoked: RevokedTable = field(default_factory=lambda: NOTHING_REVOKED)
    pins: Mapping[str, PinSet] = field(default_factory=lambda: MappingProxyType({}))  # By `pins.peer_name`.
    proof_demanded: bool = False
    proofs: tuple[InclusionProof, ...] = ()
    fresh_until: datetime.datetime | None = None  # Until when the rest of this may be judged by.
    skew: datetime.timedelta = datetime.timedelta(minutes=5)  # Between a log's clock and ours.


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome. Of a refusal only `good`, `reason`, `text`, `alert` and `subject` say something; `begins` and
    `ends` bound the time in which everything that a good one rests on holds."""

    good: bool
    reason: Reason
    text: str
    alert: Alert | None = None
    subject: str = ""
    identity: PeerIdentity | None = None
    roles: frozenset[str] = frozenset()
    begins: datetime.datetime = EPOCH
    ends: datetime.datetime = EPOCH
    logged: tuple[LoggedEntry, ...] = ()  # One for each SCT that was accepted.
    inclusion: Inclusion = Inclusion.NOT_DEMANDED
    path: tuple[x509.Certificate, ...] = ()
    fingerprints: tuple[bytes, ...] = ()  # SHA-256 of each certificate of the path.

    @property
    def log_ids(self) -> tuple[bytes, ...]:
        """Of the logs whose SCTs were accepted."""
        return tuple(entry.log_id for entry in self.logged)


def verify(chain: Sequence[bytes | x509.Certificate], scts: Sequence[Sct] | None, context: Context) -> Verdict:
    """Judge a peer by its chain, leaf first, in DER or parsed. SCTs embedded in the leaf count by themselves; `scts`
    are those delivered otherwise, for the leaf as it is. Never raises for what a peer sends."""
    subject = ""
    try:
        certificates = _parse(chain)
        subject = subject_of(certificates[0])
        return _verify(certificates, scts or (), context)
    except Refusal as refusal:
        return Verdict(False, refusal.reason, refusal.text, refusal.reason.alert, subject)
    except UNREADABLE as error:
        text = f"a certificate cannot be parsed: {error}"
        return Verdict(False, Reason.MALFORMED, text, Reason.MALFORMED.alert, subject)


def _verify(certificates: list[x509.Certificate], scts: Sequence[Sct], context: Context) -> Verdict:
    leaf, *others = certificates
    if context.fresh_until is not None and context.now > context.fresh_until:
        raise Refusal(
            Reason.TRUST_STALE,
            f"what is revoked is not known here since {context.fresh_until:%Y-%m-%d %H:%M} UTC: "
            "this node needs a newer trust bundle, and to reach its authority for that",
        )
    try:
        path = verify_chain(leaf, others, context.anchors, server_name=context.server_name, now=context.now)
    except ChainRefused as refused:
        raise Refusal(PATH_REASONS[refused.fault], refused.reason) from None
    digests = path_digests(path)
    _check_revocation(path, digests, context)
    keys = [one.key for one in digests]
    _check_pins(leaf, keys, context)
    roles = _check_role(leaf, context)
    logged = _check_scts(path, scts, context)
    inclusion = _check_inclusion(logged, context)
    ends = [certificate.not_valid_after_utc for certificate in path]
    if context.fresh_until is not None:
        ends.append(context.fresh_until)
    rests_on = tuple(digest for one in digests for digest in one)
    subject = subject_of(leaf)
    return Verdict(
        good=True,
        reason=Reason.GOOD,
        text=f"certificate of {subject} is good",
        subject=subject,
        identity=PeerIdentity(keys[0], subject, leaf.public_bytes(Encoding.DER), tuple(sorted(roles)), rests_on),
        roles=roles,
        begins=max(certificate.not_valid_before_utc for certificate in path),
        ends=min(ends),
        logged=logged,
        inclusion=inclusion,
        path=path,
        fingerprints=tuple(one.fingerprint for one in digests),
    )


def _parse(chain: Sequence[bytes | x509.Certificate]) -> list[x509.Certificate]:
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise Refusal(Reason.MALFORMED, f"a chain of {len(chain)} certificates; 1 to {MAX_CHAIN} are taken")
    return [x509.load_der_x509_certificate(one) if isinstance(one, bytes) else one for one in chain]


def _check_revocation(path: Sequence[x509.Certificate], digests: Sequence[Digests], context: Context) -> None:
    for place, (certificate, own) in enumerate(zip(path, digests, strict=True)):
        revocation = find_revocation(context.revoked, own)
        if revocation is None:
            continue
        if place == 0:
            raise Refusal(
                Reason.REVOKED,
                f"certificate of {subject_of(certificate)} was {revocation}: the peer needs a new one",
            )
        raise Refusal(
            Reason.ISSUER_REVOKED,
            f"certificate of {subject_of(path[0])} rests on {subject_of(certificate)!r}, which was {revocation}: "
            "the peer needs one of another issuer",
        )


def _names(leaf: x509.Certificate, node_id: bytes, server_name: str | None) -> Iterable[str]:
    """Every name that the certificate claims, and the one we asked for."""
    names = {node_id.hex(), subject_of(leaf)}
    if server_name is not None:
        names.add(server_name)
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    names.update(str(name.value) for name in found if isinstance(name, x509.DNSName | x509.IPAddress))
    return names


def _check_pins(leaf: x509.Certificate, keys: Sequence[bytes], context: Context) -> None:
    if not context.pins:
        return
    for name in sorted({peer_name(name) for name in _names(leaf, keys[0], context.server_name)}):
        pins = context.pins.get(name)
        if pins is not None and not pins.matches(keys):
            raise Refusal(
                Reason.WRONG_PIN,
                f"the keys pinned for {name} are others than the peer's ({format_pin(keys[0])}): if its key was "
                "changed on purpose, add the new pin; if not, somebody has a certificate in its name",
            )


def _check_role(leaf: x509.Certificate, context: Context) -> frozenset[str]:
    try:
        roles = frozenset(str(role) for role in roles_of(leaf))
    except (StoqError, *UNREADABLE) as error:
        raise Refusal(Reason.MALFORMED, f"the roles of {subject_of(leaf)} cannot be read: {error}") from None
    wanted = context.required_roles
    if wanted and wanted.isdisjoint(roles):
        has = ", ".join(sorted(roles)) or "none"
        raise Refusal(
            Reason.WRONG_ROLE,
            f"certificate of {subject_of(leaf)} has not the role that is needed here: it has {has}, and needs "
            f"{' or '.join(sorted(wanted))}; ask the authority for a certificate with it",
        )
    return roles


def _check_scts(
    path: Sequence[x509.Certificate], delivered: Sequence[Sct], context: Context
) -> tuple[LoggedEntry, ...]:
    leaf = path[0]
    try:
        embedded = embedded_scts(leaf)
        if len(embedded) + len(delivered) > MAX_SCTS:
            raise Malformed(f"{len(embedded) + len(delivered)} SCTs; {MAX_SCTS} are looked at")
        entries: list[tuple[Sct, SignedEntry]] = []
        if embedded and len(path) > 1:
            entry = embedded_entry(leaf, path[1])
            entries += [(sct, entry) for sct in embedded]
        if delivered:
            entry = certificate_entry(leaf)
            entries += [(sct, entry) for sct in delivered]
        logged: dict[bytes, LoggedEntry] = {}
        failures: dict[Reason, str] = {}
        for sct, entry in entries:
            try:
                logged.setdefault(sct.log_id, _accept(sct, entry, leaf, context))
            except Refusal as refusal:
                if refusal.reason is Reason.SCT_SIGNATURE:
                    raise
                failures[refusal.reason] = refusal.text
    except Malformed as error:
        raise Refusal(
            Reason.MALFORMED, f"the SCTs of {subject_of(leaf)} cannot be read: {error}; it needs a new certificate"
        ) from None
    if len(logged) < context.scts_required:
        raise _too_few(leaf, len(entries), len(logged), failures, context)
    return tuple(logged.values())


def _too_few(
    leaf: x509.Certificate, count: int, good: int, failures: Mapping[Reason, str], context: Context
) -> Refusal:
    who = subject_of(leaf)
    if not count:
        return Refusal(
            Reason.NO_SCT,
            f"certificate of {who} has no SCT: it is in no Certificate Transparency log that says so; issue it anew, "
            "logged",
        )
    why = next((reason for reason in TELLING if reason in failures), None)
    if good == 0 and why is not None:
        return Refusal(why, f"certificate of {who}: {failures[why]}")
    also = f" ({failures[why]})" if why is not None else ""
    return Refusal(
        Reason.SCT_TOO_FEW,
        f"certificate of {who} is in {good} known logs, and {context.scts_required} are demanded{also}: issue it anew, "
        "logged in more",
    )


def _accept(sct: Sct, entry: SignedEntry, leaf: x509.Certificate, context: Context) -> LoggedEntry:
    """What an SCT promises, if it counts. Raises Refusal and Malformed."""
    log = context.logs.get(sct.log_id)
    if log is None:
        raise Refusal(
            Reason.SCT_UNKNOWN_LOG,
            f"its SCT is of the log {sct.log_id.hex()[:16]}, which is not known here: log it in one that is "
            f"({', '.join(known.name for known in list(context.logs.values())[:3]) or 'none is known'})",
        )
    try:
        verify_signature(
            log.key, sct.algorithm, sct.signature, sct_input(entry, sct.timestamp, sct.extensions), "the SCT"
        )
    except ProofError as error:
        raise Refusal(
            Reason.SCT_SIGNATURE,
            f"the SCT of {log.name!r} in the certificate of {subject_of(leaf)} is not for this certificate: {error}; "
            "it was changed, or given for another one",
        ) from None
    _check_moment(sct, log, leaf, context)
    promised = leaf_hash(leaf_bytes(entry, sct.timestamp, sct.extensions))
    return LoggedEntry(sct.log_id, sct.timestamp, promised, sct.leaf_index)


def _check_moment(sct: Sct, log: KnownLog, leaf: x509.Certificate, context: Context) -> None:
    if sct.timestamp / 1000 > (context.now + context.skew).timestamp():
        raise Refusal(Reason.SCT_FUTURE, f"its SCT of {log.name!r} is from the future: check our clock and the log's")
    at = EPOCH + datetime.timedelta(milliseconds=sct.timestamp)
    if not log.gave(at):
        raise Refusal(
            Reason.SCT_LOG_RETIRED,
            f"its SCT is of {at:%Y-%m-%d %H:%M} UTC, when the log {log.name!r} was not accepted: log it in one that is",
        )
    if not log.takes(leaf.not_valid_after_utc):
        raise Refusal(
            Reason.SCT_WRONG_SHARD,
            f"it ends on {leaf.not_valid_after_utc:%Y-%m-%d}, outside the shard of the log {log.name!r}: log it in the "
            "shard of that time",
        )


def _check_inclusion(logged: Sequence[LoggedEntry], context: Context) -> Inclusion:
    """Every proof that is given must hold; where one is demanded, one must be given."""
    entries = {entry.log_id: entry for entry in logged}
    proved = False
    for proof in context.proofs:
        entry = entries.get(proof.log_id)
        if entry is not None:
            check_inclusion(entry, proof, context.logs[proof.log_id], context.now, context.skew)
            proved = True
    if context.proof_demanded and not proved:
        raise Refusal(
            Reason.INCLUSION_MISSING,
            "no log proves that it has the certificate, and that is demanded here: fetch a proof from a log whose SCT "
            "it carries",
        )
    return Inclusion.PROVED if proved else Inclusion.NOT_DEMANDED

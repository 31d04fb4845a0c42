"""The certificate authority: every operation, in the one order in which it is safe.

    who may (roles) ─▶ what is asked (CSR, names, profile) ─▶ decided: audit line, then store, durable
        ─▶ precertificate to the logs ─▶ SCTs verified ─▶ final certificate ─▶ stored, durable ─▶ answered

Nothing is handed out that store and audit log do not have. What a crash leaves half done is a precertificate that nobody
holds; its join token is given back when the authority opens. A refusal is audited before it is answered.

One `Authority` is one event loop's. Services over STOQ, HTTP and ACME call its methods; all of them take an `Actor`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake.verify import subject_of
from control.trustchain import store as records
from control.trustchain.actor import Actor
from control.trustchain.audit import (
    AuditLine,
    AuditLog,
    AuditRecord,
    AuditReport,
    Decision,
    Head,
    read_audit,
    verify_audit,
)
from control.trustchain.certificates import Issuer
from control.trustchain.directory import (
    AUDIT,
    DATABASE,
    ROOT,
    ROOT_CRL,
    CaConfig,
    add_intermediate,
    load_certificate,
    load_config,
    load_issuer,
    revoke_intermediate,
    save_config,
)
from control.trustchain.errors import BadRequest, Busy, NotFound, NotIssued, TrustError
from control.trustchain.events import RevocationEvent, Subscribers, Subscription, event_of
from control.trustchain.issuing import Issuance, Issued, said, with_key
from control.trustchain.journal import Change, Journal
from control.trustchain.keys import Passphrase, SigningKey, spki_sha256
from control.trustchain.plans import Plan, Planner
from control.trustchain.profiles import (
    CLOCK_SKEW_S,
    PROFILES,
    ProfileName,
    parse_address,
)
from control.trustchain.requests import IssueRequest, RenewRequest
from control.trustchain.revocation import CRL_GRACE_S, Crl, OcspResponder, build_crl, check_reason
from control.trustchain.roles import RULES, Operation, authorize
from control.trustchain.store import Limits, Row, Store, TokenRow
from control.trustchain.submit import LogClient, LogPolicy, Submitter, fingerprint
from control.trustchain.tokens import Token, TokenGrant, new_secret, secret_hash

MAX_IN_FLIGHT = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Status:
    """How the authority is."""

    name: str
    intermediate: int
    intermediate_not_after: float
    root_sha256: bytes
    counts: dict[str, int]
    audit: Head
    logs: tuple[str, ...]
    log_failures: dict[str, str]
    in_flight: int


class Authority:
    """An open authority; `close` it. Errors are TrustErrors."""

    def __init__(
        self,
        directory: Path,
        config: CaConfig,
        root: x509.Certificate,
        issuers: Sequence[Issuer],
        store: Store,
        journal: Journal,
        submitter: Submitter,
        clock: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.config = config
        self.root = root
        self._issuers = {issuer.number: issuer for issuer in issuers}
        self._store = store
        self._journal = journal
        self._submitter = submitter
        self._clock = clock
        self._subscribers = Subscribers()
        self._planner = Planner(store, config.constraints, self._now)
        self._issuance = Issuance(journal, submitter, store.limits, self._now, config.organization, config.places)
        self._crls: dict[int, Crl] = {}
        self._crl_lock = asyncio.Lock()
        self._rotation = asyncio.Lock()
        self._responder = OcspResponder(lambda: tuple(self._issuers.values()), self._row_of)
        self._in_flight = 0

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        passphrase: Passphrase | None = None,
        logs: Sequence[LogClient] = (),
        policy: LogPolicy | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        on_step: Callable[[str], None] = lambda _: None,
        accept_clock: bool = False,
    ) -> Self:
        """Take over a directory that `control.trustchain.directory.init` made; this process alone then writes there.
        `policy` None: what config.json says. `accept_clock`: the clock is right though it is behind the last decision.
        Raises CaError, KeyUnavailable, AuditBroken."""
        config = load_config(directory)
        root = load_certificate(directory / ROOT)
        issuers = [load_issuer(directory, one, root, passphrase) for one in config.intermediates]
        store = Store.open(directory / DATABASE, limits=limits)
        try:
            head, written_at = store.head()
            audit = AuditLog.open(directory / AUDIT, head)
        except BaseException:
            store.close()
            raise
        journal = Journal(store, audit, clock, on_step)
        journal.time = 0.0 if accept_clock else written_at
        authority = cls(
            directory, config, root, issuers, store, journal, Submitter(logs, policy or config.policy, clock, timer), clock
        )
        try:
            authority._recover()
        except BaseException:
            authority.close_now()
            raise
        return authority

    def _recover(self) -> None:
        """What a crash left half done."""
        lines = []
        if self._journal.audit.repaired_bytes:
            what = f"{self._journal.audit.repaired_bytes} bytes of a torn line were cut off"
            lines.append(AuditRecord("authority", "audit.repair", Decision.DONE, "", what))
        unfinished = self._store.unfinished()
        lines += [
            AuditRecord("authority", Operation.JOIN, Decision.FAILED, said(row), "interrupted; its token is given back")
            for row in unfinished
        ]
        if lines:


            def change(db: sqlite3.Connection) -> None:
                for row in unfinished:
                    records.release_token(db, row.serial)

            self._journal.commit_now(lines, change)

    async def close(self) -> None:
        """Finish what is being made durable, end subscriptions, give the directory up."""
        self._subscribers.close()
        await self._journal.close()
        self.close_now()

    def close_now(self) -> None:
        """Close, when no event loop runs any more."""
        self._journal.close_now()
        self._journal.audit.close()
        self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Who and when.

    @property
    def issuer(self) -> Issuer:
        """The intermediate that issues now."""
        return self._issuers[self.config.current]

    @property
    def issuers(self) -> tuple[Issuer, ...]:
        """All intermediates, also former ones, which sign CRLs and OCSP answers for theirs."""
        return tuple(self._issuers.values())

    @property
    def root_sha256(self) -> bytes:
        """The root's fingerprint."""
        return fingerprint(self.root.public_bytes(Encoding.DER))

    @property
    def audit_head(self) -> Head:
        """The audit log's head: noted down elsewhere it binds everybody who can write here."""
        return self._journal.head

    def _now(self) -> float:
        """The time to write into something that is signed. Raises NotIssued when the clock went back."""
        now = self._clock()
        if now < self._journal.time - CLOCK_SKEW_S:
            raise NotIssued(
                f"the clock is {self._journal.time - now:.0f} s behind the last decision: set it; if it is right and was "
                "wrong before, open the authority with --accept-clock"
            )
        return now

    async def decide(self, operation: Operation, actor: Actor, subject: str = "") -> None:
        """May `actor`? For whatever has no method here: the log, a node. Audited as the table says. Raises
        AccessDenied."""
        await self._checked(operation, actor, subject, lambda: None)
        if RULES[operation].audit_granted:
            await self._journal.commit([AuditRecord(str(actor), operation, Decision.GRANTED, subject)])

    async def _checked(self, operation: Operation, actor: Actor, subject: str, look: Callable[[], T]) -> T:
        """Access, then `look` at what is asked; a refusal of either is audited. Raises what they raise."""
        try:
            authorize(operation, actor.roles)
            return look()
        except Busy:
            raise  # No decision, and nothing that a flood of requests may fill the disk with.
        except TrustError as error:
            detail = f"{type(error).__name__}: {error}"
            await self._journal.commit([AuditRecord(str(actor), operation, Decision.REFUSED, subject, detail)])
            raise

    async def _change(
        self, operation: Operation, actor: Actor, subject: str, detail: str, change: Change[T], *, checked: bool = False
    ) -> T:
        """Access, then a change of the store, with its audit line."""
        if not checked:
            await self._checked(operation, actor, subject, lambda: None)
        return await self._journal.commit(
            [AuditRecord(str(actor), operation, Decision.GRANTED, subject, detail)], change
        )

    # Issuing.

    async def issue(self, request: IssueRequest, actor: Actor) -> Issued:
        """A new certificate for somebody: what a registrar or an administrator may. Raises TrustError."""
        operation = PROFILES[request.profile].issuing
        return await self._make(operation, actor, request.subject, lambda: self._planner.issue(request, actor))

    def token_profile(self, secret: bytes) -> ProfileName:
        """What kind of certificate a token is for; of an unknown one a node's, which `join` then refuses."""
        row = self._store.token(secret_hash(secret))
        return ProfileName(row.profile) if row is not None else ProfileName.NODE

    async def join(self, request: IssueRequest, secret: bytes, actor: Actor) -> Issued:
        """A first certificate, for a one-time token's secret (16 bytes). The token says what may be had; the request may
        ask for less. Raises TrustError."""
        return await self._make(
            Operation.JOIN, actor, request.subject, lambda: self._planner.join(request, secret, actor)
        )

    async def renew(self, request: RenewRequest, actor: Actor) -> Issued:
        """A successor with the same names and roles, for the holder of the certificate, or for others by whoever may.
        Raises TrustError."""
        own = bool(actor.fingerprint) and actor.fingerprint == request.fingerprint
        operation = Operation.RENEW if own else Operation.RENEW_OTHER
        subject = request.fingerprint.hex()
        return await self._make(operation, actor, subject, lambda: self._planner.renew(request, actor, operation))

    async def _make(self, operation: Operation, actor: Actor, subject: str, plan: Callable[[], Plan]) -> Issued:
        def look() -> Plan:
            self._issuance.check(self.issuer)
            return plan()

        if self._in_flight >= MAX_IN_FLIGHT:
            raise Busy(f"{MAX_IN_FLIGHT} certificates are being issued: try again later")
        self._in_flight += 1
        try:
            return await self._issuance.make(await self._checked(operation, actor, subject, look), self.issuer)
        finally:
            self._in_flight -= 1

    # Revoking.

    async def revoke(self, which: str, reason: str, actor: Actor) -> RevocationEvent:
        """Revoke the certificate with this serial number, fingerprint (hexadecimal) or subject (its newest), and unless it
        was only superseded all others of its line of renewals that have not ended: a node that is not trusted any more
        is not trusted by its older certificate either. The event of the one named. Raises TrustError."""
        row = self._find_quietly(which)
        own = row is not None and actor.fingerprint == row.fingerprint
        operation = Operation.REVOKE_OWN if own else Operation.REVOKE

        def look() -> Row:
            check_reason(reason)
            return row if row is not None else self._store.find(which)

        found = await self._checked(operation, actor, which, look)
        now = max(self._clock(), self._journal.time)

        def change(db: sqlite3.Connection) -> list[Row]:
            rows = [found]
            if reason != "superseded":
                rows += records.live_of_line(db, found.lineage, now, other_than=found.serial)
            return [
                msgspec.structs.replace(
                    one, revoked_at=now, reason=reason, revocation=records.set_revoked(db, one.serial, now, reason)
                )
                for one in rows
            ]

        revoked = await self._change(operation, actor, said(found), reason, change, checked=True)
        events = [self._event(one) for one in revoked]
        for one, event in zip(revoked, events, strict=True):
            self._crls.pop(one.issuer, None)
            self._subscribers.push(event)
        return events[0]

    def _event(self, row: Row) -> RevocationEvent:
        return event_of(row, spki_sha256(self._issuers[row.issuer].certificate))

    def subscribe(self) -> Subscription:
        """Revocations from now on. Who asks is the caller's to `decide` (Operation.EVENTS)."""
        return self._subscribers.add()

    def revocations(self, after: int = 0, limit: int = records.MAX_PAGE) -> list[RevocationEvent]:
        """Revocations with numbers above `after`, in order."""
        return [self._event(row) for row in self._store.revocations(after, limit)]

    async def crl(self, number: int | None = None) -> Crl:
        """The CRL of an intermediate (None: the one that issues), made anew after a revocation and at half of its life.
        Raises NotFound."""
        issuer = self._issuers.get(self.config.current if number is None else number)
        if issuer is None:
            raise NotFound(f"there is no intermediate {number}")
        async with self._crl_lock:
            cached = self._crls.get(issuer.number)
            if cached is not None and self._clock() < cached.stale_at:
                return cached
            now = self._now()
            counted = await self._journal.commit(
                [], lambda db: records.next_counter(db, f"crl-{issuer.number}")
            )
            revoked = self._store.revoked_of(issuer.number, now, CRL_GRACE_S)
            crl = await with_key(issuer, lambda: build_crl(issuer, counted, revoked, now))
            # A revocation meanwhile is not in `revoked`: the next caller makes another.
            if len(self._store.revoked_of(issuer.number, now, CRL_GRACE_S)) == len(revoked):
                self._crls[issuer.number] = crl
            return crl

    def root_crl(self) -> bytes:
        """Which intermediates are revoked, PEM. Raises NotFound."""
        try:
            return (self.directory / ROOT_CRL).read_bytes()
        except OSError as error:
            raise NotFound(f"{self.directory / ROOT_CRL} cannot be read: {error.strerror}") from None

    def _row_of(self, issuer: int, serial: int) -> Row | None:
        try:
            row = self._store.certificate(records.serial_bytes(serial))
        except BadRequest:
            return None
        return row if row is not None and row.issuer == issuer else None

    async def ocsp(self, request: bytes) -> bytes:
        """An OCSP responder's answer to a request (both DER)."""
        now = max(self._clock(), self._journal.time)
        return self._responder.respond(request, now)

    # Looking.

    def _find_quietly(self, which: str) -> Row | None:
        try:
            return self._store.find(which)
        except TrustError:
            return None

    async def show(self, which: str, actor: Actor) -> Row:
        """One certificate, by serial number or fingerprint in hexadecimal, or the newest of a subject."""
        row = self._find_quietly(which)
        own = row is not None and actor.fingerprint == row.fingerprint
        operation = Operation.SHOW_OWN if own else Operation.SHOW
        await self.decide(operation, actor, which)
        return row if row is not None else self._store.find(which)

    async def listing(
        self, actor: Actor, *, subject: str = "", profile: str = "", live: bool = False, after: int = 0, limit: int = 100
    ) -> tuple[list[Row], int]:
        """Certificates, newest first, and where the next page goes on (0: nowhere)."""
        await self.decide(Operation.LIST, actor, subject)
        return self._store.listing(
            now=self._clock(), subject=subject, profile=profile, live=live, after=after, limit=limit
        )

    async def audit(self, actor: Actor, last: int = 100) -> list[AuditLine]:
        """The last lines of the audit log, oldest first."""
        await self.decide(Operation.AUDIT_READ, actor)
        return await asyncio.to_thread(read_audit, self.directory / AUDIT, last=last)

    async def verify_audit(self, actor: Actor) -> AuditReport:
        """Follow the audit log's chain to the head that the database holds."""
        await self.decide(Operation.AUDIT_READ, actor, "verify")
        return await asyncio.to_thread(verify_audit, self.directory / AUDIT, self._store.head()[0])

    async def status(self, actor: Actor) -> Status:
        """How the authority is."""
        await self.decide(Operation.STATUS, actor)
        return Status(
            self.config.name,
            self.issuer.number,
            self.issuer.certificate.not_valid_after_utc.timestamp(),
            self.root_sha256,
            self._store.count(self._clock()),
            self._journal.head,
            tuple(log.name for log in self._submitter.logs),
            dict(self._submitter.failures),
            self._in_flight,
        )

    # Tokens.

    async def create_token(self, grant: TokenGrant, address: str, port: int, actor: Actor) -> Token:
        """A one-time token for joining at the authority's [address]:port. Whoever makes it must be permitted to issue the
        same. Raises TrustError."""
        now = self._clock()

        subject = grant.subject or ", ".join(grant.names.texts())
        row = await self._checked(Operation.TOKEN_CREATE, actor, subject, lambda: self._planner.token(grant, actor, now))
        token = Token(parse_address(address), port, self.root_sha256, new_secret(), int(now + grant.ttl_s))
        row = msgspec.structs.replace(row, hash=token.secret_hash)
        detail = f"{row.profile} [{','.join(row.roles)}] until {token.expires}; token {row.hash.hex()[:16]}"
        limits = self._store.limits
        await self._change(
            Operation.TOKEN_CREATE,
            actor,
            subject,
            detail,
            lambda db: records.put_token(db, row, now, limits),
            checked=True,
        )
        return token

    async def tokens(self, actor: Actor) -> list[TokenRow]:
        """Tokens that wait to be used, without their secrets."""
        await self.decide(Operation.TOKEN_LIST, actor)
        return self._store.tokens(self._clock())

    async def cancel_token(self, token_hash: bytes, actor: Actor) -> None:
        """Make an unused token useless."""
        await self._change(
            Operation.TOKEN_CANCEL,
            actor,
            token_hash.hex()[:16],
            "",
            lambda db: records.cancel_token(db, token_hash),
        )

    # Rotation.

    async def rotate_intermediate(
        self,
        root_key: SigningKey,
        actor: Actor,
        *,
        curve: str = "p256",
        key: str = "",
        lifetime_s: float | None = None,
        passphrase: Passphrase | None = None,
    ) -> Issuer:
        """A new intermediate, which issues from now on; certificates of the former ones stay good. Raises TrustError."""
        subject = f"after intermediate {self.config.current}"
        await self.decide(Operation.ROTATE, actor, subject)
        async with self._rotation:
            config = add_intermediate(
                self.directory,
                self.config,
                root_key,
                self._now(),
                curve=curve,
                key=key,
                lifetime_s=lifetime_s,
                passphrase=passphrase,
            )
            issuer = load_issuer(self.directory, config.intermediates[-1], self.root, passphrase)
            save_config(self.directory, config)
            self._issuers[issuer.number] = issuer
            self.config = config
        detail = f"intermediate {issuer.number}, SHA-256 {fingerprint(issuer.certificate.public_bytes(Encoding.DER)).hex()}"
        await self._journal.commit([AuditRecord(str(actor), Operation.ROTATE, Decision.DONE, subject, detail)])
        return issuer

    async def revoke_intermediate(self, number: int, reason: str, root_key: SigningKey, actor: Actor) -> None:
        """Put a former intermediate, and with it all it issued, on the root's CRL. Raises TrustError."""
        subject = f"intermediate {number}"
        await self.decide(Operation.REVOKE_INTERMEDIATE, actor, subject)
        async with self._rotation:
            now = max(self._clock(), self._journal.time)
            self.config = await self._checked(
                Operation.REVOKE_INTERMEDIATE,
                actor,
                subject,
                lambda: revoke_intermediate(self.directory, self.config, number, reason, root_key, now),
            )
        record = AuditRecord(str(actor), Operation.REVOKE_INTERMEDIATE, Decision.DONE, subject, reason)
        await self._journal.commit([record])
        for event in self.revoked_intermediates():
            self._subscribers.push(event)

    def revoked_intermediates(self) -> list[RevocationEvent]:
        """Those on the root's CRL. Their number is 0: they are counted there, not here."""
        root_key_hash = spki_sha256(self.root)
        found = []
        for one in self.config.intermediates:
            if one.revoked_at:
                issuer = self._issuers[one.number].certificate
                event = RevocationEvent(
                    number=0,
                    serial=issuer.serial_number,
                    fingerprint=fingerprint(issuer.public_bytes(Encoding.DER)),
                    spki=spki_sha256(issuer),
                    issuer_key_hash=root_key_hash,
                    subject=subject_of(issuer),
                    reason=one.reason,
                    revoked_at=one.revoked_at,
                    not_after=int(issuer.not_valid_after_utc.timestamp()),
                )
                found.append(event)
        return found


__all__ = ["Authority", "Issued", "LogClient", "Status"]

"""The authority over STOQ: its operations as calls of `control.rpc`. Who calls is what the handshake proved; every call
goes through the roles' table and the audit log, and what is asked is looked at only then.

On `stoq-join/1`, where callers have no certificate, there is joining and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake.policy import ALPN_JOIN
from control.rpc import Caller, Method
from control.trustchain import messages
from control.trustchain.actor import Actor
from control.trustchain.authority import Authority, Issued
from control.trustchain.errors import AccessDenied, BadRequest
from control.trustchain.messages import (
    AuditAnswer,
    AuditBody,
    BundleAnswer,
    CertificateRow,
    ChainAnswer,
    CrlAnswer,
    FollowBody,
    IssueBody,
    JoinBody,
    ListAnswer,
    ListBody,
    Nothing,
    RenewBody,
    RevokeBody,
    StatusAnswer,
    TokenAnswer,
    TokenBody,
    WhichBody,
)
from control.trustchain.profiles import CLOCK_SKEW_S, Names, profile_of
from control.trustchain.requests import Freshness, IssueRequest, RenewRequest
from control.trustchain.roles import Operation, parse_roles, permitted
from control.trustchain.store import Row
from control.trustchain.tokens import TokenGrant
from control.trustchain.trust import TrustMaker
from dataplane.address import parse_address

MAX_AUDIT_LINES = 1000


def actor_of(caller: Caller, now: float) -> Actor:
    """Who calls, for the authority. A connection may outlive the certificate it was made with; the roles do not. Raises
    BadRequest when the certificate's roles cannot be read."""
    source = parse_address(caller.peer, 0).ip
    if caller.identity is None:
        return Actor.anonymous(source)
    certificate = x509.load_der_x509_certificate(caller.identity.certificate_der)
    actor = Actor.of_certificate(certificate, source=source)
    if now > certificate.not_valid_after_utc.timestamp() + CLOCK_SKEW_S:
        return dataclasses.replace(actor, name=f"{actor.name}, whose certificate has expired,", roles=frozenset())
    return actor


async def access(authority: Authority, caller: Caller, operation: Operation, subject: str, now: float) -> Actor:
    """Who calls, and may do this. Raises AccessDenied, audited, before anything else is looked at."""
    actor = actor_of(caller, now)
    if not permitted(operation, actor.roles):
        try:
            await authority.decide(operation, actor, subject)
        except AccessDenied as error:
            hint = "" if actor.roles or caller.identity is None else "; connect anew with a certificate that has not expired"
            raise AccessDenied(f"{error}{hint}") from None
    return actor


def _fresh(caller: Caller) -> Freshness:
    return Freshness(caller.time, caller.request_id)


def _row(row: Row, *, der: bool = False) -> CertificateRow:
    return CertificateRow(
        row.serial.hex(),
        row.fingerprint.hex(),
        row.profile,
        row.subject,
        row.names,
        row.roles,
        row.not_before,
        row.not_after,
        row.revoked_at,
        row.reason or "",
        row.der if der else b"",
    )


class AuthorityService:
    """The calls. `address`: where nodes reach the authority, for tokens."""

    def __init__(
        self, authority: Authority, trust: TrustMaker, address: tuple[str, int], clock: Callable[[], float]
    ) -> None:
        self._authority = authority
        self._trust = trust
        self._address = address
        self._clock = clock

    async def _who(self, caller: Caller, operation: Operation, subject: str = "") -> Actor:
        return await access(self._authority, caller, operation, subject, self._clock())

    def methods(self) -> dict[str, Method]:
        """The table."""
        return {
            messages.JOIN: Method(JoinBody, self._join, alpns=(ALPN_JOIN,)),
            messages.ISSUE: Method(IssueBody, self._issue),
            messages.RENEW: Method(RenewBody, self._renew),
            messages.REVOKE: Method(RevokeBody, self._revoke),
            messages.LIST: Method(ListBody, self._list),
            messages.SHOW: Method(WhichBody, self._show),
            messages.TOKEN: Method(TokenBody, self._token),
            messages.AUDIT: Method(AuditBody, self._audit),
            messages.BUNDLE: Method(Nothing, self._bundle),
            messages.FOLLOW: Method(FollowBody, follow=self._follow, permit=self._may_follow),
            messages.CRL: Method(Nothing, self._crl),
            messages.STATUS: Method(Nothing, self._status),
        }

    def _chain(self, issued: Issued, bundle: bytes = b"") -> ChainAnswer:
        return ChainAnswer((issued.der, *(one.public_bytes(Encoding.DER) for one in issued.chain)), bundle)

    async def _join(self, caller: Caller, body: JoinBody) -> ChainAnswer:
        actor = await self._who(caller, Operation.JOIN)
        profile = profile_of(body.profile or self._authority.token_profile(body.secret))
        request = IssueRequest(body.csr, profile.name, freshness=_fresh(caller))
        return self._chain(await self._authority.join(request, body.secret, actor), self._trust.encoded)

    async def _issue(self, caller: Caller, body: IssueBody) -> ChainAnswer:
        actor = await self._who(caller, Operation.ISSUE, body.subject)  # What all profiles need at least.
        request = IssueRequest(
            body.csr,
            profile_of(body.profile).name,
            parse_roles(body.roles),
            body.lifetime,
            body.subject,
            _fresh(caller),
        )
        return self._chain(await self._authority.issue(request, actor))

    async def _renew(self, caller: Caller, body: RenewBody) -> ChainAnswer:
        actor = await self._who(caller, Operation.RENEW)
        request = RenewRequest(body.csr, actor.fingerprint, freshness=_fresh(caller))
        return self._chain(await self._authority.renew(request, actor))

    async def _revoke(self, caller: Caller, body: RevokeBody) -> Nothing:
        actor = await self._who(caller, Operation.REVOKE_OWN, body.which)
        await self._authority.revoke(body.which, body.reason, actor)
        return Nothing()

    async def _list(self, caller: Caller, body: ListBody) -> ListAnswer:
        actor = await self._who(caller, Operation.LIST, body.subject)
        if not 1 <= body.limit <= messages.MAX_ROWS:
            raise BadRequest(f"a list has 1 to {messages.MAX_ROWS} rows")
        rows, following = await self._authority.listing(
            actor, subject=body.subject, profile=body.profile, live=body.live, after=body.after,
            limit=body.limit,
        )  # fmt: skip
        return ListAnswer(tuple(_row(row) for row in rows), following)

    async def _show(self, caller: Caller, body: WhichBody) -> ListAnswer:
        actor = await self._who(caller, Operation.SHOW_OWN, body.which)
        return ListAnswer((_row(await self._authority.show(body.which, actor), der=True),), 0)

    async def _token(self, caller: Caller, body: TokenBody) -> TokenAnswer:
        actor = await self._who(caller, Operation.TOKEN_CREATE, body.name)
        grant = TokenGrant(
            Names.parse(body.dns, body.addresses),
            parse_roles(body.roles),
            profile_of(body.profile).name,
            body.name,
            body.ttl,
        )
        token = await self._authority.create_token(grant, *self._address, actor)
        return TokenAnswer(str(token), token.expires)

    async def _audit(self, caller: Caller, body: AuditBody) -> AuditAnswer:
        actor = await self._who(caller, Operation.AUDIT_READ)
        if not 1 <= body.limit <= MAX_AUDIT_LINES:
            raise BadRequest(f"1 to {MAX_AUDIT_LINES} lines can be had at a time")
        lines = await self._authority.audit(actor, body.limit)
        head = self._authority.audit_head
        return AuditAnswer(tuple(lines), head.seq, head.hash.hex())

    async def _bundle(self, caller: Caller, body: Nothing) -> BundleAnswer:
        await self._who(caller, Operation.EVENTS)
        return BundleAnswer(self._trust.encoded)

    async def _may_follow(self, caller: Caller) -> None:
        await self._who(caller, Operation.EVENTS)

    async def _follow(self, caller: Caller, body: FollowBody) -> AsyncIterator[BundleAnswer]:
        async with aclosing(self._trust.follow(body.generation)) as bundles:
            async for encoded in bundles:
                yield BundleAnswer(encoded)

    async def _crl(self, caller: Caller, body: Nothing) -> CrlAnswer:
        await self._who(caller, Operation.CRL_READ)
        crls = [await self._authority.crl(issuer.number) for issuer in self._authority.issuers]
        return CrlAnswer(tuple(one.der for one in crls))

    async def _status(self, caller: Caller, body: Nothing) -> StatusAnswer:
        status = await self._authority.status(await self._who(caller, Operation.STATUS))
        return StatusAnswer(
            status.name, status.counts, self._trust.bundle.generation, self._trust.followers, status.logs,
            status.log_failures, status.audit.seq, status.audit.hash.hex(), status.intermediate,
        )  # fmt: skip


async def permit_log(authority: Authority, caller: Caller, submits: bool, now: float) -> None:
    """May this caller use the log? Raises AccessDenied."""
    await access(authority, caller, Operation.LOG_SUBMIT if submits else Operation.LOG_READ, "", now)

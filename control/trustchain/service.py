"""The authority over STOQ: its operations as calls of `control.rpc`. Who calls is what the handshake proved; every call
goes through the roles' table and the audit log by `Authority`'s own methods."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import Caller, Method
from control.trustchain import messages
from control.trustchain.actor import Actor
from control.trustchain.authority import Authority, Issued
from control.trustchain.errors import BadRequest
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
from control.trustchain.profiles import Names, profile_of
from control.trustchain.requests import Freshness, IssueRequest, RenewRequest
from control.trustchain.roles import Operation, parse_roles
from control.trustchain.store import Row
from control.trustchain.tokens import TokenGrant
from control.trustchain.trust import TrustMaker
from dataplane.address import parse_address

MAX_AUDIT_LINES = 1000


def actor_of(caller: Caller) -> Actor:
    """Who calls, for the authority. Raises BadRequest when the certificate's roles cannot be read."""
    source = parse_address(caller.peer, 0).ip
    if caller.identity is None:
        return Actor.anonymous(source)
    return Actor.of_certificate(x509.load_der_x509_certificate(caller.identity.certificate_der), source=source)


def _fresh(caller: Caller) -> Freshness:
    return Freshness(caller.time, caller.request_id)


def _row(row: Row, *, der: bool = False) -> CertificateRow:
    return CertificateRow(
        f"{int.from_bytes(row.serial, 'big'):x}",
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

    def __init__(self, authority: Authority, trust: TrustMaker, address: tuple[str, int]) -> None:
        self._authority = authority
        self._trust = trust
        self._address = address

    def methods(self) -> dict[str, Method]:
        """The table."""
        both = (ALPN_STOQ, ALPN_JOIN)
        return {
            messages.JOIN: Method(JoinBody, self._join, alpns=(ALPN_JOIN,)),
            messages.ISSUE: Method(IssueBody, self._issue),
            messages.RENEW: Method(RenewBody, self._renew),
            messages.REVOKE: Method(RevokeBody, self._revoke),
            messages.LIST: Method(ListBody, self._list),
            messages.SHOW: Method(WhichBody, self._show),
            messages.TOKEN: Method(TokenBody, self._token),
            messages.AUDIT: Method(AuditBody, self._audit),
            messages.BUNDLE: Method(Nothing, self._bundle, alpns=both),
            messages.FOLLOW: Method(FollowBody, follow=self._follow, permit=self._may_follow),
            messages.CRL: Method(Nothing, self._crl, alpns=both),
            messages.STATUS: Method(Nothing, self._status),
        }

    def _chain(self, issued: Issued) -> ChainAnswer:
        chain = (issued.der, *(one.public_bytes(Encoding.DER) for one in issued.chain))
        return ChainAnswer(chain, self._trust.bundle.encode())

    async def _join(self, caller: Caller, body: JoinBody) -> ChainAnswer:
        request = IssueRequest(body.csr, profile_of(body.profile).name, freshness=_fresh(caller))
        return self._chain(await self._authority.join(request, body.secret, actor_of(caller)))

    async def _issue(self, caller: Caller, body: IssueBody) -> ChainAnswer:
        request = IssueRequest(
            body.csr,
            profile_of(body.profile).name,
            parse_roles(body.roles),
            body.lifetime,
            body.subject,
            _fresh(caller),
        )
        return self._chain(await self._authority.issue(request, actor_of(caller)))

    async def _renew(self, caller: Caller, body: RenewBody) -> ChainAnswer:
        actor = actor_of(caller)
        request = RenewRequest(body.csr, actor.fingerprint, freshness=_fresh(caller))
        return self._chain(await self._authority.renew(request, actor))

    async def _revoke(self, caller: Caller, body: RevokeBody) -> Nothing:
        await self._authority.revoke(body.which, body.reason, actor_of(caller))
        return Nothing()

    async def _list(self, caller: Caller, body: ListBody) -> ListAnswer:
        if not 1 <= body.limit <= messages.MAX_ROWS:
            raise BadRequest(f"a list has 1 to {messages.MAX_ROWS} rows")
        rows, following = await self._authority.listing(
            actor_of(caller), subject=body.subject, profile=body.profile, live=body.live, after=body.after,
            limit=body.limit,
        )  # fmt: skip
        return ListAnswer(tuple(_row(row) for row in rows), following)

    async def _show(self, caller: Caller, body: WhichBody) -> ListAnswer:
        return ListAnswer((_row(await self._authority.show(body.which, actor_of(caller)), der=True),), 0)

    async def _token(self, caller: Caller, body: TokenBody) -> TokenAnswer:
        grant = TokenGrant(
            Names.parse(body.dns, body.addresses),
            parse_roles(body.roles),
            profile_of(body.profile).name,
            body.name,
            body.ttl,
        )
        token = await self._authority.create_token(grant, *self._address, actor_of(caller))
        return TokenAnswer(str(token), token.expires)

    async def _audit(self, caller: Caller, body: AuditBody) -> AuditAnswer:
        if not 1 <= body.limit <= MAX_AUDIT_LINES:
            raise BadRequest(f"1 to {MAX_AUDIT_LINES} lines can be had at a time")
        lines = await self._authority.audit(actor_of(caller), body.limit)
        head = self._authority.audit_head
        return AuditAnswer(tuple(lines), head.seq, head.hash.hex())

    async def _bundle(self, caller: Caller, body: Nothing) -> BundleAnswer:
        return BundleAnswer(self._trust.bundle.encode())

    async def _may_follow(self, caller: Caller) -> None:
        await self._authority.decide(Operation.EVENTS, actor_of(caller))

    async def _follow(self, caller: Caller, body: FollowBody) -> AsyncIterator[BundleAnswer]:
        async for bundle in self._trust.follow(body.generation):
            yield BundleAnswer(bundle.encode())

    async def _crl(self, caller: Caller, body: Nothing) -> CrlAnswer:
        await self._authority.decide(Operation.CRL_READ, actor_of(caller))
        crls = [await self._authority.crl(issuer.number) for issuer in self._authority.issuers]
        return CrlAnswer(tuple(one.der for one in crls))

    async def _status(self, caller: Caller, body: Nothing) -> StatusAnswer:
        status = await self._authority.status(actor_of(caller))
        return StatusAnswer(
            status.name, status.counts, self._trust.bundle.generation, self._trust.followers, status.logs,
            status.log_failures, status.audit.seq, status.audit.hash.hex(), status.intermediate,
        )  # fmt: skip


async def permit_log(authority: Authority, caller: Caller, submits: bool) -> None:
    """May this caller use the log? Raises AccessDenied."""
    await authority.decide(Operation.LOG_SUBMIT if submits else Operation.LOG_READ, actor_of(caller))

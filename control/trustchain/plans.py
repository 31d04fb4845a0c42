"""What is asked, judged before anything is signed: CSR, profile, names, roles, token, the certificate to be renewed. The
outcome is a `Plan`, which still has to be decided: the journal's transaction looks again at what may change meanwhile.

Nothing here writes. Access (who may do what at all) was settled by `roles.authorize` before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from control.trustchain.actor import Actor
from control.trustchain.errors import BadRequest, NotFound, NotIssued, Revoked, TokenRefused
from control.trustchain.keys import PublicKey
from control.trustchain.profiles import (
    CLOCK_SKEW_S,
    PROFILES,
    Constraints,
    Names,
    Profile,
    ProfileName,
    check_names,
    check_subject,
    lifetime,
)
from control.trustchain.requests import (
    CheckedCsr,
    Freshness,
    IssueRequest,
    RenewRequest,
    check_csr,
    names_for,
    subject_for,
)
from control.trustchain.roles import Operation, Role, authorize, grantable, parse_roles
from control.trustchain.store import Row, State, Store, TokenRow
from control.trustchain.tokens import Attempts, TokenGrant, secret_hash


@dataclass(frozen=True, slots=True)
class Plan:
    """A certificate that may be issued. `replaces`: the one that is renewed; `token`: hash of the token that is spent."""

    operation: Operation
    actor: Actor
    profile: Profile
    key: PublicKey
    spki_sha256: bytes
    names: Names
    roles: frozenset[Role]
    subject: str
    lifetime_s: int
    freshness: Freshness | None = None
    replaces: Row | None = None
    token: bytes | None = None


class Planner:
    """Judges requests. Raises TrustErrors; `now` gives the time and refuses when it went back."""

    def __init__(self, store: Store, constraints: Constraints, now: Callable[[], float]) -> None:
        self._store = store
        self._constraints = constraints
        self._now = now
        self._attempts = Attempts()

    def issue(self, request: IssueRequest, actor: Actor) -> Plan:
        """A new certificate, by somebody who may issue this kind."""
        profile = PROFILES[request.profile]
        if profile.ca:
            raise BadRequest(f"a {profile.name} is not issued on request: see `stoq ca rotate-intermediate`")
        roles = self._given(profile, request.roles, actor)
        csr = check_csr(request.csr, profile)
        names = names_for(profile, csr, None)
        subject = subject_for(profile, request.subject, csr, names)
        operation = profile.issuing
        return self._plan(operation, actor, profile, csr, names, roles, subject, request.lifetime_s, request.freshness)

    def join(self, request: IssueRequest, secret: bytes, actor: Actor) -> Plan:
        """A first certificate, for a token. The token names the subject; whoever comes may only ask for less."""
        now, source = self._now(), actor.source or actor.name
        self._attempts.check(source, now)
        token = self._store.token(secret_hash(secret))
        if token is None or token.used_at is not None or token.expires < now:
            self._attempts.failed(source, now)
            why = "is unknown" if token is None else "was used" if token.used_at is not None else "has expired"
            raise TokenRefused(f"the join token {why}: ask for a new one (`stoq ca token`)")
        profile = PROFILES[ProfileName(token.profile)]
        granted = parse_roles(token.roles)
        if not request.roles <= granted:
            raise BadRequest(f"the token gives the roles {', '.join(sorted(granted)) or 'none'} and no others")
        if request.profile != profile.name:
            raise BadRequest(f"the token is for a {profile.name} certificate, not for {request.profile}")
        csr = check_csr(request.csr, profile)
        allowed = Names.parse(token.dns, token.addresses, wildcards=profile.wildcards)
        names = names_for(profile, csr, allowed)
        roles = request.roles or granted
        return self._plan(
            Operation.JOIN,
            actor,
            profile,
            csr,
            names,
            roles,
            token.subject,
            request.lifetime_s,
            request.freshness,
            token=token.hash,
        )

    def renew(self, request: RenewRequest, actor: Actor, operation: Operation) -> Plan:
        """A successor with the same names, roles and subject."""
        row = self._store.by_fingerprint(request.fingerprint)
        if row is None or row.state is not State.FINAL:
            raise NotFound("this authority did not issue the certificate that is to be renewed")
        if row.revocation is not None:
            raise Revoked(f"the certificate of {row.subject} was revoked ({row.reason}): it is not renewed")
        if row.not_after < self._now() - CLOCK_SKEW_S:
            raise NotIssued(f"the certificate of {row.subject} has expired: join anew, with a new token")
        profile = PROFILES[ProfileName(row.profile)]
        csr = check_csr(request.csr, profile)
        names = names_of_row(row)
        if len(csr.names) and not (csr.names.within(names) and names.within(csr.names)):
            raise BadRequest(f"a renewal keeps its names ({', '.join(row.names)}): name nothing in the CSR, or join anew")
        roles = parse_roles(row.roles)
        return self._plan(
            operation,
            actor,
            profile,
            csr,
            names,
            roles,
            row.subject,
            request.lifetime_s,
            request.freshness,
            replaces=row,
        )

    def token(self, grant: TokenGrant, actor: Actor, now: float) -> TokenRow:
        """A token to be, without its secret. Whoever makes it must be permitted to issue the same."""
        profile = PROFILES[grant.profile]
        grant.check()
        if profile.ca:
            raise BadRequest(f"there are no join tokens for a {profile.name}")
        authorize(profile.issuing, actor.roles)
        roles = self._given(profile, grant.roles, actor)
        check_names(profile, grant.names)
        self._constraints.check(grant.names)
        return TokenRow(
            b"",
            profile.name.value,
            check_subject(grant.subject or next((text for text in grant.names.texts() if len(text) <= 64), "")),
            grant.names.dns,
            tuple(map(str, grant.names.ipv6)),
            tuple(sorted(role.value for role in roles)),
            now,
            str(actor),
            now + grant.ttl_s,
        )

    def _given(self, profile: Profile, wanted: frozenset[Role], actor: Actor) -> frozenset[Role]:
        """The roles a new certificate carries, when the profile takes them and `actor` may give them."""
        roles = wanted or (frozenset({profile.default_role}) if profile.default_role else frozenset())
        if not roles <= profile.roles:
            over, may = ", ".join(sorted(roles - profile.roles)), ", ".join(sorted(profile.roles)) or "none"
            raise BadRequest(f"a {profile.name} certificate does not carry the role {over}; it may carry {may}")
        if not roles <= grantable(actor.roles):
            over = ", ".join(sorted(roles - grantable(actor.roles)))
            raise BadRequest(f"{', '.join(sorted(actor.roles))} may not give the role {over} to others")
        return roles

    def _plan(
        self,
        operation: Operation,
        actor: Actor,
        profile: Profile,
        csr: CheckedCsr,
        names: Names,
        roles: frozenset[Role],
        subject: str,
        lifetime_s: float | None,
        freshness: Freshness | None,
        *,
        replaces: Row | None = None,
        token: bytes | None = None,
    ) -> Plan:
        """What all have in common."""
        if freshness is not None:
            freshness.check(self._now())
        self._constraints.check(names)
        seconds = lifetime(profile, lifetime_s)
        return Plan(
            operation,
            actor,
            profile,
            csr.key,
            csr.spki_sha256,
            names,
            roles,
            subject,
            seconds,
            freshness,
            replaces,
            token,
        )


def names_of_row(row: Row) -> Names:
    """The names of a certificate as it is kept."""
    dns = [name for name in row.names if ":" not in name]
    return Names.parse(dns, [name for name in row.names if ":" in name], wildcards=True)



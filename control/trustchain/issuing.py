"""From a plan to a certificate: decided, logged, signed, stored, in this order.

    precertificate ─▶ decided: audit line, row, token spent ─▶ logs ─▶ SCTs ─▶ certificate ─▶ row final ─▶ answered

Without logs the certificate is signed in memory first and decided then, in one step. Either way nobody gets one that is not
in audit log and store. What a log may have seen is in the store before it is sent there, so it can be revoked.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.errors import Malformed
from control.ctlog.structs import Sct
from control.trustchain import store as records
from control.trustchain.audit import AuditRecord, Decision
from control.trustchain.certificates import Issuer, Leaf, Places, leaf_builder, sign_final, sign_precertificate
from control.trustchain.errors import NotIssued, Revoked, TokenRefused
from control.trustchain.journal import Journal
from control.trustchain.plans import Plan
from control.trustchain.profiles import CLOCK_SKEW_S, MIN_LIFETIME_S
from control.trustchain.store import Limits, Row, State
from control.trustchain.submit import Submitter, fingerprint

PRUNE_EVERY = 512  # Issuances.

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued. `chain`: its issuer first, the root last; `scts` are embedded in it."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    scts: tuple[Sct, ...]
    row: Row

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return self.row.der

    @property
    def pem_chain(self) -> bytes:
        """Leaf and intermediate, without the root: what TLS sends."""
        return b"".join(one.public_bytes(Encoding.PEM) for one in (self.certificate, *self.chain[:-1]))


def said(row: Row) -> str:
    """A certificate in an audit line."""
    return f"{row.subject} serial {row.serial.hex()}"


async def with_key(issuer: Issuer, make: Callable[[], T]) -> T:
    """Sign here; or, where signing means waiting for a token, where it holds nobody up."""
    return await asyncio.to_thread(make) if issuer.slow_key else make()


class Issuance:
    """Carries plans out. `now` gives the time and refuses when it went back."""

    def __init__(
        self,
        journal: Journal,
        submitter: Submitter,
        limits: Limits,
        now: Callable[[], float],
        organization: str,
        places: Places,
    ) -> None:
        self._journal = journal
        self._submitter = submitter
        self._limits = limits
        self._now = now
        self._organization = organization
        self._places = places
        self._count = 0

    def check(self, issuer: Issuer) -> None:
        """Can anything be issued at all? Raises NotIssued."""
        if issuer.not_after - self._now() < MIN_LIFETIME_S:
            raise NotIssued(f"intermediate {issuer.number} has expired: run `stoq ca rotate-intermediate`")
        _ = self._submitter.wanted

    async def make(self, plan: Plan, issuer: Issuer) -> Issued:
        """Raises NotIssued, Revoked, TokenRefused, Replayed, StoreError, KeyUnavailable."""
        now = int(self._now())
        leaf = Leaf(
            plan.profile,
            plan.subject,
            self._organization,
            plan.key,
            plan.names,
            plan.roles,
            x509.random_serial_number(),
            now - CLOCK_SKEW_S,
            min(now + plan.lifetime_s, issuer.not_after),
        )
        builder = leaf_builder(leaf, issuer, self._places)
        if self._submitter.wanted:
            return await self._logged(plan, leaf, builder, issuer)
        certificate = await with_key(issuer, lambda: sign_final(builder, issuer, (), None))
        row = _row(plan, leaf, issuer, certificate.public_bytes(Encoding.DER), State.FINAL)
        await self._admit(plan, row)
        return Issued(certificate, issuer.chain, (), row)

    async def _logged(self, plan: Plan, leaf: Leaf, builder: x509.CertificateBuilder, issuer: Issuer) -> Issued:
        precertificate, entry = await with_key(issuer, lambda: sign_precertificate(builder, issuer))
        der = precertificate.public_bytes(Encoding.DER)
        row = _row(plan, leaf, issuer, der, State.PRECERTIFICATE)
        await self._admit(plan, row)
        try:
            scts = await self._submitter.collect([der, *issuer.chain_der], entry)
            certificate = await with_key(issuer, lambda: sign_final(builder, issuer, scts, entry))
            row = await self._finish(plan, row, certificate, len(scts))
        except Revoked:
            raise  # Decided and audited by somebody else.
        except (Exception, asyncio.CancelledError) as error:
            await asyncio.shield(self._abandon(plan, row, error))
            if isinstance(error, Malformed):
                raise NotIssued(f"the certificate could not be put together: {error}") from None
            raise
        return Issued(certificate, issuer.chain, scts, row)

    async def _admit(self, plan: Plan, row: Row) -> None:
        """The decision: audited and stored, or refused by what has changed since it was looked at."""
        limits, now = self._limits, self._now()
        self._count += 1
        prune = self._count % PRUNE_EVERY == 0

        def change(db: sqlite3.Connection) -> None:
            if plan.freshness is not None:
                records.see_request(db, plan.freshness.request_id, now, plan.freshness.remember_until, limits)
            if plan.token is not None and not records.use_token(db, plan.token, now, row.serial):
                raise TokenRefused("the join token was used a moment ago: ask for a new one")
            if plan.replaces is not None and (
                records.is_revoked(db, plan.replaces.serial) or records.revoked_line(db, row.lineage)
            ):
                raise Revoked(f"a certificate of {plan.subject}'s line was revoked: it is not renewed; join anew")
            if records.revoked_key(db, row.spki):
                raise Revoked("a certificate for this key was revoked as compromised: make a new key")
            records.put_certificate(db, row, limits)
            if prune:
                records.prune(db, now, limits)

        detail = f"{row.profile} [{','.join(row.roles)}] {', '.join(row.names)} until {row.not_after}"
        if plan.replaces is not None:
            detail += f"; renews {plan.replaces.serial.hex()}"
        if row.state is State.FINAL:
            detail += f"; SHA-256 {row.fingerprint.hex()}"
        if plan.token is not None:
            detail += f"; token {plan.token.hex()[:16]}"
        record = AuditRecord(str(plan.actor), plan.operation, Decision.GRANTED, said(row), detail)
        await self._journal.commit([record], change)

    async def _finish(self, plan: Plan, row: Row, certificate: x509.Certificate, scts: int) -> Row:
        der = certificate.public_bytes(Encoding.DER)
        final = msgspec.structs.replace(row, state=State.FINAL, der=der, fingerprint=fingerprint(der), scts=scts)

        def change(db: sqlite3.Connection) -> None:
            if records.is_revoked(db, row.serial):
                raise Revoked(f"the certificate of {row.subject} was revoked while it was being issued")
            records.finish_certificate(db, row.serial, der, final.fingerprint, scts)

        detail = f"{scts} SCTs, SHA-256 {final.fingerprint.hex()}"
        record = AuditRecord(str(plan.actor), plan.operation, Decision.DONE, said(row), detail)
        await self._journal.commit([record], change)
        return final

    async def _abandon(self, plan: Plan, row: Row, error: BaseException) -> None:
        """It came to nothing: the token may be used again."""
        why = str(error) or type(error).__name__
        record = AuditRecord(str(plan.actor), plan.operation, Decision.FAILED, said(row), why)
        await self._journal.commit([record], lambda db: records.release_token(db, row.serial))


def _row(plan: Plan, leaf: Leaf, issuer: Issuer, der: bytes, state: State) -> Row:
    serial = records.serial_bytes(leaf.serial)
    return Row(
        serial,
        state,
        plan.profile.name.value,
        plan.subject,
        tuple(plan.names.texts()),
        tuple(sorted(role.value for role in plan.roles)),
        plan.spki_sha256,
        fingerprint(der),
        der,
        issuer.number,
        leaf.not_before,
        leaf.not_after,
        plan.replaces.lineage if plan.replaces else serial,
        str(plan.actor),
        float(leaf.not_before + CLOCK_SKEW_S),
        0,
        plan.token,
    )

"""The CA as the ACME server sees it, and what its refusals are in ACME's terms. `issuer` has the one over TrustChain's
authority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from control.trustchain.acme.problems import AcmeProblem, Kind, malformed
from control.trustchain.errors import AccessDenied, BadRequest, NotFound, Revoked, TrustError

BUSY_RETRY_SECONDS = 5


class Issuer(Protocol):
    """Who signs. Raises TrustError; anything else is a bug, which is logged and answered with serverInternal."""

    async def issue_acme(self, csr_der: bytes, names: Sequence[str], account: str) -> list[bytes]:
        """A certificate for the CSR's key and exactly these names (DNS names and IPv6 addresses, all proved).

        Returns the chain, DER, leaf first, without the root. Raises AccessDenied, BadRequest or Revoked (the key) when
        asking again will not help, another TrustError when it may."""

    async def revoke_acme(self, certificate_der: bytes, reason: int, actor: str) -> None:
        """Revoke; `reason` is a CRLReason (RFC 5280 section 5.3.1), `actor` for the audit log.

        Raises Revoked (it is already), NotFound (this CA has not issued it), AccessDenied, BadRequest, TrustError."""


def busy(detail: str) -> AcmeProblem:
    """Not now, but soon."""
    return AcmeProblem(Kind.SERVER_INTERNAL, detail, status=503, headers={"Retry-After": str(BUSY_RETRY_SECONDS)})


def not_issued(error: TrustError) -> AcmeProblem | None:
    """Why an order is invalid; None if the CA may issue when it is asked again."""
    if isinstance(error, AccessDenied):
        return AcmeProblem(Kind.UNAUTHORIZED, str(error))
    if isinstance(error, BadRequest):
        return AcmeProblem(Kind.BAD_CSR, str(error))
    if isinstance(error, Revoked):
        return AcmeProblem(Kind.BAD_PUBLIC_KEY, str(error))
    return None


def not_revoked(error: TrustError) -> AcmeProblem:
    """Why a certificate was not revoked."""
    if isinstance(error, Revoked):
        return AcmeProblem(Kind.ALREADY_REVOKED, str(error))
    if isinstance(error, NotFound):
        return malformed(str(error), status=404)
    if isinstance(error, AccessDenied):
        return AcmeProblem(Kind.UNAUTHORIZED, str(error))
    if isinstance(error, BadRequest):
        return malformed(str(error))
    return busy(f"the CA cannot revoke now: {error}")

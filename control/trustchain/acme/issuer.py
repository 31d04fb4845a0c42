"""The CA behind the ACME server: TrustChain's authority, as any other caller meets it, with its table of roles and its
audit log. An account acts as `acme:<account>` with the role of a registrar, which can give out service certificates and
can make nobody mightier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.trustchain.actor import Actor
from control.trustchain.authority import Authority
from control.trustchain.errors import AccessDenied, BadRequest, Revoked
from control.trustchain.profiles import PROFILES, ProfileName
from control.trustchain.requests import IssueRequest, check_csr
from control.trustchain.roles import Role, roles_of

_REASONS = {  # RFC 5280 section 5.3.1
    0: "unspecified",
    1: "keyCompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
}


def _actor(name: str) -> Actor:
    return Actor(name, frozenset({Role.REGISTRAR}), "acme")


class AuthorityIssuer:
    """An `Issuer` over an open authority, which stays the caller's to close."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def issue_acme(self, csr_der: bytes, names: Sequence[str], account: str) -> list[bytes]:
        """A service certificate, logged and with its SCTs as all are. Raises TrustError."""
        asked = check_csr(csr_der, PROFILES[ProfileName.SERVICE]).names.texts()
        if sorted(asked) != sorted(names):  # The authority takes the names from the CSR; these are the ones proved.
            raise BadRequest(f"the CSR names {', '.join(asked) or 'nothing'}, the order {', '.join(names)}")
        issued = await self._authority.issue(
            IssueRequest(csr_der, profile=ProfileName.SERVICE), _actor(f"acme:{account}")
        )
        return [issued.der, *(one.public_bytes(Encoding.DER) for one in issued.chain[:-1])]

    async def revoke_acme(self, certificate_der: bytes, reason: int, actor: str) -> None:
        """Only certificates of services: who controls a name does not thereby control a node's or an operator's
        certificate. Raises TrustError."""
        if not roles_of(x509.load_der_x509_certificate(certificate_der)) <= {Role.SERVICE}:
            raise AccessDenied("this is not a service's certificate: ACME does not revoke it, `stoq ca revoke` does")
        if reason not in _REASONS:
            raise BadRequest(f"reason {reason} is none that a holder gives")
        try:
            await self._authority.revoke(hashlib.sha256(certificate_der).hexdigest(), _REASONS[reason], _actor(actor))
        except BadRequest as error:  # Reason and fingerprint are whole: what is left is that it was revoked before.
            raise Revoked(str(error)) from None

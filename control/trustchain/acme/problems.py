"""Problem documents: what an ACME server says when it does not do as asked (RFC 7807, RFC 8555 section 6.7).

One exception carries all of it to the middleware that answers: the type, a text that says what to do, the HTTP status
that fits the type, headers, and sub-problems by identifier (section 6.7.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from dataplane.errors import StoqError

URN = "urn:ietf:params:acme:error:"
CONTENT_TYPE = "application/problem+json"
MAX_DETAIL_CHARACTERS = 1000  # A detail may quote what a stranger's server said.


class Kind(Enum):
    """Error types with the HTTP status each has unless said otherwise."""

    ACCOUNT_DOES_NOT_EXIST = ("accountDoesNotExist", 400)
    ALREADY_REPLACED = ("alreadyReplaced", 409)
    ALREADY_REVOKED = ("alreadyRevoked", 400)
    BAD_CSR = ("badCSR", 400)
    BAD_NONCE = ("badNonce", 400)
    BAD_PUBLIC_KEY = ("badPublicKey", 400)
    BAD_REVOCATION_REASON = ("badRevocationReason", 400)
    BAD_SIGNATURE_ALGORITHM = ("badSignatureAlgorithm", 400)
    COMPOUND = ("compound", 400)
    CONNECTION = ("connection", 400)
    DNS = ("dns", 400)
    EXTERNAL_ACCOUNT_REQUIRED = ("externalAccountRequired", 403)
    INCORRECT_RESPONSE = ("incorrectResponse", 403)
    INVALID_CONTACT = ("invalidContact", 400)
    MALFORMED = ("malformed", 400)
    ORDER_NOT_READY = ("orderNotReady", 403)
    RATE_LIMITED = ("rateLimited", 429)
    REJECTED_IDENTIFIER = ("rejectedIdentifier", 400)
    SERVER_INTERNAL = ("serverInternal", 500)
    TLS = ("tls", 400)
    UNAUTHORIZED = ("unauthorized", 403)
    UNSUPPORTED_CONTACT = ("unsupportedContact", 400)
    UNSUPPORTED_IDENTIFIER = ("unsupportedIdentifier", 400)
    USER_ACTION_REQUIRED = ("userActionRequired", 403)

    @property
    def urn(self) -> str:
        """The URI of the type."""
        return URN + self.value[0]

    @property
    def status(self) -> int:
        """The usual HTTP status."""
        return self.value[1]


class Identifier(msgspec.Struct, frozen=True):
    """What a certificate can be for (section 9.7.7): type `dns` or `ip` (RFC 8738) and the value."""

    type: str
    value: str

    def __str__(self) -> str:
        return f"{self.type} {self.value}"


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of a problem; orders and challenges carry it as their `error`."""

    type: str
    detail: str
    status: int | None = None
    identifier: Identifier | None = None
    subproblems: list[Document] | None = None
    algorithms: list[str] | None = None


class AcmeProblem(StoqError):
    """A request, a challenge or an order failed; `document` is what the client gets to see."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        status: int | None = None,
        identifier: Identifier | None = None,
        subproblems: Sequence[AcmeProblem] = (),
        algorithms: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = status or kind.status
        self.headers = dict(headers or {})
        self.document = Document(
            type=kind.urn,
            detail=detail[:MAX_DETAIL_CHARACTERS],
            status=self.status,
            identifier=identifier,
            subproblems=[problem.part for problem in subproblems] or None,
            algorithms=list(algorithms) or None,
        )

    @property
    def part(self) -> Document:
        """The document as a sub-problem: it has no HTTP status of its own."""
        return msgspec.structs.replace(self.document, status=None)


def malformed(detail: str, *, status: int = 400) -> AcmeProblem:
    """The request is not what RFC 8555 says it is."""
    return AcmeProblem(Kind.MALFORMED, detail, status=status)


def unauthorized(detail: str) -> AcmeProblem:
    """The key that signed may not do this."""
    return AcmeProblem(Kind.UNAUTHORIZED, detail)

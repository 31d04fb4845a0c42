"""Accounts, orders, authorizations and challenges, and how their states change (RFC 8555 sections 7.1.2 to 7.1.6).

    challenge      pending ──▶ processing ──▶ valid | invalid
    authorization  pending ──▶ valid ──▶ expired | deactivated
                      └──────▶ invalid | expired | deactivated
    order          pending ──▶ ready ──▶ processing ──▶ valid
                      └──────────┴────────────┴───────▶ invalid

An order is ready when all its authorizations are valid and invalid as soon as one of them can no longer be.
These are values; what changes them, in one transaction each, is `store`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from control.trustchain.acme.problems import Document, Identifier


class AccountStatus(StrEnum):
    VALID = "valid"
    DEACTIVATED = "deactivated"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"


class OrderStatus(StrEnum):
    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Account:
    """Who may ask. `jwk` is the canonical JSON of its key, `external` the key identifier it registered with."""

    id: str
    status: AccountStatus
    jwk: str
    thumbprint: str
    contact: tuple[str, ...]
    agreed: bool
    external: str | None


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove control of an identifier; `token` is 256 random bits in base64url."""

    id: str
    authorization: str
    type: str
    token: str
    status: ChallengeStatus
    validated: float | None
    error: Document | None


@dataclass(frozen=True, slots=True)
class Authorization:
    """That an account controls an identifier. For a wildcard the identifier is the name without `*.`."""

    id: str
    account: str
    identifier: Identifier
    wildcard: bool
    status: AuthorizationStatus
    expires: float
    challenges: tuple[Challenge, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """A wish for one certificate. `csr` is there from `processing` on, `certificate` when it is valid."""

    id: str
    account: str
    status: OrderStatus
    identifiers: tuple[Identifier, ...]
    authorizations: tuple[str, ...]
    expires: float
    csr: bytes | None
    certificate: str | None
    error: Document | None
    replaces: str | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was issued: DER, leaf first; times in seconds since 1970."""

    id: str
    order: str
    account: str
    chain: tuple[bytes, ...]
    not_before: float
    not_after: float
    revoked: bool
    replaced: bool


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """What the store is told of a certificate when it was issued."""

    chain: tuple[bytes, ...]
    renewal_id: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class NewAuthorization:
    """An identifier of a new order, and the types of challenge on offer for it."""

    identifier: Identifier
    wildcard: bool
    challenges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept, at most; in all unless said otherwise. At a bound the request is refused with `rateLimited`,
    unless something that nobody can use any more makes room."""

    accounts: int = 10_000
    external_accounts: int = 10_000
    orders: int = 100_000
    orders_per_account: int = 500  # Certificates of 24 h renewed at two thirds: some 330 names an account.
    identifiers_per_order: int = 32


def order_status(current: OrderStatus, authorizations: Iterable[AuthorizationStatus]) -> OrderStatus:
    """The state of an order, given the states of its authorizations. From `processing` on they no longer matter."""
    if current not in (OrderStatus.PENDING, OrderStatus.READY):
        return current
    states = set(authorizations)
    if states <= {AuthorizationStatus.VALID}:
        return OrderStatus.READY
    if states <= {AuthorizationStatus.VALID, AuthorizationStatus.PENDING}:
        return OrderStatus.PENDING
    return OrderStatus.INVALID

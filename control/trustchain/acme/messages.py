"""The JSON that clients send and get (RFC 8555 section 7.1, RFC 9773 section 4.2), as types.

Members that are not named here are ignored, as section 7.1 asks. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from control.trustchain.acme.problems import Document, Identifier, malformed

MAX_IDENTIFIERS = 64  # In an order; the store's limits bound what is taken further.
MAX_CONTACTS = 8

T = TypeVar("T")


class NewAccount(msgspec.Struct, rename="camel"):
    """Section 7.3."""

    contact: Annotated[list[str], Meta(max_length=MAX_CONTACTS)] = msgspec.field(default_factory=list)
    terms_of_service_agreed: bool = False
    only_return_existing: bool = False
    external_account_binding: msgspec.Raw | UnsetType = UNSET


class UpdateAccount(msgspec.Struct):
    """Sections 7.3.2 and 7.3.6. `contact` null means none is given, as clients that deactivate send it."""

    contact: Annotated[list[str], Meta(max_length=MAX_CONTACTS)] | None = None
    status: str | None = None


class KeyChange(msgspec.Struct, rename="camel"):
    """The payload of the inner JWS, section 7.3.5."""

    account: str
    old_key: msgspec.Raw


class NewOrder(msgspec.Struct, rename="camel"):
    """Section 7.4."""

    identifiers: Annotated[list[Identifier], Meta(min_length=1, max_length=MAX_IDENTIFIERS)]
    not_before: str | None = None
    not_after: str | None = None
    replaces: str | None = None
    profile: str | None = None


class Finalize(msgspec.Struct):
    """Section 7.4: a CSR, DER in base64url."""

    csr: str


class UpdateAuthorization(msgspec.Struct):
    """Section 7.5.2."""

    status: str | None = None


class Revocation(msgspec.Struct):
    """Section 7.6: a certificate, DER in base64url, and a CRLReason."""

    certificate: str
    reason: int = 0


class Nothing(msgspec.Struct):
    """`{}`, with which a client says that a challenge may be tried (section 7.5.1)."""


class DirectoryMeta(msgspec.Struct, rename="camel", omit_defaults=True):
    """Section 7.1.1."""

    terms_of_service: str | None = None
    website: str | None = None
    external_account_required: bool = False


class Directory(msgspec.Struct, rename="camel"):
    """Section 7.1.1, and `renewalInfo` of RFC 9773."""

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str
    key_change: str
    renewal_info: str
    meta: DirectoryMeta


class AccountObject(msgspec.Struct, rename="camel", omit_defaults=True):
    """Section 7.1.2."""

    status: str
    orders: str
    contact: list[str] = msgspec.field(default_factory=list)
    terms_of_service_agreed: bool = False


class OrdersObject(msgspec.Struct):
    """Section 7.1.2.1."""

    orders: list[str]


class OrderObject(msgspec.Struct, rename="camel", omit_defaults=True):
    """Section 7.1.3."""

    status: str
    expires: str
    identifiers: list[Identifier]
    authorizations: list[str]
    finalize: str
    certificate: str | None = None
    error: Document | None = None
    replaces: str | None = None


class ChallengeObject(msgspec.Struct, omit_defaults=True):
    """Section 7.1.5."""

    type: str
    url: str
    status: str
    token: str
    validated: str | None = None
    error: Document | None = None


class AuthorizationObject(msgspec.Struct, omit_defaults=True):
    """Section 7.1.4."""

    identifier: Identifier
    status: str
    expires: str
    challenges: list[ChallengeObject]
    wildcard: bool = False


class Window(msgspec.Struct):
    """When to renew, RFC 9773 section 4.2."""

    start: str
    end: str


class RenewalInfo(msgspec.Struct, rename="camel"):
    """RFC 9773 section 4.2."""

    suggested_window: Window


def decode_json(data: bytes, kind: type[T], what: str) -> T:
    """JSON as one of the types. Raises AcmeProblem (malformed), whose text names the member that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"{what} is not as expected: {error}") from None


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339, whole seconds."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Accounts: registration with or without an external account binding, contacts, key change, the end (RFC 8555 section
7.3)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from aiohttp import web
from msgspec import UnsetType

from control.trustchain.acme import jose
from control.trustchain.acme.context import Context, Signed, answer, id_in
from control.trustchain.acme.messages import (
    AccountObject,
    KeyChange,
    NewAccount,
    OrdersObject,
    UpdateAccount,
    decode_json,
)
from control.trustchain.acme.model import Account, AccountStatus
from control.trustchain.acme.problems import AcmeProblem, Kind, malformed, unauthorized

log = logging.getLogger("stoq.acme")

MAX_CONTACT_CHARACTERS = 254
_MAIL = re.compile(r"[^\s@,?%<>\"]+@[^\s@,?%<>\"]+", re.ASCII)


def _object(context: Context, account: Account, *, deactivated: bool = False) -> AccountObject:
    return AccountObject(
        status=AccountStatus.DEACTIVATED if deactivated else account.status,
        orders=context.urls("account", account.id, "orders"),
        contact=list(account.contact),
        terms_of_service_agreed=account.agreed,
    )


def _check_contacts(contacts: Sequence[str]) -> None:
    for contact in contacts:
        scheme, _, address = contact.partition(":")
        if scheme.lower() != "mailto":
            raise AcmeProblem(Kind.UNSUPPORTED_CONTACT, f"contacts are mailto: URLs, not {contact[:80]!r}")
        if len(contact) > MAX_CONTACT_CHARACTERS or not _MAIL.fullmatch(address):
            raise AcmeProblem(
                Kind.INVALID_CONTACT, f"{contact[:80]!r} is not mailto: with one address and nothing else"
            )


async def new_account(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.3: register, or find the account of a key (section 7.3.1)."""
    context = signed.context
    key = signed.of_key()
    wish = decode_json(signed.payload, NewAccount, "a newAccount request")
    account = await context.store.account_of_key(key.thumbprint)
    created = False
    if account is None:
        if wish.only_return_existing:
            raise AcmeProblem(Kind.ACCOUNT_DOES_NOT_EXIST, "there is no account with this key")
        _check_contacts(wish.contact)
        terms = context.config.terms_of_service
        if terms is not None and not wish.terms_of_service_agreed:
            raise AcmeProblem(
                Kind.USER_ACTION_REQUIRED,
                f"agree to the terms of service first: {terms}",
                headers={"Link": f'<{terms}>;rel="terms-of-service"'},
            )
        external = await _external(signed, key, wish)
        account, created = await context.store.register(
            key.jwk, key.thumbprint, wish.contact, wish.terms_of_service_agreed, external
        )
        if created:
            log.info("account %s registered, external account %s", account.id, external)
    if account.status != AccountStatus.VALID:
        raise unauthorized(f"the account of this key is {account.status}; use another key")
    location = {"Location": context.urls("account", account.id)}
    return answer(_object(context, account), 201 if created else 200, location)


async def _external(signed: Signed, key: jose.Key, wish: NewAccount) -> str | None:
    """The external account that the binding is for (section 7.3.4), its MAC verified; None if there is no binding."""
    context = signed.context
    if isinstance(wish.external_account_binding, UnsetType):
        if context.config.external_account_required:
            raise AcmeProblem(
                Kind.EXTERNAL_ACCOUNT_REQUIRED,
                "registration needs an external account: ask the CA's operator for a key identifier and a MAC key",
            )
        return None
    binding = jose.parse(bytes(wish.external_account_binding), mac=True)
    if binding.kid is None or binding.nonce is not None:
        raise malformed("an external account binding has a kid and no nonce")
    if binding.url != context.urls("new-account"):
        raise malformed("the external account binding is for another URL")
    if jose.parse_jwk(binding.payload).jwk != key.jwk:
        raise malformed("the external account binding is for another account key")
    secret = await context.store.external_secret(binding.kid)
    if secret is None:
        raise unauthorized("the external account is unknown, used already or expired: ask for another one")
    binding.verify_mac(secret)
    return binding.kid


async def account(signed: Signed, request: web.Request) -> web.Response:
    """Sections 7.3.2 and 7.3.6: read, change contacts, deactivate."""
    context = signed.context
    found = signed.owns(id_in(request))
    if not signed.payload:
        return answer(_object(context, found))
    wish = decode_json(signed.payload, UpdateAccount, "an account update")
    if wish.status not in (None, AccountStatus.VALID, AccountStatus.DEACTIVATED):
        raise malformed("an account's status can only be set to deactivated")
    if wish.status == AccountStatus.DEACTIVATED:
        await context.store.deactivate_account(found.id)
        log.info("account %s deactivated", found.id)
        return answer(_object(context, found, deactivated=True))
    if wish.contact is not None:
        _check_contacts(wish.contact)
        await context.store.set_contact(found.id, wish.contact)
        found = await context.store.account(found.id) or found
    return answer(_object(context, found))


async def orders(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.1.2.1, on one page: their number is bounded."""
    context = signed.context
    found = signed.owns(id_in(request))
    signed.post_as_get()
    ids = await context.store.orders(found.id)
    return answer(OrdersObject([context.urls("order", one) for one in ids]))


async def key_change(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.3.5: signed by the old key outside and by the new one inside."""
    context = signed.context
    found = signed.of_account()
    inner = jose.parse(signed.payload)
    if inner.key is None:
        raise malformed("the inner JWS of a key change has the new key as jwk")
    if inner.nonce is not None:
        raise malformed("the inner JWS of a key change has no nonce")
    if inner.url != context.urls("key-change"):
        raise malformed("the inner JWS of a key change has the same url as the outer one")
    inner.verify(inner.key)
    wish = decode_json(inner.payload, KeyChange, "a key change")
    if wish.account != context.urls("account", found.id):
        raise malformed("the inner JWS names another account than the outer one")
    if jose.parse_jwk(bytes(wish.old_key)).jwk != signed.key.jwk:
        raise malformed("oldKey is not the account's key")
    holder = await context.store.change_key(found, inner.key.jwk, inner.key.thumbprint)
    if holder is not None:
        raise AcmeProblem(
            Kind.MALFORMED,
            "the new key is an account's already",
            status=409,
            headers={"Location": context.urls("account", holder)},
        )
    log.info("account %s has another key now", found.id)
    return answer(_object(context, found))

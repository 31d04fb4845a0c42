"""Orders, authorizations, challenges, certificates (RFC 8555 sections 7.4 and 7.5)."""

from __future__ import annotations

import base64

from aiohttp import web

from control.trustchain.acme.context import Context, Signed, answer, id_in, not_found
from control.trustchain.acme.csr import check_csr
from control.trustchain.acme.encoding import EncodingError, decode
from control.trustchain.acme.identifiers import check_all, split_wildcard
from control.trustchain.acme.messages import (
    AuthorizationObject,
    ChallengeObject,
    Finalize,
    NewOrder,
    Nothing,
    OrderObject,
    UpdateAuthorization,
    decode_json,
    timestamp,
)
from control.trustchain.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    ChallengeStatus,
    NewAuthorization,
    Order,
    OrderStatus,
)
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind, malformed, unauthorized

POLL_SECONDS = 1  # Retry-After of what is being worked on.


# ---- orders, section 7.4 ----


def _order_answer(context: Context, order: Order, status: int = 200) -> web.Response:
    headers = {"Location": context.urls("order", order.id)}
    if order.status == OrderStatus.PROCESSING:
        headers["Retry-After"] = str(POLL_SECONDS)
    return answer(
        OrderObject(
            status=order.status,
            expires=timestamp(order.expires),
            identifiers=list(order.identifiers),
            authorizations=[context.urls("authorization", one) for one in order.authorizations],
            finalize=context.urls("order", order.id, "finalize"),
            certificate=None if order.certificate is None else context.urls("certificate", order.certificate),
            error=order.error,
            replaces=order.replaces,
        ),
        status,
        headers,
    )


async def _order(signed: Signed, request: web.Request) -> Order:
    order = await signed.context.store.order(id_in(request))
    if order is None:
        raise not_found()
    signed.owns(order.account)
    return order


async def new_order(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.4, and `replaces` of RFC 9773 section 5."""
    context = signed.context
    account = signed.of_account()
    wish = decode_json(signed.payload, NewOrder, "a newOrder request")
    if wish.not_before is not None or wish.not_after is not None:
        raise malformed("this CA sets the time a certificate is valid itself: leave out notBefore and notAfter")
    if wish.profile:
        raise malformed("this server has no profiles to choose from: leave out profile")
    most = context.store.limits.identifiers_per_order
    if len(wish.identifiers) > most:
        raise malformed(f"an order has at most {most} identifiers")
    validation = context.config.validation
    identifiers = check_all(wish.identifiers, validation.addresses, context.config.domains)
    replaces = await _replaced(signed, wish.replaces, identifiers)
    order = await context.store.new_order(
        account.id,
        [_wanted(context, identifier) for identifier in identifiers],
        identifiers,
        context.clock() + context.config.order_seconds,
        replaces,
    )
    return _order_answer(context, order, 201)


def _wanted(context: Context, identifier: Identifier) -> NewAuthorization:
    base, wildcard = split_wildcard(identifier)
    offered = context.work.validator.offered(base, wildcard)
    if not offered:
        needs = "a wildcard needs dns-01, which this server does not offer" if wildcard else "no challenge is on offer"
        raise AcmeProblem(
            Kind.REJECTED_IDENTIFIER, f"no certificate for {identifier.value!r}: {needs}", identifier=identifier
        )
    return NewAuthorization(base, wildcard, offered)


async def _replaced(signed: Signed, renewal_id: str | None, identifiers: list[Identifier]) -> str | None:
    """What the new order replaces, if we still know it (what has expired we forget)."""
    context = signed.context
    found = None if not renewal_id else await context.store.certificate_to_renew(renewal_id)
    if found is None:
        return None
    signed.owns(found.account)
    before = await context.store.order(found.order)
    if before is None or not set(before.identifiers) & set(identifiers):
        raise malformed("the certificate to replace has none of this order's identifiers")
    if found.replaced:
        raise AcmeProblem(Kind.ALREADY_REPLACED, "the certificate has been replaced already")
    return renewal_id


async def order(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.1.3."""
    found = await _order(signed, request)
    signed.post_as_get()
    return _order_answer(signed.context, found)


async def finalize(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.4: the CSR, once the order is ready."""
    context = signed.context
    found = await _order(signed, request)
    wish = decode_json(signed.payload, Finalize, "a finalize request")
    if found.status != OrderStatus.READY:
        raise AcmeProblem(Kind.ORDER_NOT_READY, f"the order is {found.status}, not ready")
    try:
        csr = decode(wish.csr)
    except EncodingError as error:
        raise malformed(f"csr is {error}") from None
    check_csr(csr, found.identifiers, signed.of_account().thumbprint)
    await context.work.issue(found, csr)
    return _order_answer(context, await context.store.order(found.id) or found)


async def certificate(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.4.2: the chain in PEM, leaf first."""
    found = await signed.context.store.certificate(id_in(request))
    if found is None:
        raise not_found()
    signed.owns(found.account)
    signed.post_as_get()
    return web.Response(text="".join(map(_pem, found.chain)), content_type="application/pem-certificate-chain")


def _pem(der: bytes) -> str:
    text = base64.encodebytes(der).decode().replace("\n", "")
    lines = (text[begin : begin + 64] for begin in range(0, len(text), 64))
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


# ---- authorizations, section 7.5 ----


def _challenge_object(context: Context, challenge: Challenge) -> ChallengeObject:
    return ChallengeObject(
        type=challenge.type,
        url=context.urls("challenge", challenge.id),
        status=challenge.status,
        token=challenge.token,
        validated=None if challenge.validated is None else timestamp(challenge.validated),
        error=challenge.error,
    )


def _authorization_answer(context: Context, found: Authorization) -> web.Response:
    shown = [
        one
        for one in found.challenges
        if (found.status == AuthorizationStatus.PENDING)
        or (found.status == AuthorizationStatus.INVALID and one.status == ChallengeStatus.INVALID)
        or (one.status == ChallengeStatus.VALID)
    ]
    working = any(one.status == ChallengeStatus.PROCESSING for one in found.challenges)
    return answer(
        AuthorizationObject(
            identifier=found.identifier,
            status=found.status,
            expires=timestamp(found.expires),
            challenges=[_challenge_object(context, one) for one in shown],
            wildcard=found.wildcard,
        ),
        headers={"Retry-After": str(POLL_SECONDS)} if working else {},
    )


async def authorization(signed: Signed, request: web.Request) -> web.Response:
    """Sections 7.5 and 7.5.2: read, or deactivate."""
    context = signed.context
    found = await context.store.authorization(id_in(request))
    if found is None:
        raise not_found()
    signed.owns(found.account)
    if signed.payload:
        wish = decode_json(signed.payload, UpdateAuthorization, "an authorization update")
        if wish.status != AuthorizationStatus.DEACTIVATED:
            raise malformed("an authorization's status can only be set to deactivated")
        await context.store.deactivate_authorization(found.id)
        found = await context.store.authorization(found.id) or found
    return _authorization_answer(context, found)


async def challenge(signed: Signed, request: web.Request) -> web.Response:
    """Section 7.5.1: read, or have it tried."""
    context = signed.context
    challenge_id = id_in(request)
    found = await context.store.authorization_of(challenge_id)
    if found is None:
        raise not_found()
    signed.owns(found.account)
    if signed.payload:
        decode_json(signed.payload, Nothing, "the response to a challenge")
        if found.status != AuthorizationStatus.PENDING and not _done(found, challenge_id):
            raise unauthorized(f"the authorization is {found.status}: make a new order")
        if found.status == AuthorizationStatus.PENDING:
            await context.work.try_challenge(challenge_id)
            found = await context.store.authorization_of(challenge_id) or found
    one = next(one for one in found.challenges if one.id == challenge_id)
    response = answer(_challenge_object(context, one))
    response.headers.add("Link", f'<{context.urls("authorization", found.id)}>;rel="up"')
    if one.status == ChallengeStatus.PROCESSING:
        response.headers["Retry-After"] = str(POLL_SECONDS)
    return response


def _done(found: Authorization, challenge_id: str) -> bool:
    """Whether this very challenge was tried: telling the outcome again does no harm."""
    return any(
        one.id == challenge_id and one.status in (ChallengeStatus.VALID, ChallengeStatus.INVALID)
        for one in found.challenges
    )

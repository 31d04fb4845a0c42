"""Revocation (RFC 8555 section 7.6) and when to renew (RFC 9773)."""

from __future__ import annotations

from aiohttp import web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from control.trustchain.acme.context import Context, Signed, answer, not_found
from control.trustchain.acme.encoding import EncodingError, decode
from control.trustchain.acme.identifiers import split_wildcard
from control.trustchain.acme.issuing import not_revoked
from control.trustchain.acme.jose import of_certificate
from control.trustchain.acme.messages import RenewalInfo, Revocation, Window, decode_json, timestamp
from control.trustchain.acme.model import Certificate
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind, malformed, unauthorized
from control.trustchain.errors import TrustError

# What a holder can know: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation.
REASONS = (0, 1, 3, 4, 5)
MAX_RENEWAL_ID_CHARACTERS = 128
RENEW_AT = 2 / 3  # Of a certificate's life.
RENEW_SPREAD = 1 / 12
RENEWAL_RETRY_SECONDS = 3600


async def revoke_cert(signed: Signed, request: web.Request) -> web.Response:
    """By the account that has it, by one that controls all its names, or by the certificate's own key."""
    context = signed.context
    wish = decode_json(signed.payload, Revocation, "a revocation")
    if wish.reason not in REASONS:
        raise AcmeProblem(
            Kind.BAD_REVOCATION_REASON, f"reason {wish.reason} is not taken; use one of {', '.join(map(str, REASONS))}"
        )
    try:
        der = decode(wish.certificate)
        leaf = x509.load_der_x509_certificate(der)
        public = leaf.public_key()
    except EncodingError as error:
        raise malformed(f"certificate is {error}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise malformed(f"certificate cannot be read: {error}") from None
    known = await context.store.certificate_of(der)
    if signed.account is None:
        if of_certificate(public) != signed.key.thumbprint:
            raise unauthorized("the key that signed is not the certificate's")
        actor = f"acme:key:{signed.key.thumbprint}"
    else:
        if not await _may_revoke(signed, known, leaf):
            raise unauthorized("the certificate is not this account's, which does not control all its names either")
        actor = f"acme:{signed.account.id}"
    if known is not None and known.revoked:
        raise AcmeProblem(Kind.ALREADY_REVOKED, "the certificate is revoked already")
    try:
        await context.issuer.revoke_acme(der, wish.reason, actor)
    except TrustError as error:
        raise not_revoked(error) from None
    if known is not None:
        await context.store.set_revoked(known.id)
    return web.Response(status=200)


async def _may_revoke(signed: Signed, known: Certificate | None, leaf: x509.Certificate) -> bool:
    account = signed.of_account()
    if known is not None and known.account == account.id:
        return True
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return False
    identifiers: list[Identifier] = []
    for name in names:
        if not isinstance(name, x509.DNSName | x509.IPAddress):
            return False
        identifiers.append(Identifier("dns" if isinstance(name, x509.DNSName) else "ip", str(name.value)))
    return bool(identifiers) and await signed.context.store.controls(
        account.id, [split_wildcard(identifier) for identifier in identifiers]
    )


async def renewal_info(context: Context, request: web.Request) -> web.Response:
    """RFC 9773 section 4: from two thirds of its life on; at once if it is revoked."""
    renewal_id = request.match_info["id"]
    if len(renewal_id) > MAX_RENEWAL_ID_CHARACTERS:
        raise not_found()
    found = await context.store.certificate_to_renew(renewal_id)
    if found is None:
        raise not_found()
    life = found.not_after - found.not_before
    start = found.not_before if found.revoked else found.not_before + RENEW_AT * life
    end = start + 1 if found.revoked else start + RENEW_SPREAD * life
    window = Window(timestamp(start), timestamp(end))
    return answer(RenewalInfo(window), headers={"Retry-After": str(RENEWAL_RETRY_SECONDS)})

"""The authority over HTTP/1.1 on IPv6, for everybody: CRLs, OCSP (RFC 6960 appendix A), certificates of issuers, the trust
bundle. All of it is signed or public; nothing is changed here."""

from __future__ import annotations

import base64
import binascii

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.trustchain.authority import Authority
from control.trustchain.errors import NotFound, TrustError
from control.trustchain.trust import TrustMaker

MAX_OCSP_BYTES = 4096
OCSP_REQUEST, OCSP_RESPONSE = "application/ocsp-request", "application/ocsp-response"
SHORT_CACHE = "public, max-age=60"


def authority_application(authority: Authority, trust: TrustMaker) -> web.Application:
    """To be mounted somewhere, as `/ca`."""
    application = web.Application(client_max_size=MAX_OCSP_BYTES)

    def answer(body: bytes, content_type: str, cache: str = SHORT_CACHE) -> web.Response:
        return web.Response(body=body, content_type=content_type, headers={"Cache-Control": cache})

    def number(request: web.Request) -> int:
        text = request.match_info["number"]
        if not text.isdigit() or len(text) > 6:
            raise web.HTTPNotFound(text="no such issuer\n")
        return int(text)

    async def crl(request: web.Request) -> web.Response:
        try:
            return answer((await authority.crl(number(request))).der, "application/pkix-crl")
        except NotFound as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        except TrustError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from None

    async def root_crl(request: web.Request) -> web.Response:
        try:
            # DER, as RFC 5280 section 4.2.1.13 wants of what a certificate names as http://…
            der = x509.load_pem_x509_crl(authority.root_crl()).public_bytes(Encoding.DER)
        except (NotFound, ValueError) as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        return answer(der, "application/pkix-crl")

    async def root(request: web.Request) -> web.Response:
        return answer(authority.root.public_bytes(Encoding.PEM), "application/x-pem-file")

    async def issuer(request: web.Request) -> web.Response:
        wanted = number(request)
        for one in authority.issuers:
            if one.number == wanted:
                return answer(one.certificate.public_bytes(Encoding.DER), "application/pkix-cert")
        raise web.HTTPNotFound(text="no such issuer\n")

    async def ocsp(request: web.Request) -> web.Response:
        if request.method == "POST":
            if request.content_type != OCSP_REQUEST:
                raise web.HTTPUnsupportedMediaType(text=f"send {OCSP_REQUEST}\n")
            body = await request.read()
        else:
            try:
                body = base64.b64decode(request.match_info["request"], validate=True)
            except (binascii.Error, ValueError):
                body = b""  # The responder says malformedRequest.
        return answer(await authority.ocsp(body[:MAX_OCSP_BYTES]), OCSP_RESPONSE, "no-cache")

    async def bundle(request: web.Request) -> web.Response:
        return answer(trust.bundle.encode(), "application/json")

    add = application.router
    add.add_get("/root.pem", root)
    add.add_get("/root.crl", root_crl)
    add.add_get("/issuers/{number}.cer", issuer)
    add.add_get("/crl/{number}.crl", crl)
    add.add_post("/ocsp", ocsp)
    add.add_get("/ocsp/{request:.+}", ocsp)
    add.add_get("/bundle.json", bundle)
    return application

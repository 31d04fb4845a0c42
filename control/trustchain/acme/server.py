"""The ACME server (RFC 8555) as an aiohttp application, to be mounted in the CA's HTTPS listener.

    request ─▶ answers (problems, nonce, Link) ─▶ signature, account, nonce (context) ─▶ handler ─▶ store
                                                                                            └─▶ work ─▶ issuer
                                                                                                  └──▶ challenges

One table has all signed resources: what is in `accounts`, `orders` and `revocation` is only reached by requests whose
signature, URL and nonce are good.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from aiohttp import web

from control.trustchain.acme import accounts, orders, revocation
from control.trustchain.acme.challenges import Validator
from control.trustchain.acme.config import AcmeConfig
from control.trustchain.acme.context import Context, Handler, Urls, answer
from control.trustchain.acme.issuing import Issuer, busy
from control.trustchain.acme.messages import Directory, DirectoryMeta
from control.trustchain.acme.nonces import Nonces
from control.trustchain.acme.problems import CONTENT_TYPE, AcmeProblem, malformed
from control.trustchain.acme.store import Store
from control.trustchain.acme.work import Work

log = logging.getLogger("stoq.acme")

SIGNED: dict[str, Handler] = {
    "/new-account": accounts.new_account,
    "/account/{id}": accounts.account,
    "/account/{id}/orders": accounts.orders,
    "/key-change": accounts.key_change,
    "/new-order": orders.new_order,
    "/order/{id}": orders.order,
    "/order/{id}/finalize": orders.finalize,
    "/authorization/{id}": orders.authorization,
    "/challenge/{id}": orders.challenge,
    "/certificate/{id}": orders.certificate,
    "/revoke-cert": revocation.revoke_cert,
}
"""Resources that are posted to, with what answers (section 7.1)."""


def acme_application(issuer: Issuer, store: Store, config: AcmeConfig, clock: Callable[[], float]) -> web.Application:
    """The server. `clock`: seconds since 1970. The store stays the caller's to close, after the application's end."""
    work = Work(config, store, issuer, Validator(config.validation), clock)
    context = Context(config, issuer, store, Nonces(clock), work, clock, Urls(config.base_url))

    @web.middleware
    async def answers(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except AcmeProblem as problem:
            response = _problem(problem)
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            detail = f"{request.method} {request.path[:200]}: {error.reason}"
            response = _problem(malformed(detail, status=error.status), headers)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = _problem(busy("an error of ours; try again later"))
        if request.method == "POST":
            response.headers["Replay-Nonce"] = context.nonces.issue()
        response.headers["Cache-Control"] = "no-store"
        response.headers.add("Link", f'<{context.urls("directory")}>;rel="index"')
        return response

    async def life(application: web.Application) -> AsyncIterator[None]:
        await work.start()
        yield
        await work.stop()

    application = web.Application(middlewares=[answers])
    application.cleanup_ctx.append(life)
    application.router.add_get("/directory", _directory(context))
    application.router.add_get("/new-nonce", _new_nonce(context))
    application.router.add_get("/renewal-info/{id}", _renewal_info(context))
    for path, handler in SIGNED.items():
        application.router.add_post(path, _signed(context, handler))
    return application


def _problem(problem: AcmeProblem, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(problem.document),
        status=problem.status,
        content_type=CONTENT_TYPE,
        headers={**problem.headers, **(headers or {})},
    )


Plain = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _signed(context: Context, handler: Handler) -> Plain:
    async def serve(request: web.Request) -> web.StreamResponse:
        return await handler(await context.authenticate(request), request)

    return serve


def _directory(context: Context) -> Plain:
    urls, config = context.urls, context.config
    directory = Directory(
        new_nonce=urls("new-nonce"),
        new_account=urls("new-account"),
        new_order=urls("new-order"),
        revoke_cert=urls("revoke-cert"),
        key_change=urls("key-change"),
        renewal_info=urls("renewal-info"),
        meta=DirectoryMeta(config.terms_of_service, config.website, config.external_account_required),
    )

    async def serve(request: web.Request) -> web.StreamResponse:
        return answer(directory)

    return serve


def _new_nonce(context: Context) -> Plain:
    async def serve(request: web.Request) -> web.StreamResponse:
        """Section 7.2: 200 to HEAD, 204 to GET."""
        return web.Response(
            status=200 if request.method == "HEAD" else 204, headers={"Replay-Nonce": context.nonces.issue()}
        )

    return serve


def _renewal_info(context: Context) -> Plain:
    async def serve(request: web.Request) -> web.StreamResponse:
        return await revocation.renewal_info(context, request)

    return serve

"""What the handlers share: the server's parts, its URLs, and how a signed request becomes one they can trust."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web

from control.trustchain.acme import jose
from control.trustchain.acme.config import AcmeConfig
from control.trustchain.acme.issuing import Issuer
from control.trustchain.acme.model import Account, AccountStatus
from control.trustchain.acme.nonces import Nonces
from control.trustchain.acme.problems import AcmeProblem, Kind, malformed, unauthorized
from control.trustchain.acme.store import Store
from control.trustchain.acme.work import Work

MAX_BODY_BYTES = 65_536  # The largest thing sent is a CSR of 16 KiB, twice in base64.
BODY_SECONDS = 15.0  # From a request's head to its end.
JOSE_CONTENT_TYPE = "application/jose+json"
ID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class Urls:
    """Where each resource is. An id is 128 random bits in base64url."""

    base: str

    def __call__(self, resource: str, *parts: str) -> str:
        return "/".join((self.base, resource, *parts))

    def id_of(self, url: str, resource: str) -> str | None:
        """The id in a URL of ours; None if it is not one."""
        prefix = self(resource, "")
        found = url.removeprefix(prefix)
        return found if found != url and ID.fullmatch(found) else None


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one server."""

    config: AcmeConfig
    issuer: Issuer
    store: Store
    nonces: Nonces
    work: Work
    clock: Callable[[], float]
    urls: Urls

    async def authenticate(self, request: web.Request) -> Signed:
        """Who sent this, and what: RFC 8555 sections 6.2 to 6.5.

        The signature comes before the nonce, so that only who holds a key uses up what we remember. Raises AcmeProblem.
        """
        if request.content_type != JOSE_CONTENT_TYPE:
            raise malformed(f"requests are of type {JOSE_CONTENT_TYPE}", status=415)
        jws = jose.parse(await read_body(request))
        url = self.config.origin + request.raw_path
        if jws.url != url:
            raise unauthorized(f"the request was signed for {jws.url[:200]!r}, but came to {url[:200]!r}")
        account: Account | None = None
        if jws.kid is not None:
            account = await self._account(jws.kid)
            key = jose.parse_jwk(account.jwk.encode())
        else:
            assert jws.key is not None
            key = jws.key
        jws.verify(key)
        if jws.nonce is None or not self.nonces.use(jws.nonce):
            raise AcmeProblem(
                Kind.BAD_NONCE, "the nonce is missing, used up, too old or not ours: use the one of this answer"
            )
        return Signed(self, key, account, jws.payload)

    async def _account(self, kid: str) -> Account:
        account_id = self.urls.id_of(kid, "account")
        account = None if account_id is None else await self.store.account(account_id)
        if account is None:
            raise AcmeProblem(Kind.ACCOUNT_DOES_NOT_EXIST, f"there is no account {kid[:200]!r} here; register first")
        if account.status != AccountStatus.VALID:
            raise unauthorized(f"the account is {account.status}")
        return account


@dataclass(frozen=True, slots=True)
class Signed:
    """A request whose signature and nonce are good. `account` is there if it was signed by `kid`."""

    context: Context
    key: jose.Key
    account: Account | None
    payload: bytes

    def of_account(self) -> Account:
        """The account. Raises AcmeProblem if the request came with a jwk."""
        if self.account is None:
            raise malformed("sign this request with kid, the URL of your account, not with jwk (section 6.2)")
        return self.account

    def of_key(self) -> jose.Key:
        """The key. Raises AcmeProblem if the request came with a kid."""
        if self.account is not None:
            raise malformed("sign this request with jwk, not with kid (section 6.2)")
        return self.key

    def owns(self, owner: str) -> Account:
        """The account, if a resource of `owner` is its own. Raises AcmeProblem."""
        account = self.of_account()
        if account.id != owner:
            raise unauthorized("this belongs to another account")
        return account

    def post_as_get(self) -> None:
        """Raises AcmeProblem unless the payload is empty (section 6.3)."""
        if self.payload:
            raise malformed("send an empty payload: this resource can only be read (POST-as-GET, section 6.3)")


Handler = Callable[[Signed, web.Request], Awaitable[web.StreamResponse]]


async def read_body(request: web.Request) -> bytes:
    """The request's body. Raises AcmeProblem when it is too large (413), before it is read whole, or too slow (408)."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise malformed(f"a request has at most {MAX_BODY_BYTES} bytes", status=413)
    except TimeoutError:
        raise malformed(f"the request did not come whole within {BODY_SECONDS:g} s", status=408) from None
    return bytes(body)


def id_in(request: web.Request) -> str:
    """The id in the request's path. Raises AcmeProblem (404)."""
    found = request.match_info["id"]
    if not ID.fullmatch(found):
        raise not_found()
    return found


def not_found() -> AcmeProblem:
    """There is nothing here: never was, or no longer."""
    return malformed("there is no such resource here, or no longer", status=404)


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=dict(headers or {})
    )

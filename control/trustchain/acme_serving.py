"""ACME beside a running authority: an HTTPS listener of its own with the authority's own certificate."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.ctlog.http import HttpServer
from control.handshake import Credentials
from control.trustchain.acme.challenges import ValidationConfig
from control.trustchain.acme.config import AcmeConfig
from control.trustchain.acme.issuer import AuthorityIssuer
from control.trustchain.acme.server import acme_application
from control.trustchain.acme.store import Store
from control.trustchain.authority import Authority
from dataplane.address import Address

DATABASE = "acme.db"
PREFIX = "/acme/"


@dataclass(frozen=True, slots=True)
class AcmeOptions:
    """`listen`: of HTTPS. `host`: what clients call it, which the authority's certificate must name. `open_to_all`: who
    registers needs no external account. `validation`: how challenges are looked at."""

    listen: Address
    host: str
    open_to_all: bool = False
    validation: ValidationConfig = ValidationConfig()  # noqa: RUF009 - frozen, and made of constants.


class AcmeListener:
    """Runs until closed. `use` gives it a renewed certificate."""

    def __init__(self, options: AcmeOptions) -> None:
        self._options = options
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._stack = AsyncExitStack()
        self.url = ""

    def use(self, credentials: Credentials) -> None:
        """Serve with this certificate from now on."""
        chain = (credentials.certificate, *(one for one in credentials.chain if one.issuer != one.subject))
        pem = credentials.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem += b"".join(one.public_bytes(Encoding.PEM) for one in chain)
        # The library reads files only; this one has no name that lasts and only we may read it.
        with tempfile.NamedTemporaryFile(prefix="stoq-acme-") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(pem)
            file.flush()
            self._context.load_cert_chain(file.name)

    async def open(self, authority: Authority, credentials: Credentials, clock: Callable[[], float]) -> None:
        """Listen. Raises ConfigError, StoreError."""
        options = self._options
        self.use(credentials)
        async with AsyncExitStack() as stack:
            store = await Store.open(authority.directory / DATABASE, clock)
            stack.push_async_callback(store.close)
            host = f"[{options.host}]" if ":" in options.host else options.host
            # The port is known once it is bound, and every URL has it in it.
            server = HttpServer(web.Application(), options.listen, self._context)
            await server.bind()
            self.url = f"https://{host}:{server.address.port}{PREFIX.rstrip('/')}"
            config = AcmeConfig(
                base_url=self.url,
                external_account_required=not options.open_to_all,
                domains=authority.config.permitted_dns,
                validation=options.validation,
            )
            application = web.Application()
            application.add_subapp(PREFIX, acme_application(AuthorityIssuer(authority), store, config, clock))
            await server.serve(application)
            stack.push_async_callback(server.close)
            self._stack = stack.pop_all()

    @property
    def directory_url(self) -> str:
        """What clients are given."""
        return f"{self.url}/directory"

    async def close(self) -> None:
        """Answer what is under way, then end."""
        await self._stack.aclose()

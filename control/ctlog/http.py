"""Serves logs over HTTP/1.1 on IPv6: each below the path of its origin, as standard clients expect them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from control.ctlog.api import MAX_BODY_BYTES, LogApi, Reply
from dataplane.address import Address
from dataplane.errors import ConfigError

MAX_PATH_CHARACTERS = 1024
BACKLOG = 1024


def _response(reply: Reply) -> web.Response:
    headers = {"Cache-Control": reply.cache, "X-Content-Type-Options": "nosniff"}
    if reply.retry_after is not None:
        headers["Retry-After"] = str(reply.retry_after)
    kind, _, charset = reply.content_type.partition("; charset=")
    return web.Response(
        status=reply.status, body=reply.body, content_type=kind, charset=charset or None, headers=headers
    )


def log_application(logs: Mapping[str, LogApi]) -> web.Application:
    """An application with each log below `/<prefix>/` (the empty prefix: at the root)."""
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    add_logs(application, logs)
    return application


def add_logs(application: web.Application, logs: Mapping[str, LogApi]) -> None:
    """Each log below `/<prefix>/` of an application, after what is there already."""

    def handler(api: LogApi) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            body = await request.read() if request.method == "POST" else b""
            return _response(
                await api.handle(
                    "GET" if request.method == "HEAD" else request.method,
                    request.match_info["path"],
                    dict(request.query),
                    body,
                )
            )

        return handle

    for prefix, api in logs.items():
        base = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        application.router.add_get(base + "/{path:.+}", handler(api))
        application.router.add_post(base + "/{path:.+}", handler(api))


class HttpServer:
    """An application on one IPv6 address: `open`, or `bind` and, once the port is known, `serve`."""

    def __init__(
        self, application: web.Application, address: Address, tls: ssl.SSLContext | None = None
    ) -> None:
        self._application = application
        self._address = address
        self._tls = tls
        self._listener: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self.address = address

    async def open(self) -> None:
        """Listen and serve. Raises ConfigError."""
        await self.bind()
        await self.serve(self._application)

    async def bind(self) -> None:
        """Take the address. Raises ConfigError."""
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((self._address.ip, self._address.port))
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"cannot listen for HTTP on {self._address}: {error.strerror}: name another with --http"
            ) from None
        self._listener = listener
        self.address = Address(self._address.ip, listener.getsockname()[1])

    async def serve(self, application: web.Application) -> None:
        """Answer by this application."""
        assert self._listener is not None
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=False, shutdown_timeout=5.0, keepalive_timeout=75.0
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, backlog=BACKLOG, ssl_context=self._tls).start()

    async def close(self) -> None:
        """Answer what is under way, then end."""
        if self._runner is not None:
            async with asyncio.timeout(10):
                await self._runner.cleanup()
        elif self._listener is not None:
            self._listener.close()

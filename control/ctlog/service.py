"""A log's interface over STOQ: the calls of `api.LogApi` as the method `log.call` of `control.rpc`, and the carrier
that lets `client.LogClient` use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from control.ctlog.api import MAX_BODY_BYTES, LogApi
from control.ctlog.errors import NotFound, Unavailable
from control.rpc import Caller, Method, RpcClient
from control.rpc.errors import CallFailed, RpcError
from dataplane.errors import StoqError

LOG_CALL = "log.call"
MAX_QUERY = 8  # Parameters of a call; RFC 6962 has at most two.

Permit = Callable[[Caller, bool], Awaitable[None]]  # Is told whether something is to be submitted; raises to refuse.


class LogCall(msgspec.Struct, frozen=True):
    """One request. `log`: its origin; else as `LogApi.handle` takes it."""

    log: str
    method: str
    path: str
    query: dict[str, str] = {}
    body: bytes = b""


class LogReply(msgspec.Struct, frozen=True):
    """Its reply, status as in HTTP."""

    status: int
    body: bytes


def log_methods(logs: Mapping[str, LogApi], permit: Permit) -> dict[str, Method]:
    """The methods that serve these logs, by origin."""

    async def call(caller: Caller, request: LogCall) -> LogReply:
        await permit(caller, request.method != "GET")
        api = logs.get(request.log)
        if api is None:
            raise NotFound(f"{request.log[:80]!r} is no log here; these are: {', '.join(logs)}")
        if len(request.query) > MAX_QUERY or len(request.body) > MAX_BODY_BYTES:
            raise NotFound("no call of a log has so large a request")
        reply = await api.handle(request.method, request.path, request.query, request.body)
        return LogReply(reply.status, reply.body)

    return {LOG_CALL: Method(LogCall, call)}


class StoqCarrier:
    """A `client.Carrier` over calls on a STOQ connection, which stays the caller's."""

    def __init__(self, calls: RpcClient, log: str) -> None:
        self._calls = calls
        self._log = log

    async def request(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes
    ) -> tuple[int, bytes]:
        """See Carrier."""
        call = LogCall(self._log, method, path, {name: str(value) for name, value in query.items()}, body)
        try:
            reply = await self._calls.call(LOG_CALL, call, LogReply)
        except CallFailed:
            raise
        except (RpcError, StoqError) as error:
            raise Unavailable(f"the log {self._log} does not answer: {error}") from None
        return reply.status, reply.body

    async def close(self) -> None:
        """Nothing is kept here."""

"""Serves calls. Every method stands in one table with its types and what it takes to be permitted; a request that is
malformed, unknown, too slow or one too many gets a typed failure and is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from control.rpc.errors import FrameError
from control.rpc.frames import read_frame, write_frame
from control.rpc.messages import ID_BYTES, VERSION, Answer, Failure, Request
from dataplane import Connection, StoqError, Stream
from dataplane.handshake import PeerIdentity

log = logging.getLogger("stoq.rpc")

REQUEST_SECONDS = 30.0  # A request must have come by then.
ANSWER_SECONDS = 30.0  # An answer that nobody takes.
MAX_CALLS = 1024  # At a time, over all connections.


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, by what the handshake proved; and the request's own id and time."""

    identity: PeerIdentity | None
    alpn: str
    peer: str
    request_id: bytes
    time: float

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the certificate; none without one."""
        return self.identity.roles if self.identity else ()

    @property
    def name(self) -> str:
        """For logs: subject and node id, or the address."""
        return str(self.identity) if self.identity else f"anonymous at {self.peer}"


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `body` is what it takes (a struct); `call` answers once, `follow` again and again. `permit` decides
    before anything else is done with the request; it raises to refuse. `alpn`: only on such connections."""

    body: type[Any]
    call: Callable[[Caller, Any], Awaitable[msgspec.Struct]] | None = None
    follow: Callable[[Caller, Any], AsyncIterator[msgspec.Struct]] | None = None
    permit: Callable[[Caller], Awaitable[None]] | None = None
    alpns: tuple[str, ...] = ("stoq/1",)


class RpcServer:
    """Answers calls on the connections that it is given."""

    def __init__(self, methods: dict[str, Method], *, max_calls: int = MAX_CALLS) -> None:
        self._methods = methods
        self._free = max_calls
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = 0
        self.failures = 0

    async def serve(self, connections: AsyncIterator[Connection]) -> None:
        """Every connection, until there are no more."""
        try:
            async for connection in connections:
                self._spawn(self.connection(connection))
        finally:
            await self.close()

    async def close(self) -> None:
        """End every call."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connection(self, connection: Connection) -> None:
        """One connection, until it ends."""
        try:
            async for stream in connection.accept_streams():
                self._spawn(self.stream(stream))
        except StoqError as error:
            log.info("%s: %s", connection.peer, error)

    async def stream(self, stream: Stream) -> None:
        """One call."""
        self.calls += 1
        try:
            async with stream:
                if self._free <= 0:
                    self._fail(stream, "Busy", "too many calls at once: try again later")
                    return
                self._free -= 1
                try:
                    await self._answer(stream)
                finally:
                    self._free += 1
        except StoqError as error:
            log.debug("a call from %s ended: %s", stream.connection.peer, error)
        except TimeoutError:
            self.failures += 1

    def _fail(self, stream: Stream, kind: str, text: str) -> None:
        self.failures += 1
        write_frame(stream, Failure(kind, text))

    async def _answer(self, stream: Stream) -> None:
        connection = stream.connection
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await read_frame(stream, Request)
            method = self._methods.get(request.method)
            if request.version != VERSION or len(request.id) != ID_BYTES:
                self._fail(stream, "BadVersion", f"calls of version {VERSION} with an id of {ID_BYTES} bytes are taken")
                return
            if method is None or connection.alpn not in method.alpns:
                known = ", ".join(sorted(n for n, m in self._methods.items() if connection.alpn in m.alpns))
                self._fail(stream, "UnknownMethod", f"{request.method[:80]!r} is not served here; these are: {known}")
                return
            caller = Caller(
                connection.identity, connection.alpn, str(connection.peer), request.id, request.time
            )
            if method.permit is not None:
                await method.permit(caller)
            body = msgspec.msgpack.decode(request.body, type=method.body)
            if method.call is not None:
                await self._send(stream, await method.call(caller, body))
            elif method.follow is not None:
                await self._follow(stream, method.follow(caller, body))
        except FrameError as error:
            self._fail(stream, "Malformed", str(error))
        except msgspec.MsgspecError as error:
            self._fail(stream, "Malformed", f"the request's body is malformed: {error}")
        except StoqError as error:
            if connection.closed:
                raise
            self._fail(stream, type(error).__name__, str(error))
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a call from %s met an unexpected error", connection.peer)
            self._fail(stream, "Internal", "internal error; the server's log has it")

    async def _send(self, stream: Stream, value: msgspec.Struct) -> None:
        write_frame(stream, Answer(msgspec.Raw(msgspec.msgpack.encode(value))))
        async with asyncio.timeout(ANSWER_SECONDS):
            await stream.drain()

    async def _follow(self, stream: Stream, answers: AsyncIterator[msgspec.Struct]) -> None:
        left = asyncio.ensure_future(stream.connection.wait_closed())

        async def send() -> None:
            async for value in answers:
                await self._send(stream, value)

        sending = asyncio.ensure_future(send())
        try:
            await asyncio.wait({left, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (left, sending):
                task.cancel()
            await asyncio.gather(left, sending, return_exceptions=True)


def merged(tables: Iterable[dict[str, Method]]) -> dict[str, Method]:
    """Several tables in one; a method stands in one of them only."""
    methods: dict[str, Method] = {}
    for table in tables:
        for name, method in table.items():
            assert name not in methods, f"two methods {name}"
            methods[name] = method
    return methods

"""Serves calls. Every method stands in one table with its types and what it takes to be permitted; a request that is
malformed, unknown, too slow or one too many gets a typed failure and is counted.

| what | bound (`Bounds`) | then |
|---|---|---|
| calls at a time | `calls`; of one caller `of_one` | Busy |
| the same without a certificate | `anonymous`; of one address `of_address` | Busy |
| those that follow, which wait rather than work | `followers`; of one caller `follow_of_one` | Busy |
| a request | `request_bytes`, without a certificate `anonymous_bytes`; `request_seconds` | Malformed; TooSlow |
| an answer that nobody takes | `answer_seconds` | the stream is reset |
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from control.rpc.errors import FrameError, RpcError
from control.rpc.frames import decode, read_frame, write_frame
from control.rpc.messages import ID_BYTES, VERSION, Answer, Failure, Request
from dataplane import Connection, StoqError, Stream
from dataplane.handshake import PeerIdentity

log = logging.getLogger("stoq.rpc")

LOOK_SECONDS = 1.0  # Between two looks at whether who follows is still there: a stream does not wake us for that.


@dataclass(frozen=True, slots=True)
class Bounds:
    """See the module's text. Who has no certificate is held to less: they cost nothing to be."""

    calls: int = 1024
    of_one: int = 256  # Of one node id, however many connections it has.
    anonymous: int = 256
    of_address: int = 32
    followers: int = 16384
    follow_of_one: int = 16
    request_bytes: int = 2 << 20  # A chain for a log is the largest.
    anonymous_bytes: int = 64 << 10
    request_seconds: float = 30.0
    answer_seconds: float = 30.0


ALL, ANONYMOUS = "", "anonymous"  # Under which everybody, and everybody without a certificate, is counted.


class _Busy(RpcError):
    """A bound is reached."""


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

    def __init__(self, methods: dict[str, Method], bounds: Bounds = Bounds()) -> None:
        self._methods = methods
        self._bounds = bounds
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work: Counter[bytes | str] = Counter()  # By node id, or address.
        self._following: Counter[bytes | str] = Counter()
        self.calls = 0
        self.failures = 0

    @property
    def at_work(self) -> int:
        """Calls that are being answered, without those that follow."""
        return self._at_work[ALL]

    @property
    def following(self) -> int:
        """Calls that follow."""
        return self._following[ALL]

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
                await self._call(stream)
        except StoqError as error:
            log.debug("a call from %s ended: %s", stream.connection.peer, error)
        except TimeoutError:
            self.failures += 1

    def _fail(self, stream: Stream, kind: str, text: str) -> None:
        self.failures += 1
        write_frame(stream, Failure(kind, text))

    async def _call(self, stream: Stream) -> None:
        connection = stream.connection
        try:
            with self._working(connection):
                following = await self._answer(stream)
            if following is not None:
                with self._follows(connection):
                    await self._follow(stream, following)
        except _Busy as error:
            self._fail(stream, "Busy", str(error))
        except FrameError as error:
            self._fail(stream, "Malformed", str(error))
        except StoqError as error:
            if connection.closed or stream.sender.error is not None:
                raise
            self._fail(stream, type(error).__name__, str(error))
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a call from %s met an unexpected error", connection.peer)
            self._fail(stream, "Internal", "internal error; the server's log has it")

    @contextmanager
    def _working(self, connection: Connection) -> Iterator[None]:
        bounds, identity = self._bounds, connection.identity
        if identity is not None:
            limits: dict[bytes | str, int] = {ALL: bounds.calls, identity.node_id: bounds.of_one}
        else:
            limits = {ALL: bounds.calls, ANONYMOUS: bounds.anonymous, connection.peer.ip: bounds.of_address}
        with _counted(self._at_work, limits, "calls at once"):
            yield

    @contextmanager
    def _follows(self, connection: Connection) -> Iterator[None]:
        who = connection.identity.node_id if connection.identity else connection.peer.ip
        limits: dict[bytes | str, int] = {ALL: self._bounds.followers, who: self._bounds.follow_of_one}
        with _counted(self._following, limits, "calls that follow"):
            yield

    async def _request(self, stream: Stream) -> Request | None:
        bounds = self._bounds
        limit = bounds.request_bytes if stream.connection.identity else bounds.anonymous_bytes
        try:
            async with asyncio.timeout(bounds.request_seconds):
                return await read_frame(stream, Request, limit)
        except TimeoutError:
            self._fail(stream, "TooSlow", f"the request was not complete within {bounds.request_seconds:g} s")
            return None

    async def _answer(self, stream: Stream) -> AsyncIterator[msgspec.Struct] | None:
        """Answer once; or return what is to be followed."""
        connection = stream.connection
        request = await self._request(stream)
        if request is None:
            return None
        method = self._methods.get(request.method)
        if request.version != VERSION or len(request.id) != ID_BYTES:
            self._fail(stream, "BadVersion", f"calls of version {VERSION} with an id of {ID_BYTES} bytes are taken")
            return None
        if method is None or connection.alpn not in method.alpns:
            known = ", ".join(sorted(n for n, m in self._methods.items() if connection.alpn in m.alpns))
            self._fail(stream, "UnknownMethod", f"{request.method[:80]!r} is not served here; these are: {known}")
            return None
        caller = Caller(connection.identity, connection.alpn, str(connection.peer), request.id, request.time)
        if method.permit is not None:
            await method.permit(caller)
        body = decode(request.body, method.body, "the request's body")
        if method.call is not None:
            await self._send(stream, await method.call(caller, body))
        return method.follow(caller, body) if method.follow is not None else None

    async def _send(self, stream: Stream, value: msgspec.Struct) -> None:
        write_frame(stream, Answer(msgspec.Raw(msgspec.msgpack.encode(value))))
        async with asyncio.timeout(self._bounds.answer_seconds):
            await stream.drain()

    async def _follow(self, stream: Stream, answers: AsyncIterator[msgspec.Struct]) -> None:
        """Send answers until there are no more, or nobody who takes them."""

        async def send() -> None:
            async with aclosing(cast(AsyncGenerator[msgspec.Struct, None], answers)) as each:
                async for value in each:
                    await self._send(stream, value)

        left = asyncio.ensure_future(stream.connection.wait_closed())
        sending = asyncio.ensure_future(send())
        try:
            while not left.done() and not sending.done() and stream.sender.error is None:
                await asyncio.wait({left, sending}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (left, sending):
                task.cancel()
            await asyncio.gather(left, sending, return_exceptions=True)


@contextmanager
def _counted(counter: Counter[bytes | str], limits: dict[bytes | str, int], what: str) -> Iterator[None]:
    """One more, of each of these. Raises _Busy."""
    for who, limit in limits.items():
        if counter[who] >= limit:
            whose = "in all" if who == ALL else "without a certificate" if who == ANONYMOUS else "of one caller"
            raise _Busy(f"{limit} {what} {whose}, and not more are served: try again later")
    for who in limits:
        counter[who] += 1
    try:
        yield
    finally:
        for who in limits:
            counter[who] -= 1
            if not counter[who]:
                del counter[who]


def merged(tables: Iterable[dict[str, Method]]) -> dict[str, Method]:
    """Several tables in one; a method stands in one of them only."""
    methods: dict[str, Method] = {}
    for table in tables:
        for name, method in table.items():
            assert name not in methods, f"two methods {name}"
            methods[name] = method
    return methods

"""An HTTP proxy before a real S3 that makes it fail: seeded, on ::1, in a thread of its own.

       client ──▶ FaultyS3 ──(fault before?)──▶ server ──(fault after?)──▶ FaultyS3 ──▶ client

What can go wrong is a `Fault`; when, a `Plan`: first a script (the n-th request that matches meets the n-th fault),
then rates, drawn once a matching request from one seeded generator. `counts` says what happened, so that a test can
prove that its faults were met. One request a connection: each one is forwarded on a connection of its own and closed.

Stale reads answer what a key held before its newest version, as seen passing by, "nothing" included. Apart from that
`Conditions` makes a server of those that must not hold a log's head: one which ignores conditions, and one which checks
them and then writes. Conditional writes are signed, so these two write with credentials of their own.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from control.ctlog.s3 import S3Options

MAX_HEADER_BYTES = 64 << 10
MAX_BODY_BYTES = 80 << 20
MAX_VERSIONS = 4  # remembered of a key
MAX_KEYS = 256
MAX_REMEMBERED_BYTES = 1 << 20  # larger objects never go stale
CHECK_THEN_WRITE_S = 0.002  # between check and write of CHECK_FIRST


class Fault(Enum):
    """What happens to one request."""

    NONE = auto()
    ERROR_500 = auto()  # and the server never sees it
    ERROR_503 = auto()
    ERROR_500_AFTER = auto()  # the server did it
    HANG_BEFORE = auto()  # no answer until the client gives up; the server never sees it
    HANG_AFTER = auto()  # the server did it
    RESET_BEFORE = auto()
    RESET_AFTER = auto()
    TRUNCATE = auto()  # half of the answer, then the connection ends
    STALE = auto()  # GET: an older version; other requests pass
    FLIP = auto()  # GET: one bit of the object is another; other requests pass


class Conditions(Enum):
    """How If-Match and If-None-Match of a PUT are taken."""

    HONOURED = auto()  # by the server behind
    IGNORED = auto()
    CHECKED_FIRST = auto()  # and the write comes a moment later


@dataclass(frozen=True)
class Plan:
    """Which requests meet which faults. `methods` empty is all; `path` is searched in the unquoted path."""

    script: tuple[Fault, ...] = ()
    rates: Mapping[Fault, float] = field(default_factory=dict)
    seed: int = 0
    methods: frozenset[str] = frozenset()
    path: str = ""


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    head: bytes  # as it is forwarded
    headers: Mapping[str, str]
    body: bytes


class _Cut(Exception):
    """The client went away or does not speak HTTP."""


class FaultyS3:
    """A context manager; `endpoint` instead of the server's while it is open. Attributes may be read at any time."""

    def __init__(
        self, options: S3Options, plan: Plan | None = None, conditions: Conditions = Conditions.HONOURED
    ) -> None:
        """Before the server of `options`."""
        url = urlsplit(options.endpoint)
        self._server = (url.hostname or "", url.port or 80)
        self._options = options
        self._conditions = conditions
        self._lock = threading.Lock()
        self._history: OrderedDict[str, list[tuple[bytes, str] | None]] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-s3")
        self._client: Any = None
        self.counts: Counter[Fault] = Counter()
        self.endpoint = ""
        self.set(plan or Plan())

    def set(self, plan: Plan) -> None:
        """From now on."""
        with self._lock:
            self._plan = plan
            self._script = list(plan.script)
            self._random = random.Random(plan.seed)

    def options(self, **changes: Any) -> S3Options:
        """The server's, through this proxy."""
        values = {name: getattr(self._options, name) for name in S3Options.__slots__}
        return S3Options(**{**values, "endpoint": self.endpoint, **changes})

    def __enter__(self) -> FaultyS3:
        if self._conditions is not Conditions.HONOURED:
            boto3: Any = __import__("boto3")
            self._client = boto3.session.Session().client(
                "s3",
                endpoint_url=self._options.endpoint,
                region_name=self._options.region,
                aws_access_key_id=self._options.access_key,
                aws_secret_access_key=self._options.secret_key,
            )
        self._thread.start()
        future = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "::1", 0), self._loop)
        self._listener = future.result(10)
        self.endpoint = f"http://[::1]:{self._listener.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        if self._client is not None:
            self._client.close()

    async def _stop(self) -> None:
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = await self._read_request(reader, writer)
            await self._answer(request, reader, writer)
        except (_Cut, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request:
        raw = await reader.readuntil(b"\r\n\r\n")
        if len(raw) > MAX_HEADER_BYTES:
            raise _Cut
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        kept = [line for line in lines if line.partition(":")[0].lower() not in ("connection", "expect")]
        head = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1")
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY_BYTES or "transfer-encoding" in headers:
            raise _Cut
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(length)
        return _Request(method, unquote(path.partition("?")[0]), head, headers, body)

    def _draw(self, request: _Request) -> Fault:
        with self._lock:
            plan = self._plan
            if (plan.methods and request.method not in plan.methods) or not re.search(plan.path, request.path):
                return Fault.NONE
            if self._script:
                return self._script.pop(0)
            dice = self._random.random()
        for fault, rate in plan.rates.items():
            dice -= rate
            if dice < 0:
                return fault
        return Fault.NONE

    async def _answer(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._draw(request)
        stale = self._older(request) if fault is Fault.STALE else b""
        if fault in (Fault.STALE, Fault.FLIP) and (request.method != "GET" or (fault is Fault.STALE and not stale)):
            fault = Fault.NONE
        with self._lock:
            self.counts[fault] += 1
        if fault is Fault.HANG_BEFORE:
            await reader.read()
            return
        if fault is Fault.RESET_BEFORE:
            _reset(writer)
            return
        if fault in (Fault.ERROR_500, Fault.ERROR_503):
            answer = _error(500, "InternalError") if fault is Fault.ERROR_500 else _error(503, "SlowDown")
        elif fault is Fault.STALE:
            answer = stale
        else:
            answer = await self._forward(request)
            self._remember(request, answer)
        if fault is Fault.HANG_AFTER:
            await reader.read()
            return
        if fault is Fault.RESET_AFTER:
            _reset(writer)
            return
        if fault is Fault.ERROR_500_AFTER:
            answer = _error(500, "InternalError")
        elif fault is Fault.TRUNCATE:
            answer = answer[: len(answer) // 2]
        elif fault is Fault.FLIP:
            answer = self._flipped(answer)
        writer.write(answer)
        await writer.drain()

    async def _forward(self, request: _Request) -> bytes:
        conditional = "if-match" in request.headers or "if-none-match" in request.headers
        if self._client is not None and request.method == "PUT" and conditional:
            return await self._put_badly(request)
        reader, writer = await asyncio.open_connection(*self._server, limit=MAX_BODY_BYTES)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def _put_badly(self, request: _Request) -> bytes:
        _, bucket, key = request.path.split("/", 2)
        if self._conditions is Conditions.CHECKED_FIRST:
            etag = await asyncio.to_thread(self._etag, bucket, key)
            wanted = request.headers.get("if-match")
            if (wanted is None and etag) or (wanted is not None and wanted != etag):
                return _error(412, "PreconditionFailed")
            await asyncio.sleep(CHECK_THEN_WRITE_S)
        answer = await asyncio.to_thread(self._client.put_object, Bucket=bucket, Key=key, Body=request.body)
        return _whole(f"200 OK\r\nETag: {answer['ETag']}", b"")

    def _etag(self, bucket: str, key: str) -> str:
        try:
            return str(self._client.head_object(Bucket=bucket, Key=key)["ETag"])
        except self._client.exceptions.ClientError:
            return ""

    def _remember(self, request: _Request, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if request.method == "PUT":
            body = request.body
        found = re.search(rb"\r\netag: *(\S+)", head, re.IGNORECASE)
        if b" 200 " not in head[:16] or request.method not in ("GET", "PUT") or found is None:
            return
        if len(body) > MAX_REMEMBERED_BYTES:
            return
        version = (body, found[1].decode("latin-1"))
        with self._lock:
            versions = self._history.setdefault(request.path, [None] if request.method == "PUT" else [])
            self._history.move_to_end(request.path)
            if version not in versions:
                versions.append(version)
                del versions[:-MAX_VERSIONS]
            if len(self._history) > MAX_KEYS:
                self._history.popitem(last=False)

    def _older(self, request: _Request) -> bytes:
        with self._lock:
            versions = self._history.get(request.path, [])[:-1]
            if not versions:
                return b""
            version = self._random.choice(versions)
        if version is None:
            return _error(404, "NoSuchKey")
        return _whole(f"200 OK\r\nETag: {version[1]}", version[0])

    def _flipped(self, answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n")
        if not body:
            return answer
        altered = bytearray(body)
        with self._lock:
            bit = self._random.randrange(8 * len(body))
        altered[bit // 8] ^= 1 << (bit % 8)
        return head + b"\r\n\r\n" + altered


def _whole(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body


def _error(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
    return _whole(f"{status} Made\r\nContent-Type: application/xml", body)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

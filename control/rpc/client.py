"""Makes calls on a connection."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import msgspec

from control.rpc.errors import CallFailed, RpcError, StreamEnded
from control.rpc.frames import decode, read_frame, write_frame
from control.rpc.messages import ID_BYTES, Answer, Failure, Request
from dataplane import Connection, StoqError, Stream

CALL_SECONDS = 30.0

S = TypeVar("S", bound=msgspec.Struct)


class RpcClient:
    """Calls the other side of `connection`. `errors`: its failures by kind, to be raised as these classes; others are
    raised as CallFailed."""

    def __init__(
        self,
        connection: Connection,
        errors: Mapping[str, type[StoqError]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._errors = errors or {}
        self._clock = clock

    def _request(self, stream: Stream, method: str, body: msgspec.Struct, request_id: bytes | None) -> None:
        raw = msgspec.Raw(msgspec.msgpack.encode(body))
        write_frame(stream, Request(method, request_id or os.urandom(ID_BYTES), self._clock(), raw))
        stream.write_eof()

    def _open(self, answer: Answer | Failure, kind: type[S]) -> S:
        if isinstance(answer, Failure):
            known = self._errors.get(answer.kind)
            raise known(answer.text) if known is not None else CallFailed(answer.kind, answer.text)
        return decode(answer.body, kind, "the peer's answer")

    async def call(
        self, method: str, body: msgspec.Struct, kind: type[S], *, timeout: float = CALL_SECONDS,
        request_id: bytes | None = None,
    ) -> S:  # fmt: skip
        """One answer. Raises what the peer failed with, RpcError, or the connection's own error."""
        try:
            async with asyncio.timeout(timeout), await self._connection.open_stream() as stream:
                self._request(stream, method, body, request_id)
                return self._open(await read_frame(stream, Answer | Failure), kind)  # type: ignore[arg-type]
        except TimeoutError:
            raise RpcError(f"{self._connection.peer} did not answer {method} within {timeout:g} s") from None

    async def follow(self, method: str, body: msgspec.Struct, kind: type[S]) -> AsyncIterator[S]:
        """Answers as they come, until the peer or the connection ends."""
        async with await self._connection.open_stream() as stream:
            self._request(stream, method, body, None)
            while True:
                try:
                    answer = await read_frame(stream, Answer | Failure)  # type: ignore[arg-type]
                except StreamEnded:
                    return
                yield self._open(answer, kind)

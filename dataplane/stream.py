"""A QUIC stream for asyncio: bytes in order, each way ended on its own."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from dataplane.errors import StreamError
from dataplane.receive import ReadView, ReceiveHalf
from dataplane.send import SendHalf, WriteView
from dataplane.tables import Command

if TYPE_CHECKING:
    from dataplane.connection import Connection

READ_BYTES = 65536  # One chunk: what read() and iteration give at most, unless asked otherwise.
CODE_NO_LONGER_WANTED = 0  # STOP_SENDING when a stream is left before its end.
CODE_ABORTED = 1  # RESET_STREAM and STOP_SENDING when a stream is left by an exception.


class Stream:
    """One stream. As an asynchronous context manager it ends cleanly: leaving the block sends FIN and asks
    the peer to stop if it has not finished; leaving it by an exception resets both ways.

    All methods raise StreamReset, StreamStopped or ConnectionClosed when that is what happened. Any wait may
    be cancelled without losing bytes.
    """

    __slots__ = ("_connection", "_receive", "_send", "id")

    def __init__(self, connection: Connection, stream_id: int, *, local: bool) -> None:
        unidirectional = bool(stream_id & 2)
        self.id = stream_id
        self._connection = connection
        self._send = SendHalf(connection, stream_id) if local or not unidirectional else None
        self._receive = (
            ReceiveHalf(connection.port, connection.handle, stream_id)
            if not local or not unidirectional
            else None
        )

    def __repr__(self) -> str:
        return f"<Stream {self.id} of {self._connection.peer}>"

    @property
    def connection(self) -> Connection:
        """The connection it belongs to."""
        return self._connection

    @property
    def can_read(self) -> bool:
        """Has it a receiving half?"""
        return self._receive is not None

    @property
    def can_write(self) -> bool:
        """Has it a sending half?"""
        return self._send is not None

    @property
    def at_eof(self) -> bool:
        """Everything was read and the peer has finished."""
        return self._receive is None or self._receive.at_eof

    @property
    def finished(self) -> bool:
        """Both halves are done: the stream may be forgotten."""
        return (self._receive is None or self._receive.finished) and (
            self._send is None or self._send.finished
        )

    @property
    def receiver(self) -> ReceiveHalf:
        """The receiving half; raises StreamError for a stream we only send on."""
        if self._receive is None:
            raise StreamError(f"stream {self.id} is unidirectional: it can only be written")
        return self._receive

    @property
    def sender(self) -> SendHalf:
        """The sending half; raises StreamError for a stream we only receive on."""
        if self._send is None:
            raise StreamError(f"stream {self.id} is unidirectional: it can only be read")
        return self._send

    # ---- reading ----

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Up to `limit` bytes as soon as there are any; empty at the end."""
        return await self.receiver.read(limit)

    async def readexactly(self, count: int) -> bytes:
        """Exactly `count` bytes; IncompleteRead (with what came) when the stream ends before."""
        return await self.receiver.readexactly(count)

    async def read_all(self, limit: int = 1 << 20) -> bytes:
        """Everything to the end; StreamError beyond `limit` bytes, so that a peer cannot fill our memory."""
        return await self.receiver.read_all(limit)

    def read_view(self) -> ReadView:
        """``async with stream.read_view() as view``: the next bytes without a copy; empty at the end."""
        return ReadView(self.receiver)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; follow with `await drain()` to respect back-pressure."""
        self.sender.write(data)

    async def drain(self) -> None:
        """Wait until the bytes written are, but for a little, with the worker: bounded by what the peer
        acknowledges."""
        await self.sender.drain()

    def write_view(self) -> WriteView:
        """``async with stream.write_view() as view``: fill a chunk in place, without a copy."""
        return WriteView(self.sender)

    def write_eof(self) -> None:
        """End our half (FIN)."""
        self.sender.write_eof()

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes written that the peer has acknowledged."""
        return self.sender.acknowledged

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged all that was written, and FIN after write_eof()."""
        await self.sender.wait_acknowledged()

    # ---- giving up ----

    def reset(self, code: int = CODE_ABORTED) -> None:
        """Give up sending (RESET_STREAM): what was not yet sent is dropped. Nothing happens when all was
        acknowledged."""
        sender = self.sender
        if sender.finished or self._connection.closed:
            return
        self._connection.ensure_opened(self.id)
        self._connection.port.put(Command.STREAM_RESET, self._connection.handle, self.id, code=code)
        sender.on_error(StreamError(f"we reset the stream with code {code:#x}"))
        sender.finished = True
        self._connection.forget_finished(self)

    def stop(self, code: int = CODE_NO_LONGER_WANTED) -> None:
        """Ask the peer to stop sending (STOP_SENDING); what has arrived is dropped."""
        receiver = self.receiver
        if receiver.error is None:
            if not receiver.finished and not self._connection.closed:
                self._connection.ensure_opened(self.id)
                self._connection.port.put(Command.STREAM_STOP, self._connection.handle, self.id, code=code)
            receiver.on_error(StreamError(f"we asked the peer to stop with code {code:#x}"), keep_data=False)
            self._connection.forget_finished(self)
        receiver.discard()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._send is not None and self._send.error is None:
            if kind is not None:
                self.reset(CODE_ABORTED)
            else:
                self._send.write_eof()
        if self._receive is not None and not self._receive.at_eof:
            self.stop(CODE_NO_LONGER_WANTED if kind is None else CODE_ABORTED)

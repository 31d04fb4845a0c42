"""A stream's receiving half: segments in the worker's chunks, read by copy or by view.

      STREAM_DATA event ──▶ segments (views into chunks) ──read_view──▶ reader ──▶ STREAM_CONSUMED
                                    └──read, readexactly──▶ carry (bytes copied) ──▶ reader

STREAM_CONSUMED gives the peer credit and the worker its chunk.

Bytes leave the buffer only when they are handed to the reader, so a cancelled read loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from dataplane.errors import IncompleteRead, StoqError, StreamError
from dataplane.port import NO_CHUNK, Port
from dataplane.tables import Command


class Segment:
    """Bytes the worker delivered, in its chunk; `start` counts what the reader has had of them."""

    __slots__ = ("chunk", "size", "start", "view")

    def __init__(self, view: memoryview, chunk: int) -> None:
        self.view = view
        self.chunk = chunk
        self.size = len(view)
        self.start = 0


class ReceiveHalf:
    """The state; `Stream` is its face."""

    __slots__ = (
        "_carry",
        "_conn",
        "_port",
        "_segments",
        "_stream",
        "_viewed",
        "_waiter",
        "error",
        "fin",
        "finished",
    )

    def __init__(self, port: Port, conn: int, stream: int) -> None:
        self._port = port
        self._conn = conn
        self._stream = stream
        self._segments: deque[Segment] = deque()
        self._carry = bytearray()
        self._viewed = False
        self._waiter: asyncio.Future[None] | None = None
        self.fin = False  # The peer's last byte has arrived.
        self.finished = False  # No event for this half can come any more.
        self.error: StoqError | None = None

    # ---- from the worker ----

    def on_data(self, chunk: int, offset: int, length: int, fin: bool) -> None:
        """A STREAM_DATA event."""
        if length and chunk != NO_CHUNK:
            segment = Segment(self._port.received_view(chunk, offset, length), chunk)
            if self.error is None:
                self._segments.append(segment)
            else:
                self._give_back(segment)
        else:
            self._port.release(chunk)
        if fin:
            self.fin = self.finished = True
        self._wake()

    def on_error(self, error: StoqError, *, keep_data: bool) -> None:
        """The peer reset the stream, or the connection is over. What was complete stays readable with
        `keep_data`."""
        self.finished = True
        if self.error is None and not (keep_data and self.fin):
            self.error = error
        if not keep_data:
            self.discard()
        self._wake()

    def discard(self) -> None:
        """Give back everything unread."""
        while self._segments and not self._viewed:
            self._give_back(self._segments.popleft())
        self._carry.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_back(self, segment: Segment) -> None:
        if not self._port.closed:
            self._port.put(
                Command.STREAM_CONSUMED, self._conn, self._stream, chunk=segment.chunk, value=segment.size
            )

    # ---- for the reader ----

    @property
    def at_eof(self) -> bool:
        """Everything was read and the peer has finished."""
        return self.fin and not self._segments and not self._carry

    async def _more(self) -> bool:
        """Wait for a segment; False at the end. Raises the stream's error when what came before it has been
        read."""
        while not self._segments:
            if self.fin:
                return False
            if self.error is not None:
                raise self.error.again()
            if self._waiter is not None:
                raise StreamError("two tasks read one stream at the same time")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._viewed:
            raise StreamError("a view of this stream is still open")
        return True

    def _take(self, limit: int) -> bytes:
        segment = self._segments[0]
        part = bytes(segment.view[segment.start : segment.start + limit])
        segment.start += len(part)
        if segment.start == segment.size:
            self._give_back(self._segments.popleft())
        return part

    def _take_carry(self, limit: int) -> bytes:
        part = bytes(self._carry[:limit])
        del self._carry[:limit]
        return part

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, at least one; empty at the end."""
        if limit <= 0:
            return b""
        if self._carry:
            return self._take_carry(limit)
        return self._take(limit) if await self._more() else b""

    async def readexactly(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises IncompleteRead when the stream ends before."""
        carry = self._carry
        while len(carry) < count:
            if not await self._more():
                raise IncompleteRead(self._take_carry(len(carry)), count)
            # Credit is given as the bytes are copied here: `count` may be larger than the window.
            carry += self._take(count - len(carry))
        return self._take_carry(count)

    async def read_all(self, limit: int) -> bytes:
        """Everything to the end. Raises StreamError when that is more than `limit` bytes."""
        carry = self._carry
        while await self._more():
            carry += self._take(limit + 1 - len(carry))
            if len(carry) > limit:
                raise StreamError(f"the stream carries more than {limit} bytes")
        return self._take_carry(len(carry))


class ReadView:
    """``async with stream.read_view() as view``: the next bytes, where the worker put them, as a read-only
    memoryview.

    The view is empty at the end of the stream. It is valid inside the block only: leaving it gives the chunk
    back to the worker, which will reuse it, so neither the view nor a slice of it may be kept.
    """

    __slots__ = ("_half", "_view")

    def __init__(self, half: ReceiveHalf) -> None:
        self._half = half
        self._view = memoryview(b"")

    async def __aenter__(self) -> memoryview:
        half = self._half
        if half._carry:
            self._view = memoryview(half._take_carry(len(half._carry)))
        elif await half._more():
            segment = half._segments[0]
            self._view = segment.view[segment.start :]
            half._viewed = True
        return self._view

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        half = self._half
        self._view.release()
        if half._viewed:
            half._viewed = False
            half._give_back(half._segments.popleft())
            if half.error is not None and not half.fin:
                half.discard()

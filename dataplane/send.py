"""A stream's sending half: bytes written, chunks handed to the worker, bytes the peer has acknowledged.

      write() ──▶ queue ──pump(), once a loop turn──▶ chunks (STREAM_SEND) ──▶ worker ──▶ peer
                                                        ◀── STREAM_ACKED, and the chunk comes back

Small writes of one turn of the event loop share a chunk. What is handed over and not acknowledged is bounded
by `Config.stream_send_bytes` and by the free chunks; what is queued beyond, by drain().
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from dataplane.errors import StoqError, StreamError
from dataplane.port import LARGE_CHUNK_BYTES, NO_CHUNK, SMALL_CHUNK_BYTES, ffi, lib
from dataplane.tables import Command

if TYPE_CHECKING:
    from dataplane.connection import Connection

QUEUE_BYTES = (
    256 << 10
)  # drain() returns at or below this: four trains wait while the next are being written.
RESERVE_BYTES = (
    64 << 10
)  # Chunks left free for handshakes, closes and datagrams when streams take all they can.
VIEWS_PER_TURN = 8  # Half a megabyte between two looks at events: under 100 us of filling.
FIN: int = lib.STOQ_FIN


class SendHalf:
    """The state; `Stream` is its face."""

    __slots__ = (
        "_acked", "_connection", "_eof", "_eof_handed", "_handed", "_queue", "_queued", "_stream", "_waiters",
        "error", "finished", "views",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._handed = 0
        self._acked = 0
        self._eof = False
        self._eof_handed = False
        self._waiters: list[asyncio.Future[None]] = []
        self.error: StoqError | None = None
        self.views = 0  # Chunks handed over by write_view().
        self.finished = False  # Everything with FIN is acknowledged, or the half was reset.

    @property
    def eof_written(self) -> bool:
        """write_eof() was called."""
        return self._eof

    @property
    def acknowledged(self) -> int:
        """Bytes the peer has acknowledged."""
        return self._acked

    # ---- from the worker ----

    def on_acked(self, total: int, fin: bool) -> None:
        """A STREAM_ACKED event."""
        self._acked = max(self._acked, total)
        if fin:
            self.finished = True
        if self._queue or (self._eof and not self._eof_handed):
            self.pump()
        self._wake()

    def on_error(self, error: StoqError) -> None:
        """The peer wants no more, we reset, or the connection is over: writers are told, what is queued is
        dropped."""
        if self.error is None and not self.finished:
            self.error = error
        self._queue.clear()
        self._queued = 0
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    # ---- for the writer ----

    def _writable(self) -> None:
        if self.error is not None:
            raise self.error.again()
        if self._eof:
            raise StreamError("the stream was already ended with write_eof()")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes. A `bytes` object is not copied until it goes into a chunk; anything else is."""
        self._writable()
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        if view:
            self._queue.append(view)
            self._queued += len(view)
            self._connection.schedule(self)

    def write_eof(self) -> None:
        """Nothing more will be written."""
        if not self._eof:
            self._writable()
            self._eof = True
            self._connection.schedule(self)

    async def drain(self) -> None:
        """Wait until little is queued. Raises the stream's error."""
        while self.error is None and self._queued > QUEUE_BYTES:
            await self._wait()
        if self.error is not None:
            raise self.error.again()

    async def wait_acknowledged(self) -> None:
        """Wait until the peer has acknowledged everything written, and FIN if it was. Raises the stream's
        error."""
        while self.error is None and not self.finished:
            if not self._eof and not self._queued and self._acked >= self._handed:
                return
            await self._wait()
        if self.error is not None and not self.finished:
            raise self.error.again()

    def pump(self) -> None:
        """Move what is queued into chunks, as far as the limits allow; else stay on the connection's list of
        the starved."""
        connection, port = self._connection, self._connection.port
        limit = connection.config.stream_send_bytes
        while self._queue and self.error is None:
            room = limit - (self._handed - self._acked)
            if room <= 0:
                return  # The next STREAM_ACKED pumps again.
            if lib.stoq_send_free_bytes(port.handle, port.worker) <= RESERVE_BYTES:
                connection.starve(self)
                return
            size = LARGE_CHUNK_BYTES if self._queued > SMALL_CHUNK_BYTES else SMALL_CHUNK_BYTES
            chunk = port.alloc(size)
            if chunk == NO_CHUNK:
                size = SMALL_CHUNK_BYTES if size == LARGE_CHUNK_BYTES else LARGE_CHUNK_BYTES
                chunk = port.alloc(size)
            if chunk == NO_CHUNK:
                connection.starve(self)
                return
            filled = self._fill(chunk, min(size, room))
            self.hand_over(chunk, filled, fin=self._eof and not self._queue)
        if self._eof and not self._eof_handed and not self._queue and self.error is None:
            self.hand_over(NO_CHUNK, 0, fin=True)
        if self._queued <= QUEUE_BYTES:
            self._wake()

    def _fill(self, chunk: int, size: int) -> int:
        pointer = self._connection.port.chunk_pointer(chunk)
        filled = 0
        while self._queue and filled < size:
            view = self._queue[0]
            part = view[: size - filled]
            ffi.memmove(pointer + filled, part, len(part))
            filled += len(part)
            if len(part) == len(view):
                self._queue.popleft()
            else:
                self._queue[0] = view[len(part) :]
        self._queued -= filled
        return filled

    def hand_over(self, chunk: int, length: int, *, fin: bool) -> None:
        """Give a filled chunk to the worker."""
        connection = self._connection
        connection.ensure_opened(self._stream)
        connection.port.put(
            Command.STREAM_SEND,
            connection.handle,
            self._stream,
            flags=FIN if fin else 0,
            chunk=chunk,
            length=length,
        )
        self._handed += length
        if fin:
            self._eof_handed = True

    async def room(self) -> int:
        """Wait for an empty queue, room for a large chunk and a free one; returns it. Raises the stream's
        error."""
        connection, port = self._connection, self._connection.port
        while True:
            self._writable()
            unacked = self._handed - self._acked
            if not self._queued and unacked + LARGE_CHUNK_BYTES <= connection.config.stream_send_bytes:
                if lib.stoq_send_free_bytes(port.handle, port.worker) > RESERVE_BYTES:
                    chunk = port.alloc(LARGE_CHUNK_BYTES)
                    if chunk != NO_CHUNK:
                        return chunk
                connection.starve(self)
            await self._wait()


class WriteView:
    """``async with stream.write_view() as view``: a free chunk as a writable memoryview of 64 KiB.

    Fill it from the start and call ``commit(n)``; leaving the block sends these n bytes (none: the chunk is
    returned). The bytes are read from there when packets are built, so they are copied nowhere. Do not use
    the view afterwards.
    """

    __slots__ = ("_chunk", "_half", "_length", "_view")

    def __init__(self, half: SendHalf) -> None:
        self._half = half
        self._chunk = NO_CHUNK
        self._length = 0
        self._view = memoryview(b"")

    @property
    def data(self) -> memoryview:
        """The chunk's bytes."""
        return self._view

    def commit(self, length: int) -> None:
        """The first `length` bytes are to be sent."""
        if not 0 <= length <= len(self._view):
            raise StreamError(f"{length} bytes cannot be committed: the view holds {len(self._view)}")
        self._length = length

    async def __aenter__(self) -> WriteView:
        self._chunk = await self._half.room()
        self._view = self._half._connection.port.chunk_view(self._chunk, LARGE_CHUNK_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        half, chunk = self._half, self._chunk
        self._view.release()
        if kind is not None or not self._length or half.error is not None:
            half._connection.port.free(chunk)
            return
        half.pump()  # What was written while the view was open came first.
        half.hand_over(chunk, self._length, fin=False)
        half.views += 1
        if half.views % VIEWS_PER_TURN == 0:
            # A writer that never waits would keep the loop from its events and the worker from its commands.
            half._connection.port.flush()
            await asyncio.sleep(0)

"""One worker's rings and chunks, seen from the control plane.

    put() ──▶ command ring ──▶ worker          worker ──▶ event ring ──▶ drain() ──▶ the datapath's dispatch
    alloc() ──▶ fill ──▶ put() carries it away; the worker returns it when the bytes are acknowledged

A full command ring or an empty chunk pool never blocks and never loses a command: what does not fit waits in
a backlog, in order, and is tried again on the next events or a few milliseconds later. One thread may use a
port.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from dataplane import _stoq
from dataplane.errors import DatapathError
from dataplane.tables import Command

ffi = _stoq.ffi
lib = _stoq.lib

NO_CHUNK: int = lib.STOQ_NO_CHUNK
SMALL_CHUNK_BYTES: int = lib.STOQ_SMALL_CHUNK_BYTES
LARGE_CHUNK_BYTES: int = lib.STOQ_LARGE_CHUNK_BYTES
EVENTS_AT_ONCE = 256  # 16 KiB of events a call: one crossing into C for many of them.

# struct stoq_command and struct stoq_event; the same layout, 64 bytes, little endian as every machine we run
# on.
_SLOT = struct.Struct("<BBBxIIIQQQQ16x")

_WAY = struct.Struct("<BBBxIII48s")  # The same head, and struct stoq_way behind it.

# type, flags, level, chunk, chunk_offset, len, conn, stream, code, value
EventTuple = tuple[int, int, int, int, int, int, int, int, int, int]


class Port:
    """See the module's text. `on_dirty` is called whenever a command was put, so that the owner kicks the
    worker soon."""

    def __init__(self, handle: Any, worker: int, on_dirty: Callable[[], None]) -> None:
        if ffi.sizeof("struct stoq_command") != _SLOT.size or ffi.sizeof("struct stoq_event") != _SLOT.size:
            raise DatapathError(
                "the compiled module's ring slots differ from dataplane/port.py: rebuild with `make build`"
            )
        self.worker = worker
        self._handle = handle
        self._on_dirty = on_dirty
        self._command = ffi.new("struct stoq_command *")
        self._command_bytes = ffi.buffer(self._command)
        self._events = ffi.new("struct stoq_event[]", EVENTS_AT_ONCE)
        self._event_bytes = ffi.buffer(self._events)
        self._backlog: deque[bytes | tuple[tuple[int, ...], bytes]] = deque()
        self._dirty = False

    @property
    def handle(self) -> Any:
        """The C datapath. Raises DatapathError once it is closed."""
        if self._handle is None:
            raise DatapathError("the datapath is closed")
        return self._handle

    @property
    def closed(self) -> bool:
        """Closed: commands go nowhere."""
        return self._handle is None

    @property
    def backlogged(self) -> bool:
        """Are commands waiting for room in the ring or for a chunk?"""
        return bool(self._backlog)

    def close(self) -> None:
        """Forget the C datapath; commands from now on are dropped."""
        self._handle = None
        self._backlog.clear()

    # ---- commands ----

    def put(
        self,
        kind: Command,
        conn: int = 0,
        stream: int = 0,
        *,
        flags: int = 0,
        level: int = 0,
        chunk: int = NO_CHUNK,
        offset: int = 0,
        length: int = 0,
        code: int = 0,
        value: int = 0,
    ) -> None:
        """Put one command; a chunk named in it is the worker's from here on."""
        slot = _SLOT.pack(kind, flags, level, chunk, offset, length, conn, stream, code, value)
        if self._handle is not None and (self._backlog or not self._push(slot)):
            self._backlog.append(slot)

    def put_way(self, kind: Command, way: bytes, *, flags: int, level: int = 0, mtu: int = 0) -> None:
        """Put a ROUTE or NEIGHBOUR command: `way` is a ``struct stoq_way``, 48 bytes."""
        slot = _WAY.pack(kind, flags, level, NO_CHUNK, mtu, 0, way)
        if self._handle is not None and (self._backlog or not self._push(slot)):
            self._backlog.append(slot)

    def put_bytes(
        self,
        kind: Command,
        data: bytes,
        conn: int = 0,
        *,
        flags: int = 0,
        level: int = 0,
        code: int = 0,
        value: int = 0,
    ) -> None:
        """Put a command with `data` (at most a large chunk) in a chunk."""
        fields = (kind, flags, level, 0, 0, len(data), conn, 0, code, value)
        if self._handle is not None and (self._backlog or not self._push_bytes(fields, data)):
            self._backlog.append((fields, data))
            self._on_dirty()

    def _push(self, slot: bytes) -> bool:
        self._command_bytes[:] = slot
        if not lib.stoq_command(self._handle, self.worker, self._command):
            lib.stoq_kick(self._handle, self.worker)
            self._on_dirty()
            return False
        if not self._dirty:
            self._dirty = True
            self._on_dirty()
        return True

    def _push_bytes(self, fields: tuple[int, ...], data: bytes) -> bool:
        if not data:
            return self._push(_SLOT.pack(*fields[:3], NO_CHUNK, *fields[4:]))
        chunk = self.alloc(SMALL_CHUNK_BYTES if len(data) <= SMALL_CHUNK_BYTES else LARGE_CHUNK_BYTES)
        if chunk == NO_CHUNK:
            return False
        ffi.memmove(self.chunk_pointer(chunk), data, len(data))
        if self._push(_SLOT.pack(*fields[:3], chunk, *fields[4:])):
            return True
        lib.stoq_chunk_free(self._handle, self.worker, chunk)
        return False

    def flush(self) -> None:
        """Put as much of the backlog as fits, then wake the worker if it has something new."""
        if self._handle is None:
            return
        while self._backlog:
            first = self._backlog[0]
            if not (self._push(first) if isinstance(first, bytes) else self._push_bytes(*first)):
                break
            self._backlog.popleft()
        if self._dirty:
            self._dirty = False
            lib.stoq_kick(self._handle, self.worker)

    # ---- chunks ----

    def alloc(self, size: int) -> int:
        """A chunk of SMALL_ or LARGE_CHUNK_BYTES to fill; NO_CHUNK: none is free."""
        return int(lib.stoq_chunk_alloc(self.handle, self.worker, size))

    def free(self, chunk: int) -> None:
        """Give back a chunk that no command carried away."""
        if self._handle is not None:
            lib.stoq_chunk_free(self._handle, self.worker, chunk)

    def chunk_pointer(self, chunk: int) -> Any:
        """The bytes of a chunk of ours."""
        return lib.stoq_send_chunk(self.handle, self.worker, chunk, ffi.NULL)

    def chunk_view(self, chunk: int, size: int) -> memoryview:
        """A writable view of a chunk of ours."""
        return memoryview(ffi.buffer(self.chunk_pointer(chunk), size))

    def received_view(self, chunk: int, offset: int, length: int) -> memoryview:
        """A view of bytes the worker delivered; valid until the chunk is given back."""
        pointer = lib.stoq_receive_chunk(self.handle, self.worker, chunk)
        return memoryview(ffi.buffer(pointer + offset, length)).toreadonly()

    def received_bytes(self, chunk: int, offset: int, length: int) -> bytes:
        """A copy of bytes the worker delivered; the chunk is given back."""
        if chunk == NO_CHUNK:
            return b""
        data = bytes(self.received_view(chunk, offset, length))
        self.release(chunk)
        return data

    def release(self, chunk: int) -> None:
        """Give back a chunk of the worker's."""
        if chunk != NO_CHUNK:
            self.put(Command.CHUNK_RELEASE, chunk=chunk)

    # ---- events ----

    def drain(self, dispatch: Callable[[Port, EventTuple], None], rounds: int) -> bool:
        """Dispatch up to `rounds` * EVENTS_AT_ONCE events; True when there may be more."""
        for _ in range(rounds):
            if self._handle is None:
                return False
            count = lib.stoq_events(self._handle, self.worker, self._events, EVENTS_AT_ONCE)
            # A copy, because dispatching may come back here through a nested call.
            for event in _SLOT.iter_unpack(self._event_bytes[: count * _SLOT.size]):
                dispatch(self, event)
            if count < EVENTS_AT_ONCE:
                return False
        return True

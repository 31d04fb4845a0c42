"""One QUIC connection for asyncio: its handshake's sink, its streams and datagrams, its end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING

from dataplane.address import Address
from dataplane.config import Config, get_address
from dataplane.errors import (
    ConnectionClosed,
    DatagramTooLarge,
    HandshakeFailed,
    StreamError,
    StreamReset,
    StreamStopped,
)
from dataplane.handshake import Aead, Handshake, Level, PeerIdentity
from dataplane.port import LARGE_CHUNK_BYTES, NO_CHUNK, EventTuple, Port, ffi, lib
from dataplane.send import SendHalf
from dataplane.stats import ConnectionStats, PerfResult, from_c
from dataplane.stream import Stream
from dataplane.tables import Command, Event

if TYPE_CHECKING:
    from dataplane.datapath import Datapath

log = logging.getLogger("stoq.connection")

FIN: int = lib.STOQ_FIN
UNI: int = lib.STOQ_UNI
APP: int = lib.STOQ_APP
SEND: int = lib.STOQ_SEND
REASON_BYTES = 256  # QUIC_MAX_REASON_BYTES: what the engine sends at most.
PING_LOOK_SECONDS = 0.005  # After a round trip, before an answer to ping() is looked for.
PING_LOOK_SECONDS_MOST = 0.25
DATAGRAM_QUEUE = 1024  # Received datagrams kept for a slow reader; beyond, the oldest is dropped and counted.


class Connection:
    """Made by a Datapath. As an asynchronous context manager it is closed on leaving the block."""

    def __init__(
        self, datapath: Datapath, port: Port, handle: int, peer: Address, local: Address, *, server: bool
    ) -> None:
        self.port = port
        self.handle = handle
        self.peer = peer
        self.local = local
        self.is_server = server
        self.config: Config = datapath.config
        self.alpn = ""
        self.identity: PeerIdentity | None = None  # None: the peer showed no certificate.
        self.handshake_seconds = 0.0
        self.key_updates = 0
        self.datagrams_dropped = 0
        self.connected = False
        # 0-RTT: None: none was offered or taken (yet); a client's: did the server take it?
        self.early: bool | None = None
        self.early_offered = False  # Client: streams may be opened before the handshake's end.
        self.error: ConnectionClosed | None = None  # Set when the connection is over.
        self.handshake: Handshake | None = None
        self._datapath = datapath
        self._streams: dict[int, Stream] = {}
        self._incoming: deque[Stream] | None = None  # Made at need, as _datagrams: an empty one is 760 bytes.
        self._remote_next = [0, 0]  # Count of the peer's streams that exist: bidirectional, unidirectional.
        self._local_next = [0, 0]  # Count of ours that open_stream gave out.
        self._local_opened = [0, 0]  # Count of ours that the engine has heard of.
        self._local_limit = [0, 0]
        self._datagrams: deque[bytes] | None = None
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._closing = False
        self._stats: ConnectionStats | None = None
        self._perf: PerfResult | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else "handshake"
        return f"<Connection {'from' if self.is_server else 'to'} {self.peer} {self.alpn or '-'} {state}>"

    # ---- waiting: one list of futures for each thing that can happen ----

    async def _wait(self, what: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(what, []).append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters.get(what, ()):
                self._waiters[what].remove(waiter)

    def _wake(self, what: str) -> None:
        for waiter in self._waiters.pop(what, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def _until(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`; raises the connection's error when it ends before."""
        while not ready():
            if self.error is not None:
                raise self.error.again()
            await self._wait(what)

    # ---- HandshakeSink ----

    def crypto(self, level: Level, data: bytes) -> None:
        """See HandshakeSink."""
        for start in range(0, len(data), LARGE_CHUNK_BYTES):
            self.port.put_bytes(
                Command.CRYPTO, data[start : start + LARGE_CHUNK_BYTES], self.handle, level=level
            )

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        """See HandshakeSink."""
        flags = SEND if send else 0
        self.port.put_bytes(Command.SECRET, secret, self.handle, level=level, flags=flags, code=aead)

    def peer_params(self, data: bytes) -> None:
        """See HandshakeSink."""
        self.port.put_bytes(Command.PEER_PARAMS, data, self.handle)

    def early_params(self, data: bytes) -> None:
        """See EarlySink."""
        self.early_offered = True
        self.port.put_bytes(Command.EARLY_PARAMS, data, self.handle)

    def early_answer(self, accepted: bool) -> None:
        """See EarlySink."""
        self.early = accepted
        self.port.put(Command.EARLY_ANSWER, self.handle, code=int(accepted))

    def early_accepted(self, alpn: str, identity: PeerIdentity | None) -> None:
        """See EarlySink."""
        self.alpn, self.identity, self.early = alpn, identity, True
        self._datapath.on_early(self)

    def complete(self, alpn: str, identity: PeerIdentity | None) -> None:
        """See HandshakeSink."""
        self.alpn = alpn
        self.identity = identity
        self.port.put_bytes(Command.HANDSHAKE_COMPLETE, alpn.encode("ascii"), self.handle)

    def fail(self, code: int, reason: str) -> None:
        """See HandshakeSink."""
        self._put_close(code, reason, application=False)

    # ---- events ----

    def on_event(self, event: EventTuple) -> None:
        """One event of this connection, except CONNECTION."""
        kind, flags, level, chunk, offset, length, _, stream_id, code, value = event
        if kind == Event.STREAM_DATA:
            stream = self._stream(stream_id)
            if stream is None or not stream.can_read:
                # We have given it up: the connection's credit goes back to the peer all the same.
                self.port.put(Command.STREAM_CONSUMED, self.handle, stream_id, chunk=chunk, value=length)
                return
            stream.receiver.on_data(chunk, offset, length, bool(flags & FIN))
            if flags & FIN:
                self.forget_finished(stream)
        elif kind == Event.STREAM_ACKED:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.sender.on_acked(value, bool(flags & FIN))
                if flags & FIN:
                    self.forget_finished(stream)
        elif kind == Event.CRYPTO:
            data = self.port.received_bytes(chunk, offset, length)
            if self.handshake is not None:
                self.handshake.receive(Level(level), data)
        elif kind == Event.STREAM_RESET:
            stream = self._stream(stream_id)
            if stream is not None and stream.can_read:
                stream.receiver.on_error(StreamReset(code), keep_data=False)
                self.forget_finished(stream)
        elif kind == Event.STREAM_STOP:
            self._on_stop(stream_id, code)
        elif kind == Event.STREAMS_AVAILABLE:
            kind_index = 1 if flags & UNI else 0
            self._local_limit[kind_index] = max(self._local_limit[kind_index], value)
            self._wake("streams")
            self._wake("credit")
        elif kind == Event.DATAGRAM:
            self._on_datagram(self.port.received_bytes(chunk, offset, length))
        else:
            self._on_rare_event(kind, chunk, offset, length, value)

    def _on_rare_event(self, kind: int, chunk: int, offset: int, length: int, value: int) -> None:
        data = self.port.received_bytes(chunk, offset, length)
        if kind == Event.CONNECTED:
            self.connected = True
            self.handshake_seconds = value / 1e9
            self._wake("connected")
            self._datapath.on_connected(self)
        elif kind == Event.KEY_UPDATED:
            self.key_updates = value
            self._wake("key_update")
        elif kind == Event.PATH and length >= ffi.sizeof("struct stoq_path"):
            path = ffi.from_buffer("struct stoq_path *", data)
            self.peer, self.local = get_address(path.peer), get_address(path.local)
        elif kind == Event.STATS and length >= ffi.sizeof("struct stoq_connection_stats"):
            source = ffi.from_buffer("struct stoq_connection_stats *", data)
            self._stats = from_c(ConnectionStats, source)
            self._wake("stats")
        elif kind == Event.PERF_DONE and length >= ffi.sizeof("struct stoq_perf_result"):
            self._perf = from_c(PerfResult, ffi.from_buffer("struct stoq_perf_result *", data))
            self._wake("perf")

    def _stream(self, stream_id: int) -> Stream | None:
        """The stream of an event. A peer's stream begins to exist with its first event, and all before it
        with it (RFC 9000 section 2.1); None for one that is over."""
        stream = self._streams.get(stream_id)
        if stream is not None or (stream_id & 1) != (0 if self.is_server else 1):
            return stream
        kind = (stream_id >> 1) & 1
        while self._remote_next[kind] <= stream_id >> 2:
            new_id = (self._remote_next[kind] << 2) | (stream_id & 3)
            stream = Stream(self, new_id, local=False)
            self._streams[new_id] = stream
            if self._incoming is None:
                self._incoming = deque()
            self._incoming.append(stream)
            self._remote_next[kind] += 1
            self._wake("incoming")
        return stream

    def _on_stop(self, stream_id: int, code: int) -> None:
        stream = self._stream(stream_id)
        if stream is None or not stream.can_write:
            return
        sender = stream.sender
        if not sender.finished:
            # The engine has answered with RESET_STREAM already (RFC 9000 section 3.5).
            sender.on_error(StreamStopped(code))
            sender.finished = True
            self.forget_finished(stream)

    def _on_datagram(self, data: bytes) -> None:
        if self._datagrams is None:
            self._datagrams = deque()
        if len(self._datagrams) >= DATAGRAM_QUEUE:
            self._datagrams.popleft()
            self.datagrams_dropped += 1
        self._datagrams.append(data)
        self._wake("datagram")

    def on_closed(self, error: ConnectionClosed) -> None:
        """The CLOSED event, or the datapath's end."""
        if self.error is not None:
            return
        self.error = error
        if self.handshake is not None:
            self.handshake.end()
            self.handshake = None
        for stream in list(self._streams.values()):
            if stream.can_read:
                stream.receiver.on_error(error, keep_data=True)
            if stream.can_write:
                stream.sender.on_error(error)
        self._streams.clear()
        for what in list(self._waiters):
            self._wake(what)

    # ---- for Stream and SendHalf ----

    def schedule(self, sender: SendHalf) -> None:
        """Let `sender` pump at the end of this turn of the loop."""
        self._datapath.schedule(sender)

    def starve(self, sender: SendHalf) -> None:
        """`sender` waits for a chunk."""
        self._datapath.starve(self.port, sender)

    def ensure_opened(self, stream_id: int) -> None:
        """Ids must reach the engine in order: open those of ours that came before and were not yet used."""
        if (stream_id & 1) != (1 if self.is_server else 0):
            return
        kind, index = (stream_id >> 1) & 1, stream_id >> 2
        while self._local_opened[kind] < index:
            earlier = (self._local_opened[kind] << 2) | (stream_id & 3)
            self._local_opened[kind] += 1
            self.port.put(Command.STREAM_SEND, self.handle, earlier, chunk=NO_CHUNK)
        self._local_opened[kind] = max(self._local_opened[kind], index + 1)

    def forget_finished(self, stream: Stream) -> None:
        """Drop a stream from the table when neither half can have events any more."""
        if stream.finished:
            self._streams.pop(stream.id, None)
            self._wake("finished")

    # ---- streams ----

    @property
    def streams_available(self) -> int:
        """Bidirectional streams that can be opened now without waiting."""
        return self._local_limit[0] - self._local_next[0]

    def streams_openable(self, *, unidirectional: bool) -> int:
        """Streams of one kind that can be opened now without waiting."""
        return self._local_limit[unidirectional] - self._local_next[unidirectional]

    async def wait_streams_permitted(self) -> None:
        """Wait until the peer permits more streams, of either kind, than now. Raises ConnectionClosed."""
        if self.error is not None:
            raise self.error.again()
        await self._next("credit")

    async def wait_streams_finished(self) -> None:
        """Wait until every stream we opened is done: what was written is acknowledged, what comes has come or
        is no longer wanted. Returns at the connection's end too."""
        ours = int(self.is_server)
        while self.error is None and any(stream_id & 1 == ours for stream_id in self._streams):
            await self._wait("finished")

    async def open_stream(self, *, unidirectional: bool = False) -> Stream:
        """A new stream; waits while the peer permits no more."""
        kind = int(unidirectional)
        await self._until("streams", lambda: self._local_next[kind] < self._local_limit[kind])
        if self.error is not None:
            raise self.error.again()
        stream_id = (self._local_next[kind] << 2) | (kind << 1) | int(self.is_server)
        self._local_next[kind] += 1
        stream = Stream(self, stream_id, local=True)
        self._streams[stream_id] = stream
        if self.streams_available > 0:
            self._wake("streams")
        return stream

    async def accept_stream(self) -> Stream:
        """The next stream the peer opened."""
        await self._until("incoming", lambda: bool(self._incoming))
        assert self._incoming is not None
        return self._incoming.popleft()

    async def accept_streams(self) -> AsyncIterator[Stream]:
        """Streams as the peer opens them, until the connection is closed; an unclean end raises."""
        while True:
            try:
                stream = await self.accept_stream()
            except ConnectionClosed as closed:
                if closed.clean:
                    return
                raise
            yield stream

    # ---- datagrams, RFC 9221 ----

    def send_datagram(self, data: bytes) -> None:
        """Queue one datagram; it is not sent again when lost. Raises DatagramTooLarge beyond a chunk."""
        if self.error is not None:
            raise self.error.again()
        if len(data) > LARGE_CHUNK_BYTES:
            raise DatagramTooLarge(f"a datagram of {len(data)} bytes; {LARGE_CHUNK_BYTES} is the most")
        self.port.put_bytes(Command.DATAGRAM, data, self.handle)

    async def receive_datagram(self) -> bytes:
        """The next datagram."""
        await self._until("datagram", lambda: bool(self._datagrams))
        assert self._datagrams is not None
        return self._datagrams.popleft()

    # ---- the rest ----

    async def stats(self) -> ConnectionStats:
        """Ask the worker for this connection's figures."""
        if self.error is not None:
            raise self.error.again()
        self.port.put(Command.STATS, self.handle)
        await self._next("stats")
        assert self._stats is not None
        return self._stats

    async def ping(self) -> float:
        """Ask the peer for a sign of life (PING, RFC 9000 section 19.2) and wait until something has come
        from it; returns after how many seconds. Waits for ever when the peer is gone: the connection's idle
        timeout, or the caller's, ends it."""
        loop = asyncio.get_running_loop()
        before, began = await self.stats(), loop.time()
        self.port.put(Command.PING, self.handle)
        # An acknowledgement is the engine's business and makes no event: looked for after a round trip, then
        # ever more seldom.
        pause = before.rtt_smoothed + PING_LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            if (await self.stats()).packets_received > before.packets_received:
                return loop.time() - began
            pause = min(2 * pause, PING_LOOK_SECONDS_MOST)

    async def _next(self, what: str) -> None:
        """Wait for the next `what`; raises the connection's error when it ends before."""
        await self._wait(what)
        if self.error is not None:
            raise self.error.again()

    async def key_update(self) -> int:
        """Start a key update and wait until it is done; returns the number of updates so far."""
        if self.error is not None:
            raise self.error.again()
        self.port.put(Command.KEY_UPDATE, self.handle)
        await self._next("key_update")
        return self.key_updates

    def rebind(self) -> None:
        """Client: go on from another local port, as after a NAT's rebinding. Moves all the worker's
        connections."""
        self.port.put(Command.REBIND, self.handle)

    async def perf(
        self,
        *,
        download_bytes: int = 0,
        upload_bytes: int = 0,
        streams: int = 1,
        requests: int = 0,
        seconds: float = 0.0,
    ) -> PerfResult:
        """Run the C perf client on this connection (ALPN `perf`): until `requests` are done, or for
        `seconds`."""
        if self.alpn != "perf":
            raise StreamError(f"the peer speaks {self.alpn!r} here, not 'perf'")
        args = ffi.new("struct stoq_perf *")
        args.download_bytes, args.upload_bytes = download_bytes, upload_bytes
        args.streams, args.requests, args.duration_ns = streams, requests, round(seconds * 1e9)
        self._perf = None
        self.port.put_bytes(Command.PERF_START, bytes(ffi.buffer(args)), self.handle)
        while self._perf is None:
            await self._wait("perf")
            if self.error is not None and self._perf is None:
                raise self.error.again()
        return self._perf

    @property
    def closed(self) -> bool:
        """Is it over?"""
        return self.error is not None

    @property
    def usable(self) -> bool:
        """May streams be opened? Not before the handshake's end, nor after close()."""
        return self.connected and self.error is None and not self._closing

    def _put_close(self, code: int, reason: str, *, application: bool) -> None:
        if self.error is None and not self._closing:
            self._closing = True
            text = reason.encode("utf-8")[:REASON_BYTES].decode("utf-8", "ignore").encode("utf-8")
            self.port.put_bytes(Command.CLOSE, text, self.handle, code=code, flags=APP if application else 0)

    def close(self, code: int = 0, reason: str = "", *, application: bool = True) -> None:
        """Close with the application's code (or with `application=False` a transport error). Idempotent."""
        self._put_close(code, reason, application=application)

    async def wait_connected(self) -> None:
        """Wait for the handshake's end. Raises HandshakeFailed. A server that was given the connection for
        its early data knows only then that this is no replay."""
        await self._until("connected", lambda: self.connected)

    async def wait_usable(self) -> None:
        """Client: until streams can be opened: at once with 0-RTT, else at the handshake's end."""
        await self._until("connected", lambda: self.connected or self.early_offered)

    async def wait_closed(self) -> ConnectionClosed:
        """Wait for the end; returns how it came."""
        while self.error is None:
            await self._wait("closed")
        return self.error

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.error is None:
            self.close(0 if kind is None else 1, "" if error is None else type(error).__name__)
            await self.wait_closed()


def closed_error(flags: int, code: int, data: bytes, *, connected: bool) -> ConnectionClosed:
    """The exception of a CLOSED event. TLS alerts and everything before the handshake's end are
    HandshakeFailed."""
    reason, frame_type = "", 0
    head = ffi.sizeof("struct stoq_closed")
    if len(data) >= head:
        closed = ffi.from_buffer("struct stoq_closed *", data)
        frame_type = closed.frame_type
        reason = data[head : head + closed.reason_len].decode("utf-8", "replace")
    application = bool(flags & lib.STOQ_APP)
    handshake = not connected or (not application and 0x100 <= code <= 0x1FF)
    return (HandshakeFailed if handshake else ConnectionClosed)(
        code,
        reason,
        application=application,
        remote=bool(flags & lib.STOQ_REMOTE),
        idle=bool(flags & lib.STOQ_IDLE),
        reset=bool(flags & lib.STOQ_RESET),
        version=bool(flags & lib.STOQ_VERSION),
        frame_type=frame_type,
    )

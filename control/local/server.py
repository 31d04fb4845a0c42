"""The node's end of the control socket: answers requests in the node's own asyncio loop.

Nothing a client does holds the node up or grows without bound: lines, clients, waiting times and what waits
to be written are bounded, and frames are copied in small portions between which the loop goes on.

A capture is one at a time, because the guard has one mirror. However it ends (the client says so, vanishes,
reads nothing for STALL_SECONDS; the node ends) the mirror is switched off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from control.console import Output
from control.local import place, protocol
from control.local.keylog import KeyLog
from control.local.protocol import ProtocolError
from control.local.snapshot import Facts, GuardView, NodeView, interface_name, status
from control.local.stream import Figures, Kind, figures_record, frame_record, record
from dataplane.errors import StoqError
from dataplane.tables import Verdict

log = logging.getLogger("stoq.local")

MAX_CLIENTS = 16
IDLE_SECONDS = 30.0  # For one request line to come in whole.
WRITE_SECONDS = 10.0  # For an answer to be taken.
LINGER_SECONDS = 1.0  # A client that is sent away may finish what it is saying.
STALL_SECONDS = 30.0  # A capture whose client takes nothing for so long is over.
POLL_SECONDS = 0.1  # The mirror is looked at so often even if nothing wakes us.
FIGURES_SECONDS = 1.0
FRAMES_AT_ONCE = 256  # At 2 KiB each half a MiB: about a millisecond of the node's loop.
LEFT_ROUNDS = (
    64  # FRAMES_AT_ONCE frames each that are read after a capture: more than the mirror's 4 MiB hold.
)
BUFFER_BYTES = 1 << 20  # Waits for a slow client; then the mirror's ring fills and counts what it drops.


class Capture:
    """One client's capture."""

    def __init__(
        self,
        guard: GuardView,
        key_log: KeyLog | None,
        writer: asyncio.StreamWriter,
        stop: asyncio.Future[bytes],
    ) -> None:
        self._guard = guard
        self._key_log = key_log
        self._writer = writer
        self._stop = stop
        self._figures = Figures()
        self._dropped_before = self._dropped() or 0

    def _dropped(self) -> int | None:
        dropped = getattr(self._guard, "mirror_dropped", None)
        return dropped if isinstance(dropped, int) else None

    def _count_dropped(self) -> None:
        dropped = self._dropped()
        self._figures.dropped = None if dropped is None else dropped - self._dropped_before

    def _forward(self) -> int:
        """Send what waits in the mirror, a portion of it. Returns the number of frames."""
        frames = self._guard.read_mirror(FRAMES_AT_ONCE)
        self._figures.frames += len(frames)
        self._figures.bytes += sum(frame.frame_bytes for frame in frames)
        if frames:
            self._writer.write(b"".join(map(frame_record, frames)))
        return len(frames)

    async def run(self, verdicts: list[Verdict], sample: int, snap: int) -> None:
        """Until the client stops it or is gone. Raises OSError and TimeoutError for a client that is gone."""
        guard = self._guard
        for _ in range(LEFT_ROUNDS):  # Of an earlier capture.
            if not guard.read_mirror(FRAMES_AT_ONCE):
                break
        try:
            if self._key_log is not None:
                text = self._key_log.text()
                if text:
                    self._writer.write(record(Kind.SECRETS, text))
                with self._key_log.watch(self._on_secret):
                    await self._mirrored(verdicts, sample, snap)
            else:
                await self._mirrored(verdicts, sample, snap)
        except asyncio.CancelledError:
            self._end("the node ended")
            raise
        except StoqError as error:
            self._end(str(error))
        else:
            self._end("")
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()

    def _on_secret(self, line: bytes) -> None:
        # Handshakes do not wait for a slow client: beyond the bound it has to do without.
        if self._writer.transport.get_write_buffer_size() < 2 * BUFFER_BYTES:
            self._writer.write(record(Kind.SECRETS, line))

    async def _mirrored(self, verdicts: list[Verdict], sample: int, snap: int) -> None:
        guard = self._guard
        guard.mirror(verdicts, sample, snap)
        try:
            await self._loop()
        finally:
            guard.mirror((), 0)
        for _ in range(LEFT_ROUNDS):
            if not self._forward():
                break
            await self._drain()

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        next_figures = loop.time() + FIGURES_SECONDS
        while not self._stop.done():
            count = self._forward()
            if loop.time() >= next_figures:
                next_figures = loop.time() + FIGURES_SECONDS
                self._count_dropped()
                self._writer.write(figures_record(Kind.FIGURES, self._figures))
            await self._drain()
            if count < FRAMES_AT_ONCE:
                await self._wait()
        # An end of the connection, or of the line's bound, is no stop: there is nobody to send the rest to.
        if not self._stop.result():
            raise ConnectionResetError("the client of a capture went away")

    async def _drain(self) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            await self._writer.drain()
        await asyncio.sleep(0)  # drain() alone lets nobody else run while there is room.

    async def _wait(self) -> None:
        """For frames, the client, or POLL_SECONDS."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        # Taken off when it has fired: the descriptor stays readable until we have read.
        descriptor = self._guard.mirror_fd

        def on_readable() -> None:
            loop.remove_reader(descriptor)
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(descriptor, on_readable)
        try:
            await asyncio.wait(
                (self._stop, readable), timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            loop.remove_reader(descriptor)
            readable.cancel()

    def _end(self, reason: str) -> None:
        self._count_dropped()
        self._figures.reason = reason
        if not self._writer.is_closing():
            self._writer.write(figures_record(Kind.END, self._figures))


class LocalServer:
    """Serves one node's control socket."""

    def __init__(self, node: NodeView, facts: Facts, key_log: KeyLog | None) -> None:
        self._node = node
        self._facts = facts
        self._key_log = key_log
        self._begin = time.monotonic()
        self._clients: set[asyncio.Task[None]] = set()
        self._capturing = False

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Start; close() ends the clients."""
        return await asyncio.start_unix_server(
            self._connected, sock=listener, limit=protocol.MAX_REQUEST_BYTES
        )

    async def close(self) -> None:
        """End every client."""
        clients = tuple(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._client(reader, writer)
            writer.close()
            async with asyncio.timeout(WRITE_SECONDS):
                await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            log.debug("a client of the control socket is gone: %r", error)
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.close()  # We end. (Raised on, asyncio's server would log it as a failure.)
        except Exception:
            log.exception("a request on the control socket failed")
            writer.transport.abort()
        finally:
            self._clients.discard(task)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = place.peer_of(writer.get_extra_info("socket"))
        if peer.uid not in (0, os.geteuid()):
            why = f"user {peer.uid} may not use this node's control socket"
            await self._send_away(reader, writer, "failed", why)
            return
        if len(self._clients) > MAX_CLIENTS:
            why = f"{MAX_CLIENTS} clients are served already: try again later"
            await self._send_away(reader, writer, "too_many_clients", why)
            return
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readline()
            except ValueError:
                bound = protocol.MAX_REQUEST_BYTES
                why = f"a request is a line of at most {bound} bytes"
                await self._send_away(reader, writer, "too_long", why)
                return
            except TimeoutError:
                why = f"no request came within {IDLE_SECONDS:g} s"
                await self._send_away(reader, writer, "timeout", why)
                return
            if not line.endswith(b"\n"):
                return
            try:
                await self._request(protocol.decode_request(line), reader, writer)
            except ProtocolError as error:
                await self._refuse(writer, error.kind, str(error))
            except StoqError as error:
                await self._refuse(writer, "failed", str(error))
            if writer.is_closing():
                return

    async def _request(
        self, request: protocol.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if isinstance(request, protocol.CaptureRequest):
            await self._capture(request, reader, writer)
        elif isinstance(request, protocol.StatusRequest):
            uptime = time.monotonic() - self._begin
            await self._answer(
                writer, status(self._node, self._facts, uptime=uptime, capturing=self._capturing)
            )
        elif isinstance(request, protocol.StopRequest):
            raise ProtocolError("bad_request", "stop: no capture runs on this connection")
        else:
            await self._answer(writer, self._blocklist(request))

    def _guard(self) -> GuardView:
        guard = self._node.guard
        if guard is None:
            backend = self._node.describe()[0].partition(":")[0]
            raise ProtocolError(
                "no_guard",
                f"this node has no XDP guard (its backend is {backend}): start it with --backend afxdp",
            )
        return guard

    def _blocklist(self, request: protocol.Request) -> protocol.Answer:
        guard = self._guard()
        if isinstance(request, protocol.BlockRequest):
            prefix = protocol.canonical_prefix(request.prefix)
            guard.block(prefix, request.seconds)
            return protocol.BlockAnswer(prefix, request.seconds)
        if isinstance(request, protocol.UnblockRequest):
            prefix = protocol.canonical_prefix(request.prefix)
            if not guard.unblock(prefix):
                raise ProtocolError("not_blocked", f"{prefix} is not on the blocklist (see `stoq blocks`)")
            return protocol.BlockAnswer(prefix)
        return protocol.BlocksAnswer(
            [protocol.Blocked(str(block.prefix), block.seconds) for block in guard.blocks()]
        )

    async def _capture(
        self, request: protocol.CaptureRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer, then records until the end; the connection is of no further use."""
        if request.secrets and self._key_log is None:
            raise ProtocolError(
                "no_secrets",
                "this node keeps no TLS secrets: it was started without --allow-secrets, and so it stays",
            )
        guard = self._guard()
        verdicts = protocol.parse_verdicts(request.verdicts)
        if self._capturing:
            raise ProtocolError("busy", "a capture runs already; the guard has one mirror")
        self._capturing = True
        stop = asyncio.ensure_future(self._stop(reader))
        try:
            if request.secrets:
                log.warning("a capture takes this node's TLS secrets")
            writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
            answer = protocol.CaptureAnswer(
                interface=interface_name(guard.report.ifindex),
                clock_offset_ns=time.clock_gettime_ns(time.CLOCK_REALTIME)
                - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                snap=request.snap,
                sample=request.sample,
                verdicts=[verdict.key for verdict in verdicts],
                secrets=request.secrets,
            )
            await self._answer(writer, answer)
            capture = Capture(guard, self._key_log if request.secrets else None, writer, stop)
            await capture.run(verdicts, request.sample, request.snap)
        finally:
            self._capturing = False
            stop.cancel()
            writer.close()

    @staticmethod
    async def _stop(reader: asyncio.StreamReader) -> bytes:
        """What the client says next; nothing when it has gone."""
        try:
            return await reader.readline()
        except (OSError, ValueError):
            return b""

    async def _answer(self, writer: asyncio.StreamWriter, answer: protocol.Answer) -> None:
        writer.write(protocol.encode(answer))
        async with asyncio.timeout(WRITE_SECONDS):
            await writer.drain()
        await asyncio.sleep(0)  # Between two requests of one client, the node's own work has its turn.

    async def _refuse(self, writer: asyncio.StreamWriter, kind: str, text: str) -> None:
        if not writer.is_closing():
            await self._answer(writer, protocol.ErrorAnswer(kind, text))

    async def _send_away(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, text: str
    ) -> None:
        """Refuse, and let the client read why: one that writes into a closed connection sees only that."""
        await self._refuse(writer, kind, text)
        writer.write_eof()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(protocol.MAX_REQUEST_BYTES):
                    pass
        except TimeoutError:
            pass


@asynccontextmanager
async def control_socket(
    output: Output,
    node: NodeView,
    where: str | None,
    facts: Facts,
    key_log: KeyLog | None,
    owner: place.Owner,
) -> AsyncIterator[Path | None]:
    """The control socket of an open datapath: at `where`, at the usual place (None), or not at all ("none").
    `owner` is whom the node runs as or will.

    Raises PlaceError when it cannot be where it was asked for; without the usual one a node runs on and says
    so.
    """
    if where == "none":
        yield None
        return
    if key_log is not None:
        output.note(
            "WARNING: --allow-secrets keeps TLS secrets of recent connections in memory. Whoever may use the "
            "control socket can take them and read those connections' traffic."
        )
    async with AsyncExitStack() as stack:
        path: Path | None = None
        try:
            path = Path(where) if where is not None else place.default_path(owner)
            listener = stack.enter_context(place.listening(path, owner))
        except place.PlaceError as error:
            if where is not None:
                raise
            path = None
            output.note(f"no control socket, so `stoq status` will not find this node: {error}")
        else:
            server = LocalServer(node, facts, key_log)
            stack.push_async_callback(server.close)
            stack.callback((await server.serve(listener)).close)
            output.event("control", path=str(path))
        yield path

"""The datapath for asyncio: opens the workers, dispatches their events, makes connections.

      one asyncio loop                                     workers (threads, C)
      add_reader(eventfd) ─▶ _on_readable ─▶ Port.drain ─▶ Connection.on_event ─▶ Stream, Handshake
      end of the loop's turn ─▶ _tick: senders pump, backlogs flush, workers are kicked once

Nothing here blocks the loop, but TLS handshakes cost their CPU time in it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dataplane.address import Address, check_peer, host_of, resolve_address
from dataplane.config import Config, get_address, set_address, to_c
from dataplane.connection import Connection, closed_error
from dataplane.errors import ConnectionClosed, DatapathError, HandshakeFailed
from dataplane.guard import Guard
from dataplane.handshake import HandshakeFactory, Target
from dataplane.port import EventTuple, Port, ffi, lib
from dataplane.send import SendHalf
from dataplane.stats import QueueStats
from dataplane.tables import Command, Counter, DropReason, Event
from dataplane.tokens import TokenCache

if TYPE_CHECKING:
    from dataplane.bypass import Bypass
    from dataplane.kernel_tables import KernelTables

log = logging.getLogger("stoq.datapath")

DRAIN_ROUNDS = 4  # Times EVENTS_AT_ONCE events before the loop's other work has its turn.
RETRY_SECONDS = (
    0.002  # A full ring or an empty pool is tried again so soon: about what a worker needs for 64 trains.
)
STOP_SECONDS = 2.0  # Workers get so long to say goodbye to their peers.

FailureCallback = Callable[[Address, HandshakeFailed], None]


class Datapath:
    """``async with Datapath(config, handshakes) as datapath``: the workers run inside the block.

    `handshakes` makes the TLS side of each connection. `on_failure` is told of each handshake that failed on
    the server side; they are logged as well.
    """

    def __init__(
        self, config: Config, handshakes: HandshakeFactory, *, on_failure: FailureCallback | None = None
    ) -> None:
        self.config = config
        self._handshakes = handshakes
        self._on_failure = on_failure
        self._handle: Any = None
        self._ports: list[Port] = []
        self._connections: dict[tuple[int, int], Connection] = {}
        self._pending: dict[int, tuple[Target, asyncio.Future[Connection]]] = {}
        self._cookies = itertools.count(1)
        self._tokens = TokenCache()
        self._next_port = 0
        self._accepted: asyncio.Queue[Connection | None] = asyncio.Queue()
        self._stopped: set[int] = set()
        self._all_stopped = asyncio.Event()
        self._senders: dict[SendHalf, None] = {}  # To pump this turn, in order.
        self._starved: dict[int, dict[SendHalf, None]] = {}  # By worker: waiting for chunks.
        self._ticking = False
        self._retrying = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event_fd = -1
        self._guard: Guard | None = None
        self._tables: KernelTables | None = None
        self._bypass: Bypass | None = None

    # ---- life ----

    async def open(self) -> None:
        """Start the workers. Raises DatapathError (what failed and what to do about it) or ConfigError."""
        try:
            await self._handshakes.open()
            await self._start()
        except BaseException:
            self._handshakes.close()
            raise

    async def _start(self) -> None:
        c_config, keep = to_c(self.config)
        error = ffi.new("struct stoq_error *")
        self._loop = asyncio.get_running_loop()
        handle = lib.stoq_open(c_config, error)
        del keep
        if handle == ffi.NULL:
            raise DatapathError(ffi.string(error.text).decode("utf-8", "replace"), error.code)
        self.attach(handle, range(lib.stoq_workers(handle)))
        self._event_fd = lib.stoq_event_fd(handle)
        self._loop.add_reader(self._event_fd, self._on_readable)
        try:
            await self._follow_kernel()
        except BaseException:
            await self.close()
            raise

    async def _follow_kernel(self) -> None:
        """AF_XDP workers need the kernel's routes and neighbours, a guard the host's addresses."""
        if not lib.stoq_guard(self._handle, ffi.new("struct stoq_guard_report *")):
            return
        # Here, because netlink's library takes a third of a second and 15 MB to import.
        from dataplane import rtnetlink
        from dataplane.bypass import Bypass
        from dataplane.kernel_tables import KernelTables

        self._guard = Guard(self._open_handle)
        ports = self._ports if self.config.backend == "afxdp" else []
        bypass = Bypass(ports, self._guard)
        tables = KernelTables(self.config.ifindex, bypass)
        try:
            await tables.__aenter__()
        except rtnetlink.NetlinkError as error:
            raise DatapathError(f"the kernel's routes and neighbours cannot be read: {error}") from error
        self._tables = tables
        if ports:
            self._bypass = bypass
        for note in tables.notes:
            log.warning("%s", note)

    def attach(self, handle: Any, workers: range) -> None:
        """Use these workers of a C datapath. For open() and the simulation, which keeps the handle."""
        self._loop = asyncio.get_running_loop()
        self._handle = handle
        self._ports = [Port(handle, worker, self._schedule_tick) for worker in workers]
        self._starved = {worker: {} for worker in workers}

    async def close(self) -> None:
        """Close every connection (one CONNECTION_CLOSE each), stop the workers, free their memory.
        Idempotent."""
        if self._handle is None:
            return
        handle, loop = self._handle, asyncio.get_running_loop()
        if self._tables is not None:
            self._tables.close()
            self._tables = None
        for port in self._ports:
            port.put(Command.STOP)
            port.flush()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._all_stopped.wait()
        except TimeoutError:
            log.warning("the workers did not stop in %g s; ending them", STOP_SECONDS)
        if self._event_fd >= 0:
            loop.remove_reader(self._event_fd)
        self.detach()
        # Joins threads, so not in the loop; shielded, because memory must not stay mapped when we are
        # cancelled.
        await asyncio.shield(loop.run_in_executor(None, lib.stoq_close, handle))

    def detach(self) -> None:
        """Forget the workers: what still waits gets an error."""
        ended = ConnectionClosed(0, "the datapath was closed")
        for connection in list(self._connections.values()):
            connection.on_closed(ended)
        self._connections.clear()
        for _, waiter in self._pending.values():
            if not waiter.done():
                waiter.set_exception(DatapathError("the datapath was closed"))
        self._pending.clear()
        for port in self._ports:
            port.close()
        self._handle = None
        self._guard = None
        self._accepted.put_nowait(None)
        self._handshakes.close()

    async def __aenter__(self) -> Datapath:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- connections ----

    async def connect(
        self,
        to: Address | str,
        *,
        server_name: str | None = None,
        alpns: tuple[str, ...] = (),
        version: int = 0,
        early: bool = False,
    ) -> Connection:
        """Open a connection and wait for its handshake.

        `server_name` is what the server's certificate must name; by default the host as written in `to`.
        `version` other than 0 offers that QUIC version (tests of version negotiation). `early`: with a
        session that permits 0-RTT, do not wait: what is sent before `wait_connected` may be replayed by
        others, and the server is whoever the session was made with. Raises AddressError, HandshakeFailed,
        DatapathError.
        """
        if isinstance(to, str):
            name = server_name or host_of(to)
            address = await resolve_address(to)
        else:
            name, address = server_name or to.ip, to
        check_peer(address)
        if self._handle is None:
            raise DatapathError("the datapath is closed")
        port = self._pick_port()
        request = ffi.new("struct stoq_connect *")
        set_address(request.peer, address)
        request.version = version
        token = self._tokens.take(address)
        request.token_len = len(token)
        cookie = next(self._cookies)
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._pending[cookie] = (Target(address, name, alpns, early), waiter)
        port.put_bytes(Command.CONNECT, bytes(ffi.buffer(request)) + token, value=cookie)
        connection: Connection | None = None
        try:
            connection = await waiter
            await (connection.wait_usable() if early else connection.wait_connected())
        except asyncio.CancelledError:
            self._abandon(waiter, connection)
            raise
        return connection

    def _pick_port(self) -> Port:
        """The next worker in turn that has a thread of its own; any, where there is none (the simulator)."""
        for _ in self._ports:
            port = self._ports[self._next_port % len(self._ports)]
            self._next_port += 1
            if lib.stoq_worker_running(self._handle, port.worker):
                return port
        return port

    # ---- workers ----

    def add_worker(self, core: int = -1) -> int:
        """One worker more, pinned to `core` (-1: not); returns its number. Connections that exist stay where
        they are. Raises DatapathError: at `max_workers`, or without the right to open what a worker needs."""
        error = ffi.new("struct stoq_error *")
        worker = int(lib.stoq_worker_add(self._open_handle(), core, error))
        if worker < 0:
            raise DatapathError(ffi.string(error.text).decode("utf-8", "replace"), worker)
        if worker == len(self._ports):
            self._ports.append(Port(self._handle, worker, self._schedule_tick))
            self._starved[worker] = {}
        if self._bypass is not None and self._tables is not None:
            self._bypass.tell_all(self._ports[worker], self._tables)
        return worker

    def remove_worker(self, worker: int) -> None:
        """Give up a worker's thread and core. Its connections go on in another worker's thread. Raises
        DatapathError: the last, or none of this number."""
        error = ffi.new("struct stoq_error *")
        if not lib.stoq_worker_remove(self._open_handle(), worker, error):
            raise DatapathError(ffi.string(error.text).decode("utf-8", "replace"), error.code)

    @property
    def running_workers(self) -> list[int]:
        """Those with a thread of their own."""
        return [p.worker for p in self._ports if lib.stoq_worker_running(self._open_handle(), p.worker)]

    def _abandon(self, waiter: asyncio.Future[Connection], connection: Connection | None) -> None:
        """connect() was cancelled: the connection, when there is one, is not wanted any more."""
        if connection is None and waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            connection = waiter.result()
        if connection is not None:
            connection.close(0, "cancelled", application=False)

    async def accept(self) -> Connection:
        """The next connection whose handshake is complete. Raises DatapathError when the datapath is
        closed."""
        connection = await self._accepted.get()
        if connection is None:
            self._accepted.put_nowait(None)
            raise DatapathError("the datapath is closed")
        return connection

    async def accept_connections(self) -> AsyncIterator[Connection]:
        """Connections as their handshakes complete, until the datapath is closed."""
        while True:
            try:
                connection = await self.accept()
            except DatapathError:
                return
            yield connection

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All that exist now, in handshake too."""
        return tuple(self._connections.values())

    # ---- events ----

    def _on_readable(self) -> None:
        if self._handle is not None:
            lib.stoq_event_clear(self._handle)
            self.dispatch()

    def dispatch(self) -> None:
        """Take what events there are."""
        more = False
        for port in self._ports:
            more = port.drain(self._on_event, DRAIN_ROUNDS) or more
        if more and self._loop is not None:
            self._loop.call_soon(self.dispatch)
        if any(self._starved.values()):
            self._schedule_tick()

    def _on_event(self, port: Port, event: EventTuple) -> None:
        kind, handle = event[0], event[6]
        connection = self._connections.get((port.worker, handle))
        if kind == Event.CONNECTION:
            self._on_connection(port, event)
        elif kind == Event.CLOSED:
            self._on_closed(port, connection, event)
        elif kind == Event.NEW_TOKEN:
            token = port.received_bytes(event[3], event[4], event[5])
            if connection is not None:
                self._tokens.put(connection.peer, token)
        elif kind == Event.STOPPED:
            self._stopped.add(port.worker)
            if len(self._stopped) == len(self._ports):
                self._all_stopped.set()
        elif connection is not None:
            try:
                connection.on_event(event)
            except Exception:
                # A defect of ours on one connection must not end the others.
                log.exception("event %s of %r failed; closing the connection", kind, connection)
                connection.close(1, "internal error", application=False)
        else:
            port.release(event[3])

    def _on_connection(self, port: Port, event: EventTuple) -> None:
        _, _, _, chunk, offset, length, handle, _, _, cookie = event
        data = port.received_bytes(chunk, offset, length)
        head = ffi.sizeof("struct stoq_new_connection")
        if len(data) < head:
            # The worker had no memory for the payload: without our transport parameters there can be no
            # handshake.
            port.put_bytes(Command.CLOSE, b"out of memory", handle, code=1)
            self._fail_pending(cookie, DatapathError("the worker is out of memory: raise receive_bytes"))
            return
        new = ffi.from_buffer("struct stoq_new_connection *", data)
        params = data[head : head + new.params_len]
        peer, local = get_address(new.peer), get_address(new.local)
        connection = Connection(self, port, handle, peer, local, server=bool(new.server))
        self._connections[(port.worker, handle)] = connection
        if new.server:
            connection.handshake = self._handshakes.server(connection, peer)
        else:
            target, waiter = self._pending.pop(cookie, (None, None))
            if target is None or waiter is None or waiter.done():
                connection.close(0, "cancelled", application=False)
                return
            connection.handshake = self._handshakes.client(connection, target)
            waiter.set_result(connection)
        connection.handshake.start(params)

    def _on_closed(self, port: Port, connection: Connection | None, event: EventTuple) -> None:
        _, flags, _, chunk, offset, length, handle, _, code, value = event
        data = port.received_bytes(chunk, offset, length)
        error = closed_error(flags, code, data, connected=connection is not None and connection.connected)
        if connection is None:
            if handle == 0:  # A CONNECT that made no connection: value is its cookie.
                self._fail_pending(value, error)
            return
        del self._connections[(port.worker, handle)]
        connection.on_closed(error)
        if connection.is_server and isinstance(error, HandshakeFailed):
            log.info("handshake with %s failed: %s", connection.peer, error)
            if self._on_failure is not None:
                self._on_failure(connection.peer, error)

    def _fail_pending(self, cookie: int, error: Exception) -> None:
        _, waiter = self._pending.pop(cookie, (None, None))
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def on_early(self, connection: Connection) -> None:
        """A server takes early data: the connection goes to accept() before its handshake is complete."""
        self._accepted.put_nowait(connection)

    def on_connected(self, connection: Connection) -> None:
        """A handshake is complete; a server's goes to accept(), unless it went with its early data."""
        if connection.is_server and connection.early is None:
            self._accepted.put_nowait(connection)

    # ---- the end of a turn of the loop ----

    def schedule(self, sender: SendHalf) -> None:
        """Let it pump at the end of this turn."""
        self._senders[sender] = None
        self._schedule_tick()

    def starve(self, port: Port, sender: SendHalf) -> None:
        """It waits for a chunk; tried again on the next events, and soon."""
        self._starved[port.worker][sender] = None
        self._retry_soon()

    def _schedule_tick(self) -> None:
        if not self._ticking and self._loop is not None:
            self._ticking = True
            self._loop.call_soon(self._tick)

    def _retry_soon(self) -> None:
        if not self._retrying and self._loop is not None:
            self._retrying = True
            self._loop.call_later(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._schedule_tick()

    def _tick(self) -> None:
        self._ticking = False
        if self._handle is None:
            return
        for starved in self._starved.values():
            self._senders.update(starved)
            starved.clear()
        senders, self._senders = self._senders, {}
        for sender in senders:
            sender.pump()
        for port in self._ports:
            port.flush()
            if port.backlogged:
                self._retry_soon()

    # ---- what people want to know ----

    def _open_handle(self) -> Any:
        if self._handle is None:
            raise DatapathError("the datapath is closed")
        return self._handle

    @property
    def local_address(self) -> Address:
        """The bound address of the first worker; workers of a server share its port."""
        out = ffi.new("struct stoq_address *")
        lib.stoq_local_address(self._open_handle(), self._ports[0].worker, out)
        return get_address(out)

    def describe(self) -> list[str]:
        """For each worker: backend, features in use, fallbacks taken and why."""
        out = ffi.new("char[]", 1024)
        texts = []
        for port in self._ports:
            lib.stoq_describe(self._open_handle(), port.worker, out, len(out))
            texts.append(ffi.string(out).decode("utf-8", "replace"))
        return texts

    @property
    def crypto_name(self) -> str:
        """The crypto provider in use."""
        return str(ffi.string(lib.stoq_crypto_name(self._open_handle())).decode())

    @property
    def guard(self) -> Guard | None:
        """The XDP guard before this datapath's port; None: there is none."""
        return self._guard

    def queues(self) -> list[QueueStats]:
        """The workers' AF_XDP queues; empty with another backend."""
        out = ffi.new("struct stoq_queue_stats *")
        names = [name for name in QueueStats.__dataclass_fields__ if name != "worker"]
        return [
            QueueStats(port.worker, *(getattr(out, name) for name in names))
            for port in self._ports
            if lib.stoq_queue_statistics(self._open_handle(), port.worker, out)
        ]

    @property
    def handshakes(self) -> dict[str, int]:
        """What the TLS side says of itself."""
        return self._handshakes.report()

    @property
    def cores(self) -> list[int]:
        """The core each worker is pinned to; -1: none."""
        return [int(lib.stoq_worker_core(self._open_handle(), port.worker)) for port in self._ports]

    def counters(self, *, worker: int | None = None) -> dict[str, int]:
        """Counters by the names of csrc/tables.h, of one worker or summed."""
        return self._table(lib.stoq_counters, Counter, worker)

    def drops(self, *, worker: int | None = None) -> dict[str, int]:
        """Drops by reason."""
        return self._table(lib.stoq_drops, DropReason, worker)

    def _table(
        self, read: Any, names: type[Counter] | type[DropReason], worker: int | None
    ) -> dict[str, int]:
        totals = [0] * len(names)
        out = ffi.new("uint64_t[]", len(names))
        for port in self._ports:
            if worker is None or worker == port.worker:
                read(self._open_handle(), port.worker, out, len(names))
                totals = [total + value for total, value in zip(totals, out, strict=True)]
        return {name.key: totals[int(name)] for name in names}

    def io_stats(self) -> dict[str, int]:
        """The backends' counters, summed."""
        return self._struct("struct stoq_io_stats", lib.stoq_io_statistics)

    def pool_stats(self) -> dict[str, int]:
        """Memory in use, summed."""
        for port in self._ports:
            lib.stoq_send_free_bytes(
                self._open_handle(), port.worker
            )  # Takes back what the workers returned.
        return self._struct("struct stoq_pool_stats", lib.stoq_pool_statistics)

    def _struct(self, c_type: str, read: Any) -> dict[str, int]:
        names = [name for name, _ in ffi.typeof(c_type).fields]
        totals = dict.fromkeys(names, 0)
        out = ffi.new(f"{c_type} *")
        for port in self._ports:
            read(self._open_handle(), port.worker, out)
            for name in names:
                totals[name] += getattr(out, name)
        return totals

    def train_histogram(self) -> tuple[list[int], list[int]]:
        """Trains sent and received by their number of datagrams: 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64."""
        sent, received = [0] * 7, [0] * 7
        c_sent, c_received = ffi.new("uint64_t[7]"), ffi.new("uint64_t[7]")
        for port in self._ports:
            lib.stoq_train_histogram(self._open_handle(), port.worker, c_sent, c_received)
            sent = [a + b for a, b in zip(sent, c_sent, strict=True)]
            received = [a + b for a, b in zip(received, c_received, strict=True)]
        return sent, received

"""Handshakes of a server spread over processes, so that TLS uses more than one core.

      Datapath ── server() ──▶ Remote ── frames over a socket ──▶ the least busy of N processes
               ◀── calls on the connection ──────────────────────

Connections we open ourselves are handled in this process. Handshakes under way are bounded, each process's
(`MAX_PENDING`): what comes on top is refused with CONNECTION_REFUSED, as a client can try again. A process
that ends fails its handshakes and is started again; while there is none, this process does the work.

Each process verifies chains and remembers verdicts for itself. Ticket keys are this process's: all have
them, so a session is resumed wherever its ticket comes to. 0-RTT is not taken: a register of what was taken
(RFC 8446 section 8.1) would have to be one for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from control.handshake import exchange
from control.handshake.alerts import Alert, HandshakeAbort
from control.handshake.exchange import Complete, Crypto, Forget, Frames, Keys, Logged, Params, Secret, Update
from control.handshake.factory import TlsFactory
from control.handshake.policy import HandshakeConfig
from control.handshake.session import TlsSession
from dataplane.address import Address
from dataplane.errors import ConfigError, DatapathError
from dataplane.handshake import Aead, Handshake, HandshakeSink, Level, Target
from dataplane.tables import TransportError

log = logging.getLogger("stoq.handshake")

MAX_PROCESSES = 64
MAX_PENDING = 1024  # Handshakes of one process under way: a third of a second's work, and some 30 MB.
MAX_WAITING_BYTES = 1 << 20  # Asked of one process and not yet read by it.
RESTART_SECONDS = 1.0  # Before a process that ended is started again.
RESTARTS = 5  # Attempts.
READY_SECONDS = 20.0  # To be ready: half a second's imports, on a busy machine more.
END_SECONDS = 2.0  # A process gets so long to see that its node is gone.


@dataclass(slots=True)
class Tally:
    """Counts since the start."""

    completed: int = 0
    resumed: int = 0
    failed: int = 0
    refused_busy: int = 0
    restarts: int = 0


class Remote:
    """A `dataplane.handshake.Handshake` whose TLS is in a process."""

    __slots__ = ("_held", "_number", "_owner", "_sink", "over", "resumed")

    def __init__(self, owner: Process, number: int, sink: HandshakeSink) -> None:
        self._owner = owner
        self._number = number
        self._sink = sink
        self._held: asyncio.Future[None] | None = None  # The node confirms the verdict.
        self.over = False
        self.resumed = False

    def start(self, params: bytes) -> None:
        """See Handshake."""
        self._owner.send(exchange.Start(self._number, params))

    def receive(self, level: Level, data: bytes) -> None:
        """See Handshake."""
        if not self.over:
            self._owner.send(exchange.Receive(self._number, level, data))
        elif level is Level.ONE_RTT:
            # The rule of TlsSession for a server: a client has nothing to say after its Finished.
            self._fail(HandshakeAbort.alert(Alert.UNEXPECTED_MESSAGE, "TLS message after the handshake"))

    def end(self) -> None:
        """See Handshake."""
        if not self.over:
            self._end()
            self._owner.forget(self._number)

    def lost(self) -> None:
        """Its process has ended. One that is only held back here needs it no more."""
        if self._held is not None:
            return
        self._end()
        self._fail(HandshakeAbort.alert(Alert.INTERNAL_ERROR, "the handshake process ended"))

    def _end(self) -> None:
        self.over = True
        if self._held is not None:
            self._held.cancel()

    def _fail(self, abort: HandshakeAbort) -> None:
        self._sink.fail(abort.code, abort.reason)

    def receive_calls(self, calls: list[exchange.Call], factory: ProcessFactory) -> None:
        """What its process asks of the connection. The calls that complete a handshake wait until the node has
        confirmed the verdict."""
        complete = next((call for call in calls if isinstance(call, Complete)), None)
        try:
            waiting = factory.admit(complete) if complete is not None else None
        except HandshakeAbort as abort:
            self._refuse(abort, factory)
            return
        if waiting is None:
            self._apply(calls, factory)
            return
        calls = list(calls)
        self._held = held = asyncio.ensure_future(waiting)
        held.add_done_callback(lambda held: self._on_confirmed(held, calls, factory))

    def _on_confirmed(
        self, held: asyncio.Future[None], calls: list[exchange.Call], factory: ProcessFactory
    ) -> None:
        self._held = None
        if held.cancelled() or self.over:
            return
        error = held.exception()
        if error is None:
            self._apply(calls, factory)
        else:
            if not isinstance(error, HandshakeAbort):
                log.error("a verdict could not be confirmed", exc_info=error)
                error = HandshakeAbort.alert(Alert.INTERNAL_ERROR, "the verdict could not be confirmed")
            self._refuse(error, factory)
        self._owner.done(self._number)

    def _refuse(self, abort: HandshakeAbort, factory: ProcessFactory) -> None:
        self.over = True
        factory.tally.failed += 1
        self._fail(abort)

    def _apply(self, calls: list[exchange.Call], factory: ProcessFactory) -> None:
        sink, tally, key_log = self._sink, factory.tally, factory.config.key_log
        for call in calls:
            if isinstance(call, Crypto):
                sink.crypto(Level(call.level), call.data)
            elif isinstance(call, Secret):
                sink.secret(Level(call.level), send=call.send, aead=Aead(call.aead), secret=call.secret)
            elif isinstance(call, Params):
                sink.peer_params(call.data)
            elif isinstance(call, Logged):
                if key_log is not None:
                    key_log(call.client_random, call.label, call.secret)
            elif isinstance(call, Complete):
                self.over, self.resumed = True, call.resumed
                tally.completed += 1
                tally.resumed += call.resumed
                sink.complete(call.alpn, call.identity)
            else:
                self.over = True
                tally.failed += 1
                sink.fail(call.code, call.reason)


class Process(asyncio.Protocol):
    """The node's end of one handshake process."""

    def __init__(self, factory: ProcessFactory) -> None:
        self._factory = factory
        self._frames = Frames(exchange.Reply)
        self._handshakes: dict[int, Remote] = {}
        self._next = 0
        self._state_bytes = 0  # Of configurations, not counted among what waits.
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._keys: tuple[tuple[bytes, bytes], ...] = ()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = ours
        with theirs:
            try:
                self._child: subprocess.Popen[bytes] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "control.handshake.process"],
                    stdin=theirs.fileno(),
                    start_new_session=True,  # Ctrl-C is for the node.
                )
            except OSError:
                ours.close()
                raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    @property
    def pending(self) -> int:
        """Handshakes under way."""
        return len(self._handshakes)

    @property
    def running(self) -> bool:
        """Is it there?"""
        return self._child.poll() is None

    async def attach(self, setup: exchange.Setup) -> None:
        """Begin to talk, in the running loop, and wait until it is ready. Raises DatapathError."""
        self._loop = loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._transport, _ = await loop.create_connection(lambda: self, sock=self._socket)
        self._transport.write(exchange.frame(setup))
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready
        except TimeoutError:
            raise DatapathError(f"a handshake process is not ready after {READY_SECONDS:g} s") from None

    def close(self) -> None:
        """The process sees the end of its input, and ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # Whatever else still holds it.
        if self._transport is not None and self._loop is not None and not self._loop.is_closed():
            self._transport.abort()
        else:
            self._socket.close()

    def reap(self) -> None:
        """Wait for the end of a process that was closed."""
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    # ---- handshakes ----

    def handshake(self, sink: HandshakeSink) -> Remote:
        """A new one."""
        self._next += 1
        remote = self._handshakes[self._next] = Remote(self, self._next, sink)
        return remote

    @property
    def full(self) -> bool:
        """Has it as much to do as it may? What was asked of it counts, though its connection may be over. A large
        configuration that is on its way does not: it is read in one go, and refuses nobody."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if waiting <= MAX_WAITING_BYTES:
            self._state_bytes = 0
        return self.pending >= MAX_PENDING or waiting > MAX_WAITING_BYTES + self._state_bytes

    @property
    def attached(self) -> bool:
        """Can it be talked to?"""
        return self._transport is not None

    def send(self, request: exchange.Request) -> None:
        """To the process; it waits in memory while the process is busy."""
        if self._transport is not None:
            self._transport.write(exchange.frame(request))

    def send_state(self, request: exchange.Setup | Update) -> None:
        """A new configuration, or a new state of the peer verifier."""
        if self._transport is not None:
            data = exchange.frame(request)
            self._state_bytes += len(data)
            self._transport.write(data)

    def give_keys(self, keys: tuple[tuple[bytes, bytes], ...]) -> None:
        """Ticket keys, if they are not the ones it has."""
        if keys != self._keys:
            self._keys = keys
            self.send(Keys(keys))

    def done(self, number: int) -> None:
        """A handshake that was held back here is over."""
        self._handshakes.pop(number, None)

    def forget(self, number: int) -> None:
        """A connection ended before its handshake did."""
        if self._handshakes.pop(number, None) is not None:
            self.send(Forget(number))

    # ---- asyncio.Protocol ----

    def data_received(self, data: bytes) -> None:
        """Replies."""
        try:
            for reply in self._frames.feed(data):
                self._apply(reply)
        except ValueError:
            log.exception("handshake process %d does not speak as it should", self.pid)
            self._child.kill()

    def _apply(self, reply: exchange.Reply) -> None:
        if reply.number == exchange.READY and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        remote = self._handshakes.get(reply.number)
        if remote is None:
            return
        try:
            remote.receive_calls(reply.calls, self._factory)
        except Exception:
            # A defect of ours on one connection must not end the others.
            log.exception("a handshake's reply failed")
            remote.lost()
            self.send(Forget(reply.number))
        if remote.over:
            self._handshakes.pop(reply.number, None)

    def connection_lost(self, _error: Exception | None) -> None:
        """The process ended, or we closed it."""
        self._transport = None
        if self._ready is not None and not self._ready.done():
            error = DatapathError("a handshake process ended before it was ready; what it said is above")
            self._ready.set_exception(error)
        self._factory.on_end(self)
        handshakes, self._handshakes = self._handshakes, {}
        for remote in handshakes.values():
            remote.lost()


def _check(config: HandshakeConfig) -> None:
    if config.early_alpns:
        raise ConfigError("handshake processes take no early data: each would take a replay once")


class ProcessFactory:
    """A `dataplane.handshake.HandshakeFactory` with `count` processes for the server's side.

    The processes are started here, while files can still be read and before privileges are given up: `drop`
    says that they give up theirs, as control.privileges.drop does for `user`. Raises OSError.
    """

    def __init__(
        self,
        config: HandshakeConfig,
        count: int,
        *,
        user: str | None = None,
        drop: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check(config)
        self.tally = Tally()
        self._here = TlsFactory(config, clock)
        self._who = (user, drop)
        self._setup = self._setup_of(config)
        self._processes: list[Process] = []
        self._ended: list[Process] = []
        self._restarts: set[asyncio.Task[None]] = set()
        self._open = False
        try:
            for _ in range(count):
                self._processes.append(Process(self))
        except OSError:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the processes that work."""
        return [process.pid for process in self._processes]

    async def open(self) -> None:
        """Set the processes up. Raises DatapathError."""
        setup = self._setup
        await asyncio.gather(*(process.attach(setup) for process in self._processes))
        if self._setup is not setup:  # It was replaced meanwhile.
            for process in self._processes:
                process.send_state(self._setup)
        if not all(process.attached for process in self._processes):
            raise DatapathError("a handshake process ended as soon as it was ready")
        self._open = True

    def close(self) -> None:
        """End the processes and wait for that."""
        self._open = False
        processes, self._processes = self._processes, []
        for process in processes:
            process.close()
        ended, self._ended = self._ended, []
        for process in ended:
            process.close()
        for process in (*processes, *ended):
            process.reap()
        for task in self._restarts:
            task.cancel()

    def report(self) -> dict[str, int]:
        """Figures for `stoq status`."""
        pending = sum(process.pending for process in self._processes)
        counts = {name: getattr(self.tally, name) for name in Tally.__slots__}
        return {"processes": len(self._processes), "pending": pending, **counts}

    # ---- what changes while it runs ----

    @property
    def config(self) -> HandshakeConfig:
        """Of the handshakes that begin now."""
        return self._here.config

    def _setup_of(self, config: HandshakeConfig) -> exchange.Setup:
        user, drop = self._who
        return exchange.setup(config, user=user, drop=drop)

    def replace(self, config: HandshakeConfig) -> None:
        """TlsFactory.replace, here and in every process: requests to a process keep their order, so handshakes that
        begin after this have the new configuration. Raises ConfigError, CredentialsError."""
        _check(config)
        setup = self._setup_of(config)
        self._here.replace(config)
        self._setup = setup
        for process in self._processes:
            process.send_state(setup)

    def update_trust(self, state: bytes) -> int:
        """TlsFactory.update_trust, here and in every process. A handshake that a process judged before it read this is
        looked at again here before it is complete."""
        dropped = self._here.update_trust(state)
        self._setup = self._setup_of(self.config)
        for process in self._processes:
            process.send_state(Update(state))
        return dropped

    def admit(self, complete: Complete) -> Awaitable[None] | None:
        """A process says that a handshake is complete: what has to be awaited before the peer is let in. Raises
        HandshakeAbort."""
        shared = self._here.shared
        shared.check(complete.identity)
        return shared.confirm(shared.verdict(complete.chain, None)) if complete.chain else None

    # ---- handshakes ----

    def client(self, sink: HandshakeSink, target: Target) -> TlsSession:
        """A handshake as client: in this process."""
        return self._here.client(sink, target)

    def server(self, sink: HandshakeSink, peer: Address) -> Handshake:
        """A handshake as server, in the process with the fewest under way."""
        if not self._processes:
            return self._here.server(sink, peer)
        process = min(self._processes, key=lambda process: (process.full, process.pending))
        if process.full:
            self.tally.refused_busy += 1
            return Refused(sink)
        tickets = self._here.shared.server_tickets
        if tickets is not None:
            keys = tickets.keys.current()
            for each in self._processes:
                each.give_keys(keys)
        return process.handshake(sink)

    # ---- processes that end ----

    def on_end(self, process: Process) -> None:
        """A process's socket is closed."""
        if not self._open or process not in self._processes:
            return
        self._processes.remove(process)
        self._ended.append(process)
        log.error("handshake process %d ended; %d are left", process.pid, len(self._processes))
        task = asyncio.get_running_loop().create_task(self._restart())
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self) -> None:
        """Until there is one again, or it does not work: without the rights it had, a node may not be able to
        start one."""
        for _ in range(RESTARTS):
            await asyncio.sleep(RESTART_SECONDS)
            self._ended = [process for process in self._ended if process.running]
            if not self._open:
                return
            try:
                process = Process(self)
            except OSError as error:
                log.error("a handshake process cannot be started again: %s", error)
                continue
            self._ended.append(process)  # Until it works: close() finds it there.
            setup = self._setup
            try:
                await process.attach(setup)
            except DatapathError as error:
                log.error("a handshake process cannot be started again: %s", error)
                process.close()
                continue
            if self._open and process.attached:
                if self._setup is not setup:
                    process.send_state(self._setup)
                self._ended = [ended for ended in self._ended if ended is not process]
                self.tally.restarts += 1
                self._processes.append(process)
                return


class Refused:
    """A handshake that is not made: too many are under way."""

    def __init__(self, sink: HandshakeSink) -> None:
        self._sink = sink

    def start(self, params: bytes) -> None:
        """See Handshake."""
        self._sink.fail(TransportError.CONNECTION_REFUSED, "busy with other handshakes: try again")

    def receive(self, level: Level, data: bytes) -> None:
        """See Handshake."""

    def end(self) -> None:
        """See Handshake."""

"""The kernel's tables as an AF_XDP datapath needs them, kept fresh: routes, neighbours, addresses, link.

    kernel ── rtnetlink events ──▶ decode ──▶ what is known ──▶ what is told ── differences ──▶ sink
        └──── dumps: at the start, after an overrun, now and then ───┘

What is known and told, and the bounds, are kernel_view.py's; which route is told, kernel_routes.py's.

Nothing is polled. Events are applied as they come; where an event does not say all (a member of a multipath
route went; a carrier was lost, which takes routes out of use without a word) the table is dumped again, and
so after an overrun of the socket (ENOBUFS), which is the kernel's way of saying that events were lost. During
a dump events go on: they are kept and applied to its result too. That is right whatever their order was,
because the last event about an entry is never older than what the dump says of it.

One interface each: the way to a prefix is by this interface or it is the socket path's. Time is the event
loop's; the sink is called from the loop and from `__aenter__`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType

from dataplane import rtnetlink
from dataplane.kernel_routes import MAX_ROUTES, Route, RouteTable, Slot
from dataplane.kernel_view import MAX_NEIGHBOURS, Link, Neighbour, Sink, View
from dataplane.rtnetlink import (
    AddressMessage,
    ConfigurationMessage,
    Dump,
    Envelope,
    LinkMessage,
    Message,
    NeighbourMessage,
    NetlinkError,
    RouteMessage,
    RuleMessage,
    default_interface,
    interface_of,
)

__all__ = [
    "KernelTables",
    "Link",
    "Neighbour",
    "NetlinkError",
    "Route",
    "Sink",
    "default_interface",
    "interface_of",
]

log = logging.getLogger("stoq.kernel_tables")

MAX_PENDING_EVENTS = 16384  # Kept while a dump runs; more, and it is made again.

START_SECONDS = 10.0
SETTLE_SECONDS = 0.02  # From the first reason for a dump to the dump: reasons come in bursts.
# Between dumps we rest four times as long as one kept us busy, so that they take at most a fifth of the
# loop's time, whatever happens around us. Decoding an entry takes some 100 µs.
PAUSE_SECONDS_PER_ENTRY = 4 * 100e-6
MAX_PAUSE_SECONDS = 5.0
REFRESH_SECONDS = 60.0  # Dumped again though there is no reason: what we have not thought of heals.
TURN_SECONDS = 0.002  # Decoding gives way to the loop's other work after this.
FLUSH_SECONDS = 0.02  # During a storm of events the sink is told this often.
STALL_SECONDS = 2.0  # A dump that brings nothing for so long is lost; the kernel's answers take microseconds.
DUMP_TRIES = 3  # A dump that changed under the kernel's hands is made again so often.

_EVERYTHING = frozenset(Dump)
_ROUTE_DUMPS = frozenset({Dump.LOCAL_ROUTES, Dump.MAIN_ROUTES})


@dataclass(slots=True)
class _Run:
    """A series of dumps, one after the other: the kernel makes one at a time for a socket."""

    pending: deque[Dump]
    entries: int = 0  # Answers so far.
    current: Dump | None = None
    tries: int = 0
    interrupted: bool = False
    found: list[Message] = field(default_factory=list)
    routes: RouteTable = field(default_factory=RouteTable)  # Both tables' dumps go in, then it takes over.
    local_routes: dict[Slot, list[RouteMessage]] = field(default_factory=dict)
    events: list[Message] = field(default_factory=list)  # Since the series began.
    lost_events: bool = False


class KernelTables:
    """``async with KernelTables(ifindex, sink) as tables``: inside the block the sink has been told all, and
    is told every change.

    `open_socket` makes the rtnetlink socket; with another one the tables of another network namespace are
    followed. Raises NetlinkError on entering when the kernel refuses.
    """

    def __init__(
        self,
        ifindex: int,
        sink: Sink,
        *,
        open_socket: Callable[[], socket.socket] = rtnetlink.open_socket,
        max_routes: int = MAX_ROUTES,
        max_neighbours: int = MAX_NEIGHBOURS,
    ) -> None:
        self.ifindex = ifindex
        self._view = View(ifindex, sink, max_routes=max_routes, max_neighbours=max_neighbours)
        self._open_socket = open_socket
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._queue: deque[Envelope] = deque()  # Received and not decoded yet: at most one datagram's.
        self._continuing = False
        self._congested = False  # The kernel drops events.
        self._flushed = 0.0
        self._sequence = 0
        self._progress = 0  # Messages taken.
        self._port = 0
        self._run: _Run | None = None
        self._wanted: set[Dump] = set()
        self._pause = 0.0
        self._counts = dict.fromkeys(("events", "dumps", "overruns", "interrupted_dumps", "unreadable"), 0)

    # ---- life ----

    async def __aenter__(self) -> KernelTables:
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        try:
            self._connect()
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            self.close()
            raise NetlinkError(
                f"rtnetlink: the kernel's tables did not come within {START_SECONDS} s"
            ) from None
        except BaseException:
            self.close()
            raise
        if self.link is None or self.link.gone:
            self.close()
            raise NetlinkError(f"there is no interface with index {self.ifindex} here")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tell nothing more. What was told stays told. May be called twice."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._disconnect()
        self._loop = None
        self._view.closed = True

    def _connect(self) -> None:
        """A new socket, and all dumps by it."""
        assert self._loop is not None
        self._disconnect()
        self._socket = self._open_socket()
        self._port = int(self._socket.getsockname()[0])
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._wanted |= _EVERYTHING
        self._start_run()
        self._later("refresh", REFRESH_SECONDS, self._refresh)

    def _disconnect(self) -> None:
        if self._socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        for name in ("run", "stall", "reconnect"):
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()
        self._socket = None
        self._congested = False
        self._run = None
        self._queue.clear()

    def _later(self, name: str, delay: float, call: Callable[[], None]) -> None:
        """One timer of each name; an earlier one stays."""
        if self._loop is not None and name not in self._timers:

            def fire() -> None:
                del self._timers[name]
                call()

            self._timers[name] = self._loop.call_later(delay, fire)

    def _refresh(self) -> None:
        self._want(_EVERYTHING)
        self._later("refresh", REFRESH_SECONDS, self._refresh)

    def _reconnect(self, why: str) -> None:
        log.warning("rtnetlink: %s; starting again", why)
        try:
            self._connect()
        except NetlinkError as error:
            log.warning("%s", error)
            self._later("reconnect", MAX_PAUSE_SECONDS, lambda: self._reconnect("no socket"))

    # ---- reading ----

    def _on_readable(self) -> None:
        if not self._continuing:
            self._work()

    def _continue(self) -> None:
        self._continuing = False
        self._work()

    def _work(self) -> None:
        """Take what there is, for at most TURN_SECONDS at a time."""
        loop, sock = self._loop, self._socket
        if loop is None or sock is None:
            return
        end = loop.time() + TURN_SECONDS
        drained = False
        while not drained and loop.time() < end:
            if not self._queue:
                drained = not self._receive(sock)
            else:
                self._take(self._queue.popleft())
            if self._socket is not sock:  # Replaced or closed on the way.
                return
        if drained or loop.time() - self._flushed > FLUSH_SECONDS:
            self._flushed = loop.time()
            self._view.flush()
        if not drained and not self._continuing and self._loop is not None:
            self._continuing = True
            self._loop.call_soon(self._continue)

    def _receive(self, sock: socket.socket) -> bool:
        """Read a datagram into the queue. False: there is none."""
        try:
            envelopes = rtnetlink.receive(sock)
        except BlockingIOError:
            self._congested = False
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                self._reconnect(str(error))
            else:
                self._overrun()
            return self._socket is sock
        if envelopes is None:
            self._overrun()
        else:
            self._queue.extend(envelopes)
        return True

    def _overrun(self) -> None:
        """Events are lost, and more will be, without another word, until the socket's queue has been empty:
        only dumps begun after that tell the truth."""
        self._counts["overruns"] += 1
        self._congested = True
        if self._run is not None:
            self._run.lost_events = True
        self._want(_EVERYTHING)

    def _take(self, envelope: Envelope) -> None:
        run = self._run
        self._progress += 1
        # Not by the sequence number alone: an event has that of the request, by anyone, that made the change.
        to_us = envelope.port == self._port
        answer = to_us and run is not None and envelope.sequence == self._sequence
        if envelope.type in (rtnetlink.NLMSG_DONE, rtnetlink.NLMSG_ERROR):
            if answer and run is not None:
                run.interrupted |= bool(envelope.flags & rtnetlink.NLM_F_DUMP_INTR)
                self._end_dump(run, envelope.error_number())
            return
        if envelope.type == rtnetlink.NLMSG_OVERRUN:
            self._overrun()
            return
        try:
            message = rtnetlink.decode(envelope, self.ifindex)
        except NetlinkError as error:
            self._counts["unreadable"] += 1
            log.warning("%s", error)
            if not answer:
                self._want(_EVERYTHING)
            return
        if answer and run is not None:
            run.entries += 1
            run.interrupted |= bool(envelope.flags & rtnetlink.NLM_F_DUMP_INTR)
            if isinstance(message, RouteMessage):
                run.routes.add(message)
            elif message is not None:
                run.found.append(message)
        elif message is not None and not to_us:
            self._counts["events"] += 1
            self._on_event(message)

    # ---- dumps ----

    def _want(self, dumps: Iterable[Dump], delay: float = SETTLE_SECONDS) -> None:
        self._wanted.update(dumps)
        if self._run is None:
            self._later("run", max(delay, self._pause), self._start_run)

    def _start_run(self) -> None:
        if self._run is not None or self._loop is None or self._socket is None or not self._wanted:
            return
        if self._congested:
            self._later("run", SETTLE_SECONDS, self._start_run)
            return
        if self._wanted & _ROUTE_DUMPS:
            self._wanted |= _ROUTE_DUMPS
        self._run = _Run(deque(dump for dump in Dump if dump in self._wanted))
        self._wanted.clear()
        self._next_dump(self._run)

    def _next_dump(self, run: _Run) -> None:
        if not run.pending:
            self._end_run(run)
            return
        run.current = run.pending.popleft()
        run.tries = 0
        self._ask(run)

    def _ask(self, run: _Run) -> None:
        assert run.current is not None and self._socket is not None
        run.found.clear()
        run.interrupted = False
        run.tries += 1
        self._counts["dumps"] += 1
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        try:
            self._socket.send(rtnetlink.request(run.current, self._sequence))
        except OSError as error:
            self._fail(run, error.errno or 0)
        self._watch()

    def _watch(self) -> None:
        """An answer may be lost, like anything when a socket is full: see that the series goes on."""
        before = self._progress

        def check() -> None:
            if self._run is not None and self._progress == before:
                self._reconnect("a dump does not go on")
            elif self._run is not None:
                self._watch()

        self._later("stall", STALL_SECONDS, check)

    def _end_dump(self, run: _Run, error_number: int) -> None:
        assert run.current is not None
        if error_number == errno.ENOBUFS:
            # The socket was full when the dump was asked for. It is under way nevertheless, and begins when
            # there is room.
            return
        if error_number == errno.ENOENT:  # No such table: nothing in it.
            error_number = 0
        if run.interrupted and not error_number:
            self._counts["interrupted_dumps"] += 1
            if run.tries < DUMP_TRIES:
                if run.current in _ROUTE_DUMPS:
                    run.routes = RouteTable(run.local_routes)
                self._ask(run)
                return
            self._wanted.add(run.current)  # Better than what we have, and made again later.
        if error_number:
            self._fail(run, error_number)
            return
        self._adopt(run, run.current)
        self._next_dump(run)

    def _fail(self, run: _Run, error_number: int) -> None:
        """The kernel refused a dump. What is known stays, and it is asked for again with the next refresh; if
        it was only short of something, soon, by a new socket."""
        assert run.current is not None
        error = NetlinkError(
            f"rtnetlink: the dump of {run.current.name.lower()} failed: {os.strerror(error_number)}"
        )
        if self._ready is not None and not self._ready.done() and run.current is not Dump.RULES:
            self._run = None
            self._ready.set_exception(error)
            return
        if error_number in (errno.EBUSY, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS):
            self._later("reconnect", STALL_SECONDS, lambda: self._reconnect(str(error)))
            return
        log.warning("%s", error)
        if run.current is Dump.LOCAL_ROUTES and Dump.MAIN_ROUTES in run.pending:
            run.pending.remove(Dump.MAIN_ROUTES)  # Half of the routes must not take over.
        self._next_dump(run)

    def _adopt(self, run: _Run, dump: Dump) -> None:
        """What the dump said, and then the events since, is what is known."""
        if dump is Dump.LOCAL_ROUTES:
            run.local_routes = dict(run.routes.slots)  # The other dump's slots are others.
            return
        if dump is Dump.MAIN_ROUTES:
            self._view.replace_routes(run.routes)
        elif dump is Dump.NEIGHBOURS:
            self._view.forget_neighbours()
        elif dump is Dump.ADDRESSES:
            self._view.forget_addresses()
        elif dump is Dump.RULES:
            self._view.replace_rules(frozenset(m.text for m in run.found if isinstance(m, RuleMessage)))
        else:
            self._view.forget_links()
        for message in run.found:
            self._view.learn(message)
        kinds = _KINDS[dump]
        for message in run.events:
            if isinstance(message, kinds) and not self._view.learn(message):
                self._wanted |= _ROUTE_DUMPS

    def _end_run(self, run: _Run) -> None:
        self._run = None
        self._pause = min(PAUSE_SECONDS_PER_ENTRY * run.entries, MAX_PAUSE_SECONDS)
        if run.lost_events:
            self._wanted |= _EVERYTHING
        if self._wanted:
            self._want(())
        self._view.flush()
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # ---- events ----

    def _on_event(self, message: Message) -> None:
        run = self._run
        if run is not None and not run.lost_events:
            if len(run.events) < MAX_PENDING_EVENTS:
                run.events.append(message)
            else:
                run.lost_events = True
        if isinstance(message, RuleMessage):
            self._want({Dump.RULES})
        elif isinstance(message, ConfigurationMessage):
            if message.ifindex == self.ifindex:
                self._want({Dump.LINKS})
        elif isinstance(message, LinkMessage):
            if self._view.link_turned(message):
                self._want(_ROUTE_DUMPS | {Dump.ADDRESSES, Dump.NEIGHBOURS})
            self._view.learn(message)
        elif not self._view.learn(message):
            self._want(_ROUTE_DUMPS)

    # ---- for people and tests ----

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those told, most specific first."""
        return self._view.routes

    @property
    def neighbours(self) -> tuple[Neighbour, ...]:
        """Those told."""
        return self._view.neighbours

    @property
    def addresses(self) -> frozenset[bytes]:
        """Those told."""
        return self._view.addresses

    @property
    def link(self) -> Link | None:
        """As it was told."""
        return self._view.link

    @property
    def notes(self) -> list[str]:
        """What of the kernel's routing cannot be followed, for a report."""
        return self._view.notes

    def counters(self) -> dict[str, int]:
        """Events, dumps, overruns and so on since the start; entries told and left out now."""
        return {**self._counts, **self._view.counters()}


# Which events are about what a dump tells.
_KINDS: dict[Dump, type[Message]] = {
    Dump.LINKS: LinkMessage,
    Dump.ADDRESSES: AddressMessage,
    Dump.RULES: RuleMessage,
    Dump.LOCAL_ROUTES: RouteMessage,
    Dump.MAIN_ROUTES: RouteMessage,
    Dump.NEIGHBOURS: NeighbourMessage,
}

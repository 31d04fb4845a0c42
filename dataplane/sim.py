"""Two datapaths joined by the in-memory wire, on a virtual clock: the whole stack in one thread, reproducible
by its seed.

      Simulation(seed, …).run(main)
        VirtualLoop (asyncio; time() is the simulation's)
          nothing to run now ──▶ stoq_sim_run: both workers and the wire, to the next event ──▶ dispatch

The same `Datapath`, `Connection` and `Stream` run here as over a network; only time and packets are
simulated. A second of virtual time in which nothing happens costs nothing. Python's own randomness (TLS keys)
is not seeded: with the same seed the wire treats the n-th datagram alike, but their bytes differ.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dataplane.address import STOQ_PORT, Address
from dataplane.config import Config, to_c
from dataplane.datapath import Datapath
from dataplane.errors import DatapathError
from dataplane.handshake import HandshakeFactory
from dataplane.port import ffi, lib

T = TypeVar("T")

IDLE_SECONDS = (
    3600.0  # So long nothing may happen while somebody waits without a timeout: then the test hangs for ever.
)
REBIND_PORT = 1
REBIND_ADDRESS = 2


@dataclass(frozen=True, slots=True)
class Impairment:
    """One direction of the wire: probabilities from 0 to 1, times in seconds. Zero: as a perfect wire."""

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder_delay: float = 0.0
    rate_bps: int = 0
    queue_bytes: int = 0
    ce_above_bytes: int = 0
    mtu: int = 0

    def to_c(self) -> Any:
        """As struct stoq_impairment."""
        c = ffi.new("struct stoq_impairment *")
        for name in ("loss", "duplicate", "corrupt", "reorder"):
            setattr(c, f"{name}_ppm", round(getattr(self, name) * 1e6))
        c.delay_ns = round(self.delay * 1e9)
        c.jitter_ns = round(self.jitter * 1e9)
        c.reorder_ns = round(self.reorder_delay * 1e9)
        for name in ("rate_bps", "queue_bytes", "ce_above_bytes", "mtu"):
            setattr(c, name, getattr(self, name))
        return c


class _VirtualSelector(selectors.DefaultSelector):
    """Instead of sleeping, runs the simulation: the loop's own descriptors are only looked at."""

    advance: Callable[[float | None], None] = staticmethod(lambda seconds: None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the simulation's."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        self.now: Callable[[], float] = lambda: 0.0
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now()

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run `func` at once: while a thread worked, virtual time would run away."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def drive(self, now: Callable[[], float], advance: Callable[[float | None], None]) -> None:
        """Take time from `now` and let it pass with `advance`."""
        self.now = now
        self._virtual.advance = advance


class Simulation:
    """A client and a server; see the module's text.

    simulation = Simulation(7, client_handshakes, server_handshakes, up=Impairment(loss=0.1))
    simulation.run(main)    # async def main(simulation): connection = await simulation.connect(); …
    """

    def __init__(
        self,
        seed: int,
        client_handshakes: HandshakeFactory,
        server_handshakes: HandshakeFactory,
        *,
        client: Config | None = None,
        server: Config | None = None,
        up: Impairment | None = None,
        down: Impairment | None = None,
    ) -> None:
        self.client = Datapath(client or Config(), client_handshakes)
        self.server = Datapath(server or Config(server=True), server_handshakes)
        self.server_address = Address("::1", STOQ_PORT)
        self._seed = seed
        self._wire = (up or Impairment(), down or Impairment())
        self._sim: Any = None
        self._until_ns = 0

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return float(lib.stoq_sim_now(self._sim)) / 1e9

    def impair(self, up: Impairment, down: Impairment) -> None:
        """Change the wire from now on."""
        lib.stoq_sim_impair(self._sim, up.to_c(), down.to_c())

    def rebind(self, what: int) -> None:
        """Move the client to another port (REBIND_PORT) or address (REBIND_ADDRESS), as a NAT does."""
        lib.stoq_sim_rebind(self._sim, what)

    def run(self, main: Callable[[Simulation], Awaitable[T]]) -> T:
        """Run `main` to its end on a loop of its own. Raises DatapathError when everybody waits for ever."""
        error = ffi.new("struct stoq_error *")
        (client, keep_client), (server, keep_server) = to_c(self.client.config), to_c(self.server.config)
        up, down = (impairment.to_c() for impairment in self._wire)
        self._sim = lib.stoq_sim_open(self._seed, client, server, up, down, error)
        del keep_client, keep_server
        if self._sim == ffi.NULL:
            raise DatapathError(ffi.string(error.text).decode("utf-8", "replace"), error.code)
        loop = VirtualLoop()
        loop.drive(lambda: self.now, self._advance)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                return runner.run(self._main(main))
        finally:
            lib.stoq_sim_close(self._sim)
            self._sim = None

    async def _main(self, main: Callable[[Simulation], Awaitable[T]]) -> T:
        handle = lib.stoq_sim_datapath(self._sim)
        self.client.attach(handle, range(1))
        self.server.attach(handle, range(1, 2))
        self.server_address = self.server.local_address
        try:
            return await main(self)
        finally:
            self.client.detach()
            self.server.detach()

    def run_engines(self, until: int) -> int:
        """Both workers and the wire, until `until` or the first event; returns when that is, in ns."""
        return int(lib.stoq_sim_run(self._sim, until))

    def _advance(self, seconds: float | None) -> None:
        """Let at most `seconds` pass; stop at the first event."""
        before = lib.stoq_sim_now(self._sim)
        span = IDLE_SECONDS if seconds is None else seconds
        after = self.run_engines(before + max(1, round(span * 1e9)))
        self.client.dispatch()
        self.server.dispatch()
        if seconds is None and after - before >= round(span * 1e9):
            raise DatapathError(
                f"nothing happened for {IDLE_SECONDS:g} virtual seconds: everybody waits for ever"
            )

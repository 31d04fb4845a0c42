"""A connected pair on the virtual clock, for tests of streams and connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from control.handshake import TlsFactory
from dataplane import Config, Connection, Stream
from dataplane.sim import Impairment, Simulation
from tests.python.conftest import Pki

T = TypeVar("T")

WIRE = Impairment(delay=0.005)  # 10 ms of round trip: time that passes can be told from time that does not.
PATIENCE = 10.0  # Virtual seconds, under the idle timeout: what has not happened by then does not happen.


@dataclass(frozen=True)
class Pair:
    """Both ends of one connection."""

    simulation: Simulation
    client: Connection
    server: Connection

    async def streams(self) -> tuple[Stream, Stream]:
        """Both ends of a bidirectional stream opened by the client, which has said `!` and been heard."""
        ours = await self.client.open_stream()
        ours.write(b"!")
        theirs = await self.server.accept_stream()
        assert await theirs.readexactly(1) == b"!"
        return ours, theirs


def run(
    pki: Pki,
    main: Callable[[Pair], Awaitable[T]],
    *,
    client: Config | None = None,
    server: Config | None = None,
    wire: Impairment = WIRE,
    seed: int = 1,
) -> T:
    """Connect a client to a server over `wire` and run `main` on the pair."""

    async def connected(simulation: Simulation) -> T:
        connection = await simulation.client.connect(simulation.server_address, server_name="node-b")
        return await main(Pair(simulation, connection, await simulation.server.accept()))

    simulation = Simulation(
        seed,
        TlsFactory(pki.client),
        TlsFactory(pki.server),
        client=client or Config(),
        server=server or Config(server=True),
        up=wire,
        down=wire,
    )
    return simulation.run(connected)

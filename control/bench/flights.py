"""What handshake processes can do: one ClientHello answered again and again, as a node would have it done.

Each first flight is a key exchange, a key schedule, a signature and everything up to the server's Finished;
with it goes what handing work to a process costs. There is no engine and no client beside them, which on a
machine with few cores would be what is measured.
"""

from __future__ import annotations

import asyncio
import time

from control.handshake import HandshakeConfig, ProcessFactory, TlsFactory
from dataplane.address import Address
from dataplane.handshake import Aead, Handshake, Level, PeerIdentity, Target

PARAMS = bytes(80)  # TLS carries transport parameters and does not read them.
CLIENT = Address("::1", 1)
AT_ONCE = 4  # First flights under way, each process's: it always has one in hand and one waiting.
WARM_SECONDS = 0.5


class Sink:
    """A HandshakeSink that ignores what it is told; the two below listen to one thing each."""

    def crypto(self, level: Level, data: bytes) -> None:
        """See HandshakeSink."""

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        """See HandshakeSink."""

    def peer_params(self, data: bytes) -> None:
        """See HandshakeSink."""

    def complete(self, alpn: str, identity: PeerIdentity | None) -> None:
        """See HandshakeSink."""

    def fail(self, code: int, reason: str) -> None:
        """See HandshakeSink."""
        raise RuntimeError(f"a handshake failed: {reason}")


class Hello(Sink):
    """A client's first words."""

    def __init__(self, config: HandshakeConfig, server_name: str) -> None:
        self.data = b""
        TlsFactory(config).client(self, Target(CLIENT, server_name)).start(PARAMS)

    def crypto(self, level: Level, data: bytes) -> None:
        """See HandshakeSink."""
        self.data += data


class Flight(Sink):
    """A connection that waits for its server's first flight."""

    def __init__(self, owner: FirstFlights) -> None:
        self._owner = owner
        self.begin = time.perf_counter()
        self.handshake: Handshake | None = None

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        """See HandshakeSink. The 1-RTT secret to send with is the last word of the flight."""
        if level is Level.ONE_RTT and send:
            self._owner.done(self)

    def fail(self, code: int, reason: str) -> None:
        """See HandshakeSink."""
        self._owner.failed(reason)


class FirstFlights:
    """See the module's text."""

    def __init__(self, factory: ProcessFactory, hello: bytes) -> None:
        self._factory = factory
        self._hello = hello
        self._counting = False
        self._running = True
        self.times: list[float] = []

    def begin(self) -> None:
        """One more."""
        flight = Flight(self)
        flight.handshake = self._factory.server(flight, CLIENT)
        flight.handshake.start(PARAMS)
        flight.handshake.receive(Level.INITIAL, self._hello)

    def done(self, flight: Flight) -> None:
        """It has come: the next takes its place."""
        if flight.handshake is not None:
            flight.handshake.end()
        if self._counting:
            self.times.append(time.perf_counter() - flight.begin)
        if self._running:
            self.begin()

    def failed(self, reason: str) -> None:
        """It did not come. At the end that is so for those under way."""
        if self._running:
            raise RuntimeError(f"a first flight failed: {reason}")

    async def run(self, seconds: float, at_once: int) -> float:
        """For about so long; returns how long it was."""
        for _ in range(at_once):
            self.begin()
        await asyncio.sleep(WARM_SECONDS)
        begin, self._counting = time.perf_counter(), True
        await asyncio.sleep(seconds)
        self._counting = self._running = False
        return time.perf_counter() - begin


async def first_flights(
    client: HandshakeConfig, server: HandshakeConfig, server_name: str, seconds: float, count: int
) -> tuple[list[float], float]:
    """How long each took in `count` processes, and all together."""
    hello = Hello(client, server_name).data
    factory = ProcessFactory(server, count)
    try:
        await factory.open()
        flights = FirstFlights(factory, hello)
        took = await flights.run(seconds, AT_ONCE * count)
    finally:
        factory.close()
    return flights.times, took

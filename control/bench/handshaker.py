"""The programs that `stoq bench handshake` measures: full mutual TLS 1.3 handshakes, one after the other or
several at a time.

      python -m control.bench.handshaker …
        serve    --certs DIR --listen [ADDRESS]:PORT
        connect  --certs DIR --to [ADDRESS]:PORT --seconds 3 --concurrency 8 | --rate 100 [--alpn perf]
        simulate --certs DIR --seconds 3 [--resumption]   ours, both ends in this thread, in memory
        aioquic  --certs DIR --seconds 3     aioquic's QuicConnection, the same way
        processes --certs DIR --seconds 3 --count 2    first flights of handshake processes

Every line on standard output is a JSON object, as from `stoq --json`. DIR is as `stoq dev-certs` writes it
for `client` and `server`. In all of them both ends show an ECDSA P-256 certificate; ours verify each
other's chain, aioquic's client verifies the server's chain and its server only the signature of the
client's certificate (it cannot do more). A handshake counts when both ends hold it complete; in memory only
that is timed, not the making of the connection's end.

In memory the server's side is told apart: of aioquic all calls of the server's QuicConnection; of ours the
server's control plane (events, TLS, commands) and both engines with the wire, so that the client's engine is
charged to our server too. With `--rate` handshakes begin at fixed times, whether or not those before are
done, and each is timed from when it should have begun.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted

from control.bench.flights import first_flights
from control.bench.report import quantile
from control.console import Output, run_async, until_signal
from control.handshake import TlsFactory
from control.handshake.policy import ALPN_PERF, ALPN_POLICIES, ALPN_STOQ, Profile
from control.handshake.processes import MAX_PROCESSES
from control.handshake.session import TlsSession
from control.options import FILE, NodeOptions
from control.report import datapath_report
from dataplane import Config, Datapath, StoqError, parse_address
from dataplane.sim import Simulation

SERVER_NAME = "server"
MAX_FLIGHTS = 64  # A handshake in memory without loss takes 4; more means it does not come to an end.


def options(certs: Path, name: str, **more: Any) -> NodeOptions:
    """A node's options with its files in `certs`."""
    return NodeOptions(cert=certs / f"{name}.pem", key=certs / f"{name}.key", ca=certs / "ca.pem", **more)


def server_side(times: list[float]) -> dict[str, Any]:
    """What a server alone could do, from its share of each handshake."""
    return {
        "server_per_second": len(times) / sum(times) if times else 0.0,
        "server_p50_us": quantile(times, 0.50) * 1e6,
    }


def result(times: list[float], seconds: float, failed: int = 0) -> dict[str, Any]:
    """Handshakes a second over `seconds`, and how long each took."""
    return {
        "handshakes": len(times),
        "failed": failed,
        "seconds": seconds,
        "handshakes_per_second": len(times) / seconds if seconds > 0 else 0.0,
        "p50_ms": quantile(times, 0.50) * 1e3,
        "p99_ms": quantile(times, 0.99) * 1e3,
    }


async def serve(output: Output, node: NodeOptions, listen: str) -> None:
    """Take connections until a signal comes."""

    async def accept(datapath: Datapath) -> None:
        async for _ in datapath.accept_connections():
            pass

    async with node.datapath((ALPN_STOQ,), listen=listen) as datapath:
        local = datapath.local_address
        output.event("listening", address=local.ip, port=local.port)
        accepting = asyncio.ensure_future(accept(datapath))
        try:
            await until_signal()
        finally:
            accepting.cancel()
        report = datapath_report(datapath)
    output.event("summary", **report)


async def connect(
    output: Output,
    node: NodeOptions,
    to: str,
    seconds: float,
    concurrency: int,
    alpn: str = ALPN_STOQ,
    rate: float = 0.0,
) -> None:
    """Handshakes with a server, `concurrency` at a time, or `rate` a second. A connection is closed as soon
    as it stands."""
    address = parse_address(to)
    times: list[float] = []
    errors: list[str] = []

    async def one_after_the_other(datapath: Datapath, end: float) -> None:
        while (begin := time.perf_counter()) < end:
            try:
                connection = await datapath.connect(address, server_name=SERVER_NAME)
            except StoqError as error:
                errors.append(str(error))
                continue
            times.append(time.perf_counter() - begin)
            connection.close()

    async def one(datapath: Datapath, due: float) -> None:
        await asyncio.sleep(due - time.perf_counter())
        try:
            connection = await datapath.connect(address, server_name=SERVER_NAME)
        except StoqError as error:
            errors.append(str(error))
            return
        times.append(time.perf_counter() - due)
        connection.close()

    async with node.datapath((alpn,)) as datapath:
        output.event("begin")
        begin = time.perf_counter()
        if rate > 0:
            dues = [begin + number / rate for number in range(max(1, round(rate * seconds)))]
            await asyncio.gather(*(one(datapath, due) for due in dues))
        else:
            end = begin + seconds
            await asyncio.gather(*(one_after_the_other(datapath, end) for _ in range(concurrency)))
        took = time.perf_counter() - begin
        report = datapath_report(datapath)
    output.event("result", **result(times, took, len(errors)), errors=errors[:3], **report)


class TimedDatapath(Datapath):
    """Adds up the time of its side of the control plane: events, TLS, commands."""

    seconds = 0.0

    def dispatch(self) -> None:
        """See Datapath."""
        begin = time.perf_counter()
        super().dispatch()
        self.seconds += time.perf_counter() - begin

    def _tick(self) -> None:
        begin = time.perf_counter()
        super()._tick()
        self.seconds += time.perf_counter() - begin


class TimedSimulation(Simulation):
    """Adds up the time of the server's control plane and of both engines with the wire between them."""

    def __init__(self, client: TlsFactory, server: TlsFactory) -> None:
        super().__init__(1, client, server)
        self.server = self._timed = TimedDatapath(Config(server=True), server)
        self._engines = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self._timed.seconds + self._engines

    def run_engines(self, until: int) -> int:
        """See Simulation."""
        begin = time.perf_counter()
        now = super().run_engines(until)
        self._engines += time.perf_counter() - begin
        return now


def simulate(certs: Path, seconds: float, *, resumption: bool = False) -> dict[str, Any]:
    """Our whole stack, both ends and the wire between them in this thread; packets are in memory."""
    client = options(certs, "client", resumption=resumption).handshakes((ALPN_STOQ,))
    server = options(certs, "server", resumption=resumption).handshakes((ALPN_STOQ,))
    simulation = TimedSimulation(client, server)
    times: list[float] = []
    server_times: list[float] = []
    failed = 0

    async def one() -> tuple[float, float, bool]:
        begin, spent = time.perf_counter(), simulation.seconds
        ours = await simulation.client.connect(simulation.server_address, server_name=SERVER_NAME)
        theirs = await simulation.server.accept()
        took, at_server = time.perf_counter() - begin, simulation.seconds - spent
        resumed = isinstance(theirs.handshake, TlsSession) and theirs.handshake.resumed
        if resumption:
            await asyncio.sleep(0.1)  # Virtual: until the ticket is there.
        ours.close()
        await asyncio.gather(ours.wait_closed(), theirs.wait_closed())
        return took, at_server, resumed

    async def main(simulation: Simulation) -> None:
        nonlocal failed
        await one()  # Chains are verified, and a first ticket is there.
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            took, at_server, resumed = await one()
            if resumed is not resumption:
                failed += 1
                continue
            times.append(took)
            server_times.append(at_server)

    simulation.run(main)
    return result(times, sum(times), failed) | server_side(server_times)


class MutualServer(QuicConnection):
    """aioquic's server, asking for the client's certificate (it has no public switch for that)."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = True


def aioquic_handshake(
    client_configuration: QuicConfiguration, server_configuration: QuicConfiguration
) -> float:
    """One handshake in memory; returns the seconds spent in the server. Raises RuntimeError when it fails."""
    now = time.monotonic()
    addresses = ("::1", 1), ("::1", 2)
    client = QuicConnection(configuration=client_configuration)
    client.connect(addresses[1], now=now)
    begin = time.perf_counter()
    server = MutualServer(
        configuration=server_configuration,
        original_destination_connection_id=client.original_destination_connection_id,
    )
    spent = time.perf_counter() - begin
    ends = ((client, server, addresses[0]), (server, client, addresses[1]))
    complete: set[QuicConnection] = set()
    for _ in range(MAX_FLIGHTS):
        for sender, receiver, address in ends:
            begin = time.perf_counter()
            datagrams = sender.datagrams_to_send(now)
            spent += time.perf_counter() - begin if sender is server else 0.0
            begin = time.perf_counter()
            for data, _to in datagrams:
                receiver.receive_datagram(data, address, now)
            while (event := receiver.next_event()) is not None:
                if isinstance(event, HandshakeCompleted):
                    complete.add(receiver)
                elif isinstance(event, ConnectionTerminated):
                    raise RuntimeError(f"aioquic's handshake failed: {event.reason_phrase}")
            spent += time.perf_counter() - begin if receiver is server else 0.0
        if len(complete) == 2:
            if server.tls._peer_certificate is None:
                raise RuntimeError("aioquic's server did not get the client's certificate")
            return spent
    raise RuntimeError("aioquic's handshake does not come to an end")


def aioquic(certs: Path, seconds: float) -> dict[str, Any]:
    """aioquic's own QuicConnection at both ends, in this thread; datagrams are handed over in memory."""
    client = QuicConfiguration(is_client=True, alpn_protocols=[ALPN_STOQ], server_name=SERVER_NAME)
    client.verify_mode = ssl.CERT_REQUIRED
    client.load_verify_locations(cadata=(certs / "ca.pem").read_bytes())
    client.load_cert_chain(certs / "client.pem", certs / "client.key")
    server = QuicConfiguration(is_client=False, alpn_protocols=[ALPN_STOQ])
    server.load_cert_chain(certs / "server.pem", certs / "server.key")
    times: list[float] = []
    server_times: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        server_times.append(aioquic_handshake(client, server))
        times.append(time.perf_counter() - begin)
    return result(times, sum(times)) | server_side(server_times)


@click.group()
def main() -> None:
    """What `stoq bench handshake` measures."""


_certs = click.option("--certs", type=FILE, required=True, help="Directory of `stoq dev-certs`.")
_seconds = click.option("--seconds", type=click.FloatRange(0, min_open=True), default=3.0)
_core = click.option("--core", type=int, default=-1, help="Pin the worker to it.")
_backend = click.option("--backend", default="io_uring")


@main.command("serve")
@click.option("--listen", required=True)
@_certs
@_core
@_backend
def serve_command(listen: str, certs: Path, core: int, backend: str) -> None:
    """Take connections until interrupted."""
    output = Output(json_lines=True)
    node = options(certs, "server", core=(core,), backend=backend)
    raise SystemExit(run_async(output, serve(output, node, listen)))


@main.command("connect")
@click.option("--to", required=True)
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="Begin so many a second.")
@click.option("--concurrency", type=click.IntRange(1), default=1)
@click.option(
    "--alpn",
    type=click.Choice((ALPN_STOQ, ALPN_PERF)),
    default=ALPN_STOQ,
    help="perf: with `stoq perf serve`, which asks for no client certificate.",
)
@_certs
@_seconds
@_core
@_backend
def connect_command(
    to: str,
    concurrency: int,
    rate: float,
    alpn: str,
    certs: Path,
    seconds: float,
    core: int,
    backend: str,
) -> None:
    """Make handshakes with a server."""
    output = Output(json_lines=True)
    profile = ALPN_POLICIES[alpn].test_only
    more = {"profile": Profile.TEST.value} if profile else {}
    node = options(certs, "client", core=(core,), backend=backend, **more)
    raise SystemExit(run_async(output, connect(output, node, to, seconds, concurrency, alpn, rate)))


def _in_memory(run: Callable[[Path, float], dict[str, Any]], certs: Path, seconds: float) -> None:
    Output(json_lines=True).event("result", **run(certs, seconds))


@main.command("simulate")
@click.option("--resumption", is_flag=True, help="All but the first are resumed.")
@_certs
@_seconds
def simulate_command(certs: Path, seconds: float, resumption: bool) -> None:
    """Ours in memory."""
    _in_memory(functools.partial(simulate, resumption=resumption), certs, seconds)


@main.command("aioquic")
@_certs
@_seconds
def aioquic_command(certs: Path, seconds: float) -> None:
    """aioquic in memory."""
    _in_memory(aioquic, certs, seconds)


def processes(certs: Path, seconds: float, *, count: int) -> dict[str, Any]:
    """What `count` handshake processes can do."""
    client = options(certs, "client").handshake_config((ALPN_STOQ,))
    server = options(certs, "server").handshake_config((ALPN_STOQ,))
    return result(*asyncio.run(first_flights(client, server, SERVER_NAME, seconds, count)))


@main.command("processes")
@click.option("--count", type=click.IntRange(1, MAX_PROCESSES), default=1)
@_certs
@_seconds
def processes_command(certs: Path, seconds: float, count: int) -> None:
    """First flights of handshake processes."""
    _in_memory(functools.partial(processes, count=count), certs, seconds)


if __name__ == "__main__":
    main()

"""Goodput of one `perf` transfer over veth, one core a side, beside the no-protocol ceiling and raw UDP,
and beside other QUIC libraries that transfer the same way.

One trial, in this order:

      ours          `stoq perf serve` and `stoq perf client`, one download (or upload) for some seconds
      ceiling       csrc/bench/ceiling.c: the same datagrams, each sealed and opened, no protocol
      raw UDP       the same without crypto
      many …        (--many N) ours again with N streams, then with N connections
      ours, aioquic, qh3   (--compare) requests of 8 MiB, one after the other, over one connection

Goodput is stream payload delivered in the time from the first request to the last byte counted: the
handshake is not in it, slow start is. In the ceiling the first 0.2 s are not counted (csrc/bench/ceiling.c
says why).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.bench import environment, yardsticks
from control.bench.processes import ROOT, Program, python, running, stoq
from control.bench.report import Steps, median, pairwise, spread
from control.console import Output
from control.nodes import Place
from dataplane import STOQ_PORT

FOR_EVER_BYTES = 1 << 50  # A transfer that only the clock ends.
COMPARE_BYTES = 8 << 20  # Of one request in the comparison: the libraries keep a whole response in memory.
PEERS = ("aioquic", "qh3")
PEER_PORT = 4433
MANY = {"many_streams": "streams", "many_connections": "connections"}
RATIO = "median over trials of goodput_gbps / ceiling_gbps within the trial"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. Times in seconds, sizes in bytes."""

    trials: int = 3
    seconds: float = 3.0
    mtu: int = 1500
    download: bool = True
    streams: int = 1
    connections: int = 1
    many: int = 0  # Streams, and connections, to compare one with; 0: none.
    backend: str = "io_uring"
    compare: bool = True
    options: tuple[str, ...] = ()  # Further options of `stoq perf` on both sides.

    @property
    def datagram_bytes(self) -> int:
        """UDP payload of a full datagram."""
        return self.mtu - yardsticks.HEADERS_BYTES


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it is measured: the client's and the server's place, and the directory of certificates."""

    settings: Settings
    client: Place
    server: Place
    certs: Path

    def node(self, core: int) -> list[str]:
        """Options that our two sides share."""
        settings = self.settings
        pin = ["--core", str(core)] if core >= 0 else []
        datagram = ["--max-datagram", str(settings.datagram_bytes)]
        return ["--profile", "test", "--backend", settings.backend, *datagram, *pin, *settings.options]

    def server_files(self) -> list[str]:
        """The server's certificate and key."""
        return ["--cert", str(self.certs / "server.pem"), "--key", str(self.certs / "server.key")]

    def ca(self) -> list[str]:
        """What the client trusts."""
        return ["--ca", str(self.certs / "ca.pem")]

    async def perf(self, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A server, a client with `arguments`: the client's result and the server's summary."""
        server, client = self.server, self.client
        serve = ["perf", "serve", "--listen", f"[{server.address}]:{STOQ_PORT}", *self.server_files()]
        call = ["perf", "client", "--to", f"[{server.address}]:{STOQ_PORT}", *self.ca()]
        async with running("stoq perf serve", server, stoq(*serve, *self.node(server.core))) as listening:
            await listening.until("listening")
            argv = stoq(*call, *arguments, *self.node(client.core))
            async with running("stoq perf client", client, argv) as calling:
                result = await calling.until("result")
            return result, await listening.summary()

    async def ours(self, *, streams: int = 0, connections: int = 0) -> dict[str, Any]:
        """One long transfer, of the settings' streams and connections or of so many."""
        settings = self.settings
        what = ["--download" if settings.download else "--upload", str(FOR_EVER_BYTES)]
        what += ["--streams", str(streams or settings.streams)]
        what += ["--connections", str(connections or settings.connections)]
        return self._figures(*await self.perf(*what, "--seconds", f"{settings.seconds:g}"))

    async def ours_by_requests(self) -> dict[str, Any]:
        """As `peer`, with ours."""
        what = ["--download", str(COMPARE_BYTES), "--seconds", f"{self.settings.seconds:g}"]
        return self._figures(*await self.perf(*what))

    def _figures(self, client: dict[str, Any], server: dict[str, Any]) -> dict[str, Any]:
        down = client["result"]["bytes_received"] > client["result"]["bytes_sent"]
        sender, receiver = (server, client) if down else (client, server)
        counters = sender["counters"]
        return {
            "goodput_gbps": (client["download_bps"] if down else client["upload_bps"]) / 1e9,
            "seconds": client["result"]["duration"],
            "handshake_ms": client["handshake_seconds"] * 1e3,
            "datagram_bytes": client["datagram_bytes"],
            "packets_sent": counters["packets_sent"],
            "packets_lost": counters["packets_lost"],
            "congestion_events": counters["congestion_events"],
            "acks_received": counters["acks_received"],
            "dropped_at_socket": receiver["io"]["rx_dropped_queue"],
            "trains_sent": sender["trains_sent"],
            "trains_received": receiver["trains_received"],
            "aead": client["aead"],
            "crypto": client["crypto"],
            "backend": client["backend"],
            "cores": {"client": client["cores"], "server": server["cores"]},
        }

    async def peer(self, library: str) -> dict[str, Any]:
        """The same requests with another library at both ends, each on one core."""
        listen = f"[{self.server.address}]:{PEER_PORT}"
        module, datagram = "tests.peers.perf", ["--datagram", str(self.settings.datagram_bytes)]
        serve = python(module, library, "serve", "--listen", listen, *self.server_files(), *datagram)
        call = python(module, library, "download", "--to", listen, *self.ca(), *datagram)
        call += ["--download", str(COMPARE_BYTES), "--seconds", f"{self.settings.seconds:g}"]
        async with running(f"{library} server", self.server, serve, cwd=ROOT) as listening:
            await listening.until("listening")
            async with running(f"{library} client", self.client, call, cwd=ROOT) as calling:
                result = await _result(calling)
        return {"goodput_gbps": result["bytes"] * 8 / result["seconds"] / 1e9, **result}

    async def yardstick(self, crypto: bool) -> dict[str, Any]:
        """The ceiling, or raw UDP."""
        settings = self.settings
        return await yardsticks.ceiling(
            self.client,
            self.server,
            download=settings.download,
            datagram_bytes=settings.datagram_bytes,
            seconds=settings.seconds,
            crypto=crypto,
        )


async def _result(program: Program) -> dict[str, Any]:
    result = await program.until("result")
    return {name: value for name, value in result.items() if name != "event"}


def peers_here(output: Output) -> tuple[str, ...]:
    """The libraries that can be run beside ours; says what is missing."""
    found = []
    program = ROOT / "tests" / "peers" / "perf.py"
    for name in PEERS:
        if not program.is_file():
            output.note(
                f"{name} is left out: tests/peers/perf.py is not here (it is in the project's checkout)"
            )
        elif environment.version(name) is None:
            output.note(f"{name} is left out: not installed (`python -m tests.peers.install` in the project)")
        else:
            found.append(name)
    return tuple(found)


async def measure(output: Output, bench: Bench) -> dict[str, Any]:
    """All trials; the report with its figures."""
    settings = bench.settings
    yardsticks.program("ceiling")  # Said before anything runs.
    peers = peers_here(output) if settings.compare else ()
    contenders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "ours": bench.ours,
        "ceiling": lambda: bench.yardstick(True),
        "raw_udp": lambda: bench.yardstick(False),
    }
    if settings.many:
        contenders["many_streams"] = lambda: bench.ours(streams=settings.many)
        contenders["many_connections"] = lambda: bench.ours(connections=settings.many)
    if peers:
        contenders["ours_by_requests"] = bench.ours_by_requests
    for name in peers:
        contenders[name] = lambda name=name: bench.peer(name)  # type: ignore[misc]
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            trial: dict[str, Any] = {}
            for name, run in contenders.items():
                steps.begin(name)
                before = environment.CpuTimes.now()
                trial[name] = await run()
                trial[name]["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
                steps.done(name, f"{trial[name]['goodput_gbps']:.2f} Gbit/s")
            trial["ratio"] = trial["ours"]["goodput_gbps"] / max(trial["ceiling"]["goodput_gbps"], 1e-9)
            trials.append(trial)
    environment.finish(described, started)
    described["provider"] = trials[0]["ours"]["crypto"]
    described["aead"] = trials[0]["ours"]["aead"]
    described["backend"] = trials[0]["ours"]["backend"]

    def gbps(name: str) -> float:
        return median(trial[name]["goodput_gbps"] for trial in trials)

    return {
        "goodput_gbps": gbps("ours"),
        "ceiling_gbps": gbps("ceiling"),
        "ratio": pairwise(trials, "ours", "ceiling", "goodput_gbps"),
        "ratio_is": RATIO,
        "raw_udp_gbps": gbps("raw_udp"),
        "many": {
            name: {"goodput_gbps": gbps(name), "ratio": pairwise(trials, name, "ours", "goodput_gbps")}
            for name in MANY
            if settings.many
        },
        "compare": {
            name: {
                "goodput_gbps": gbps(name),
                "ours_goodput_gbps": gbps("ours_by_requests"),
                "ours_over_theirs": pairwise(trials, "ours_by_requests", name, "goodput_gbps"),
            }
            for name in peers
        },
        "settings": {
            "direction": "download" if settings.download else "upload",
            "seconds": settings.seconds,
            "streams": settings.streams,
            "connections": settings.connections,
            "many": settings.many,
            "datagram_bytes": settings.datagram_bytes,
            "options": list(settings.options),
        },
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials = report["trials"]
    ours = [trial["ours"] for trial in trials]

    def gbps(name: str) -> str:
        return f"{spread([trial[name]['goodput_gbps'] for trial in trials])} Gbit/s"

    lines = [
        ("goodput", gbps("ours")),
        ("ceiling, no protocol", gbps("ceiling")),
        ("ratio", spread([trial["ratio"] for trial in trials], 3)),
        ("raw UDP, no crypto", gbps("raw_udp")),
        ("packets lost", ", ".join(f"{t['packets_lost']} of {t['packets_sent']}" for t in ours)),
    ]
    for name, figures in report["many"].items():
        title = f"{report['settings']['many']} {MANY[name]}"
        lines.append((title, f"{gbps(name)}, {figures['ratio']:.3f} of the above"))
    for name, figures in report["compare"].items():
        theirs = f"{gbps(name)}; ours by the same requests {figures['ours_goodput_gbps']:.2f} Gbit/s"
        lines.append((name, f"{theirs}, {figures['ours_over_theirs']:.1f} times theirs"))
    return lines

"""Full mutual handshakes: ours in memory beside aioquic's QuicConnection in memory, each with both ends on
one core; and ours over the wire, client and server on a core each.

One trial, in this order:

      in memory    ours: the simulation's wire, real TLS, both workers and both control planes in one thread
      resumed      the same, every session resumed from a ticket of the one before
      aioquic      its own QuicConnection at both ends, datagrams handed over in memory, mutual TLS
      sequential   ours over the wire, one connection at a time: the latency of a handshake
      concurrent   ours over the wire, several at a time: what the slower side's core can do
      process      one handshake process answering a ClientHello again and again, any core
      processes    two of them
      half load    ours over the wire, begun at fixed times at half the concurrent rate: how long one waits

Certificates are ECDSA P-256 at all ends. `control.bench.handshaker` says what exactly is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from control.bench import environment
from control.bench.processes import python, running
from control.bench.report import Steps, median, pairwise, spread
from control.bench.throughput import Bench
from control.nodes import Place
from dataplane import STOQ_PORT

MODULE = "control.bench.handshaker"
RATIO = "median over trials of in_memory / aioquic handshakes a second within the trial, each on one core"
SERVER_RATIO = (
    "median over trials of the servers' rates within the trial, each from its own share of a handshake: of "
    "aioquic the server's calls, of ours its control plane and both engines; resumed: ours / aioquic full"
)
PROCESSES = ("process", "processes")  # One, two.
PROCESSES_RATIO = (
    "median over trials of the first flights a second of two handshake processes / of one within the trial; "
    "the process that hands out the work needs a core too"
)
KEPT = (
    "handshakes",
    "failed",
    "errors",
    "seconds",
    "handshakes_per_second",
    "p50_ms",
    "p99_ms",
    "server_per_second",
    "server_p50_us",
)


async def _in_memory(bench: Bench, what: str, *more: str, pinned: bool = True) -> dict[str, Any]:
    """`simulate` or `aioquic` on the client's core, or a program that is not pinned."""
    argv = python(
        MODULE, what, "--certs", str(bench.certs), "--seconds", f"{bench.settings.seconds:g}", *more
    )
    async with running(what, Place(None, "", bench.client.core if pinned else -1), argv) as program:
        return _kept(await program.until("result"))


async def _over_the_wire(bench: Bench, concurrency: int, rate: float = 0.0) -> dict[str, Any]:
    address = f"[{bench.server.address}]:{STOQ_PORT}"
    common = ["--certs", str(bench.certs), "--backend", bench.settings.backend]
    serve = python(MODULE, "serve", "--listen", address, *common, "--core", str(bench.server.core))
    call = python(MODULE, "connect", "--to", address, *common, "--core", str(bench.client.core))
    call += [
        "--seconds",
        f"{bench.settings.seconds:g}",
        "--concurrency",
        str(concurrency),
        "--rate",
        f"{rate:g}",
    ]
    async with running("handshake server", bench.server, serve) as listening:
        await listening.until("listening")
        async with running("handshake client", bench.client, call) as calling:
            client = await calling.until("result")
        server = await listening.summary()
    return _kept(client) | {
        "concurrency": concurrency,
        "rate": rate,
        "accepted": server["counters"]["connections_accepted"],
        "pto": client["counters"]["pto"] + server["counters"]["pto"],
        "crypto": client["crypto"],
        "backend": client["backend"],
    }


def _kept(value: dict[str, Any]) -> dict[str, Any]:
    return {name: value[name] for name in KEPT if name in value}


async def measure(bench: Bench, concurrency: int) -> dict[str, Any]:
    """All trials; the report with its figures."""
    settings = bench.settings
    trial: dict[str, Any] = {}
    contenders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "in_memory": lambda: _in_memory(bench, "simulate"),
        "resumed": lambda: _in_memory(bench, "simulate", "--resumption"),
        "aioquic": lambda: _in_memory(bench, "aioquic"),
        "sequential": lambda: _over_the_wire(bench, 1),
        "concurrent": lambda: _over_the_wire(bench, concurrency),
        "half_load": lambda: _over_the_wire(bench, 1, trial["concurrent"]["handshakes_per_second"] / 2),
    }
    for count, name in enumerate(PROCESSES, 1):
        more = ("processes", "--count", str(count))
        contenders[name] = functools.partial(_in_memory, bench, *more, pinned=False)
    if not settings.compare:
        del contenders["aioquic"]
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            trial = {}
            for name, run in contenders.items():
                steps.begin(name)
                before = environment.CpuTimes.now()
                trial[name] = figures = await run()
                figures["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
                steps.done(
                    name,
                    f"{figures['handshakes_per_second']:.0f}/s, p50 {figures['p50_ms']:.2f} ms, "
                    f"p99 {figures['p99_ms']:.2f} ms, {figures['failed']} failed",
                )
            trials.append(trial)
    environment.finish(described, started)
    described["provider"] = trials[0]["sequential"]["crypto"]
    described["backend"] = trials[0]["sequential"]["backend"]

    def figures_of(name: str) -> dict[str, float]:
        keys = ("handshakes_per_second", "p50_ms", "p99_ms")
        return {key: median(trial[name][key] for trial in trials) for key in keys}

    compared = settings.compare
    return {
        "handshakes_per_second": figures_of("in_memory")["handshakes_per_second"],
        "aioquic_handshakes_per_second": (
            figures_of("aioquic")["handshakes_per_second"] if compared else None
        ),
        "ratio": pairwise(trials, "in_memory", "aioquic", "handshakes_per_second") if compared else None,
        "ratio_is": RATIO,
        "server_ratio": pairwise(trials, "in_memory", "aioquic", "server_per_second") if compared else None,
        "resumed_ratio": pairwise(trials, "resumed", "aioquic", "server_per_second") if compared else None,
        "server_ratio_is": SERVER_RATIO,
        "processes_ratio": pairwise(trials, "processes", "process", "handshakes_per_second"),
        "processes_ratio_is": PROCESSES_RATIO,
        **{name: figures_of(name) for name in contenders},
        "settings": {"seconds": settings.seconds, "concurrency": concurrency},
        "trials": trials,
        "environment": described,
    }


TITLES = {
    "in_memory": "ours, both ends on one core, in memory",
    "resumed": "ours, resumed, both ends on one core, in memory",
    "aioquic": "aioquic, both ends on one core, in memory",
    "sequential": "ours over the wire, one at a time",
    "concurrent": "ours over the wire, several at a time",
    "half_load": "ours over the wire, at half that rate",
    "process": "first flights of one handshake process",
    "processes": "first flights of two handshake processes",
}


SERVERS = {"in_memory": "ours", "resumed": "ours, resumed", "aioquic": "aioquic"}


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials = report["trials"]
    lines = []
    for name, title in TITLES.items():
        if name in trials[0]:
            rate, p50, p99 = (
                spread([trial[name][key] for trial in trials], digits)
                for key, digits in (("handshakes_per_second", 0), ("p50_ms", 2), ("p99_ms", 2))
            )
            lines.append((title, f"{rate}/s; p50 {p50} ms, p99 {p99} ms"))
    lines.append(("ratio, two processes to one", f"{report['processes_ratio']:.2f}"))
    if report["ratio"] is not None:
        for name, title in SERVERS.items():
            rate, p50 = (
                spread([trial[name][key] for trial in trials], 0)
                for key in ("server_per_second", "server_p50_us")
            )
            lines.append((f"{title}, the server's side", f"{rate}/s; p50 {p50} us"))
        lines.append(("ratio, in memory", f"{report['ratio']:.2f}"))
        lines.append(("ratio, the server's side", f"{report['server_ratio']:.2f}"))
        lines.append(("ratio, the server's side resumed", f"{report['resumed_ratio']:.2f}"))
    return lines

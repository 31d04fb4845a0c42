"""Request and response over one connection, beside a raw UDP ping-pong; both ends busy-poll, one core a
side.

A request is a new stream: 512 bytes there (8 of them the `perf` header), FIN, 512 bytes back, FIN; timed in
C from the opening to the last byte. The yardstick sends 512 bytes there and back with nothing but UDP.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from control.bench import environment, yardsticks
from control.bench.processes import running, stoq
from control.bench.report import Steps, median, pairwise, spread
from control.bench.throughput import Bench
from dataplane import STOQ_PORT

REQUEST_BYTES = 512
PERF_HEADER_BYTES = 8
PINGS_PER_SECOND = 50_000  # What a raw round trip of 20 us gives: the yardstick takes about as long as ours.
LEAST_PINGS = 1000
IDLE_SECONDS = 3.0
SETTLE_SECONDS = 1.0  # From the client's standstill to the measurement: retransmissions have become rare.
FOR_EVER_SECONDS = 600
RATIO = "median over trials of our p50 / the raw UDP p50 within the trial; 1 would be raw UDP"


async def ours(bench: Bench) -> dict[str, Any]:
    """One run; microseconds."""
    sizes = ["--download", str(REQUEST_BYTES), "--upload", str(REQUEST_BYTES - PERF_HEADER_BYTES)]
    client, _ = await bench.perf(*sizes, "--seconds", f"{bench.settings.seconds:g}")
    result = client["result"]
    figures = {f"{q}_us": result[f"latency_{q}"] * 1e6 for q in ("min", "p50", "p90", "p99", "max")}
    return {
        **figures,
        "requests": result["requests"],
        "packets_lost": client["packets_lost"],
        "crypto": client["crypto"],
        "backend": client["backend"],
    }


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far (schedstat, Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue
    return total / 1e9


async def idle_cpu(bench: Bench) -> float:
    """Share of a core that a node takes which polls adaptively (no `--busy-poll`) and has one connection on
    which nothing happens: its client is stopped (SIGSTOP) in the middle of a request."""
    server, client = bench.server, bench.client

    def node(core: int) -> list[str]:
        return [option for option in bench.node(core) if option != "--busy-poll"]

    listen = f"[{server.address}]:{STOQ_PORT}"
    serve = ["perf", "serve", "--listen", listen, *bench.server_files(), *node(server.core)]
    call = ["perf", "client", "--to", listen, *bench.ca(), "--download", str(REQUEST_BYTES)]
    call += ["--seconds", str(FOR_EVER_SECONDS), *node(client.core)]
    async with running("stoq perf serve", server, stoq(*serve)) as listening:
        await listening.until("listening")
        async with running("stoq perf client", client, stoq(*call)) as calling:
            await calling.until("connected")
            calling.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(SETTLE_SECONDS)
                cpu, clock = cpu_seconds(listening.process.pid), time.monotonic()
                await asyncio.sleep(IDLE_SECONDS)
                return (cpu_seconds(listening.process.pid) - cpu) / (time.monotonic() - clock)
            finally:
                calling.process.send_signal(signal.SIGCONT)


async def measure(bench: Bench) -> dict[str, Any]:
    """All trials; the report with its figures. `bench.settings.options` must make both ends busy-poll."""
    settings = bench.settings
    yardsticks.program("pingpong")
    pings = max(LEAST_PINGS, round(settings.seconds * PINGS_PER_SECOND))
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            steps.begin("ours")
            trial = {"ours": await ours(bench)}
            steps.done("ours", f"p50 {trial['ours']['p50_us']:.1f} us, p99 {trial['ours']['p99_us']:.1f} us")
            steps.begin("raw UDP")
            raw = await yardsticks.pingpong(bench.client, bench.server, count=pings, size=REQUEST_BYTES)
            trial["raw_udp"] = raw
            steps.done("raw UDP", f"p50 {raw['p50_us']:.1f} us, p99 {raw['p99_us']:.1f} us")
            trials.append(trial)
    idle = await idle_cpu(bench)
    environment.finish(described, started)
    described["provider"] = trials[0]["ours"]["crypto"]
    described["backend"] = trials[0]["ours"]["backend"]

    def us(name: str, key: str) -> float:
        return median(trial[name][key] for trial in trials)

    return {
        "p50_us": us("ours", "p50_us"),
        "p99_us": us("ours", "p99_us"),
        "raw_udp_p50_us": us("raw_udp", "p50_us"),
        "raw_udp_p99_us": us("raw_udp", "p99_us"),
        "ratio": pairwise(trials, "ours", "raw_udp", "p50_us"),
        "ratio_p99": pairwise(trials, "ours", "raw_udp", "p99_us"),
        "ratio_is": RATIO,
        "idle_cpu": idle,
        "settings": {"seconds": settings.seconds, "bytes": REQUEST_BYTES, "options": list(settings.options)},
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials = report["trials"]

    def us(name: str, key: str) -> str:
        return f"{spread([trial[name][key] for trial in trials], 1)} us"

    return [
        ("request and response, p50", us("ours", "p50_us")),
        ("request and response, p99", us("ours", "p99_us")),
        ("raw UDP ping-pong, p50", us("raw_udp", "p50_us")),
        ("raw UDP ping-pong, p99", us("raw_udp", "p99_us")),
        ("ratio", f"p50 {report['ratio']:.2f}, p99 {report['ratio_p99']:.2f}"),
        ("idle node, adaptive polling", f"{report['idle_cpu']:.2%} of a core"),
    ]

"""Request and response over one connection, beside a raw UDP ping-pong; both ends busy-poll, one core a
side.

A request is a new stream: 512 bytes there (8 of them the `perf` header), FIN, 512 bytes back, FIN; timed in
C from the opening to the last byte. The yardstick sends 512 bytes there and back with nothing but UDP.
"""

from __future__ import annotations

from typing import Any

from control.bench import environment, yardsticks
from control.bench.report import Steps, median, pairwise, spread
from control.bench.throughput import Bench

REQUEST_BYTES = 512
PERF_HEADER_BYTES = 8
PINGS_PER_SECOND = 50_000  # What a raw round trip of 20 us gives: the yardstick takes about as long as ours.
LEAST_PINGS = 1000
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
    ]

"""The kernel's UDP path without QUIC, by every way of using it that we have: trains of one size from a
generator to a sink, nothing sealed (csrc/bench/ceiling.c), one core a side.

One trial goes through all variants and then through them backwards: a variant's figure is the mean of its
two runs, so that a machine that becomes steadily slower or faster favours none. Then the same for trains of
fewer datagrams, with the default variant: what a train's length is worth on this path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from control.bench import environment
from control.bench.processes import sink_and_generator
from control.bench.report import Steps, median, pairwise, spread
from control.bench.throughput import Bench
from control.bench.yardsticks import CEILING_PORT, program

BATCH = 4  # Trains between two looks at the receive queue, as a busy worker's.
DEFAULT = "io_uring"
PLAIN = "socket"
TRAINS = (1, 4, 16, 32)  # Beside the longest that fits.
LEAST_SECONDS = 0.5  # Of one run; the first 0.2 are not counted.
ZERO_COPY_BYTES = 16384  # Full trains go by it, ACKs and single packets do not.


@dataclass(frozen=True, slots=True)
class Variant:
    """A backend and its options, as csrc/bench/ceiling.c takes them."""

    name: str
    backend: str
    uring: str = ""
    train: int = 0  # Datagrams; 0: as many as fit.

    def options(self) -> list[str]:
        """Of the command line."""
        options = ["--backend", self.backend, "--batch", str(BATCH)]
        options += ["--uring", self.uring] if self.uring else []
        return options + (["--train", str(self.train)] if self.train else [])


VARIANTS = (
    Variant(PLAIN, "socket"),
    Variant(DEFAULT, "io_uring"),
    Variant("no registered files", "io_uring", "no-files"),
    Variant("zero copy", "io_uring", f"zero-copy={ZERO_COPY_BYTES},keep-zero-copy,no-buffers"),
    Variant("zero copy, registered buffers", "io_uring", f"zero-copy={ZERO_COPY_BYTES},keep-zero-copy"),
    Variant("zero copy, if not in vain", "io_uring", f"zero-copy={ZERO_COPY_BYTES}"),
    Variant("SQPOLL", "io_uring", "sqpoll"),
    Variant("NAPI busy polling", "io_uring", "napi=50"),
)


async def one(bench: Bench, variant: Variant, seconds: float) -> dict[str, Any]:
    """A run of `variant` at both ends."""
    options = ["--port", str(CEILING_PORT), "--datagram", str(bench.settings.datagram_bytes), "--no-crypto"]
    options += ["--json", *variant.options()]
    path, sink = program("ceiling"), bench.server
    listen = [path, "--listen", sink.address, *options]
    send = [path, "--connect", sink.address, "--seconds", f"{seconds:g}", *options]
    received, sent = await sink_and_generator(
        (f"{variant.name}, sink", sink, listen), (f"{variant.name}, generator", bench.client, send)
    )
    return {
        "gbps": received["goodput_gbit_s"],
        "rx_cpu_ns": received["cpu_ns_per_packet"],
        "tx_cpu_ns": sent["cpu_ns_per_packet"],
        "lost": received["lost"] / max(1, received["lost"] + received["packets"]),
        "errors": sent["errors"],
    }


KEYS = ("gbps", "rx_cpu_ns", "tx_cpu_ns", "lost")


async def _mirrored(bench: Bench, variants: tuple[Variant, ...], seconds: float) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for variant in (*variants, *reversed(variants)):
        runs[variant.name].append(await one(bench, variant, seconds))
    return {
        name: {key: median(run[key] for run in found) for key in KEYS} | {"runs": found}
        for name, found in runs.items()
    }


async def measure(bench: Bench) -> dict[str, Any]:
    """All trials; the report with its figures."""
    settings = bench.settings
    program("ceiling")
    seconds = max(settings.seconds / 2, LEAST_SECONDS)
    lengths = tuple(Variant(f"trains of {train}", "io_uring", train=train) for train in TRAINS)
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            steps.begin("variants")
            trial = await _mirrored(bench, VARIANTS, seconds)
            best = max(trial, key=lambda name: float(trial[name]["gbps"]))
            steps.done("variants", f"best: {best}, {trial[best]['gbps']:.1f} Gbit/s")
            steps.begin("trains")
            trial |= await _mirrored(bench, lengths, seconds)
            steps.done("trains", ", ".join(f"{v.train}: {trial[v.name]['gbps']:.1f}" for v in lengths))
            trials.append(trial)
    environment.finish(described, started)
    described["provider"] = "none"
    described["backend"] = "io_uring and socket"
    names = list(trials[0])
    return {
        "variants": {
            name: {key: median(trial[name][key] for trial in trials) for key in KEYS}
            | {"ratio": pairwise(trials, name, PLAIN, "gbps")}
            for name in names
        },
        "ratio_is": "median over trials of gbps / that of the socket backend (sendmmsg, recvmmsg)",
        "settings": {"seconds": seconds, "datagram_bytes": settings.datagram_bytes, "batch": BATCH},
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""

    def line(name: str) -> str:
        found = report["variants"][name]
        rate = spread([trial[name]["gbps"] for trial in report["trials"]], 1)
        return (
            f"{rate} Gbit/s, {found['ratio']:.2f} of {PLAIN}; CPU a datagram: {found['tx_cpu_ns']:.0f} ns to "
            f"send, {found['rx_cpu_ns']:.0f} to receive; {found['lost']:.0%} lost"
        )

    return [(name, line(name)) for name in report["variants"]]

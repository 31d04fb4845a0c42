"""Flow control that follows a long fast path: one stream over a simulated bottleneck, windows at their
defaults, beside the same stream with flow control out of the way. The same seed gives the same figures
anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from control.bench import environment
from control.bench.engine import default_core
from control.bench.processes import running
from control.bench.report import Steps, median, ratio, spread
from control.bench.yardsticks import program
from control.nodes import Place

RATIO = "median over trials of goodput with windows as configured / with windows of 1 GiB"
QUEUE_BYTES = 2_000_000_000  # Nothing is dropped: congestion control is not what is measured.


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    trials: int
    seconds: float  # Virtual, after warm_up.
    warm_up: float
    congestion: str
    rate_mbps: int
    rtt_ms: float
    datagram: int
    seed: int


async def _run(settings: Settings, seed: int, *options: str) -> dict[str, Any]:
    argv = [program("congestion"), "--congestion", settings.congestion, "--seed", str(seed)]
    argv += ["--warm-up", f"{settings.warm_up:g}", "--seconds", f"{settings.seconds:g}"]
    argv += ["--rate-mbps", str(settings.rate_mbps), "--rtt-ms", f"{settings.rtt_ms:g}"]
    argv += ["--queue-bytes", str(QUEUE_BYTES), "--datagram", str(settings.datagram), *options]
    async with running("congestion", Place(None, "", default_core()), argv) as running_program:
        result = await running_program.result()
    (received,) = result["flows"]
    goodput = received * 8 / result["seconds"] / 1e6
    return {
        "goodput_mbps": goodput,
        "of_rate": ratio(goodput, settings.rate_mbps),
        "sender": result["senders"][0],
        "wire": result["wire"],
    }


async def measure(settings: Settings) -> dict[str, Any]:
    """All trials; the report with its figures."""
    place = Place(None, "", default_core())
    described = environment.environment(place, place, settings.datagram)
    described["link"] = "none: simulated"
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            seed = settings.seed + number
            steps.begin("windows as configured")
            ours = await _run(settings, seed, "--tuned-windows")
            steps.done("windows as configured", f"{ours['goodput_mbps']:.0f} Mbit/s")
            steps.begin("windows of 1 GiB")
            open_wide = await _run(settings, seed)
            steps.done("windows of 1 GiB", f"{open_wide['goodput_mbps']:.0f} Mbit/s")
            share = ratio(ours["goodput_mbps"], open_wide["goodput_mbps"])
            trials.append({"seed": seed, "ours": ours, "reference": open_wide, "ratio": share})
    environment.finish(described, started)
    return {
        "goodput_mbps": median(trial["ours"]["goodput_mbps"] for trial in trials),
        "reference_mbps": median(trial["reference"]["goodput_mbps"] for trial in trials),
        "of_rate": median(trial["ours"]["of_rate"] for trial in trials),
        "ratio": median(trial["ratio"] for trial in trials),
        "ratio_is": RATIO,
        "bandwidth_delay_bytes": round(settings.rate_mbps * 125 * settings.rtt_ms),
        "trials": trials,
        "settings": {key: getattr(settings, key) for key in Settings.__slots__},
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    settings = report["settings"]
    under_way = report["bandwidth_delay_bytes"] / 1e6
    goodput = spread([trial["ours"]["goodput_mbps"] for trial in report["trials"]])
    return [
        ("path", f"{settings['rate_mbps']} Mbit/s, {settings['rtt_ms']:g} ms: {under_way:.0f} MB under way"),
        ("windows as configured", f"{goodput} Mbit/s, {report['of_rate']:.3f} of the rate"),
        ("windows of 1 GiB", f"{report['reference_mbps']:.2f} Mbit/s"),
        ("ratio", f"{report['ratio']:.3f}"),
    ]

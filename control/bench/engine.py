"""The engine alone, in memory, both ends on one core, beside the AEAD alone on the same packets: what the
protocol costs without a kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from control.bench import environment
from control.bench.processes import running
from control.bench.report import Steps, median, ratio, spread
from control.bench.yardsticks import program
from control.nodes import Place

RATIO = "median over trials of the engine's Gbit/s / the AEAD's alone (seal and open) within the trial"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    trials: int
    mib: int  # Carried in each trial.
    datagram: int  # UDP payload of a packet, bytes.
    cipher: str
    crypto: str
    core: int


async def measure(settings: Settings) -> dict[str, Any]:
    """All trials; the report with its figures."""
    place = Place(None, "", settings.core)
    argv = [program("engine"), "--json", "--trials", "1", "--mib", str(settings.mib)]
    argv += ["--datagram", str(settings.datagram), "--cipher", settings.cipher, "--crypto", settings.crypto]
    described = environment.environment(place, place, settings.datagram)
    described["link"] = "none: in memory"
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            steps.begin("engine")
            async with running("the engine", place, argv) as engine:
                (trial,) = (await engine.result())["trials"]
            trial["ratio"] = ratio(trial["gbps"], trial["alone_gbps"])
            steps.done("engine", f"{trial['gbps']:.2f} Gbit/s, AEAD alone {trial['alone_gbps']:.2f}")
            trials.append(trial)
    environment.finish(described, started)
    return {
        "gbps": median(trial["gbps"] for trial in trials),
        "sender_ns": median(trial["sender_ns"] for trial in trials),
        "receiver_ns": median(trial["receiver_ns"] for trial in trials),
        "alone_gbps": median(trial["alone_gbps"] for trial in trials),
        "ratio": median(trial["ratio"] for trial in trials),
        "ratio_is": RATIO,
        "settings": {name: getattr(settings, name) for name in Settings.__slots__},
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials, where = report["trials"], report["environment"]

    def figures(name: str, digits: int = 1) -> str:
        return spread([trial[name] for trial in trials], digits)

    bits = report["settings"]["datagram"] * 8
    return [
        ("both ends, one core", f"{figures('gbps', 2)} Gbit/s"),
        ("sending", f"{figures('sender_ns')} ns a packet, {bits / report['sender_ns']:.1f} Gbit/s a core"),
        ("receiving", f"{figures('receiver_ns')} ns each, {bits / report['receiver_ns']:.1f} Gbit/s a core"),
        ("AEAD alone", f"{figures('alone_gbps')} Gbit/s; {figures('seal_ns')} and {figures('open_ns')} ns"),
        ("ratio", figures("ratio", 3)),
        ("machine", f"{where['cpu']} ({', '.join(where['cpu_flags'])}), Linux {where['kernel']}"),
        ("meanwhile", f"load {where['loadavg_end'][0]:.2f}, {where['cpu_stolen']:.1%} of CPU time stolen"),
    ]


def default_core() -> int:
    """The last one we may use: what else there is tends to run on the first."""
    return max(os.sched_getaffinity(0))

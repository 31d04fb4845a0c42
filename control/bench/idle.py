"""What idle connections cost a worker: bytes of each, and the throughput of an active one beside them against
alone, in turns within one process and on one core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from control.bench import environment
from control.bench.processes import running
from control.bench.report import Steps, median, ratio, spread
from control.bench.yardsticks import program
from control.nodes import Place

RATIO = "median over trials of Gbit/s beside the idle ones / alone; a trial: alone, beside, beside, alone"
PARTS = {
    "connection": "connection",
    "expanded_keys": "expanded keys",
    "rings": "sent packets, CRYPTO",
    "streams": "streams",
    "handshake": "handshake",
    "congestion": "congestion controller",
    "worker": "worker's word for it",
    "tables": "tables of ids",
    "other": "other",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    connections: int
    trials: int
    mib: int  # Carried four times in each trial.
    datagram: int  # UDP payload of a packet, bytes.
    cipher: str
    crypto: str
    core: int


async def measure(settings: Settings) -> dict[str, Any]:
    """All trials, beside one herd of connections; the report with its figures."""
    place = Place(None, "", settings.core)
    argv = [program("idle"), "--connections", str(settings.connections), "--trials", str(settings.trials)]
    argv += ["--mib", str(settings.mib), "--datagram", str(settings.datagram)]
    argv += ["--cipher", settings.cipher, "--crypto", settings.crypto]
    described = environment.environment(place, place, settings.datagram)
    described["link"] = "none: in memory"
    started = environment.CpuTimes.now()
    with Steps(1) as steps:
        steps.trial(0)
        steps.begin("idle")
        async with running("idle connections", place, argv) as idle:
            found = await idle.result()
        steps.done("idle", f"{found['connections']} connections, {found['bytes_each']:.0f} bytes each")
    environment.finish(described, started)
    trials = found.pop("trials")
    for trial in trials:
        trial["ratio"] = ratio(trial["beside_gbps"], trial["alone_gbps"])
    return found | {
        "gbps_alone": median(trial["alone_gbps"] for trial in trials),
        "gbps_beside": median(trial["beside_gbps"] for trial in trials),
        "ratio": median(trial["ratio"] for trial in trials),
        "ratio_is": RATIO,
        "settings": {name: getattr(settings, name) for name in Settings.__slots__},
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials, where, parts = report["trials"], report["environment"], report["bytes_by_part"]

    def figures(name: str, digits: int = 1) -> str:
        return spread([trial[name] for trial in trials], digits)

    made_of = ", ".join(f"{text} {parts[name]:.0f}" for name, text in PARTS.items() if parts[name])
    turns = f"{report['turn_ns_alone']:.0f} ns alone, {report['turn_ns_beside']:.0f} ns beside"
    return [
        ("connections", f"{report['connections']:,} idle, {report['timers']:,} timers on the wheel"),
        ("bytes each", f"{report['bytes_each']:.0f}: {made_of}"),
        ("touched", f"{report['touched_each']:.0f} bytes each, with what handshakes needed meanwhile"),
        ("alone", f"{figures('alone_gbps', 2)} Gbit/s"),
        ("beside", f"{figures('beside_gbps', 2)} Gbit/s"),
        ("ratio", figures("ratio", 3)),
        ("idle turn", turns),
        ("waking one", f"{report['wake_ns']:.0f} ns"),
        ("machine", f"{where['cpu']} ({', '.join(where['cpu_flags'])}), Linux {where['kernel']}"),
        ("meanwhile", f"load {where['loadavg_end'][0]:.2f}, {where['cpu_stolen']:.1%} of CPU time stolen"),
    ]

"""Congestion control on the virtual clock: goodput under random loss beside the published model of each
controller, and the shares of flows that meet in one bottleneck. The same seeds give the same figures
anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control.bench import environment, models
from control.bench.engine import default_core
from control.bench.models import Path
from control.bench.processes import running
from control.bench.report import Steps, median, ratio, spread
from control.bench.yardsticks import program
from control.nodes import Place

REFERENCES: dict[str, tuple[str, Callable[[Path], float]]] = {
    "newreno": ("Mathis et al. 1997, periodic loss, an ACK a packet (C = 1.22)", models.mathis),
    "cubic": ("RFC 9438 sections 4.3 and 5.1, the larger", models.cubic),
    "bbr": ("draft-ietf-ccwg-bbr: (1 - p)^n after n rounds, until the next probe", models.bbr),
}
RATIO = "median over trials of our goodput / the reference model's"
FAIR_WARM_UP = 20.0  # Virtual seconds before shares are counted: the last flow has long found its place.
LOSS_WARM_UP = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    trials: int
    seconds: float  # Virtual, of each trial.
    controllers: tuple[str, ...]
    rate_mbps: int
    rtt_ms: float
    loss: float  # Per cent.
    queue: int  # Bytes; 0: what the path holds.
    flows: int
    datagram: int
    seed: int

    @property
    def path(self) -> Path:
        """For the models."""
        return Path(self.rate_mbps, self.rtt_ms, self.loss / 100, self.datagram)

    @property
    def queue_bytes(self) -> int:
        """Of the bottleneck."""
        return self.queue or max(1500, int(self.rate_mbps * 125 * self.rtt_ms))


async def _run(settings: Settings, controller: str, seed: int, *options: str) -> dict[str, Any]:
    argv = [program("congestion"), "--congestion", controller, "--seed", str(seed)]
    argv += ["--seconds", f"{settings.seconds:g}", "--rate-mbps", str(settings.rate_mbps)]
    argv += ["--rtt-ms", f"{settings.rtt_ms:g}", "--queue-bytes", str(settings.queue_bytes)]
    argv += ["--datagram", str(settings.datagram), *options]
    async with running("congestion", Place(None, "", default_core()), argv) as running_program:
        result = await running_program.result()
    result["mbps"] = [received * 8 / result["seconds"] / 1e6 for received in result["flows"]]
    return result


async def _loss(settings: Settings, controller: str, seed: int) -> dict[str, Any]:
    ppm = str(round(settings.loss * 10000))
    result = await _run(settings, controller, seed, "--loss-ppm", ppm, "--warm-up", f"{LOSS_WARM_UP:g}")
    (goodput,) = result["mbps"]
    reference = REFERENCES[controller][1](settings.path)
    return {
        "seed": seed,
        "goodput_mbps": goodput,
        "ratio": ratio(goodput, reference),
        "of_capacity": ratio(goodput, settings.path.capacity_mbps),
        "sender": result["senders"][0],
        "wire": result["wire"],
    }


async def _fair(settings: Settings, controller: str, seed: int) -> dict[str, Any]:
    options = ("--flows", str(settings.flows), "--warm-up", f"{FAIR_WARM_UP:g}")
    result = await _run(settings, controller, seed, *options)
    return {
        "seed": seed,
        "jain": models.jain(result["mbps"]),
        "goodput_mbps": sum(result["mbps"]),
        "flows_mbps": result["mbps"],
        "wire": result["wire"],
    }


async def measure(settings: Settings) -> dict[str, Any]:
    """All trials of all controllers; the report with its figures."""
    place = Place(None, "", default_core())
    described = environment.environment(place, place, settings.datagram)
    described["link"] = "none: simulated"
    started = environment.CpuTimes.now()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {"loss": [], "fairness": []} for name in settings.controllers
    }
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            seed = settings.seed + number
            for name in settings.controllers:
                steps.begin(name)
                loss = await _loss(settings, name, seed)
                fair = await _fair(settings, name, seed)
                found[name]["loss"].append(loss)
                found[name]["fairness"].append(fair)
                told = f"{loss['goodput_mbps']:.2f} Mbit/s, {loss['ratio']:.3f} of its model"
                steps.done(name, f"{told}; {settings.flows} flows: Jain {fair['jain']:.4f}")
    environment.finish(described, started)
    return {
        "controllers": {name: _figures(settings, name, trials) for name, trials in found.items()},
        "ratio_is": RATIO,
        "capacity_mbps": settings.path.capacity_mbps,
        "settings": {key: getattr(settings, key) for key in Settings.__slots__}
        | {"queue": settings.queue_bytes},
        "environment": described,
    }


def _figures(settings: Settings, controller: str, trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    name, model = REFERENCES[controller]
    loss, fair = trials["loss"], trials["fairness"]
    return {
        "goodput_mbps": median(trial["goodput_mbps"] for trial in loss),
        "reference_mbps": model(settings.path),
        "reference": name,
        "mathis_random_mbps": models.mathis(settings.path, 1.31),
        "ratio": median(trial["ratio"] for trial in loss),
        "of_capacity": median(trial["of_capacity"] for trial in loss),
        "jain": median(trial["jain"] for trial in fair),
        "flows_goodput_mbps": median(trial["goodput_mbps"] for trial in fair),
        "trials": trials,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    settings = report["settings"]
    path = f"{settings['rate_mbps']} Mbit/s, {settings['rtt_ms']:g} ms, queue {settings['queue']} bytes"
    out = [("path", f"{path}, drop tail; {settings['seconds']:g} virtual seconds a trial")]
    for name, found in report["controllers"].items():
        loss, fair = found["trials"]["loss"], found["trials"]["fairness"]
        goodput = spread([trial["goodput_mbps"] for trial in loss])
        out += [
            (f"{name}, {settings['loss']:g} % loss", f"{goodput} Mbit/s"),
            ("  the model says", f"{found['reference_mbps']:.2f} ({found['reference']})"),
            ("  ratio", spread([trial["ratio"] for trial in loss], 3)),
            ("  of what the path carries", spread([trial["of_capacity"] for trial in loss], 3)),
            (f"  {settings['flows']} flows, Jain", spread([trial["jain"] for trial in fair], 4)),
            ("  together", f"{spread([trial['goodput_mbps'] for trial in fair])} Mbit/s"),
        ]
    return out

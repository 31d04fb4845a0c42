"""Packets a second and round trips over AF_XDP without QUIC: our backend beside the least that AF_XDP costs
(csrc/bench/packets.c and csrc/bench/xskloop.c); and with them as yardsticks, QUIC over AF_XDP.

One trial of `stoq bench packets`, for each link MTU and payload of `SIZES`, then once for the ping-pong:

      raw loop ──▶ backend ──▶ backend ──▶ raw loop

That is repeated, and a contender's figure is the median of its runs: the mirrored order
favours neither on a machine that becomes steadily slower or faster, and one bad moment spoils one run. A
generator on one core sends as fast as it can, and what the sink on the other has received is what counts.
Both contenders have the same XDP program, the same number and size of frames, the same batches, and spin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from control.bench import environment, latency
from control.bench.processes import BenchError, running, sink_and_generator
from control.bench.report import Steps, median, pairwise, ratio, spread
from control.bench.throughput import Bench
from control.bench.yardsticks import program
from control.netns import INTERFACE
from control.nodes import Place

BACKENDS = ("afxdp", "io_uring", "socket")
# MTU of the link and UDP payload, bytes. 3498: about the most that native XDP takes in one page.
SIZES = ((1500, 1400), (3498, 3450))
PING_BYTES = 512
PINGS_PER_SECOND = 50_000  # At 20 us a round trip, more than any here takes: a run keeps to its time.
LEAST_PINGS = 1000
LEAST_SECONDS = 0.5  # Of one run; the first 0.2 are not counted.
RAW, BACKEND = "raw", "backend"
MIRRORED = (RAW, BACKEND, BACKEND, RAW)
ROUNDS = 2  # Of these; one when the time asked for is short.
PROGRAMS = {RAW: "xskloop", BACKEND: "packets"}
RATIO = "median over trials of backend / raw loop in the trial, each the median of its runs in mirrored order"
QUIC_RATIO = "median over trials of goodput_gbps / packets_gbps within the trial"
QUIC_RTT_RATIO = "median over trials of our p50 / the raw AF_XDP p50 within the trial; 1 would be raw AF_XDP"


@dataclass(frozen=True, slots=True)
class Loops:
    """The two C programs between two places in namespaces of their own."""

    sender: Place
    receiver: Place
    backend: str = "afxdp"

    def argv(self, which: str, role: str, here: Place, there: Place, *more: str) -> list[str]:
        """The command line of `role`, which runs in `here`. Raises BenchError outside of namespaces."""
        if here.namespace is None or there.namespace is None:
            raise BenchError("AF_XDP needs two network namespaces with a veth pair: run it as root")
        argv = [program(PROGRAMS[which]), "--role", role, "--interface", INTERFACE]
        argv += ["--local", here.address, "--link", here.namespace.link_address]
        argv += ["--peer", there.address, "--peer-link", there.namespace.link_address]
        argv += ["--backend", self.backend] if which == BACKEND else []
        return [*argv, *more]

    async def rate(self, which: str, payload_bytes: int, seconds: float) -> dict[str, Any]:
        """Generator to sink; `pps` is what arrived a second."""
        size = ["--bytes", str(payload_bytes)]
        timed = [*size, "--seconds", f"{max(seconds, LEAST_SECONDS):g}"]
        sink = self.argv(which, "sink", self.receiver, self.sender, *size)
        generate = self.argv(which, "generate", self.sender, self.receiver, *timed)
        received, sent = await sink_and_generator(
            (f"{which} sink", self.receiver, sink), (f"{which} generator", self.sender, generate)
        )
        return {
            "pps": received["pps"],
            "lost": received["lost"],
            "cpu_ns_per_packet": sent["cpu_ns_per_packet"],
            "sink": received,
            "generator": sent,
        }

    async def round_trips(self, which: str, payload_bytes: int, count: int) -> dict[str, Any]:
        """Ping-pong, both ends spinning; microseconds."""
        size = ["--bytes", str(payload_bytes)]
        answer = self.argv(which, "answer", self.receiver, self.sender, *size)
        ping = self.argv(which, "ping", self.sender, self.receiver, *size, "--count", str(count))
        async with running(f"{which} answerer", self.receiver, answer) as listening:
            await listening.ready()
            async with running(f"{which} ping", self.sender, ping) as sending:
                return await sending.result()


def _rounds(seconds: float) -> tuple[int, float]:
    """How often MIRRORED is gone through, and the seconds of each run, when each contender has `seconds`."""
    rounds = ROUNDS if seconds / (2 * ROUNDS) >= LEAST_SECONDS else 1
    return rounds, seconds / (2 * rounds)


def check_built() -> None:
    """Raises BenchError before anything runs."""
    for name in PROGRAMS.values():
        program(name)


def pings(seconds: float) -> int:
    """Round trips that take about so long."""
    return max(LEAST_PINGS, round(seconds * PINGS_PER_SECOND))


async def _set_mtu(places: Sequence[Place], mtu: int) -> None:
    for place in places:
        argv = place.wrap(["ip", "link", "set", INTERFACE, "mtu", str(mtu)])
        process = await asyncio.create_subprocess_exec(
            *argv, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
        )
        _, complaint = await process.communicate()
        if process.returncode != 0:
            raise BenchError(f"MTU {mtu}: {complaint.decode(errors='replace').strip()}")


async def _mirrored(
    rounds: int, run: Callable[[str], Awaitable[dict[str, Any]]], keys: Sequence[str]
) -> dict[str, Any]:
    """All runs; for each contender the medians of `keys`, and the runs."""
    runs: dict[str, list[dict[str, Any]]] = {RAW: [], BACKEND: []}
    for which in MIRRORED * rounds:
        runs[which].append(await run(which))
    return {
        which: {key: median(one[key] for one in found) for key in keys} | {"runs": found}
        for which, found in runs.items()
    }


async def _trial(bench: Bench, loops: Loops, steps: Steps) -> dict[str, Any]:
    rounds, seconds = _rounds(bench.settings.seconds)
    trial: dict[str, Any] = {"sizes": {}}
    for mtu, payload_bytes in SIZES:
        steps.begin(f"{payload_bytes} bytes")
        before = environment.CpuTimes.now()
        await _set_mtu((bench.client, bench.server), mtu)

        async def rate(which: str, size: int = payload_bytes) -> dict[str, Any]:
            return await loops.rate(which, size, seconds)

        found = await _mirrored(rounds, rate, ("pps", "lost", "cpu_ns_per_packet"))
        found["ratio"] = ratio(found[BACKEND]["pps"], found[RAW]["pps"])
        found["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
        trial["sizes"][str(payload_bytes)] = found
        ours, least = (f"{found[which]['pps']:.0f}/s" for which in (BACKEND, RAW))
        steps.done(f"{payload_bytes} bytes", f"backend {ours}, raw {least}, {found['ratio']:.3f}")
    steps.begin("round trips")
    await _set_mtu((bench.client, bench.server), bench.settings.mtu)

    async def round_trips(which: str) -> dict[str, Any]:
        return await loops.round_trips(which, PING_BYTES, pings(seconds))

    found = await _mirrored(rounds, round_trips, ("p50_us", "p99_us"))
    trial["rtt"] = found
    ours, least = (f"{found[which]['p50_us']:.2f} us" for which in (BACKEND, RAW))
    steps.done("round trips", f"p50: backend {ours}, raw {least}")
    return trial


async def measure(bench: Bench) -> dict[str, Any]:
    """All trials; the report with its figures."""
    settings = bench.settings
    check_built()
    loops = Loops(bench.client, bench.server, settings.backend)
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            trials.append(await _trial(bench, loops, steps))
    environment.finish(described, started)
    described["provider"] = "none"
    described["mtu"] = " and ".join(str(mtu) for mtu, _ in SIZES)
    described["backend"] = settings.backend

    def of_size(mtu: int, payload_bytes: int) -> dict[str, Any]:
        found = [trial["sizes"][str(payload_bytes)] for trial in trials]
        pps = median(one[BACKEND]["pps"] for one in found)
        return {
            "mtu": mtu,
            "payload_bytes": payload_bytes,
            "backend_pps": pps,
            "raw_pps": median(one[RAW]["pps"] for one in found),
            "ratio": pairwise(found, BACKEND, RAW, "pps"),
            "backend_cpu_ns_per_packet": median(one[BACKEND]["cpu_ns_per_packet"] for one in found),
            "raw_cpu_ns_per_packet": median(one[RAW]["cpu_ns_per_packet"] for one in found),
            "backend_gbps": pps * payload_bytes * 8 / 1e9,
        }

    sizes = [of_size(*size) for size in SIZES]
    rtt = [trial["rtt"] for trial in trials]
    return {
        "backend_pps": sizes[0]["backend_pps"],
        "raw_pps": sizes[0]["raw_pps"],
        "ratio": sizes[0]["ratio"],
        "ratio_is": RATIO,
        "sizes": sizes,
        "rtt": {
            "bytes": PING_BYTES,
            "p50_us": median(one[BACKEND]["p50_us"] for one in rtt),
            "p99_us": median(one[BACKEND]["p99_us"] for one in rtt),
            "raw_p50_us": median(one[RAW]["p50_us"] for one in rtt),
            "raw_p99_us": median(one[RAW]["p99_us"] for one in rtt),
            "ratio": pairwise(rtt, BACKEND, RAW, "p50_us"),
            "ratio_p99": pairwise(rtt, BACKEND, RAW, "p99_us"),
        },
        "settings": {"seconds": settings.seconds, "backend": settings.backend},
        "trials": trials,
        "environment": described,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    lines = []
    for size in report["sizes"]:
        found = [trial["sizes"][str(size["payload_bytes"])] for trial in report["trials"]]
        for which in (BACKEND, RAW):
            text = spread([one[which]["pps"] / 1e3 for one in found], 0)
            lost = sum(run["lost"] for one in found for run in one[which]["runs"])
            text += f" thousand a second, {lost} lost"
            lines.append((f"{size['payload_bytes']} bytes, {which}", text))
        cost = size["backend_cpu_ns_per_packet"], size["raw_cpu_ns_per_packet"]
        text = f"backend {cost[0]:.0f} ns, raw {cost[1]:.0f} ns"
        lines.append((f"{size['payload_bytes']} bytes, generator's CPU a packet", text))
        lines.append((f"{size['payload_bytes']} bytes, ratio", spread([one["ratio"] for one in found], 3)))
    rtt = [trial["rtt"] for trial in report["trials"]]
    for which in (BACKEND, RAW):
        p50, p99 = (spread([one[which][key] for one in rtt], 2) for key in ("p50_us", "p99_us"))
        lines.append((f"round trip, {which}", f"p50 {p50} us, p99 {p99} us"))
    both = report["rtt"]["ratio"], report["rtt"]["ratio_p99"]
    lines.append(("round trip, ratio", f"p50 {both[0]:.2f}, p99 {both[1]:.2f}"))
    return lines


# ---- QUIC over AF_XDP ----


async def measure_throughput(bench: Bench) -> dict[str, Any]:
    """Goodput of one `perf` transfer over AF_XDP beside what the backend alone delivers in datagrams of the
    same size. The yardstick is the median of four runs, two before ours and two after."""
    settings = bench.settings
    check_built()
    sender, receiver = (bench.server, bench.client) if settings.download else (bench.client, bench.server)
    loops = Loops(sender, receiver)
    bench = _over_afxdp(bench)

    async def yardstick() -> list[dict[str, Any]]:
        size, seconds = settings.datagram_bytes, settings.seconds / 4
        return [await loops.rate(BACKEND, size, seconds) for _ in range(2)]

    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            before = environment.CpuTimes.now()
            steps.begin("packets")
            runs = await yardstick()
            steps.begin("ours")
            ours = await bench.ours()
            steps.done("ours", f"{ours['goodput_gbps']:.2f} Gbit/s")
            steps.begin("packets")
            runs += await yardstick()
            pps = median(run["pps"] for run in runs)
            gbps = pps * settings.datagram_bytes * 8 / 1e9
            found = {"pps": pps, "goodput_gbps": gbps, "runs": runs}
            steps.done("packets", f"{gbps:.2f} Gbit/s, {pps:.0f}/s")
            trials.append(
                {
                    "ours": ours,
                    "packets": found,
                    "ratio": ratio(ours["goodput_gbps"], gbps),
                    "cpu_stolen": environment.CpuTimes.now().stolen_since(before),
                }
            )
    environment.finish(described, started)
    described |= {key: trials[0]["ours"][of] for key, of in (("provider", "crypto"), ("aead", "aead"))}
    described["backend"] = trials[0]["ours"]["backend"]
    return {
        "goodput_gbps": median(trial["ours"]["goodput_gbps"] for trial in trials),
        "packets_gbps": median(trial["packets"]["goodput_gbps"] for trial in trials),
        "packets_pps": median(trial["packets"]["pps"] for trial in trials),
        "ratio": pairwise(trials, "ours", "packets", "goodput_gbps"),
        "ratio_is": QUIC_RATIO,
        "settings": {
            "direction": "download" if settings.download else "upload",
            "seconds": settings.seconds,
            "streams": settings.streams,
            "connections": settings.connections,
            "datagram_bytes": settings.datagram_bytes,
            "options": list(bench.settings.options),
        },
        "trials": trials,
        "environment": described,
    }


def throughput_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report of `measure_throughput` for people."""
    trials = report["trials"]
    lost = ", ".join(f"{t['ours']['packets_lost']} of {t['ours']['packets_sent']}" for t in trials)
    return [
        ("goodput", f"{spread([t['ours']['goodput_gbps'] for t in trials])} Gbit/s"),
        ("backend, no QUIC", f"{spread([t['packets']['goodput_gbps'] for t in trials])} Gbit/s"),
        ("ratio", spread([t["ratio"] for t in trials], 3)),
        ("packets lost", lost),
    ]


async def measure_latency(bench: Bench) -> dict[str, Any]:
    """Request and response over AF_XDP, both ends busy-polling, beside the ping-pong of the raw loop and of
    the backend."""
    settings = bench.settings
    check_built()
    loops = Loops(bench.client, bench.server)
    bench = _over_afxdp(bench)
    described = environment.environment(bench.client, bench.server, settings.mtu)
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            steps.begin("ours")
            trial = {"ours": await latency.ours(bench)}
            for which in (BACKEND, RAW):
                steps.begin(which)
                trial[which] = await loops.round_trips(which, PING_BYTES, pings(settings.seconds))
            for name, figures in trial.items():
                steps.done(name, f"p50 {figures['p50_us']:.1f} us, p99 {figures['p99_us']:.1f} us")
            trials.append(trial)
    environment.finish(described, started)
    described["provider"] = trials[0]["ours"]["crypto"]
    described["backend"] = trials[0]["ours"]["backend"]

    def us(name: str, key: str) -> float:
        return median(trial[name][key] for trial in trials)

    return {
        "p50_us": us("ours", "p50_us"),
        "p99_us": us("ours", "p99_us"),
        "backend_p50_us": us(BACKEND, "p50_us"),
        "backend_p99_us": us(BACKEND, "p99_us"),
        "raw_p50_us": us(RAW, "p50_us"),
        "raw_p99_us": us(RAW, "p99_us"),
        "ratio": pairwise(trials, "ours", RAW, "p50_us"),
        "ratio_p99": pairwise(trials, "ours", RAW, "p99_us"),
        "ratio_backend": pairwise(trials, BACKEND, RAW, "p50_us"),
        "ratio_is": QUIC_RTT_RATIO,
        "settings": {
            "seconds": settings.seconds,
            "bytes": PING_BYTES,
            "options": list(bench.settings.options),
        },
        "trials": trials,
        "environment": described,
    }


def latency_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report of `measure_latency` for people."""
    trials = report["trials"]
    lines = []
    for name, text in (("ours", "request and response"), (BACKEND, "backend, no QUIC"), (RAW, "raw AF_XDP")):
        p50, p99 = (spread([trial[name][key] for trial in trials], 1) for key in ("p50_us", "p99_us"))
        lines.append((text, f"p50 {p50} us, p99 {p99} us"))
    lines.append(("ratio", f"p50 {report['ratio']:.2f}, p99 {report['ratio_p99']:.2f}"))
    return lines


def _over_afxdp(bench: Bench) -> Bench:
    """Both nodes on the pair's interface."""
    options = (*bench.settings.options, "--interface", INTERFACE)
    return replace(bench, settings=replace(bench.settings, options=options))

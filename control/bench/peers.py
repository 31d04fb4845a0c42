"""Ours beside every other QUIC implementation that can be run here, each at both ends, one core a side.

One trial: for each implementation a server, and then against it, one after the other

      download     one connection, one stream, for some seconds: goodput, and processor time a GiB
      requests     512 bytes there and 512 back on a new stream each, one after the other: p50 and p99
      handshakes   full ones, server's certificate only, several at a time: how many a second

They take turns in every trial, over the same veth pair, so that what the machine does meanwhile hits all of
them. All speak ALPN `perf`, with AES-128-GCM, and show an ECDSA P-256 certificate. Goodput is stream payload
from the first request to the last byte counted: the handshake is not in it, slow start is. Processor time is
that of both processes, all threads, from the client's `begin` (its connection stands) to its `result`: the
client says its own, the server's is in /proc/PID/stat. Sleeping and polling are each one's own: ours does
not busy-poll here.

The peers' programs are tests/peers (perf.py, quicgo, quinn, s2n); tests/peers/perf_install.py builds them
into build/peers (`make bench-peers`). Each is

      PROGRAM version | serve | download | requests | handshakes …

and writes JSON objects, one a line. Each says itself what version it is and what was set. One that is not
here, or that fails, is listed with the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.bench import environment
from control.bench.processes import ROOT, BenchError, Program, python, running, stoq
from control.bench.report import Steps, median, ratio, spread
from control.bench.throughput import FOR_EVER_BYTES, PEER_PORT, Bench
from control.console import Output
from dataplane import STOQ_PORT, StoqError

OURS = "stoq"
MODULE = "tests.peers.perf"  # The libraries that Python can import.
BUILT = ROOT / "build" / "peers"
NAMES = ("aioquic", "qh3", "aiopquic", "quic-go", "quinn", "s2n-quic")
REQUEST_BYTES = 512
PERF_HEADER_BYTES = 8
SPARE_SECONDS = 30.0  # Beyond --seconds: a program that is not done then hangs.
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
GIB = 1 << 30
KEYS = ("goodput_gbps", "cpu_seconds_per_gib", "handshakes_per_second", "p50_us", "p99_us")
RATIO = "median over trials of our goodput_gbps / the best other's within the trial"


class MissingError(StoqError):
    """A peer cannot be run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An implementation and how its program is started."""

    name: str
    argv: tuple[str, ...]
    version: str
    settings: str


def _argv(name: str) -> tuple[str, ...]:
    """Raises MissingError."""
    if not (ROOT / "tests" / "peers" / "perf.py").is_file():
        raise MissingError("tests/peers is not here (it is in the project's checkout)")
    if name in ("aioquic", "qh3"):
        if environment.version(name) is None:
            raise MissingError("not installed: `python -m tests.peers.install` in the project's directory")
        return tuple(python(MODULE, name))
    reason = BUILT / f"{name}.reason"
    if reason.is_file():  # Also when an older program is there still.
        raise MissingError(reason.read_text(encoding="utf-8"))
    interpreter = BUILT / name / "bin" / "python"
    if interpreter.is_file():
        return str(interpreter), "-m", MODULE, name
    program = BUILT / f"perf-{name}"
    if program.is_file():
        return (str(program),)
    raise MissingError("not built: `make bench-peers` in the project's directory")


async def find(name: str) -> Peer:
    """A peer that can be run. Raises MissingError."""
    argv = _argv(name)
    process = await asyncio.create_subprocess_exec(
        *argv, "version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT
    )
    out, errors = await process.communicate()
    try:
        said = json.loads(out)
        return Peer(name, argv, said["version"], said["settings"])
    except (ValueError, KeyError):
        tail = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise MissingError(f"it does not start: {tail or out.decode('utf-8', 'replace')[:200]}") from None


def cpu_seconds(program: Program) -> float:
    """Processor time of a running process and all its threads so far."""
    text = Path(f"/proc/{program.process.pid}/stat").read_text(encoding="ascii", errors="replace")
    fields = text.rpartition(")")[2].split()  # From the third on: proc(5).
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation's programs at both ends."""

    bench: Bench
    peer: Peer
    concurrency: int

    def _serve(self) -> list[str]:
        bench, listen = self.bench, f"[{self.bench.server.address}]"
        files = bench.server_files()
        if self.peer.name == OURS:
            listen = f"{listen}:{STOQ_PORT}"
            return stoq("perf", "serve", "--listen", listen, *files, *bench.node(bench.server.core))
        datagram = ["--datagram", str(bench.settings.datagram_bytes)]
        return [*self.peer.argv, "serve", "--listen", f"{listen}:{PEER_PORT}", *files, *datagram]

    def _call(self, what: str) -> list[str]:
        bench, to = self.bench, f"[{self.bench.server.address}]"
        seconds = ["--seconds", f"{bench.settings.seconds:g}"]
        many = ["--concurrency", str(self.concurrency)] if what == "handshakes" else []
        if self.peer.name != OURS:
            datagram = ["--datagram", str(bench.settings.datagram_bytes)]
            size = ["--bytes", str(REQUEST_BYTES)] if what == "requests" else []
            argv = [*self.peer.argv, what, "--to", f"{to}:{PEER_PORT}", *bench.ca(), *datagram]
            return [*argv, *seconds, *size, *many]
        to = f"{to}:{STOQ_PORT}"
        if what == "handshakes":
            argv = python("control.bench.handshaker", "connect", "--to", to, "--certs", str(bench.certs))
            argv += ["--alpn", "perf", "--backend", bench.settings.backend]
            return [*argv, "--core", str(bench.client.core), *seconds, *many]
        sizes = ["--download", str(FOR_EVER_BYTES)]
        if what == "requests":
            upload = REQUEST_BYTES - PERF_HEADER_BYTES
            sizes = ["--download", str(REQUEST_BYTES), "--upload", str(upload)]
        argv = stoq("perf", "client", "--to", to, *bench.ca(), *sizes, *seconds)
        return [*argv, *bench.node(bench.client.core)]

    async def run(self) -> dict[str, Any]:
        """The three measurements against one server. Raises BenchError."""
        name, bench = self.peer.name, self.bench
        async with running(f"{name} server", bench.server, self._serve(), cwd=ROOT) as server:
            await _within(SPARE_SECONDS, server.until("listening"), f"{name} server")
            figures: dict[str, Any] = {}
            for what in ("download", "requests", "handshakes"):
                title = f"{name} {what}"
                async with running(title, bench.client, self._call(what), cwd=ROOT) as client:
                    limit = bench.settings.seconds + SPARE_SECONDS
                    figures |= await _within(limit, self._measured(what, server, client), title)
                    await _within(SPARE_SECONDS, client.process.wait(), title)
        return figures

    async def _measured(self, what: str, server: Program, client: Program) -> dict[str, Any]:
        ours_in_c = self.peer.name == OURS and what != "handshakes"
        await client.until("connected" if ours_in_c else "begin")
        before = cpu_seconds(server)
        result = await client.until("result")
        served = cpu_seconds(server) - before
        if what == "download":
            count, seconds = self._downloaded(result)
            return {
                "goodput_gbps": ratio(count * 8, seconds) / 1e9,
                "bytes": count,
                "seconds": seconds,
                "client_cpu_seconds": result["cpu_seconds"],
                "server_cpu_seconds": served,
                "cpu_seconds_per_gib": ratio((result["cpu_seconds"] + served) * GIB, count),
            }
        return self._timed(what, result)

    def _downloaded(self, result: dict[str, Any]) -> tuple[int, float]:
        if self.peer.name == OURS:
            return result["result"]["bytes_received"], result["result"]["duration"]
        return result["bytes"], result["seconds"]

    def _timed(self, what: str, result: dict[str, Any]) -> dict[str, Any]:
        """Requests and handshakes, whoever counted them."""
        ours = self.peer.name == OURS
        if what == "requests":
            inner = result["result"] if ours else result
            p50, p99 = (inner[f"latency_{q}" if ours else f"{q}_seconds"] for q in ("p50", "p99"))
            count = inner["requests" if ours else "count"]
            return {"requests": count, "p50_us": p50 * 1e6, "p99_us": p99 * 1e6}
        count = result["handshakes" if ours else "count"]
        p50_ms, p99_ms = (result[f"{q}_ms"] if ours else result[f"{q}_seconds"] * 1e3 for q in ("p50", "p99"))
        return {
            "handshakes": count,
            "handshakes_failed": result["failed"],
            "handshakes_per_second": ratio(count, result["seconds"]),
            "handshake_p50_ms": p50_ms,
            "handshake_p99_ms": p99_ms,
        }


async def _within(seconds: float, what: Any, title: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError:
        raise BenchError(f"{title} was not done in {seconds:g} s") from None


async def _found(names: tuple[str, ...], output: Output) -> tuple[list[Peer], dict[str, str]]:
    """Those that can be run, and why the others cannot."""
    peers, left_out = [], {}
    for name in names:
        try:
            peers.append(await find(name))
        except MissingError as error:
            left_out[name] = str(error)
            output.note(f"{name} is left out: {error}")
    return peers, left_out


async def measure(output: Output, bench: Bench, names: tuple[str, ...], concurrency: int) -> dict[str, Any]:
    """All trials; the report with its figures."""
    settings = bench.settings
    peers, left_out = await _found(names or NAMES, output)
    described = environment.environment(bench.client, bench.server, settings.mtu)
    version = str(described["revision"] or environment.version("stoq-appliance"))
    peers.insert(0, Peer(OURS, (), version, f"{settings.backend}, CUBIC, adaptive polling"))
    started = environment.CpuTimes.now()
    trials: list[dict[str, Any]] = []
    with Steps(settings.trials) as steps:
        for number in range(settings.trials):
            steps.trial(number)
            trial: dict[str, Any] = {}
            for peer in list(peers):
                steps.begin(peer.name)
                before = environment.CpuTimes.now()
                try:
                    figures = await Contender(bench, peer, concurrency).run()
                except BenchError as error:
                    if peer.name == OURS:
                        raise
                    left_out[peer.name] = f"it failed: {error}"
                    peers.remove(peer)
                    steps.done(peer.name, left_out[peer.name])
                    continue
                figures["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
                trial[peer.name] = figures
                steps.done(peer.name, _line(figures))
            others = {name: trial[name]["goodput_gbps"] for name in trial if name != OURS}
            best = max(others, key=lambda name: others[name], default=None)
            trial["best_other"] = best
            trial["ratio"] = ratio(trial[OURS]["goodput_gbps"], others[best]) if best else None
            trials.append(trial)
    environment.finish(described, started)
    described["provider"] = "each one's own"
    table = [_summary(peer, trials) for peer in peers if all(peer.name in trial for trial in trials)]
    best_other = max(table[1:], key=lambda row: row["goodput_gbps"], default=None)
    ratios = [trial["ratio"] for trial in trials if trial["ratio"] is not None]
    return {
        "ratio": median(ratios) if ratios else None,
        "ratio_is": RATIO,
        "best_other": best_other["name"] if best_other else None,
        "peers": table,
        "left_out": left_out,
        "settings": {
            "seconds": settings.seconds,
            "request_bytes": REQUEST_BYTES,
            "concurrency": concurrency,
            "datagram_bytes": settings.datagram_bytes,
            "backend": settings.backend,
            "options": list(settings.options),
        },
        "trials": trials,
        "environment": described,
    }


def _summary(peer: Peer, trials: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": peer.name, "version": peer.version, "settings": peer.settings}
    keys = (*KEYS, "handshake_p50_ms", "handshake_p99_ms")
    found |= {key: median(trial[peer.name][key] for trial in trials) for key in keys}
    if peer.name != OURS:
        ours = [ratio(t[OURS]["goodput_gbps"], t[peer.name]["goodput_gbps"]) for t in trials]
        found["ours_over_theirs"] = median(ours)
    return found


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['goodput_gbps']:.2f} Gbit/s, {figures['cpu_seconds_per_gib']:.2f} CPU s/GiB, "
        f"{figures['handshakes_per_second']:.0f} handshakes/s, "
        f"p50 {figures['p50_us']:.1f} us, p99 {figures['p99_us']:.1f} us"
    )


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    lines = []
    for row in report["peers"]:
        goodput = spread([trial[row["name"]]["goodput_gbps"] for trial in report["trials"]])
        times = f"; ours {row['ours_over_theirs']:.2f} times" if "ours_over_theirs" in row else ""
        rest = _line(row).partition(", ")[2]
        lines.append((f"{row['name']} {row['version']}", f"{goodput} Gbit/s{times}; {rest}"))
    lines += [(name, f"left out: {reason}") for name, reason in report["left_out"].items()]
    if report["ratio"] is not None:
        lines.append(("ratio", f"{report['ratio']:.2f} times the best other, {report['best_other']}"))
    return lines

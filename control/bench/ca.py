"""A certificate authority: what it issues, what judging it costs whoever meets it, and what it tells of revocation; each
figure beside its yardstick in the same trial:

      issued        requests under way at a time, each certificate with SCTs of two logs      bare_two   the same two
                    in the same process; audited, stored, durable                             certificates alone
      unlogged      the same without logs                                                     bare_one
      judged        by a node's verifier as in a handshake, none seen before                  the path alone
      ocsp, crl     over HTTP/1.1, the CRL as it is kept between two revocations              the root's certificate

What is bare is built and signed by `cryptography`, written down, and synced for as many together as are under way there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.bench import environment
from control.bench.ca_programs import ISSUED
from control.bench.processes import python
from control.bench.report import Steps, median, pairwise, ratio, spread
from control.bench.trust_ends import Ends
from control.bench.trust_figures import described, work_directory
from control.nodes import Place

PROGRAMS, SERVER = "control.bench.ca_programs", "control.bench.trust_server"
MOST_PER_SECOND = 1500  # Requests are made for so fast an authority.
CONNECTIONS = 16  # That ask for OCSP answers and CRLs.
RATIOS = {
    "issued": "median over trials of certificates a second with two SCTs / the bare two",
    "unlogged": "median over trials of certificates a second without SCTs / the bare one",
    "judged": "median over trials of the verifier's p50 / the path's by cryptography alone",
    "ocsp": "median over trials of OCSP answers a second / those of the root's certificate",
    "crl": "median over trials of CRLs a second / those of the root's certificate",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. `seconds`: of each contender; `directory` None: where temporary files go."""

    trials: int = 3
    seconds: float = 10.0
    concurrency: int = 50
    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """One trial's work, below `work`."""

    settings: Settings
    ends: Ends
    work: Path

    def _program(self, command: str, directory: str, *more: str) -> Awaitable[dict[str, Any]]:
        timed = ["--seconds", f"{self.settings.seconds:g}", "--concurrency", str(self.settings.concurrency)]
        options = [] if command == "judge" else timed
        return self.ends.run(command, python(PROGRAMS, command, str(self.work / directory), *options, *more))

    def issue(self, logs: int) -> Awaitable[dict[str, Any]]:
        """By a new authority."""
        most = max(self.settings.concurrency, round(self.settings.seconds * MOST_PER_SECOND))
        return self._program("issue", f"ca-{logs}", "--logs", str(logs), "--most", str(most))

    def bare(self, certificates: int) -> Awaitable[dict[str, Any]]:
        """By no authority."""
        return self._program("bare", "bare", "--certificates", str(certificates))

    def judge(self) -> Awaitable[dict[str, Any]]:
        """What was issued with SCTs."""
        return self._program("judge", "ca-2")

    async def answers(self, steps: Steps) -> dict[str, Any]:
        """About what was issued with SCTs."""
        contenders = {
            "ocsp": ["ocsp", "--pem", str(self.work / "ca-2" / ISSUED)],
            "crl": ["get", "--path", "crl/1.crl"],
            "root": ["get", "--path", "root.pem"],
        }
        found = {}
        async with self.ends.serving("authority", python(SERVER, "authority", str(self.work / "ca-2"))) as server:
            for name, arguments in contenders.items():
                steps.begin(name)
                found[name] = await self.ends.load(server, "", *arguments, connections=CONNECTIONS)
                steps.done(name, f"{found[name]['per_second']:.0f}/s, p99 {found[name]['p99_ms']:.1f} ms")
        return found

    async def trial(self, steps: Steps) -> dict[str, Any]:
        """All contenders in turn."""
        contenders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "issued": lambda: self.issue(2),
            "bare_two": lambda: self.bare(2),
            "unlogged": lambda: self.issue(0),
            "bare_one": lambda: self.bare(1),
            "judged": self.judge,
        }
        trial: dict[str, Any] = {}
        for name, run in contenders.items():
            steps.begin(name)
            before = environment.CpuTimes.now()
            trial[name] = figures = await run()
            figures["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
            rate = f"{figures['per_second']:.0f}/s" if "per_second" in figures else f"{figures['count']}"
            tail = f", p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms" if "p50_ms" in figures else ""
            steps.done(name, rate + tail)
        judged = trial["judged"]
        judged["ratio"] = ratio(judged["p50_ms"], judged["path_p50_ms"])
        return trial | await self.answers(steps)


async def measure(settings: Settings, client: Place, server: Place) -> dict[str, Any]:
    """All trials; the report with its figures. Raises BenchError."""
    with work_directory(settings.directory) as work:
        where = described(client, server, work)
        started = environment.CpuTimes.now()
        trials: list[dict[str, Any]] = []
        ends = Ends(client, server, settings.seconds)
        with Steps(settings.trials) as steps:
            for number in range(settings.trials):
                steps.trial(number)
                with work_directory(work) as directory:
                    trials.append(await Bench(settings, ends, directory).trial(steps))
        environment.finish(where, started)

    def of(name: str, *keys: str) -> dict[str, float]:
        return {key: median(trial[name][key] for trial in trials) for key in keys}

    rates = ("per_second", "p50_ms", "p99_ms")
    return {
        **{name: of(name, *rates) for name in ("issued", "unlogged", "ocsp", "crl", "root")},
        **{name: of(name, "per_second") for name in ("bare_two", "bare_one")},
        "judged": of("judged", "p50_ms", "p99_ms", "path_p50_ms", "path_p99_ms"),
        "issued_ratio": pairwise(trials, "issued", "bare_two", "per_second"),
        "unlogged_ratio": pairwise(trials, "unlogged", "bare_one", "per_second"),
        "judged_ratio": median(trial["judged"]["ratio"] for trial in trials),
        "ocsp_ratio": pairwise(trials, "ocsp", "root", "per_second"),
        "crl_ratio": pairwise(trials, "crl", "root", "per_second"),
        "ratios_are": RATIOS,
        "settings": {"seconds": settings.seconds, "concurrency": settings.concurrency},
        "trials": trials,
        "environment": where,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials = report["trials"]

    def many(name: str, key: str, digits: int = 0) -> str:
        return spread([trial[name][key] for trial in trials], digits)

    def rate(name: str) -> str:
        return f"{many(name, 'per_second')} /s; p50 {many(name, 'p50_ms', 1)} ms, p99 {many(name, 'p99_ms', 1)} ms"

    return [
        ("issued, two SCTs", rate("issued")),
        ("the two certificates alone", f"{many('bare_two', 'per_second')} /s; ratio {report['issued_ratio']:.3f}"),
        ("issued, no SCTs", rate("unlogged")),
        ("the certificate alone", f"{many('bare_one', 'per_second')} /s; ratio {report['unlogged_ratio']:.3f}"),
        ("a peer judged, not seen before", f"p50 {many('judged', 'p50_ms', 2)} ms, p99 {many('judged', 'p99_ms', 2)} ms"),
        (
            "its path alone",
            f"p50 {many('judged', 'path_p50_ms', 2)} ms, p99 {many('judged', 'path_p99_ms', 2)} ms; "
            f"ratio {report['judged_ratio']:.2f}",
        ),
        ("OCSP answers", rate("ocsp")),
        ("CRLs", rate("crl")),
        ("the root's certificate", f"{rate('root')}; ratio OCSP {report['ocsp_ratio']:.2f}, CRL {report['crl_ratio']:.2f}"),
    ]

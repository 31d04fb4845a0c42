"""A Certificate Transparency log: what it takes in, what it gives out, and how that changes with its size; each figure
beside its yardstick in the same trial.

Once, before the trials (`ct_growth`): a log of many entries, its cost an entry at 10^4, 10^5, … and what the same bytes cost
appended to one file. Then in each trial:

      add-chain       distinct precertificates over kept connections, to a new log on the disk (and one in S3)
      constant        the same, answered after one signature verified and one made, without a log
      reopened        the big log's server from its start to its listening, the log's files not in memory
      get-entries     of the big log from its first entry on       data tiles   the same entries as static-ct-api has them
      proofs          get-proof-by-hash all over the big log       checkpoint   the smallest answer that it gives

Servers (`stoq ct serve`, `trust_server`) and clients (`trust_load`) are processes on a core each; with S3, whose server may
be a third one here, the kernel divides the cores. Every answer is checked outside the timed part.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from control.bench import environment
from control.bench.ct_chains import Pki
from control.bench.ct_growth import ROUND
from control.bench.processes import ROOT, BenchError, Program, python, running, stoq
from control.bench.report import Steps, median, pairwise, ratio, spread
from control.bench.trust_ends import Ends
from control.bench.trust_figures import bytes_on_disk, described, drop_cached, memory, work_directory
from control.ctlog.envelope import KEY_BYTES, Envelope, LocalKey
from control.ctlog.s3 import S3LockStore, S3Options
from control.ctlog.site import LogConfig, S3Place, Site, create
from control.nodes import Place

SERVER, GROWTH = "control.bench.trust_server", "control.bench.ct_growth"
PREFIX = "bench"
MOST_PER_SECOND = 6000  # Precertificates are made for so fast a log.
READERS = 4  # Connections that read entries.
PROVERS = 16
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
RATIOS = {
    "add_chain": "median over trials of add-chain's entries a second / the yardstick's without a log",
    "s3": "median over trials of add-chain's entries a second in S3 / the yardstick's without a log",
    "get_entries": "median over trials of get-entries' entries a second / those of the data tiles",
    "proofs": "median over trials of proofs a second / checkpoints a second",
    "flatness": "cost of an entry at the last mark / at the first",
}


Serving = tuple[Program, dict[str, Any]]  # A server, and what it said when it listened.


@dataclass(frozen=True, slots=True)
class S3Target:
    """Where S3 is; `own`: a SeaweedFS server of our own instead."""

    url: str = ""
    bucket: str = ""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. `seconds`: of each contender; `directory` None: where temporary files go."""

    trials: int = 3
    seconds: float = 10.0
    connections: int = 64
    entries: int = 1_000_000
    s3: S3Target | None = None
    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it is measured."""

    settings: Settings
    ends: Ends
    work: Path

    @property
    def pki(self) -> Path:
        """Of the precertificates."""
        return self.work / "pki"

    @property
    def big(self) -> Path:
        """The big log's directory."""
        return self.work / "big"

    async def create(self, directory: Path, place: S3Place | None = None, period: float | None = None) -> Site:
        """A new log."""
        config = LogConfig(f"localhost/{PREFIX}")
        if place is not None:
            config = msgspec.structs.replace(config, storage=place, lock=place)
        if period is not None:
            config = msgspec.structs.replace(config, period=period)
        return await create(directory, config, [Pki.load(self.pki).root], time.time)

    def serving_log(self, directory: Path) -> AbstractAsyncContextManager[Serving]:
        """The log of a directory, as anybody would serve it."""
        return self.ends.serving("stoq ct serve", stoq("ct", "serve", str(directory), "--http", "[::1]:0"))

    async def submit(self, server: Serving, prefix: str, *more: str) -> dict[str, Any]:
        """Precertificates, as many as come through."""
        most = max(self.settings.connections, round(self.settings.seconds * MOST_PER_SECOND))
        add = ["add", "--pki", str(self.pki), "--most", str(most), *more]
        return await self.ends.load(server, prefix, *add, connections=self.settings.connections)

    async def add_chain(self, directory: Path) -> dict[str, Any]:
        """To a log that exists."""
        async with self.serving_log(directory) as server:
            figures = await self.submit(server, PREFIX, "--key", str(directory / "log.pem"))
            program, _ = server
            figures["server"] = memory(program.process.pid)
            summary = await program.summary()
        rounds = max(summary["rounds"], 1)
        return {**figures, "rounds": rounds, "entries_per_round": summary["entries"] / rounds}

    async def constant(self) -> dict[str, Any]:
        """Without a log."""
        async with self.ends.serving("yardstick", python(SERVER, "constant", "--pki", str(self.pki))) as server:
            return await self.submit(server, "")

    async def grow(self, steps: Steps) -> dict[str, Any]:
        """The big log."""
        await self.create(self.big, period=0.0)
        argv = python(GROWTH, str(self.big), "--pki", str(self.pki), "--entries", str(self.settings.entries))
        async with running("growing log", self.ends.unpinned().server, argv, cwd=ROOT) as program:
            async for found in program.objects():
                if found["event"] == "progress":
                    steps.done(
                        f"a log of {found['entries']} entries",
                        f"{found['us']:.0f} us an entry, {found['resident_mib']:.0f} MiB resident",
                    )
                result = found
        marks = result["marks"]
        return {
            "entries": result["entries"],
            "seconds": result["seconds"],
            "round_entries": ROUND,
            "marks": marks,
            "flatness": ratio(marks[-1]["us"], marks[0]["us"]),
            "flatness_cpu": ratio(marks[-1]["cpu_us"], marks[0]["cpu_us"]),
            "append_ratio": ratio(marks[-1]["us"], marks[-1]["append_us"]),
            "start": result["start"],
            "reopened_seconds": result["reopened_seconds"],
            "disk_mib": bytes_on_disk(self.big) / 2**20,
        }

    async def read(self, steps: Steps) -> dict[str, Any]:
        """The big log reopened, and asked."""
        drop_cached(self.big)
        key = ["--key", str(self.big / "log.pem")]
        contenders = {
            "get_entries": (["entries", *key], READERS, "entries_per_second", "entries/s"),
            "data_tiles": (["tiles", *key], READERS, "entries_per_second", "entries/s"),
            "proofs": (["proofs", *key], PROVERS, "per_second", "/s"),
            "checkpoint": (["get", "--path", "checkpoint"], PROVERS, "per_second", "/s"),
        }
        found: dict[str, Any] = {}
        begin = time.perf_counter()
        async with self.serving_log(self.big) as server:
            seconds, (program, listening) = time.perf_counter() - begin, server
            opened = {"seconds": seconds, "entries": listening["logs"][0]["size"], **memory(program.process.pid)}
            steps.done("reopened", f"{seconds:.2f} s to listening, {opened['resident_mib']:.0f} MiB resident")
            for name, (arguments, connections, figure, unit) in contenders.items():
                steps.begin(name)
                found[name] = await self.ends.load(server, PREFIX, *arguments, connections=connections)
                steps.done(name, f"{found[name][figure]:.0f} {unit}, p99 {found[name]['p99_ms']:.1f} ms")
            found["reopened"] = {**opened, "after_reading": memory(program.process.pid)}
        return found


# ---- S3 ----


@contextmanager
def _credentials(values: dict[str, str]) -> Iterator[None]:
    """What boto3 finds, here and in the processes begun meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@asynccontextmanager
async def _target(wanted: S3Target) -> AsyncIterator[S3Target]:
    """S3 as it is reached: a SeaweedFS server lives as long as this."""
    if not wanted.own:
        options = S3Options(wanted.bucket, endpoint=wanted.url)
        await (await S3LockStore.open(options, Envelope(LocalKey(secrets.token_bytes(KEY_BYTES))))).close()  # It is probed.
        yield wanted
        return
    if not (ROOT / "tests" / "ctlog" / "seaweed.py").is_file():
        raise BenchError("tests/ctlog/seaweed.py is not here (it is in the project's checkout): name a server with --s3")
    async with running("SeaweedFS", Place(None, "::1", -1), python("tests.ctlog.seaweed"), cwd=ROOT) as program:
        async for server in program.objects():
            with _credentials(dict(zip(CREDENTIALS, (server["access_key"], server["secret_key"]), strict=True))):
                yield S3Target(server["endpoint"], server["bucket"])
            return
    raise BenchError("SeaweedFS ended without a word")


async def _in_s3(bench: Bench, target: S3Target, number: int) -> dict[str, Any]:
    """add-chain to a log whose entries and heads are in S3, sealed; its objects are removed."""
    place = S3Place(
        bucket=target.bucket,
        endpoint=target.url,
        prefix=f"bench-{secrets.token_hex(8)}",
    )
    site = await bench.create(bench.work / f"s3-{number}", place)
    try:
        return await replace(bench, ends=bench.ends.unpinned()).add_chain(site.directory)
    finally:
        storage = await replace(site, config=_whole_bucket(site.config, place)).storage()
        try:
            await storage.delete(place.prefix)
        finally:
            await storage.close()


def _whole_bucket(config: LogConfig, place: S3Place) -> LogConfig:
    return msgspec.structs.replace(config, storage=msgspec.structs.replace(place, prefix=""))


# ---- all of it ----


async def _trial(bench: Bench, target: S3Target | None, number: int, steps: Steps) -> dict[str, Any]:
    async def local() -> dict[str, Any]:
        site = await bench.create(bench.work / f"log-{number}")
        return await bench.add_chain(site.directory)

    contenders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {"add_chain": local, "constant": bench.constant}
    if target is not None:
        contenders["s3"] = lambda: _in_s3(bench, target, number)
    trial: dict[str, Any] = {}
    for name, run in contenders.items():
        steps.begin(name)
        before, load = environment.CpuTimes.now(), os.getloadavg()[0]
        trial[name] = figures = await run()
        figures["cpu_stolen"] = environment.CpuTimes.now().stolen_since(before)
        figures["load"] = load
        steps.done(
            name,
            f"{figures['per_second']:.0f} entries/s, p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms",
        )
    return trial | await bench.read(steps)


async def measure(settings: Settings, client: Place, server: Place) -> dict[str, Any]:
    """All of it; the report with its figures. Raises BenchError, LogError."""
    with work_directory(settings.directory) as work:
        bench = Bench(settings, Ends(client, server, settings.seconds), work)
        bench.pki.mkdir()
        Pki.make().save(bench.pki)
        where = described(client, server, work)
        started = environment.CpuTimes.now()
        trials: list[dict[str, Any]] = []
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(_target(settings.s3)) if settings.s3 is not None else None
            with Steps(settings.trials) as steps:
                steps.begin("growth")
                growth = await bench.grow(steps)
                for number in range(settings.trials):
                    steps.trial(number)
                    trials.append(await _trial(bench, target, number, steps))
        environment.finish(where, started)
    return _report(settings, growth, trials, where)


def _report(
    settings: Settings, growth: dict[str, Any], trials: list[dict[str, Any]], where: dict[str, Any]
) -> dict[str, Any]:
    def of(name: str, *keys: str) -> dict[str, float]:
        return {key: median(trial[name][key] for trial in trials) for key in keys}

    adding = ("per_second", "p50_ms", "p99_ms")
    reading = ("entries_per_second", "p50_ms", "p99_ms")
    report = {
        "add_chain": of("add_chain", *adding),
        "constant": of("constant", *adding),
        "add_chain_ratio": pairwise(trials, "add_chain", "constant", "per_second"),
        "get_entries": of("get_entries", *reading),
        "data_tiles": of("data_tiles", *reading),
        "get_entries_ratio": pairwise(trials, "get_entries", "data_tiles", "entries_per_second"),
        "proofs": of("proofs", *adding),
        "checkpoint": of("checkpoint", *adding),
        "proofs_ratio": pairwise(trials, "proofs", "checkpoint", "per_second"),
        "reopened": of("reopened", "seconds", "resident_mib"),
        "growth": growth,
        "ratios_are": RATIOS,
    }
    if settings.s3 is not None:
        report["s3"] = of("s3", *adding)
        report["s3_ratio"] = pairwise(trials, "s3", "constant", "per_second")
    report["settings"] = {
        "seconds": settings.seconds,
        "connections": settings.connections,
        "entries": settings.entries,
        "s3": None if settings.s3 is None else "SeaweedFS of its own" if settings.s3.own else settings.s3.url,
    }
    return {**report, "trials": trials, "environment": where}


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    trials, growth = report["trials"], report["growth"]

    def many(name: str, key: str, digits: int = 0) -> str:
        return spread([trial[name][key] for trial in trials], digits)

    def adding(name: str, unit: str = "entries/s") -> str:
        return f"{many(name, 'per_second')} {unit}; p50 {many(name, 'p50_ms', 1)} ms, p99 {many(name, 'p99_ms', 1)} ms"

    lines = [("add-chain, local disk", adding("add_chain"))]
    if "s3" in report:
        lines.append(("add-chain, S3", adding("s3")))
    lines += [
        ("the same without a log", adding("constant")),
        ("ratio", f"{report['add_chain_ratio']:.2f}" + (f"; S3 {report['s3_ratio']:.2f}" if "s3" in report else "")),
        ("get-entries", f"{many('get_entries', 'entries_per_second')} entries/s"),
        ("data tiles", f"{many('data_tiles', 'entries_per_second')} entries/s"),
        ("ratio, get-entries to tiles", f"{report['get_entries_ratio']:.2f}"),
        ("inclusion proofs", adding("proofs", "/s")),
        ("checkpoint", adding("checkpoint", "/s")),
        ("ratio, proofs to checkpoints", f"{report['proofs_ratio']:.2f}"),
    ]
    for mark in growth["marks"]:
        text = f"{mark['us']:.0f} us ({mark['us_min']:.0f} … {mark['us_max']:.0f}), processor {mark['cpu_us']:.0f} us"
        text += f"; appended to a file {mark['append_us']:.0f} us; {mark['resident_mib']:.0f} MiB resident"
        lines.append((f"an entry at {mark['entries']}", text))
    last = growth["marks"][-1]
    lines += [
        ("flatness, last mark to first", f"{growth['flatness']:.2f}, processor {growth['flatness_cpu']:.2f}"),
        ("built", f"{growth['entries']} entries in {growth['seconds']:.0f} s, {growth['disk_mib']:.0f} MiB on disk"),
        ("memory while building", f"{growth['start']['resident_mib']:.0f} MiB to {last['peak_mib']:.0f} at most"),
        ("reopened", f"{growth['reopened_seconds']:.2f} s; not in memory, with the program's own start "
            f"{many('reopened', 'seconds', 2)} s, {many('reopened', 'resident_mib')} MiB resident"),
    ]
    return lines


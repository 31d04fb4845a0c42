"""The two ends of `stoq bench ct` and `stoq bench ca`: a server and its client, processes on a core each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from control.bench.latency import cpu_seconds
from control.bench.processes import ROOT, BenchError, Program, python, running
from control.nodes import Place

LOAD = "control.bench.trust_load"


@dataclass(frozen=True, slots=True)
class Ends:
    """Where they run, and for how long a client asks."""

    client: Place
    server: Place
    seconds: float

    def unpinned(self) -> Ends:
        """Where more than two processes share the cores."""
        return replace(self, client=replace(self.client, core=-1), server=replace(self.server, core=-1))

    async def run(self, name: str, argv: list[str]) -> dict[str, Any]:
        """A program alone, on any core: its result."""
        async with running(name, replace(self.server, core=-1), argv, cwd=ROOT) as program:
            return _plain(await program.until("result"))

    @asynccontextmanager
    async def serving(self, name: str, argv: list[str]) -> AsyncIterator[tuple[Program, dict[str, Any]]]:
        """A server, and what it says when it listens."""
        async with running(name, self.server, argv, cwd=ROOT) as program:
            yield program, await program.until("listening")

    async def load(
        self, server: tuple[Program, dict[str, Any]], prefix: str, *arguments: str, connections: int
    ) -> dict[str, Any]:
        """A client's result, and what of the server's processor it took (with what was asked to check the answers: little
        beside it). Raises BenchError when it, or any of its requests, failed."""
        program, listening = server
        before = cpu_seconds(program.process.pid)
        where = ["--url", f"http://[::1]:{listening['port']}/{prefix}", "--seconds", f"{self.seconds:g}"]
        argv = python(LOAD, *where, "--connections", str(connections), *arguments)
        async with running(f"client ({arguments[0]})", self.client, argv, cwd=ROOT) as client:
            result = await client.until("result")
        taken = cpu_seconds(program.process.pid) - before
        return {**_plain(result, arguments[0]), "server_cpu_seconds": taken}


def _plain(result: dict[str, Any], what: str = "") -> dict[str, Any]:
    if result.get("failed"):
        raise BenchError(f"{result['failed']} requests ({what}) failed: {result['error']}")
    return {name: value for name, value in result.items() if name not in ("event", "failed", "error")}

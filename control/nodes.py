"""Nodes as processes: `stoq --json …` started in its place, read event by event, and ended whatever happens."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from dataclasses import dataclass
from typing import Any

from control.netns import Namespace
from dataplane import StoqError

END_SECONDS = 5.0  # A node gets so long to end when asked to.


class RunError(StoqError):
    """The job failed; the text says which node and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs: in a namespace or, with None, here; and on which core (-1: any)."""

    namespace: Namespace | None
    address: str
    core: int
    interface: str | None = None  # To be served alone: afxdp needs one.

    def wrap(self, argv: list[str]) -> list[str]:
        """The node's command line. It ends when we die, whatever kills us."""
        inside = self.namespace.wrap(argv) if self.namespace else argv
        return ["setpriv", "--pdeathsig", "TERM", *inside] if shutil.which("setpriv") else inside


class Node:
    """A `stoq --json …` process and its events."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def events(self) -> Any:
        """Events as they come. Raises RunError for an error event and when the process ends badly."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] in ("error", "failed"):
                raise RunError(f"the {self.name}: {event['error']}")
            yield event
        if await self.process.wait() != 0:
            raise RunError(f"the {self.name} ended with exit code {self.process.returncode}")

    async def until(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names."""
        async for event in self.events():
            if event["event"] in names:
                return dict(event)
        raise RunError(f"the {self.name} ended early")

    async def end(self) -> None:
        """Ask it to end, wait, and insist."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def start(name: str, place: Place, arguments: list[str]) -> Node:
    """Start a node. In a session of its own, so that Ctrl-C reaches only us and the order of ending is
    ours."""
    argv = [sys.executable, "-m", "control.cli", "--json", *arguments]
    if place.core >= 0:
        argv += ["--core", str(place.core)]
    if place.interface is not None:
        argv += ["--interface", place.interface]
    process = await asyncio.create_subprocess_exec(
        *place.wrap(argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    return Node(name, process)

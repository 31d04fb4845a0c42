"""A log that lies on the way to who asks it, and somebody who watches it, over HTTP on ::1."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.ctlog.alerts import Alert, Evidence
from control.ctlog.api import LogApi, Reply
from control.ctlog.chains import Acceptor, Window
from control.ctlog.client import HttpCarrier
from control.ctlog.http import HttpServer, log_application
from control.ctlog.log import Log
from control.ctlog.monitor import Monitor, Options, StateFile
from control.ctlog.sources import RfcSource, TileSource
from control.ctlog.structs import LogKey
from control.ctlog.watched import Examiner, Expected, Names
from dataplane.address import Address
from tests.ctlog.world import ORIGIN, Ca, World, world

CA = Ca()
ACCEPTOR = Acceptor([CA.root.certificate])
STH, CONSISTENCY, ENTRIES = (f"ct/v1/get-{name}" for name in ("sth", "sth-consistency", "entries"))

Answer = Any  # A JSON object.
Spoil = Callable[[Answer], Answer | None]
"""Alters an answer in place or gives another; None: the log has no answer."""

_chains: dict[int, tuple[list[bytes], bool]] = {}


def chain(number: int) -> tuple[list[bytes], bool]:
    """The chain of a number, always the same, and whether it is a precertificate's: every second one is."""
    if number not in _chains:
        make = CA.precertificate if number % 2 else CA.certificate
        _chains[number] = (make(f"node-{number}.example"), bool(number % 2))
    return _chains[number]


async def grow(log: Log, *numbers: int) -> None:
    """Log these; the order is theirs, since a log takes submissions as they come."""
    chains = [chain(number) for number in numbers]
    await asyncio.gather(*(log.add_chain(what, precertificate=precertificate) for what, precertificate in chains))


class Liar(LogApi):
    """What it answers is `log`'s until a spoiler of the path alters it. `log` may be changed for another. `gate`: is awaited
    before every answer, and may give another."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.inner = LogApi(log)
        self.spoilers: dict[str, Spoil] = {}
        self.bytes_spoilers: dict[str, Callable[[bytes], bytes]] = {}
        self.gate: Callable[[str, Mapping[str, str]], Awaitable[Reply | None]] | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []

    def become(self, log: Log) -> None:
        """Be another log from now on."""
        self.inner = LogApi(log)

    async def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        """See LogApi."""
        self.asked.append((path, dict(query)))
        if self.gate is not None and (instead := await self.gate(path, query)) is not None:
            return instead
        reply = await self.inner.handle(method, path, query, body)
        if path in self.bytes_spoilers and reply.status == 200:
            return Reply(200, self.bytes_spoilers[path](reply.body))
        spoil = self.spoilers.get(path)
        if spoil is None or reply.status != 200:
            return reply
        answer = spoil(json.loads(reply.body))
        if answer is None:
            return Reply(404, b'{"error": "there is no such thing"}')
        return Reply(200, json.dumps(answer).encode())


def b64(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode()


def flipped(text: str) -> str:
    """Base64 with a bit of its last byte changed."""
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return b64(bytes(data))


@dataclass
class Scene:
    """A log that may lie, and a monitor of it."""

    directory: Path
    world: World
    log: Log
    liar: Liar
    url: str
    stack: AsyncExitStack
    alerts: list[Evidence] = field(default_factory=list)
    monitor: Monitor = field(init=False)
    examiner: Examiner = field(init=False)

    @property
    def key(self) -> LogKey:
        return self.world.signer.key.public_key()

    async def poll(self) -> list[Alert]:
        """Look once; the alerts of that."""
        before = len(self.alerts)
        await self.monitor.poll()
        return [one.alert for one in self.alerts[before:]]

    async def fork(self) -> Log:
        """Another log of the same key that has the same entries, signed on from here by itself."""
        directory = self.directory / f"fork-{len(list(self.directory.glob('fork-*')))}"
        directory.mkdir()
        shutil.copytree(self.world.directory / "data", directory / "data")
        shutil.copy(self.world.directory / "lock.db", directory)
        other = World(directory, self.world.signer, self.world.clock)
        self.stack.push_async_callback(other.close)
        return await self.stack.enter_async_context(other.log(ACCEPTOR))

    def watch(
        self, *, state: Path | None = None, tiles: bool = False, options: Options = Options(),  # noqa: B008
        names: Sequence[str] = (), expected: Expected = Expected(), window: Window | None = None,  # noqa: B008
    ) -> None:  # fmt: skip
        """A new monitor, as after a restart."""
        carrier = HttpCarrier(self.url)
        source = TileSource(carrier, self.url, ORIGIN, self.key) if tiles else RfcSource(carrier, self.url)
        self.stack.push_async_callback(source.close)
        self.examiner = Examiner(Names.parse(names), expected, window)
        self.monitor = Monitor(
            self.url, source, self.key, StateFile(state), self.examiner, options, self.world.clock, self.alerts.append
        )
        self.monitor.expect(expected.promises)


@asynccontextmanager
async def scene(directory: Path, entries: int = 0, **watch: Any) -> AsyncIterator[Scene]:
    """A log of so many entries, and a monitor that has seen nothing yet; see `Scene.watch`."""
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(world(directory / "log"))
        log = await stack.enter_async_context(here.log(ACCEPTOR))
        await grow(log, *range(entries))
        liar = Liar(log)
        server = HttpServer(log_application({"2026": liar}), Address("::1", 0))
        await server.open()
        stack.push_async_callback(server.close)
        made = Scene(directory, here, log, liar, f"http://[::1]:{server.address.port}/2026", stack)
        made.watch(**watch)
        yield made


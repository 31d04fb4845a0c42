"""An authority with two logs for a scene on one machine: made, served as `stoq ca serve`, joined as `stoq join`, and taken
away again. For `stoq run` and the benchmarks; everything in it is what an operator would do by hand."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from control.ctlog.site import LogConfig
from control.ctlog.site import create as create_log
from control.nodes import Place, start
from control.trustchain import directory as ca_directory
from control.trustchain.actor import Actor
from control.trustchain.authority import Authority
from control.trustchain.directory import InitOptions
from control.trustchain.profiles import Names
from control.trustchain.tokens import TokenGrant

CA_PORT, HTTP_PORT = 9293, 8462
LOGS = ("one", "two")


def _free_port(kind: socket.SocketKind) -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


class TrustScene:
    """In `directory`, which is made; served in `place`; `nodes` join from theirs. Use `running`."""

    def __init__(self, directory: Path, place: Place, nodes: Mapping[str, Place]) -> None:
        self._directory = directory
        self._place = place
        self._nodes = dict(nodes)
        alone = place.namespace is not None
        self._port = CA_PORT if alone else _free_port(socket.SOCK_DGRAM)
        self._http = HTTP_PORT if alone else _free_port(socket.SOCK_STREAM)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TrustScene]:
        """The authority runs inside the block. Raises TrustError, LogError, RunError."""
        self._directory.mkdir(parents=True)
        ca = self._directory / "ca"
        ca_directory.init(ca, InitOptions(name="STOQ run", min_scts=len(LOGS)), time.time())
        root = ca_directory.load_certificate(ca / ca_directory.ROOT)
        logs = [self._directory / f"log-{name}" for name in LOGS]
        for name, path in zip(LOGS, logs, strict=True):
            await create_log(path, LogConfig(f"stoq.run/{name}", period=0.02), [root], time.time)
        arguments = ["ca", "serve", "--directory", str(ca), "--listen", f"[{self._place.address}]:{self._port}"]
        arguments += ["--http", f"[{self._place.address}]:{self._http}"]
        for path in logs:
            arguments += ["--log", str(path)]
        async with AsyncExitStack() as stack:
            tokens = await self._make_tokens(ca)
            node = await start("authority", self._place, arguments)
            stack.push_async_callback(node.end)
            await node.until("listening")
            for name, token in tokens.items():
                await self._join(name, token)
            yield self

    async def _make_tokens(self, ca: Path) -> dict[str, str]:
        """One for each node, made while the authority is not yet served: its address is known before."""
        tokens = {}
        async with Authority.open(ca) as authority:
            for name, place in self._nodes.items():
                grant = TokenGrant(Names.parse([name], [place.address]), subject=name)
                token = await authority.create_token(grant, self._place.address, self._port, Actor.local())
                tokens[name] = str(token)
        return tokens

    async def _join(self, name: str, token: str) -> None:
        place = self._nodes[name]
        arguments = ["join", token, str(self._directory / name)]
        node = await start(f"join of the {name}", Place(place.namespace, place.address, -1), arguments)
        try:
            await node.until("joined")
        finally:
            await node.end()

    def home(self, name: str) -> list[str]:
        """Options of a node that has joined."""
        return ["--home", str(self._directory / name)]

    async def member(self, name: str, place: Place) -> dict[str, Any]:
        """What `stoq member` says of a node, asked from `place`."""
        node = await start("member", Place(place.namespace, place.address, -1), ["member", str(self._directory / name)])
        try:
            return await node.until("member")
        finally:
            await node.end()


"""A server of calls and its callers, over QUIC on ::1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import Bounds, Caller, Method, RpcServer
from dataplane import Address, Config, Connection, Datapath, StoqError

POOL = 8 << 20
AUTHORITY = make_authority()
NODES = [issue(AUTHORITY, f"node-{one}") for one in range(3)]


class Echo(msgspec.Struct, frozen=True):
    """Body and answer of most methods."""

    text: str
    count: int = 0


class Denied(StoqError):
    """What `denied` fails with."""


@dataclass
class Methods:
    """The methods that are served, and what became of them."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    ended: int = 0  # Of those that follow.

    def table(self) -> dict[str, Method]:
        both = (ALPN_STOQ, ALPN_JOIN)
        return {
            "echo": Method(Echo, self._echo, alpns=both),
            "hold": Method(Echo, self._hold, alpns=both),
            "broken": Method(Echo, self._broken),
            "denied": Method(Echo, self._echo, permit=self._deny),
            "large": Method(Echo, self._large),
            "count": Method(Echo, follow=self._count),
            "wait": Method(Echo, follow=self._wait, alpns=both),
            "flood": Method(Echo, follow=self._flood),
        }

    async def _echo(self, caller: Caller, body: Echo) -> Echo:
        return Echo(body.text + f" from {caller.name}" if body.count else body.text)

    async def _hold(self, caller: Caller, body: Echo) -> Echo:
        self.running += 1
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        return body

    async def _broken(self, caller: Caller, body: Echo) -> Echo:
        raise RuntimeError("a secret of the server")

    async def _deny(self, caller: Caller) -> None:
        raise Denied(f"not for {','.join(caller.roles) or 'you'}")

    async def _large(self, caller: Caller, body: Echo) -> Echo:
        return Echo("x" * body.count)

    async def _count(self, caller: Caller, body: Echo) -> AsyncIterator[Echo]:
        for number in range(body.count):
            yield Echo(body.text, number)

    async def _wait(self, caller: Caller, body: Echo) -> AsyncIterator[Echo]:
        self.running += 1
        try:
            yield Echo("begun")
            await self.release.wait()
        finally:
            self.running -= 1
            self.ended += 1

    async def _flood(self, caller: Caller, body: Echo) -> AsyncIterator[Echo]:
        self.running += 1
        try:
            while True:
                yield Echo("x" * 100_000)
        finally:
            self.running -= 1
            self.ended += 1


@dataclass
class Peers:
    """A server, and one datapath that calls it as anybody."""

    server: RpcServer
    methods: Methods
    datapath: Datapath
    factory: TlsFactory
    address: Address

    async def connect(self, node: int | None = 0, alpn: str = ALPN_STOQ) -> Connection:
        credentials = None if node is None else NODES[node]
        self.factory.replace(HandshakeConfig(credentials, AUTHORITY.trust, alpns=(alpn,)))
        return await self.datapath.connect(self.address, server_name="::1", alpns=(alpn,))


def config(**more: object) -> Config:
    pools = {"receive_bytes": POOL, "send_bytes": POOL, "metadata_bytes": POOL, "backend": "socket"}
    return Config(**{**pools, **more})  # type: ignore[arg-type]


@asynccontextmanager
async def peers(bounds: Bounds, **more: object) -> AsyncIterator[Peers]:
    """They run inside the block. `more`: of the callers' datapath."""
    methods = Methods()
    server = RpcServer(methods.table(), bounds)
    ours = TlsFactory(HandshakeConfig(issue(AUTHORITY, "server"), AUTHORITY.trust, alpns=(ALPN_STOQ, ALPN_JOIN)))
    theirs = TlsFactory(HandshakeConfig(NODES[0], AUTHORITY.trust))
    async with (
        Datapath(config(server=True, bind=Address("::1", 0)), ours) as serving,
        Datapath(config(**more), theirs) as calling,
    ):
        task = asyncio.create_task(server.serve(serving.accept_connections()))
        try:
            yield Peers(server, methods, calling, theirs, serving.local_address)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert server.at_work == server.following == 0, "calls are left"


async def until(true: Callable[[], object], what: str, patience: float = 10.0) -> None:
    """Look again and again, until it is so."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"not in {patience:g} s: {what}"
        await asyncio.sleep(0.005)

"""A whole TrustChain to test in: an authority with its logs in one directory, served over STOQ on ::1, nodes that
joined it, and callers with any roles. Nothing of it is a stand-in; the pools are small, and the clock can be set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.ctlog.site import LogConfig, create
from control.handshake import Credentials, HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import RpcClient
from control.trustchain import directory as ca_directory
from control.trustchain import errors as trust_errors
from control.trustchain.actor import Actor
from control.trustchain.agent import Agent
from control.trustchain.audit import AuditReport, verify_audit
from control.trustchain.home import Home
from control.trustchain.joining import join
from control.trustchain.membership import Membership
from control.trustchain.profiles import Names, ProfileName
from control.trustchain.requests import IssueRequest, make_csr
from control.trustchain.roles import Role
from control.trustchain.server import Served, ServerOptions, serve
from control.trustchain.store import Store
from control.trustchain.tokens import Token, TokenGrant
from dataplane import Address, Config, Connection, ConnectionClosed, Datapath, HandshakeFailed, StoqError

PATIENCE = 10.0
POOL = 16 << 20
ANY = Address("::1", 0)

ERRORS: dict[str, type[StoqError]] = {
    name: kind
    for name, kind in vars(trust_errors).items()
    if isinstance(kind, type) and issubclass(kind, trust_errors.TrustError)
}

T = TypeVar("T")


def small(**more: object) -> Config:
    """A datapath with pools as small as tests need."""
    pools = {"receive_bytes": POOL, "send_bytes": POOL, "metadata_bytes": POOL, "backend": "socket"}
    return Config(**{**pools, **more})  # type: ignore[arg-type]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


async def until(true: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Look again and again, until it is so."""
    end = time.monotonic() + patience
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < end, f"not in {patience:g} s: {what}"
        await asyncio.sleep(0.005)


@dataclass
class Clock:
    """Real time, and what a test adds to it."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Node:
    """A node that runs. `events`: what its agent said; `refused`: handshakes that failed here."""

    home: Home
    membership: Membership
    factory: TlsFactory
    datapath: Datapath
    agent: Agent
    events: list[tuple[str, str]]
    refused: list[HandshakeFailed]

    @property
    def generation(self) -> int:
        """Of the bundle it judges by."""
        return self.membership.verifier.bundle.generation

    async def reach(self, other: Node, name: str = "") -> tuple[Connection, Connection]:
        """A connection to another node, and its other end there."""
        ours = await self.datapath.connect(other.datapath.local_address, server_name=name or other.home.config.name)
        return ours, await asyncio.wait_for(other.datapath.accept(), PATIENCE)

    def said(self, what: str) -> list[str]:
        """The texts of one kind of event."""
        return [text for kind, text in self.events if kind == what]


@dataclass
class Callers:
    """One datapath that calls the authority as anybody."""

    datapath: Datapath
    factory: TlsFactory
    base: HandshakeConfig
    address: Address
    clock: Callable[[], float] = time.time

    async def connect(self, credentials: Credentials | None, alpn: str = ALPN_STOQ) -> Connection:
        """A new connection as this one."""
        config = HandshakeConfig(credentials, alpns=(ALPN_STOQ, ALPN_JOIN), verifier=self.base.verifier)
        self.factory.replace(config)
        return await self.datapath.connect(self.address, alpns=(alpn,))

    async def calls(self, credentials: Credentials | None, alpn: str = ALPN_STOQ) -> RpcClient:
        """Calls on a new connection."""
        return RpcClient(await self.connect(credentials, alpn), ERRORS, self.clock)


@dataclass
class World:
    """See the module's text."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    port: int = 0

    @property
    def ca(self) -> Path:
        return self.directory / "ca"

    def log(self, name: str) -> Path:
        return self.directory / f"log-{name}"

    async def init(self, logs: Sequence[str] = ("a", "b"), **options: object) -> None:
        """Make the authority, and its logs."""
        ca_directory.init(self.ca, ca_directory.InitOptions(name="Test", **options), self.clock())  # type: ignore[arg-type]
        for name in logs:
            await self.make_log(name)

    async def make_log(self, name: str) -> None:
        root = ca_directory.load_certificate(self.ca / ca_directory.ROOT)
        await create(self.log(name), LogConfig(f"localhost/{name}", period=0.01), [root], self.clock)

    @asynccontextmanager
    async def serve(
        self, logs: Sequence[str] = ("a", "b"), *, refused: list[HandshakeFailed] | None = None, **more: object
    ) -> AsyncIterator[Served]:
        """Run it; where it ran before, if it did. `refused` takes the handshakes that failed there."""
        options = ServerOptions(
            self.ca,
            Address("::1", self.port),
            names=("authority",),
            logs=tuple(self.log(name) for name in logs),
        )
        config = small(server=True, bind=Address("::1", self.port), **more)

        def failed(peer: Address, error: HandshakeFailed) -> None:
            if refused is not None:
                refused.append(error)

        async with serve(options, config, clock=self.clock, on_failure=failed) as served:
            self.port = served.datapath.local_address.port
            yield served

    async def token(self, served: Served, name: str, **grant: object) -> Token:
        """A join token as whoever is given it reads it."""
        given = TokenGrant(Names.parse([name], ["::1"]), subject=name, **grant)  # type: ignore[arg-type]
        made = await served.authority.create_token(given, "::1", self.port, Actor.local())
        return Token.parse(str(made))

    async def join(self, token: Token, name: str, config: Config | None = None) -> Home:
        """With this token, into a home of that name."""
        home, _ = await join(
            self.directory / name,
            authority=f"[{token.address}]:{token.port}",
            root_sha256=token.root_sha256,
            secret=token.secret,
            name=name,
            config=config or small(),
            clock=self.clock,
        )
        return home

    async def member(self, served: Served, name: str, **grant: object) -> Home:
        """Somebody new."""
        return await self.join(await self.token(served, name, **grant), name)

    @asynccontextmanager
    async def node(self, home: Home, *, agent: bool = True, **more: object) -> AsyncIterator[Node]:
        """The node of a home runs, by default with its agent."""
        membership = Membership(home.directory, self.clock)
        base = HandshakeConfig(alpns=(ALPN_STOQ,), verifier=membership.verifier)
        factory = TlsFactory(membership.config(base), self.clock)
        events: list[tuple[str, str]] = []
        refused: list[HandshakeFailed] = []
        config = small(server=True, bind=ANY, **more)
        async with Datapath(config, factory, on_failure=lambda peer, error: refused.append(error)) as datapath:

            def said(what: str, text: str) -> None:
                events.append((what, text))

            if agent:
                async with membership.running(datapath, factory, said) as running:
                    yield Node(home, membership, factory, datapath, running, events, refused)
            else:
                idle = Agent(home, datapath, factory, membership.verifier, clock=self.clock, on_event=said)
                yield Node(home, membership, factory, datapath, idle, events, refused)

    @asynccontextmanager
    async def callers(self, served: Served, **more: object) -> AsyncIterator[Callers]:
        """Somebody to call the authority."""
        base = HandshakeConfig(alpns=(ALPN_STOQ, ALPN_JOIN), verifier=served.verifier)
        factory = TlsFactory(base, self.clock)
        async with Datapath(small(**more), factory) as datapath:
            yield Callers(datapath, factory, base, Address("::1", self.port), self.clock)

    async def credentials(
        self, served: Served, name: str, *roles: Role, lifetime_s: float | None = None
    ) -> Credentials:
        """A certificate as an administrator at the authority's own console issues it."""
        key = new_key()
        csr = make_csr(key, name, Names.parse([name], ["::1"]))
        request = IssueRequest(csr, ProfileName.NODE, frozenset(roles), lifetime_s, name)
        issued = await served.authority.issue(request, Actor.local())
        return Credentials(issued.certificate, issued.chain[:-1], key)

    def audit(self) -> AuditReport:
        """Is the audit log as it was written?"""
        store = Store.open(self.ca / ca_directory.DATABASE, read_only=True)
        try:
            return verify_audit(self.ca / ca_directory.AUDIT, store.head()[0])
        finally:
            store.close()


async def ended(connection: Connection, patience: float = PATIENCE) -> ConnectionClosed:
    """How it ended."""
    return await asyncio.wait_for(connection.wait_closed(), patience)


def chain_of(ders: Sequence[bytes]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in ders]

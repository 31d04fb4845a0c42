"""Options that several commands share, and their way into a data plane configuration."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from control import privileges
from control.console import Output
from control.handshake import (
    HandshakeConfig,
    ProcessFactory,
    Profile,
    TlsFactory,
    load_credentials,
    load_trust,
)
from control.handshake.policy import ALPN_STOQ, CIPHERS
from control.handshake.processes import MAX_PROCESSES
from control.local import place
from control.local.keylog import KeyLog
from control.local.server import control_socket
from control.local.snapshot import Facts
from dataplane import STOQ_PORT, Address, Config, ConfigError, Datapath, parse_address
from dataplane.config import BACKENDS, CRYPTO_PROVIDERS, XSK_MODES
from dataplane.datapath import FailureCallback
from dataplane.guard import MODES
from dataplane.handshake import HandshakeFactory
from dataplane.tables import CongestionController

if TYPE_CHECKING:
    from control.trustchain.agent import Handshakes
    from control.trustchain.membership import Membership

BUSY_BACKEND = "socket"  # Who never sleeps has a datagram soonest by asking for it (decision 15).
F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


@dataclass(slots=True)
class NodeOptions:
    """What the shared options said."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    home: Path | None = None
    backend: str | None = None  # None: what is fastest here (decision 15).
    crypto: str = "auto"
    core: tuple[int, ...] = ()
    cipher: str | None = None
    congestion: str = CongestionController.CUBIC.key
    busy_poll: bool = False
    no_gso: bool = False
    no_gro: bool = False
    no_pacing: bool = False
    no_ack_frequency: bool = False
    no_sandbox: bool = False
    user: str | None = None
    interface: str | None = None
    guard: bool = False
    xdp_mode: str = MODES[0]
    xsk_mode: str = XSK_MODES[0]
    first_queue: int = 0
    busy_budget: int = 0
    sqpoll: bool = False
    zero_copy: int = 0
    napi_us: int = 0
    idle_timeout: float = 0.0
    resumption: bool = False
    early_data: bool = False
    handshake_processes: int = 0
    max_datagram: int = 0
    retry: bool = False
    profile: str = Profile.NORMAL.value
    insecure: bool = False
    control: str | None = None
    allow_secrets: bool = False
    key_log: KeyLog | None = field(default=None, init=False)
    member: Membership | None = field(default=None, init=False)  # Of an authority, with --home.
    factory: HandshakeFactory | None = field(default=None, init=False)  # Of the datapath that was made last.

    def __post_init__(self) -> None:
        self.key_log = KeyLog() if self.allow_secrets else None

    def handshakes(self, alpns: tuple[str, ...]) -> TlsFactory:
        """The TLS side, in this process. Raises CredentialsError or ConfigError."""
        return TlsFactory(self.handshake_config(alpns))

    def _server_handshakes(self, config: HandshakeConfig) -> HandshakeFactory:
        if config.credentials is None:
            raise ConfigError("a server needs --home, or --cert and --key (make some with `stoq dev-certs DIR`)")
        if self.handshake_processes == 0:
            return TlsFactory(config)
        privileges.identity(self.user)  # A mistake is told before processes are started.
        try:
            return ProcessFactory(config, self.handshake_processes, user=self.user, drop=True)
        except OSError as error:
            raise ConfigError(f"the handshake processes cannot be started: {error}") from None

    def handshake_config(self, alpns: tuple[str, ...]) -> HandshakeConfig:
        """How handshakes are made. Raises CredentialsError or ConfigError."""
        if self.early_data and ALPN_STOQ in alpns:
            raise ConfigError("a transfer over stoq/1 takes no early data: a replay would deliver it again")
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--cert and --key belong together: name both")
        if self.home and (self.cert or self.ca):
            raise ConfigError("--home has certificate, key and authority: leave --cert, --key and --ca out")
        if self.home and self.member is None:
            from control.trustchain.membership import Membership  # A fifth of a second that others need not wait.

            self.member = Membership(self.home)
        credentials = load_credentials(self.cert, self.key) if self.cert and self.key else None
        return HandshakeConfig(
            credentials=self.member.credentials if self.member else credentials,
            verifier=self.member.verifier if self.member else None,
            trust=load_trust(self.ca) if self.ca else None,
            alpns=alpns,
            profile=Profile(self.profile),
            ciphers=(self.cipher,) if self.cipher else tuple(CIPHERS),
            insecure=self.insecure,
            resumption=self.resumption,
            early_alpns=alpns if self.early_data else (),
            key_log=self.key_log.add if self.key_log else None,
        )

    def ifindex(self) -> int:
        """The index of --interface; 0: none was named. Raises ConfigError."""
        if self.interface is None:
            return 0
        try:
            return socket.if_nametoindex(self.interface)
        except OSError:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError(f"there is no interface {self.interface!r} here: {names}") from None

    def config(self, *, listen: str | None = None, **more: Any) -> Config:
        """The data plane's configuration; with `listen` a server's. Raises AddressError or ConfigError."""
        bind = parse_address(listen, STOQ_PORT) if listen is not None else Address("::", 0)
        who = privileges.identity(self.user) if listen is not None else None
        return Config(
            server=listen is not None,
            bind=bind,
            cores=self.core or (-1,),
            backend=self.backend or (BUSY_BACKEND if self.busy_poll else BACKENDS[0]),
            crypto=self.crypto,
            busy_poll=self.busy_poll,
            no_gso=self.no_gso,
            no_gro=self.no_gro,
            no_pacing=self.no_pacing,
            no_ack_frequency=self.no_ack_frequency,
            no_sandbox=self.no_sandbox,
            uid=who.uid if who else 0,
            gid=who.gid if who else 0,
            ifindex=self.ifindex(),
            guard=self.guard,
            xdp_mode=self.xdp_mode,
            xsk_mode=self.xsk_mode,
            first_queue=self.first_queue,
            busy_budget=self.busy_budget,
            sqpoll=self.sqpoll,
            zero_copy_bytes=self.zero_copy,
            napi_us=self.napi_us,
            congestion=next(c for c in CongestionController if c.key == self.congestion),
            idle_timeout=self.idle_timeout,
            max_datagram=self.max_datagram,
            retry_always=self.retry,
            test_profile=self.profile == Profile.TEST.value,
            **more,
        )

    def datapath(
        self,
        alpns: tuple[str, ...],
        *,
        listen: str | None = None,
        on_failure: FailureCallback | None = None,
        **more: Any,
    ) -> Datapath:
        """A datapath, not yet open. A server without a certificate is refused here."""
        config = self.config(listen=listen, **more)
        settings = self.handshake_config(alpns)
        handshakes = TlsFactory(settings) if listen is None else self._server_handshakes(settings)
        self.factory = handshakes
        return Datapath(config, handshakes, on_failure=on_failure)

    @asynccontextmanager
    async def membership(self, output: Output, datapath: Datapath) -> AsyncIterator[None]:
        """With --home: follows the authority and renews the certificate inside the block. Else nothing."""
        if self.member is None or self.factory is None:
            yield
            return
        if datapath.config.uid:
            self.member.give_to(datapath.config.uid, datapath.config.gid)

        def say(what: str, text: str) -> None:
            output.event(what, text, reason=text)

        async with self.member.running(datapath, cast("Handshakes", self.factory), say):
            yield

    def local(
        self, output: Output, datapath: Datapath, command: str
    ) -> AbstractAsyncContextManager[Path | None]:
        """The control socket of an open datapath, for `stoq status` and the like. Raises PlaceError."""
        facts = Facts(command, self.allow_secrets)
        owner = place.owner(datapath.config.uid, datapath.config.gid)
        return control_socket(output, datapath, self.control, facts, self.key_log, owner)

    def settle(self, output: Output) -> None:
        """A server has everything open: it gives up what privileges it has left. Raises ConfigError or
        DatapathError, and the process must then end."""
        dropped = privileges.drop(self.user)
        output.event("privileges", str(dropped), user=dropped.user)


_NODE = [
    click.option("--cert", type=FILE, help="Our certificate chain, PEM, leaf first."),
    click.option("--key", type=FILE, help="Our private key, PEM."),
    click.option("--ca", type=FILE, help="Certificate authorities we trust, PEM."),
    click.option("--home", type=FILE, help="Home of a node that joined an authority; in place of the three above."),
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        help=f"Packet I/O; by default {BACKENDS[0]}, with --busy-poll {BUSY_BACKEND}.",
    ),
    click.option("--crypto", type=click.Choice(CRYPTO_PROVIDERS), default="auto", show_default=True),
    click.option("--core", type=int, multiple=True, help="Pin a worker to this core; once for each worker."),
    click.option("--cipher", type=click.Choice(tuple(CIPHERS)), help="Offer only this cipher."),
    click.option(
        "--congestion",
        type=click.Choice([c.key for c in CongestionController]),
        default=CongestionController.CUBIC.key,
        show_default=True,
    ),
    click.option("--busy-poll", is_flag=True, help="Never sleep: lowest latency, one core each worker."),
    click.option("--no-gso", is_flag=True, help="No segmentation offload on sending."),
    click.option("--no-gro", is_flag=True, help="No receive coalescing."),
    click.option("--no-pacing", is_flag=True, help="Send bursts as the congestion window permits."),
    click.option("--no-ack-frequency", is_flag=True, help="Neither ask for fewer ACKs nor offer to."),
    click.option(
        "--user",
        metavar="NAME",
        help="A listening node started as root becomes this user [default: stoq, if any].",
    ),
    click.option("--no-sandbox", is_flag=True, help="No seccomp filter on the workers (for debugging)."),
    click.option(
        "--interface", metavar="NAME", help="Serve this interface only; afxdp and --guard need one."
    ),
    click.option("--guard", is_flag=True, help="Attach the XDP guard to --interface; afxdp always does."),
    click.option(
        "--xdp-mode",
        type=click.Choice(MODES),
        default=MODES[0],
        show_default=True,
        help="Where the guard runs: in the driver or after it. What is named is got, or the command fails.",
    ),
    click.option(
        "--xsk-mode",
        type=click.Choice(XSK_MODES),
        default=XSK_MODES[0],
        show_default=True,
        help="afxdp: how packets reach the driver. What is named is got, or the command fails.",
    ),
    click.option(
        "--first-queue", type=click.IntRange(0), default=0, help="afxdp: queue of the first worker."
    ),
    click.option(
        "--busy-budget",
        type=click.IntRange(0, 4096),
        default=0,
        help="afxdp: packets a busy-poll call may handle; 0: no preferred busy polling.",
    ),
    click.option(
        "--resumption",
        is_flag=True,
        help="Issue session tickets and resume sessions: no certificates are exchanged again for an hour.",
    ),
    click.option(
        "--early-data",
        is_flag=True,
        help="With --resumption: 0-RTT, in which what is asked may be asked again by who copied it.",
    ),
    click.option(
        "--handshake-processes",
        type=click.IntRange(0, MAX_PROCESSES),
        default=0,
        metavar="N",
        help="A listening node makes its TLS handshakes in so many processes; 0: in its own.",
    ),
    click.option(
        "--sqpoll", is_flag=True, help="io_uring: a kernel thread submits; wants a core of its own."
    ),
    click.option(
        "--zero-copy",
        type=click.IntRange(0, 65535),
        default=0,
        metavar="BYTES",
        help="io_uring: trains of so many bytes go by zero copy, unless the kernel copies all the same.",
    ),
    click.option(
        "--napi-us",
        type=click.IntRange(0, 1_000_000),
        default=0,
        metavar="US",
        help="io_uring: before it sleeps a worker polls the device's queue so long.",
    ),
    click.option(
        "--idle-timeout", type=click.FloatRange(0), default=0.0, help="Seconds; 0: the engine's default, 30."
    ),
    click.option("--max-datagram", type=int, default=0, help="Largest UDP payload tried, bytes; 0: 1452."),
    click.option(
        "--control",
        metavar="PATH|none",
        help="Control socket for `stoq status`, `capture`, `block`; by default /run/stoq/PID.sock, for users "
        "$XDG_RUNTIME_DIR/stoq/PID.sock.",
    ),
    click.option(
        "--allow-secrets",
        is_flag=True,
        help="Keep TLS secrets of recent connections in memory for `stoq capture --secrets`.",
    ),
]


def node_options(function: F) -> F:
    """Add the shared options; the command gets them as keyword arguments for NodeOptions."""
    for option in reversed(_NODE):
        function = option(function)
    return function


def listen_option(default: str) -> Callable[[F], F]:
    """--listen."""
    return click.option(
        "--listen",
        default=default,
        show_default=True,
        metavar="[ADDR]:PORT",
        help="IPv6 address and UDP port.",
    )


def profile_option(function: F) -> F:
    """--profile."""
    return click.option(
        "--profile",
        type=click.Choice([p.value for p in Profile]),
        default=Profile.NORMAL.value,
        show_default=True,
        help="`test` permits `perf` and `hq-interop`.",
    )(function)

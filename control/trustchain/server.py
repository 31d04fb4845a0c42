"""Runs an authority: its calls over STOQ, its public side over HTTP, and beside it the logs that it submits to.

      nodes ── stoq/1, stoq-join/1 ──▶ RpcServer ──▶ Authority ──▶ logs (in this process, or at an address)
      everybody ── HTTP/1.1 ─────────▶ /ca (CRL, OCSP, issuers), /<shard> (RFC 6962, static-ct-api)
      ACME clients ── HTTPS ─────────▶ /acme (RFC 8555), where it is wanted

The authority's own certificate is issued by itself when it starts and renewed at two thirds of its life.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from control.ctlog.api import MAX_BODY_BYTES, LogApi
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.http import HttpServer, add_logs
from control.ctlog.log import Log
from control.ctlog.opening import OpenLog
from control.ctlog.service import log_methods
from control.ctlog.site import Site, load_log_key
from control.ctlog.structs import LogKey
from control.handshake import Credentials, HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import RpcServer
from control.rpc.server import merged
from control.trustchain.acme_serving import AcmeListener, AcmeOptions
from control.trustchain.actor import Actor
from control.trustchain.agent import renew_at
from control.trustchain.authority import Authority, Issued
from control.trustchain.bundle import BundleError, LogRecord, RequiredRoles, TrustBundle
from control.trustchain.errors import TrustError
from control.trustchain.http import authority_application
from control.trustchain.keys import Passphrase, open_key, spki
from control.trustchain.logs import EmbeddedLog, RemoteLog
from control.trustchain.profiles import CLOCK_SKEW_S, Names, ProfileName
from control.trustchain.requests import IssueRequest, make_csr
from control.trustchain.roles import Role
from control.trustchain.service import AuthorityService, permit_log
from control.trustchain.submit import LogClient as SubmitTo
from control.trustchain.trust import TRUST, TrustMaker
from control.trustchain.verifier import TrustVerifier, revoked_since
from dataplane import Address, Config, Datapath
from dataplane.datapath import FailureCallback
from dataplane.errors import ConfigError

log = logging.getLogger("stoq.trustchain")

RETRY_SECONDS = 30.0
LOG_BEGINS = datetime.timedelta(days=400)  # A log that is known now may have promised before.


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What an authority is served with. `address`: where nodes reach it; `logs`: directories of logs that run here;
    `remote_logs`: URL and key of others; `http` None: no HTTP; `public_url`: what the HTTP side is known as outside."""

    directory: Path
    address: Address
    names: tuple[str, ...] = ()
    logs: tuple[Path, ...] = ()
    remote_logs: tuple[tuple[str, str], ...] = ()
    http: Address | None = None
    public_url: str = ""
    acme: AcmeOptions | None = None
    accept_clock: bool = False  # The clock is right though it is behind the last decision.
    passphrase: Passphrase | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Served:
    """What runs."""

    authority: Authority
    trust: TrustMaker
    datapath: Datapath
    verifier: TrustVerifier
    factory: TlsFactory
    logs: dict[str, Log]
    http: HttpServer | None
    acme: AcmeListener | None
    calls: RpcServer


def _record(name: str, key: LogKey, url: str, now: datetime.datetime, site: Site | None) -> LogRecord:
    def moment(seconds: float | None) -> datetime.datetime | None:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC) if seconds is not None else None

    window = site.config.window if site is not None else None
    # The day alone, so that a restart makes no other bundle.
    begins = datetime.datetime(now.year, 1, 1, tzinfo=datetime.UTC) - LOG_BEGINS
    return LogRecord(
        name=name,
        key=spki(key),
        begins=begins,
        not_after_start=moment(window.start) if window else None,
        not_after_limit=moment(window.limit) if window else None,
        url=url,
    )


async def _own_certificate(authority: Authority, options: ServerOptions) -> tuple[Issued, Credentials]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = Names.parse(options.names, [options.address.ip])
    actor = Actor.component("authority", Role.ADMIN)
    csr = make_csr(key, f"{authority.config.name} authority"[:64], names)
    issued = await authority.issue(IssueRequest(csr, ProfileName.SERVICE, frozenset({Role.SERVICE})), actor)
    # With the root: who joins finds it there and compares its hash.
    return issued, Credentials(issued.certificate, issued.chain, key)


async def _keep_certificate(served: Served, options: ServerOptions, clock: Callable[[], float]) -> None:
    while True:
        credentials = served.factory.config.credentials
        assert credentials is not None
        await asyncio.sleep(max(1.0, min(renew_at(credentials.certificate) - clock(), 60.0)))
        if clock() < renew_at(credentials.certificate):
            continue
        try:
            _, renewed = await _own_certificate(served.authority, options)
            served.factory.replace(dataclasses.replace(served.factory.config, credentials=renewed))
            if served.acme is not None:
                served.acme.use(renewed)
        except TrustError as error:
            log.error("the authority's own certificate cannot be renewed: %s", error)
            await asyncio.sleep(RETRY_SECONDS)


@asynccontextmanager
async def serve(
    options: ServerOptions,
    config: Config,
    *,
    clock: Callable[[], float] = time.time,
    on_failure: FailureCallback | None = None,
) -> AsyncIterator[Served]:
    """The authority runs inside the block. `config`: of the datapath, a server's. Raises TrustError, LogError,
    LogStopped, ConfigError, DatapathError."""
    now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
    _probe(config.bind)
    async with AsyncExitStack() as stack:
        logs: dict[str, Log] = {}
        clients: list[SubmitTo] = []
        records: list[LogRecord] = []
        sites = [Site.read(path) for path in options.logs]
        base = options.public_url.rstrip("/")
        for site in sites:
            opened = await stack.enter_async_context(OpenLog(site, clock, _load_key(site.directory, options.passphrase)))
            logs[site.config.origin] = opened
            clients.append(EmbeddedLog(opened))
            url = f"{base}/{site.config.prefix}" if base else ""
            records.append(_record(site.config.origin, opened.signer.key.public_key(), url, now, site))
        for url, key_text in options.remote_logs:
            key = load_log_key(key_text)
            client = await stack.enter_async_context(LogClient(HttpCarrier(url), key, url))
            clients.append(RemoteLog(client, url))
            records.append(_record(url, key, url, now, None))
        authority = Authority.open(
            options.directory, passphrase=options.passphrase, logs=clients, clock=clock,
            accept_clock=options.accept_clock,
        )
        stack.push_async_callback(authority.close)
        trust = TrustMaker(authority, records, clock)
        _, credentials = await _own_certificate(authority, options)
        verifier = TrustVerifier(_as_we_judge(trust.bundle))
        factory = TlsFactory(
            HandshakeConfig(credentials, alpns=(ALPN_STOQ, ALPN_JOIN), verifier=verifier), clock
        )
        apis = {origin: LogApi(one) for origin, one in logs.items()}
        http = await _open_http(stack, options, authority, trust, sites, apis)
        acme = None
        if options.acme is not None:
            acme = AcmeListener(options.acme)
            await acme.open(authority, credentials, clock)
            stack.push_async_callback(acme.close)
        datapath = await stack.enter_async_context(Datapath(config, factory, on_failure=on_failure))
        address = (options.address.ip, options.address.port or datapath.local_address.port)
        service = AuthorityService(authority, trust, address, clock)
        methods = merged((service.methods(), log_methods(apis, lambda c, s: permit_log(authority, c, s, clock()))))
        calls = RpcServer(methods)
        served = Served(authority, trust, datapath, verifier, factory, logs, http, acme, calls)
        trust.on_change(lambda bundle: _on_bundle(served, bundle, clock))
        trust.guard(lambda rules: _accepts_us(rules, served, options))
        async with _alongside(
            trust.run(),
            calls.serve(datapath.accept_connections()),
            _keep_certificate(served, options, clock),
        ):
            yield served


@asynccontextmanager
async def _alongside(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """These run while the block does, and no longer. What one of them, or the block, fails with ends all."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None  # Whoever called knows its type.
        raise


def _probe(bind: Address) -> None:
    """Is the port free? Looked at before a certificate is made for nothing. Raises ConfigError."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((bind.ip, bind.port, 0, bind.scope_id))
        except OSError as error:
            raise ConfigError(f"cannot listen on {bind}: {error.strerror}: name another with --listen") from None


def _load_key(directory: Path, passphrase: Passphrase | None) -> Callable[[str], ec.EllipticCurvePrivateKey]:
    def load(where: str) -> ec.EllipticCurvePrivateKey:
        key = open_key(where, directory, passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TrustError(f"{where} is no ECDSA key: a log's is on P-256")
        return key

    return load


async def _open_http(
    stack: AsyncExitStack,
    options: ServerOptions,
    authority: Authority,
    trust: TrustMaker,
    sites: Sequence[Site],
    apis: dict[str, LogApi],
) -> HttpServer | None:
    if options.http is None:
        return None
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.add_subapp("/ca/", authority_application(authority, trust))
    add_logs(application, {site.config.prefix: apis[site.config.origin] for site in sites})
    server = HttpServer(application, options.http)
    await server.open()
    stack.push_async_callback(server.close)
    return server


def _as_we_judge(bundle: TrustBundle) -> TrustBundle:
    """What roles nodes demand of each other is not what the authority demands: here each operation has its own rule."""
    return msgspec.structs.replace(bundle, required_roles=RequiredRoles())


def _accepts_us(rules: TrustBundle, served: Served, options: ServerOptions) -> None:
    credentials = served.factory.config.credentials
    assert credentials is not None
    chain = [credentials.certificate, *credentials.chain]
    when = credentials.certificate.not_valid_before_utc + 2 * datetime.timedelta(seconds=CLOCK_SKEW_S)
    verdict = TrustVerifier(rules).judge(chain, options.address.ip, when)
    if not verdict.good:
        raise BundleError(f"by {TRUST} nodes would refuse this authority, and could not be told better: {verdict.text}")


def _on_bundle(served: Served, bundle: TrustBundle, clock: Callable[[], float]) -> None:
    """A new bundle: we judge by it too, and let go of who was revoked."""
    served.factory.update_trust(_as_we_judge(bundle).encode())
    now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
    for connection in served.datapath.connections:
        for _, abort in revoked_since(served.verifier, [connection.identity], now):
            connection.close(abort.code, abort.reason, application=False)

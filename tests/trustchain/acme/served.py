"""An ACME server for tests: a real one, over HTTPS on ::1, in a thread of its own, before a small CA."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from control.devcerts import Authority, issue, make_authority
from control.trustchain.acme import AcmeConfig, AddressPolicy, Issuer, Limits, Store, ValidationConfig, acme_application
from control.trustchain.acme.addresses import ResolutionError
from control.trustchain.errors import NotFound, Revoked

PATIENCE = 20.0
LOOPBACK = AddressPolicy(loopback=True)

T = TypeVar("T")


class SmallCa:
    """An issuer that does no more than sign, for a day; `fail` is raised once instead, `hold` waits first."""

    def __init__(self) -> None:
        self.authority: Authority = make_authority(chain_length=1)
        self.issued: dict[bytes, tuple[tuple[str, ...], str]] = {}
        self.revoked: list[tuple[bytes, int, str]] = []
        self.fail: Exception | None = None
        self.hold: threading.Event | None = None

    async def issue_acme(self, csr_der: bytes, names: Sequence[str], account: str) -> list[bytes]:
        if self.hold is not None:
            await asyncio.to_thread(self.hold.wait, PATIENCE)
        failure, self.fail = self.fail, None
        if failure is not None:
            raise failure
        csr = x509.load_der_x509_csr(csr_der)
        issuer = self.authority.issuers[0]
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        san = [x509.IPAddress(ipaddress.ip_address(name)) if ":" in name else x509.DNSName(name) for name in names]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
            .issuer_name(issuer.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(san), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.signing_key.public_key()),
                critical=False,
            )
            .sign(self.authority.signing_key, SHA256())
        )
        der = leaf.public_bytes(Encoding.DER)
        self.issued[der] = tuple(names), account
        return [der, issuer.public_bytes(Encoding.DER)]

    async def revoke_acme(self, certificate_der: bytes, reason: int, actor: str) -> None:
        if certificate_der not in self.issued:
            raise NotFound("this CA has not issued the certificate")
        if any(certificate_der == one[0] for one in self.revoked):
            raise Revoked("the certificate is revoked already")
        self.revoked.append((certificate_der, reason, actor))


@dataclass
class Names:
    """A resolver with a table."""

    table: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, list[str]] = field(default_factory=dict)

    async def addresses(self, name: str) -> Sequence[str]:
        if name not in self.table:
            raise ResolutionError(f"{name} has no IPv6 address")
        return self.table[name]

    async def text(self, name: str) -> Sequence[str]:
        return self.records.get(name, [])


@dataclass
class Clock:
    """Real time, and what a test adds to it."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Server:
    """A server that runs; `call` does something in its loop."""

    base: str
    store: Store
    loop: asyncio.AbstractEventLoop
    clock: Clock

    @property
    def directory(self) -> str:
        return f"{self.base}/directory"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)


def listen() -> socket.socket:
    """A listening socket on ::1, any port."""
    found = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("::1", 0))
    found.listen(64)
    return found


def free_port() -> int:
    """A port on ::1 that was free a moment ago, for programs that cannot be handed a socket."""
    with listen() as found:
        return int(found.getsockname()[1])


class World:
    """A CA, its root in a file, and a directory: what servers of one test share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = SmallCa()
        self.root = directory / "root.pem"
        self.root.write_bytes(self.ca.authority.root.public_bytes(Encoding.PEM))
        credentials = issue(self.ca.authority, "ca.test")
        chain = b"".join(one.public_bytes(Encoding.PEM) for one in (credentials.certificate, *credentials.chain))
        (directory / "server.pem").write_bytes(
            chain + credentials.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    @contextmanager
    def serve(
        self,
        validation: ValidationConfig | None = None,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        issuer: Issuer | None = None,
        listener: socket.socket | None = None,
        **settings: Any,
    ) -> Iterator[Server]:
        """A server; again with the same directory it is the same one after a restart."""
        listener = listener or listen()
        base = f"https://[::1]:{listener.getsockname()[1]}/acme"
        clock = clock or Clock()
        config = AcmeConfig(base, validation=validation or ValidationConfig(addresses=LOOPBACK, attempts=1), **settings)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        opened: list[Store] = []
        runners: list[web.AppRunner] = []

        async def start() -> None:
            store = await Store.open(self.directory / "acme.sqlite", clock, limits)
            opened.append(store)
            root = web.Application()
            root.add_subapp("/acme", acme_application(issuer or self.ca, store, config, clock))
            runner = web.AppRunner(root, access_log=None, shutdown_timeout=0.2)
            runners.append(runner)
            await runner.setup()
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.directory / "server.pem")
            await web.SockSite(runner, listener, ssl_context=context).start()

        try:
            asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
            yield Server(base, opened[0], loop, clock)
        finally:
            for part in (*(runner.cleanup for runner in runners), *(store.close for store in opened)):
                asyncio.run_coroutine_threadsafe(part(), loop).result(PATIENCE)
            listener.close()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)
            loop.close()

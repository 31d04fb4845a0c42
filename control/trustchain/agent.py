"""A node's side of its membership: follows the authority's trust bundle and renews the node's certificate, for as long
as the node runs.

      authority ── bundle, as soon as there is a newer one ──▶ verifier and handshakes (from the next look)
                                                            ├─▶ HOME/bundle.json
                                                            └─▶ open connections to peers that were revoked: closed,
                                                                with the reason
      at two thirds of the certificate's life: new key ── CSR ──▶ authority ── chain ──▶ HOME/identity.pem, handshakes

Nothing here ends a connection between nodes that is good: new handshakes use the new certificate, running ones and
connections keep theirs. The connection to the authority is made anew with a new certificate, because the authority takes
its caller for who the handshake showed: on an old one a later renewal would be of the certificate before the last. While
the authority cannot be reached the node goes on with what it has, and tries again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.handshake.policy import ALPN_STOQ, HandshakeConfig
from control.rpc import RpcClient
from control.trustchain import messages
from control.trustchain.bundle import BundleError, StaleBundle, decode_bundle
from control.trustchain.errors import TrustError
from control.trustchain.home import Home
from control.trustchain.requests import make_csr
from control.trustchain.roles import Role
from control.trustchain.verifier import TrustVerifier, revoked_since
from dataplane import Connection, Datapath, StoqError

log = logging.getLogger("stoq.trustchain")

RENEW_AT = 2 / 3  # Of a certificate's life.
RENEW_SPREAD = 0.05  # Nodes that joined together do not come back together.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # Seconds between tries.
SETTLED = 4  # Times a pause: after so long something counts as having worked.
PING_SECONDS = 2.0  # The connection to the authority is asked whether it lives: one that crashed says nothing.
LAST_MINUTES = 60.0  # Seconds between tries to renew at most, when time runs out.


class Handshakes(Protocol):
    """What `TlsFactory` and `ProcessFactory` have in common here."""

    @property
    def config(self) -> HandshakeConfig:
        """Of the handshakes that begin now."""

    def replace(self, config: HandshakeConfig) -> None:
        """Another one, for those that begin from now on."""

    def update_trust(self, state: bytes) -> int:
        """A newer bundle."""


OnEvent = Callable[[str, str], None]  # What, and text for people.


def renew_at(certificate: x509.Certificate) -> float:
    """When a certificate is to be renewed, seconds since 1970: at two thirds of its life."""
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return begin + (end - begin) * RENEW_AT


class Agent:
    """See the module's text. `run` goes on until it is cancelled."""

    def __init__(
        self, home: Home, datapath: Datapath, handshakes: Handshakes, verifier: TrustVerifier, *,
        clock: Callable[[], float] = time.time, on_event: OnEvent = lambda what, text: None,
    ) -> None:  # fmt: skip
        self._home = home
        self._datapath = datapath
        self._handshakes = handshakes
        self._verifier = verifier
        self._clock = clock
        self._on_event = on_event
        self._connection: Connection | None = None  # That the trust bundle is followed on.
        self.renewals = 0
        self.bundles = 0
        self.closed = 0  # Connections to peers that were revoked.

    async def run(self) -> None:
        """Follow and renew."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever("follow the trust bundle", self._follow))
            tasks.create_task(self._forever("renew the certificate", self._renew_when_due))

    async def _forever(self, what: str, work: Callable[[], object]) -> None:
        pause = FIRST_PAUSE
        while True:
            begin = asyncio.get_running_loop().time()
            try:
                await work()  # type: ignore[misc]
                pause = FIRST_PAUSE
            except Exception as error:
                if not isinstance(error, (StoqError, OSError, ValueError)):
                    log.exception("cannot %s", what)  # An error of ours, but no reason to go on without trust.
                if asyncio.get_running_loop().time() - begin > SETTLED * pause:
                    pause = FIRST_PAUSE  # It went well for a while.
                log.warning("cannot %s: %s; trying again in %.1f s", what, error, pause)
                self._on_event("trust-trouble", f"cannot {what}: {error}")
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect(self) -> Connection:
        """To the authority: whoever has its address, a certificate for that, and the role of a service. A node on the
        same machine has the first two."""
        connection = await self._datapath.connect(self._home.config.authority, alpns=(ALPN_STOQ,))
        if connection.identity is None or Role.SERVICE not in connection.identity.roles:
            connection.close(0, "this is not the authority")
            raise TrustError(f"{connection.peer} is {connection.identity}, which is not the authority")
        return connection

    # ---- trust ----

    async def _follow(self) -> None:
        self._connection = connection = await self._connect()
        pinging = asyncio.ensure_future(self._keep_alive(connection))
        try:
            body = messages.FollowBody(self._verifier.bundle.generation)
            calls = RpcClient(connection, clock=self._clock)
            async for answer in calls.follow(messages.FOLLOW, body, messages.BundleAnswer):
                self.take(answer.bundle)
            raise TrustError("the authority ended the subscription")
        except StoqError:
            if self._connection is connection:
                raise
            # Given up for one with our new certificate.
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            connection.close()

    async def _keep_alive(self, connection: Connection) -> None:
        while not connection.closed:
            await asyncio.sleep(PING_SECONDS)
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await connection.ping()
            except (StoqError, TimeoutError):
                connection.close(0, "the authority does not answer")
                return

    def take(self, state: bytes) -> None:
        """A newer bundle: judge by it, close what it revokes, and keep it. Raises BundleError."""
        bundle = decode_bundle(state)
        if bundle == self._verifier.bundle:
            return
        try:
            self._handshakes.update_trust(state)
        except StaleBundle as error:
            log.warning("%s", error)
            self._on_event("trust-trouble", str(error))
            return
        self.bundles += 1
        self._close_revoked(self._datapath.connections)
        try:
            self._home.write_bundle(bundle)
        except BundleError as error:
            log.error("%s: after a restart this node judges by an older one until it hears a newer", error)
            self._on_event("trust-trouble", str(error))
        self._on_event(
            "trust", f"trust bundle {bundle.generation}: {len(bundle.logs)} logs, {len(bundle.revocations)} revoked"
        )

    def _close_revoked(self, connections: Iterable[Connection]) -> None:
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        open_to = [one for one in connections if one.identity is not None and not one.closed]
        refused = {
            id(identity): abort
            for identity, abort in revoked_since(self._verifier, (one.identity for one in open_to), now)
        }
        for connection in open_to:
            abort = refused.get(id(connection.identity))
            if abort is not None:
                self.closed += 1
                self._on_event("revoked", f"{connection.peer}: {abort.reason}")
                connection.close(abort.code, abort.reason, application=False)

    # ---- our certificate ----

    async def _renew_when_due(self) -> None:
        credentials = self._handshakes.config.credentials
        assert credentials is not None
        due = renew_at(credentials.certificate)
        life = credentials.certificate.not_valid_after_utc.timestamp() - due
        wait = due - self._clock() + life * RENEW_SPREAD * random.random()
        if wait > 0:
            # In pieces, because a clock may be set while we sleep.
            await asyncio.sleep(min(wait, LAST_MINUTES))
            return
        await self.renew()

    async def renew(self) -> None:
        """A new key and certificate, now. Raises what the authority says."""
        key = ec.generate_private_key(ec.SECP256R1())
        body = messages.RenewBody(make_csr(key, self._home.config.name))
        async with await self._connect() as connection:
            answer = await RpcClient(connection, clock=self._clock).call(messages.RENEW, body, messages.ChainAnswer)
        chain = [x509.load_der_x509_certificate(one) for one in answer.chain]
        if not chain:
            raise TrustError("the authority answered a renewal with no certificate")
        credentials = self._home.write_credentials(key, chain)
        self._handshakes.replace(dataclasses.replace(self._handshakes.config, credentials=credentials))
        self.renewals += 1
        following, self._connection = self._connection, None
        if following is not None:
            following.close(0, "the certificate was renewed")
        end = credentials.certificate.not_valid_after_utc
        self._on_event("renewed", f"certificate renewed, valid until {end:%Y-%m-%d %H:%M:%S} UTC")


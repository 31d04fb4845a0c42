"""How a node joins: with a one-time token and one command.

The token names the authority's address and the SHA-256 of its root certificate, so the first connection is to the
right one or to none; its secret says who comes. The connection is `stoq-join/1`: the authority shows its certificate,
with the root at the end of the chain, and nothing but joining is served on it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.handshake import HandshakeConfig, TlsFactory
from control.handshake.alerts import Alert, HandshakeAbort
from control.handshake.credentials import Credentials, Trust, node_id
from control.handshake.peer import Exported
from control.handshake.policy import ALPN_JOIN
from control.handshake.verdicts import Verdict, validity
from control.handshake.verify import subject_of, verify_chain
from control.rpc import RpcClient
from control.trustchain import messages
from control.trustchain.bundle import decode_bundle
from control.trustchain.errors import BadRequest, TokenRefused, TrustError
from control.trustchain.home import Home, HomeConfig
from control.trustchain.requests import make_csr
from control.trustchain.roles import Role, roles_of
from control.trustchain.verifier import TrustVerifier
from dataplane import Config, Datapath
from dataplane.errors import ConfigError
from dataplane.handshake import PeerIdentity


class RootVerifier:
    """A `PeerVerifier` that knows one thing: the SHA-256 of a root certificate, which must end the chain."""

    def __init__(self, root_sha256: bytes) -> None:
        self._root = root_sha256

    @property
    def policy(self) -> bytes:
        """See PeerVerifier."""
        return self._root

    def verify(self, chain_der: Sequence[bytes], server_name: str | None, now: datetime.datetime) -> Verdict:
        """See PeerVerifier."""
        root_der = chain_der[-1]
        if not hmac.compare_digest(hashlib.sha256(root_der).digest(), self._root):
            raise HandshakeAbort.alert(
                Alert.UNKNOWN_CA, "this is not the authority that the token is of: ask for a new token"
            )
        try:
            leaf, *chain = (x509.load_der_x509_certificate(der) for der in chain_der)
            roles = roles_of(leaf)
        except (ValueError, BadRequest) as error:
            raise HandshakeAbort.alert(Alert.BAD_CERTIFICATE, f"the authority's certificate: {error}") from None
        trust = Trust((x509.load_der_x509_certificate(root_der),))
        verify_chain(leaf, chain, trust, server_name=server_name, now=now)
        if Role.SERVICE not in roles:
            # A node on the same machine has a certificate for its address, too.
            raise HandshakeAbort.alert(Alert.ACCESS_DENIED, f"{subject_of(leaf)} is not the authority: no service")
        begins, ends = validity((leaf, *chain), trust, now)
        identity = PeerIdentity(node_id(leaf), subject_of(leaf), chain_der[0], tuple(sorted(roles)))
        return Verdict(identity, begins, ends, leaf.public_key(), policy=self._root)

    def refusal(
        self, identity: PeerIdentity | None, policy: bytes, now: datetime.datetime
    ) -> HandshakeAbort | None:
        """See PeerVerifier."""
        return None

    def confirm(self, verdict: Verdict) -> Awaitable[None] | None:
        """See PeerVerifier."""
        return None

    def update(self, state: bytes) -> None:
        """See PeerVerifier."""
        raise ConfigError("a node that joins has no trust bundle yet")

    def export(self) -> Exported:
        """See PeerVerifier."""
        raise ConfigError("joining needs no handshake processes")


async def join(
    directory: Path, *, authority: str, root_sha256: bytes, secret: bytes, name: str, config: Config,
    profile: str = "", clock: Callable[[], float] = time.time,
) -> tuple[Home, Credentials]:
    """Join: a key made here, a certificate from the authority at `authority` ([IPv6]:port), and a home in `directory`.
    Raises what the authority says, HandshakeFailed, HomeError; then no home was made."""
    existed = directory.exists()
    # First of all: a token is good once, and would be lost for a directory that cannot be written.
    home = Home.create(directory, HomeConfig(name, authority))
    try:
        return await _join(home, root_sha256, secret, config, profile, clock)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # What a write that failed half-way left is worth a look.
                directory.rmdir()
        raise


async def _join(
    home: Home, root_sha256: bytes, secret: bytes, config: Config, profile: str, clock: Callable[[], float]
) -> tuple[Home, Credentials]:
    authority = home.config.authority
    key = ec.generate_private_key(ec.SECP256R1())
    factory = TlsFactory(HandshakeConfig(alpns=(ALPN_JOIN,), verifier=RootVerifier(root_sha256)), clock)
    async with Datapath(config, factory) as datapath:
        connection = await datapath.connect(authority, alpns=(ALPN_JOIN,))
        async with connection:
            calls = RpcClient(connection, {"TokenRefused": TokenRefused}, clock)
            body = messages.JoinBody(secret, make_csr(key, home.config.name), profile)
            answer = await calls.call(messages.JOIN, body, messages.ChainAnswer)
    chain = [x509.load_der_x509_certificate(der) for der in answer.chain]
    bundle = decode_bundle(answer.bundle)
    if not chain or all(hashlib.sha256(anchor).digest() != root_sha256 for anchor in bundle.anchors):
        raise TrustError("the authority's answer does not rest on the root that the token names: nothing was kept")
    subject = subject_of(chain[0])
    home = Home(home.directory, HomeConfig(subject, authority))
    # Judged as everybody else will judge it, before it is taken for good.
    now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
    verdict = TrustVerifier(bundle).judge(list(answer.chain), None, now)
    if not verdict.good:
        raise TrustError(f"the certificate that came would not be accepted: {verdict.text}")
    credentials = home.write_credentials(key, chain)
    home.write_bundle(bundle)
    home.complete()
    return home, credentials

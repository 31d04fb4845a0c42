"""What all handshakes of one configuration have in common, made once: verdicts, tickets, our own messages."""

from __future__ import annotations

import datetime
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import msgspec
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake import messages
from control.handshake.alerts import Alert, HandshakeAbort
from control.handshake.credentials import node_id
from control.handshake.peer import PeerVerifier
from control.handshake.policy import HandshakeConfig
from control.handshake.replay import ReplayRegister
from control.handshake.schedule import expand_label
from control.handshake.tickets import ClientTickets, ServerTickets, Session, TicketKeys
from control.handshake.verdicts import Verdict, VerdictCache, validity, verdict_key
from control.handshake.verify import subject_of, verify_chain
from dataplane.handshake import PeerIdentity

# X25519 is the fastest; P-256 is what everybody has. A client makes a key for each group it offers.
GROUPS = [tls.Group.X25519, tls.Group.SECP256R1]
SIGNATURES = [
    tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    tls.SignatureAlgorithm.ED25519,
    tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
    tls.SignatureAlgorithm.RSA_PKCS1_SHA256,
    tls.SignatureAlgorithm.RSA_PKCS1_SHA384,
]

EARLIEST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
LATEST = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)


class Shared:
    """What all handshakes of one configuration have in common, made once.

    `before`: what it takes the place of, at the same node. Tickets, their keys and the register of early data go on;
    remembered verdicts do when the same trust judges. `confirms`: is there a loop here in which a verdict can be
    confirmed? Otherwise whoever gives the connection out has to do it."""

    def __init__(
        self,
        config: HandshakeConfig,
        clock: Callable[[], float] = time.time,
        ticket_keys: TicketKeys | None = None,
        *,
        confirms: bool = True,
        before: Shared | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.confirms = confirms
        same = before is not None and _same_trust(config, before.config)
        self.verdicts: VerdictCache = before.verdicts if before is not None and same else VerdictCache()
        credentials = config.credentials
        chain = (credentials.certificate, *credentials.chain) if credentials else ()
        self.certificate_message = messages.certificate(c.public_bytes(Encoding.DER) for c in chain)
        self.certificate_request = messages.certificate_request(int(a) for a in SIGNATURES)
        self.server_tickets = ServerTickets(config, clock, ticket_keys) if config.resumption else None
        self.client_tickets = ClientTickets(config, clock) if config.resumption else None
        # Tickets of keys that are made here cannot have been used before this moment.
        warm = ticket_keys is None and before is None
        self.register = ReplayRegister(time.monotonic(), warm=warm) if config.early_alpns else None
        if before is not None:
            self._go_on(before)

    def _go_on(self, before: Shared) -> None:
        if self.server_tickets is not None and before.server_tickets is not None:
            self.server_tickets.go_on(before.server_tickets)
        if self.client_tickets is not None and before.client_tickets is not None:
            self.client_tickets.go_on(before.client_tickets)
        if self.register is not None and before.register is not None:
            self.register = before.register

    @property
    def verifier(self) -> PeerVerifier | None:
        """Who judges, unless it is `trust` alone."""
        return self.config.verifier

    def now(self) -> datetime.datetime:
        """The clock as X.509 wants it."""
        return datetime.datetime.fromtimestamp(self.clock(), datetime.UTC)

    def verdict(self, chain_der: Sequence[bytes], server_name: str | None) -> Verdict:
        """Is a chain good now? Raises HandshakeAbort. A good verdict is remembered while it holds."""
        if self.config.insecure:
            leaf = x509.load_der_x509_certificate(chain_der[0])
            identity = PeerIdentity(node_id(leaf), subject_of(leaf), chain_der[0])
            return Verdict(identity, EARLIEST, LATEST, leaf.public_key())
        if self.verifier is not None:
            return self._judged(self.verifier, chain_der, server_name)
        trust = self.config.trust
        if trust is None:
            raise HandshakeAbort.alert(Alert.UNKNOWN_CA, "no certificate authority is trusted here")
        now, key = self.now(), verdict_key(chain_der, server_name)
        verdict = self.verdicts.find(key, now)
        if verdict is None:
            leaf, *chain = (x509.load_der_x509_certificate(der) for der in chain_der)
            verify_chain(leaf, chain, trust, server_name=server_name, now=now)
            identity = PeerIdentity(node_id(leaf), subject_of(leaf), chain_der[0])
            begins, ends = validity((leaf, *chain), trust, now)
            verdict = Verdict(identity, begins, ends, leaf.public_key(), key)
            self.verdicts.put(key, verdict)
        return verdict

    def _judged(
        self, verifier: PeerVerifier, chain_der: Sequence[bytes], server_name: str | None
    ) -> Verdict:
        known = self.known(chain_der, server_name)
        if known is not None:
            return known
        key = verdict_key(chain_der, server_name)
        verdict = replace(verifier.verify(chain_der, server_name, self.now()), key=key)
        self.verdicts.put(key, verdict)
        return verdict

    def known(self, chain_der: Sequence[bytes], server_name: str | None) -> Verdict | None:
        """The verdict remembered of a chain, if it still holds."""
        verdict = self.verdicts.find(verdict_key(chain_der, server_name), self.now())
        if verdict is None or self.holds(verdict):
            return verdict
        self.verdicts.drop(verdict.key)
        return None

    def holds(self, verdict: Verdict) -> bool:
        """Is nothing of it revoked since, and would it be judged by the same rules now?"""
        verifier = self.verifier
        return verifier is None or verifier.refusal(verdict.identity, verdict.policy, self.now()) is None

    def check(self, identity: PeerIdentity | None) -> None:
        """Raises HandshakeAbort when what this identity rests on was revoked since it was proved."""
        verifier = self.verifier
        if verifier is not None:
            abort = verifier.refusal(identity, verifier.policy, self.now())
            if abort is not None:
                raise abort

    def confirm(self, verdict: Verdict) -> Awaitable[None] | None:
        """What has to be awaited before the peer is let in; None: nothing. Awaiting it raises HandshakeAbort."""
        if verdict.confirmed or self.verifier is None:
            return None
        waiting = self.verifier.confirm(verdict)
        if waiting is None:
            self.verdicts.put(verdict.key, replace(verdict, confirmed=True))
            return None
        return self._confirmed(verdict, waiting)

    async def _confirmed(self, verdict: Verdict, waiting: Awaitable[None]) -> None:
        try:
            await waiting
            self.check(verdict.identity)
        except HandshakeAbort:
            self.verdicts.drop(verdict.key)
            raise
        self.verdicts.put(verdict.key, replace(verdict, confirmed=True))


def _same_trust(one: HandshakeConfig, other: HandshakeConfig) -> bool:
    """Would both judge a peer alike? A verifier tells itself what it would judge anew."""
    anchors = [config.trust.anchors if config.trust else () for config in (one, other)]
    return (
        one.verifier is other.verifier
        and anchors[0] == anchors[1]
        and one.insecure == other.insecure
    )


def resumption_secret(hash_name: str, master: bytes, nonce: bytes) -> bytes:
    """The PSK of a ticket: RFC 8446 section 4.6.1."""
    return expand_label(hash_name, master, b"resumption", nonce, len(master))


def new_session(
    shared: Shared, secret: bytes, suite: int, alpn: str, verdict: Verdict | None, before: Session | None
) -> Session:
    """What a ticket rests on: the proof of this handshake, or of the one that this session descends from."""
    if before is not None:
        return msgspec.structs.replace(before, secret=secret, cipher=int(suite))
    identity = verdict.identity if verdict else None
    tickets = shared.server_tickets
    return Session(
        secret=secret,
        cipher=int(suite),
        alpn=alpn,
        proved_at=shared.clock(),
        valid_until=(verdict.ends if verdict else LATEST).timestamp(),
        policy=tickets.policy if tickets else b"",
        chain=verdict.key if verdict else b"",
        node_id=identity.node_id if identity else b"",
        subject=identity.subject if identity else "",
        certificate_der=identity.certificate_der if identity else b"",
        roles=identity.roles if identity else (),
        rests_on=identity.rests_on if identity else (),
        judged_by=verdict.policy if verdict else b"",
    )

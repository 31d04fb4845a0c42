"""What all handshakes of one configuration have in common, made once: verdicts, tickets, our own messages."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence

import msgspec
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake import messages
from control.handshake.alerts import Alert, HandshakeAbort
from control.handshake.credentials import node_id
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
    """What all handshakes of one configuration have in common, made once."""

    def __init__(
        self,
        config: HandshakeConfig,
        clock: Callable[[], float] = time.time,
        ticket_keys: TicketKeys | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.verdicts = VerdictCache()
        credentials = config.credentials
        chain = (credentials.certificate, *credentials.chain) if credentials else ()
        self.certificate_message = messages.certificate(c.public_bytes(Encoding.DER) for c in chain)
        self.certificate_request = messages.certificate_request(int(a) for a in SIGNATURES)
        self.server_tickets = ServerTickets(config, clock, ticket_keys) if config.resumption else None
        self.client_tickets = ClientTickets(config, clock) if config.resumption else None
        # Tickets of keys that are made here cannot have been used before this moment.
        warm = ticket_keys is None
        self.register = ReplayRegister(time.monotonic(), warm=warm) if config.early_alpns else None

    def now(self) -> datetime.datetime:
        """The clock as X.509 wants it."""
        return datetime.datetime.fromtimestamp(self.clock(), datetime.UTC)

    def verdict(self, chain_der: Sequence[bytes], server_name: str | None) -> Verdict:
        """Is a chain good now? Raises HandshakeAbort. A good verdict is remembered while it holds."""
        if self.config.insecure:
            leaf = x509.load_der_x509_certificate(chain_der[0])
            identity = PeerIdentity(node_id(leaf), subject_of(leaf), chain_der[0])
            return Verdict(identity, EARLIEST, LATEST, leaf.public_key())
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
    )

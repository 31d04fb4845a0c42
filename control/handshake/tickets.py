"""Session tickets (RFC 8446 sections 2.2 and 4.6.1): what a resumed session may rest on, and for how long.

A server keeps nothing a session: what it must know later is sealed into the ticket under a key that only this
node has, that changes, and that is never written anywhere. What is in a ticket is what was proved in the full
handshake it descends from: the peer's identity, until when its chain is valid, the protocol. A ticket got in
a resumed session inherits that handshake's time, so a chain of resumptions ends `lifetime` after the last
proof.

A refused ticket is no error: the handshake goes on in full, and the reason is counted.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake.peer import PeerVerifier
from control.handshake.policy import ALPN_POLICIES, HandshakeConfig
from dataplane.handshake import PeerIdentity

KEY_ID_BYTES = 8
NONCE_BYTES = 12
MAX_TICKET_BYTES = (
    2048  # A peer with a longer certificate gets no ticket; a longer ticket is not read or kept.
)
MAX_SERVERS = 256  # A client's: names it holds tickets of.
MAX_TICKETS_EACH = 4  # A client's, of one name: each is used once (RFC 8446 appendix C.4).


class Refusal(Enum):
    """Why a ticket was not taken."""

    UNREADABLE = "unreadable"  # Forged, damaged, of another node, or of a key that is gone.
    POLICY = "policy"  # Trust anchors, our certificate or what is asked of a peer are not what they were.
    AGE = "age"
    CERTIFICATE = "certificate"  # A certificate of the chain that was verified then is not valid now.
    PROTOCOL = "protocol"
    CIPHER = "cipher"
    TRUST = "trust"  # Something that the peer's identity rests on was revoked, or peers are judged by other rules now.
    IDENTITY = "identity"  # The protocol is mutual and the ticket rests on no identity.


class Session(msgspec.Struct, frozen=True, array_like=True):
    """What both ends remember of a session. Times are Unix seconds."""

    secret: bytes  # The PSK.
    cipher: int
    alpn: str
    proved_at: float  # When the peer last proved its identity in a full handshake.
    valid_until: float  # Of the chain that was verified then.
    policy: bytes  # policy_fingerprint then.
    chain: bytes  # verdict_key of that chain.
    node_id: bytes  # Empty: the peer showed no certificate.
    subject: str
    certificate_der: bytes
    issued_at: float = 0.0  # The ticket, by the server's monotonic clock.
    age_add: int = 0  # What the client hides its age with: RFC 8446 section 4.2.11.1.
    early: bool = False  # Early data may come with it.
    roles: tuple[str, ...] = ()
    rests_on: tuple[bytes, ...] = ()
    judged_by: bytes = b""  # PeerVerifier.policy then.

    @property
    def identity(self) -> PeerIdentity | None:
        """Who the peer proved to be."""
        if not self.node_id:
            return None
        return PeerIdentity(self.node_id, self.subject, self.certificate_der, self.roles, self.rests_on)


def policy_fingerprint(config: HandshakeConfig) -> bytes:
    """Changes with whatever would have to be looked at again: anchors, our own certificate, rules."""
    digest = hashlib.sha256(b"insecure" if config.insecure else b"")
    for anchor in sorted(
        a.public_bytes(Encoding.DER) for a in (config.trust.anchors if config.trust else ())
    ):
        digest.update(hashlib.sha256(anchor).digest())
    digest.update(config.credentials.node_id if config.credentials else b"none")
    for alpn in sorted(config.alpns):
        digest.update(f"{alpn} {ALPN_POLICIES[alpn].mutual};".encode())
    return digest.digest()


def check(
    session: Session, policy: bytes, lifetime: float, now: float, verifier: PeerVerifier | None = None
) -> Refusal | None:
    """May a session still be resumed? The part that is alike at both ends."""
    if session.policy != policy:
        return Refusal.POLICY
    if not session.proved_at <= now < session.proved_at + lifetime:
        return Refusal.AGE
    if now > session.valid_until:
        return Refusal.CERTIFICATE
    if ALPN_POLICIES[session.alpn].mutual and not session.node_id:
        return Refusal.IDENTITY
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if verifier is not None and verifier.refusal(session.identity, session.judged_by, moment) is not None:
        return Refusal.TRUST
    return None


class TicketKeys:
    """A node's sealing keys: the newest seals, the one before still opens. In memory only."""

    def __init__(self, lifetime: float, clock: Callable[[], float]) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._keys: OrderedDict[bytes, tuple[bytes, AESGCM]] = OrderedDict()
        self._made_at = 0.0
        self._given = False

    @classmethod
    def given(cls, lifetime: float, clock: Callable[[], float]) -> TicketKeys:
        """Keys that somebody else changes: see take()."""
        keys = cls(lifetime, clock)
        keys._given = True
        return keys

    def take(self, keys: Iterable[tuple[bytes, bytes]]) -> None:
        """What current() gave elsewhere."""
        self._keys = OrderedDict((name, (key, AESGCM(key))) for name, key in keys)

    def current(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names and keys, oldest first."""
        self.rotate()
        return tuple((name, key) for name, (key, _) in self._keys.items())

    def rotate(self) -> bool:
        """Make a new key when it is time to; True: they are not what they were."""
        age = self._clock() - self._made_at
        if self._given or (self._keys and 0 <= age < self._lifetime):
            return False
        if age >= 2 * self._lifetime:
            self._keys.clear()
        key = os.urandom(32)
        self._keys[os.urandom(KEY_ID_BYTES)] = key, AESGCM(key)
        self._made_at = self._clock()
        while len(self._keys) > 2:
            self._keys.popitem(last=False)
        return True

    def seal(self, data: bytes) -> bytes:
        """Key's name, nonce, ciphertext."""
        self.rotate()
        key_id = next(reversed(self._keys))
        nonce = os.urandom(NONCE_BYTES)
        return key_id + nonce + self._keys[key_id][1].encrypt(nonce, data, key_id)

    def open(self, sealed: bytes) -> bytes | None:
        """None: not sealed here, or too long ago."""
        self.rotate()
        key_id, rest = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES:]
        _, key = self._keys.get(key_id, (b"", None))
        if key is None or len(rest) < NONCE_BYTES:
            return None
        try:
            return key.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], key_id)
        except InvalidTag:
            return None


class ServerTickets:
    """A server's side: makes tickets, and judges those that come back."""

    def __init__(
        self, config: HandshakeConfig, clock: Callable[[], float], keys: TicketKeys | None = None
    ) -> None:
        self.lifetime = config.ticket_lifetime
        self.policy = policy_fingerprint(config)
        self.keys = keys or TicketKeys(self.lifetime, clock)
        self.refused: Counter[Refusal] = Counter()
        self.issued = 0
        self.resumed = 0
        self._clock = clock
        self._verifier = config.verifier

    def go_on(self, before: ServerTickets) -> None:
        """Take the place of others at the same node: tickets stay readable, counts go on."""
        self.keys, self.refused = before.keys, before.refused
        self.issued, self.resumed = before.issued, before.resumed

    def issue(self, session: Session) -> bytes | None:
        """A ticket for a session; None: it would be too long, or is at its end."""
        if check(session, self.policy, self.lifetime, self._clock(), self._verifier) is not None:
            return None
        ticket = self.keys.seal(msgspec.msgpack.encode(session))
        if len(ticket) > MAX_TICKET_BYTES:
            return None
        self.issued += 1
        return ticket

    def redeem(self, ticket: bytes, alpn: str, cipher: int) -> Session | None:
        """The session of a ticket that may be resumed now; a refusal is counted."""
        verdict = self._judge(ticket, alpn, cipher)
        if isinstance(verdict, Refusal):
            self.refused[verdict] += 1
            return None
        return verdict

    def _judge(self, ticket: bytes, alpn: str, cipher: int) -> Session | Refusal:
        data = self.keys.open(ticket) if len(ticket) <= MAX_TICKET_BYTES else None
        if data is None:
            return Refusal.UNREADABLE
        session = msgspec.msgpack.decode(data, type=Session)
        if session.alpn != alpn:
            return Refusal.PROTOCOL
        if session.cipher != cipher:
            return Refusal.CIPHER
        return check(session, self.policy, self.lifetime, self._clock(), self._verifier) or session


@dataclass(frozen=True, slots=True)
class Ticket:
    """A client's: the server's opaque bytes, and what the session was."""

    ticket: bytes
    age_add: int
    received_at: float
    expires_at: float
    session: Session
    params: bytes = b""  # The server's transport parameters, where the ticket permits early data.


class ClientTickets:
    """A client's tickets by the server's name and the protocols asked for; bounded, each used once."""

    def __init__(self, config: HandshakeConfig, clock: Callable[[], float]) -> None:
        self.lifetime = config.ticket_lifetime
        self.policy = policy_fingerprint(config)
        self._clock = clock
        self._verifier = config.verifier
        self._tickets: OrderedDict[tuple[str, tuple[str, ...]], list[Ticket]] = OrderedDict()

    def go_on(self, before: ClientTickets) -> None:
        """Take the place of others at the same node. Tickets that do not fit any more are dropped when it is their
        turn."""
        self._tickets = before._tickets

    def __len__(self) -> int:
        return sum(len(tickets) for tickets in self._tickets.values())

    def put(self, name: str, alpns: tuple[str, ...], ticket: Ticket) -> None:
        """Keep a ticket; the oldest of this name, or the name not used for longest, makes room."""
        if len(ticket.ticket) > MAX_TICKET_BYTES:
            return
        tickets = self._tickets.setdefault((name, alpns), [])
        self._tickets.move_to_end((name, alpns))
        tickets.append(ticket)
        del tickets[:-MAX_TICKETS_EACH]
        if len(self._tickets) > MAX_SERVERS:
            self._tickets.popitem(last=False)

    def take(self, name: str, alpns: tuple[str, ...], ciphers: tuple[int, ...]) -> Ticket | None:
        """The newest ticket that is good now; those that are not are forgotten."""
        tickets = self._tickets.get((name, alpns), [])
        now, found = self._clock(), None
        while tickets and found is None:
            ticket = tickets.pop()
            session = ticket.session
            good = ticket.received_at <= now < ticket.expires_at and session.cipher in ciphers
            if good and check(session, self.policy, self.lifetime, now, self._verifier) is None:
                found = ticket
        if not tickets:
            self._tickets.pop((name, alpns), None)
        return found

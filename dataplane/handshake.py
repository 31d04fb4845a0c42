"""The seam between the data plane and whoever speaks TLS (RFC 9001 section 4.1).

The data plane knows no TLS. It hands CRYPTO bytes to a ``Handshake`` and does what the handshake asks of its
``HandshakeSink``::

      Connection (a HandshakeSink)                          Handshake (control.handshake)
      CONNECTION event ── start(our transport parameters) ──▶
      CRYPTO event     ── receive(level, bytes) ────────────▶
                       ◀── crypto / secret / peer_params ────
                       ◀── complete  or  fail ───────────────

A handshake never raises out of ``start`` and ``receive``: a failure is a call of ``fail``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from dataplane.address import Address


class Level(IntEnum):
    """Encryption levels; the numbers of enum quic_level."""

    INITIAL = 0
    ZERO_RTT = 1
    HANDSHAKE = 2
    ONE_RTT = 3


class Aead(IntEnum):
    """AEADs of RFC 9001 section 5.3; the numbers of enum crypto_aead."""

    AES_128_GCM = 0
    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the peer proved to be: ``node_id`` is the SHA-256 of its certificate's SubjectPublicKeyInfo.

    ``rests_on`` has SHA-256 digests by which what the proof rests on can be revoked later: whoever revokes one of
    them has to end this connection. Empty: nothing of it is revocable here.
    """

    node_id: bytes
    subject: str
    certificate_der: bytes
    roles: tuple[str, ...] = ()
    rests_on: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        return f"{self.subject} ({self.node_id.hex()[:16]})"


@dataclass(frozen=True, slots=True)
class Target:
    """What a client wants to reach: the address, the name its certificate must carry, and the protocols, best
    first."""

    address: Address
    server_name: str
    alpns: tuple[str, ...] = ()
    early: bool = False  # 0-RTT is wanted, where a session permits it.


class HandshakeSink(Protocol):
    """What a handshake may ask of its connection, in the order in which it asks."""

    def crypto(self, level: Level, data: bytes) -> None:
        """Send these bytes in CRYPTO frames."""

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        """Install a traffic secret. 1-RTT secrets come after ``peer_params``."""

    def peer_params(self, data: bytes) -> None:
        """The peer's transport parameters."""

    def complete(self, alpn: str, identity: PeerIdentity | None) -> None:
        """TLS is done and the peer accepted; the last call but for ``fail``."""

    def fail(self, code: int, reason: str) -> None:
        """Close with this transport error code (a TLS alert is 0x100 + alert)."""


class EarlySink(HandshakeSink, Protocol):
    """What a handshake that knows 0-RTT may ask besides (RFC 9001 section 4.6)::

    client  early_params ─ crypto (ClientHello) ─ secret(ZERO_RTT) … early_answer ─ peer_params …
    server  peer_params ─ early_accepted ─ secret(ZERO_RTT) ─ crypto, secret(HANDSHAKE) …
    """

    def early_params(self, data: bytes) -> None:
        """Client: the server's transport parameters as they were when the session was new."""

    def early_answer(self, accepted: bool) -> None:
        """Client: the server took early data, or not: then it is sent again. Before ``peer_params``."""

    def early_accepted(self, alpn: str, identity: PeerIdentity | None) -> None:
        """Server: early data is taken, of the peer that the session belongs to. Until the handshake is
        complete it may be a replay, so only protocols that permit it come here."""


class Handshake(Protocol):
    """One connection's handshake."""

    def start(self, params: bytes) -> None:
        """Begin, with our encoded transport parameters. A client sends its first flight."""

    def receive(self, level: Level, data: bytes) -> None:
        """CRYPTO bytes in order."""

    def end(self) -> None:
        """The connection is over: the sink wants to hear no more."""


class HandshakeFactory(Protocol):
    """Makes a handshake for each connection."""

    async def open(self) -> None:
        """Before the first handshake, in the loop that will run them. Raises DatapathError."""

    def close(self) -> None:
        """After the last, and when open() failed. Idempotent."""

    def report(self) -> dict[str, int]:
        """Figures for operators."""

    def client(self, sink: HandshakeSink, target: Target) -> Handshake:
        """For a connection we open."""

    def server(self, sink: HandshakeSink, peer: Address) -> Handshake:
        """For a connection that a client opened."""

"""Two TLS sessions joined in memory, level by level: the handshake seam without the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from control.handshake import HandshakeConfig, TlsFactory
from control.handshake.session import TlsSession
from dataplane.address import Address
from dataplane.handshake import Aead, Level, PeerIdentity, Target

CLIENT_PARAMS = b"client's transport parameters"
SERVER_PARAMS = b"server's transport parameters"

Tamper = Callable[[Level, bytes], bytes]


class RecordingSink:
    """A HandshakeSink that remembers every call in order; CRYPTO bytes wait in `outgoing` for the other
    side."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.outgoing: deque[tuple[Level, bytes]] = deque()
        self.secrets: dict[tuple[Level, bool], tuple[Aead, bytes]] = {}
        self.params: bytes | None = None
        self.alpn: str | None = None
        self.identity: PeerIdentity | None = None
        self.failure: tuple[int, str] | None = None
        self.early: bool | None = None
        self.early_remembered: bytes | None = None

    def crypto(self, level: Level, data: bytes) -> None:
        self.calls.append(f"crypto {level.name}")
        self.outgoing.append((level, data))

    def secret(self, level: Level, *, send: bool, aead: Aead, secret: bytes) -> None:
        self.calls.append(f"secret {level.name} {'send' if send else 'receive'}")
        self.secrets[(level, send)] = (aead, secret)

    def peer_params(self, data: bytes) -> None:
        self.calls.append("params")
        self.params = data

    def early_params(self, data: bytes) -> None:
        self.calls.append("early_params")
        self.early_remembered = data

    def early_answer(self, accepted: bool) -> None:
        self.calls.append("early_answer")
        self.early = accepted

    def early_accepted(self, alpn: str, identity: PeerIdentity | None) -> None:
        self.calls.append("early_accepted")
        self.early, self.identity = True, identity

    def complete(self, alpn: str, identity: PeerIdentity | None) -> None:
        self.calls.append("complete")
        self.alpn, self.identity = alpn, identity

    def fail(self, code: int, reason: str) -> None:
        self.calls.append("fail")
        assert self.failure is None, "a handshake fails once"
        self.failure = (code, reason)

    @property
    def alert(self) -> int | None:
        """The TLS alert it failed with."""
        return None if self.failure is None else self.failure[0] - 0x100


class Loopback:
    """A client and a server, started; `run` carries bytes until neither says anything more."""

    def __init__(
        self,
        client: HandshakeConfig | TlsFactory,
        server: HandshakeConfig | TlsFactory,
        *,
        server_name: str = "::1",
        piece: int = 1 << 20,
        to_client: Tamper = lambda level, data: data,
        to_server: Tamper = lambda level, data: data,
    ) -> None:
        self.client, self.server = RecordingSink(), RecordingSink()
        self._piece = piece
        self._tamper = (to_client, to_server)
        target = Target(Address("::1", 9292), server_name)
        makers = [end if isinstance(end, TlsFactory) else TlsFactory(end) for end in (client, server)]
        self.client_session: TlsSession = makers[0].client(self.client, target)
        self.server_session: TlsSession = makers[1].server(self.server, Address("::1", 1))
        self.server_session.start(SERVER_PARAMS)
        self.client_session.start(CLIENT_PARAMS)

    def run(self) -> Loopback:
        """Until all is quiet."""
        to_client, to_server = self._tamper
        while self.client.outgoing or self.server.outgoing:
            self._carry(self.client, self.server_session, to_server)
            self._carry(self.server, self.client_session, to_client)
        return self

    def _carry(self, source: RecordingSink, session: TlsSession, tamper: Tamper) -> None:
        while source.outgoing:
            level, data = source.outgoing.popleft()
            data = tamper(level, data)
            for start in range(0, len(data), self._piece):
                session.receive(level, data[start : start + self._piece])

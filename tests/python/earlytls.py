"""A handshake factory that resumes sessions and does 0-RTT, for tests of the data plane's part in it: as
little as will do around `aioquic.tls.Context`. It checks no certificates; the product's TLS is
`control.handshake`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from aioquic import tls
from aioquic._buffer import Buffer

from control.handshake.credentials import Credentials
from control.handshake.replay import ReplayRegister
from dataplane.address import Address
from dataplane.handshake import Aead, EarlySink, HandshakeSink, Level, Target

ALPN = "hq-interop"
MAX_EARLY_DATA = 0xFFFFFFFF  # RFC 9001 section 4.6.1: the only value QUIC permits.
PARAMETERS = int(tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS)
LEVELS = {
    tls.Epoch.INITIAL: Level.INITIAL,
    tls.Epoch.ZERO_RTT: Level.ZERO_RTT,
    tls.Epoch.HANDSHAKE: Level.HANDSHAKE,
    tls.Epoch.ONE_RTT: Level.ONE_RTT,
}
AEADS = {
    tls.CipherSuite.AES_128_GCM_SHA256: Aead.AES_128_GCM,
    tls.CipherSuite.AES_256_GCM_SHA384: Aead.AES_256_GCM,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256: Aead.CHACHA20_POLY1305,
}


@dataclass
class EarlyTls:
    """A factory. As client it keeps the last ticket and uses it again and again; as server it knows the
    tickets it gave, and with a register takes the early data of each once."""

    credentials: Credentials | None = None
    register: ReplayRegister | None = None
    ticket: tls.SessionTicket | None = None  # Client.
    server_params: bytes = b""  # Client: of the session the ticket is of.
    keep_ticket: bool = False  # Client: no newer one takes its place.
    tickets: dict[bytes, tls.SessionTicket] = field(default_factory=dict)  # Server.
    forget: bool = False  # Server: know no ticket, so that 0-RTT is refused.
    resumed: int = 0

    async def open(self) -> None:
        """See HandshakeFactory."""

    def close(self) -> None:
        """See HandshakeFactory."""

    def report(self) -> dict[str, int]:
        """See HandshakeFactory."""
        return {}

    def client(self, sink: HandshakeSink, target: Target) -> EarlySession:
        """See HandshakeFactory."""
        return EarlySession(self, sink, client=True)

    def server(self, sink: HandshakeSink, peer: Address) -> EarlySession:
        """See HandshakeFactory."""
        return EarlySession(self, sink, client=False)

    def fetch(self, identity: bytes) -> tls.SessionTicket | None:
        """A server's ticket, if it may be used."""
        ticket = self.tickets.get(identity)
        if ticket is None or self.forget:
            return None
        if self.register is not None and not self.register.take(identity, now=0, server_age=0, client_age=0):
            return None
        return ticket


class EarlySession:
    """One handshake."""

    def __init__(self, factory: EarlyTls, sink: HandshakeSink, *, client: bool) -> None:
        self._factory = factory
        self._sink: EarlySink = sink  # type: ignore[assignment]
        self._client = client
        self._offered = False
        self._params_given = False
        self._complete = False
        self._peer_params = b""
        self._secrets: list[tuple[tls.Direction, tls.Epoch, tls.CipherSuite, bytes]] = []
        self._buffers = {epoch: Buffer(capacity=8192) for epoch in LEVELS}
        self._tls = tls.Context(
            is_client=client,
            alpn_protocols=[ALPN],
            max_early_data=MAX_EARLY_DATA,
            server_name="localhost" if client else None,
            verify_mode=ssl.CERT_NONE,
        )
        self._tls.update_traffic_key_cb = self._on_secret
        self._tls.new_session_ticket_cb = self._on_ticket
        if client:
            self._tls.session_ticket = factory.ticket
        else:
            self._tls.get_session_ticket_cb = factory.fetch
            assert factory.credentials is not None
            self._tls.certificate = factory.credentials.certificate
            self._tls.certificate_private_key = factory.credentials.key

    def start(self, params: bytes) -> None:
        """See Handshake."""
        self._tls.handshake_extensions = [(PARAMETERS, params)]
        if self._client:
            self._tls.handle_message(b"", self._buffers)
            self._offered = any(epoch is tls.Epoch.ZERO_RTT for _, epoch, _, _ in self._secrets)
            if self._offered:
                self._sink.early_params(self._factory.server_params)
            self._flush()

    def end(self) -> None:
        """See Handshake."""

    def receive(self, level: Level, data: bytes) -> None:
        """See Handshake."""
        self._tls.handle_message(data, self._buffers)
        self._flush()

    def _on_secret(
        self, direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes
    ) -> None:
        self._secrets.append((direction, epoch, suite, secret))

    def _on_ticket(self, ticket: tls.SessionTicket) -> None:
        if not self._client:
            self._factory.tickets[ticket.ticket] = ticket
        elif not self._factory.keep_ticket:
            self._factory.ticket, self._factory.server_params = ticket, self._peer_params

    def _flush(self) -> None:
        context = self._tls
        if context.received_extensions is not None and not self._params_given:
            self._params_given = True
            self._peer_params = next(v for kind, v in context.received_extensions if kind == PARAMETERS)
            if self._client and self._offered:
                self._sink.early_answer(context.early_data_accepted)
            self._sink.peer_params(self._peer_params)
            if not self._client and context.early_data_accepted:
                self._sink.early_accepted(ALPN, None)
                self._give_secrets(tls.Epoch.ZERO_RTT)
        for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT):
            if epoch is not tls.Epoch.ONE_RTT:
                self._give_secrets(epoch)
            if self._buffers[epoch].tell():
                self._sink.crypto(LEVELS[epoch], self._buffers[epoch].data)
                self._buffers[epoch].seek(0)
            if epoch is tls.Epoch.INITIAL:
                self._give_secrets(tls.Epoch.ZERO_RTT)
        self._give_secrets(tls.Epoch.ONE_RTT)
        if not self._complete and context.state in (
            tls.State.CLIENT_POST_HANDSHAKE,
            tls.State.SERVER_POST_HANDSHAKE,
        ):
            self._complete = True
            self._factory.resumed += context.session_resumed
            self._sink.complete(ALPN, None)

    def _give_secrets(self, epoch: tls.Epoch) -> None:
        for direction, _, suite, secret in [entry for entry in self._secrets if entry[1] is epoch]:
            send = direction is tls.Direction.ENCRYPT
            self._sink.secret(LEVELS[epoch], send=send, aead=AEADS[suite], secret=secret)
        self._secrets = [entry for entry in self._secrets if entry[1] is not epoch]

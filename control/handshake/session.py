"""One connection's TLS 1.3 handshake: `aioquic.tls.Context` fed with CRYPTO bytes (RFC 9001 section 4, RFC
8446).

With `server_context` the only file that touches aioquic's private names; the version is pinned for that
reason. What the context does not do is done here:

- TLS messages are put together by encryption level, and bytes at a level that is not the one TLS reads from
  are refused (RFC 9001 section 4.1.3), as are messages that reach across a change of keys;
- the peer's certificate chain is verified on both sides by `control.handshake.verify` as soon as its
  CertificateVerify is good, so before Finished is accepted, and what an ALPN demands is enforced;
- a verdict that cannot be reached at once (`PeerVerifier.confirm`) holds the handshake back right there: what comes
  meanwhile waits, Finished is neither read nor, by a client, sent, and no connection is given out;
- whatever the context throws on hostile bytes becomes a TLS alert.

Output leaves in the order the engine needs: CRYPTO of a level after that level's secret, the peer's transport
parameters before 1-RTT secrets, completion last.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake import messages
from control.handshake.alerts import CRYPTO_ERROR, Alert, HandshakeAbort
from control.handshake.policy import ALPN_POLICIES, CIPHERS, MAX_TICKET_LIFETIME
from control.handshake.schedule import HASHES
from control.handshake.server_context import ServerContext
from control.handshake.shared import GROUPS, LATEST, SIGNATURES, Shared, new_session, resumption_secret
from control.handshake.tickets import Ticket
from control.handshake.verdicts import Verdict
from dataplane.errors import TLS_ALERTS
from dataplane.handshake import Aead, EarlySink, HandshakeSink, Level, PeerIdentity, Target
from dataplane.tables import TransportError

log = logging.getLogger("stoq.handshake")

MAX_MESSAGE_BYTES = (
    65536  # Longest TLS message taken: a chain of some 60 certificates. Bounds what a peer can make us keep.
)
MAX_TICKETS = 64  # NewSessionTickets taken (and ignored) from one server before we call it abuse.
FLIGHT_BYTES = (
    4096  # Largest of our flights without certificates; a ClientHello with two key shares is under 600 bytes.
)

TRANSPORT_PARAMETERS = int(tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS)
KEY_UPDATE = 24  # RFC 8446 section 4; forbidden in QUIC (RFC 9001 section 6).
CERTIFICATE_REQUEST = int(tls.HandshakeType.CERTIFICATE_REQUEST)
NEW_SESSION_TICKET = int(tls.HandshakeType.NEW_SESSION_TICKET)

AEADS = {
    tls.CipherSuite.AES_128_GCM_SHA256: Aead.AES_128_GCM,
    tls.CipherSuite.AES_256_GCM_SHA384: Aead.AES_256_GCM,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256: Aead.CHACHA20_POLY1305,
}
LEVELS = {
    tls.Epoch.INITIAL: Level.INITIAL,
    tls.Epoch.ZERO_RTT: Level.ZERO_RTT,
    tls.Epoch.HANDSHAKE: Level.HANDSHAKE,
    tls.Epoch.ONE_RTT: Level.ONE_RTT,
}
# Of the NSS key log format: by epoch, and whether the secret protects what the client sends.
KEY_LOG_LABELS = {
    (tls.Epoch.ZERO_RTT, True): "CLIENT_EARLY_TRAFFIC_SECRET",
    (tls.Epoch.HANDSHAKE, True): "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    (tls.Epoch.HANDSHAKE, False): "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    (tls.Epoch.ONE_RTT, True): "CLIENT_TRAFFIC_SECRET_0",
    (tls.Epoch.ONE_RTT, False): "SERVER_TRAFFIC_SECRET_0",
}
# What `cryptography` raises, beside ValueError, for certificates that are not what X.509 says.
BAD_CERTIFICATE_ERRORS = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
FIRST_STATES = (
    tls.State.CLIENT_HANDSHAKE_START,
    tls.State.CLIENT_EXPECT_SERVER_HELLO,
    tls.State.SERVER_EXPECT_CLIENT_HELLO,
)
LAST_STATES = (tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE)
FINISHED_STATES = (tls.State.CLIENT_EXPECT_FINISHED, tls.State.SERVER_EXPECT_FINISHED, *LAST_STATES)


class TlsSession:
    """A `dataplane.handshake.Handshake`; see the module's text."""

    def __init__(self, shared: Shared, sink: HandshakeSink, target: Target | None) -> None:
        self._shared = shared
        self._config = shared.config
        self.resumed = False
        self._verdict: Verdict | None = None
        self._held: asyncio.Future[None] | None = None  # The verdict is awaited.
        self._chain: tuple[bytes, ...] = ()
        self._offered: Ticket | None = None
        self._master: tuple[tls.CipherSuite, str, bytes] | None = (
            None  # For tickets that may come: a client's.
        )
        self._sink = sink
        self._client = target is not None
        self._server_name = target.server_name if target else None
        self._alpns = (target.alpns if target else ()) or self._config.alpns
        self._early = target is not None and target.early  # A client's wish, then: early data is offered.
        self._partial = bytearray()
        self._secrets: list[tuple[tls.Direction, tls.Epoch, tls.CipherSuite, bytes]] = []
        self._identity: PeerIdentity | None = None
        self._params = b""
        self._params_given = False
        self._params_sent = False
        self._checked = False
        self._over = False
        self._tickets = 0
        self._buffers: dict[tls.Epoch, Buffer] = {}
        self._tls: tls.Context | None = None  # None before start and, to save memory, after completion.

    # ---- what the data plane calls ----

    def start(self, params: bytes) -> None:
        """Make the context; a client sends its ClientHello."""
        config = self._config
        context: tls.Context
        if not self._client:
            context = ServerContext(self._shared, self._alpns)
        else:
            context = tls.Context(
                is_client=True,
                alpn_protocols=list(self._alpns),
                cipher_suites=[CIPHERS[name] for name in config.ciphers],
                server_name=self._server_name,
                verify_mode=ssl.CERT_NONE,  # Chains are verified here, on both sides alike.
            )
            self._offer_ticket(context)
        context._supported_groups = list(GROUPS)
        context._signature_algorithms = [int(algorithm) for algorithm in SIGNATURES]
        if config.credentials is not None:
            context.certificate = config.credentials.certificate
            context.certificate_chain = list(config.credentials.chain)
            context.certificate_private_key = config.credentials.key
        context.handshake_extensions = [(TRANSPORT_PARAMETERS, params)]
        context.update_traffic_key_cb = self._on_secret
        context.alpn_cb = self._on_alpn
        own = FLIGHT_BYTES + len(params) + len(self._shared.certificate_message)
        self._buffers = {
            tls.Epoch.INITIAL: Buffer(capacity=FLIGHT_BYTES + len(params)),
            tls.Epoch.HANDSHAKE: Buffer(capacity=own),
            tls.Epoch.ONE_RTT: Buffer(capacity=64),  # Never written; aioquic asks for it.
        }
        self._tls = context
        if self._client:
            self._guarded(lambda: self._begin(context))

    def _begin(self, context: tls.Context) -> None:
        context.handle_message(b"", self._buffers)
        self._early = self._early and self._offered is not None and bool(self._secrets)
        if self._early and self._offered is not None:
            cast(EarlySink, self._sink).early_params(self._offered.params)

    def receive(self, level: Level, data: bytes) -> None:
        """CRYPTO bytes in order: take whole messages, one after the other."""
        if not self._over:
            self._guarded(lambda: self._receive(level, data))

    def end(self) -> None:
        """See Handshake."""
        self._over = True
        self._release()

    @property
    def unconfirmed(self) -> Verdict | None:
        """The verdict that whoever gives the connection out has yet to confirm (see Shared)."""
        verdict = self._verdict
        return verdict if verdict is not None and not verdict.confirmed and not self._shared.confirms else None

    @property
    def chain(self) -> tuple[bytes, ...]:
        """What the peer showed to us as server, leaf first; kept while its verdict is `unconfirmed`."""
        return self._chain

    # ---- the state machine around the context ----

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step and send what it produced; any failure becomes one `fail` and nothing else is ever
        sent."""
        try:
            step()
            self._flush()
        except HandshakeAbort as abort:
            self._fail(abort.code, abort.reason)
        except tls.Alert as alert:
            number = int(alert.description)
            text = str(alert) or TLS_ALERTS.get(number, "").replace("_", " ")
            if number == Alert.NO_APPLICATION_PROTOCOL:
                text = f"no application protocol in common; spoken here: {', '.join(self._alpns)}"
            self._fail(CRYPTO_ERROR + number, text)
        except BAD_CERTIFICATE_ERRORS as error:
            self._fail(CRYPTO_ERROR + Alert.BAD_CERTIFICATE, f"the certificate cannot be parsed: {error}")
        except (BufferReadError, UnicodeDecodeError, AssertionError, ValueError) as error:
            # What the context's parser throws on malformed messages.
            log.debug("malformed TLS message: %r", error)
            self._fail(CRYPTO_ERROR + Alert.DECODE_ERROR, "malformed TLS message")
        except UnsupportedAlgorithm as error:
            self._fail(
                0x100 + Alert.UNSUPPORTED_CERTIFICATE, f"unsupported algorithm in a certificate: {error}"
            )
        except Exception:
            log.exception("the TLS handshake met an unexpected error")
            self._fail(CRYPTO_ERROR + Alert.INTERNAL_ERROR, "internal error in the TLS handshake")

    def _fail(self, code: int, reason: str) -> None:
        self._over = True
        self._release()
        self._sink.fail(code, reason)

    def _release(self) -> None:
        self._tls = None
        self._buffers = {}
        self._secrets = []
        self._partial = bytearray()
        if self._held is not None:
            self._held.cancel()

    def _hold(self, waiting: Awaitable[None]) -> None:
        self._held = held = asyncio.ensure_future(waiting)
        held.add_done_callback(self._on_confirmed)

    def _on_confirmed(self, held: asyncio.Future[None]) -> None:
        self._held = None
        if not held.cancelled() and not self._over:
            self._guarded(lambda: self._go_on(held))
        elif not held.cancelled():
            held.exception()  # Nobody is left to be told.

    def _go_on(self, held: asyncio.Future[None]) -> None:
        held.result()
        self._receive(Level.HANDSHAKE, b"")

    def _expected_level(self) -> Level:
        if self._tls is None or self._tls.state in LAST_STATES:
            return Level.ONE_RTT
        return Level.INITIAL if self._tls.state in FIRST_STATES else Level.HANDSHAKE

    def _receive(self, level: Level, data: bytes) -> None:
        if level != self._expected_level():
            raise HandshakeAbort(
                TransportError.PROTOCOL_VIOLATION,
                f"TLS data at level {level.name} while {self._expected_level().name} is read",
            )
        partial = self._partial
        partial += data
        if self._held is not None and len(partial) > MAX_MESSAGE_BYTES:
            raise HandshakeAbort(TransportError.CRYPTO_BUFFER_EXCEEDED, "too much while a verdict is awaited")
        while len(partial) >= 4 and self._held is None:
            length = 4 + int.from_bytes(partial[1:4], "big")
            if length > MAX_MESSAGE_BYTES:
                raise HandshakeAbort(
                    TransportError.CRYPTO_BUFFER_EXCEEDED,
                    f"TLS message of {length} bytes; {MAX_MESSAGE_BYTES} are taken",
                )
            if len(partial) < length:
                break
            message = bytes(partial[:length])
            del partial[:length]
            self._message(message)
            if partial and self._expected_level() != level:
                raise HandshakeAbort(
                    TransportError.PROTOCOL_VIOLATION, "TLS data reaches across a change of keys"
                )

    def _message(self, message: bytes) -> None:
        context = self._tls
        if context is None:
            self._post_handshake(message)
            return
        if isinstance(context, ServerContext):
            context.handle(message, self._buffers)
        else:
            context.handle_message(message, self._buffers)
        if context.received_extensions is not None and not self._params_given:
            self._give_params(context)
        if not self._checked and context.state in FINISHED_STATES:
            self._check_peer(context)
            self._checked = True
        if context.state in LAST_STATES:
            self._shared.check(self._identity)  # What was revoked since it was proved, or resumed, counts still.
        self._flush()
        if context.state in LAST_STATES:
            alpn = context.alpn_negotiated
            assert alpn is not None
            ticket = self._end(context)
            self._release()
            self._sink.complete(alpn, self._identity)
            if ticket:
                self._sink.crypto(Level.ONE_RTT, ticket)

    def _end(self, context: tls.Context) -> bytes:
        """What resumption needs of a handshake that is complete: a client remembers the secret, a server
        gives a ticket."""
        if isinstance(context, ServerContext):
            return context.ticket(self._verdict)
        schedule = context.key_schedule
        if self._shared.client_tickets is not None and schedule is not None:
            master = schedule.derive_secret(b"res master")
            self._master = (schedule.cipher_suite, context.alpn_negotiated or "", master)
        return b""

    def _offer_ticket(self, context: tls.Context) -> None:
        tickets = self._shared.client_tickets
        if tickets is None:
            return
        context.new_session_ticket_cb = lambda ticket: None  # Says in ClientHello that tickets are welcome.
        suites = tuple(int(CIPHERS[name]) for name in self._config.ciphers)
        self._offered = ticket = tickets.take(self._server_name or "", self._alpns, suites)
        if ticket is not None:
            age = self._shared.clock() - ticket.received_at
            context.session_ticket = tls.SessionTicket(
                age_add=ticket.age_add,
                cipher_suite=tls.CipherSuite(ticket.session.cipher),
                not_valid_after=LATEST,  # Our own clock has decided; aioquic's tells the ticket's age only.
                not_valid_before=tls.utcnow() - datetime.timedelta(seconds=age),
                resumption_secret=ticket.session.secret,
                server_name=self._server_name or "",
                ticket=ticket.ticket,
                max_early_data_size=messages.EARLY_DATA_SIZE if self._may_be_early(ticket) else None,
            )

    def _may_be_early(self, ticket: Ticket) -> bool:
        permitted = ticket.session.alpn in self._config.early_alpns
        return self._early and permitted and ticket.session.early and bool(ticket.params)

    def _keep_ticket(self, new: tls.NewSessionTicket) -> None:
        tickets, master = self._shared.client_tickets, self._master
        if tickets is None or master is None or not new.ticket or not new.ticket_lifetime:
            return
        suite, alpn, secret = master
        psk = resumption_secret(HASHES[suite], secret, new.ticket_nonce)
        before = self._offered.session if self.resumed and self._offered else None
        session = new_session(self._shared, psk, suite, alpn, self._verdict, before)
        now = self._shared.clock()
        ends = now + min(new.ticket_lifetime, MAX_TICKET_LIFETIME)
        early = new.max_early_data_size is not None
        session = msgspec.structs.replace(session, early=early)
        kept = Ticket(new.ticket, new.ticket_age_add, now, ends, session, self._params if early else b"")
        tickets.put(self._server_name or "", self._alpns, kept)

    def _post_handshake(self, message: bytes) -> None:
        """RFC 9001 sections 4.4 and 6: only a server's NewSessionTicket may follow."""
        kind = message[0]
        if kind == NEW_SESSION_TICKET and self._client:
            new = tls.pull_new_session_ticket(Buffer(data=message))
            self._tickets += 1
            if self._tickets > MAX_TICKETS:
                raise HandshakeAbort(
                    TransportError.PROTOCOL_VIOLATION, f"more than {MAX_TICKETS} session tickets"
                )
            if new.max_early_data_size not in (None, messages.EARLY_DATA_SIZE):
                raise HandshakeAbort(  # RFC 9001 section 4.6.1.
                    TransportError.PROTOCOL_VIOLATION, "a session ticket that limits its early data"
                )
            self._keep_ticket(new)
            return
        if kind == CERTIFICATE_REQUEST and self._client:
            raise HandshakeAbort(
                TransportError.PROTOCOL_VIOLATION, "client authentication after the handshake"
            )
        what = "TLS KeyUpdate (QUIC has its own)" if kind == KEY_UPDATE else f"TLS message {kind}"
        raise HandshakeAbort.alert(Alert.UNEXPECTED_MESSAGE, f"{what} after the handshake")

    def _give_params(self, context: tls.Context) -> None:
        if context.legacy_session_id:
            # RFC 9001 section 8.4: middlebox compatibility mode does not exist in QUIC.
            raise HandshakeAbort(TransportError.PROTOCOL_VIOLATION, "legacy_session_id is not empty")
        found = [value for kind, value in context.received_extensions or () if kind == TRANSPORT_PARAMETERS]
        if len(found) != 1:
            what = "no transport parameters" if not found else "transport parameters twice"
            raise HandshakeAbort.alert(Alert.MISSING_EXTENSION, f"the peer's TLS handshake carries {what}")
        if (
            self._early
            and self._offered is not None
            and context.alpn_negotiated != self._offered.session.alpn
        ):
            # RFC 8446 section 4.2.10: what was meant for one protocol must not be sent again in another.
            raise HandshakeAbort.alert(
                Alert.NO_APPLICATION_PROTOCOL,
                f"early data was for {self._offered.session.alpn}, not {context.alpn_negotiated}",
            )
        self._params = found[0]
        self._params_given = True

    def _check_peer(self, context: tls.Context) -> None:
        """The peer has proved that it owns its certificate's key (or sent none): does it satisfy the ALPN's
        policy?"""
        alpn = context.alpn_negotiated or ""
        policy = ALPN_POLICIES[alpn]
        if self._client and context.early_data_accepted and not (self._early and context.session_resumed):
            raise HandshakeAbort.alert(Alert.ILLEGAL_PARAMETER, "early data was taken that was not offered")
        if context.session_resumed:
            self._check_resumed(context, alpn)
            return
        server = isinstance(context, ServerContext)
        chain = context.chain_der if isinstance(context, ServerContext) else _peer_chain(context)
        if not chain:
            if policy.mutual:
                raise HandshakeAbort.alert(
                    Alert.CERTIFICATE_REQUIRED, f"{alpn} needs a client certificate and none was sent"
                )
            return
        if not server and policy.mutual and context._certificate_request is None:
            raise HandshakeAbort.alert(
                Alert.HANDSHAKE_FAILURE, f"the server did not ask for our certificate; {alpn} is mutual"
            )
        self._verdict = self._shared.verdict(chain, None if server else self._server_name or "")
        self._identity = self._verdict.identity
        waiting = self._shared.confirm(self._verdict) if self._shared.confirms else None
        if waiting is not None:
            self._hold(waiting)
        elif self.unconfirmed is not None:
            self._chain = tuple(chain)

    def _check_resumed(self, context: tls.Context, alpn: str) -> None:
        """A resumed session rests on what was proved before, and on nothing more: same protocol, certificates
        still valid."""
        server = isinstance(context, ServerContext)
        session = context.session if isinstance(context, ServerContext) else None
        if not server and self._offered is not None:
            session = self._offered.session
        if session is None or session.alpn != alpn:
            raise HandshakeAbort.alert(Alert.HANDSHAKE_FAILURE, "a session of another protocol was resumed")
        if self._shared.clock() > session.valid_until:
            raise HandshakeAbort.alert(
                Alert.CERTIFICATE_EXPIRED, "the certificate that the resumed session rests on has expired"
            )
        if ALPN_POLICIES[alpn].mutual and session.identity is None:
            raise HandshakeAbort.alert(
                Alert.CERTIFICATE_REQUIRED, f"{alpn} needs an identity and the resumed session has none"
            )
        self.resumed = True
        self._identity = session.identity

    # ---- the context's callbacks and output ----

    def _on_alpn(self, alpn: str | None) -> None:
        # Called before the server's flight is written, so the policy can still decide about
        # CertificateRequest.
        if not self._client and self._tls is not None:
            self._tls._request_client_certificate = ALPN_POLICIES[alpn or ""].mutual

    def _on_secret(
        self, direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes
    ) -> None:
        self._secrets.append((direction, epoch, suite, secret))
        key_log, context = self._config.key_log, self._tls
        if key_log is not None and context is not None and context.client_random is not None:
            from_client = self._client == (direction is tls.Direction.ENCRYPT)
            label = KEY_LOG_LABELS.get((epoch, from_client))
            if label is not None:
                key_log(context.client_random, label, secret)

    def _flush(self) -> None:
        buffers = self._buffers
        if not buffers:
            return
        context = self._tls
        if not self._client and context is not None and context.early_data_accepted and not self._params_sent:
            # The engine holds a client's early packets back until it has these, or Handshake keys without.
            self._params_sent = True
            self._sink.peer_params(self._params)
            cast(EarlySink, self._sink).early_accepted(context.alpn_negotiated or "", self._identity)
            self._give_secrets(Level.ZERO_RTT)
        self._flush_buffer(Level.INITIAL, buffers[tls.Epoch.INITIAL])
        if self._early and self._secrets:
            self._give_secrets(Level.ZERO_RTT)
        if self._params_given and not self._params_sent:
            self._params_sent = True
            if self._early and context is not None:
                cast(EarlySink, self._sink).early_answer(context.early_data_accepted)
            self._sink.peer_params(self._params)
        if self._secrets:
            self._give_secrets(Level.HANDSHAKE)
        self._flush_buffer(Level.HANDSHAKE, buffers[tls.Epoch.HANDSHAKE])
        # A client's Finished goes out at the Handshake level before 1-RTT keys are named: hence last.
        if self._secrets:
            self._give_secrets(Level.ONE_RTT)

    def _flush_buffer(self, level: Level, buffer: Buffer) -> None:
        if buffer.tell():
            self._sink.crypto(level, buffer.data)
            buffer.seek(0)

    def _give_secrets(self, level: Level) -> None:
        left = []
        for entry in self._secrets:
            direction, of, suite, secret = entry
            if LEVELS[of] is level:
                send = direction is tls.Direction.ENCRYPT
                self._sink.secret(level, send=send, aead=AEADS[suite], secret=secret)
            else:
                left.append(entry)
        self._secrets = left


def _peer_chain(context: tls.Context) -> list[bytes]:
    """The chain a server showed to aioquic's client, leaf first."""
    leaf = context._peer_certificate
    chain = [leaf, *context._peer_certificate_chain] if leaf is not None else []
    return [certificate.public_bytes(Encoding.DER) for certificate in chain]

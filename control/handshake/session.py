"""One connection's TLS 1.3 handshake: `aioquic.tls.Context` fed with CRYPTO bytes (RFC 9001 section 4, RFC
8446).

This is the only file that touches aioquic's private names; the version is pinned for that reason. What the
context does not do is done here:

- TLS messages are put together by encryption level, and bytes at a level that is not the one TLS reads from
  are refused (RFC 9001 section 4.1.3), as are messages that reach across a change of keys;
- the peer's certificate chain is verified on both sides by `control.handshake.verify` as soon as its
  CertificateVerify is good, so before Finished is accepted, and what an ALPN demands is enforced;
- whatever the context throws on hostile bytes becomes a TLS alert.

Output leaves in the order the engine needs: CRYPTO of a level after that level's secret, the peer's transport
parameters before 1-RTT secrets, completion last.
"""

from __future__ import annotations

import datetime
import logging
import ssl
from collections.abc import Callable, Sequence

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from control.handshake.alerts import CRYPTO_ERROR, Alert, HandshakeAbort
from control.handshake.credentials import node_id
from control.handshake.policy import ALPN_POLICIES, CIPHERS, HandshakeConfig
from control.handshake.verdicts import Verdict, VerdictCache, validity, verdict_key
from control.handshake.verify import subject_of, verify_chain
from dataplane.address import Address
from dataplane.errors import TLS_ALERTS
from dataplane.handshake import Aead, HandshakeSink, Level, PeerIdentity, Target
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
    (tls.Epoch.HANDSHAKE, True): "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    (tls.Epoch.HANDSHAKE, False): "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    (tls.Epoch.ONE_RTT, True): "CLIENT_TRAFFIC_SECRET_0",
    (tls.Epoch.ONE_RTT, False): "SERVER_TRAFFIC_SECRET_0",
}
# What `cryptography` raises, beside ValueError, for certificates that are not what X.509 says.
BAD_CERTIFICATE_ERRORS = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
OUTPUT_ORDER = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT)
FIRST_STATES = (
    tls.State.CLIENT_HANDSHAKE_START,
    tls.State.CLIENT_EXPECT_SERVER_HELLO,
    tls.State.SERVER_EXPECT_CLIENT_HELLO,
)
LAST_STATES = (tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE)
FINISHED_STATES = (tls.State.CLIENT_EXPECT_FINISHED, tls.State.SERVER_EXPECT_FINISHED, *LAST_STATES)


class TlsSession:
    """A `dataplane.handshake.Handshake`; see the module's text."""

    def __init__(
        self,
        config: HandshakeConfig,
        sink: HandshakeSink,
        target: Target | None,
        verdicts: VerdictCache | None = None,
    ) -> None:
        self._config = config
        self._verdicts = verdicts if verdicts is not None else VerdictCache()
        self._sink = sink
        self._client = target is not None
        self._server_name = target.server_name if target else None
        self._alpns = (target.alpns if target else ()) or config.alpns
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
        context = tls.Context(
            is_client=self._client,
            alpn_protocols=list(self._alpns),
            cipher_suites=[CIPHERS[name] for name in config.ciphers],
            server_name=self._server_name,
            verify_mode=ssl.CERT_NONE,  # Chains are verified here, on both sides alike.
        )
        context._supported_groups = list(GROUPS)
        context._signature_algorithms = [int(algorithm) for algorithm in SIGNATURES]
        if config.credentials is not None:
            context.certificate = config.credentials.certificate
            context.certificate_chain = list(config.credentials.chain)
            context.certificate_private_key = config.credentials.key
        context.handshake_extensions = [(TRANSPORT_PARAMETERS, params)]
        context.update_traffic_key_cb = self._on_secret
        context.alpn_cb = self._on_alpn
        own = FLIGHT_BYTES + len(params) + (config.credentials.encoded_bytes if config.credentials else 0)
        self._buffers = {
            tls.Epoch.INITIAL: Buffer(capacity=FLIGHT_BYTES + len(params)),
            tls.Epoch.HANDSHAKE: Buffer(capacity=own),
            tls.Epoch.ONE_RTT: Buffer(capacity=64),
        }
        self._tls = context
        if self._client:
            self._guarded(lambda: context.handle_message(b"", self._buffers))

    def receive(self, level: Level, data: bytes) -> None:
        """CRYPTO bytes in order: take whole messages, one after the other."""
        if not self._over:
            self._guarded(lambda: self._receive(level, data))

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
        while len(partial) >= 4:
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
        context.handle_message(message, self._buffers)
        if context.received_extensions is not None and not self._params_given:
            self._give_params(context)
        if not self._checked and context.state in FINISHED_STATES:
            self._check_peer(context)
            self._checked = True
        self._flush()
        if context.state in LAST_STATES:
            alpn = context.alpn_negotiated
            assert alpn is not None
            self._release()
            self._sink.complete(alpn, self._identity)

    def _post_handshake(self, message: bytes) -> None:
        """RFC 9001 sections 4.4 and 6: only a server's NewSessionTicket may follow, and we resume no sessions
        yet."""
        kind = message[0]
        if kind == NEW_SESSION_TICKET and self._client:
            tls.pull_new_session_ticket(Buffer(data=message))
            self._tickets += 1
            if self._tickets > MAX_TICKETS:
                raise HandshakeAbort(
                    TransportError.PROTOCOL_VIOLATION, f"more than {MAX_TICKETS} session tickets"
                )
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
        self._params = found[0]
        self._params_given = True

    def _check_peer(self, context: tls.Context) -> None:
        """The peer has proved that it owns its certificate's key (or sent none): does it satisfy the ALPN's
        policy?"""
        policy = ALPN_POLICIES[context.alpn_negotiated or ""]
        certificate = context._peer_certificate
        if certificate is None:
            if policy.mutual:
                raise HandshakeAbort.alert(
                    Alert.CERTIFICATE_REQUIRED,
                    f"{context.alpn_negotiated} needs a client certificate and none was sent",
                )
            return
        if self._client and policy.mutual and context._certificate_request is None:
            raise HandshakeAbort.alert(
                Alert.HANDSHAKE_FAILURE,
                f"the server did not ask for our certificate; {context.alpn_negotiated} is mutual",
            )
        self._identity = self._identify(certificate, context._peer_certificate_chain)

    def _identify(self, leaf: x509.Certificate, chain: Sequence[x509.Certificate]) -> PeerIdentity:
        """Who the peer is, by a chain that is good; the verdict of a chain seen before is remembered."""
        trust = self._config.trust
        encoded = [certificate.public_bytes(Encoding.DER) for certificate in (leaf, *chain)]
        if self._config.insecure:
            return PeerIdentity(node_id(leaf), subject_of(leaf), encoded[0])
        if trust is None:
            raise HandshakeAbort.alert(Alert.UNKNOWN_CA, "no certificate authority is trusted here")
        now = datetime.datetime.now(datetime.UTC)
        name = (self._server_name or "") if self._client else None
        key = verdict_key(encoded, name)
        identity = self._verdicts.get(key, now)
        if identity is None:
            verify_chain(leaf, chain, trust, server_name=name, now=now)
            identity = PeerIdentity(node_id(leaf), subject_of(leaf), encoded[0])
            self._verdicts.put(key, Verdict(identity, *validity((leaf, *chain), trust, now)))
        return identity

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
        if self._tls is None:
            return
        for epoch in OUTPUT_ORDER:
            if epoch is tls.Epoch.HANDSHAKE and self._params_given and not self._params_sent:
                self._params_sent = True
                self._sink.peer_params(self._params)
            if epoch is not tls.Epoch.ONE_RTT:
                self._give_secrets(epoch)
            buffer = self._buffers[epoch]
            if buffer.tell():
                self._sink.crypto(LEVELS[epoch], buffer.data)
                buffer.seek(0)
        # A client's Finished goes out at the Handshake level before 1-RTT keys are named: hence last.
        self._give_secrets(tls.Epoch.ONE_RTT)

    def _give_secrets(self, epoch: tls.Epoch) -> None:
        for direction, of, suite, secret in self._secrets:
            if of is epoch:
                send = direction is tls.Direction.ENCRYPT
                self._sink.secret(LEVELS[epoch], send=send, aead=AEADS[suite], secret=secret)
        self._secrets = [entry for entry in self._secrets if entry[1] is not epoch]


class TlsFactory:
    """A `dataplane.handshake.HandshakeFactory` for one configuration."""

    def __init__(self, config: HandshakeConfig) -> None:
        self.config = config
        self.verdicts = VerdictCache()

    def client(self, sink: HandshakeSink, target: Target) -> TlsSession:
        """A handshake as client."""
        return TlsSession(self.config, sink, target, self.verdicts)

    def server(self, sink: HandshakeSink, peer: Address) -> TlsSession:
        """A handshake as server; the client's address plays no part yet."""
        return TlsSession(self.config, sink, None, self.verdicts)

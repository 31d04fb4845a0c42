"""TLS on the server's side: `aioquic.tls.Context` with its costly steps replaced (RFC 8446 section 4).

With `session` the only file that touches aioquic's private names; the version is pinned for that reason.
"""

from __future__ import annotations

import hmac
import os
import ssl
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import msgspec
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from control.handshake import messages
from control.handshake.policy import CIPHERS
from control.handshake.schedule import KeySchedule
from control.handshake.shared import Shared, new_session, resumption_secret
from control.handshake.tickets import Session
from control.handshake.verdicts import Verdict

P256 = ec.SECP256R1()


@lru_cache(maxsize=16)
def _signing(algorithm: int) -> tuple[Any, ...]:
    """What `sign` and `verify` take beside the data."""
    return tuple(tls.signature_algorithm_params(algorithm))


class ServerContext(tls.Context):
    """aioquic's server with its costly steps replaced: messages are parsed and written as bytes, the key
    schedule is `control.handshake.schedule`, a chain known to be good is not parsed again, and sessions are
    resumed by `control.handshake.tickets`. States and order are the base class's."""

    def __init__(self, shared: Shared, alpns: tuple[str, ...]) -> None:
        config = shared.config
        super().__init__(
            is_client=False,
            alpn_protocols=list(alpns),
            cipher_suites=[CIPHERS[name] for name in config.ciphers],
            verify_mode=ssl.CERT_NONE,
        )
        self._shared = shared
        self.chain_der: list[bytes] = []
        self.session: Session | None = None  # The one that is resumed.
        self.proved_by: Verdict | None = None
        self._data = b""  # The message in hand.
        self._tickets_wanted = False
        self._verify_data = b""
        self._next_secret = b""

    @property
    def _schedule(self) -> KeySchedule:
        return cast(KeySchedule, self.key_schedule)

    def handle(self, message: bytes, buffers: dict[tls.Epoch, Buffer]) -> None:
        """One whole message."""
        self._data = message
        self._handle_reassembled_message(message[0], Buffer(data=message), buffers)

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        data = self._data
        input_buf.seek(len(data))
        hello = messages.client_hello(data)
        suite = tls.negotiate(
            self._cipher_suites, hello.cipher_suites, tls.AlertHandshakeFailure("No supported cipher suite")
        )
        if tls.CompressionMethod.NULL not in hello.legacy_compression_methods:
            raise tls.AlertHandshakeFailure("No supported compression method")
        algorithm = tls.negotiate(
            self._signature_algorithms_for_private_key(),
            hello.signature_algorithms,
            tls.AlertHandshakeFailure("No supported signature algorithm"),
        )
        tls.negotiate(
            self._supported_versions,
            hello.supported_versions,
            tls.AlertProtocolVersion("No supported protocol version"),
        )
        if hello.key_share is None:
            raise tls.AlertMissingExtension("ClientHello has no key share")
        alpn = tls.negotiate(
            self._alpn_protocols or [],
            hello.alpn_protocols,
            tls.AlertNoApplicationProtocol("No common ALPN protocols"),
        )
        self.alpn_negotiated = alpn
        self.client_random, server_random = hello.random, os.urandom(messages.RANDOM_BYTES)
        self.legacy_session_id = hello.legacy_session_id
        self.received_extensions = hello.other_extensions
        if self.alpn_cb is not None:
            self.alpn_cb(alpn)
        self._tickets_wanted = tls.PskKeyExchangeMode.PSK_DHE_KE in (hello.psk_key_exchange_modes or ())
        self._begin_schedule(data, hello, suite, alpn)
        schedule = self._schedule
        share, shared_key = self._exchange(hello.key_share)
        first = messages.server_hello(server_random, suite, share, psk=self.session is not None)
        schedule.update_hash(first)
        initial_buf.push_bytes(first)
        schedule.extract(shared_key)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")
        extensions = list(self.handshake_extensions)
        if self.early_data_accepted:
            extensions.append((tls.ExtensionType.EARLY_DATA, b""))
        flight = messages.encrypted_extensions(alpn, extensions)
        asks = self._request_client_certificate and self.session is None
        if self.session is None:
            if asks:
                flight += self._shared.certificate_request
            flight += self._shared.certificate_message
            schedule.update_hash(flight)
            signed = self._sign(algorithm, schedule.certificate_verify_data(tls.SERVER_CONTEXT_STRING))
            schedule.update_hash(signed)
            flight += signed
        else:
            schedule.update_hash(flight)
        last = messages.finished(schedule.finished_verify_data(self._enc_key or b""))
        schedule.update_hash(last)
        handshake_buf.push_bytes(flight + last)
        schedule.extract(None)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.ONE_RTT, b"s ap traffic")
        self._next_secret = schedule.derive_secret(b"c ap traffic")
        if asks:
            self._set_state(tls.State.SERVER_EXPECT_CERTIFICATE)
        else:
            self._server_expect_finished()

    def _begin_schedule(self, data: bytes, hello: tls.ClientHello, suite: tls.CipherSuite, alpn: str) -> None:
        """Early Secret and transcript; with a PSK if the first one offered may be used and its binder is
        right (RFC 8446 section 4.2.11)."""
        tickets, psks = self._shared.server_tickets, hello.pre_shared_key
        session = None
        if tickets is not None and psks is not None and self._tickets_wanted:
            session = tickets.redeem(psks.identities[0][0], alpn, int(suite))
        schedule = KeySchedule(suite)
        self.key_schedule = cast(Any, schedule)
        if session is None or psks is None or tickets is None:
            schedule.extract(None)
            schedule.update_hash(data)
            return
        schedule.extract(session.secret)
        binder_key = schedule.derive_secret(b"res binder")
        covered = len(data) - messages.binders_bytes(psks)
        schedule.update_hash(data[:covered])
        if not hmac.compare_digest(psks.binders[0], schedule.finished_verify_data(binder_key)):
            raise tls.AlertDecryptError("the PSK binder is wrong")
        schedule.update_hash(data[covered:])
        tickets.resumed += 1
        self.session = session
        self._session_resumed = True
        if hello.early_data and self._takes_early_data(session, alpn, *psks.identities[0]):
            self.early_data_accepted = True
            secret = schedule.derive_secret(b"c e traffic")
            self.update_traffic_key_cb(tls.Direction.DECRYPT, tls.Epoch.ZERO_RTT, suite, secret)

    def _takes_early_data(self, session: Session, alpn: str, ticket: bytes, obfuscated_age: int) -> bool:
        """Once for each ticket, and only while it can be told (RFC 8446 section 8). The binder was right."""
        shared = self._shared
        if shared.register is None or not session.early or alpn not in shared.config.early_alpns:
            return False
        age = (obfuscated_age - session.age_add) % (1 << 32) / 1000
        now = time.monotonic()
        return shared.register.take(ticket, now=now, server_age=now - session.issued_at, client_age=age)

    def _exchange(self, shares: Sequence[tuple[int, bytes]]) -> tuple[tuple[int, bytes], bytes]:
        """Our key share and the secret, with the first group offered that is ours too."""
        for group, public in shares:
            try:
                if group == tls.Group.X25519:
                    own = x25519.X25519PrivateKey.generate()
                    secret = own.exchange(x25519.X25519PublicKey.from_public_bytes(public))
                    return (group, own.public_key().public_bytes_raw()), secret
                if group == tls.Group.SECP256R1:
                    peer = ec.EllipticCurvePublicKey.from_encoded_point(P256, public)
                    key = ec.generate_private_key(P256)
                    return tls.encode_public_key(key.public_key()), key.exchange(ec.ECDH(), peer)
            except ValueError:
                raise tls.AlertIllegalParameter("ClientHello has an invalid key share") from None
        raise tls.AlertHandshakeFailure("No supported key share")

    def _sign(self, algorithm: int, data: bytes) -> bytes:
        signature = cast(Any, self.certificate_private_key).sign(data, *_signing(algorithm))
        return messages.certificate_verify(algorithm, signature)

    def _server_expect_finished(self) -> None:
        schedule = self._schedule
        self._verify_data = schedule.finished_verify_data(self._dec_key or b"")
        schedule.update_hash(messages.finished(self._verify_data))  # What will come, or the handshake fails.
        self._set_state(tls.State.SERVER_EXPECT_FINISHED)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        data = self._data
        input_buf.seek(len(data))
        self.chain_der = messages.parse_certificate(data)
        self._schedule.update_hash(data)
        if not self.chain_der:
            self._server_expect_finished()
            return
        known = self._shared.known(self.chain_der, None)
        if known is None:
            self._set_peer_certificate(tls.Certificate(b"", [(der, b"") for der in self.chain_der]))
        self.proved_by = known
        self._set_state(tls.State.SERVER_EXPECT_CERTIFICATE_VERIFY)

    def _server_handle_certificate_verify(self, input_buf: Buffer) -> None:
        known = self.proved_by
        if known is None:
            super()._server_handle_certificate_verify(input_buf)
            return
        verify = tls.pull_certificate_verify(input_buf)
        algorithm = verify.algorithm
        if algorithm not in self._signature_algorithms or algorithm in tls.RSA_PKCS1_SIGNATURE_ALGORITHMS:
            raise tls.AlertIllegalParameter("CertificateVerify has a signature algorithm that is not for it")
        if not isinstance(known.public_key, tls.signature_algorithm_key_type(algorithm)):
            raise tls.AlertDecryptError("CertificateVerify does not match the certificate's key")
        signed = self._schedule.certificate_verify_data(tls.CLIENT_CONTEXT_STRING)
        try:
            cast(Any, known.public_key).verify(verify.signature, signed, *_signing(algorithm))
        except InvalidSignature:
            raise tls.AlertDecryptError from None
        self._schedule.update_hash(self._data)
        self._server_expect_finished()

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        if not hmac.compare_digest(tls.pull_finished(input_buf).verify_data, self._verify_data):
            raise tls.AlertDecryptError
        self._dec_key = self._next_secret
        self.update_traffic_key_cb(
            tls.Direction.DECRYPT, tls.Epoch.ONE_RTT, self._schedule.cipher_suite, self._next_secret
        )
        self._set_state(tls.State.SERVER_POST_HANDSHAKE)

    def ticket(self, verdict: Verdict | None) -> bytes:
        """A NewSessionTicket for the session that is complete; empty: none is given."""
        tickets = self._shared.server_tickets
        if tickets is None or not self._tickets_wanted:
            return b""
        schedule, alpn = self._schedule, self.alpn_negotiated or ""
        secret = resumption_secret(schedule.name, schedule.derive_secret(b"res master"), b"")
        session = new_session(self._shared, secret, schedule.cipher_suite, alpn, verdict, self.session)
        age_add = int.from_bytes(os.urandom(4), "big")
        early = alpn in self._shared.config.early_alpns
        now = self._shared.clock()
        issued_at = time.monotonic()  # What the register's memory is measured by; no ticket outlives us.
        session = msgspec.structs.replace(session, issued_at=issued_at, age_add=age_add, early=early)
        sealed = tickets.issue(session)
        if sealed is None:
            return b""
        lifetime = max(1, int(session.proved_at + tickets.lifetime - now))
        return messages.new_session_ticket(lifetime, age_add, sealed, early=early)

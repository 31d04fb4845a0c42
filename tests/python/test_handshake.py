"""The TLS seam: order of its output, mutual authentication, each way to fail with its alert, and hostile
bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, Profile, Trust
from dataplane.errors import ConfigError
from dataplane.handshake import Aead, Level
from dataplane.tables import TransportError
from tests.python.conftest import Pki
from tests.python.loopback import CLIENT_PARAMS, SERVER_PARAMS, Loopback

UNEXPECTED_MESSAGE, BAD_CERTIFICATE, UNSUPPORTED_CERTIFICATE, EXPIRED, UNKNOWN_CA = 10, 42, 43, 45, 48
DECODE_ERROR, DECRYPT_ERROR, MISSING_EXTENSION, CERTIFICATE_REQUIRED, NO_ALPN = 50, 51, 109, 116, 120


def test_mutual_handshake(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server).run()
    client, server = pair.client, pair.server
    assert (client.alpn, server.alpn) == ("stoq/1", "stoq/1")
    assert client.identity is not None and client.identity.node_id == pki.b.node_id
    assert server.identity is not None and server.identity.node_id == pki.a.node_id
    assert (client.params, server.params) == (SERVER_PARAMS, CLIENT_PARAMS)
    for level in (Level.HANDSHAKE, Level.ONE_RTT):
        assert client.secrets[(level, True)] == server.secrets[(level, False)]
        assert client.secrets[(level, False)] == server.secrets[(level, True)]
    assert client.secrets[(Level.ONE_RTT, True)] != client.secrets[(Level.ONE_RTT, False)]


def test_output_comes_in_the_order_the_engine_needs(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server).run()
    for sink in (pair.client, pair.server):
        calls = sink.calls
        assert calls[0] == "crypto INITIAL"
        assert calls[-1] == "complete"
        assert calls.index("secret HANDSHAKE send") < calls.index("crypto HANDSHAKE")
        assert calls.index("params") < calls.index("secret ONE_RTT send")
        assert calls.index("params") < calls.index("secret ONE_RTT receive")


def test_messages_in_single_bytes(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server, piece=1).run()
    assert (pair.client.alpn, pair.server.alpn) == ("stoq/1", "stoq/1")


@pytest.mark.parametrize(
    ("cipher", "aead", "secret_bytes"),
    [
        ("aes128", Aead.AES_128_GCM, 32),
        ("aes256", Aead.AES_256_GCM, 48),
        ("chacha20", Aead.CHACHA20_POLY1305, 32),
    ],
)
def test_cipher_choice(pki: Pki, cipher: str, aead: Aead, secret_bytes: int) -> None:
    pair = Loopback(replace(pki.client, ciphers=(cipher,)), pki.server).run()
    chosen, secret = pair.server.secrets[(Level.ONE_RTT, True)]
    assert (chosen, len(secret)) == (aead, secret_bytes)
    assert pair.client.alpn == "stoq/1"


def test_no_cipher_in_common(pki: Pki) -> None:
    pair = Loopback(
        replace(pki.client, ciphers=("chacha20",)), replace(pki.server, ciphers=("aes128",))
    ).run()
    assert pair.server.alert == 40


def test_intermediates_and_long_chains(pki: Pki) -> None:
    deep = make_authority(chain_length=9)
    config = HandshakeConfig(issue(deep, "deep"), deep.trust)
    pair = Loopback(config, config).run()
    assert pair.server.alpn == "stoq/1"


def check_failure(sink_alert: int | None, failure: tuple[int, str] | None, alert: int, text: str) -> None:
    assert sink_alert == alert, failure
    assert failure is not None and text in failure[1]


def test_client_refuses_a_server_of_another_ca(pki: Pki) -> None:
    other = make_authority(name="another CA")
    pair = Loopback(HandshakeConfig(pki.a, other.trust), pki.server).run()
    check_failure(
        pair.client.alert, pair.client.failure, UNKNOWN_CA, "not trusted here (trusted: 'another CA')"
    )
    assert pair.server.alpn is None


def test_server_refuses_a_client_of_another_ca(pki: Pki) -> None:
    other = make_authority(name="another CA")
    trust_both = Trust((*pki.authority.trust.anchors, *other.trust.anchors))
    pair = Loopback(HandshakeConfig(issue(other, "stranger"), trust_both), pki.server).run()
    check_failure(pair.server.alert, pair.server.failure, UNKNOWN_CA, "'another CA'")
    assert pair.server.alpn is None and pair.server.identity is None


def test_a_ca_of_the_same_name_with_another_key_is_unknown(pki: Pki) -> None:
    impostor = make_authority()
    pair = Loopback(HandshakeConfig(issue(impostor, "node-a"), pki.authority.trust), pki.server).run()
    assert pair.server.alert == UNKNOWN_CA


@pytest.mark.parametrize("side", ["client", "server"])
def test_expired_certificates(pki: Pki, side: str) -> None:
    old = issue(pki.authority, "old-node", days=-2)
    client = replace(pki.client, credentials=old) if side == "client" else pki.client
    server = replace(pki.server, credentials=old) if side == "server" else pki.server
    pair = Loopback(client, server).run()
    refuser = pair.server if side == "client" else pair.client
    check_failure(refuser.alert, refuser.failure, EXPIRED, "certificate of old-node expired on")


def test_expired_authority(pki: Pki) -> None:
    old = make_authority(days=-1)
    config = HandshakeConfig(issue(old, "young", days=30), old.trust)
    pair = Loopback(config, config).run()
    assert pair.client.alert == EXPIRED


def test_no_client_certificate(pki: Pki) -> None:
    pair = Loopback(replace(pki.client, credentials=None), pki.server).run()
    check_failure(pair.server.alert, pair.server.failure, CERTIFICATE_REQUIRED, "needs a client certificate")
    assert pair.server.alpn is None


def test_wrong_name(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server, server_name="fd00::99").run()
    check_failure(pair.client.alert, pair.client.failure, BAD_CERTIFICATE, "not for fd00::99")


def test_names_by_dns(pki: Pki) -> None:
    assert Loopback(pki.client, pki.server, server_name="node-b").run().client.alpn == "stoq/1"
    pair = Loopback(pki.client, pki.server, server_name="node-c").run()
    assert pair.client.alert == BAD_CERTIFICATE


def test_wrong_purpose(pki: Pki) -> None:
    server_only = issue(pki.authority, "server-only", usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    pair = Loopback(replace(pki.client, credentials=server_only), pki.server).run()
    check_failure(pair.server.alert, pair.server.failure, UNSUPPORTED_CERTIFICATE, "not for use as a client")


def test_wrong_alpn(pki: Pki) -> None:
    hq = HandshakeConfig(pki.a, pki.authority.trust, alpns=("hq-interop",), profile=Profile.TEST)
    pair = Loopback(hq, pki.server).run()
    check_failure(pair.server.alert, pair.server.failure, NO_ALPN, "stoq/1")
    assert not pair.server.secrets, "nothing is sent or keyed before the protocol is agreed"


def test_test_profile_needs_no_client_certificate(pki: Pki) -> None:
    server = HandshakeConfig(pki.b, pki.authority.trust, alpns=("hq-interop", "stoq/1"), profile=Profile.TEST)
    stranger = HandshakeConfig(None, pki.authority.trust, alpns=("hq-interop",), profile=Profile.TEST)
    pair = Loopback(stranger, server).run()
    assert pair.server.alpn == "hq-interop" and pair.server.identity is None
    # The same server still demands one on stoq/1.
    pair = Loopback(replace(pki.client, credentials=None), server).run()
    assert pair.server.alert == CERTIFICATE_REQUIRED


def test_a_client_of_stoq_insists_on_being_asked(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Loopback(pki.client, pki.server)
    context = pair.server_session._tls
    assert context is not None
    # A server that asks for no certificate and wants none.
    context.alpn_cb = lambda alpn: None
    monkeypatch.setattr(pair.server_session, "_check_peer", lambda context: None)
    pair.run()
    check_failure(pair.client.alert, pair.client.failure, 40, "did not ask for our certificate")


def test_configurations_that_are_refused(pki: Pki) -> None:
    trust = pki.authority.trust
    with pytest.raises(ConfigError, match="--profile test"):
        HandshakeConfig(pki.a, trust, alpns=("perf",))
    with pytest.raises(ConfigError, match="mutually authenticated"):
        HandshakeConfig(pki.a, None)
    with pytest.raises(ConfigError, match="--insecure"):
        HandshakeConfig(pki.a, trust, profile=Profile.TEST, insecure=True)
    with pytest.raises(ConfigError, match="unknown application protocol"):
        HandshakeConfig(pki.a, trust, alpns=("h3",))


def test_without_trust_nothing_is_trusted(pki: Pki) -> None:
    nobody = HandshakeConfig(None, None, alpns=("hq-interop",), profile=Profile.TEST)
    server = HandshakeConfig(pki.b, None, alpns=("hq-interop",), profile=Profile.TEST)
    assert Loopback(nobody, server).run().client.alert == UNKNOWN_CA
    assert Loopback(replace(nobody, insecure=True), server).run().client.alpn == "hq-interop"


def handshake_message(kind: int, body: bytes = b"") -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


TICKET = handshake_message(4, bytes(8) + b"\0" + b"\0\x01t" + b"\0\0")


def test_session_tickets_are_taken_and_ignored_up_to_a_bound(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server).run()
    for _ in range(64):
        pair.client_session.receive(Level.ONE_RTT, TICKET)
    assert pair.client.failure is None
    pair.client_session.receive(Level.ONE_RTT, TICKET)
    assert pair.client.failure is not None and pair.client.failure[0] == TransportError.PROTOCOL_VIOLATION


@pytest.mark.parametrize("kind", [1, 8, 20, 24])
def test_other_messages_after_the_handshake(pki: Pki, kind: int) -> None:
    pair = Loopback(pki.client, pki.server).run()
    pair.client_session.receive(Level.ONE_RTT, handshake_message(kind))
    pair.server_session.receive(Level.ONE_RTT, handshake_message(kind))
    assert (pair.client.alert, pair.server.alert) == (UNEXPECTED_MESSAGE, UNEXPECTED_MESSAGE)


def test_client_authentication_after_the_handshake(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server).run()
    pair.client_session.receive(Level.ONE_RTT, handshake_message(13, b"\0\0\0"))
    assert pair.client.failure is not None and pair.client.failure[0] == TransportError.PROTOCOL_VIOLATION


def test_a_ticket_for_a_server(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server).run()
    pair.server_session.receive(Level.ONE_RTT, TICKET)
    assert pair.server.alert == UNEXPECTED_MESSAGE


def test_bytes_at_the_wrong_level(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server)
    pair.server_session.receive(Level.HANDSHAKE, handshake_message(20))
    assert pair.server.failure is not None and pair.server.failure[0] == TransportError.PROTOCOL_VIOLATION
    done = Loopback(pki.client, pki.server).run()
    done.client_session.receive(Level.INITIAL, b"\0")
    assert done.client.failure is not None and done.client.failure[0] == TransportError.PROTOCOL_VIOLATION


def test_a_message_across_a_key_change(pki: Pki) -> None:
    extra = handshake_message(8, b"\0\0")
    pair = Loopback(
        pki.client, pki.server, to_client=lambda level, data: data + extra if level is Level.INITIAL else data
    ).run()
    assert pair.client.failure is not None and pair.client.failure[0] == TransportError.PROTOCOL_VIOLATION


def test_a_message_that_is_too_long(pki: Pki) -> None:
    pair = Loopback(pki.client, pki.server)
    pair.server_session.receive(Level.INITIAL, b"\x01\xff\xff\xff" + bytes(100))
    assert pair.server.failure is not None
    assert pair.server.failure[0] == TransportError.CRYPTO_BUFFER_EXCEEDED


def test_missing_transport_parameters(pki: Pki) -> None:
    marker = b"\x00\x39" + len(CLIENT_PARAMS).to_bytes(2, "big") + CLIENT_PARAMS
    renamed = b"\xfe\xed" + marker[2:]
    pair = Loopback(pki.client, pki.server, to_server=lambda level, data: data.replace(marker, renamed)).run()
    assert pair.server.alert == MISSING_EXTENSION


def test_a_session_id_is_a_protocol_violation(pki: Pki) -> None:
    def add_session_id(level: Level, data: bytes) -> bytes:
        if level is not Level.INITIAL:
            return data
        body = data[4:38] + b"\x20" + bytes(32) + data[39:]
        return handshake_message(data[0], body)

    pair = Loopback(pki.client, pki.server, to_server=add_session_id).run()
    assert pair.server.failure is not None and pair.server.failure[0] == TransportError.PROTOCOL_VIOLATION


def test_a_tampered_signature(pki: Pki) -> None:
    def flip_last(level: Level, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if level is Level.HANDSHAKE else data

    pair = Loopback(pki.client, pki.server, to_server=flip_last).run()
    assert pair.server.alert == DECRYPT_ERROR
    assert pair.server.alpn is None


@pytest.mark.parametrize("seed", range(60))
def test_hostile_bytes_end_in_a_failure_and_never_in_an_exception(pki: Pki, seed: int) -> None:
    rng = random.Random(seed)

    def corrupt(level: Level, data: bytes) -> bytes:
        mutable = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            mutable[rng.randrange(len(mutable))] = rng.randrange(256)
        return bytes(mutable) if rng.random() < 0.7 else bytes(mutable[: rng.randrange(len(mutable))])

    side = {"to_server": corrupt} if seed % 2 else {"to_client": corrupt}
    pair = Loopback(pki.client, pki.server, **side).run()  # type: ignore[arg-type]
    assert not (pair.client.alpn and pair.server.alpn), "a changed transcript must not complete on both sides"
    for sink in (pair.client, pair.server):
        if sink.failure is not None:
            assert sink.failure[0] >= 0x100 or sink.failure[0] in (0x0A, 0x0D)
            assert sink.failure[0] != 0x100 + 80, sink.failure
            assert sink.failure[1]


def test_garbage_at_both_ends(pki: Pki) -> None:
    rng = random.Random(1)
    for kind in range(26):
        pair = Loopback(pki.client, pki.server)
        message = handshake_message(kind, rng.randbytes(rng.randrange(200)))
        pair.server_session.receive(Level.INITIAL, message)
        pair.client_session.receive(Level.INITIAL, message)
        assert pair.server.alert in (UNEXPECTED_MESSAGE, DECODE_ERROR, 40, 47), (kind, pair.server.failure)
        assert pair.client.alert in (UNEXPECTED_MESSAGE, DECODE_ERROR, 40, 47), (kind, pair.client.failure)
        # Silence after the failure, whatever comes.
        pair.server_session.receive(Level.INITIAL, message)
        assert pair.server.calls.count("fail") == 1

"""The whole way by the `acme` library, which certbot is made of: account, order, http-01, certificate, end."""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from acme import challenges, client, crypto_util, errors, messages
from acme.standalone import HTTP01RequestHandler, HTTP01Server
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy.jwa import ES256, ES384, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA

from control.trustchain.acme import ValidationConfig
from control.trustchain.acme.encoding import encode
from tests.trustchain.acme.rawclient import raw_client, sign
from tests.trustchain.acme.served import LOOPBACK, Names, Server, World

NAMES = Names({"node-a.stoq.test": ["::1"]})


@contextmanager
def responder() -> Iterator[tuple[int, set[HTTP01RequestHandler.HTTP01Resource]]]:
    """The library's own http-01 server on ::1: its port, and the set of what it answers."""
    resources: set[HTTP01RequestHandler.HTTP01Resource] = set()
    server = HTTP01Server(("::1", 0), resources, ipv6=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.socket.getsockname()[1], resources
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def connect(server: Server, world: World, key: JWK, algorithm: JWASignature) -> client.ClientV2:
    network = client.ClientNetwork(key, alg=algorithm, verify_ssl=str(world.root))  # type: ignore[arg-type]
    return client.ClientV2(client.ClientV2.get_directory(server.directory, network), network)


def answer_all(
    acme: client.ClientV2,
    order: messages.OrderResource,
    resources: set[HTTP01RequestHandler.HTTP01Resource],
    *,
    spoiled: bool = False,
) -> None:
    """Prepare and begin http-01 for every authorization of an order."""
    for authorization in order.authorizations:
        challenge = next(one for one in authorization.body.challenges if isinstance(one.chall, challenges.HTTP01))
        response, validation = challenge.response_and_validation(acme.net.key)
        shown = validation + "x" * spoiled
        resources.add(HTTP01RequestHandler.HTTP01Resource(chall=challenge.chall, response=response, validation=shown))
        acme.answer_challenge(challenge, response)


def certificate_of(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


ACCOUNT_KEYS = [
    pytest.param(lambda: JWKEC(key=ec.generate_private_key(ec.SECP256R1())), ES256, id="ES256"),
    pytest.param(lambda: JWKRSA(key=rsa.generate_private_key(65537, 2048)), RS256, id="RS256"),
]


@pytest.mark.parametrize(("make_key", "algorithm"), ACCOUNT_KEYS)
def test_account_order_certificate_revocation_end(world: World, make_key: object, algorithm: JWASignature) -> None:
    key = make_key()  # type: ignore[operator]
    with (
        responder() as (port, resources),
        world.serve(ValidationConfig(addresses=LOOPBACK, resolver=NAMES, http_port=port, attempts=1)) as server,
    ):
        acme = connect(server, world, key, algorithm)
        registration = acme.new_account(messages.NewRegistration.from_data(email="ops@stoq.test"))
        assert registration.body.contact == ("mailto:ops@stoq.test",)
        with pytest.raises(errors.ConflictError) as known:
            connect(server, world, key, algorithm).new_account(messages.NewRegistration())
        assert known.value.location == registration.uri

        leaf_key = ec.generate_private_key(ec.SECP256R1())
        pem = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        order = acme.new_order(crypto_util.make_csr(pem, ["node-a.stoq.test"], ipaddrs=[ipaddress.ip_address("::1")]))
        assert len(order.authorizations) == 2
        answer_all(acme, order, resources)
        order = acme.poll_and_finalize(order)
        chain = certificate_of(order.fullchain_pem)
        leaf = chain[0]

        assert len(chain) == 2
        assert leaf.public_key() == leaf_key.public_key()
        leaf.verify_directly_issued_by(chain[1])
        chain[1].verify_directly_issued_by(world.ca.authority.root)
        account_id = registration.uri.rsplit("/", 1)[1]
        assert list(world.ca.issued.values()) == [(("node-a.stoq.test", "::1"), account_id)]
        start, _ = acme.renewal_time(leaf.public_bytes(Encoding.PEM))
        assert start is not None
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert 0.66 <= (start - leaf.not_valid_before_utc) / life <= 0.76

        updated = acme.update_registration(registration, messages.Registration.from_data(email="new@stoq.test"))
        assert acme.query_registration(updated).body.contact == ("mailto:new@stoq.test",)
        acme.revoke(leaf, 4)
        assert world.ca.revoked == [(leaf.public_bytes(Encoding.DER), 4, f"acme:{account_id}")]
        with pytest.raises(messages.Error) as again:
            acme.revoke(leaf, 4)
        assert again.value.code == "alreadyRevoked"
        start, _ = acme.renewal_time(leaf.public_bytes(Encoding.PEM))
        assert start is not None and start < leaf.not_valid_before_utc + life / 100

        pending = acme.new_order(crypto_util.make_csr(pem, ["node-a.stoq.test"]))
        assert acme.deactivate_authorization(pending.authorizations[0]).body.status == messages.STATUS_DEACTIVATED
        acme.deactivate_registration(registration)
        with pytest.raises(messages.Error) as gone:
            acme.new_order(crypto_util.make_csr(pem, ["node-a.stoq.test"]))
        assert gone.value.code == "unauthorized"


def test_revocation_by_the_certificates_own_key(world: World) -> None:
    with (
        responder() as (port, resources),
        world.serve(ValidationConfig(addresses=LOOPBACK, resolver=NAMES, http_port=port, attempts=1)) as server,
    ):
        acme = connect(server, world, JWKEC(key=ec.generate_private_key(ec.SECP256R1())), ES256)
        acme.new_account(messages.NewRegistration())
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        pem = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        order = acme.new_order(crypto_util.make_csr(pem, ["node-a.stoq.test"]))
        answer_all(acme, order, resources)
        leaf = certificate_of(acme.poll_and_finalize(order).fullchain_pem)[0]
        stranger = connect(server, world, JWKEC(key=ec.generate_private_key(ec.SECP256R1())), ES256)
        with pytest.raises(messages.Error) as refused:
            stranger.revoke(leaf, 1)
        assert refused.value.code == "unauthorized" and not world.ca.revoked
        holder = connect(server, world, JWKEC(key=leaf_key), ES256)
        holder.revoke(leaf, 1)
        assert [(reason, actor[:9]) for _, reason, actor in world.ca.revoked] == [(1, "acme:key:")]


def test_failed_validation_invalidates_the_order_and_says_why(world: World) -> None:
    with (
        responder() as (port, resources),
        world.serve(ValidationConfig(addresses=LOOPBACK, resolver=NAMES, http_port=port, attempts=1)) as server,
    ):
        acme = connect(server, world, JWKEC(key=ec.generate_private_key(ec.SECP256R1())), ES256)
        acme.new_account(messages.NewRegistration())
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        order = acme.new_order(crypto_util.make_csr(pem, ["node-a.stoq.test"]))
        answer_all(acme, order, resources, spoiled=True)
        with pytest.raises(errors.ValidationError) as failed:
            acme.poll_and_finalize(order)
        (authorization,) = failed.value.failed_authzrs
        (challenge,) = authorization.body.challenges
        assert challenge.error is not None and challenge.error.code == "incorrectResponse"
        assert "x'" in str(challenge.error.detail)
        assert acme._post_as_get(order.uri).json()["error"]["type"].endswith(":incorrectResponse")
        assert not world.ca.issued


def test_key_change(world: World) -> None:
    with world.serve() as server, raw_client(server.directory, world.root) as raw:
        assert raw.kid is not None
        url = raw.urls["keyChange"]
        old, new = raw.key, JWKEC(key=ec.generate_private_key(ec.SECP384R1()))
        wish = json.dumps({"account": raw.kid, "oldKey": raw.jwk}).encode()
        inner = sign(wish, {"alg": "ES384", "jwk": new.public_key().to_json(), "url": url}, new, ES384)
        assert raw.post(url, inner).status_code == 200
        assert raw.post(raw.kid).json()["detail"].startswith("the message says alg ES256")
        changed = connect(server, world, new, ES384)
        with pytest.raises(errors.ConflictError) as known:
            changed.new_account(messages.NewRegistration())
        assert known.value.location == raw.kid

        with raw_client(server.directory, world.root) as other:
            wish = json.dumps({"account": other.kid, "oldKey": other.jwk}).encode()
            inner = sign(wish, {"alg": "ES384", "jwk": new.public_key().to_json(), "url": url}, new, ES384)
            taken = other.post(url, inner)
            assert (taken.status_code, taken.headers["Location"]) == (409, raw.kid)
            wish = json.dumps({"account": other.kid, "oldKey": old.public_key().to_json()}).encode()
            inner = sign(wish, {"alg": "ES256", "jwk": old.public_key().to_json(), "url": url}, old)
            assert "oldKey" in other.post(url, inner).json()["detail"]
            wish = json.dumps({"account": raw.kid, "oldKey": other.jwk}).encode()
            inner = sign(wish, {"alg": "ES256", "jwk": old.public_key().to_json(), "url": url}, old)
            assert "another account" in other.post(url, inner).json()["detail"]


def test_ed25519_account(world: World) -> None:
    """josepy has no EdDSA, so the message is signed by hand."""
    key = ed25519.Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().public_bytes_raw())}
    with world.serve() as server, raw_client(server.directory, world.root, register=False) as raw:
        url = raw.urls["newAccount"]
        protected = encode(json.dumps(raw.header(url, alg="EdDSA", jwk=jwk)).encode())
        payload = encode(b"{}")
        good = key.sign(f"{protected}.{payload}".encode())
        bad = bytes([good[0] ^ 1]) + good[1:]
        answers = [
            raw.send(url, {"protected": protected, "payload": payload, "signature": encode(signature)})
            for signature in (bad, good)
        ]
        assert [one.status_code for one in answers] == [400, 201]

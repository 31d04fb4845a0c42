"""Requests that no honest client sends. Each is refused with its own reason, and nothing is lost by it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from josepy.jwa import ES256, HS256, RS256
from josepy.jwk import JWKEC, JWKRSA, JWKOct

from control.trustchain.acme.context import MAX_BODY_BYTES
from control.trustchain.acme.encoding import encode
from tests.trustchain.acme.proving import NAME, by_dns, challenge_of, ready_order, valid_order
from tests.trustchain.acme.rawclient import RawClient, csr, new_key, problem, raw_client, sign
from tests.trustchain.acme.served import Names, Server, World


@dataclass
class Place:
    """A server, and a client with an account."""

    world: World
    server: Server
    names: Names
    client: RawClient


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for all of these: whatever a test does, the next finds it working."""
    world, names = World(tmp_path_factory.mktemp("acme")), Names()
    with world.serve(by_dns(names)) as server, raw_client(server.directory, world.root) as client:
        yield Place(world, server, names, client)


@pytest.fixture
def client(place: Place) -> Iterator[RawClient]:
    """The client, whose account must be as good afterwards."""
    yield place.client
    assert place.client.kid is not None
    assert place.client.post(place.client.kid).json()["status"] == "valid"


# ---- nonces ----


def test_a_nonce_is_good_once_and_the_refusal_brings_another(client: RawClient) -> None:
    assert client.kid is not None
    message = sign(b"", client.header(client.kid), client.key)
    assert client.send(client.kid, message).status_code == 200
    again = client.send(client.kid, message)
    problem(again, "badNonce", 400)
    assert client.post(client.kid, nonce=again.headers["Replay-Nonce"]).status_code == 200


@pytest.mark.parametrize("nonce", [None, "", "AAAA", "not base64url!", encode(bytes(32)), "A" * 10_000])
def test_nonces_that_were_not_given_out(client: RawClient, nonce: str | None) -> None:
    assert client.kid is not None
    problem(client.post(client.kid, nonce=nonce), "badNonce", 400)


def test_a_bad_signature_uses_up_no_nonce(client: RawClient) -> None:
    assert client.kid is not None
    header = client.header(client.kid)
    problem(client.send(client.kid, sign(b"", header, new_key())), "malformed", 400)
    assert client.send(client.kid, sign(b"", header, client.key)).status_code == 200


# ---- headers and signatures ----


def test_url_of_another_resource(client: RawClient) -> None:
    assert client.kid is not None
    problem(client.post(client.kid, url=client.urls["newOrder"]), "unauthorized", 403)
    problem(client.post(client.kid, url=client.kid.replace("[::1]", "ca.test")), "unauthorized", 403)
    problem(client.post(client.kid + "?x=1", url=client.kid), "unauthorized", 403)


Header = Callable[[RawClient], dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        (lambda c: {"jwk": c.jwk}, "malformed"),  # beside kid
        (lambda c: {"kid": None}, "malformed"),
        (lambda c: {"kid": None, "jwk": c.jwk}, "malformed"),  # a key where an account is needed
        (lambda c: {"url": None}, "malformed"),
        (lambda c: {"crit": ["exp"], "exp": 1}, "malformed"),
        (lambda c: {"b64": False}, "malformed"),
        (lambda c: {"alg": "none"}, "badSignatureAlgorithm"),
        (lambda c: {"alg": "HS256"}, "badSignatureAlgorithm"),
        (lambda c: {"alg": "ES512"}, "badSignatureAlgorithm"),
        (lambda c: {"alg": "RS256"}, "badSignatureAlgorithm"),
        (lambda c: {"alg": "EdDSA"}, "badSignatureAlgorithm"),
        (lambda c: {"alg": 7}, "malformed"),
        (lambda c: {"kid": "x" * 1000}, "malformed"),
        (lambda c: {"kid": c.kid + "A"}, "accountDoesNotExist"),
        (lambda c: {"kid": c.kid[:-22] + "A" * 22}, "accountDoesNotExist"),
        (lambda c: {"kid": c.kid.replace("account", "order")}, "accountDoesNotExist"),
        (lambda c: {"kid": "https://other.example" + c.kid}, "accountDoesNotExist"),
    ],
)
def test_protected_headers(client: RawClient, changes: Header, kind: str) -> None:
    url = client.urls["newOrder"]
    refused = client.post(url, {"identifiers": [{"type": "dns", "value": NAME}]}, **changes(client))
    document = problem(refused, kind, 400)
    if kind == "badSignatureAlgorithm":
        assert "ES256" in document["algorithms"]


def test_hmac_keyed_with_the_public_key(client: RawClient) -> None:
    assert client.kid is not None
    secret = json.dumps(client.jwk).encode()
    message = sign(b"", client.header(client.kid, alg="HS256"), JWKOct(key=secret), HS256)
    problem(client.send(client.kid, message), "badSignatureAlgorithm", 400)


def _edit(message: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**message, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: _edit(m, signature=m["signature"][:-4]),
        lambda m: _edit(m, signature=("A" if m["signature"][0] != "A" else "B") + m["signature"][1:]),
        lambda m: _edit(m, signature=""),
        lambda m: _edit(m, signature=None),
        lambda m: _edit(m, payload=encode(b"{}")),
        lambda m: _edit(m, payload="="),
        lambda m: _edit(m, protected=m["protected"] + "="),
        lambda m: _edit(m, protected=encode(b"[1]")),
        lambda m: _edit(m, protected=encode(b"\xff\xfe")),
        lambda m: _edit(m, header={"alg": "ES256"}),
        lambda m: {"payload": m["payload"], "signatures": [m]},
        lambda m: [m],
        lambda m: b"",
        lambda m: b"{",
        lambda m: b"\xff",
        lambda m: b"[" * 60_000,
        lambda m: b'{"a":' * 10_000,
    ],
)
def test_spoiled_messages(client: RawClient, spoil: Callable[[dict[str, str]], Any]) -> None:
    assert client.kid is not None
    message = sign(b"", client.header(client.kid), client.key)
    problem(client.send(client.kid, spoil(message)), "malformed", 400)


def test_size_and_type_of_the_body(client: RawClient) -> None:
    assert client.kid is not None
    url = client.kid
    problem(client.send(url, b"x" * (MAX_BODY_BYTES + 1)), "malformed", 413)
    parts = (b"x" * 10_000 for _ in range(100))
    chunked = client.session.post(url, data=parts, headers={"Content-Type": "application/jose+json"}, timeout=10)
    problem(chunked, "malformed", 413)
    message = sign(b"", client.header(url), client.key)
    problem(client.send(url, message, "application/json"), "malformed", 415)


def test_a_body_that_does_not_end(client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who drips holds a connection for a while and not for ever."""
    monkeypatch.setattr("control.trustchain.acme.context.BODY_SECONDS", 0.2)
    answered = threading.Event()

    def drip() -> Iterator[bytes]:
        yield b"x"
        answered.wait(5)

    headers = {"Content-Type": "application/jose+json"}
    threading.Timer(1.0, answered.set).start()
    slow = client.session.post(client.urls["newOrder"], data=drip(), headers=headers, timeout=10)
    problem(slow, "malformed", 408)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/new-order", 405), ("POST", "/nowhere", 404)])
def test_what_is_not_there(place: Place, method: str, path: str, status: int) -> None:
    response = place.client.session.request(method, place.server.base + path, timeout=10)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    ["/challenge/..%2f..%2fetc%2fpasswd", "/challenge/%2e%2e", "/order/%00", "/certificate/" + "A" * 5000,
     "/authorization/'%20OR%201=1--", "/order/" + "A" * 22, "/renewal-info/..%2f..", "/account/%F0%9F%90%8D"],
)  # fmt: skip
def test_ids_that_are_none(place: Place, client: RawClient, path: str) -> None:
    """Ids and tokens are never names of files; what does not look like one of ours is not even looked up."""
    url = place.server.base + path
    method = "GET" if "renewal" in path else "POST"
    body = json.dumps(sign(b"{}", client.header(url), client.key)) if method == "POST" else None
    prepared = client.session.prepare_request(
        requests.Request(method, url, data=body, headers={"Content-Type": "application/jose+json"})
    )
    prepared.url = url  # As written: requests would tidy it up.
    response = client.session.send(prepared, timeout=10, verify=str(place.world.root))
    # Where the path is tidied up on its way, it is not the one that was signed for.
    answered = response.status_code, response.json()["type"].rsplit(":", 1)[1]
    assert answered in ((404, "malformed"), (403, "unauthorized"))


# ---- keys ----


def _register_with(client: RawClient, jwk: dict[str, Any], **header: Any) -> requests.Response:
    url = client.urls["newAccount"]
    return client.send(url, sign(b"{}", client.header(url, kid=None, jwk=jwk, **header), client.key))


@pytest.mark.parametrize(
    "jwk",
    [
        lambda: new_key().to_json(),  # with its private part
        lambda: {"kty": "oct", "k": "AAAA"},
        lambda: JWKEC(key=ec.generate_private_key(ec.SECP521R1()).public_key()).to_json(),
        lambda: {"kty": "EC", "crv": "P-256", "x": encode(b"\1" * 32), "y": encode(b"\1" * 32)},  # not on the curve
        lambda: {"kty": "EC", "crv": "P-256", "x": encode(b"\1" * 31), "y": encode(b"\1" * 32)},
        lambda: {"kty": "EC", "crv": "P-256", "x": encode(b"\1" * 32)},
        lambda: {"kty": "OKP", "crv": "X25519", "x": encode(bytes(32))},
        lambda: {"kty": "OKP", "crv": "Ed25519", "x": encode(bytes(31))},
        lambda: {"kty": "RSA", "n": encode(b"\xff" * 128), "e": "AQAB"},
        lambda: {"kty": "RSA", "n": encode(b"\xff" * 513), "e": "AQAB"},
        lambda: {"kty": "RSA", "n": encode(b"\xff" * 20_000), "e": "AQAB"},
        lambda: {"kty": "RSA", "n": encode(b"\xff" * 256), "e": "Aw"},
        lambda: {"kty": "RSA", "n": "", "e": "AQAB"},
        lambda: {"kty": "what"},
    ],
)
def test_keys_that_are_not_taken(client: RawClient, jwk: Callable[[], dict[str, Any]]) -> None:
    problem(_register_with(client, jwk()), "badPublicKey", 400)


def test_somebody_elses_key(client: RawClient) -> None:
    """Registering a key takes its signature."""
    problem(_register_with(client, new_key().public_key().to_json()), "malformed", 400)
    strange = JWKRSA(key=rsa.generate_private_key(65537, 2048))
    url = client.urls["newAccount"]
    header = client.header(url, kid=None, jwk=client.jwk, alg="ES256")
    problem(client.send(url, sign(b"{}", header, strange, RS256)), "malformed", 400)


# ---- accounts ----


def test_registration(place: Place) -> None:
    with raw_client(place.server.directory, place.world.root, register=False) as other:
        problem(other.register(onlyReturnExisting=True), "accountDoesNotExist", 400)
        problem(other.register(contact=["tel:+49"]), "unsupportedContact", 400)
        problem(other.register(contact=["mailto:a@x,b@x"]), "invalidContact", 400)
        problem(other.register(contact=["mailto:a@x?subject=x"]), "invalidContact", 400)
        problem(other.register(contact=["mailto:a@x"] * 9), "malformed", 400)
        problem(other.register(contact="mailto:a@x"), "malformed", 400)
        assert other.register().status_code == 201
        kid, other.kid = other.kid, None
        assert other.register(onlyReturnExisting=True).status_code == 200
        assert other.kid == kid and kid is not None
        problem(other.post(kid, {"status": "revoked"}), "malformed", 400)


def test_a_deactivated_account_can_do_nothing(place: Place) -> None:
    with raw_client(place.server.directory, place.world.root) as other:
        url, order = ready_order(other, place.names)
        assert other.kid is not None
        assert other.post(other.kid, {"status": "deactivated"}).json()["status"] == "deactivated"
        for target, payload in (
            (other.kid, None),
            (other.kid, {"status": "valid"}),
            (url, None),
            (other.urls["newOrder"], {"identifiers": [{"type": "dns", "value": NAME}]}),
            (order["finalize"], {"csr": csr(NAME)}),
        ):
            problem(other.post(target, payload), "unauthorized", 403)
        other.kid = None
        problem(other.register(), "unauthorized", 403)


def test_what_belongs_to_another_account(place: Place, client: RawClient) -> None:
    url, order = valid_order(client, place.names)
    pending = client.order(NAME).json()
    authorization = pending["authorizations"][0]
    challenge = challenge_of(client, authorization)
    before = len(place.world.ca.issued)
    leaf = x509.load_pem_x509_certificates(client.post(order["certificate"]).content)[0].public_bytes(Encoding.DER)
    with raw_client(place.server.directory, place.world.root) as other:
        for target, payload in (
            (client.kid, None),
            (client.kid, {"status": "deactivated"}),
            (f"{client.kid}/orders", None),
            (url, None),
            (order["finalize"], {"csr": csr(NAME)}),
            (order["certificate"], None),
            (authorization, None),
            (authorization, {"status": "deactivated"}),
            (challenge["url"], {}),
            (client.urls["revokeCert"], {"certificate": encode(leaf)}),
        ):
            problem(other.post(str(target), payload), "unauthorized", 403)
        own = other.post(other.urls["newOrder"], {"identifiers": [{"type": "dns", "value": NAME}]})
        assert own.status_code == 201
    assert client.post(authorization).json()["status"] == "pending"
    assert len(place.world.ca.issued) == before and not place.world.ca.revoked


# ---- orders ----


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("ip", "192.0.2.1", "rejectedIdentifier"),
        ("ip", "::ffff:192.0.2.1", "rejectedIdentifier"),
        ("ip", "fe80::1", "rejectedIdentifier"),
        ("ip", "ff02::1", "rejectedIdentifier"),
        ("ip", "::", "rejectedIdentifier"),
        ("ip", "fd00::1", "rejectedIdentifier"),
        ("ip", "64:ff9b::7f00:1", "rejectedIdentifier"),
        ("ip", "0:0:0:0:0:0:0:1", "malformed"),
        ("ip", "::1%lo", "malformed"),
        ("ip", "node-a", "malformed"),
        ("dns", "192.0.2.1", "rejectedIdentifier"),
        ("dns", "127.1", "rejectedIdentifier"),
        ("dns", "Node-A.stoq.test", "rejectedIdentifier"),
        ("dns", "node_a.stoq.test", "rejectedIdentifier"),
        ("dns", "-a.stoq.test", "rejectedIdentifier"),
        ("dns", "a..stoq.test", "rejectedIdentifier"),
        ("dns", "a.stoq.test.", "rejectedIdentifier"),
        ("dns", "a.*.stoq.test", "rejectedIdentifier"),
        ("dns", "*.*.stoq.test", "rejectedIdentifier"),
        ("dns", "*", "rejectedIdentifier"),
        ("dns", "*.test", "rejectedIdentifier"),
        ("dns", "a.0x7f", "rejectedIdentifier"),
        ("dns", "", "rejectedIdentifier"),
        ("dns", "a" * 64 + ".test", "rejectedIdentifier"),
        ("dns", "a." * 127 + "test", "rejectedIdentifier"),
        ("dns", "../../etc/passwd", "rejectedIdentifier"),
        ("dns", "a.test:8080", "rejectedIdentifier"),
        ("dns", "a.test/x", "rejectedIdentifier"),
        ("dns", "a@b.test", "rejectedIdentifier"),
        ("email", "a@b.test", "unsupportedIdentifier"),
    ],
)
def test_identifiers(client: RawClient, kind: str, value: str, expected: str) -> None:
    document = problem(client.order(value, kind=kind), expected, 400)
    if value == "192.0.2.1":
        assert "IPv6-only" in document["detail"]


def test_several_bad_identifiers_are_told_apart(client: RawClient) -> None:
    wish = [("dns", "ok.test"), ("ip", "192.0.2.1"), ("email", "x")]
    refused = client.post(client.urls["newOrder"], {"identifiers": [{"type": t, "value": v} for t, v in wish]})
    document = problem(refused, "compound", 400)
    assert [one["type"].rsplit(":", 1)[1] for one in document["subproblems"]] == [
        "rejectedIdentifier",
        "unsupportedIdentifier",
    ]
    assert document["subproblems"][0]["identifier"] == {"type": "ip", "value": "192.0.2.1"}


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"identifiers": []},
        {"identifiers": [{"type": "dns"}]},
        {"identifiers": [{"type": "dns", "value": 1}]},
        {"identifiers": [{"type": "dns", "value": f"n{number}.test"} for number in range(33)]},
        {"identifiers": [{"type": "dns", "value": f"n{number}.test"} for number in range(65)]},
        {"identifiers": [{"type": "dns", "value": "a.test"}], "notAfter": "2030-01-01T00:00:00Z"},
        {"identifiers": [{"type": "dns", "value": "a.test"}], "profile": "ca"},
    ],
)
def test_orders_that_are_none(client: RawClient, wish: dict[str, Any]) -> None:
    problem(client.post(client.urls["newOrder"], wish), "malformed", 400)


def test_wildcards_need_dns_01(place: Place, client: RawClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, order = valid_order(client, place.names, "*.stoq.test")
    authorization = client.post(order["authorizations"][0]).json()
    assert (authorization["identifier"]["value"], authorization["wildcard"]) == ("stoq.test", True)
    assert [one["type"] for one in authorization["challenges"]] == ["dns-01"]
    world = World(tmp_path_factory.mktemp("acme"))
    with world.serve() as server, raw_client(server.directory, world.root) as other:
        assert "dns-01" in problem(other.order("*.stoq.test"), "rejectedIdentifier", 400)["detail"]


def test_finalizing_too_early_and_too_often(place: Place, client: RawClient) -> None:
    pending = client.order(NAME).json()
    problem(client.post(pending["finalize"], {"csr": csr(NAME)}), "orderNotReady", 403)
    _, order = valid_order(client, place.names)
    issued = len(place.world.ca.issued)
    problem(client.post(order["finalize"], {"csr": csr(NAME)}), "orderNotReady", 403)
    assert len(place.world.ca.issued) == issued


def test_csrs_that_do_not_fit(place: Place, client: RawClient) -> None:
    url, order = ready_order(client, place.names)
    issued = len(place.world.ca.issued)
    account_key = client.key.key._wrapped
    assert isinstance(account_key, ec.EllipticCurvePrivateKey)
    for bad in (
        csr("other.stoq.test"),
        csr(NAME, "other.stoq.test"),
        csr(),
        csr(NAME, others=[x509.RFC822Name("a@b.test")]),
        csr(NAME, others=[x509.UniformResourceIdentifier("stoq:x")]),
        csr(NAME, ca=True),
        csr(NAME, common=["other.stoq.test"]),
        csr(common=[NAME]),
        csr(NAME, key=account_key),
        csr(NAME, key=ec.generate_private_key(ec.SECP256K1())),
        csr(NAME)[:-8] + "AAAAAAAA",  # signature
        encode(b"nothing"),
        encode(b"\x30\x82" + b"\xff" * 20_000),
    ):
        problem(client.post(order["finalize"], {"csr": bad}), "badCSR", 400)
    problem(client.post(order["finalize"], {"csr": "=="}), "malformed", 400)
    assert client.post(url).json()["status"] == "ready"
    assert len(place.world.ca.issued) == issued
    assert client.post(order["finalize"], {"csr": csr(NAME, common=[NAME])}).json()["status"] == "valid"


def test_reading_takes_an_empty_payload(place: Place, client: RawClient) -> None:
    url, order = valid_order(client, place.names)
    for target in (url, order["certificate"], f"{client.kid}/orders"):
        problem(client.post(target, {}), "malformed", 400)
    assert url in client.post(f"{client.kid}/orders").json()["orders"]


def test_authorizations_and_challenges_move_one_way(place: Place, client: RawClient) -> None:
    url, order = ready_order(client, place.names)
    authorization = order["authorizations"][0]
    challenge = challenge_of(client, authorization)
    assert client.post(challenge["url"], {}).json()["status"] == "valid"
    problem(client.post(challenge["url"], [1]), "malformed", 400)
    problem(client.post(authorization, {"status": "valid"}), "malformed", 400)
    assert client.post(authorization, {"status": "deactivated"}).json()["status"] == "deactivated"
    assert client.post(url).json()["status"] == "invalid"
    problem(client.post(order["finalize"], {"csr": csr(NAME)}), "orderNotReady", 403)
    pending = client.order(NAME).json()["authorizations"][0]
    waiting = challenge_of(client, pending)
    client.post(pending, {"status": "deactivated"})
    problem(client.post(waiting["url"], {}), "unauthorized", 403)


# ---- revocation ----


def test_revocations_that_are_refused(place: Place, client: RawClient) -> None:
    _, order = valid_order(client, place.names)
    leaf = x509.load_pem_x509_certificates(client.post(order["certificate"]).content)[0].public_bytes(Encoding.DER)
    url = client.urls["revokeCert"]
    for reason in (2, 6, 7, 8, 9, 10, -1, 2**40):
        problem(client.post(url, {"certificate": encode(leaf), "reason": reason}), "badRevocationReason", 400)
    problem(client.post(url, {"certificate": encode(leaf), "reason": "1"}), "malformed", 400)
    problem(client.post(url, {"certificate": encode(b"x")}), "malformed", 400)
    problem(client.post(url, {"certificate": "="}), "malformed", 400)
    root = place.world.ca.authority.root.public_bytes(Encoding.DER)
    problem(client.post(url, {"certificate": encode(root)}), "unauthorized", 403)
    signed_by_ca_key = sign(
        json.dumps({"certificate": encode(root)}).encode(),
        client.header(url, kid=None, jwk=JWKEC(key=place.world.ca.authority.root_key).public_key().to_json()),
        JWKEC(key=place.world.ca.authority.root_key),
        ES256,
    )
    problem(client.send(url, signed_by_ca_key), "malformed", 404)
    assert not place.world.ca.revoked


def test_an_account_that_controls_all_names_may_revoke(place: Place, client: RawClient) -> None:
    _, order = valid_order(client, place.names, "shared.stoq.test")
    leaf = x509.load_pem_x509_certificates(client.post(order["certificate"]).content)[0].public_bytes(Encoding.DER)
    with raw_client(place.server.directory, place.world.root) as other:
        wish = {"certificate": encode(leaf), "reason": 1}
        problem(other.post(other.urls["revokeCert"], wish), "unauthorized", 403)
        ready_order(other, place.names, "shared.stoq.test")
        assert other.post(other.urls["revokeCert"], wish).status_code == 200
        problem(client.post(client.urls["revokeCert"], wish), "alreadyRevoked", 400)
    place.world.ca.revoked.clear()

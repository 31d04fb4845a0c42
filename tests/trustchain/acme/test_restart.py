"""What a server that was stopped knows when it starts again, and what it takes up."""

from __future__ import annotations

import gc
import json
import threading

import pytest
from cryptography import x509
from josepy.jwa import HS256
from josepy.jwk import JWKOct

from control.trustchain.acme import ValidationConfig
from control.trustchain.acme.encoding import encode
from control.trustchain.errors import AccessDenied, BadRequest, NotIssued, Revoked, TrustError
from tests.trustchain.acme.proving import NAME, by_dns, challenge_of, prove, ready_order, valid_order, wait_for
from tests.trustchain.acme.rawclient import csr, new_key, problem, raw_client, sign
from tests.trustchain.acme.served import LOOPBACK, Clock, Names, World, listen

DAY = 24 * 3600.0


def test_everything_is_there_after_a_restart(world: World) -> None:
    names, listener = Names(), listen()
    again = listener.dup()
    with (
        world.serve(by_dns(names), listener=listener) as server,
        raw_client(server.directory, world.root) as client,
    ):
        first, order = valid_order(client, names)
        ready, _ = ready_order(client, names)
        pending = client.order(NAME)
        pem = client.post(order["certificate"]).text
        old_nonce = client.nonce()
    with world.serve(by_dns(names), listener=again) as server:
        client.session.close()
        assert client.kid is not None
        problem(client.post(client.kid, nonce=old_nonce), "badNonce", 400)
        assert client.post(first).json() == order
        assert client.post(order["certificate"]).text == pem
        assert client.post(ready).json()["status"] == "ready"
        assert prove(client, names, pending.json()["authorizations"][0])["status"] == "valid"
        done = client.post(client.post(ready).json()["finalize"], {"csr": csr(NAME)})
        assert done.json()["status"] == "valid"
        client.close()


def test_a_validation_that_was_running_is_taken_up(world: World) -> None:
    silent, listener, names = listen(), listen(), Names({NAME: ["::1"]})
    again = listener.dup()
    validation = ValidationConfig(
        types=("http-01",), addresses=LOOPBACK, resolver=names, http_port=silent.getsockname()[1], attempts=1
    )
    with (
        silent,
        world.serve(validation, listener=listener) as server,
        raw_client(server.directory, world.root) as client,
    ):
        authorization = client.order(NAME).json()["authorizations"][0]
        challenge = challenge_of(client, authorization, "http-01")
        assert client.post(challenge["url"], {}).json()["status"] == "processing"
    with world.serve(validation, listener=again):
        failed = wait_for(client, authorization, "invalid")  # Nobody listens there any more.
        assert failed["challenges"][0]["error"]["type"].endswith(":connection")
        client.close()


def test_a_certificate_that_was_being_issued_is_taken_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.trustchain.acme.work.STOP_SECONDS", 0.05)
    names, listener = Names(), listen()
    again = listener.dup()
    world.ca.hold = threading.Event()
    try:
        with (
            world.serve(by_dns(names), listener=listener, finalize_wait_seconds=0.05) as server,
            raw_client(server.directory, world.root) as client,
        ):
            url, order = ready_order(client, names)
            assert client.post(order["finalize"], {"csr": csr(NAME)}).json()["status"] == "processing"
    finally:
        world.ca.hold.set()
    world.ca.hold = None
    with world.serve(by_dns(names), listener=again):
        valid = wait_for(client, url, "valid")
        assert x509.load_pem_x509_certificates(client.post(valid["certificate"]).content)
        client.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AccessDenied("no"), "unauthorized"),
        (BadRequest("bad"), "badCSR"),
        (Revoked("key"), "badPublicKey"),
        (ZeroDivisionError("bug"), "serverInternal"),
    ],
)
def test_a_ca_that_refuses(world: World, error: Exception, kind: str) -> None:
    names = Names()
    with world.serve(by_dns(names)) as server, raw_client(server.directory, world.root) as client:
        _, order = ready_order(client, names)
        world.ca.fail = error
        failed = client.post(order["finalize"], {"csr": csr(NAME)}).json()
        assert (failed["status"], failed["error"]["type"].rsplit(":", 1)[1]) == ("invalid", kind)
        assert "bug" not in failed["error"]["detail"]


def test_a_ca_that_cannot_now(world: World) -> None:
    names = Names()
    with world.serve(by_dns(names)) as server, raw_client(server.directory, world.root) as client:
        url, order = ready_order(client, names)
        for error in (NotIssued("no log answers"), TrustError("full")):
            world.ca.fail = error
            refused = client.post(order["finalize"], {"csr": csr(NAME)})
            problem(refused, "serverInternal", 503)
            assert str(error) in refused.json()["detail"] and refused.headers["Retry-After"]
            assert client.post(url).json()["status"] == "ready"
        assert client.post(order["finalize"], {"csr": csr(NAME)}).json()["status"] == "valid"


def test_a_ca_that_could_not_after_a_while(world: World) -> None:
    """The answer was `processing`; then the order is ready again, and nobody is left with an exception."""
    names = Names()
    with (
        world.serve(by_dns(names), finalize_wait_seconds=0.05) as server,
        raw_client(server.directory, world.root) as client,
    ):
        unheard: list[object] = []
        server.loop.call_soon_threadsafe(server.loop.set_exception_handler, lambda _, context: unheard.append(context))
        url, order = ready_order(client, names)
        world.ca.hold, world.ca.fail = threading.Event(), NotIssued("no log answers")
        assert client.post(order["finalize"], {"csr": csr(NAME)}).json()["status"] == "processing"
        world.ca.hold.set()
        wait_for(client, url, "ready")
        world.ca.hold = None
        client.post(order["finalize"], {"csr": csr(NAME)})
        wait_for(client, url, "valid")
        gc.collect()
        assert not unheard


def test_expiry(world: World) -> None:
    """An order that was not finalized in time is invalid; once cleaned up it is gone."""
    names, clock = Names(), Clock()
    with (
        world.serve(by_dns(names), clock=clock, order_seconds=3600.0) as server,
        raw_client(server.directory, world.root) as client,
    ):
        url, order = ready_order(client, names)
        clock.ahead = 3601
        assert client.post(url).json()["status"] == "invalid"
        assert client.post(order["authorizations"][0]).json()["status"] == "expired"
        problem(client.post(order["finalize"], {"csr": csr(NAME)}), "orderNotReady", 403)
        assert server.call(server.store.clean()) == 1
        assert client.post(url).status_code == 404


def test_renewal_by_replacing(world: World) -> None:
    """RFC 9773 section 5: what replaces what, once."""
    names = Names()
    with (
        world.serve(by_dns(names)) as server,
        raw_client(server.directory, world.root) as client,
        raw_client(server.directory, world.root) as other,
    ):
        _, order = valid_order(client, names)
        leaf = x509.load_pem_x509_certificates(client.post(order["certificate"]).content)[0]
        authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
        assert authority is not None
        renewal_id = f"{encode(authority)}.{encode(serial)}"
        window = client.session.get(f"{client.urls['renewalInfo']}/{renewal_id}", timeout=10)
        assert window.status_code == 200 and window.headers["Retry-After"]
        wish = {"identifiers": [{"type": "dns", "value": NAME}], "replaces": renewal_id}
        problem(other.post(other.urls["newOrder"], wish), "unauthorized", 403)
        strange = {"identifiers": [{"type": "dns", "value": "b.test"}], "replaces": renewal_id}
        problem(client.post(client.urls["newOrder"], strange), "malformed", 400)
        made = client.post(client.urls["newOrder"], wish)
        assert made.json()["replaces"] == renewal_id
        prove(client, names, made.json()["authorizations"][0])
        assert client.post(made.json()["finalize"], {"csr": csr(NAME)}).json()["status"] == "valid"
        problem(client.post(client.urls["newOrder"], wish), "alreadyReplaced", 409)


def test_external_account_binding(world: World) -> None:
    """Section 7.3.4: each way to get it wrong, and that the right way works once."""
    with (
        world.serve(external_account_required=True, terms_of_service="https://ca.test/terms") as server,
        raw_client(server.directory, world.root, register=False) as client,
    ):
        secret = b"\7" * 32
        server.call(server.store.add_external_account("kid-1", secret, server.clock() + 3600))
        meta = client.urls["meta"]
        assert meta == {"externalAccountRequired": True, "termsOfService": "https://ca.test/terms"}
        problem(client.register(), "userActionRequired", 403)
        agreed = {"termsOfServiceAgreed": True}
        problem(client.register(**agreed), "externalAccountRequired", 403)
        key, url = json.dumps(client.jwk).encode(), client.urls["newAccount"]

        def binding(payload: bytes = key, mac: bytes = secret, **changes: object) -> dict[str, str]:
            header = {"alg": "HS256", "kid": "kid-1", "url": url} | changes
            return sign(payload, {k: v for k, v in header.items() if v is not None}, JWKOct(key=mac), HS256)

        for wrong, kind, status in (
            (binding(mac=b"\6" * 32), "unauthorized", 403),
            (binding(kid="kid-2"), "unauthorized", 403),
            (binding(url=server.directory), "malformed", 400),
            (binding(kid=None, jwk=client.jwk), "malformed", 400),
            (binding(nonce="AAAA"), "malformed", 400),
            (binding(payload=json.dumps(new_key().public_key().to_json()).encode()), "malformed", 400),
            (binding(alg="none"), "badSignatureAlgorithm", 400),
            (binding(alg="ES256"), "badSignatureAlgorithm", 400),
            ({"protected": ""}, "malformed", 400),
        ):
            problem(client.register(externalAccountBinding=wrong, **agreed), kind, status)
        assert client.register(externalAccountBinding=binding(), **agreed).status_code == 201
        with raw_client(server.directory, world.root, register=False) as other:
            taken = binding(payload=json.dumps(other.jwk).encode())
            problem(other.register(externalAccountBinding=taken, **agreed), "unauthorized", 403)

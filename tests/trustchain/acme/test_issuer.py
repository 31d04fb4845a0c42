"""ACME before the real authority: service certificates, its table of roles, its audit log, its name constraints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from control.trustchain.acme.encoding import encode
from control.trustchain.acme.issuer import AuthorityIssuer
from control.trustchain.actor import Actor
from control.trustchain.authority import Authority
from control.trustchain.errors import AccessDenied, BadRequest
from control.trustchain.profiles import Names as CertificateNames
from control.trustchain.profiles import ProfileName
from control.trustchain.requests import IssueRequest, make_csr
from control.trustchain.roles import Role, roles_of
from tests.trustchain.acme.behind import authority_served
from tests.trustchain.acme.proving import NAME, by_dns, ready_order, valid_order
from tests.trustchain.acme.rawclient import RawClient, csr, problem, raw_client
from tests.trustchain.acme.served import Names, Server, World


@contextmanager
def client_served(world: World, names: Names) -> Iterator[tuple[Authority, Server, RawClient]]:
    """The same, and a client with an account."""
    with (
        authority_served(world, by_dns(names)) as (authority, server),
        raw_client(server.directory, world.root) as client,
    ):
        yield authority, server, client


def leaf_of(client: RawClient, order: dict[str, str]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(client.post(order["certificate"]).content)


def test_issue_and_revoke(world: World) -> None:
    names = Names()
    with client_served(world, names) as (authority, server, client):
        _, order = valid_order(client, names)
        leaf, intermediate = leaf_of(client, order)
        leaf.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(authority.root)
        assert roles_of(leaf) == {Role.SERVICE}

        assert client.kid is not None
        account = client.kid.rsplit("/", 1)[1]
        wish = {"certificate": encode(leaf.public_bytes(Encoding.DER)), "reason": 1}
        assert client.post(client.urls["revokeCert"], wish).status_code == 200
        crl = x509.load_der_x509_crl(server.call(authority.crl()).der)
        entry = crl.get_revoked_certificate_by_serial_number(leaf.serial_number)
        assert entry is not None
        assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
        lines = server.call(authority.audit(Actor.local()))
        mine = [str(line) for line in lines if f"acme:{account}" in str(line)]
        assert any("ca.issue" in line for line in mine) and any("ca.revoke" in line for line in mine)
        with pytest.raises(BadRequest):
            server.call(authority.revoke(f"{leaf.serial_number:040x}", "superseded", Actor.local()))


def test_revoked_elsewhere(world: World) -> None:
    """What an operator revoked is `alreadyRevoked`; a key that was compromised gets no other certificate."""
    names, key = Names(), ec.generate_private_key(ec.SECP256R1())
    with client_served(world, names) as (authority, server, client):
        _, order = ready_order(client, names)
        done = client.post(order["finalize"], {"csr": csr(NAME, key=key)}).json()
        leaf = leaf_of(client, done)[0]
        server.call(authority.revoke(f"{leaf.serial_number:040x}", "keyCompromise", Actor.local()))
        wish = {"certificate": encode(leaf.public_bytes(Encoding.DER))}
        problem(client.post(client.urls["revokeCert"], wish), "alreadyRevoked", 400)
        _, order = ready_order(client, names)
        failed = client.post(order["finalize"], {"csr": csr(NAME, key=key)}).json()
        assert failed["status"] == "invalid" and failed["error"]["type"].endswith(":badPublicKey")


def test_name_constraints_and_names(world: World) -> None:
    names = Names()
    with client_served(world, names) as (authority, server, client):
        _, order = ready_order(client, names, "elsewhere.test")
        failed = client.post(order["finalize"], {"csr": csr("elsewhere.test")}).json()
        assert failed["status"] == "invalid" and "stoq.test" in failed["error"]["detail"]
        other = make_csr(ec.generate_private_key(ec.SECP256R1()), "x", CertificateNames.parse(["a.stoq.test"], []))
        with pytest.raises(BadRequest, match="the order"):
            server.call(AuthorityIssuer(authority).issue_acme(other, ["b.stoq.test"], "x"))


def test_acme_revokes_no_nodes(world: World) -> None:
    """Control of a name is not control of a node's certificate for it."""
    names = Names()
    with client_served(world, names) as (authority, server, client):
        request = make_csr(ec.generate_private_key(ec.SECP256R1()), NAME, CertificateNames.parse([NAME], []))
        node = server.call(authority.issue(IssueRequest(request, ProfileName.NODE), Actor.local()))
        ready_order(client, names)
        problem(client.post(client.urls["revokeCert"], {"certificate": encode(node.der)}), "unauthorized", 403)
        with pytest.raises(AccessDenied):
            server.call(AuthorityIssuer(authority).revoke_acme(node.der, 1, "acme:x"))
        assert server.call(authority.show(node.row.serial.hex(), Actor.local())).revocation is None

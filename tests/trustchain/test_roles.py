"""The one table of who may do what, and the extension that carries roles."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from control.trustchain.errors import AccessDenied, BadRequest
from control.trustchain.keys import generate
from control.trustchain.roles import (
    ROLES_OID,
    RULES,
    Operation,
    Role,
    authorize,
    decode_roles,
    encode_roles,
    grantable,
    permitted,
    roles_extension,
    roles_of,
)

# Written out here a second time, on purpose: whoever changes the table says so twice. Columns: nobody (no certificate),
# node, service, operator, auditor, registrar, admin.
EXPECTED = """
ca.join                  y y y y y y y
ca.renew                 - y y y y y y
ca.renew-other           - - - - - y y
ca.issue                 - - - - - y y
ca.issue-operator        - - - - - - y
ca.issue-code-signing    - - - - - - y
ca.revoke-own            - y y y y y y
ca.revoke                - - - y - y y
ca.list                  - - - y y y y
ca.show-own              - y y y y y y
ca.show                  - - - y y y y
ca.token-create          - - - - - y y
ca.token-list            - - - - y y y
ca.token-cancel          - - - - - y y
ca.audit-read            - - - - y - y
ca.rotate-intermediate   - - - - - - y
ca.revoke-intermediate   - - - - - - y
ca.status                - y y y y y y
ca.events                - y y y y y y
ca.crl-read              y y y y y y y
ca.ocsp-read             y y y y y y y
ca.chain-read            y y y y y y y
log.submit               - y y y y y y
log.read                 y y y y y y y
log.cosign               - - - - y - y
log.admin                - - - - - - y
node.message             - y y y - - y
node.status              - - - y y - y
node.capture             - - - y - - y
node.configure           - - - y - - y
"""
TABLE = {line.split()[0]: line.split()[1:] for line in EXPECTED.split("\n") if line}
COLUMNS: list[frozenset[Role]] = [frozenset(), *(frozenset({role}) for role in Role)]


def test_the_table_is_complete() -> None:
    assert set(RULES) == set(Operation)
    assert set(TABLE) == {operation.value for operation in Operation}


@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_for_every_role(operation: Operation) -> None:
    for roles, cell in zip(COLUMNS, TABLE[operation], strict=True):
        if cell == "y":
            authorize(operation, roles)
        else:
            with pytest.raises(AccessDenied, match=operation):
                authorize(operation, roles)
        assert permitted(operation, roles) is (cell == "y")


def test_several_roles_may_what_any_of_them_may() -> None:
    authorize(Operation.AUDIT_READ, {Role.NODE, Role.AUDITOR})
    with pytest.raises(AccessDenied, match="the caller has node, service"):
        authorize(Operation.AUDIT_READ, {Role.NODE, Role.SERVICE})


def test_nobody_makes_somebody_mightier() -> None:
    assert grantable({Role.REGISTRAR}) == {Role.NODE, Role.SERVICE}
    assert grantable({Role.ADMIN}) == set(Role)
    assert not grantable({Role.NODE, Role.SERVICE, Role.OPERATOR, Role.AUDITOR})


def test_roles_survive_encoding() -> None:
    for roles in ({Role.NODE}, {Role.ADMIN, Role.AUDITOR}, set(Role)):
        assert decode_roles(encode_roles(roles)) == roles


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "SEQUENCE"),
        (b"\x30\x00", "1 to 8"),
        (bytes.fromhex("30060c046e6f6465") + b"\0", "SEQUENCE"),  # A byte too many.
        (bytes.fromhex("3081060c046e6f6465"), "SEQUENCE"),  # A length that is not the shortest.
        (bytes.fromhex("300613046e6f6465"), "UTF8String"),  # PrintableString.
        (bytes.fromhex("30060c056e6f6465"), "UTF8String"),  # The string reaches over the end.
        (bytes.fromhex("300c0c046e6f64650c046e6f6465"), "each once"),
        (bytes.fromhex("30060c046e6f6400"), "no role"),
        (bytes.fromhex("30040c02fffe"), "UTF-8"),
        (bytes.fromhex("30010c"), "UTF8String"),
        (bytes.fromhex("30110c07736572766963650c046e6f646530"), "SEQUENCE"),
        (bytes.fromhex("300f0c07736572766963650c046e6f6465"), "sorted"),
    ],
)
def test_malformed_roles_are_refused(value: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        decode_roles(value)


def _certificate(*extensions: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
    key, name = generate(), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, SHA256())


def test_roles_of_a_certificate() -> None:
    assert roles_of(_certificate()) == frozenset()
    assert roles_of(_certificate((roles_extension({Role.NODE, Role.ADMIN}), False))) == {Role.NODE, Role.ADMIN}
    with pytest.raises(BadRequest, match="critical"):
        roles_of(_certificate((roles_extension({Role.NODE}), True)))
    with pytest.raises(BadRequest, match="SEQUENCE"):
        roles_of(_certificate((x509.UnrecognizedExtension(ROLES_OID, b"node"), False)))

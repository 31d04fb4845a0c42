"""Who may do what: the roles, the one table of operations, and the extension that carries roles in a certificate.

Every call of the certificate authority, the log and a node goes through `authorize`. Roles come from the certificate the
caller authenticated with (`roles_of`), never from what it says.

    id-stoq-roles ::= 1.2.840.113556.1.8000.2554.28436.33660.31534.19610.40257.940726.12702455    (not critical)
    Roles ::= SEQUENCE SIZE (1..8) OF UTF8String                         (DER; distinct names, sorted)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from control.trustchain.errors import AccessDenied, BadRequest

# From the UUID 6f14837c-7b2e-4c9a-9d41-0e5ab6c1d2f7, in the arc that is open to anybody for that. The shorter 2.25.UUID
# has a number that some parsers of certificates do not take, Go's in Certificate Transparency among them.
ROLES_OID = x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.28436.33660.31534.19610.40257.940726.12702455")
MAX_ROLES = 8
MAX_ROLE_BYTES = 64
SEQUENCE, UTF8_STRING = 0x30, 0x0C


class Role(StrEnum):
    """What a certificate's holder is."""

    NODE = "node"  # A machine of the data plane.
    SERVICE = "service"  # A program that others connect to.
    OPERATOR = "operator"  # A person who runs nodes.
    AUDITOR = "auditor"  # Reads everything, changes nothing.
    REGISTRAR = "registrar"  # Lets others in: issues for nodes and services, makes tokens.
    ADMIN = "admin"  # Runs the authority and the log.


class Operation(StrEnum):
    """Everything that can be asked of the authority, the log and a node."""

    JOIN = "ca.join"  # With a one-time token, which says what may be had.
    RENEW = "ca.renew"  # One's own certificate.
    RENEW_OTHER = "ca.renew-other"
    ISSUE = "ca.issue"  # For nodes and services.
    ISSUE_OPERATOR = "ca.issue-operator"
    ISSUE_CODE_SIGNING = "ca.issue-code-signing"
    REVOKE_OWN = "ca.revoke-own"
    REVOKE = "ca.revoke"
    LIST = "ca.list"
    SHOW_OWN = "ca.show-own"
    SHOW = "ca.show"
    TOKEN_CREATE = "ca.token-create"
    TOKEN_LIST = "ca.token-list"
    TOKEN_CANCEL = "ca.token-cancel"
    AUDIT_READ = "ca.audit-read"
    ROTATE = "ca.rotate-intermediate"
    REVOKE_INTERMEDIATE = "ca.revoke-intermediate"
    STATUS = "ca.status"
    EVENTS = "ca.events"  # Revocations, as they happen.
    CRL_READ = "ca.crl-read"
    OCSP_READ = "ca.ocsp-read"
    CHAIN_READ = "ca.chain-read"  # The root and the intermediates.
    LOG_SUBMIT = "log.submit"
    LOG_READ = "log.read"
    LOG_COSIGN = "log.cosign"
    LOG_ADMIN = "log.admin"
    NODE_MESSAGE = "node.message"  # Streams and messages between components.
    NODE_STATUS = "node.status"
    NODE_CAPTURE = "node.capture"
    NODE_CONFIGURE = "node.configure"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may do one operation. `anyone`: also without a certificate. `audit_granted`: a permission is written into the
    audit log, too; a refusal always is."""

    roles: frozenset[Role]
    anyone: bool = False
    audit_granted: bool = True


def _rule(*roles: Role, audit_granted: bool = True) -> Rule:
    return Rule(frozenset(roles), audit_granted=audit_granted)


_PUBLIC = Rule(frozenset(Role), anyone=True, audit_granted=False)
_EVERYBODY = tuple(Role)
_READERS = (Role.AUDITOR, Role.REGISTRAR, Role.ADMIN)

RULES: dict[Operation, Rule] = {
    Operation.JOIN: Rule(frozenset(Role), anyone=True),
    Operation.RENEW: _rule(*_EVERYBODY),
    Operation.RENEW_OTHER: _rule(Role.REGISTRAR, Role.ADMIN),
    Operation.ISSUE: _rule(Role.REGISTRAR, Role.ADMIN),
    Operation.ISSUE_OPERATOR: _rule(Role.ADMIN),
    Operation.ISSUE_CODE_SIGNING: _rule(Role.ADMIN),
    Operation.REVOKE_OWN: _rule(*_EVERYBODY),
    Operation.REVOKE: _rule(Role.OPERATOR, Role.REGISTRAR, Role.ADMIN),
    Operation.LIST: _rule(Role.OPERATOR, *_READERS),
    Operation.SHOW_OWN: _rule(*_EVERYBODY, audit_granted=False),
    Operation.SHOW: _rule(Role.OPERATOR, *_READERS),
    Operation.TOKEN_CREATE: _rule(Role.REGISTRAR, Role.ADMIN),
    Operation.TOKEN_LIST: _rule(*_READERS),
    Operation.TOKEN_CANCEL: _rule(Role.REGISTRAR, Role.ADMIN),
    Operation.AUDIT_READ: _rule(Role.AUDITOR, Role.ADMIN),
    Operation.ROTATE: _rule(Role.ADMIN),
    Operation.REVOKE_INTERMEDIATE: _rule(Role.ADMIN),
    Operation.STATUS: _rule(*_EVERYBODY, audit_granted=False),
    Operation.EVENTS: _rule(*_EVERYBODY, audit_granted=False),
    Operation.CRL_READ: _PUBLIC,
    Operation.OCSP_READ: _PUBLIC,
    Operation.CHAIN_READ: _PUBLIC,
    Operation.LOG_SUBMIT: _rule(*_EVERYBODY, audit_granted=False),
    Operation.LOG_READ: _PUBLIC,
    Operation.LOG_COSIGN: _rule(Role.AUDITOR, Role.ADMIN),
    Operation.LOG_ADMIN: _rule(Role.ADMIN),
    Operation.NODE_MESSAGE: _rule(Role.NODE, Role.SERVICE, Role.OPERATOR, Role.ADMIN, audit_granted=False),
    Operation.NODE_STATUS: _rule(Role.OPERATOR, Role.AUDITOR, Role.ADMIN, audit_granted=False),
    Operation.NODE_CAPTURE: _rule(Role.OPERATOR, Role.ADMIN),
    Operation.NODE_CONFIGURE: _rule(Role.OPERATOR, Role.ADMIN),
}

# Whoever may issue cannot thereby make somebody mightier than themselves.
GRANTS: dict[Role, frozenset[Role]] = {
    Role.REGISTRAR: frozenset({Role.NODE, Role.SERVICE}),
    Role.ADMIN: frozenset(Role),
}


def permitted(operation: Operation, roles: Iterable[Role]) -> bool:
    """Does the table permit it?"""
    rule = RULES[operation]
    return rule.anyone or not rule.roles.isdisjoint(roles)


def authorize(operation: Operation, roles: Iterable[Role]) -> None:
    """The one decision on access. No roles: a caller without a certificate. Raises AccessDenied."""
    held = frozenset(roles)
    if not permitted(operation, held):
        need = ", ".join(sorted(RULES[operation].roles))
        have = ", ".join(sorted(held)) or "none"
        raise AccessDenied(f"{operation} needs one of the roles {need}; the caller has {have}")


def grantable(roles: Iterable[Role]) -> frozenset[Role]:
    """The roles that a holder of `roles` may give to others."""
    return frozenset().union(*(GRANTS.get(role, frozenset()) for role in roles))


def parse_roles(names: Iterable[str]) -> frozenset[Role]:
    """Roles by name. Raises BadRequest that lists the known ones."""
    found = set()
    for name in names:
        try:
            found.add(Role(name))
        except ValueError:
            raise BadRequest(f"{name!r} is no role; the roles are {', '.join(Role)}") from None
    return frozenset(found)


def encode_roles(roles: Iterable[Role]) -> bytes:
    """The extension's value. Raises BadRequest when there are none, or too many."""
    names = sorted({role.value.encode() for role in roles})
    if not 1 <= len(names) <= MAX_ROLES:
        raise BadRequest(f"a certificate carries 1 to {MAX_ROLES} roles, not {len(names)}")
    body = b"".join(bytes((UTF8_STRING, len(name))) + name for name in names)
    return _sequence(body)


def _sequence(body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes((SEQUENCE, len(body))) + body
    if len(body) < 0x100:
        return bytes((SEQUENCE, 0x81, len(body))) + body
    return bytes((SEQUENCE, 0x82)) + len(body).to_bytes(2, "big") + body


def _names(value: bytes) -> list[str]:
    """The strings of the extension's value, strictly DER."""
    head = 2
    if len(value) > 2 and value[1] > 0x80:
        head += value[1] & 0x7F
    body, names, at = value[head:], [], 0
    if value[:1] != bytes((SEQUENCE,)) or _sequence(body) != value:
        raise BadRequest("the roles in the certificate are not a DER SEQUENCE")
    while at < len(body):
        tag, size = body[at], body[at + 1] if at + 1 < len(body) else 0
        text = body[at + 2 : at + 2 + size]
        if tag != UTF8_STRING or not 1 <= size <= MAX_ROLE_BYTES or len(text) != size:
            raise BadRequest(f"the roles in the certificate are not UTF8Strings of 1 to {MAX_ROLE_BYTES} bytes")
        try:
            names.append(text.decode())
        except UnicodeDecodeError:
            raise BadRequest("a role in the certificate is not UTF-8") from None
        at += 2 + size
    if not 1 <= len(names) <= MAX_ROLES or names != sorted(set(names), key=str.encode):
        raise BadRequest(f"a certificate carries 1 to {MAX_ROLES} roles, each once, sorted")
    return names


def decode_roles(value: bytes) -> frozenset[Role]:
    """The roles in an extension's value. Raises BadRequest when it is malformed or names a role unknown here."""
    return parse_roles(_names(value))


def roles_of(certificate: x509.Certificate) -> frozenset[Role]:
    """The roles a certificate carries; none without the extension. Raises BadRequest when it is malformed or critical."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ROLES_OID)
    except x509.ExtensionNotFound:
        return frozenset()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadRequest(f"the certificate's extensions cannot be parsed: {error}") from None
    if extension.critical or not isinstance(extension.value, x509.UnrecognizedExtension):
        raise BadRequest("the roles in the certificate must be in an extension that is not critical")
    return decode_roles(extension.value.value)


def roles_extension(roles: Iterable[Role]) -> x509.UnrecognizedExtension:
    """The extension for a certificate."""
    return x509.UnrecognizedExtension(ROLES_OID, encode_roles(roles))

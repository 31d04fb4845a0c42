"""What nodes and their authority say to each other: the bodies of `control.rpc`'s calls. Certificates and requests are
DER; times are seconds since 1970."""

from __future__ import annotations

import msgspec

from control.trustchain.audit import AuditLine

JOIN = "ca.join"
ISSUE = "ca.issue"
RENEW = "ca.renew"
REVOKE = "ca.revoke"
LIST = "ca.list"
SHOW = "ca.show"
TOKEN = "ca.token"
AUDIT = "ca.audit"
BUNDLE = "ca.bundle"
FOLLOW = "ca.follow"
CRL = "ca.crl"
STATUS = "ca.status"

MAX_NAMES = 32
MAX_ROWS = 1000


class Nothing(msgspec.Struct, frozen=True):
    """No body, or no answer but that it was done."""


class JoinBody(msgspec.Struct, frozen=True):
    """A node's first request, with its token's secret."""

    secret: bytes
    csr: bytes
    profile: str = ""  # Empty: what the token is for.


class IssueBody(msgspec.Struct, frozen=True):
    """A certificate for somebody else."""

    csr: bytes
    profile: str
    subject: str
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    lifetime: float | None = None


class RenewBody(msgspec.Struct, frozen=True):
    """The caller's own certificate again, for the key of this request."""

    csr: bytes


class ChainAnswer(msgspec.Struct, frozen=True):
    """A certificate with its chain, leaf first, root last; and the trust bundle of now."""

    chain: tuple[bytes, ...]
    bundle: bytes = b""


class RevokeBody(msgspec.Struct, frozen=True):
    """By serial number or SHA-256 fingerprint, in hex."""

    which: str
    reason: str = "unspecified"


class WhichBody(msgspec.Struct, frozen=True):
    """A certificate by serial number or fingerprint, in hex."""

    which: str


class ListBody(msgspec.Struct, frozen=True):
    """Certificates, newest first. `after`: where the page before ended; `live`: neither ended nor revoked."""

    subject: str = ""
    profile: str = ""
    live: bool = False
    after: int = 0
    limit: int = 100


class CertificateRow(msgspec.Struct, frozen=True):
    """One certificate."""

    serial: str
    fingerprint: str
    profile: str
    subject: str
    names: tuple[str, ...]
    roles: tuple[str, ...]
    not_before: float
    not_after: float
    revoked_at: float | None = None
    reason: str = ""
    der: bytes = b""


class ListAnswer(msgspec.Struct, frozen=True):
    """Rows, newest first; `following`: where the next page begins, 0 when there is none."""

    certificates: tuple[CertificateRow, ...]
    following: int = 0


class TokenBody(msgspec.Struct, frozen=True):
    """A token for somebody to join with."""

    name: str
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    profile: str = "node"
    ttl: float = 600.0


class TokenAnswer(msgspec.Struct, frozen=True):
    """The token, to be shown once."""

    token: str
    expires: float


class AuditBody(msgspec.Struct, frozen=True):
    """The last lines of the audit log."""

    limit: int = 100


class AuditAnswer(msgspec.Struct, frozen=True):
    """Lines, oldest first; and the head."""

    lines: tuple[AuditLine, ...]
    seq: int
    hash: str


class FollowBody(msgspec.Struct, frozen=True):
    """Trust bundles from now on; at once when there is a newer one than `generation`."""

    generation: int


class BundleAnswer(msgspec.Struct, frozen=True):
    """A trust bundle."""

    bundle: bytes


class CrlAnswer(msgspec.Struct, frozen=True):
    """CRLs, DER, one an issuer."""

    crls: tuple[bytes, ...]


class StatusAnswer(msgspec.Struct, frozen=True):
    """What the authority is doing."""

    name: str
    counts: dict[str, int]
    generation: int
    followers: int
    logs: tuple[str, ...]
    log_failures: dict[str, str]
    audit_seq: int
    audit_hash: str
    intermediate: int

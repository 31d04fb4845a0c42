"""Why a peer is refused: every reason of the verifier, and the TLS alert that says it (RFC 8446 section 6.2)."""

from __future__ import annotations

from enum import Enum

from control.handshake.alerts import Alert
from control.handshake.verify import Fault


class Reason(Enum):
    """The outcome of a verification; the value is its name in reports and counters."""

    GOOD = "good"
    MALFORMED = "malformed"  # No chain, or a certificate, a role or an SCT list that cannot be parsed.
    UNKNOWN_CA = "unknown-ca"  # Mis-issued: by an authority that is not trusted here.
    UNACCEPTABLE = "unacceptable"  # RFC 5280 forbids it in another way.
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    WRONG_NAME = "wrong-name"
    WRONG_PURPOSE = "wrong-purpose"
    REVOKED = "revoked"
    ISSUER_REVOKED = "issuer-revoked"  # An intermediate, or the anchor.
    WRONG_PIN = "wrong-pin"
    WRONG_ROLE = "wrong-role"
    NO_SCT = "no-sct"  # Not logged.
    SCT_UNKNOWN_LOG = "sct-unknown-log"
    SCT_SIGNATURE = "sct-signature"  # Also: of another certificate.
    SCT_FUTURE = "sct-future"
    SCT_LOG_RETIRED = "sct-log-retired"  # Given when the log was not yet, or no longer, accepted.
    SCT_WRONG_SHARD = "sct-wrong-shard"  # The certificate ends outside the log's temporal shard.
    SCT_TOO_FEW = "sct-too-few"
    INCLUSION_MISSING = "inclusion-missing"
    INCLUSION_WRONG = "inclusion-wrong"
    INCLUSION_UNAVAILABLE = "inclusion-unavailable"  # No log answers: the only reason that a policy may pass over.
    TRUST_STALE = "trust-stale"  # Not the peer's fault: our trust bundle is too old to judge by.

    @property
    def alert(self) -> Alert | None:
        """The TLS alert; None for GOOD."""
        return _ALERTS.get(self)


_ALERTS = {
    Reason.MALFORMED: Alert.BAD_CERTIFICATE,
    Reason.UNKNOWN_CA: Alert.UNKNOWN_CA,
    Reason.UNACCEPTABLE: Alert.BAD_CERTIFICATE,
    Reason.EXPIRED: Alert.CERTIFICATE_EXPIRED,
    Reason.NOT_YET_VALID: Alert.CERTIFICATE_EXPIRED,
    Reason.WRONG_NAME: Alert.BAD_CERTIFICATE,
    Reason.WRONG_PURPOSE: Alert.UNSUPPORTED_CERTIFICATE,
    Reason.REVOKED: Alert.CERTIFICATE_REVOKED,
    Reason.ISSUER_REVOKED: Alert.CERTIFICATE_REVOKED,
    Reason.WRONG_PIN: Alert.CERTIFICATE_UNKNOWN,
    Reason.WRONG_ROLE: Alert.ACCESS_DENIED,
    Reason.NO_SCT: Alert.CERTIFICATE_UNKNOWN,
    Reason.SCT_UNKNOWN_LOG: Alert.CERTIFICATE_UNKNOWN,
    Reason.SCT_SIGNATURE: Alert.BAD_CERTIFICATE,
    Reason.SCT_FUTURE: Alert.CERTIFICATE_UNKNOWN,
    Reason.SCT_LOG_RETIRED: Alert.CERTIFICATE_UNKNOWN,
    Reason.SCT_WRONG_SHARD: Alert.CERTIFICATE_UNKNOWN,
    Reason.SCT_TOO_FEW: Alert.CERTIFICATE_UNKNOWN,
    Reason.INCLUSION_MISSING: Alert.CERTIFICATE_UNKNOWN,
    Reason.INCLUSION_WRONG: Alert.CERTIFICATE_UNKNOWN,
    Reason.INCLUSION_UNAVAILABLE: Alert.CERTIFICATE_UNKNOWN,
    Reason.TRUST_STALE: Alert.CERTIFICATE_UNKNOWN,
}

PATH_REASONS = {
    Fault.EXPIRED: Reason.EXPIRED,
    Fault.NOT_YET_VALID: Reason.NOT_YET_VALID,
    Fault.UNKNOWN_CA: Reason.UNKNOWN_CA,
    Fault.PURPOSE: Reason.WRONG_PURPOSE,
    Fault.NAME: Reason.WRONG_NAME,
    Fault.UNACCEPTABLE: Reason.UNACCEPTABLE,
}


class Refusal(Exception):
    """Inside the verifier: a check that fails."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text

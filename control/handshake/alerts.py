"""TLS alerts (RFC 8446 section 6) that this side raises, as an exception with a reason for people."""

from __future__ import annotations

from enum import IntEnum

from dataplane.tables import TransportError

CRYPTO_ERROR = int(TransportError.CRYPTO_ERROR)  # RFC 9001 section 4.8: an alert is sent as 0x0100 + alert.


class Alert(IntEnum):
    """The alerts named in this package. (aioquic's list lacks certificate_required.)"""

    UNEXPECTED_MESSAGE = 10
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    INTERNAL_ERROR = 80
    MISSING_EXTENSION = 109
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


class HandshakeAbort(Exception):
    """Ends the handshake with a transport error code and a reason that goes to the peer too."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @classmethod
    def alert(cls, alert: int, reason: str) -> HandshakeAbort:
        """With a TLS alert."""
        return cls(CRYPTO_ERROR + alert, reason)

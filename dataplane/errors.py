"""Every exception of the data plane's Python side. The text of each says what happened and, where one can,
what to do."""

from __future__ import annotations

from typing import Self

from dataplane.tables import TransportError

# TLS alert names, RFC 8446 section 6; QUIC carries them as transport errors 0x0100 + alert (RFC 9001 section
# 4.8).
TLS_ALERTS: dict[int, str] = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}


_TRANSPORT_NAMES = {int(error): error.name for error in TransportError}


class StoqError(Exception):
    """Base of all errors of STOQ."""

    def again(self) -> Self:
        """A copy to raise: one cause ends many waits, and each gets a traceback of its own."""
        copy = type(self).__new__(type(self))
        copy.args = self.args
        copy.__dict__.update(self.__dict__)
        return copy


class AddressError(StoqError, ValueError):
    """An address that STOQ cannot use: not IPv6, or not parseable."""


class ConfigError(StoqError, ValueError):
    """A configuration value that is out of range or contradicts another."""


class DatapathError(StoqError):
    """The C datapath could not be opened or has stopped; ``code`` is a negative errno or 0."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class ConnectionClosed(StoqError):
    """The connection is over.

    ``code`` is the transport error (or with ``application`` the application's code), ``remote`` says that the
    peer closed; ``idle``, ``reset`` and ``version`` say that a timeout, a stateless reset or version
    negotiation ended it.
    """

    def __init__(
        self,
        code: int,
        reason: str = "",
        *,
        application: bool = False,
        remote: bool = False,
        idle: bool = False,
        reset: bool = False,
        version: bool = False,
        frame_type: int = 0,
    ) -> None:
        self.code = code
        self.reason = reason
        self.application = application
        self.remote = remote
        self.idle = idle
        self.reset = reset
        self.version = version
        self.frame_type = frame_type
        super().__init__(self._describe())

    @property
    def name(self) -> str:
        """The code's name: of a transport error, a TLS alert, or ``application error N``."""
        if self.application:
            return f"application error {self.code:#x}"
        if 0x100 <= self.code <= 0x1FF:
            return f"TLS alert {TLS_ALERTS.get(self.code - 0x100, 'unknown')} ({self.code - 0x100})"
        return _TRANSPORT_NAMES.get(self.code, f"transport error {self.code:#x}")

    @property
    def clean(self) -> bool:
        """Closed without any error: NO_ERROR, or the application's code 0."""
        return self.code == 0 and not (self.idle or self.reset or self.version)

    def _describe(self) -> str:
        if self.idle:
            return "the connection timed out: the peer stopped answering" + (
                f" ({self.reason})" if self.reason else ""
            )
        if self.reset:
            return "the peer no longer knows this connection (stateless reset)"
        if self.version:
            return "the peer speaks no QUIC version in common with us"
        who = "the peer" if self.remote else "we"
        return f"{who} closed the connection: {self.name}" + (f": {self.reason}" if self.reason else "")


class HandshakeFailed(ConnectionClosed):
    """The connection ended before or in its TLS handshake; ``alert`` is the TLS alert's number, if it was
    one."""

    @property
    def alert(self) -> int | None:
        """TLS alert, RFC 8446 section 6."""
        return self.code - 0x100 if not self.application and 0x100 <= self.code <= 0x1FF else None

    @property
    def alert_name(self) -> str | None:
        """The alert's name in RFC 8446."""
        return None if self.alert is None else TLS_ALERTS.get(self.alert, f"alert {self.alert}")


class StreamError(StoqError):
    """A stream cannot be used as asked."""


class StreamReset(StreamError):
    """The peer reset its sending part of the stream with the application's ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the stream with code {code:#x}")
        self.code = code


class StreamStopped(StreamError):
    """The peer asked us to stop sending on the stream, with the application's ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer asked us to stop sending, with code {code:#x}")
        self.code = code


class IncompleteRead(StreamError):
    """The stream ended before the bytes asked for had come; ``partial`` is what did come."""

    def __init__(self, partial: bytes, expected: int) -> None:
        super().__init__(f"the stream ended after {len(partial)} of {expected} bytes")
        self.partial = partial
        self.expected = expected


class PoolError(StoqError):
    """A connection pool cannot give out a stream."""


class PoolFull(PoolError):
    """As many callers wait, or as many peers are in use, as the pool permits: come back later, or raise the
    limit that the text names."""


class PoolClosed(PoolError):
    """The pool was closed."""


class PeerUnavailable(PoolError):
    """No connection to the peer could be made; ``cause`` is why the last one could not, ``retry_in`` how many
    seconds from then the pool tries again at the earliest."""

    def __init__(self, peer: str, cause: StoqError, attempts: int, retry_in: float) -> None:
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"no connection to {peer} after {tries} (next in {retry_in:.1f} s): {cause}")
        self.cause = cause
        self.retry_in = retry_in


class DatagramTooLarge(StoqError, ValueError):
    """The datagram fits no chunk or the peer accepts none that large."""

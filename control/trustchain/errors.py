"""Every error of TrustChain, in one place. The text of each says what happened and, where one can, what to do."""

from __future__ import annotations

from dataplane.errors import StoqError


class TrustError(StoqError):
    """Base of all errors of TrustChain."""


class AccessDenied(TrustError):
    """The caller's roles do not permit the operation."""


class BadRequest(TrustError):
    """A request that could never be granted as it is: malformed, or against a profile's rules."""


class Replayed(BadRequest):
    """A request that came before, or whose time is outside the window in which it could be told that it did not."""


class NotIssued(TrustError):
    """A certificate that was permitted could not be made: the logs, the issuer or the clock stand in the way."""


class NotFound(TrustError):
    """There is no such certificate, token or issuer."""


class Revoked(TrustError):
    """The certificate, its line of renewals or its key was revoked."""


class TokenRefused(TrustError):
    """A join token that is unknown, expired, used, or presented too often wrongly."""


class Busy(TrustError):
    """A bound is reached: too many at once, or a table is full. Try again later, or raise the limit that is named."""


class KeyUnavailable(TrustError):
    """A private key cannot be read, unlocked, made or used."""


class CaError(TrustError):
    """The directory of a certificate authority is missing, incomplete, or in use by another process."""


class StoreError(TrustError):
    """What was decided could not be made durable; it did not happen."""


class AuditBroken(TrustError):
    """The audit log was altered, or does not reach as far as the database says. Nothing is issued until a person has
    looked."""


class SubscriptionOverrun(TrustError):
    """A subscriber did not take its events in time: it must read the revocations anew."""

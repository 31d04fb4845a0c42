"""Every error of the Certificate Transparency log, in one place.

Two families, told apart by what may go on afterwards: a `LogError` concerns one request or one try, and the
log goes on; a `LogStopped` means that going on could make the log inconsistent, so nothing is signed any more
until a person has looked.
"""

from __future__ import annotations

from dataplane.errors import StoqError


class LogError(StoqError):
    """One request or one try failed; the log goes on."""


class Malformed(LogError):
    """Bytes that are not what RFC 6962, static-ct-api or C2SP say they are."""


class Refused(LogError):
    """A submission this log does not take; the text says why and what it does take."""


class Unavailable(LogError):
    """Not now: storage or lock do not answer, the queue is full, or the clock is behind. Try again later."""


class NotFound(LogError):
    """There is no such object, entry or proof."""


class LockConflict(LogError):
    """The lock store holds another head than the one we meant to replace: somebody else signed."""


class ProofError(LogError):
    """A Merkle proof, a signature or an SCT does not hold."""


class LogStopped(StoqError):
    """The log cannot prove itself consistent, or no longer knows what is durable; it signs nothing more."""

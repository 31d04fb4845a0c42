"""Errors of calls."""

from __future__ import annotations

from dataplane.errors import StoqError


class RpcError(StoqError):
    """A call could not be made."""


class FrameError(RpcError):
    """A frame that is malformed, too large or cut short."""


class StreamEnded(FrameError):
    """The stream ended where a frame could have begun."""


class CallFailed(RpcError):
    """The other side answered with a failure. `kind` is the name of its error, for programs."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

"""What goes over a call's stream."""

from __future__ import annotations

import msgspec

VERSION = 1
ID_BYTES = 16


class Request(msgspec.Struct, frozen=True, tag="request"):
    """One call. `id`: 16 random bytes, by which a repetition is told; `time`: the caller's, seconds since 1970."""

    method: str
    id: bytes
    time: float
    body: msgspec.Raw
    version: int = VERSION


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What the method returned, or one of its answers."""

    body: msgspec.Raw
    version: int = VERSION


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Why there is no answer. `kind` is for programs, `text` for people."""

    kind: str
    text: str
    version: int = VERSION

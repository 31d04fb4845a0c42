"""Frames on a stream: a 4-byte big-endian length, then MessagePack of one typed struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from control.rpc.errors import FrameError, StreamEnded
from dataplane import IncompleteRead, Stream

MAX_FRAME_BYTES = 16 << 20  # A trust bundle with as many revocations as it may have is the largest.
LENGTH_BYTES = 4

S = TypeVar("S")


def write_frame(stream: Stream, message: msgspec.Struct) -> None:
    """Queue one frame. Raises FrameError when nobody would take it."""
    data = msgspec.msgpack.encode(message)
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(data)} bytes; {MAX_FRAME_BYTES} are taken: ask for less at a time")
    stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)


def decode(data: bytes | msgspec.Raw, kind: type[S], what: str) -> S:
    """MessagePack of a `kind`. Raises FrameError, whatever is wrong with it."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"{what} is malformed: {error}") from None


async def read_frame(stream: Stream, kind: type[S], limit: int = MAX_FRAME_BYTES) -> S:
    """The next frame, which must be a `kind`. Raises FrameError for anything else, StreamEnded when there is none."""
    begun = False
    try:
        length = int.from_bytes(await stream.readexactly(LENGTH_BYTES), "big")
        if length > limit:
            raise FrameError(f"the peer announces a frame of {length} bytes; {limit} are taken")
        begun = True
        return decode(await stream.readexactly(length), kind, "the peer's message")
    except IncompleteRead as error:
        if begun or error.partial:
            raise FrameError("the peer ended the stream in the middle of a message") from None
        raise StreamEnded("the peer ended the stream, and there was no message") from None

"""The binary records of a capture: a head of kind and length, then that many bytes.

    offset  bytes            record (little endian)
    0       1                kind: 1 frame, 2 secrets, 3 figures, 4 end
    1       3                zero
    4       4                length of what follows

A frame is time (8, CLOCK_MONOTONIC, ns), length on the wire (4), queue (4), verdict (4), then the bytes that
were copied. Secrets are key log lines. Figures and the end are JSON.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from control.local.protocol import ProtocolError
from dataplane.guard import SNAP_BYTES, Mirrored

_HEAD = struct.Struct("<B3xI")
_FRAME = struct.Struct("<QIII")
MAX_RECORD_BYTES = 1 << 20  # All secrets that a key log keeps come as one.


class Kind(IntEnum):
    """Of a record."""

    FRAME = 1
    SECRETS = 2
    FIGURES = 3
    END = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """dataplane.guard.Mirrored, but for the verdict: of a newer node, its number may mean nothing to us."""

    time_ns: int
    wire_bytes: int
    queue: int
    verdict: int
    data: bytes


class Figures(msgspec.Struct):
    """So far: frames sent to the client, their bytes on the wire, copies that found the ring full (None: the
    guard does not say). At the end with the reason for it, empty when the client wanted it."""

    frames: int = 0
    bytes: int = 0
    dropped: int | None = None
    reason: str = ""


def record(kind: Kind, payload: bytes) -> bytes:
    """A record of any kind."""
    return _HEAD.pack(kind, len(payload)) + payload


def frame_record(frame: Mirrored) -> bytes:
    """A frame's record."""
    head = _FRAME.pack(frame.time_ns, frame.frame_bytes, frame.queue, frame.verdict)
    return _HEAD.pack(Kind.FRAME, len(head) + len(frame.data)) + head + frame.data


def figures_record(kind: Kind, figures: Figures) -> bytes:
    """FIGURES or END."""
    return record(kind, msgspec.json.encode(figures))


async def read_record(reader: asyncio.StreamReader) -> Frame | bytes | tuple[Kind, Figures]:
    """The next record: a frame, secrets, or figures. Raises ProtocolError, IncompleteReadError at the end of
    the connection."""
    kind, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if length > MAX_RECORD_BYTES:
        raise ProtocolError("bad_answer", f"a record of {length} bytes: not what a node sends")
    payload = await reader.readexactly(length)
    if kind == Kind.FRAME:
        if not _FRAME.size <= length <= _FRAME.size + SNAP_BYTES:
            raise ProtocolError("bad_answer", f"a frame's record of {length} bytes")
        time_ns, wire_bytes, queue, verdict = _FRAME.unpack_from(payload)
        return Frame(time_ns, wire_bytes, queue, verdict, payload[_FRAME.size :])
    if kind == Kind.SECRETS:
        return payload
    if kind in (Kind.FIGURES, Kind.END):
        try:
            return Kind(kind), msgspec.json.decode(payload, type=Figures)
        except msgspec.DecodeError as error:
            raise ProtocolError("bad_answer", f"figures that are none ({error})") from None
    raise ProtocolError("bad_answer", f"a record of the unknown kind {kind}")

"""What can be read off a QUIC datagram without keys (RFC 8999, RFC 9000 section 17, RFC 9369 section 3.2).

Used by the relay while it forwards and by the proofs afterwards. Also the format of the relay's capture file.
Nothing here trusts its input: a datagram that does not parse yields the packets before the bad spot.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

QUIC_V1 = 0x00000001
QUIC_V2 = 0x6B3343CF
RETRY_TAG_BYTES = 16
CAPTURE_HEADER = struct.Struct("!BBHdI")  # direction, delivered, path number, monotonic seconds, length


class Kind(StrEnum):
    INITIAL = "initial"
    ZERO_RTT = "0rtt"
    HANDSHAKE = "handshake"
    RETRY = "retry"
    VERSION_NEGOTIATION = "version_negotiation"
    UNKNOWN_VERSION = "unknown_version"
    SHORT = "short"


# The two type bits by version: RFC 9000 section 17.2 and RFC 9369 section 3.2.
LONG_TYPES = {
    QUIC_V1: (Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE, Kind.RETRY),
    QUIC_V2: (Kind.RETRY, Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE),
}


@dataclass(frozen=True)
class Packet:
    """One packet of a datagram, at data[start:end]; the protected packet number begins at `number_at`."""

    kind: Kind
    start: int
    end: int
    version: int = 0
    dcid: bytes = b""
    scid: bytes = b""
    token: bytes = b""
    number_at: int = 0
    versions: tuple[int, ...] = ()


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The variable-length integer (RFC 9000 section 16) at `at` and where it ends. Raises ValueError past the
    end.
    """
    if at >= len(data):
        raise ValueError("truncated integer")
    length = 1 << (data[at] >> 6)
    if at + length > len(data):
        raise ValueError("truncated integer")
    return int.from_bytes(data[at : at + length], "big") & ((1 << (8 * length - 2)) - 1), at + length


def _take(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if at + length > len(data):
        raise ValueError("truncated field")
    return data[at : at + length], at + length


def _long_packet(data: bytes, start: int) -> Packet:
    version_bytes, at = _take(data, start + 1, 4)
    version = int.from_bytes(version_bytes, "big")
    length_bytes, at = _take(data, at, 1)
    dcid, at = _take(data, at, length_bytes[0])
    length_bytes, at = _take(data, at, 1)
    scid, at = _take(data, at, length_bytes[0])
    if version == 0:
        versions = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(at, len(data) - 3, 4))
        return Packet(Kind.VERSION_NEGOTIATION, start, len(data), 0, dcid, scid, versions=versions)
    if version not in LONG_TYPES:
        return Packet(Kind.UNKNOWN_VERSION, start, len(data), version, dcid, scid)
    kind = LONG_TYPES[version][(data[start] >> 4) & 3]
    if kind is Kind.RETRY:
        if len(data) - at < RETRY_TAG_BYTES:
            raise ValueError("truncated Retry")
        return Packet(kind, start, len(data), version, dcid, scid, token=data[at:-RETRY_TAG_BYTES])
    token = b""
    if kind is Kind.INITIAL:
        length, at = read_varint(data, at)
        token, at = _take(data, at, length)
    length, at = read_varint(data, at)
    if at + length > len(data):
        raise ValueError("truncated packet")
    return Packet(kind, start, at + length, version, dcid, scid, token, number_at=at)


def packets(data: bytes) -> Iterator[Packet]:
    """The packets of a datagram in order. A short header ends it; so does anything that is not QUIC."""
    at = 0
    while at < len(data):
        if not data[at] & 0x80:
            if data[at] & 0x40:
                yield Packet(Kind.SHORT, at, len(data))
            return
        try:
            packet = _long_packet(data, at)
        except ValueError:
            return
        yield packet
        at = packet.end


@dataclass(frozen=True)
class Captured:
    """A datagram as the relay received it. `path` counts the flow's upstream sockets: 0 until the first
    rebinding.
    """

    to_server: bool
    delivered: bool
    path: int
    time_s: float
    data: bytes


def pack_captured(captured: Captured) -> bytes:
    header = CAPTURE_HEADER.pack(
        captured.to_server, captured.delivered, captured.path, captured.time_s, len(captured.data)
    )
    return header + captured.data


def read_capture(path: Path) -> Iterator[Captured]:
    content = path.read_bytes()
    at = 0
    while at + CAPTURE_HEADER.size <= len(content):
        to_server, delivered, number, time_s, length = CAPTURE_HEADER.unpack_from(content, at)
        at += CAPTURE_HEADER.size
        yield Captured(bool(to_server), bool(delivered), number, time_s, content[at : at + length])
        at += length

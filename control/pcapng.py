"""Writes packet captures: pcapng (draft-ietf-opsawg-pcapng), one section, little endian.

Times are nanoseconds since 1970. Blocks are written whole, so a file that ends early is still good up to its
last block.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import BinaryIO

LINKTYPE_ETHERNET = 1
SECRETS_TLS_KEY_LOG = 0x544C534B

_SECTION, _INTERFACE, _STATISTICS, _PACKET, _SECRETS = 0x0A0D0D0A, 1, 5, 6, 0x0A
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_NANOSECONDS = 9  # if_tsresol: ten to the minus nine.
_TEXT_BYTES = 65532  # Longest option: 16 bits, and padded.


class Option(IntEnum):
    """Option codes; those below 10 but COMMENT belong to one kind of block each."""

    COMMENT = 1
    SECTION_APPLICATION = 4
    INTERFACE_NAME = 2
    INTERFACE_DESCRIPTION = 3
    INTERFACE_TIME_RESOLUTION = 9
    PACKET_QUEUE = 6
    STATISTICS_BEGIN = 2
    STATISTICS_END = 3
    STATISTICS_RECEIVED = 4
    STATISTICS_DROPPED = 5


Options = list[tuple[int, bytes]]


def text(value: str) -> bytes:
    """An option's text, cut to what fits, at a character."""
    return value.encode("utf-8", "replace")[:_TEXT_BYTES].decode("utf-8", "ignore").encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _options(options: Options) -> bytes:
    if not options:
        return b""
    parts = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(parts) + bytes(4)  # opt_endofopt


def _time(time_ns: int) -> bytes:
    return struct.pack("<II", time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF)


class PcapngWriter:
    """Writes to `file`, beginning with the section's header. Errors are the file's (OSError)."""

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._interfaces = 0
        head = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        self._block(_SECTION, head + _options([(Option.SECTION_APPLICATION, text(application))]))

    def _block(self, kind: int, body: bytes) -> None:
        body = _padded(body)
        length = struct.pack("<I", 12 + len(body))
        self._file.write(struct.pack("<I", kind) + length + body + length)

    def interface(self, name: str, *, snap: int, description: str = "") -> int:
        """Describe an interface (Ethernet, times in ns); returns its number."""
        options: Options = [(Option.INTERFACE_NAME, text(name))] if name else []
        if description:
            options.append((Option.INTERFACE_DESCRIPTION, text(description)))
        options.append((Option.INTERFACE_TIME_RESOLUTION, bytes([_NANOSECONDS])))
        self._block(_INTERFACE, struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snap) + _options(options))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        time_ns: int,
        data: bytes,
        wire_bytes: int,
        *,
        comment: str = "",
        queue: int | None = None,
    ) -> None:
        """A frame: `data` of `wire_bytes`."""
        options: Options = [(Option.COMMENT, text(comment))] if comment else []
        if queue is not None:
            options.append((Option.PACKET_QUEUE, struct.pack("<I", queue)))
        head = struct.pack("<I", interface) + _time(time_ns) + struct.pack("<II", len(data), wire_bytes)
        self._block(_PACKET, head + _padded(data) + _options(options))

    def secrets(self, key_log: bytes) -> None:
        """Lines of a TLS key log; they serve the packets that come after."""
        self._block(_SECRETS, struct.pack("<II", SECRETS_TLS_KEY_LOG, len(key_log)) + _padded(key_log))

    def statistics(
        self, interface: int, begin_ns: int, end_ns: int, *, received: int, dropped: int | None
    ) -> None:
        """What an interface had seen at `end_ns`; at the end of a capture."""
        options: Options = [
            (Option.STATISTICS_BEGIN, _time(begin_ns)),
            (Option.STATISTICS_END, _time(end_ns)),
            (Option.STATISTICS_RECEIVED, struct.pack("<Q", received)),
        ]
        if dropped is not None:
            options.append((Option.STATISTICS_DROPPED, struct.pack("<Q", dropped)))
        self._block(_STATISTICS, struct.pack("<I", interface) + _time(end_ns) + _options(options))

"""Reads pcapng as the draft (draft-ietf-opsawg-pcapng) has it, knowing nothing of our writer; strict about
lengths."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SECTION, INTERFACE, STATISTICS, PACKET, SECRETS = 0x0A0D0D0A, 1, 5, 6, 10


@dataclass
class Block:
    """A block's body and its options: their code and value, in order."""

    kind: int
    body: bytes
    options: list[tuple[int, bytes]]

    def option(self, code: int) -> bytes:
        [value] = [value for found, value in self.options if found == code]
        return value


def _options(data: bytes) -> list[tuple[int, bytes]]:
    options: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert length == 0 and at + 4 == len(data), "the end of options ends the block"
            return options
        value = data[at + 4 : at + 4 + length]
        assert len(value) == length
        options.append((code, value))
        at += 4 + length + -length % 4
    assert not options, "options end with opt_endofopt"
    return options


def read(path: Path | bytes) -> list[Block]:
    """All blocks; fails for anything that is not exactly a sequence of whole ones."""
    data = path if isinstance(path, bytes) else path.read_bytes()
    blocks = []
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0 and length >= 12 and at + length <= len(data)
        assert struct.unpack_from("<I", data, at + length - 4) == (length,), "the length stands at both ends"
        body = data[at + 8 : at + length - 4]
        fixed = {SECTION: 16, INTERFACE: 8, STATISTICS: 12}.get(kind)
        if kind == PACKET:
            captured = struct.unpack_from("<I", body, 12)[0]
            fixed = 20 + captured + -captured % 4
        if kind == SECRETS:
            size = struct.unpack_from("<I", body, 4)[0]
            fixed = 8 + size + -size % 4
        assert fixed is not None and fixed <= len(body), f"unknown block {kind:#x} or too short"
        blocks.append(Block(kind, body[:fixed], _options(body[fixed:])))
        at += length
    assert blocks[0].kind == SECTION
    magic, major, minor, section = struct.unpack("<IHHq", blocks[0].body)
    assert (magic, major, minor, section) == (0x1A2B3C4D, 1, 0, -1)
    return blocks


@dataclass
class Packet:
    """An enhanced packet block, with its interface's resolution applied."""

    time_ns: int
    data: bytes
    wire_bytes: int
    comment: str
    queue: int


def packets(blocks: list[Block]) -> list[Packet]:
    """The packets of blocks whose interfaces count nanoseconds."""
    found = []
    for block in blocks:
        if block.kind == PACKET:
            interface, high, low, captured, wire = struct.unpack_from("<IIIII", block.body)
            assert interface < sum(before.kind == INTERFACE for before in blocks[: blocks.index(block)])
            data = block.body[20 : 20 + captured]
            assert not any(block.body[20 + captured :]), "padding is zero"
            queue = struct.unpack("<I", block.option(6))[0] if any(o == 6 for o, _ in block.options) else -1
            comment = block.option(1).decode() if any(o == 1 for o, _ in block.options) else ""
            found.append(Packet(high << 32 | low, data, wire, comment, queue))
    return found

"""The capture file, read by a parser of its own and, where they are installed, by Wireshark's programs."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from control.pcapng import PcapngWriter
from tests.python.pcapng import INTERFACE, PACKET, SECRETS, SECTION, STATISTICS, packets, read

NOW = 1_750_000_000_123_456_789
# Ethernet, IPv6, UDP to port 9292, eight bytes.
HEADERS = bytes.fromhex(
    "02000000000202000000000186dd"
    "6000000000101140" + "fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02"
    "d431244c00100000"
)
PACKET_DATA = HEADERS + b"\xc0\0\0\0\1abc"


def written() -> bytes:
    file = io.BytesIO()
    writer = PcapngWriter(file, "stoq test")
    interface = writer.interface("veth0", snap=2048, description="the guard")
    writer.secrets(b"CLIENT_TRAFFIC_SECRET_0 aa bb\n")
    for size in range(60, 70):  # Every padding.
        data = (PACKET_DATA + bytes(range(1, 20)))[:size]
        comment = "DROP_IPV4: " + "é" * (size - 60)
        writer.packet(interface, NOW + size, data, size + 1000, comment=comment, queue=3)
    writer.packet(interface, NOW, b"", 1)
    writer.statistics(interface, NOW - 5, NOW + 5, received=11, dropped=4)
    return file.getvalue()


def test_blocks() -> None:
    blocks = read(written())
    assert [b.kind for b in blocks] == [SECTION, INTERFACE, SECRETS, *([PACKET] * 11), STATISTICS]
    assert blocks[0].option(4) == b"stoq test"
    assert struct.unpack("<HHI", blocks[1].body) == (1, 0, 2048), "Ethernet and the snap length"
    assert (blocks[1].option(2), blocks[1].option(3), blocks[1].option(9)) == (
        b"veth0",
        b"the guard",
        b"\x09",
    )
    secrets = blocks[2].body
    assert struct.unpack_from("<II", secrets) == (0x544C534B, 30)
    assert secrets[8:] == b"CLIENT_TRAFFIC_SECRET_0 aa bb\n\0\0"
    assert blocks[-1].option(4) == struct.pack("<Q", 11) and blocks[-1].option(5) == struct.pack("<Q", 4)
    begin, end = (struct.unpack("<II", blocks[-1].option(code)) for code in (2, 3))
    assert (begin[0] << 32 | begin[1], end[0] << 32 | end[1]) == (NOW - 5, NOW + 5)


def test_packets() -> None:
    found = packets(read(written()))
    for packet, size in zip(found, range(60, 70), strict=False):
        assert packet.time_ns == NOW + size and packet.wire_bytes == size + 1000 and packet.queue == 3
        assert packet.data == (PACKET_DATA + bytes(range(1, 20)))[:size]
        assert packet.comment == "DROP_IPV4: " + "é" * (size - 60)
    assert (found[10].data, found[10].comment, found[10].queue) == (b"", "", -1)


def test_an_unknown_number_of_drops_is_not_zero() -> None:
    file = io.BytesIO()
    PcapngWriter(file, "x").statistics(0, NOW, NOW, received=1, dropped=None)
    assert [code for code, _ in read(file.getvalue())[-1].options] == [2, 3, 4]


def test_texts_that_are_too_long_are_cut_at_a_character() -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file, "x" * 70000)
    writer.packet(writer.interface("", snap=1), NOW, b"1", 1, comment="é" * 40000)
    blocks = read(file.getvalue())
    assert len(blocks[0].option(4)) == 65532
    assert packets(blocks)[0].comment == "é" * 32766


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_wireshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    path.write_bytes(written())
    fields = ["frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.comment"]
    fields += ["udp.dstport", "ipv6.dst"]
    argv = ["tshark", "-r", str(path), "-T", "fields", *(part for f in fields for part in ("-e", f))]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 11
    assert rows[2] == ["1750000000.123456851", "1062", "62", "veth0", "DROP_IPV4: éé", "9292", "fd00::2"]

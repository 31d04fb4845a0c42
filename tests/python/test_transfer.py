"""A file over a stream: what the receiver refuses, and that the sender learns why. On the virtual clock."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest

from control.rpc import write_frame
from control.transfer import (
    FileHeader,
    Receipt,
    TransferError,
    hash_file,
    read_frame,
    receive_file,
    send_file,
)
from dataplane import Stream
from tests.python.conftest import Pki
from tests.python.simulated import Pair, run

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).digest()


def receiving(
    pki: Pki, tmp_path: Path, header: FileHeader, body: bytes, *, max_bytes: int = 1 << 30
) -> tuple[Receipt, str]:
    """Send `header` and `body` by hand; the receipt and what the receiver raised (or an empty text)."""

    async def main(pair: Pair) -> tuple[Receipt, str]:
        async def receiver() -> str:
            async with await pair.server.accept_stream() as stream:
                try:
                    await receive_file(stream, tmp_path, max_bytes=max_bytes)
                except TransferError as error:
                    return str(error)
            return ""

        task = asyncio.ensure_future(receiver())
        ours = await pair.client.open_stream()
        write_frame(ours, header)
        ours.write(body)
        ours.write_eof()
        receipt = await read_frame(ours, Receipt)
        return receipt, await task

    return run(pki, main)


def header(name: str = "f", size: int = len(CONTENT), sha256: bytes = DIGEST, version: int = 1) -> FileHeader:
    return FileHeader(name=name, size=size, sha256=sha256, format=version)


def test_a_good_file(pki: Pki, tmp_path: Path) -> None:
    receipt, error = receiving(pki, tmp_path, header(), CONTENT)
    assert (receipt.sha256, receipt.size, receipt.error, error) == (DIGEST, len(CONTENT), "", "")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("announced", "body", "text"),
    [
        (header(name="../f"), CONTENT, "is not a file name"),
        (header(name=""), CONTENT, "is not a file name"),
        (header(name=".."), CONTENT, "is not a file name"),
        (header(name="a" * 300), CONTENT, "is not a file name"),
        (header(name="a\0b"), CONTENT, "is not a file name"),
        (header(size=1 << 31), CONTENT, "are taken"),
        (header(size=-1), CONTENT, "are taken"),
        (header(sha256=bytes(32)), CONTENT, "announced was 00000"),
        (header(), CONTENT[:-1], "1 bytes short"),
        (header(), CONTENT + b"x", "more than the 256000 bytes"),
        (header(version=2), CONTENT, "format 2 is unknown"),
    ],
)
def test_what_is_refused_leaves_no_file(
    pki: Pki, tmp_path: Path, announced: FileHeader, body: bytes, text: str
) -> None:
    receipt, error = receiving(pki, tmp_path, announced, body)
    assert text in receipt.error and text in error
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_way_of_the_partial_file_is_not_followed(pki: Pki, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/.f.part").symlink_to(victim)
    receipt, _ = receiving(pki, tmp_path / "in", header(), CONTENT)
    assert "cannot store it" in receipt.error
    assert victim.read_text() == "precious"
    assert (tmp_path / "in/.f.part").is_symlink(), "what another transfer made is not ours to remove"


def test_the_sender_is_told_while_it_still_sends(pki: Pki, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(bytes(30_000_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/f").write_text("here already")

    async def main(pair: Pair) -> None:
        async def receiver() -> None:
            async with await pair.server.accept_stream() as stream:
                with pytest.raises(TransferError):
                    await receive_file(stream, tmp_path / "in")

        task = asyncio.ensure_future(receiver())
        async with await pair.client.open_stream() as stream:
            with pytest.raises(TransferError, match="exists already and is not overwritten"):
                await send_file(stream, source, hash_file(source))
        await task

    run(pki, main)


def test_progress_grows_to_the_whole(pki: Pki, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(CONTENT * 20)
    (tmp_path / "in").mkdir()
    seen: list[int] = []

    async def main(pair: Pair) -> None:
        async def receiver() -> None:
            async with await pair.server.accept_stream() as stream:
                await receive_file(stream, tmp_path / "in")

        task = asyncio.ensure_future(receiver())
        async with await pair.client.open_stream() as stream:
            sent = await send_file(stream, source, hash_file(source), seen.append)
            assert sent.size == len(CONTENT) * 20 and sent.seconds > 0
        await task

    run(pki, main)
    assert seen == sorted(seen) and seen[-1] >= len(CONTENT) * 20


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\0\0\0", "in the middle of a message"),
        (b"\0\0\0\x10short", "in the middle of a message"),
        (b"\0\0\xff\xff", "65535 bytes; 8192"),
        (b"\0\0\0\x01\xc1", "malformed"),
        (b"\0\0\0\x01\x80", "malformed"),
        (len(m := msgspec.msgpack.encode(header())).to_bytes(4, "big") + m, "malformed"),
    ],
)
def test_frames_that_are_none(pki: Pki, raw: bytes, text: str) -> None:
    async def main(pair: Pair) -> None:
        ours: Stream = await pair.client.open_stream()
        ours.write(raw)
        ours.write_eof()
        with pytest.raises(TransferError, match=text):
            await read_frame(await pair.server.accept_stream(), Receipt)

    run(pki, main)

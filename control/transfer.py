"""A file over one `stoq/1` stream: the main job.

      sender                                              receiver
      frame(FileHeader: name, size, SHA-256) ──────────▶  checks name and size, opens NAME.part
      the file's bytes, FIN ───────────────────────────▶  writes them, reads them back, compares SHA-256
      ◀─────────────────────────────────────────────────  frame(Receipt: what arrived), FIN

A frame is a 4-byte big-endian length and MessagePack. Both sides compare the hash. The file gets its name
only when it is complete and right; nothing is overwritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from control.rpc import FrameError, frames, write_frame
from dataplane import StoqError, Stream, StreamStopped

FORMAT = 1
MAX_FRAME_BYTES = 8192  # A header holds a name of at most 255 bytes.
HASH_BLOCK_BYTES = 1 << 20

Advance = Callable[[int], None]
S = TypeVar("S")


class TransferError(StoqError):
    """A file could not be sent or received; the text says why."""


class FileHeader(msgspec.Struct, frozen=True, tag="file"):
    """What is coming."""

    name: str
    size: int
    sha256: bytes
    format: int = FORMAT


class Receipt(msgspec.Struct, frozen=True, tag="receipt"):
    """What arrived; `error` is empty when it is what was announced."""

    size: int
    sha256: bytes
    error: str = ""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Sent:
    """A finished transfer; `seconds` from the first byte written to the last one acknowledged."""

    name: str
    size: int
    sha256: str
    seconds: float

    @property
    def goodput_bps(self) -> float:
        """File bits per second."""
        return self.size * 8 / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """A file that arrived as announced; `seconds` from the header to the last byte."""

    path: Path
    size: int
    sha256: str
    seconds: float


async def read_frame(stream: Stream, kind: type[S]) -> S:
    """The next frame, which must be a `kind`. Raises TransferError for anything else."""
    try:
        return await frames.read_frame(stream, kind, MAX_FRAME_BYTES)
    except FrameError as error:
        raise TransferError(str(error)) from None


def hash_file(path: Path, advance: Advance | None = None) -> bytes:
    """SHA-256 of a file (32 bytes)."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            if advance is not None:
                advance(count)
    return digest.digest()


async def send_file(stream: Stream, path: Path, digest: bytes, acknowledged: Advance | None = None) -> Sent:
    """Send a file whose SHA-256 is `digest` and wait for the receipt; `acknowledged` gets the total as it
    grows.

    Raises TransferError when the file changes under way or the receipt says otherwise.
    """
    try:
        return await _send_file(stream, path, digest, acknowledged)
    except StreamStopped:
        # The receiver says why in its receipt, which it sent before it asked us to stop.
        receipt = await read_frame(stream, Receipt)
        raise TransferError(f"the peer refused {path.name}: {receipt.error}") from None


async def _send_file(stream: Stream, path: Path, digest: bytes, acknowledged: Advance | None) -> Sent:
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            begin = time.monotonic()
            write_frame(stream, FileHeader(name=path.name, size=size, sha256=digest))
            left = size
            while left:
                async with stream.write_view() as view:
                    count = file.readinto(view.data[: min(left, len(view.data))])
                    if not count:
                        raise TransferError(f"{path} became shorter while it was sent")
                    view.commit(count)
                left -= count
                if acknowledged is not None:
                    acknowledged(stream.acknowledged_bytes)
    except OSError as error:
        raise TransferError(f"cannot read {path}: {error.strerror}") from None
    stream.write_eof()
    waiting = asyncio.ensure_future(stream.wait_acknowledged())
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.1)
            if acknowledged is not None:
                acknowledged(stream.acknowledged_bytes)
        waiting.result()
    finally:
        waiting.cancel()
    seconds = time.monotonic() - begin
    receipt = await read_frame(stream, Receipt)
    if receipt.error:
        raise TransferError(f"the peer refused {path.name}: {receipt.error}")
    if receipt.sha256 != digest or receipt.size != size:
        raise TransferError(
            f"{path.name} arrived with SHA-256 {receipt.sha256.hex()}, sent was {digest.hex()}"
        )
    return Sent(path.name, size, digest.hex(), seconds)


def _target(directory: Path, header: FileHeader, max_bytes: int) -> Path:
    """Where a file may be put. Raises TransferError for a name or size that is not acceptable."""
    name = header.name
    if header.format != FORMAT:
        raise TransferError(f"format {header.format} is unknown here; {FORMAT} is spoken")
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 250:
        raise TransferError(f"{name!r} is not a file name")
    if not 0 <= header.size <= max_bytes:
        raise TransferError(f"{header.size} bytes announced; {max_bytes} are taken")
    target = directory / name
    if target.exists():
        raise TransferError(f"{name} exists already and is not overwritten")
    return target


async def receive_file(
    stream: Stream, directory: Path, *, max_bytes: int = 1 << 40, advance: Advance | None = None
) -> Received:
    """Receive one file into `directory` and answer with the receipt. Raises TransferError, after telling the
    peer why."""
    header = await read_frame(stream, FileHeader)
    part: Path | None = None
    try:
        target = _target(directory, header, max_bytes)
        path = target.with_name(f".{target.name}.part")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        part = path  # Ours from here on, so ours to remove.
        begin = time.monotonic()
        await _write_body(stream, descriptor, header.size, advance)
        seconds = time.monotonic() - begin
        # Read back, so that the hash is of what is stored; in a thread, because it is a second's work for a
        # gigabyte.
        digest = await asyncio.get_running_loop().run_in_executor(None, hash_file, part)
        if digest != header.sha256:
            raise TransferError(f"SHA-256 is {digest.hex()}, announced was {header.sha256.hex()}")
        os.link(part, target)  # Unlike rename, fails when the name was taken meanwhile.
        write_frame(stream, Receipt(size=header.size, sha256=digest))
        stream.write_eof()
        return Received(target, header.size, digest.hex(), seconds)
    except (TransferError, OSError) as error:
        text = f"cannot store it: {error.strerror}" if isinstance(error, OSError) else str(error)
        write_frame(stream, Receipt(size=0, sha256=b"", error=text))
        stream.write_eof()
        raise TransferError(f"{header.name}: {text}") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


async def _write_body(stream: Stream, descriptor: int, size: int, advance: Advance | None) -> None:
    left = size
    with open(descriptor, "wb", buffering=0) as file:
        while True:
            async with stream.read_view() as view:
                if not view:
                    break
                if len(view) > left:
                    raise TransferError(f"more than the {size} bytes announced arrived")
                written = file.write(view)
                while written < len(view):
                    written += file.write(view[written:])
                left -= written
                if advance is not None:
                    advance(written)
    if left:
        raise TransferError(f"the file ended {left} bytes short of the {size} announced")

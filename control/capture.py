"""`stoq capture`: frames as the XDP guard sees them, with its verdict on each, as pcapng.

The node copies frames where they come in, before anything else has touched them: also those that are
dropped. What the node itself sends is not among them; capture at the other end, too, and merge the files to
see both directions.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.status import Status

from control.console import Output, human_bytes, run_async, until_signal
from control.local.client import Client, LocalError, the_node
from control.local.protocol import (
    CaptureAnswer,
    CaptureRequest,
    ProtocolError,
    StopRequest,
    parse_verdicts,
)
from control.local.snapshot import version
from control.local.stream import Figures, Frame, Kind
from control.pcapng import PcapngWriter
from dataplane.errors import ConfigError, StoqError
from dataplane.guard import SNAP_BYTES
from dataplane.tables import Verdict

PROGRESS_SECONDS = 0.2
END_SECONDS = 5.0  # The node gets so long to send what the mirror still holds.
VERDICTS = {int(verdict): verdict for verdict in Verdict}
SECRETS_WARNING = (
    "WARNING: TLS secrets are written beside the frames. Whoever has the capture can read what these "
    "connections carried: keep it as you would a private key, and delete it when you are done."
)


class CaptureError(StoqError):
    """The capture ended otherwise than asked for."""


def open_file(path: Path | None) -> BinaryIO:
    """A new file nobody else can read, or the pipe or device that is there; None: standard output. Raises
    CaptureError."""
    if path is None:
        # Not sys.stdout.buffer: under PYTHONUNBUFFERED that writes only what fits into a pipe just now.
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return path.open("wb")
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise CaptureError(f"{path} exists and is not overwritten: name another file with -o") from None


class Recorder:
    """Writes what a node sends and counts it."""

    def __init__(self, file: BinaryIO, answer: CaptureAnswer) -> None:
        self._file = file
        self._offset_ns = answer.clock_offset_ns
        self._begin_ns = self._now_ns()
        self._writer = PcapngWriter(file, f"stoq {version()}")
        sampled = "" if answer.sample == 1 else f", every {answer.sample}th frame"
        self._interface = self._writer.interface(
            answer.interface, snap=answer.snap, description=f"STOQ's XDP guard, frames coming in{sampled}"
        )
        self.frames = 0
        self.bytes = 0
        self.dropped: int | None = 0

    def _now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + self._offset_ns

    def take(self, record: Frame | bytes | Figures) -> None:
        """One record. Raises OSError of the file."""
        if isinstance(record, Frame):
            self.frames += 1
            self.bytes += record.wire_bytes
            self._writer.packet(
                self._interface,
                record.time_ns + self._offset_ns,
                record.data,
                record.wire_bytes,
                comment=verdict_text(record.verdict),
                queue=record.queue,
            )
        elif isinstance(record, bytes):
            self._writer.secrets(record)
        else:
            self.dropped = record.dropped
            self._file.flush()

    def finish(self) -> None:
        """The last block."""
        self._writer.statistics(
            self._interface, self._begin_ns, self._now_ns(), received=self.frames, dropped=self.dropped
        )
        self._file.flush()

    def text(self) -> str:
        """How far it is."""
        dropped = "an unknown number" if self.dropped is None else str(self.dropped)
        return f"{self.frames} frames, {human_bytes(self.bytes)}; {dropped} dropped because the ring was full"


def verdict_text(number: int) -> str:
    """A verdict's name and what it means; a node may be newer than we are."""
    verdict = VERDICTS.get(number)
    return f"{verdict.name}: {verdict.text}" if verdict is not None else f"verdict {number}"


async def record_until(
    client: Client, recorder: Recorder, limit: int | None, progress: Any
) -> tuple[bool, str]:
    """Write records until `limit` frames are there or the node ends the capture: then its reason."""
    next_progress = 0.0
    while limit is None or recorder.frames < limit:
        record = await client.record()
        if isinstance(record, tuple):
            kind, figures = record
            recorder.take(figures)
            if kind is Kind.END:
                return True, figures.reason
        else:
            recorder.take(record)
        now = time.monotonic()
        if now >= next_progress:
            next_progress = now + PROGRESS_SECONDS
            progress()
    return False, ""


async def _record(
    client: Client,
    recorder: Recorder,
    limit: int | None,
    seconds: float | None,
    signalled: asyncio.Future[None],
    progress: Any,
) -> str:
    """Until one of the ends: signal, time, count, the node's. Returns the node's reason, if it was that."""
    recording = asyncio.ensure_future(record_until(client, recorder, limit, progress))
    try:
        await asyncio.wait((recording, signalled), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if recording.done():
            ended, reason = recording.result()
            if ended:
                return reason
        # In good order: the node switches the mirror off and sends what is left. The count stays in force.
        client.say(StopRequest())
        async with asyncio.timeout(END_SECONDS):
            if not recording.done():
                ended, reason = await recording
                if ended:
                    return reason
            while True:
                record = await client.record()
                if isinstance(record, tuple):
                    recorder.take(record[1])
                    if record[0] is Kind.END:
                        return record[1].reason
    except TimeoutError:
        return f"the node did not end the capture within {END_SECONDS:g} s"
    finally:
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)


async def capture(
    output: Output,
    node: str | None,
    target: Path | None,
    request: CaptureRequest,
    *,
    seconds: float | None,
    count: int | None,
) -> None:
    """Capture into `target` (None: standard output)."""
    path = await the_node(node)
    signalled = asyncio.ensure_future(until_signal())
    await asyncio.sleep(0)  # From here on, Ctrl-C ends the capture in good order.
    with ExitStack() as stack:
        stack.callback(signalled.cancel)
        async with Client(path) as client:
            answer = await client.ask(request, CaptureAnswer)
            file = stack.enter_context(open_file(target))
            recorder = Recorder(file, answer)
            if answer.secrets:
                output.note(SECRETS_WARNING)
            status = _status_line(stack, output)

            def progress() -> None:
                if status is not None:
                    status.update(recorder.text())
                output_progress(output, recorder)

            progress()
            try:
                reason = await _record(client, recorder, count, seconds, signalled, progress)
            except BrokenPipeError:
                # Who read it has seen enough. Python would try to flush again at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
                reason = ""
            except LocalError as error:
                reason = str(error)
            except ProtocolError:
                recorder.finish()
                raise
            recorder.finish()
    output.event(
        "captured",
        f"{target or 'standard output'}: {recorder.text()}",
        file=str(target) if target else None,
        frames=recorder.frames,
        bytes=recorder.bytes,
        dropped=recorder.dropped,
    )
    if reason:
        raise CaptureError(f"the capture ended early: {reason}; the file is good up to there")


def output_progress(output: Output, recorder: Recorder) -> None:
    """For programs that watch."""
    if output.json_lines:
        output.event("progress", frames=recorder.frames, bytes=recorder.bytes, dropped=recorder.dropped)


def _status_line(stack: ExitStack, output: Output) -> Status | None:
    console = Console(stderr=True, highlight=False)
    if output.json_lines or not console.is_terminal:
        return None
    return stack.enter_context(console.status("waiting for the first frame"))


@click.command("capture")
@click.option(
    "-o",
    "--output",
    "target",
    help="File to write, or - for standard output; by default a new file in this directory.",
)
@click.option("--node", metavar="PID|PATH", help="Which node, if several run here.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    metavar="NAME",
    help="Only frames of this verdict; `drop` and `pass` are all of that kind; repeatable.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 2**32 - 1),
    default=1,
    show_default=True,
    help="Every so many frames one.",
)
@click.option(
    "--snap",
    type=click.IntRange(14, SNAP_BYTES),
    default=SNAP_BYTES,
    show_default=True,
    help="Bytes of each frame.",
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after this time.")
@click.option("--count", type=click.IntRange(1), help="End after so many frames.")
@click.option(
    "--secrets",
    is_flag=True,
    help="Add the TLS secrets of connections, for Wireshark. Only of a node that was started with "
    "--allow-secrets.",
)
@click.pass_obj
def capture_command(
    output: Output,
    /,
    target: str | None,
    node: str | None,
    verdicts: tuple[str, ...],
    sample: int,
    snap: int,
    seconds: float | None,
    count: int | None,
    secrets: bool,
) -> None:
    """Write what comes in at a running node's interface, with the guard's verdict on each frame.

    The file is pcapng: for Wireshark, tshark and the like. What the node sends is not in it.
    """

    async def main() -> None:
        try:
            parse_verdicts(verdicts)
        except ProtocolError as error:
            raise ConfigError(str(error)) from None
        here = output
        path: Path | None = Path(target or time.strftime("stoq-%Y%m%d-%H%M%S.pcapng"))
        if target == "-":
            if output.json_lines:
                raise ConfigError("-o - and --json both want standard output: name a file")
            if sys.stdout.isatty():
                raise ConfigError("a capture is nothing for a terminal: name a file with -o, or pipe it on")
            path = None
            here = Output(json_lines=False)
            here.console = Console(stderr=True, highlight=False, soft_wrap=True)
        request = CaptureRequest(list(verdicts), sample, snap, secrets)
        await capture(here, node, path, request, seconds=seconds, count=count)

    raise SystemExit(run_async(output, main()))

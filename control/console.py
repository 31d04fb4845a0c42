"""What the `stoq` command says: text for people, or with --json one JSON object a line on standard output.

Errors always go to standard error as text; with --json also as an `error` event on standard output. Exit
codes: 0 done, 1 it failed, 2 the command line or the configuration is wrong, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from dataplane.errors import AddressError, ConfigError, StoqError

PIPE_COLUMNS = 240
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

T = TypeVar("T")


class Output:
    """Where a command's results go."""

    def __init__(self, *, json_lines: bool) -> None:
        self.json_lines = json_lines
        # What is piped is searched and copied: nothing may be folded there.
        self.console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def event(self, event: str, text: str = "", **fields: Any) -> None:
        """One event: the JSON object, or `text` (nothing when it is empty)."""
        if self.json_lines:
            sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
            sys.stdout.flush()
        elif text:
            self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Something people should know; on standard error with --json."""
        (self._errors if self.json_lines else self.console).print(text, markup=False)

    def error(self, error: BaseException | str) -> None:
        """Why it failed and, in the text of our errors, what to do."""
        if self.json_lines:
            kind = "Error" if isinstance(error, str) else type(error).__name__
            alert = getattr(error, "alert_name", None)
            extra = {"alert": alert} if alert else {}
            self.event("error", kind=kind, error=str(error), **extra)
        self._errors.print(f"stoq: {error}", markup=False)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Names and values, for people only."""
        if not self.json_lines:
            table = Table(title=title, show_header=False, title_justify="left", box=None, pad_edge=False)
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            for name, value in rows:
                table.add_row(name, value)
            self.console.print(table)

    def progress(self) -> Progress:
        """A progress bar in bytes; silent with --json or when nobody watches."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.json_lines,
        )

    def counting(self) -> Progress:
        """A progress bar in numbers of things; silent with --json or when nobody watches."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.json_lines,
        )


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    return EXIT_USAGE if isinstance(error, AddressError | ConfigError) else EXIT_FAILED


def run_async(output: Output, main: Coroutine[Any, Any, None]) -> int:
    """Run a command's coroutine; errors become text and the exit code it returns. SIGTERM ends it as Ctrl-C
    does."""

    async def guarded() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await main

    try:
        asyncio.run(guarded())
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.error("interrupted")
        return EXIT_INTERRUPTED
    except StoqError as error:
        output.error(error)
        return exit_code(error)
    except OSError as error:
        output.error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return EXIT_FAILED
    return 0


async def until_signal() -> None:
    """Wait for SIGINT or SIGTERM: a server's normal end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def human_bits(bits_per_second: float) -> str:
    """A rate for people."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_second < 1000:
            return f"{bits_per_second:.1f} {unit}"
        bits_per_second /= 1000
    return f"{bits_per_second:.2f} Gbit/s"


def human_bytes(count: float) -> str:
    """A size for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"

"""Our commands and strangers' programs as processes that die with the test that started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 30.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")

Event = dict[str, Any]


def free_port() -> int:
    """A TCP port of ::1 that was free a moment ago, for programs that do not say which one they took."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as found:
        found.bind(("::1", 0))
        return int(found.getsockname()[1])


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without proxies: everything here is on ::1."""
    ours = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**ours, **(more or {})}


def run(
    *argv: str | Path, env: Mapping[str, str] | None = None, stdin: str | bytes = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is; what it says is text."""
    given = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [*DIES_WITH_US, *map(str, argv)], env=environment(env), input=given, capture_output=True, timeout=PATIENCE,
        cwd=cwd, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def _stoq(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "control.cli", "--json", *map(str, arguments)]


def stoq(*arguments: str | Path, env: Mapping[str, str] | None = None) -> list[Event]:
    """Run a command of ours that must succeed; its events."""
    done = run(*_stoq(*arguments), env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass
class Serving:
    """A command that serves. Once it has ended: `summary`, its last events, and `complaints`, what it said on standard
    error."""

    process: subprocess.Popen[str]
    listening: Event
    summary: list[Event] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listening["port"])


@contextmanager
def serving(
    *arguments: str | Path, env: Mapping[str, str] | None = None, quiet: bool = True
) -> Iterator[Serving]:
    """A command of ours runs from its `listening` event on. It must end well when it is interrupted, and, if it is to be
    `quiet`, must have had nothing to complain about."""
    process = subprocess.Popen(
        [*DIES_WITH_US, *_stoq(*arguments)], env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield (here := Serving(process, _until_listening(process)))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and not (quiet and err), f"it ended with {process.returncode}: {err}"
        here.summary += [json.loads(line) for line in out.splitlines()]
        here.complaints += err.splitlines()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _until_listening(process: subprocess.Popen[str]) -> Event:
    assert process.stdout is not None
    for line in process.stdout:
        event: Event = json.loads(line)
        if event["event"] == "listening":
            return event
    raise AssertionError(f"it does not listen: {process.communicate()[1]}")


@contextmanager
def running(
    argv: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A stranger's server runs inside the block; what it says goes to the file `log`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*DIES_WITH_US, *map(str, argv)], env=environment(env), stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()

"""`stoq ca serve` and `stoq join` as processes: one command and a token make a member; Ctrl-C ends it clean."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from control.console import Output
from control.trustchain.home import Home
from control.trustchain.serve_command import join_command
from tests.trustchain.world import World

PATIENCE = 30.0


def _free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as found:
        found.bind(("::1", 0))
        return int(found.getsockname()[1])


def _argv(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "control.cli", "--json", *arguments]


def _stoq(*arguments: str, code: int = 0, stdin: str = "") -> tuple[list[dict[str, Any]], str]:
    """Run a command to its end; its events, and what it says on standard error."""
    done = subprocess.run(_argv(*arguments), input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@contextmanager
def _serving(ca: Path, log: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    argv = _argv("ca", "serve", "-d", str(ca), "--listen", f"[::1]:{port}", "--log", str(log), "--http", "none")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _until(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"no {name!r} event; it said {process.communicate()[1]}")


def test_serve_and_join(tmp_path: Path) -> None:
    """kill -9 while it serves, and the next start serves on. A member by one command, the token from standard input; the
    token is good once; Ctrl-C ends with a summary and exit code 0, and nothing is left but what should be."""
    world = World(tmp_path, port=_free_port())
    ca, home, late = world.ca, tmp_path / "home", tmp_path / "late"

    async def prepare() -> str:
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            return str(await world.token(served, "node"))

    token = asyncio.run(prepare())
    before = {path.name for path in tmp_path.iterdir()}
    with _serving(ca, world.log("a"), world.port) as process:
        first = _until(process, "listening")
        process.kill()
        process.communicate()
    with _serving(ca, world.log("a"), world.port) as process:
        heard = _until(process, "listening")
        assert heard["port"] == world.port and heard["root_sha256"] == first["root_sha256"]
        assert heard["generation"] >= first["generation"]
        events, _ = _stoq("join", "-", str(home), stdin=f"{token}\n")
        [joined] = [event for event in events if event["event"] == "joined"]
        assert joined["name"] == "node" and joined["authority"] == f"[::1]:{world.port}"
        assert stat.S_IMODE((home / "identity.pem").stat().st_mode) == 0o600
        assert {path.name for path in home.iterdir()} == {"node.json", "identity.pem", "bundle.json"}
        assert Home.read(home).credentials().node_id.hex() == joined["node_id"]
        again = CliRunner().invoke(join_command, [token, str(late)], obj=Output(json_lines=True))
        assert again.exit_code == 1 and not late.exists()
        refusal = json.loads(again.stdout.splitlines()[-1])
        assert refusal["kind"] == "TokenRefused" and "was used" in refusal["error"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and not err, err
        summary = json.loads(out.splitlines()[-1])
        assert summary["event"] == "summary" and summary["calls"] == 2 and summary["failures"] == 1
    assert {path.name for path in tmp_path.iterdir()} == before | {"home"}
    assert not [path for path in ca.iterdir() if path.name.startswith(".")]
    assert world.audit().intact

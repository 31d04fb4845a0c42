"""The `stoq` command as people and scripts meet it: errors, exit codes, --json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

USAGE, FAILED = 2, 1


def stoq(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it must end by itself."""
    argv = [sys.executable, "-m", "control.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


NOT_IPV6 = ["1.2.3.4:9292", "[::ffff:1.2.3.4]:9292", "0.0.0.0:9292", "localhost4.invalid:9292"]


@pytest.mark.parametrize("address", NOT_IPV6)
def test_ipv4_is_refused_by_every_command_that_takes_an_address(
    address: str, certs: Path, tmp_path: Path
) -> None:
    identity = [*("--cert", str(certs / "node-a.pem")), *("--key", str(certs / "node-a.key"))]
    identity += ["--ca", str(certs / "ca.pem")]
    file = tmp_path / "file"
    file.write_bytes(b"x")
    test = ["--profile", "test", *identity]
    commands = [
        ["serve", "--listen", address, *identity],
        ["receive", "--listen", address, *identity],
        ["send", str(file), "--to", address, *identity],
        ["hq", "serve", "--listen", address, "--root", str(tmp_path), *test],
        ["hq", "get", f"https://{address}/file", "--output", str(tmp_path), *test],
        ["perf", "serve", "--listen", address, *test],
        ["perf", "client", "--to", address, *test],
    ]
    for command in commands:
        done = stoq("--json", *command)
        assert done.returncode == USAGE, (command, done.stderr)
        assert "STOQ is IPv6-only" in done.stderr, command
        [error] = events(done.stdout)
        assert (error["event"], error["kind"]) == ("error", "AddressError"), command
        assert "STOQ is IPv6-only" in error["error"]


def test_dev_certs_refuses_ipv4_and_overwriting(tmp_path: Path) -> None:
    refused = stoq("--json", "dev-certs", str(tmp_path / "x"), "--address", "10.0.0.1")
    assert refused.returncode == FAILED and "IPv6-only" in refused.stderr
    made = stoq("--json", "dev-certs", str(tmp_path / "y"), "--name", "a")
    assert made.returncode == 0
    [written] = events(made.stdout)
    assert all(Path(path).exists() for path in written["files"])
    again = stoq("--json", "dev-certs", str(tmp_path / "y"), "--name", "a")
    assert again.returncode == FAILED and "nothing was overwritten" in again.stderr
    assert events(again.stdout)[0]["kind"] == "DevCertsError"


def test_errors_say_what_to_do(certs: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    cases = [
        (["serve", "--listen", "[::1]:0", "--ca", str(certs / "ca.pem")], USAGE, "stoq dev-certs"),
        (["serve", "--listen", "[::1]:0"], USAGE, "name the CA with --ca"),
        (
            ["send", str(file), "--to", "[::1]:1", "--cert", "a.pem", "--ca", "ca.pem"],
            USAGE,
            "belong together",
        ),
        (["send", str(tmp_path / "none"), "--to", "[::1]:1"], FAILED, "is not a file"),
        (
            ["hq", "get", "https://[::1]:1/x", "--output", str(tmp_path), "--insecure"],
            USAGE,
            "--profile test",
        ),
        (["hq", "get", "--profile", "test", "--insecure", "--output", str(tmp_path)], FAILED, "no URL"),
        (["perf", "client", "--to", "[::1]:1", "--ca", str(certs / "ca.pem")], USAGE, "--profile test"),
        (["nonsense"], USAGE, "No such command"),
        (["send", str(file)], USAGE, "--to"),
        (["run", str(tmp_path / "none")], FAILED, "is not a file"),
    ]
    for arguments, code, text in cases:
        done = stoq(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done)
        assert text in done.stderr and done.stderr.startswith("stoq: "), (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_help_names_every_command() -> None:
    text = stoq("--help").stdout
    for command in ("dev-certs", "serve", "send", "receive", "run", "hq", "perf"):
        assert command in text

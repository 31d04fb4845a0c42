"""The `stoq` command's nodes talking to each other over ::1 and, as root, between network namespaces."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0  # Seconds a command may take before it counts as hanging.


class Running:
    """A `stoq --json …` process."""

    def __init__(self, *arguments: str, **more: Any) -> None:
        argv = [sys.executable, "-m", "control.cli", "--json", *arguments]
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )

    def until(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"no {name!r} event; it said {self.process.communicate()[1]}")

    def finish(self, code: int = 0) -> list[dict[str, Any]]:
        """Wait for the end; the events still unread."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == code, err
        return [json.loads(line) for line in out.splitlines()]

    def stop(self) -> list[dict[str, Any]]:
        """End it as an operator would."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish()


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """A process that is gone afterwards."""
    node = Running(*arguments)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            node.process.kill()
            node.process.communicate()


def identity(certs: Path, name: str) -> list[str]:
    return [
        "--cert",
        str(certs / f"{name}.pem"),
        "--key",
        str(certs / f"{name}.key"),
        "--ca",
        str(certs / "ca.pem"),
    ]


def stoq(*arguments: str) -> list[dict[str, Any]]:
    """Run a command to its end."""
    return Running(*arguments).finish()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(random.Random(9).randbytes(5_000_000))
    return path


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_send_and_receive(certs: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(random.Random(size).randbytes(size))
    (tmp_path / "in").mkdir()
    with running(
        "receive", "--listen", "[::1]:0", "--output", str(tmp_path / "in"), *identity(certs, "node-a")
    ) as node:
        to = f"[::1]:{node.until('listening')['port']}"
        sent = stoq("send", str(path), "--to", to, *identity(certs, "node-b"))[-1]
        received = node.until("received")
        node.finish()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sent["sha256"] == received["sha256"] == digest
    assert (tmp_path / "in/data.bin").read_bytes() == path.read_bytes()
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["data.bin"], "no partial file is left"
    assert sent["handshake_seconds"] > 0 and sent["counters"]["handshakes_completed"] == 1


def test_what_exists_is_not_overwritten_and_the_sender_is_told(
    certs: Path, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data.bin").write_text("mine")
    with running(
        "serve", "--listen", "[::1]:0", "--output", str(tmp_path / "in"), *identity(certs, "node-a")
    ) as node:
        to = f"[::1]:{node.until('listening')['port']}"
        refused = Running("send", str(file), "--to", to, *identity(certs, "node-b"))
        events = refused.finish(code=1)
        assert "exists already and is not overwritten" in events[-1]["error"]
        # The server lives on.
        other = tmp_path / "other.bin"
        other.write_bytes(b"other")
        stoq("send", str(other), "--to", to, *identity(certs, "node-b"))
        assert node.stop()[-1]["event"] == "summary"
    assert (tmp_path / "in/data.bin").read_text() == "mine"
    assert (tmp_path / "in/other.bin").read_bytes() == b"other"


def test_a_sender_without_certificate_is_told_why(certs: Path, tmp_path: Path, file: Path) -> None:
    with running(
        "serve", "--listen", "[::1]:0", "--output", str(tmp_path), *identity(certs, "node-a")
    ) as node:
        to = f"[::1]:{node.until('listening')['port']}"
        error = Running("send", str(file), "--to", to, "--ca", str(certs / "ca.pem")).finish(code=1)[-1]
        assert (error["event"], error["alert"]) == ("error", "certificate_required")
        assert "needs a client certificate" in error["error"]
        assert node.until("refused")["alert"] == "certificate_required"
        node.stop()


@pytest.fixture
def www(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    (root / "sub").mkdir(parents=True)
    for number in range(50):
        (root / f"small{number}").write_bytes(random.Random(number).randbytes(number * 40))
    (root / "sub/large").write_bytes(random.Random(0).randbytes(3_000_000))
    (tmp_path / "secret").write_text("not to be had")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@contextmanager
def hq_server(certs: Path, www: Path, *more: str) -> Iterator[tuple[Running, str]]:
    """A running `stoq hq serve` and the URL of its root."""
    arguments = ["hq", "serve", "--profile", "test", "--listen", "[::1]:0", "--root", str(www)]
    with running(*arguments, *identity(certs, "node-a"), *more) as node:
        yield node, f"https://[::1]:{node.until('listening')['port']}"


def hq_get(certs: Path, output: Path, *arguments: str) -> list[str]:
    return [
        "hq",
        "get",
        "--profile",
        "test",
        "--ca",
        str(certs / "ca.pem"),
        "--output",
        str(output),
        *arguments,
    ]


def test_hq_fetches_many_files(certs: Path, www: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    urls = tmp_path / "urls"
    with hq_server(certs, www) as (node, base):
        urls.write_text("\n".join([f"{base}/small{n}" for n in range(50)] + [f"{base}/sub/large"]))
        summary = stoq(*hq_get(certs, out, "--urls-from", str(urls), "--concurrency", "20"))[-1]
        node.stop()
    for number in range(50):
        assert (out / f"small{number}").read_bytes() == (www / f"small{number}").read_bytes()
    assert (out / "large").read_bytes() == (www / "sub/large").read_bytes()
    assert summary["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert len(summary["handshakes"]) == 1


def test_hq_asks_again_without_waiting(certs: Path, www: Path, tmp_path: Path) -> None:
    """The second connection resumes the first, and its requests are 0-RTT."""
    out = tmp_path / "out"
    out.mkdir()
    early = ["--resumption", "--early-data"]
    with hq_server(certs, www, *early) as (node, base):
        urls = [f"{base}/small{n + 7}" for n in range(3)]
        summary = stoq(*hq_get(certs, out, *early, "--connections", "2", *urls))[-1]
        theirs = node.stop()[-1]
    assert summary["early"] == [None, True]
    assert theirs["counters"]["zero_rtt_received"] >= 1
    for n in range(3):
        assert (out / f"small{n + 7}").read_bytes() == (www / f"small{n + 7}").read_bytes()


def test_handshake_processes_and_what_they_cannot(certs: Path, www: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hq_server(certs, www, "--handshake-processes", "2") as (_, base):
        assert stoq(*hq_get(certs, out, f"{base}/small9"))[-1]["early"] == [None]
    for alpn, more in (("hq", ["--handshake-processes", "1"]), ("stoq", [])):
        early = ["--resumption", "--early-data", *identity(certs, "node-b"), *more]
        profile = ["--profile", "test", "--root", str(www)]
        command = ["hq", "serve", *profile] if alpn == "hq" else ["serve", "--output", str(out)]
        error = Running(*command, "--listen", "[::1]:0", *early).finish(code=2)[-1]
        assert "early data" in error["error"]


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/link", "/sub", "/none", "/sub/../../secret"]
)
def test_hq_leads_nowhere_else(certs: Path, www: Path, tmp_path: Path, path: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hq_server(certs, www) as (node, base):
        error = Running(*hq_get(certs, out, base + path)).finish(code=1)[-1]
        assert "reset the stream with code 0x404" in error["error"]
        node.stop()
    assert not any(b"not to be had" in entry.read_bytes() for entry in out.iterdir())


@pytest.mark.parametrize("cipher", ["aes128", "aes256", "chacha20"])
def test_hq_options_do_what_they_say(certs: Path, www: Path, tmp_path: Path, cipher: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hq_server(certs, www, "--retry") as (node, base):
        more = ["--cipher", cipher, "--key-update-after", "100000", "--version-negotiation"]
        summary = stoq(*hq_get(certs, out, f"{base}/sub/large", *more))[-1]
        server = node.stop()[-1]
    assert (out / "large").read_bytes() == (www / "sub/large").read_bytes()
    assert summary["counters"]["key_updates"] == 1
    assert server["counters"]["version_negotiations_sent"] >= 1
    assert server["counters"]["retries_sent"] >= 1


def test_hq_several_connections(certs: Path, www: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hq_server(certs, www) as (node, base):
        urls = [f"{base}/small{n}" for n in range(1, 6)]
        summary = stoq(*hq_get(certs, out, *urls, "--connections", "5"))[-1]
        assert node.stop()[-1]["counters"]["connections_accepted"] == 5
    assert len(summary["handshakes"]) == 5 and len(list(out.iterdir())) == 5


def test_hq_verifies_the_server_unless_told_otherwise(certs: Path, www: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hq_server(certs, www) as (_, base):
        arguments = ["hq", "get", "--profile", "test", "--output", str(out), f"{base}/small1"]
        assert Running(*arguments).finish(code=1)[-1]["alert"] == "unknown_ca"
        assert stoq(*arguments, "--insecure")[-1]["bytes"] == 40


def test_perf_in_c(certs: Path) -> None:
    arguments = ["perf", "serve", "--profile", "test", "--listen", "[::1]:0", *identity(certs, "node-a")]
    with running(*arguments) as node:
        to = ["--to", f"[::1]:{node.until('listening')['port']}"]
        client = ["perf", "client", "--profile", "test", "--ca", str(certs / "ca.pem"), *to]
        down = stoq(*client, "--download", "20000000")[-1]["result"]
        assert (down["bytes_received"], down["requests"]) == (20_000_000, 1)
        up = stoq(*client, "--upload", "20000000")[-1]["result"]
        assert up["bytes_sent"] >= 20_000_000 and up["requests"] == 1
        small = stoq(*client, "--download", "32", "--requests", "500", "--streams", "4")[-1]["result"]
        assert small["requests"] == 500
        assert (
            0 < small["latency_min"] <= small["latency_p50"] <= small["latency_p99"] <= small["latency_max"]
        )
        node.stop()


# ---- the main job ----


def leftovers() -> set[str]:
    """What a run could leave behind: its namespaces and its files."""
    netns = Path("/run/netns")
    names = (
        {f"netns {path.name}" for path in netns.iterdir() if path.name[-2:] in ("-a", "-b")}
        if netns.is_dir()
        else set()
    )
    return names | {f"file {path.name}" for path in Path(tempfile.gettempdir()).glob("stoq-run-*")}


def job(*arguments: str, **more: Any) -> Running:
    return Running("run", "--bytes", str(64 << 20), *arguments, **more)


def test_run() -> None:
    before = leftovers()
    result = job().finish()[-1]
    sender, receiver = result["sender"], result["receiver"]
    assert sender["bytes"] == 64 << 20 and sender["goodput_bps"] > 0 and sender["handshake_seconds"] > 0
    assert receiver["counters"]["stream_bytes_received"] > 64 << 20
    if len(os.sched_getaffinity(0)) > 1:
        assert sender["cores"] != receiver["cores"] and -1 not in sender["cores"] + receiver["cores"]
    assert leftovers() == before


def test_run_with_a_file_and_the_other_backend(file: Path) -> None:
    result = Running("run", str(file), "--backend", "socket").finish()[-1]
    assert result["sender"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert result["sender"]["backend"][0].startswith("socket")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_interrupted_leaves_nothing_behind(number: signal.Signals) -> None:
    before = leftovers()
    run = Running("run", "--bytes", str(1 << 30))
    run.until("progress")
    run.process.send_signal(number)
    begin = time.monotonic()
    run.finish(code=130)
    assert time.monotonic() - begin < 15
    assert leftovers() == before


def test_run_without_root_uses_loopback_and_says_so(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is what test_run did")
    # As `nobody`, from a directory it may read.
    environment = {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": os.environ["PATH"],
    }
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    run = job(user=65534, group=65534, extra_groups=[], env=environment, cwd="/")
    out, err = run.process.communicate(timeout=PATIENCE)
    assert run.process.returncode == 0, err
    assert "not root: network namespaces cannot be made; the same job runs over ::1" in err
    assert json.loads(out.splitlines()[-1])["where"].startswith("::1")

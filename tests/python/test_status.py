"""`stoq status`, `block` and `capture` as people and scripts meet them, on real nodes and a hand-made one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from control.local.client import ask
from control.local.keylog import KeyLog
from control.local.protocol import StatusAnswer, StatusRequest
from control.status import Rates, duration, render
from dataplane.guard import Mirrored
from dataplane.tables import Verdict
from tests.python.localnode import Guard, Node, served
from tests.python.pcapng import SECRETS, packets, read
from tests.python.test_commands import Running, identity, running, stoq

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nodes of other tests are none of ours."""
    path = tmp_path / "run"
    monkeypatch.setenv("STOQ_RUNTIME_DIR", str(path))
    return path


@contextmanager
def perf_node(certs: Path, *more: str) -> Iterator[tuple[Running, dict[str, Any], dict[str, Any]]]:
    """A running `stoq perf serve`, its control and its listening event."""
    arguments = [
        "perf",
        "serve",
        "--profile",
        "test",
        "--listen",
        "[::1]:0",
        *identity(certs, "node-a"),
        *more,
    ]
    with running(*arguments) as node:
        yield node, node.until("control") if "none" not in more else {}, node.until("listening")


def text(*arguments: str, code: int = 0) -> str:
    """What a command says to people, on both outputs."""
    argv = [sys.executable, "-m", "control.cli", *arguments]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"COLUMNS": "300"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


# ---- real nodes ----


def test_status_of_a_real_node(certs: Path, run_directory: Path) -> None:
    with perf_node(certs) as (node, control, listening):
        assert control["path"] == str(run_directory / f"{node.process.pid}.sock")
        client = ["perf", "client", "--profile", "test", "--ca", str(certs / "ca.pem")]
        stoq(*client, "--to", f"[::1]:{listening['port']}", "--download", "5000000")
        [status] = stoq("status")
        assert (status["event"], status["pid"]) == ("status", node.process.pid)
        assert (status["command"], status["address"]) == ("perf serve", f"[::1]:{listening['port']}")
        assert status["workers"][0]["backend"].startswith(("io_uring", "socket"))
        assert status["counters"]["connections_accepted"] == 1
        assert status["counters"]["stream_bytes_sent"] >= 5_000_000
        assert status["workers"][0]["counters"] == status["counters"] or status["counters"]["loops"]
        assert status["io"]["tx_bytes"] > 5_000_000 and status["uptime"] > 0
        assert status["queues"] == [] and status["guard"] is None and not status["secrets_allowed"]
        shown = text("status", "--node", control["path"])
        assert f"process {node.process.pid}, `perf serve`" in shown
        for part in ("worker 0", "received", "sent", "pools", "datagrams"):
            assert part in shown
        assert json.loads(text("status", "--json"))["pid"] == node.process.pid
        for command in (["block", "fd00::/64"], ["blocks"], ["capture", "-o", str(run_directory / "x")]):
            assert "no XDP guard" in text(*command, code=1)
        assert not (run_directory / "x").exists()
        node.stop()
    assert list(run_directory.iterdir()) == []


def test_several_nodes_and_none(certs: Path, run_directory: Path) -> None:
    assert "no node of this user runs here" in text("status", code=1)
    with ExitStack() as stack:
        nodes = [stack.enter_context(perf_node(certs)) for _ in range(2)]
        stack.enter_context(perf_node(certs, "--control", "none"))
        pids = {node.process.pid for node, _, _ in nodes}
        [listed] = stoq("status")
        assert listed["event"] == "nodes" and {node["pid"] for node in listed["nodes"]} == pids
        shown = text("status")
        assert all(str(pid) in shown for pid in pids) and "choose one with --node PID" in shown
        [status] = stoq("status", "--node", str(max(pids)))
        assert status["pid"] == max(pids)
        assert "choose one with --node" in text("blocks", code=2)
        assert "no node with process number 1 " in text("status", "--node", "1", code=1)
        assert "is no control socket" in text("status", "--node", "/etc/passwd", code=1)
        # A node that was killed leaves its socket; nobody is fooled, and the next start removes it.
        nodes[0][0].process.kill()
        nodes[0][0].process.wait()
        assert stoq("status")[0]["pid"] == nodes[1][0].process.pid
        with perf_node(certs):
            names = {path.name for path in run_directory.iterdir()}
            assert f"{nodes[0][0].process.pid}.sock" not in names and len(names) == 2


def test_a_place_of_ones_own(certs: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.sock"
    with perf_node(certs, "--control", str(path)) as (node, control, _):
        assert control["path"] == str(path)
        assert "no node of this user" in text("status", code=1)
        assert stoq("status", "--node", str(path))[0]["pid"] == node.process.pid
        second = Running(
            *("perf", "serve", "--profile", "test", "--listen", "[::1]:0", "--control", str(path)),
            *identity(certs, "node-a"),
        ).finish(code=1)
        assert "exists: another node's control socket" in second[-1]["error"]
        node.stop()
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_somebody_watches(certs: Path, run_directory: Path, number: signal.Signals) -> None:
    with perf_node(certs) as (node, _, _), running("status", "--watch", "0.1") as watching:
        first = watching.until("status")
        second = watching.until("status")
        assert first["per_second"] == {} and second["uptime"] > first["uptime"]
        assert (
            second["per_second"]["counters.loops"] > 0 if "counters.loops" in second["per_second"] else True
        )
        node.process.send_signal(number)
        assert node.finish()[-1]["event"] == "summary"
        assert watching.finish(code=1)[-1]["event"] == "error"
    assert list(run_directory.iterdir()) == []


def test_watching_ends_with_ctrl_c(certs: Path) -> None:
    with perf_node(certs), running("status", "--watch", "0.1") as watching:
        watching.until("status")
        watching.process.send_signal(signal.SIGINT)
        watching.finish(code=0)


def test_secrets_have_to_be_allowed_and_are_announced(certs: Path) -> None:
    with perf_node(certs, "--allow-secrets") as (node, _, _):
        assert stoq("status")[0]["secrets_allowed"]
        node.process.send_signal(signal.SIGTERM)
        _, err = node.process.communicate(timeout=PATIENCE)
        assert "WARNING: --allow-secrets keeps TLS secrets" in err


# ---- the tables ----


def rendered(status: StatusAnswer, rates: Rates, *, watch: bool = False) -> str:
    console = Console(width=250, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(status, rates, watch=watch))
    return capture.get()


def test_tables(tmp_path: Path) -> None:
    async def main() -> tuple[str, str]:
        async with served(tmp_path / "s") as node:
            first = await ask(tmp_path / "s", StatusRequest(), StatusAnswer)
            node.scale = 3
            second = await ask(tmp_path / "s", StatusRequest(), StatusAnswer)
        second.uptime = first.uptime + 2
        rates = Rates()
        rates.take(first)
        once = rendered(first, rates)
        rates.take(second)
        return once, rendered(second, rates, watch=True)

    once, watched = asyncio.run(main())
    rows = [" ".join(line.split()) for line in once.splitlines()]
    assert "lo 0 0 native copy need-wakeup, checksum offload 2.5 5 5 6 2 3 4 1" in rows
    assert "lo 1 1 native copy need-wakeup, checksum offload – 5 5 6 2 3 4 1" in rows
    assert "lo 0 4,096 2,000 40 8 2,000 30 18 0 2,048" in rows
    assert "lo 0 1,990 41 31 17" in rows and "lo 0 71 72 73 74 75 76" in rows
    assert any("the driver has no zero-copy" in row for row in rows)
    assert "interface lo, native; native, as the driver permits" in rows
    assert "program id 77, 1,234 instructions as verified" in rows
    assert f"drop_ipv4 40 3.9 KiB {Verdict.DROP_IPV4.text}" in rows
    assert not any(row.startswith("pass_other") for row in rows), "what never happened takes no room"
    assert "aead 9 authentication failed" in rows
    assert "per second" not in once
    rows = [" ".join(line.split()) for line in watched.splitlines()]
    assert "aead 27 9 authentication failed" in rows, "18 more in 2 s"
    assert "commands 1,500 500 commands taken from the control plane" in rows


def test_rates_begin_anew_with_another_process(tmp_path: Path) -> None:
    async def main() -> StatusAnswer:
        async with served(tmp_path / "s"):
            return await ask(tmp_path / "s", StatusRequest(), StatusAnswer)

    status = asyncio.run(main())
    rates = Rates()
    rates.take(status)
    assert rates.rates() == {}
    status.pid += 1
    rates.take(status)
    assert rates.rates() == {} and rates.rate("counters.loops") is None


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.9, 60, 3661, 90000, 86400 * 400)] == [
        "0 s", "59 s", "1 min 0 s", "1 h 1 min", "1 d 1 h", "400 d 0 h",
    ]  # fmt: skip


# ---- the guard's commands, against a hand-made guard in this process ----


class Command:
    """A `stoq …` process beside our loop."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def end(self, code: int = 0) -> tuple[bytes, str]:
        out, err = await self.process.communicate()
        assert self.process.returncode == code, (out, err)
        assert b"Traceback" not in err, err
        return out, err.decode()


async def command(*arguments: str) -> Command:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return Command(process)


def with_node(
    run_directory: Path, main: Callable[[Node, Guard], Awaitable[None]], key_log: KeyLog | None = None
) -> None:
    """Run `main` beside a node that commands find."""

    async def everything() -> None:
        run_directory.mkdir(mode=0o700)
        async with asyncio.timeout(PATIENCE), served(run_directory / "1.sock", key_log=key_log) as node:
            assert node.guard is not None
            await main(node, node.guard)

    asyncio.run(everything())


def test_block_commands(run_directory: Path) -> None:
    async def main(node: Node, guard: Guard) -> None:
        out, _ = await (await command("block", "fd00:0:0:1::/64", "--for", "10m")).end()
        assert out == b"fd00:0:0:1::/64 is blocked for 10 min 0 s\n"
        await (await command("block", "fd00::9")).end()
        assert guard.blocked == {"fd00:0:0:1::/64": 600.0, "fd00::9/128": None}
        out, _ = await (await command("--json", "blocks")).end()
        assert json.loads(out)["blocks"] == [
            {"prefix": "fd00:0:0:1::/64", "seconds": 600.0},
            {"prefix": "fd00::9/128", "seconds": None},
        ]
        await (await command("unblock", "fd00:0:0:1::/64")).end()
        assert list(guard.blocked) == ["fd00::9/128"]
        _, err = await (await command("unblock", "fd00:0:0:1::/64")).end(code=1)
        assert "is not on the blocklist" in err
        for arguments, say in (
            (["block", "10.0.0.0/8"], "STOQ is IPv6-only"),
            (["block", "fd00::1/64"], "has host bits set"),
            (["block", "fd00::", "--for", "soon"], "is no duration"),
            (["block", "fd00::", "--for", "0s"], "is no duration"),
        ):
            _, err = await (await command(*arguments)).end(code=2)
            assert say in err

    with_node(run_directory, main)


MIRRORED = Mirrored(time.clock_gettime_ns(time.CLOCK_MONOTONIC), 1300, 2, Verdict.DROP_REPLAY, b"frame" * 20)


def test_capture_to_a_file_until_ctrl_c(run_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"

    async def main(node: Node, guard: Guard) -> None:
        begin = time.time_ns()
        capture = await command(
            "capture", "-o", str(path), "--verdict", "drop", "--sample", "5", "--snap", "96"
        )
        await guard.until_mirroring(True)
        verdicts, sample, snap = guard.mirrors[0]
        assert (sample, snap) == (5, 96) and all(verdict.key.startswith("drop_") for verdict in verdicts)
        stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        guard.push(*(replace(MIRRORED, time_ns=stamp + n) for n in range(1000)))
        while guard.waiting:  # The node has passed them on.
            await asyncio.sleep(0.01)
        capture.process.send_signal(signal.SIGINT)
        out, _ = await capture.end()
        assert b"1000 frames" in out and b"0 dropped because the ring was full" in out
        assert not guard.mirroring
        found = packets(read(path))
        assert len(found) == 1000
        assert begin < found[0].time_ns < time.time_ns(), "the wall clock's time"
        assert found[999].time_ns - found[0].time_ns == 999
        assert (found[0].wire_bytes, found[0].queue, found[0].data) == (1300, 2, b"frame" * 20)
        assert found[0].comment == f"DROP_REPLAY: {Verdict.DROP_REPLAY.text}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # Nothing is overwritten.
        _, err = await (await command("capture", "-o", str(path))).end(code=1)
        assert "exists and is not overwritten" in err
        await guard.until_mirroring(False)

    with_node(run_directory, main)


def test_capture_of_a_number_of_frames_to_a_pipe(run_directory: Path) -> None:
    async def main(node: Node, guard: Guard) -> None:
        capture = await command("capture", "-o", "-", "--count", "10")
        await guard.until_mirroring(True)
        guard.push(*([MIRRORED] * 25))
        out, err = await capture.end()
        assert len(packets(read(out))) == 10 and "10 frames" in err
        await guard.until_mirroring(False)
        _, err = await (await command("--json", "capture", "-o", "-")).end(code=2)
        assert "both want standard output" in err
        _, err = await (await command("capture", "--verdict", "nonsense")).end(code=2)
        assert "unknown verdict 'nonsense': there are drop, pass" in err

    with_node(run_directory, main)


def test_capture_for_a_time(run_directory: Path, tmp_path: Path) -> None:
    async def main(node: Node, guard: Guard) -> None:
        begin = time.monotonic()
        capture = await command("--json", "capture", "-o", str(tmp_path / "x"), "--seconds", "1.5")
        await guard.until_mirroring(True)
        guard.capacity = 3
        guard.push(*([MIRRORED] * 5))
        out, _ = await capture.end()
        assert 1.5 <= time.monotonic() - begin < 15
        events = [json.loads(line) for line in out.splitlines()]
        figures = {"frames": 3, "bytes": 3900, "dropped": 2}
        assert events[-1] == {"event": "captured", "file": str(tmp_path / "x")} | figures
        assert any(event["event"] == "progress" and event["frames"] == 3 for event in events)
        statistics = read(tmp_path / "x")[-1]
        assert statistics.option(5) == (2).to_bytes(8, "little")

    with_node(run_directory, main)


def test_a_reader_of_the_pipe_that_goes_away_ends_the_capture(run_directory: Path) -> None:
    async def main(node: Node, guard: Guard) -> None:
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control.cli", "capture", "-o", "-"),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
        theirs.close()
        await guard.until_mirroring(True)
        ours.close()
        while guard.mirroring:
            guard.push(MIRRORED)
            await asyncio.sleep(0.05)
        _, err = await process.communicate()
        assert process.returncode == 0 and b"Traceback" not in err and b"Exception" not in err, err

    with_node(run_directory, main)


def test_a_killed_capture_leaves_the_mirror_off_and_a_good_file(run_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"

    async def main(node: Node, guard: Guard) -> None:
        capture = await command("capture", "-o", str(path))
        await guard.until_mirroring(True)
        guard.push(MIRRORED)
        # With the next figures, once a second, what is there is written.
        while not path.exists() or path.stat().st_size < 100:
            await asyncio.sleep(0.05)
        capture.process.kill()
        await capture.process.wait()
        await guard.until_mirroring(False)
        assert len(packets(read(path))) == 1

    with_node(run_directory, main)


def test_the_node_ends_during_a_capture(run_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"

    async def everything() -> None:
        run_directory.mkdir(mode=0o700)
        async with asyncio.timeout(PATIENCE):
            async with served(run_directory / "1.sock") as node:
                assert node.guard is not None
                capture = await command("capture", "-o", str(path))
                await node.guard.until_mirroring(True)
                node.guard.push(MIRRORED)
                while node.guard.waiting:
                    await asyncio.sleep(0.01)
            _, err = await capture.end(code=1)
            assert "the capture ended early: the node ended" in err

    asyncio.run(everything())
    assert len(packets(read(path))) == 1


def test_capture_with_secrets(run_directory: Path, tmp_path: Path) -> None:
    key_log = KeyLog()
    key_log.add(b"\x01" * 32, "CLIENT_TRAFFIC_SECRET_0", b"\x02" * 32)

    async def main(node: Node, guard: Guard) -> None:
        for name, more in (("with", ["--secrets"]), ("without", [])):
            capture = await command("capture", "-o", str(tmp_path / name), "--count", "1", *more)
            await guard.until_mirroring(True)
            guard.push(MIRRORED)
            out, _ = await capture.end()
            secrets = [
                block.body[8:].rstrip(b"\0") for block in read(tmp_path / name) if block.kind == SECRETS
            ]
            assert secrets == ([key_log.text()] if more else [])
            assert (b"WARNING: TLS secrets are written" in out) == bool(more)
            await guard.until_mirroring(False)

    with_node(run_directory, main, key_log)


def test_capture_with_secrets_is_refused_where_they_are_not_allowed(
    run_directory: Path, tmp_path: Path
) -> None:
    async def main(node: Node, guard: Guard) -> None:
        capture = await command("capture", "-o", str(tmp_path / "x"), "--secrets")
        _, err = await capture.end(code=1)
        assert "started without --allow-secrets" in err
        assert not (tmp_path / "x").exists() and guard.mirrors == []

    with_node(run_directory, main)

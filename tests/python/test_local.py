"""The control socket: who may use it, what it answers, and clients that mean harm."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from control.handshake import HandshakeConfig
from control.local import place, protocol, server, stream
from control.local.client import Client, LocalError, ask
from control.local.keylog import MAX_CONNECTIONS, KeyLog
from control.local.protocol import (
    BlockAnswer,
    BlockRequest,
    BlocksAnswer,
    BlocksRequest,
    CaptureAnswer,
    CaptureRequest,
    ProtocolError,
    StatusAnswer,
    StatusRequest,
    StopRequest,
    UnblockRequest,
)
from control.local.snapshot import Facts
from control.local.stream import Figures, Frame, Kind
from dataplane.errors import ConfigError
from dataplane.guard import Mirrored
from dataplane.handshake import Level
from dataplane.tables import Verdict
from tests.python.conftest import Pki
from tests.python.localnode import Guard, Node, Silent, served
from tests.python.loopback import Loopback

PATIENCE = 10.0


def on_socket(path: Path, main: Callable[[Node], Awaitable[None]], **how: Any) -> None:
    """Run `main` with a node whose socket is at `path`."""

    async def everything() -> None:
        async with asyncio.timeout(PATIENCE):
            async with served(path, **how) as node:
                await main(node)

    asyncio.run(everything())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


def guard_of(node: Node) -> Guard:
    assert node.guard is not None
    return node.guard


def frame(number: int, size: int = 100) -> Mirrored:
    return Mirrored(1_000_000 + number, size + 28, number % 4, Verdict.XSK, bytes([number % 256]) * size)


async def raw(path: Path, data: bytes, *, eof: bool = True) -> list[dict[str, Any]]:
    """Send bytes as they are; the lines that come until the node closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    if eof:
        writer.write_eof()
    lines = (await reader.read()).splitlines()
    writer.close()
    return [json.loads(line) for line in lines]


# ---- where it is ----


def test_socket_is_private_and_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    monkeypatch.setenv(place.ENVIRONMENT, str(directory))

    async def main() -> None:
        facts = Facts("serve", False)
        async with server.control_socket(Silent(), Node(), None, facts, None, place.owner()) as found:
            assert found == directory / f"{os.getpid()}.sock"
            assert stat.S_IMODE(found.stat().st_mode) == 0o600
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert place.running() == [found] and place.find(str(os.getpid())) == found

    asyncio.run(main())
    assert list(directory.iterdir()) == []


def test_stale_sockets_are_removed_and_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path))
    tmp_path.chmod(0o700)
    for name in ("1.sock", "2.sock", "999999999.x.sock.new", f"{os.getpid()}.x.sock.new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
            if name == "2.sock":
                dead.listen()
                living = dead.dup()
    (tmp_path / "3.sock").write_text("no socket")
    assert place.default_path(place.owner()) == tmp_path / f"{os.getpid()}.sock"
    # Ours that refuses is between bind and listen; what is no socket is none of our business.
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == sorted(["2.sock", "3.sock", f"{os.getpid()}.x.sock.new"])
    assert place.running() == [tmp_path / "2.sock"]
    living.close()


def test_a_directory_that_others_can_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(place.PlaceError, match="open to other users: chmod 700"):
        place.default_path(place.owner())
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path / "link"))
    with pytest.raises(place.PlaceError, match="is not a directory of user"):
        place.default_path(place.owner())

    # The node runs on without, and says so.
    async def main() -> None:
        output = Silent()
        facts = Facts("serve", False)
        async with server.control_socket(output, Node(), None, facts, None, place.owner()) as found:
            assert found is None
        assert "no control socket" in output.notes[0] and "is not a directory" in output.notes[0]

    asyncio.run(main())


def test_a_place_that_is_taken_is_refused_and_a_dead_one_taken_over(path: Path) -> None:
    async def main(node: Node) -> None:
        with pytest.raises(place.PlaceError, match="exists: another node's control socket"):
            async with served(path):
                pass
        assert (await ask(path, StatusRequest(), StatusAnswer)).pid == os.getpid()

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    on_socket(path, main)
    assert not path.exists()
    path.write_text("a file of somebody")
    with pytest.raises(place.PlaceError, match="or a file"), place.listening(path, place.owner()):
        pass
    assert path.read_text() == "a file of somebody"
    with (
        pytest.raises(place.PlaceError, match="too long"),
        place.listening(path.with_name("x" * 200), place.owner()),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_node_that_gives_up_root_can_remove_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(place.ENVIRONMENT, str(tmp_path / "run"))
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    nobody = place.owner(65534, 65534)
    with place.listening(place.default_path(nobody), nobody):
        [path] = (tmp_path / "run").iterdir()
        for entry in (path, path.parent):
            assert (entry.stat().st_uid, entry.stat().st_mode & 0o077) == (65534, 0)
        os.setegid(65534)
        os.seteuid(65534)
    try:
        assert list((tmp_path / "run").iterdir()) == []
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_none_means_none(path: Path) -> None:
    async def main(node: Node) -> None:
        assert not path.exists() and list(path.parent.iterdir()) == []

    on_socket(path, main, where="none")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_refused(path: Path) -> None:
    """Even when the modes of file and directory would let him."""
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"request": "status"}\\n\'); print(s.makefile().readline())'
    )

    async def main(node: Node) -> None:
        path.chmod(0o666)
        for parent in (path.parent, *path.parents[1:3]):
            parent.chmod(0o755)
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/python3", "-c", code, str(path)), stdout=subprocess.PIPE, user=65534, cwd="/"
        )
        out, _ = await process.communicate()
        assert json.loads(out) == {
            "answer": "error",
            "kind": "failed",
            "text": "user 65534 may not use this node's control socket",
        }

    on_socket(path, main)


# ---- requests ----


def test_status_has_everything(path: Path) -> None:
    async def main(node: Node) -> None:
        status = await ask(path, StatusRequest(), StatusAnswer)
        assert (status.pid, status.command, status.address) == (os.getpid(), "serve", "[::1]:9292")
        assert [worker.core for worker in status.workers] == [0, -1]
        assert status.workers[0].drops == {"aead": 9} and status.workers[1].drops == {}
        assert status.drops == {"aead": 9}, "zeros are left out"
        first, second = status.queues
        assert (first.interface, first.native, first.zero_copy) == ("lo", True, False)
        assert "no zero-copy" in first.why
        assert sum(first.frames.values()) == first.frames_total == 4096
        assert first.rings == {"fill": 1990, "rx": 41, "tx": 31, "completion": 17}
        assert (first.rx_batch_size, first.tx_batch_size) == (2.5, 5.0)
        assert second.rx_batch_size is None, "no batch yet is no mean of 0"
        assert first.kernel["rx_dropped"] == 71 and first.kernel["tx_empty"] == 76
        assert status.guard is not None
        assert (status.guard.mode, status.guard.program_id) == ("native", 77)
        assert status.guard.verdicts["drop_ipv4"].packets == 40
        assert status.guard.policy["initial_burst"] == 4000 and status.guard.policy["replay_filter"] is True

    on_socket(path, main)


def test_the_blocklist(path: Path) -> None:
    async def main(node: Node) -> None:
        guard = guard_of(node)
        async with Client(path) as client:
            answer = await client.ask(BlockRequest("2001:DB8:1::/48", 600.0), BlockAnswer)
            assert (answer.prefix, answer.seconds) == ("2001:db8:1::/48", 600.0)
            await client.ask(BlockRequest("2001:db8::7"), BlockAnswer)
            assert guard.blocked == {"2001:db8:1::/48": 600.0, "2001:db8::7/128": None}
            blocks = (await client.ask(BlocksRequest(), BlocksAnswer)).blocks
            assert [(b.prefix, b.seconds) for b in blocks] == list(guard.blocked.items())
            await client.ask(UnblockRequest("2001:db8:1::/48"), BlockAnswer)
            assert list(guard.blocked) == ["2001:db8::7/128"]
            with pytest.raises(ProtocolError, match="not on the blocklist") as error:
                await client.ask(UnblockRequest("2001:db8:1::/48"), BlockAnswer)
            assert error.value.kind == "not_blocked"
            with pytest.raises(ProtocolError, match="IPv6-only"):
                await client.ask(BlockRequest("10.0.0.0/8"), BlockAnswer)
            with pytest.raises(ProtocolError, match="seconds"):
                await client.ask(BlockRequest("2001:db8::7", -1.0), BlockAnswer)
            guard.broken = "the map is full"
            with pytest.raises(ProtocolError, match="the map is full") as error:
                await client.ask(BlockRequest("2001:db8::8"), BlockAnswer)
            assert error.value.kind == "failed"
            assert (await client.ask(StatusRequest(), StatusAnswer)).pid, "and the connection goes on"

    on_socket(path, main)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0/8", "1.2.3.4", "::ffff:1.2.3.4", "2001:db8::1/48", "fd00::/129", "host", "", "fe80::1%lo"],
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ConfigError):
        protocol.canonical_prefix(text)


def test_without_a_guard(path: Path) -> None:
    async def main(node: Node) -> None:
        status = await ask(path, StatusRequest(), StatusAnswer)
        assert status.guard is None and status.queues == []
        for request in (BlocksRequest(), BlockRequest("fd00::/64"), CaptureRequest()):
            with pytest.raises(ProtocolError, match="--backend afxdp") as error:
                await ask(path, request, BlocksAnswer)
            assert error.value.kind == "no_guard"

    on_socket(path, main, guarded=False)


# ---- clients that mean harm ----


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (b"", "bad_request", "not a request"),
        (b"\x00\xff\xfe garbage", "bad_request", "not a request"),
        (b'{"request": ', "bad_request", "not a request"),
        (b"[1, 2]", "bad_request", "not a request"),
        (b'{"request": 7}', "bad_request", "not a request"),
        (b'{"request": "\xff"}', "bad_request", "not a request"),
        (b"[" * 20000, "bad_request", "not a request"),
        (b'{"request": "shutdown"}', "unknown_request", "there are status, capture, stop, block"),
        (b'{"request": "status", "more": 1}', "bad_request", "more"),
        (b'{"request": "capture", "snap": 100000}', "bad_request", "snap"),
        (b'{"request": "capture", "sample": 0}', "bad_request", "sample"),
        (b'{"request": "capture", "verdicts": ["nonsense"]}', "bad_request", "there are drop, pass"),
        (b'{"request": "block", "prefix": "' + b"f" * 1000 + b'"}', "bad_request", "prefix"),
        (b'{"request": "stop"}', "bad_request", "no capture runs"),
    ],
)
def test_nonsense_is_answered_and_the_connection_lives(path: Path, line: bytes, kind: str, text: str) -> None:
    async def main(node: Node) -> None:
        first, second = await raw(path, line + b'\n{"request": "status"}\n')
        assert (first["answer"], first["kind"]) == ("error", kind) and text in first["text"]
        assert len(first["text"]) < 2000
        assert second["answer"] == "status"

    on_socket(path, main)


def test_a_line_without_end(path: Path) -> None:
    async def main(node: Node) -> None:
        [error] = await raw(path, b"x" * (protocol.MAX_REQUEST_BYTES + 10), eof=False)
        assert (error["kind"], error["text"]) == ("too_long", "a request is a line of at most 65536 bytes")
        assert await raw(path, b"x" * 1000) == [], "cut off in the middle of a line"
        assert (await ask(path, StatusRequest(), StatusAnswer)).pid

    on_socket(path, main)


def test_slow_clients_are_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)

    async def main(node: Node) -> None:
        # Each byte in time, the line never whole.
        reader, writer = await asyncio.open_unix_connection(path)

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.01)

        dripping = asyncio.ensure_future(drip())
        line = await reader.readline()
        dripping.cancel()
        assert json.loads(line)["kind"] == "timeout"
        writer.close()

    on_socket(path, main)


def test_a_client_that_reads_nothing_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.3)

    async def main(node: Node) -> None:
        with socket.socket(socket.AF_UNIX) as greedy:
            greedy.setblocking(False)
            greedy.connect(str(path))
            request = b'{"request": "status"}\n'
            loop = asyncio.get_running_loop()
            with pytest.raises(OSError):  # The node hangs up while we still talk.
                while True:
                    await loop.sock_sendall(greedy, request * 100)
                    assert (await ask(path, StatusRequest(), StatusAnswer)).pid

    on_socket(path, main)


def test_seventeen_clients(path: Path) -> None:
    async def main(node: Node) -> None:
        clients = [Client(path) for _ in range(server.MAX_CLIENTS)]
        for client in clients:
            await client.__aenter__()
            await client.ask(StatusRequest(), StatusAnswer)
        with pytest.raises(ProtocolError, match="16 clients") as error:
            await ask(path, StatusRequest(), StatusAnswer)
        assert error.value.kind == "too_many_clients"
        await clients.pop().__aexit__(None, None, None)
        while True:  # The place is free when the node has seen it.
            try:
                await ask(path, StatusRequest(), StatusAnswer)
                break
            except ProtocolError:
                await asyncio.sleep(0.01)
        for client in clients:
            await client.__aexit__(None, None, None)

    on_socket(path, main)


def test_the_node_ends_under_its_clients(path: Path) -> None:
    async def main() -> None:
        idle, capturing = Client(path), Client(path)
        async with asyncio.timeout(PATIENCE):
            async with served(path) as node:
                await idle.__aenter__()
                await idle.ask(StatusRequest(), StatusAnswer)
                await capturing.__aenter__()
                await capturing.ask(CaptureRequest(), CaptureAnswer)
                await guard_of(node).until_mirroring(True)
            assert not guard_of(node).mirroring and not path.exists()
            _, figures = await captured(capturing)
            assert figures.reason == "the node ended"
            with pytest.raises(LocalError):
                await idle.ask(StatusRequest(), StatusAnswer)
            for client in (idle, capturing):
                await client.__aexit__(None, None, None)

    asyncio.run(main())


# ---- captures ----


async def captured(client: Client) -> tuple[list[Frame | bytes], Figures]:
    """Frames and secrets until the end."""
    records: list[Frame | bytes] = []
    while True:
        record = await client.record()
        if isinstance(record, tuple):
            if record[0] is Kind.END:
                return records, record[1]
        else:
            records.append(record)


def test_capture(path: Path) -> None:
    async def main(node: Node) -> None:
        guard = guard_of(node)
        guard.push(frame(99))  # Of an earlier capture: not ours.
        async with Client(path) as client:
            request = CaptureRequest(["drop", "XSK"], 10, 64)
            answer = await client.ask(request, CaptureAnswer)
            assert (answer.interface, answer.sample, answer.snap) == ("lo", 10, 64)
            await guard.until_mirroring(True)
            verdicts, sample, snap = guard.mirrors[0]
            assert (sample, snap) == (10, 64)
            assert Verdict.DROP_IPV4 in verdicts and Verdict.XSK in verdicts
            assert Verdict.PASS_OTHER not in verdicts and Verdict.ANSWER_RETRY not in verdicts
            assert (await ask(path, StatusRequest(), StatusAnswer)).capturing
            guard.push(*(frame(number) for number in range(700)))
            got = [await client.record() for _ in range(700)]
            guard.capacity = 0
            guard.push(frame(1), frame(2))  # No room.
            guard.capacity = 10
            client.say(StopRequest())
            guard.push(frame(700))  # Still comes: it was there before the mirror went off.
            rest, figures = await captured(client)
        frames = [record for record in got + rest if isinstance(record, Frame)]
        assert [f.time_ns for f in frames] == [1_000_000 + n for n in range(701)]
        assert frames[5] == Frame(1_000_005, 128, 1, int(Verdict.XSK), bytes([5]) * 100)
        assert figures == Figures(frames=701, bytes=701 * 128, dropped=2)
        await guard.until_mirroring(False)
        assert not (await ask(path, StatusRequest(), StatusAnswer)).capturing

    on_socket(path, main)


def test_one_capture_at_a_time(path: Path) -> None:
    async def main(node: Node) -> None:
        async with Client(path) as first:
            await first.ask(CaptureRequest(), CaptureAnswer)
            with pytest.raises(ProtocolError, match="a capture runs already") as error:
                await ask(path, CaptureRequest(), CaptureAnswer)
            assert error.value.kind == "busy" and len(guard_of(node).mirrors) <= 1
        await guard_of(node).until_mirroring(False)
        async with Client(path) as second:
            await second.ask(CaptureRequest(), CaptureAnswer)

    on_socket(path, main)


def test_a_client_that_vanishes_leaves_the_mirror_off(path: Path) -> None:
    async def main(node: Node) -> None:
        guard = guard_of(node)
        client = Client(path)
        await client.__aenter__()
        await client.ask(CaptureRequest(), CaptureAnswer)
        await guard.until_mirroring(True)
        guard.push(*(frame(number) for number in range(500)))
        await client.record()
        client._writer.transport.abort()
        await guard.until_mirroring(False)
        assert not (await ask(path, StatusRequest(), StatusAnswer)).capturing

    on_socket(path, main)


def test_a_client_that_reads_no_frames_leaves_the_mirror_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 0.3)

    async def main(node: Node) -> None:
        guard = guard_of(node)
        guard.capacity = 10**6
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(str(path))
            lazy.sendall(b'{"request": "capture"}\n')
            await guard.until_mirroring(True)
            guard.push(*(frame(number, 2000) for number in range(5000)))  # 10 MB.
            await asyncio.sleep(0.1)
            # What waits for it is bounded: the rest stays in the ring.
            assert guard.waiting > 2500
            assert (await ask(path, StatusRequest(), StatusAnswer)).capturing, "others are served meanwhile"
            await guard.until_mirroring(False)

    on_socket(path, main)


def test_a_guard_that_fails_ends_the_capture_with_its_reason(path: Path) -> None:
    async def main(node: Node) -> None:
        guard_of(node).broken = "the kernel does not let us"
        async with Client(path) as client:
            await client.ask(CaptureRequest(), CaptureAnswer)
            _, figures = await captured(client)
        assert figures.reason == "the kernel does not let us"

    on_socket(path, main)


def test_the_client_takes_no_nonsense_from_a_node() -> None:
    async def read(data: bytes) -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await stream.read_record(reader)

    for data in (
        b"\x09\0\0\0\0\0\0\0",  # Unknown kind.
        b"\x01\0\0\0\xff\xff\xff\xff",  # 4 GiB.
        b"\x01\0\0\0\x03\0\0\0abc",  # A frame shorter than its head.
        stream.record(Kind.FRAME, bytes(20 + 2049)),  # Longer than any snap.
        stream.record(Kind.END, b"{"),
        stream.record(Kind.FIGURES, b'{"frames": "x"}'),
    ):
        with pytest.raises(ProtocolError):
            asyncio.run(read(data))
    with pytest.raises(asyncio.IncompleteReadError):
        asyncio.run(read(b"\x01\0\0\0\x20\0\0\0short"))


def test_a_server_that_is_none(path: Path) -> None:
    async def main() -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b'{"answer": "status", "version": 1}\n')
            await reader.readline()
            writer.close()

        async with await asyncio.start_unix_server(nonsense, path), Client(path) as client:
            with pytest.raises(ProtocolError, match="not understood"):
                await client.ask(StatusRequest(), StatusAnswer)
            with pytest.raises(LocalError, match="the node ended"):
                await client.ask(StatusRequest(), StatusAnswer)

    asyncio.run(main())
    with pytest.raises(LocalError):
        asyncio.run(ask(path.with_name("none"), StatusRequest(), StatusAnswer))


# ---- secrets ----


def test_secrets_only_of_a_node_that_keeps_them(path: Path) -> None:
    async def main(node: Node) -> None:
        with pytest.raises(ProtocolError, match="started without --allow-secrets") as error:
            await ask(path, CaptureRequest(secrets=True), CaptureAnswer)
        assert error.value.kind == "no_secrets" and guard_of(node).mirrors == []

    on_socket(path, main)


def test_secrets_come_before_the_frames_they_open(path: Path) -> None:
    key_log = KeyLog()
    key_log.add(b"\x01" * 32, "CLIENT_TRAFFIC_SECRET_0", b"\x02" * 32)

    async def main(node: Node) -> None:
        guard = guard_of(node)
        async with Client(path) as without, Client(path) as client:
            await without.ask(CaptureRequest(), CaptureAnswer)
            await guard.until_mirroring(True)
            without.say(StopRequest())
            assert (await captured(without))[0] == [], "secrets only on request"
            answer = await client.ask(CaptureRequest(secrets=True), CaptureAnswer)
            assert answer.secrets
            await guard.until_mirroring(True)
            key_log.add(b"\x03" * 32, "SERVER_TRAFFIC_SECRET_0", b"\x04" * 32)
            guard.push(frame(1))
            client.say(StopRequest())
            records, _ = await captured(client)
        kept, new, mirrored = records
        assert kept == f"CLIENT_TRAFFIC_SECRET_0 {'01' * 32} {'02' * 32}\n".encode()
        assert new == f"SERVER_TRAFFIC_SECRET_0 {'03' * 32} {'04' * 32}\n".encode()
        assert isinstance(mirrored, Frame)

    on_socket(path, main, key_log=key_log)


def test_the_key_log_is_bounded() -> None:
    key_log = KeyLog()
    for number in range(MAX_CONNECTIONS + 10):
        for label in range(20):  # One that does not stop.
            key_log.add(number.to_bytes(32, "big"), f"LABEL_{label}", b"s" * 48)
    lines = key_log.text().splitlines()
    assert len(lines) == 4 * MAX_CONNECTIONS
    assert lines[0].split()[1] == (10).to_bytes(32, "big").hex().encode(), "the oldest are forgotten"
    assert len(key_log.text()) < stream.MAX_RECORD_BYTES


def test_both_ends_log_the_same_secrets(pki: Pki) -> None:
    logs = KeyLog(), KeyLog()
    client, server_side = (
        HandshakeConfig(config.credentials, config.trust, key_log=log.add)
        for config, log in zip((pki.client, pki.server), logs, strict=True)
    )
    loopback = Loopback(client, server_side)
    loopback.run()
    lines = [sorted(log.text().decode().splitlines()) for log in logs]
    assert lines[0] == lines[1] and len(lines[0]) == 4
    labels = {line.split()[0]: bytes.fromhex(line.split()[2]) for line in lines[0]}
    secrets = loopback.client.secrets
    assert labels["CLIENT_TRAFFIC_SECRET_0"] == secrets[(Level.ONE_RTT, True)][1]
    assert labels["SERVER_TRAFFIC_SECRET_0"] == secrets[(Level.ONE_RTT, False)][1]
    assert labels["CLIENT_HANDSHAKE_TRAFFIC_SECRET"] == secrets[(Level.HANDSHAKE, True)][1]
    assert labels["SERVER_HANDSHAKE_TRAFFIC_SECRET"] == secrets[(Level.HANDSHAKE, False)][1]

"""A node that gives up root: every thread, for good, and it still serves. Run as a program, this file is
that node."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, TlsFactory
from control.privileges import Capability, Dropped, Identity, drop, identity
from dataplane import Address, Config, ConfigError, Datapath

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
NOBODY = pwd.getpwnam("nobody")
WANTED = ("Name", "Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")


def threads() -> list[dict[str, str]]:
    """What the kernel says of each thread of this process."""
    found = []
    for path in Path("/proc/self/task").glob("*/status"):
        lines = (line.partition(":") for line in path.read_text().splitlines())
        found.append({name: value.strip() for name, _, value in lines if name in WANTED})
    return found


def capabilities_of_a_program() -> int:
    """The effective set of a program started from here."""
    done = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("CapEff"))
    return int(line.split()[1], 16)


# ---- the node ----


async def node(
    user: str, keep: frozenset[Capability], directory: Path, backend: str, no_sandbox: bool
) -> Any:
    """Open, drop, transfer, write; what was seen."""
    authority = make_authority()
    a, b = issue(authority, "node-a"), issue(authority, "node-b")
    pool = ThreadPoolExecutor(2)  # Threads that exist before and know nothing.
    for each in [pool.submit(os.getpid) for _ in range(8)]:
        each.result()
    who = identity(user)
    ids = {"uid": who.uid, "gid": who.gid} if who else {}
    common: dict[str, Any] = {"backend": backend, "no_sandbox": no_sandbox, **ids}
    server_config = Config(server=True, bind=Address("::1", 0), cores=(-1, -1), **common)
    seen: dict[str, Any] = {}
    async with (
        Datapath(server_config, TlsFactory(HandshakeConfig(b, authority.trust))) as server,
        Datapath(Config(**common), TlsFactory(HandshakeConfig(a, authority.trust))) as client,
    ):
        seen["backend"] = server.describe()
        seen["dropped"] = str(drop(user, keep))
        seen["again"] = str(drop(user, keep))
        seen["threads"] = threads()
        accepting = asyncio.ensure_future(server.accept())
        connection = await client.connect(server.local_address)
        accepted = await accepting
        async with await connection.open_stream() as stream:
            stream.write(bytes(300_000))
            stream.write_eof()
            async with await accepted.accept_stream() as other:
                (directory / "received").write_bytes(await other.read_all())
                other.write_eof()
                await stream.read_all()
        seen["uid_of_new_thread"] = await asyncio.get_running_loop().run_in_executor(None, os.geteuid)
        seen["program"] = await asyncio.get_running_loop().run_in_executor(None, capabilities_of_a_program)
    pool.shutdown()
    return seen


def run_node(
    user: str, directory: Path, *keep: Capability, backend: str = "io_uring", no_sandbox: bool = False
) -> dict[str, Any]:
    arguments = [user, str(directory), backend, str(int(no_sandbox)), *(c.name for c in keep)]
    argv = [sys.executable, "-m", "tests.python.test_privileges", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Belongs to nobody, and nobody gets there."""
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    made = tmp_path / "files"
    made.mkdir(mode=0o700)
    os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
    return made


@needs_root
@pytest.mark.parametrize("backend", ["io_uring", "socket"])
def test_a_node_serves_on_as_an_ordinary_user(directory: Path, backend: str) -> None:
    seen = run_node("nobody", directory, backend=backend)
    assert len(seen["threads"]) >= 6, "main, two of a pool, three workers"
    for thread in seen["threads"]:
        assert thread["Uid"].split() == [str(NOBODY.pw_uid)] * 4, thread
        assert thread["Gid"].split() == [str(NOBODY.pw_gid)] * 4, thread
        assert thread["Groups"] == "", thread
        assert int(thread["CapPrm"], 16) == int(thread["CapEff"], 16) == int(thread["CapBnd"], 16) == 0, (
            thread
        )
        assert thread["NoNewPrivs"] == "1", thread
        assert thread["Seccomp"] == ("2" if thread["Name"].startswith("stoq-w") else "0"), thread
    received = directory / "received"
    assert (received.stat().st_size, received.stat().st_uid) == (300_000, NOBODY.pw_uid)
    assert seen["uid_of_new_thread"] == NOBODY.pw_uid
    assert seen["dropped"] == seen["again"] and "nobody" in seen["dropped"]
    assert "no capabilities" in seen["dropped"]
    assert all("seccomp: " in line for line in seen["backend"][:2]), seen["backend"]


@needs_root
def test_what_is_kept_is_kept_and_workers_keep_nothing(directory: Path) -> None:
    seen = run_node("nobody", directory, Capability.NET_RAW)
    for thread in seen["threads"]:
        kept = 0 if thread["Name"].startswith("stoq-w") else 1 << Capability.NET_RAW
        assert int(thread["CapPrm"], 16) == int(thread["CapEff"], 16) == kept, thread
    assert "CAP_NET_RAW" in seen["dropped"]


@needs_root
def test_staying_root_is_root_in_name_only(tmp_path: Path) -> None:
    seen = run_node("root", tmp_path)
    for thread in seen["threads"]:
        assert thread["Uid"].split()[0] == "0"
        assert int(thread["CapPrm"], 16) == int(thread["CapBnd"], 16) == 0, thread
    assert seen["program"] == 0, "a program started by uid 0 would have them all back"


@needs_root
def test_without_sandbox_is_said_and_privileges_go_all_the_same(directory: Path) -> None:
    seen = run_node("nobody", directory, no_sandbox=True)
    assert all("no sandbox: configured" in line for line in seen["backend"][:2]), seen["backend"]
    for thread in seen["threads"]:
        assert thread["Seccomp"] == "0" and int(thread["CapPrm"], 16) == 0, thread


# ---- who to become ----


def _as(monkeypatch: pytest.MonkeyPatch, uid: int, users: dict[str, int]) -> None:
    def getpwnam(name: str) -> SimpleNamespace:
        return SimpleNamespace(pw_name=name, pw_uid=users[name], pw_gid=users[name] + 1)

    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("pwd.getpwnam", getpwnam)


def test_root_becomes_the_named_user_or_stoq_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _as(monkeypatch, 0, {"root": 0, "ann": 1000, "stoq": 990})
    assert identity("ann") == Identity("ann", 1000, 1001)
    assert identity() == Identity("stoq", 990, 991)
    assert identity("root") is None
    _as(monkeypatch, 0, {"root": 0})
    assert identity() is None
    with pytest.raises(ConfigError, match="useradd --system bob"):
        identity("bob")


def test_an_ordinary_user_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _as(monkeypatch, 1000, {"root": 0, "ann": 1000, "stoq": 990})
    assert identity() is None and identity("ann") is None
    for other in ("root", "stoq"):
        with pytest.raises(ConfigError, match="only root can become"):
            identity(other)


def test_the_report_names_what_is_left() -> None:
    assert str(Dropped("stoq:stoq", ())) == "runs as stoq:stoq with no capabilities"
    assert str(Dropped("a:b", (Capability.BPF,))) == "runs as a:b with CAP_BPF"


def main() -> NoReturn:
    user, directory, backend, no_sandbox, *keep = sys.argv[1:]
    kept = frozenset(Capability[name] for name in keep)
    seen = asyncio.run(node(user, kept, Path(directory), backend, no_sandbox == "1"))
    print(json.dumps(seen))
    sys.exit(0)


if __name__ == "__main__":
    main()

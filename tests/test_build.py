"""The C programs through pytest: unit tests plain and under ASan + UBSan, simulation, fuzzers in short.

They are built by `make test-build`; a missing one is a failure, so that nothing is skipped unseen. A program
that ends well with "SKIP: why" as its last line could not run here (no root, no BPF).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
NAMES = sorted(path.stem for path in (ROOT / "tests/c").glob("test_*.c"))
FUZZERS = sorted(path.stem for path in (ROOT / "tests/fuzz").glob("fuzz_*.c"))

SIMULATIONS = 1000  # Whole connections; `make sim N=10000` runs more.
SIMULATIONS_SANITIZED = 200  # ASan costs a factor of about ten.
FUZZ_SECONDS = 3  # Each; `make fuzz T=600` runs longer.
TEST_SECONDS = 300  # Beyond, a program hangs.


def run(program: Path, *arguments: str, seconds: float = TEST_SECONDS) -> None:
    """Run to the end; a failure shows what failed, and what was said last."""
    assert program.exists(), f"{program.relative_to(ROOT)} is not built: run `make test-build`"
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "abort_on_error=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [str(program), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    failures = "\n".join(line for line in done.stdout.splitlines() if line.startswith("FAIL"))
    assert done.returncode == 0, f"exit code {done.returncode}\n{failures}\n...{done.stdout[-3000:]}"
    last = done.stdout.rstrip().rpartition("\n")[2]
    if last.startswith("SKIP: "):
        pytest.skip(last.removeprefix("SKIP: "))


def test_there_are_programs() -> None:
    assert len(NAMES) >= 5 and len(FUZZERS) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_c(name: str) -> None:
    run(BUILD / "tests" / name)


@pytest.mark.parametrize("name", NAMES)
def test_c_sanitized(name: str) -> None:
    run(BUILD / "asan/tests" / name)


def test_simulation() -> None:
    run(BUILD / "sim", "--count", str(SIMULATIONS))


def test_simulation_sanitized() -> None:
    run(BUILD / "asan/sim", "--count", str(SIMULATIONS_SANITIZED))


@pytest.mark.parametrize("name", FUZZERS)
def test_fuzz(name: str, tmp_path: Path) -> None:
    """New inputs go to a directory of the test's own; the seeds are only read."""
    seeds = BUILD / "corpus" / name.removeprefix("fuzz_")
    assert seeds.is_dir(), f"{seeds.relative_to(ROOT)} is not made: run `make test-build`"
    (tmp_path / "corpus").mkdir()
    arguments = [f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", f"-artifact_prefix={tmp_path}/"]
    run(BUILD / "fuzz" / name, *arguments, str(tmp_path / "corpus"), str(seeds))

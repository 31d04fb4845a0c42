"""What a packet costs in instructions of ours, by callgrind: a figure that no neighbour on the machine
disturbs. A change that makes sending or receiving dearer by more than a twentieth fails here.

Counted is what runs below `quic_endpoint_transmit` and `quic_endpoint_receive` in build/bench/engine, both
ends, without the libraries' own (AEAD, memcpy), which depend on the processor. After a change that is worth
its price, or saves something, `python -m tests.python.test_instructions` prints the new figures, and
docs/PERFORMANCE.md says why."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "build/bench/engine"
BASELINE = {"transmit": 328, "receive": 627}  # Instructions a packet of 1,350 bytes.
DEARER = 1.05
CHEAPER = 0.85  # Then BASELINE no longer guards anything: write the new figure down.
MIB = 32
OTHERS = ("libIPSec_MB", "libcrypto", "libc.so", "libm.so", "ld-linux", "libuuid")
ROW = re.compile(r"^\s*([\d,]+)\s+\(\s*[\d.]+%\)\s+(.+)$")


def instructions(direction: str) -> float:
    """Of ours, a packet."""
    with tempfile.TemporaryDirectory(prefix="stoq-callgrind-") as directory:
        out = Path(directory) / "out"
        argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        argv += [f"--toggle-collect=quic_endpoint_{direction}", str(ENGINE)]
        argv += ["--json", "--only", "--trials", "1", "--warm-up", "16", "--mib", str(MIB)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300)
        packets = int(json.loads(ran.stdout)["packets_in_all"])
        shown = subprocess.run(
            ["callgrind_annotate", "--threshold=100", "--auto=no", str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
    total = 0
    for line in shown.stdout.splitlines():
        row = ROW.match(line)
        if row and "PROGRAM TOTALS" not in line and not any(name in line for name in OTHERS):
            total += int(row.group(1).replace(",", ""))
    return total / packets


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is missing: apt-get install valgrind")
@pytest.mark.parametrize("direction", list(BASELINE))
def test_a_packet_costs_no_more_than_it_did(direction: str) -> None:
    found, known = instructions(direction), BASELINE[direction]
    print(f"{direction}: {found:.0f} instructions a packet, {known} before")
    assert found <= known * DEARER, f"{direction}: {found:.0f} instructions a packet, {known} before"
    assert found >= known * CHEAPER, f"{direction}: {found:.0f} instructions a packet: put it into BASELINE"


def main() -> None:
    for direction in BASELINE:
        print(f"{direction}: {instructions(direction):.0f}")


if __name__ == "__main__":
    main()

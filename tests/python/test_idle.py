"""`stoq bench idle`, short: how large an idle connection is does not depend on this machine's speed, so that
is checked, and that none holds what it could give back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from control.bench.processes import ROOT

MOST_BYTES = 4096  # docs/PERFORMANCE.md says what there are.

built = pytest.mark.skipif(
    not (ROOT / "build" / "bench" / "idle").is_file(), reason="not built: make build/bench/idle"
)


@built
def test_idle_connections_are_small() -> None:
    argv = [sys.executable, "-m", "control.cli", "bench", "idle", "--json"]
    argv += ["--connections", "2000", "--trials", "1", "--mib", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert report["connections"] == 2000
    assert report["timers"] == 2001  # One each, whatever it waits for; and the active one's.
    assert report["awake"] == 0
    assert report["bytes_each"] <= MOST_BYTES
    parts = report["bytes_by_part"]
    assert sum(parts.values()) == pytest.approx(report["bytes_each"], abs=1)
    assert {name for name, size in parts.items() if size > 1} == {"connection", "worker", "tables"}
    assert report["gbps_alone"] > 0 and report["gbps_beside"] > 0 and report["ratio"] > 0
    assert len(report["trials"]) == 1
    assert report["environment"]["link"] == "none: in memory"

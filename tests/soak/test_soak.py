"""A few seconds of what `make soak` does for an hour, in a process of its own, with a memory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and AF_XDP need root")


@pytest.mark.parametrize("backend", ["afxdp", "io_uring"])
def test_soak(backend: str) -> None:
    argv = [sys.executable, "-m", "tests.soak.run", "--seconds", "6", "--backend", backend, "--seed", "20", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["streams"] > 20
    assert len(report["queues"]) == (2 if backend == "afxdp" else 0)
    if backend == "afxdp":
        # Not all by the socket path: that would prove nothing.
        assert all(queue["tx_batches"] > 10 * queue["tx_socket"] for queue in report["queues"])

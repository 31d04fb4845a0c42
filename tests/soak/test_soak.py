"""A few seconds of what `make soak` does for an hour."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.soak.run import soak

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and AF_XDP need root")


@pytest.mark.parametrize("backend", ["afxdp", "io_uring"])
def test_soak(backend: str) -> None:
    report = asyncio.run(soak(4.0, backend, seed=20))
    assert report.streams > 20
    assert len(report.queues) == (2 if backend == "afxdp" else 0)
    if backend == "afxdp":
        # Not all by the socket path: that would prove nothing.
        assert all(queue["tx_batches"] > 10 * queue["tx_socket"] for queue in report.queues)

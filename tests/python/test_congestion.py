"""Congestion controllers on the virtual clock, and the models they are measured against. Short: the figures
of docs/PERFORMANCE.md come from `stoq bench congestion`, which runs longer."""

from __future__ import annotations

import json
import subprocess
from math import sqrt
from pathlib import Path as File
from typing import Any

import pytest

from control.bench import congestion, models
from control.bench.models import Path
from control.bench.processes import ROOT
from dataplane.tables import CongestionController

PROGRAM = File(ROOT, "build", "bench", "congestion")
LOSSY = Path(rate_mbps=100, rtt_ms=20, loss=0.01, datagram=1452)
built = pytest.mark.skipif(not PROGRAM.is_file(), reason="not built: make build/bench/congestion")


def run(controller: str, *options: str) -> dict[str, Any]:
    """One trial of the C program."""
    argv = [str(PROGRAM), "--congestion", controller, *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def mbps(result: dict[str, Any]) -> list[float]:
    """Of each flow."""
    return [received * 8 / result["seconds"] / 1e6 for received in result["flows"]]


def test_models() -> None:
    assert models.mathis(LOSSY) == pytest.approx(sqrt(1.5) / 0.1 * 1419 * 8 / 0.02 / 1e6 * 0.99)
    # Where round trips are short CUBIC is Reno's equal (RFC 9438 section 4.3), where they are long it is not.
    assert models.cubic(LOSSY) == pytest.approx(models.mathis(LOSSY), rel=0.01)
    far = Path(rate_mbps=1000, rtt_ms=200, loss=1e-5, datagram=1452)
    assert models.cubic(far) > 2 * models.mathis(far)
    assert models.bbr(LOSSY) == pytest.approx(LOSSY.capacity_mbps * (1 - 0.99**63) / 0.63)
    clean = Path(rate_mbps=100, rtt_ms=20, loss=0, datagram=1452)
    assert models.bbr(clean) == clean.capacity_mbps == pytest.approx(94.6)
    assert models.jain([1, 1, 1, 1]) == 1
    assert models.jain([4, 0, 0, 0]) == 0.25
    assert set(congestion.REFERENCES) == {c.key for c in CongestionController}


@built
def test_the_same_seed_gives_the_same_figures() -> None:
    options = ("--seed", "7", "--loss-ppm", "10000", "--warm-up", "1", "--seconds", "2", "--rate-mbps", "20")
    for controller in CongestionController:
        first = run(controller.key, *options)
        assert first == run(controller.key, *options)
        assert first["flows"][0] > 0
        # Each datagram is lost or not by itself: one in a hundred, trains or no trains.
        assert 0.003 < first["wire"]["lost"] / first["wire"]["sent"] < 0.02
    assert first != run("bbr", *(option.replace("7", "8") for option in options))


@built
@pytest.mark.parametrize("controller", ["cubic", "bbr"])
def test_goodput_under_random_loss(controller: str) -> None:
    """Within a quarter of its model: a trial this short has a hundred losses of CUBIC's, a few cycles of
    BBR's; the tenth of the bar is for the bench."""
    result = run(controller, "--loss-ppm", "10000", "--warm-up", "3", "--seconds", "15")
    (goodput,) = mbps(result)
    assert goodput == pytest.approx(congestion.REFERENCES[controller][1](LOSSY), rel=0.25)


@built
@pytest.mark.parametrize("controller", ["cubic", "bbr"])
def test_ten_flows_share_a_bottleneck(controller: str) -> None:
    # Shares of BBR even out over some cycles of its probing, which take seconds each.
    path = ("--rate-mbps", "50", "--queue-bytes", "125000", "--seconds", "40")
    result = run(controller, "--flows", "10", *path, "--warm-up", "10")
    shares = mbps(result)
    assert models.jain(shares) >= 0.95
    assert sum(shares) > 0.9 * 47
    assert result["wire"]["queue_drop"] > 0

"""Ours against every stranger, in both directions: one test a cell of docs/INTEROP.md.

`pytest -m "interop and not slow"` is the part for every day; the rest (30 % loss, blackhole, most of the long round trips)
is marked slow.
"""

from __future__ import annotations

import pytest

from tests.interop.endpoints import PAIR_LIMITS, Role
from tests.interop.run import Planned, plan
from tests.interop.runner import PASS, cannot, run_case

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("peers")]


def _slow(planned: Planned) -> bool:
    """Long round trips are waited for with one stranger; `make interop` waits with all."""
    alone = planned.case.name == "longrtt" and "quic-go" not in (planned.client.name, planned.server.name)
    return alone or not planned.case.quick


def _parameters() -> list[object]:
    """Every cell but those a peer cannot do, which the table names with the reason."""
    return [
        pytest.param(planned, id=planned.title, marks=[pytest.mark.slow] if _slow(planned) else [])
        for planned in plan()
        if cannot(planned.case, planned.client, planned.server) is None
    ]


@pytest.mark.parametrize("planned", _parameters())
def test_cell(planned: Planned) -> None:
    result = run_case(planned.case, planned.client, planned.server)
    assert result.verdict == PASS, f"{result.reason} (seed {result.seed}, logs under build/interop)"


def test_only_peers_are_excused() -> None:
    """No limit names ours: what it cannot do is a failure, not a footnote."""
    for planned in plan():
        for endpoint in (planned.client, planned.server):
            if endpoint.name == "stoq":
                assert not endpoint.cannot(planned.case.name, Role.CLIENT)
                assert not endpoint.cannot(planned.case.name, Role.SERVER)
                assert endpoint.amplification_excess == 0
    assert not any("stoq" in key for key in PAIR_LIMITS)

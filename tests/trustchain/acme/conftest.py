"""What the ACME tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trustchain.acme.served import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A CA and a directory of its own."""
    return World(tmp_path)

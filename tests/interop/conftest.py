"""The peers are there before the first interop test; a missing one is installed, never a reason to skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import netns
from tests.peers import install


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "interop: runs against third-party QUIC endpoints in namespaces (needs root)"
    )
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(scope="session")
def peers() -> Iterator[None]:
    """All strangers installed, in their pinned versions; no namespaces of dead runs."""
    install.ensure()
    netns.remove_stale()
    yield

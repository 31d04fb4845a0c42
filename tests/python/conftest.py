"""What the Python tests share: one certificate authority with two nodes, and handshake configurations made
from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from control.devcerts import Authority, issue, make_authority, write
from control.handshake import Credentials, HandshakeConfig


@dataclass(frozen=True)
class Pki:
    """An authority, two nodes' credentials for ::1 and their names, and the usual configurations."""

    authority: Authority
    a: Credentials
    b: Credentials

    @property
    def client(self) -> HandshakeConfig:
        """Node a as client of stoq/1."""
        return HandshakeConfig(self.a, self.authority.trust)

    @property
    def server(self) -> HandshakeConfig:
        """Node b as server of stoq/1."""
        return HandshakeConfig(self.b, self.authority.trust)


@pytest.fixture(scope="session")
def pki() -> Pki:
    """Made once: keys take time."""
    authority = make_authority()
    return Pki(authority, issue(authority, "node-a"), issue(authority, "node-b"))


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `stoq dev-certs` writes it, for node-a and node-b."""
    directory = tmp_path_factory.mktemp("certs")
    write(directory, ["node-a", "node-b"])
    return directory

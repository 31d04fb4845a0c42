"""What the tests of the authority share: one that is made once and copied, and how to ask it for something."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from control.trustchain.actor import Actor
from control.trustchain.authority import Authority
from control.trustchain.certificates import Places
from control.trustchain.directory import InitOptions, init
from control.trustchain.keys import SigningKey, generate
from control.trustchain.profiles import Names, ProfileName
from control.trustchain.requests import Freshness, IssueRequest, make_csr
from control.trustchain.roles import Role
from control.trustchain.submit import LogPolicy
from tests.trustchain.clock import Clock
from tests.trustchain.signinglog import SigningLog

ADMIN = Actor("admin", frozenset({Role.ADMIN}), "test")
PLACES = Places("http://[::1]:1/ca.crl", "http://[::1]:1/ocsp", "http://[::1]:1/ca.pem")


@dataclass
class Ca:
    """An authority's directory, a clock, and logs."""

    directory: Path
    clock: Clock
    logs: list[SigningLog] = field(default_factory=list)
    policy: LogPolicy = field(default_factory=lambda: LogPolicy(2, timeout_s=5, linger_s=0.05))
    passphrase: Callable[[], bytes] | None = None

    def open(self, **more: Any) -> Authority:
        """Open it."""
        settings: dict[str, Any] = {
            "logs": self.logs,
            "policy": self.policy,
            "clock": self.clock,
            "passphrase": self.passphrase,
        }
        return Authority.open(self.directory, **{**settings, **more})

    def run(self, main: Callable[[Authority], Coroutine[Any, Any, Any]], **more: Any) -> Any:
        """Run `main` with the open authority."""

        async def opened() -> Any:
            async with self.open(**more) as authority:
                return await main(authority)

        return asyncio.run(asyncio.wait_for(opened(), 60))

    def request(
        self,
        *dns: str,
        addresses: tuple[str, ...] = (),
        profile: ProfileName = ProfileName.NODE,
        roles: frozenset[Role] = frozenset(),
        key: SigningKey | None = None,
        lifetime_s: float | None = None,
        subject: str = "",
    ) -> IssueRequest:
        """A request for these names, made now."""
        csr = make_csr(key or generate(), subject, Names.parse(dns, addresses, wildcards=True))
        return IssueRequest(csr, profile, roles, lifetime_s, subject, Freshness(self.clock()))


@pytest.fixture(scope="session")
def made_ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An authority's directory as `init` leaves it, and when that was."""
    directory, clock = tmp_path_factory.mktemp("authority") / "ca", Clock()
    options = InitOptions("Test", "STOQ", permitted_dns=("stoq.example",), places=PLACES, min_scts=2)
    init(directory, options, clock())
    return directory, clock()


@pytest.fixture
def ca(made_ca: tuple[Path, float], tmp_path: Path) -> Ca:
    """A copy of it, with two logs."""
    directory = tmp_path / "ca"
    shutil.copytree(made_ca[0], directory)
    clock = Clock(made_ca[1])
    return Ca(directory, clock, [SigningLog("log a", clock), SigningLog("log b", clock)])


def openssl(*arguments: object, code: int = 0) -> str:
    """Run `openssl`; what it says on both outputs."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

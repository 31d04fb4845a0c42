"""The strangers: how each third-party endpoint is started for a case, and what it cannot do.

An endpoint turns a `Place` (the case's directory and addresses) and the case's `Wants` into a command line.
The directory has www/ (what is served), downloads/, certs/{root.pem,cert.pem,priv.key} and logs/. Ours is in
ours.py, behind the same protocol.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tests.peers.install import BUILD

SERVER_PORT = 443  # quic-go's interop server knows no other


class Role(StrEnum):
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True)
class Wants:
    """What a case asks of the endpoints themselves; the rest is done by the relay."""

    cipher: str | None = None  # the only suite the client offers
    retry: bool = False
    version_negotiation: bool = False  # the client offers a version no server has
    key_update_after: int | None = None  # bytes the client has received
    multiconnect: bool = False  # a connection for every file, one after the other


@dataclass(frozen=True)
class Place:
    directory: Path
    wants: Wants
    case: str
    server_address: str
    urls: Sequence[str]

    @property
    def certs(self) -> Path:
        return self.directory / "certs"

    @property
    def urls_file(self) -> Path:
        return self.directory / "urls"

    def key_log(self, role: Role) -> Path:
        return self.directory / "logs" / f"{role}.keys"


@dataclass(frozen=True)
class Command:
    """`prints_listening`: it says so on stdout with a JSON line; otherwise readiness is its UDP port being
    bound.
    """

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    prints_listening: bool = True


class Endpoint(Protocol):
    @property
    def name(self) -> str: ...

    def cannot(self, case: str, role: Role) -> str | None:
        """Why this endpoint cannot play a role in a case, or None."""

    def fetches_files(self, case: str) -> bool:
        """Whether its client ends the case with the files on disk."""

    def exit_complaint(self, case: str, role: Role, code: int, output: str) -> str | None:
        """Why an exit code (negative: a signal) at the end of its part is wrong, or None; `output` is all it
        printed.
        """

    @property
    def amplification_excess(self) -> int:
        """Bytes its server is known to send past the limit of RFC 9000 section 8.1. Not 0 only where a peer
        is at fault.
        """

    def serve(self, place: Place) -> Command: ...

    def get(self, place: Place) -> Command: ...


@dataclass(frozen=True)
class PythonPeer:
    """aioquic or qh3, by the scripts in tests/peers/."""

    name: str
    amplification_excess: int = 0
    limits: Mapping[tuple[str, Role], str] = field(default_factory=dict)

    def cannot(self, case: str, role: Role) -> str | None:
        return self.limits.get((case, role))

    def fetches_files(self, case: str) -> bool:
        return True

    def exit_complaint(self, case: str, role: Role, code: int, output: str) -> str | None:
        return None if code == 0 else f"exited with {code}"

    def _command(self, place: Place, role: Role, arguments: list[str]) -> Command:
        options = ["--cipher", place.wants.cipher] if place.wants.cipher and role is Role.CLIENT else []
        options += ["--secrets-log", str(place.key_log(role))]
        return Command([sys.executable, "-m", f"tests.peers.{self.name}_hq", *arguments, *options])

    def serve(self, place: Place) -> Command:
        arguments = ["serve", "--listen", f"[{place.server_address}]:{SERVER_PORT}"]
        arguments += ["--root", str(place.directory / "www")]
        arguments += ["--cert", str(place.certs / "cert.pem"), "--key", str(place.certs / "priv.key")]
        arguments += ["--retry"] if place.wants.retry else []
        return self._command(place, Role.SERVER, arguments)

    def get(self, place: Place) -> Command:
        wants = place.wants
        arguments = [
            "get",
            "--ca",
            str(place.certs / "root.pem"),
            "--output",
            str(place.directory / "downloads"),
        ]
        arguments += ["--urls-from", str(place.urls_file)]
        if wants.key_update_after is not None:
            arguments += ["--key-update-after", str(wants.key_update_after)]
        arguments += ["--version-negotiation"] if wants.version_negotiation else []
        arguments += ["--multiconnect"] if wants.multiconnect else []
        return self._command(place, Role.CLIENT, arguments)


# What quic-go's programs call our cases; whatever else is a plain download to them.
GO_TEST_CASES = {
    "chacha20": "chacha20",
    "retry": "retry",
    "versionnegotiation": "versionnegotiation",
    "keyupdate": "keyupdate",
}


@dataclass(frozen=True)
class QuicGo:
    """quic-go's own interop programs. They know only /www, /downloads, /certs, /logs: the case's directory
    becomes their root.

    The programs are static, so nothing else has to be in there; the copy goes with the directory.
    """

    name: str = "quic-go"
    # Its server sends while any credit is left, so that the packet that uses it up may overshoot by its own
    # length.
    amplification_excess: int = 1452
    limits: Mapping[tuple[str, Role], str] = field(default_factory=dict)

    def cannot(self, case: str, role: Role) -> str | None:
        return self.limits.get((case, role))

    def fetches_files(self, case: str) -> bool:
        return case != "versionnegotiation"  # its client stops at the Version Negotiation packet

    def exit_complaint(self, case: str, role: Role, code: int, output: str) -> str | None:
        if role is Role.SERVER:
            return None if code in (-signal.SIGINT, 2) else f"exited with {code}"  # it has no handler
        if case == "versionnegotiation" and "no compatible quic version found" in output.lower():
            # The wanted outcome; 0.65.0 takes it for a failure, looking for its own message in another
            # spelling.
            return None
        return None if code == 0 else f"exited with {code}"

    def _command(self, place: Place, role: Role, arguments: Sequence[str]) -> Command:
        program = f"quic-go-{role}"
        shutil.copy(BUILD / program, place.directory / program)
        test_case = GO_TEST_CASES.get(place.case, "transfer")
        if place.wants.multiconnect:
            test_case = "multiconnect"
        if role is Role.SERVER and test_case == "keyupdate":
            test_case = "transfer"  # only its client starts key updates; its server follows in any case
        env = {"TESTCASE": test_case, "SSLKEYLOGFILE": f"/logs/{role}.keys", "ROLE": str(role)}
        return Command(
            ["chroot", str(place.directory), f"/{program}", *arguments], env=env, prints_listening=False
        )

    def serve(self, place: Place) -> Command:
        return self._command(place, Role.SERVER, [])

    def get(self, place: Place) -> Command:
        return self._command(place, Role.CLIENT, place.urls)


QH3_LIMITS = {
    ("amplificationloss", Role.CLIENT): (
        "qh3 2.1.0's client sends no probe when its acknowledgements are lost while the server may send no "
        "more (RFC 9002 section 6.2.2.1), so both wait for ever"
    ),
    ("handshakeloss", Role.SERVER): (
        "qh3 2.1.0's server was seen to send a lost ServerHello again only once or twice; in two of four "
        "runs a connection was never made"
    ),
}

STRANGERS: dict[str, Endpoint] = {
    "aioquic": PythonPeer("aioquic"),
    "qh3": PythonPeer("qh3", limits=QH3_LIMITS),
    "quic-go": QuicGo(),
}

# (client, server, case or "" for every case): why these two cannot do it together, though either can with
# others.
PAIR_LIMITS: dict[tuple[str, str, str], str] = {
    ("quic-go", "qh3", ""): (
        "qh3 2.1.0's server takes a client's zero-length connection id, which quic-go's client uses, for "
        "none, and refuses the transport parameter that states it"
    ),
    ("qh3", "aioquic", "handshakeloss"): (
        "aioquic 1.7.2's server closes a connection whose first Initial to arrive is one of qh3's probes, "
        "which hold a PING and no CRYPTO frame; about one connection in a hundred at this loss"
    ),
}

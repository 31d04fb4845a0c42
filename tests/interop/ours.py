"""Ours: the `stoq` command as an interop endpoint. Everything the harness knows about its command line is
here.

    stoq --json hq serve --listen [ADDR]:PORT --root DIR --cert FILE --key FILE --profile test [--retry]
    stoq --json hq get --profile test --ca FILE --output DIR --urls-from FILE [--cipher NAME]
        [--key-update-after BYTES] [--version-negotiation] [--connections N] [--concurrency N]

The server prints {"event": "listening"} when it can be reached; both print {"event": "summary"} at the end.
The command is looked for beside the running interpreter, then on PATH; STOQ_COMMAND overrides both (it may
hold arguments).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.endpoints import SERVER_PORT, Command, Place, Role

PROFILE = ["--profile", "test"]  # hq-interop is only there in the test profile


def stoq_command() -> list[str]:
    """The command line that starts `stoq`. Raises FileNotFoundError, saying what to do, without one."""
    override = os.environ.get("STOQ_COMMAND")
    if override:
        return shlex.split(override)
    beside = Path(sys.executable).parent / "stoq"
    found = str(beside) if beside.exists() else shutil.which("stoq")
    if found is None:
        raise FileNotFoundError(
            "no `stoq` command: install the project (`pip install -e .`) or set STOQ_COMMAND"
        )
    return [found]


@dataclass(frozen=True)
class Ours:
    name: str = "stoq"
    amplification_excess: int = 0
    limits: Mapping[tuple[str, Role], str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # Of both commands.

    def cannot(self, case: str, role: Role) -> str | None:
        return self.limits.get((case, role))

    def fetches_files(self, case: str) -> bool:
        return True

    def exit_complaint(self, case: str, role: Role, code: int, output: str) -> str | None:
        return None if code == 0 else f"exited with {code}"

    def serve(self, place: Place) -> Command:
        argv = [*stoq_command(), "--json", "hq", "serve", *PROFILE, *self.options]
        argv += [
            "--listen",
            f"[{place.server_address}]:{SERVER_PORT}",
            "--root",
            str(place.directory / "www"),
        ]
        argv += ["--cert", str(place.certs / "cert.pem"), "--key", str(place.certs / "priv.key")]
        argv += ["--retry"] if place.wants.retry else []
        return Command(argv)

    def get(self, place: Place) -> Command:
        wants = place.wants
        argv = [*stoq_command(), "--json", "hq", "get", *PROFILE, *self.options]
        argv += ["--ca", str(place.certs / "root.pem")]
        argv += ["--output", str(place.directory / "downloads"), "--urls-from", str(place.urls_file)]
        argv += ["--cipher", wants.cipher] if wants.cipher else []
        if wants.key_update_after is not None:
            argv += ["--key-update-after", str(wants.key_update_after)]
        argv += ["--version-negotiation"] if wants.version_negotiation else []
        count = str(len(place.urls))
        argv += ["--connections", count] if wants.multiconnect else ["--concurrency", count]
        return Command(argv)


OURS = Ours()
# Every namespace of a run calls its one link eth0.
OURS_BY_BACKEND = {
    "io_uring": OURS,
    "afxdp": Ours(options=("--backend", "afxdp", "--interface", "eth0")),
}

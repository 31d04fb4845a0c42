"""Puts the strangers that the Certificate Transparency log is tested with in place, in build/peers/ct/: Google's
ctclient, sctcheck, scanlog and ct_hammer, transparency-dev's witness (omniwitness), and merkleverify, a small program on
transparency-dev's Merkle library.

    python -m tests.peers_ct.install

Does nothing when everything is there as go.mod and go.sum pin it. Where Go comes from: see tests.peers.install, whose
InstallError is raised with the command that failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.peers.install import BUILD, InstallError, go_command, run

HERE = Path(__file__).resolve().parent
PLACE = BUILD / "ct"
STAMP = PLACE / "stamp"
GOOGLE = "github.com/google/certificate-transparency-go"
PROGRAMS = {
    "merkleverify": "./merkleverify",
    "ctclient": f"{GOOGLE}/client/ctclient",
    "sctcheck": f"{GOOGLE}/ctutil/sctcheck",
    "scanlog": f"{GOOGLE}/scanner/scanlog",
    "ct_hammer": f"{GOOGLE}/trillian/integration/ct_hammer",
    "omniwitness": "github.com/transparency-dev/witness/cmd/omniwitness",
}
# What ct_hammer makes its certificates from: a root, an issuer's key, and a chain to imitate.
TESTDATA = PLACE / "testdata"
ROOT_CERTIFICATE = "fake-ca.cert"
TESTDATA_FILES = (ROOT_CERTIFICATE, "int-ca.privkey.pem", "leaf01.chain")
# Static, so that they run wherever the tests put them.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}


def _wanted() -> str:
    """What the programs are made of."""
    inputs = [HERE / "go.mod", HERE / "go.sum", *sorted(HERE.glob("*/*.go"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure(say: Callable[[str], None] = _say) -> Path:
    """Build what is missing, saying what it does; where it all is. Raises InstallError."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Two that begin at once build once.
        wanted = _wanted()
        products = [*(PLACE / name for name in PROGRAMS), *(TESTDATA / name for name in TESTDATA_FILES)]
        if not (all(path.exists() for path in products) and STAMP.exists() and STAMP.read_text() == wanted):
            _build(say)
            STAMP.write_text(wanted)
    return PLACE


def _build(say: Callable[[str], None]) -> None:
    go = go_command(say)
    for name, package in PROGRAMS.items():
        say(f"building {name} (all of them together: two minutes from nothing)")
        run([go, "build", "-trimpath", "-o", str(PLACE / name), package], cwd=HERE, env=ENVIRONMENT)
    module = Path(run([go, "list", "-m", "-f", "{{.Dir}}", GOOGLE], cwd=HERE, env=ENVIRONMENT).strip())
    TESTDATA.mkdir(exist_ok=True)
    for name in TESTDATA_FILES:
        (TESTDATA / name).unlink(missing_ok=True)
        shutil.copyfile(module / "trillian" / "testdata" / name, TESTDATA / name)


if __name__ == "__main__":
    try:
        ensure()
    except InstallError as error:
        sys.exit(f"error: {error}")

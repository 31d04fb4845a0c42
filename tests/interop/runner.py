"""Runs one case between two endpoints and judges it.

    client namespace --- veth --- relay namespace --- veth --- server namespace

Each run has a directory, namespaces and processes of its own, all gone when it ends. What a failed run has
logged is kept in build/interop/<run>/. The judgement: the client's exit code, the SHA-256 of every file, the
server still well, the proofs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.interop import certs
from tests.interop.cases import Case, Evidence, NotProven
from tests.interop.endpoints import PAIR_LIMITS, SERVER_PORT, Command, Endpoint, Place, Role
from tests.interop.relay import Config
from tests.netns import Link, Namespace, Network
from tests.peers.install import ROOT

START_TIMEOUT_S = 20.0  # for a process to be reachable: an interpreter's imports on a busy machine
STOP_TIMEOUT_S = 5.0
POLL_S = 0.01
STOP_CHECK_S = 0.2  # how late an interrupt may be noticed
CLIENT_LINK, SERVER_LINK = 0, 1
REBIND_ADDRESSES = 2
KEPT = ROOT / "build" / "interop"

PASS, FAIL, CANNOT = "pass", "fail", "cannot"


class RunError(Exception):
    """The run went wrong in a way that is the verdict: the text becomes the reason."""


@dataclass
class Result:
    case: str
    client: str
    server: str
    verdict: str
    reason: str = ""  # of a failure or of "cannot"
    proof: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seed: int = 0

    @property
    def title(self) -> str:
        return f"{self.case} {self.client} -> {self.server}"


class Process:
    """A child in a namespace, its output in files, ended with the context."""

    def __init__(self, name: str, namespace: Namespace, command: Command, logs: Path) -> None:
        self.name = name
        self.command = command
        self.stdout = logs / f"{name}.out"
        self.stderr = logs / f"{name}.err"
        env = {key: value for key, value in os.environ.items() if key != "SSLKEYLOGFILE"}
        env.update(command.env, PYTHONUNBUFFERED="1")
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.child = subprocess.Popen(
                namespace.wrap(command.argv),
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def said(self, event: str) -> dict[str, Any] | None:
        """The last JSON line on stdout of that event."""
        found = None
        for line in self.stdout.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and value.get("event") == event:
                    found = value
        return found

    def _bound(self) -> bool:
        """Whether its namespace has a UDP socket on the server's port (the second column of
        /proc/PID/net/udp6).
        """
        try:
            lines = Path(f"/proc/{self.child.pid}/net/udp6").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            return False
        return any(line.split()[1].endswith(f":{SERVER_PORT:04X}") for line in lines)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.said("listening") if self.command.prints_listening else self._bound():
                return
            if self.child.poll() is not None:
                raise RunError(
                    f"the {self.name} ended with {self.child.returncode} at the start: {self.complaint()}"
                )
            if time.monotonic() > deadline:
                raise RunError(f"the {self.name} was not reachable within {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def output(self) -> str:
        return "".join(
            path.read_text(encoding="utf-8", errors="replace") for path in (self.stdout, self.stderr)
        )

    def complaint(self) -> str:
        """The errors of its summary, or else the last line of stderr or stdout."""
        errors = (self.said("summary") or {}).get("errors")
        if errors:
            return "; ".join(map(str, errors))[:300]
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        return lines[-1][-300:] if lines else "(no output)"

    def stop(self, number: signal.Signals) -> int | None:
        """Ask it to end with a signal; None when it had to be killed."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def default_seed(case: str, client: str, server: str) -> int:
    """Another one for every combination, the same one in every run."""
    return zlib.crc32(f"{case} {client} {server}".encode())


def make_files(directory: Path, case: Case, seed: int) -> dict[str, str]:
    """Write the files to serve; returns SHA-256 by name."""
    count, size = case.files
    rng = random.Random(seed)
    hashes = {}
    for number in range(count):
        data = rng.randbytes(size)
        name = f"file{number}"
        (directory / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def check_files(directory: Path, hashes: dict[str, str]) -> None:
    """Raises RunError unless every file is there with its bytes."""
    wrong = []
    for name, expected in hashes.items():
        file = directory / name
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            wrong.append(f"{name} has other bytes ({file.stat().st_size} of them)")
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RunError(f"{wrong[0]}{more}")


@contextlib.contextmanager
def _case_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stoq-interop-") as name:
        directory = Path(name)
        for part in ("www", "downloads", "certs", "logs"):
            (directory / part).mkdir()
        yield directory


def cannot(case: Case, client: Endpoint, server: Endpoint) -> str | None:
    """Why these two cannot do this case, or None."""
    return (
        PAIR_LIMITS.get((client.name, server.name, ""))
        or PAIR_LIMITS.get((client.name, server.name, case.name))
        or client.cannot(case.name, Role.CLIENT)
        or server.cannot(case.name, Role.SERVER)
    )


def run_case(
    case: Case,
    client: Endpoint,
    server: Endpoint,
    *,
    seed: int | None = None,
    stop: threading.Event | None = None,
    after: Callable[[Path], None] | None = None,
) -> Result:
    """Run and judge. Setting `stop` from another thread ends the run as a failure. `after` is called with the
    directory before the files are checked (the harness's own tests use it).
    """
    seed = default_seed(case.name, client.name, server.name) if seed is None else seed
    result = Result(case.name, client.name, server.name, PASS, seed=seed)
    reason = cannot(case, client, server)
    if reason:
        result.verdict, result.reason = CANNOT, reason
        return result
    started = time.monotonic()
    with _case_directory() as directory:
        try:
            _run(case, client, server, directory, result, stop, after)
        except (RunError, NotProven) as error:
            result.verdict, result.reason = FAIL, str(error)
            kept = KEPT / f"{case.name}-{client.name}-{server.name}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(directory / "logs", kept)
    result.seconds = time.monotonic() - started
    return result


@dataclass(frozen=True)
class Prepared:
    """A case's directory once everything the endpoints and the relay read is in it."""

    place: Place
    hashes: dict[str, str]
    chain_bytes: int
    relay_config: Path


def _prepare(case: Case, network: Network, directory: Path, seed: int) -> Prepared:
    front = network.address("relay", CLIENT_LINK)
    server_address = network.address("server", SERVER_LINK)
    made = certs.make(directory / "certs", [front])
    chain = made.long if case.long_chain else made.short
    chain.certificate.rename(directory / "certs" / "cert.pem")
    chain.key.rename(directory / "certs" / "priv.key")
    hashes = make_files(directory / "www", case, seed)
    urls = [f"https://[{front}]:{SERVER_PORT}/{name}" for name in hashes]
    place = Place(directory, case.wants, case.name, server_address, urls)
    place.urls_file.write_text("\n".join(urls) + "\n", encoding="ascii")
    config = Config(
        listen=(front, SERVER_PORT),
        server=(server_address, SERVER_PORT),
        upstream=[network.address("relay", SERVER_LINK, number) for number in range(REBIND_ADDRESSES + 1)],
        stats=str(directory / "logs" / "relay.json"),
        seed=seed,
        capture=str(directory / "logs" / "capture"),
        **case.relay,
    )
    relay_config = directory / "relay.config"
    relay_config.write_text(json.dumps(asdict(config)), encoding="ascii")
    return Prepared(place, hashes, chain.size, relay_config)


def _wait_for_client(getting: Process, timeout_s: float, stop: threading.Event | None) -> int:
    """Its exit code. Raises RunError when it takes too long or `stop` is set."""
    deadline = time.monotonic() + timeout_s
    while (code := getting.child.poll()) is None:
        if stop and stop.is_set():
            raise RunError("the run was interrupted")
        left = deadline - time.monotonic()
        if left <= 0:
            raise RunError(f"the client was not done within {timeout_s:.0f} s: {getting.complaint()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            getting.child.wait(min(left, STOP_CHECK_S))
    return code


def _run(
    case: Case,
    client: Endpoint,
    server: Endpoint,
    directory: Path,
    result: Result,
    stop: threading.Event | None,
    after: Callable[[Path], None] | None,
) -> None:
    links = (Link("client", "relay"), Link("relay", "server", extra=REBIND_ADDRESSES))
    with Network(("client", "relay", "server"), links) as network, contextlib.ExitStack() as stack:
        prepared = _prepare(case, network, directory, result.seed)
        place, logs = prepared.place, directory / "logs"

        def start(name: str, command: Command) -> Process:
            return stack.enter_context(Process(name, network[name], command, logs))

        serving = start("server", server.serve(place))
        relaying = start("relay", relay_command(prepared.relay_config))
        serving.wait_ready()
        relaying.wait_ready()
        getting = start("client", client.get(place))
        try:
            code = _wait_for_client(getting, case.timeout_s, stop)
        except RunError:
            getting.stop(signal.SIGINT)  # all of them, for what they say at their end
            serving.stop(signal.SIGINT)
            relaying.stop(signal.SIGTERM)
            raise
        died = serving.child.poll()
        relay_code = relaying.stop(signal.SIGTERM)
        stopped = serving.stop(signal.SIGINT)
        complaint = client.exit_complaint(case.name, Role.CLIENT, code, getting.output())
        if complaint:
            raise RunError(f"the client {complaint}: {getting.complaint()}")
        if died is not None:
            raise RunError(f"the server ended with {died} during the run: {serving.complaint()}")
        if stopped is None:
            raise RunError(f"the server did not end within {STOP_TIMEOUT_S:.0f} s: {serving.complaint()}")
        complaint = server.exit_complaint(case.name, Role.SERVER, stopped, serving.output())
        if complaint:
            raise RunError(f"the server {complaint}: {serving.complaint()}")
        if relay_code != 0:
            raise RunError(f"the relay ended with {relay_code}: {relaying.complaint()}")
        if after:
            after(directory)
        if client.fetches_files(case.name):
            check_files(directory / "downloads", prepared.hashes)
            count = len(prepared.hashes)
            result.proof.append(f"{count} file{'s' * (count != 1)}, SHA-256 as served")
        evidence = Evidence(
            stats=json.loads((logs / "relay.json").read_text(encoding="ascii")),
            capture=logs / "capture",
            key_logs=[place.key_log(role) for role in Role],
            chain_bytes=prepared.chain_bytes,
            allowed_excess=server.amplification_excess,
        )
        for proof in case.proofs:
            result.proof.append(proof(evidence))


def relay_command(config: Path) -> Command:
    return Command([sys.executable, "-m", "tests.interop.relay", str(config)])


def write_json(results: list[Result], stream: IO[str]) -> None:
    json.dump([asdict(result) for result in results], stream, indent=1)
    stream.write("\n")

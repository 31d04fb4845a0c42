"""HTTP/0.9 over QUIC (ALPN `hq-interop`) on a library of aioquic's shape; aioquic_hq.py and qh3_hq.py give it
theirs.

`serve` answers `GET /path` on a bidirectional stream with the file's bytes and FIN. `get` opens a stream for
every URL and writes what comes back under the output directory. Every line on stdout is a JSON object with an
`event`: `listening` (address, port) once the server can be reached, `summary` at the end. The exit code is 0
when every file ended with FIN, 1 otherwise; a wrong path or a lost connection is reported in the summary's
`errors`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ALPN = "hq-interop"
# Of the pattern 0x?a?a?a?a, RFC 9000 section 15: reserved to force version negotiation
UNKNOWN_VERSION = 0x1A2A3A4A
QUIC_V1 = 0x00000001
WINDOW_BYTES = 4 << 20  # wide enough that flow control is not what a 10 MiB transfer waits for
IDLE_TIMEOUT_S = 30.0  # outlives the longest gap any case makes (a 5 s blackhole and its back-off)
CLOSE_WAIT_S = 1.0  # for the closing period; the files are on disk by then


@dataclass(frozen=True)
class Library:
    """What differs in name only between aioquic and qh3: the modules' own objects."""

    name: str
    configuration: Any
    protocol: Any
    events: Any
    ciphers: dict[str, Any]
    serve: Any
    connect: Any
    # Whether a stream id may be used now, or has to wait for MAX_STREAMS
    may_open: Callable[[Any, int], bool]


@dataclass
class Tally:
    """What happened, for the summary line."""

    handshakes: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    files: int = 0
    errors: list[str] = field(default_factory=list)


def emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def request_path(request: bytes) -> str | None:
    """The path of `GET /path`, with or without CR LF; None if it is anything else."""
    words = request.decode("ascii", "replace").strip().split(" ")
    return words[1] if len(words) == 2 and words[0] == "GET" and words[1].startswith("/") else None


def server_protocol(library: Library, root: Path, tally: Tally) -> Any:
    """A protocol class that answers requests with files under `root`."""

    class ServerProtocol(library.protocol):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.requests: dict[int, bytes] = {}

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, library.events.HandshakeCompleted):
                tally.handshakes.append({"alpn": event.alpn_protocol})
            elif isinstance(event, library.events.StreamDataReceived):
                request = self.requests.pop(event.stream_id, b"") + event.data
                if not event.end_stream:
                    self.requests[event.stream_id] = request[:4096]
                    return
                path = request_path(request)
                file = (root / path.lstrip("/")).resolve() if path else None
                if file is None or not file.is_relative_to(root) or not file.is_file():
                    tally.errors.append(f"no such file: {request[:80]!r}")
                    self._quic.reset_stream(event.stream_id, 1)
                else:
                    data = file.read_bytes()
                    tally.files += 1
                    tally.bytes += len(data)
                    self._quic.send_stream_data(event.stream_id, data, end_stream=True)
                self._transmit_soon()

    return ServerProtocol


def client_protocol(library: Library, tally: Tally, key_update_after: int | None) -> Any:
    """A protocol class that fetches files: `fetch(path, file)` for each, then await `done`."""

    class ClientProtocol(library.protocol):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.open: dict[int, tuple[Path, bytearray]] = {}
            self.waiting: deque[tuple[str, Path]] = deque()
            self.done = asyncio.Event()
            self.received_bytes = 0
            self.asked = False
            self.key_update_due = key_update_after is not None

        def fetch(self, requests: Sequence[tuple[str, Path]]) -> None:
            """Ask for files, given as path and where to write it; `done` is set when all are there."""
            self.asked = True
            self.done.clear()
            self.waiting.extend(requests)
            self.transmit()

        def ask(self) -> None:
            while self.waiting:
                stream_id = self._quic.get_next_available_stream_id()
                if not library.may_open(self._quic, stream_id):
                    return
                path, file = self.waiting.popleft()
                self.open[stream_id] = (file, bytearray())
                self._quic.send_stream_data(stream_id, f"GET {path}\r\n".encode(), end_stream=True)

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, library.events.HandshakeCompleted):
                tally.handshakes.append({"alpn": event.alpn_protocol})
            elif isinstance(event, library.events.StreamDataReceived):
                entry = self.open.get(event.stream_id)
                if entry is None:
                    return
                entry[1].extend(event.data)
                self.received_bytes += len(event.data)
                if self.key_update_due and self.received_bytes >= (key_update_after or 0):
                    self.key_update_due = False
                    self._quic.request_key_update()
                if event.end_stream:
                    del self.open[event.stream_id]
                    entry[0].write_bytes(entry[1])
                    tally.files += 1
                    tally.bytes += len(entry[1])
            elif isinstance(event, library.events.StreamReset):
                entry = self.open.pop(event.stream_id, None)
                tally.errors.append(f"stream {event.stream_id} reset by the server, error {event.error_code}")
            elif isinstance(event, library.events.ConnectionTerminated):
                missing = len(self.open) + len(self.waiting)
                if missing or not self.asked:
                    where = f"with {missing} files missing" if self.asked else "before a file was asked for"
                    tally.errors.append(
                        f"the connection ended {where}: error {event.error_code} {event.reason_phrase!r}"
                    )
                    self.open.clear()
                    self.waiting.clear()
                self.done.set()
            if not self.open and not self.waiting:
                self.done.set()

        def transmit(self) -> None:
            # Called after every datagram that came in: it may have brought MAX_STREAMS, for which there is no
            # event.
            self.ask()
            super().transmit()

    return ClientProtocol


def configure(library: Library, options: argparse.Namespace, is_client: bool) -> Any:
    configuration = library.configuration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        max_data=4 * WINDOW_BYTES,
        max_stream_data=WINDOW_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
    )
    if options.cipher:
        configuration.cipher_suites = [library.ciphers[options.cipher]]
    if options.secrets_log:
        configuration.secrets_log_file = open(options.secrets_log, "a", encoding="ascii")  # noqa: SIM115  (its life is the process's)
    return configuration


async def serve(library: Library, options: argparse.Namespace) -> int:
    tally = Tally()
    root: Path = options.root
    configuration = configure(library, options, is_client=False)
    configuration.load_cert_chain(options.cert, options.key)
    host, _, port = options.listen.rpartition(":")
    server = await library.serve(
        host.strip("[]") or "::",
        int(port),
        configuration=configuration,
        create_protocol=server_protocol(library, root, tally),
        retry=options.retry,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    address = server._transport.get_extra_info("sockname")
    emit("listening", address=address[0], port=address[1])
    await stop.wait()
    server.close()
    emit("summary", **vars(tally))
    return 0


async def get_once(
    library: Library, options: argparse.Namespace, tally: Tally, urls: Sequence[str], configuration: Any
) -> None:
    """One connection, all its URLs at once. Raises ConnectionError when the handshake fails."""
    parts = urlsplit(urls[0])
    create = client_protocol(library, tally, options.key_update_after)
    async with contextlib.AsyncExitStack() as stack:
        protocol = await stack.enter_async_context(
            library.connect(parts.hostname, parts.port, configuration=configuration, create_protocol=create)
        )
        paths = [urlsplit(url).path for url in urls]
        protocol.fetch([(path, Path(options.output) / path.lstrip("/")) for path in paths])
        await protocol.done.wait()
        # The library waits out its whole closing period on leaving; nothing of the test hangs on that.
        protocol.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(protocol.wait_closed(), CLOSE_WAIT_S)
        protocol._closed.set()


async def get(library: Library, options: argparse.Namespace) -> int:
    tally = Tally()
    urls = list(options.url)
    urls += options.urls_from
    started = time.monotonic()
    try:
        for batch in [[url] for url in urls] if options.multiconnect else [urls]:
            configuration = configure(library, options, is_client=True)
            if options.ca:
                configuration.load_verify_locations(cafile=options.ca)
            else:
                configuration.verify_mode = ssl.CERT_NONE
            if options.version_negotiation:
                configuration.supported_versions = [UNKNOWN_VERSION, QUIC_V1]
                configuration.original_version = UNKNOWN_VERSION
            await get_once(library, options, tally, batch, configuration)
    except ConnectionError:
        tally.errors.append("the handshake failed")
    emit("summary", seconds=time.monotonic() - started, **vars(tally))
    return 1 if tally.errors or tally.files != len(urls) else 0


def main(library: Library, arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"HTTP/0.9 over QUIC with {library.name}")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("--listen", required=True, help="[ADDRESS]:PORT")
    server.add_argument("--root", required=True, type=lambda text: Path(text).resolve())
    server.add_argument("--cert", required=True, help="PEM chain, the leaf first")
    server.add_argument("--key", required=True)
    server.add_argument("--retry", action="store_true", help="validate addresses with Retry packets")
    client = commands.add_parser("get")
    client.add_argument("--output", required=True)
    client.add_argument("--ca", help="PEM of the trusted root; without it certificates are not checked")
    client.add_argument("--key-update-after", type=int, metavar="BYTES")
    client.add_argument("--version-negotiation", action="store_true", help="offer an unknown version first")
    client.add_argument(
        "--multiconnect", action="store_true", help="a connection for every URL, one after the other"
    )
    client.add_argument(
        "--urls-from",
        metavar="FILE",
        default=[],
        type=lambda name: Path(name).read_text(encoding="ascii").split(),
    )
    client.add_argument("url", nargs="*")
    for command in (server, client):
        command.add_argument("--cipher", choices=sorted(library.ciphers))
        command.add_argument("--secrets-log", help="append NSS key log lines to this file")
    options = parser.parse_args(arguments)
    return asyncio.run((serve if options.command == "serve" else get)(library, options))


def run(library: Library) -> None:
    sys.exit(main(library))

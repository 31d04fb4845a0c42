"""The `perf` protocol (draft-banks-quic-performance) on aioquic, qh3 or aiopquic, to be measured beside ours
by `stoq bench throughput` and `stoq bench peers`.

    python -m tests.peers.perf LIBRARY version
    python -m tests.peers.perf LIBRARY serve      --listen [ADDRESS]:PORT --cert PEM --key PEM
    python -m tests.peers.perf LIBRARY download   --to [ADDRESS]:PORT --ca PEM --download BYTES --seconds S
    python -m tests.peers.perf LIBRARY requests   --to … --ca PEM --seconds S --bytes 512
    python -m tests.peers.perf LIBRARY handshakes --to … --ca PEM --seconds S --concurrency 8

`download` asks for BYTES on a stream, and again on the next when the last is complete, until the time is up.
A response is kept in memory whole until it is acknowledged: the libraries offer no other way. Every line on
stdout is a JSON object with an `event`: `listening`, `begin` when the measurement begins, `result` (bytes
received and in how many seconds, from the first request on; or how many, and how long each took). The
libraries keep their own settings except: windows that one response fits in, AES-128-GCM, datagrams as large
as the path takes, and a socket buffer like ours.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.peers.hq import Library, emit

ALPN = "perf"
HEADER_BYTES = 8
MAX_RESPONSE_BYTES = 64 << 20
SOCKET_BYTES = 8 << 20
LIBRARIES = ("aioquic", "qh3", "aiopquic")
SERVER_NAME = "server"  # In the certificate.


def library_named(name: str) -> Library:
    """Imported only when asked for: the other one need not be installed."""
    library = importlib.import_module(f"tests.peers.{name}_hq").LIBRARY
    assert isinstance(library, Library)
    return library


def enlarge_buffers(transport: Any) -> None:
    """Of the socket, beyond the system's limit when we may."""
    sock = transport.get_extra_info("socket")
    # Numbers of Linux's asm-generic/socket.h, which Python does not name: SO_SNDBUFFORCE, SO_RCVBUFFORCE.
    for usual, forced in ((socket.SO_SNDBUF, 32), (socket.SO_RCVBUF, 33)):
        sock.setsockopt(socket.SOL_SOCKET, usual, SOCKET_BYTES)
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BYTES)
        except OSError:
            pass


def server_protocol(library: Library) -> Any:
    """A protocol class that answers each stream's first 8 bytes with as many bytes as they say."""
    payload = bytes(range(256)) * (MAX_RESPONSE_BYTES // 256)

    class ServerProtocol(library.protocol):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.headers: dict[int, bytes] = {}

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            enlarge_buffers(transport)

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, library.events.StreamDataReceived):
                header = self.headers.pop(event.stream_id, b"") + event.data
                if len(header) < HEADER_BYTES:
                    self.headers[event.stream_id] = header
                    return
                wanted = min(int.from_bytes(header[:HEADER_BYTES], "big"), MAX_RESPONSE_BYTES)
                self._quic.send_stream_data(event.stream_id, payload[:wanted], end_stream=True)
                self._transmit_soon()

    return ServerProtocol


def client_protocol(library: Library) -> Any:
    """A protocol class with `ask`; bytes are counted as they come."""

    class ClientProtocol(library.protocol):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.answers: dict[int, asyncio.Future[None]] = {}
            self.bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            enlarge_buffers(transport)

        def ask(self, wanted: int, size: int = HEADER_BYTES) -> asyncio.Future[None]:
            """A request of `size` bytes for `wanted`; done when all are there."""
            stream_id = self._quic.get_next_available_stream_id()
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.answers[stream_id] = answer
            request = wanted.to_bytes(HEADER_BYTES, "big").ljust(size, b"\0")
            self._quic.send_stream_data(stream_id, request, end_stream=True)
            self.transmit()
            return answer

        def quic_event_received(self, event: Any) -> None:
            if isinstance(event, library.events.StreamDataReceived):
                self.bytes += len(event.data)
                if event.end_stream and event.stream_id in self.answers:
                    answer = self.answers.pop(event.stream_id)
                    if not answer.done():
                        answer.set_result(None)
            elif isinstance(event, library.events.ConnectionTerminated):
                error = f"the connection ended: error {event.error_code} {event.reason_phrase!r}"
                for answer in self.answers.values():
                    if not answer.done():
                        answer.set_exception(ConnectionError(error))

    return ClientProtocol


def configure(library: Library, options: argparse.Namespace, is_client: bool) -> Any:
    """As the module's text says."""
    return library.configuration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        max_data=4 * MAX_RESPONSE_BYTES,
        max_stream_data=MAX_RESPONSE_BYTES,
        max_datagram_size=options.datagram,
        cipher_suites=[library.ciphers["aes128"]],
    )


async def serve(library: Library, options: argparse.Namespace) -> None:
    """Until a signal comes."""
    configuration = configure(library, options, is_client=False)
    configuration.load_cert_chain(options.cert, options.key)
    host, _, port = options.listen.rpartition(":")
    create = server_protocol(library)
    server = await library.serve(
        host.strip("[]"), int(port), configuration=configuration, create_protocol=create
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if hasattr(server, "_transport"):
        enlarge_buffers(server._transport)
    emit("listening", listen=options.listen)
    await stop.wait()
    server.close()


@asynccontextmanager
async def connected(library: Library, options: argparse.Namespace) -> AsyncIterator[Any]:
    """One connection, for the block. Raises ConnectionError when it fails."""
    configuration = configure(library, options, is_client=True)
    configuration.server_name = SERVER_NAME
    configuration.load_verify_locations(cafile=options.ca)
    host, _, port = options.to.rpartition(":")
    create = client_protocol(library)
    async with library.connect(
        host.strip("[]"), int(port), configuration=configuration, create_protocol=create
    ) as protocol:
        yield protocol
        protocol.close()
        if library.name != "aiopquic":  # It closes on leaving, and does not wait out the closing period.
            protocol._closed.set()  # The closing period is no part of the measurement.


def emit_times(times: list[float], seconds: float, failed: int = 0) -> None:
    """How many, and how long they took."""
    found = sorted(times)
    at = {part: found[min(int(part * len(found)), len(found) - 1)] if found else 0.0 for part in (0.5, 0.99)}
    emit(
        "result",
        count=len(times),
        failed=failed,
        seconds=seconds,
        p50_seconds=at[0.5],
        p99_seconds=at[0.99],
    )


async def download(library: Library, options: argparse.Namespace) -> None:
    """Responses one after the other."""
    async with connected(library, options) as protocol:
        emit("begin")
        began, cpu = time.perf_counter(), time.process_time()
        answer = protocol.ask(options.download)
        while (left := began + options.seconds - time.perf_counter()) > 0:
            await asyncio.wait([answer], timeout=left)
            if answer.done():
                answer.result()
                answer = protocol.ask(options.download)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        emit("result", bytes=protocol.bytes, seconds=took, cpu_seconds=cpu)
        answer.cancel()


async def requests(library: Library, options: argparse.Namespace) -> None:
    """Small requests and responses one after the other."""
    times: list[float] = []
    async with connected(library, options) as protocol:
        emit("begin")
        began = time.perf_counter()
        while (asked := time.perf_counter()) < began + options.seconds:
            before = protocol.bytes
            await protocol.ask(options.bytes, options.bytes)
            times.append(time.perf_counter() - asked)
            if protocol.bytes - before != options.bytes:
                raise ConnectionError("an answer of the wrong size")
        emit_times(times, time.perf_counter() - began)


async def handshakes(library: Library, options: argparse.Namespace) -> None:
    """Connections, several at a time, closed as soon as they stand."""
    times: list[float] = []
    failed = 0
    emit("begin")
    began = time.perf_counter()

    async def one_after_the_other() -> None:
        nonlocal failed
        while (asked := time.perf_counter()) < began + options.seconds:
            try:
                async with connected(library, options):
                    times.append(time.perf_counter() - asked)
            except ConnectionError:
                failed += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(options.concurrency)))
    emit_times(times, time.perf_counter() - began, failed)


async def version(library: Library, options: argparse.Namespace) -> None:
    """What it is and how it is set."""
    settings = "AES-128-GCM, windows 64 MiB, socket buffers of 8 MiB, responses of 8 MiB; one event loop"
    emit("version", library=library.name, version=importlib.metadata.version(library.name), settings=settings)


COMMANDS = {
    "version": version,
    "serve": serve,
    "download": download,
    "requests": requests,
    "handshakes": handshakes,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers.perf", description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in COMMANDS}
    made["serve"].add_argument("--listen", required=True, help="[ADDRESS]:PORT")
    made["serve"].add_argument("--cert", required=True, help="PEM chain, the leaf first")
    made["serve"].add_argument("--key", required=True)
    for name in ("download", "requests", "handshakes"):
        made[name].add_argument("--to", required=True, help="[ADDRESS]:PORT")
        made[name].add_argument("--ca", required=True, help="PEM of the trusted root")
        made[name].add_argument("--seconds", type=float, default=3.0)
    made["download"].add_argument("--download", type=int, default=8 << 20, help="bytes of a response")
    made["requests"].add_argument("--bytes", type=int, default=512, help="of a request and a response")
    made["handshakes"].add_argument("--concurrency", type=int, default=8, help="at a time")
    for command in made.values():
        command.add_argument("--datagram", type=int, default=1452, help="UDP payload, bytes")
    options = parser.parse_args(arguments)
    library = library_named(options.library)
    try:
        asyncio.run(COMMANDS[options.command](library, options))
    except ConnectionError as error:
        emit("error", error=f"{options.library}: {error or 'the handshake failed'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The `perf` protocol (draft-banks-quic-performance) on aioquic or qh3, to be measured beside ours by `stoq
bench throughput`.

    python -m tests.peers.perf aioquic|qh3 serve  --listen [ADDRESS]:PORT --cert PEM --key PEM
    python -m tests.peers.perf aioquic|qh3 client --to [ADDRESS]:PORT --ca PEM --download BYTES --seconds S

The client asks for BYTES on a stream, and again on the next when the last is complete, until the time is
up. A response is kept in memory whole until it is acknowledged: the libraries offer no other way. Every
line on stdout is a JSON object with an `event`: `listening` and `result` (bytes received and in how many
seconds, from the first request on). The libraries keep their own settings except: windows that one response
fits in, datagrams as large as the path takes, and a socket buffer like ours.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.peers.hq import Library, emit

ALPN = "perf"
HEADER_BYTES = 8
MAX_RESPONSE_BYTES = 64 << 20
SOCKET_BYTES = 8 << 20
LIBRARIES = ("aioquic", "qh3")


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


def client_protocol(library: Library, download_bytes: int, seconds: float) -> Any:
    """A protocol class with `begin()`; `finished` gives bytes and seconds."""

    class ClientProtocol(library.protocol):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.finished: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
            self.bytes = 0
            self.began = 0.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            enlarge_buffers(transport)

        def begin(self) -> None:
            self.began = time.perf_counter()
            self.ask()

        def ask(self) -> None:
            header = download_bytes.to_bytes(HEADER_BYTES, "big")
            self._quic.send_stream_data(self._quic.get_next_available_stream_id(), header, end_stream=True)
            self.transmit()

        def quic_event_received(self, event: Any) -> None:
            if self.finished.done():
                return
            if isinstance(event, library.events.StreamDataReceived):
                self.bytes += len(event.data)
                took = time.perf_counter() - self.began
                if took >= seconds:
                    self.finished.set_result((self.bytes, took))
                elif event.end_stream:
                    self.ask()
            elif isinstance(event, library.events.ConnectionTerminated):
                error = f"the connection ended: error {event.error_code} {event.reason_phrase!r}"
                self.finished.set_exception(ConnectionError(error))

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
    enlarge_buffers(server._transport)
    emit("listening", listen=options.listen)
    await stop.wait()
    server.close()


async def client(library: Library, options: argparse.Namespace) -> None:
    """One connection. Raises ConnectionError when it fails."""
    configuration = configure(library, options, is_client=True)
    configuration.load_verify_locations(cafile=options.ca)
    host, _, port = options.to.rpartition(":")
    create = client_protocol(library, options.download, options.seconds)
    async with library.connect(
        host.strip("[]"), int(port), configuration=configuration, create_protocol=create
    ) as protocol:
        protocol.begin()
        received, seconds = await protocol.finished
        emit("result", bytes=received, seconds=seconds)
        protocol.close()
        protocol._closed.set()  # The closing period is no part of the measurement.


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers.perf", description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("--listen", required=True, help="[ADDRESS]:PORT")
    server.add_argument("--cert", required=True, help="PEM chain, the leaf first")
    server.add_argument("--key", required=True)
    caller = commands.add_parser("client")
    caller.add_argument("--to", required=True, help="[ADDRESS]:PORT")
    caller.add_argument("--ca", required=True, help="PEM of the trusted root")
    caller.add_argument("--download", type=int, default=8 << 20, help="bytes of a response")
    caller.add_argument("--seconds", type=float, default=3.0)
    for command in (server, caller):
        command.add_argument("--datagram", type=int, default=1452, help="UDP payload, bytes")
    options = parser.parse_args(arguments)
    library = library_named(options.library)
    try:
        asyncio.run((serve if options.command == "serve" else client)(library, options))
    except ConnectionError as error:
        emit("error", error=f"{options.library}: {error or 'the handshake failed'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

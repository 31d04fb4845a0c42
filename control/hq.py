"""`stoq hq serve|get`: HTTP/0.9 over QUIC (ALPN `hq-interop`), as QUIC interoperability tests use it.

A request is ``GET /path`` and FIN on a bidirectional stream, the answer is the file and FIN; there is no
status: what cannot be served is a reset stream. Only in the test profile; no client certificates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from control.console import Output, human_bits, run_async, until_signal
from control.handshake.policy import ALPN_HQ
from control.options import FILE, NodeOptions, listen_option, node_options, profile_option
from control.report import datapath_report
from dataplane import (
    STOQ_PORT,
    Address,
    Connection,
    ConnectionClosed,
    Datapath,
    HandshakeFailed,
    StoqError,
    Stream,
    resolve_address,
)

MAX_REQUEST_BYTES = 4096
CODE_NOT_FOUND = 0x404  # Reset code of an answer we cannot give; the protocol defines none.
UNKNOWN_VERSION = 0x1A2A3A4A  # RFC 9000 section 15: reserved to provoke version negotiation.


class HqError(StoqError):
    """A request could not be made or was not answered."""


# ---- server ----


def safe_path(root: Path, request: str) -> Path | None:
    """The file under `root` that a request path names; None when there is none or it would lead out of
    `root`."""
    relative = (
        PurePosixPath(unquote(request.split("?", 1)[0])).relative_to("/") if request.startswith("/") else None
    )
    if relative is None or ".." in relative.parts or "\0" in str(relative):
        return None
    path = (root / relative).resolve()
    return path if path.is_relative_to(root.resolve()) and path.is_file() else None


async def _read_request(stream: Stream) -> str | None:
    """The path asked for. Clients end the line with CR LF, LF or FIN only."""
    request = b""
    while b"\n" not in request and len(request) <= MAX_REQUEST_BYTES:
        data = await stream.read(MAX_REQUEST_BYTES)
        if not data:
            break
        request += data
    line = request.split(b"\n", 1)[0].rstrip(b"\r").split(b" ")
    if len(line) < 2 or line[0] != b"GET" or len(request) > MAX_REQUEST_BYTES:
        return None
    return line[1].decode("utf-8", "replace")


async def _answer(stream: Stream, root: Path) -> None:
    async with stream:
        request = await _read_request(stream)
        path = safe_path(root, request) if request is not None else None
        if path is None:
            stream.reset(CODE_NOT_FOUND)
            return
        with path.open("rb", buffering=0) as file:
            while True:
                async with stream.write_view() as view:
                    count = file.readinto(view.data)
                    view.commit(count)
                if not count:
                    break


async def _serve_connection(connection: Connection, root: Path) -> None:
    tasks: set[asyncio.Task[None]] = set()
    try:
        async for stream in connection.accept_streams():
            task = asyncio.ensure_future(_guarded(_answer(stream, root)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except ConnectionClosed:
        pass
    finally:
        for task in tasks:
            task.cancel()


async def _guarded(answer: Any) -> None:
    try:
        await answer
    except (StoqError, OSError):
        pass  # The client went away or the file cannot be read: its stream or connection is over.


async def serve(output: Output, options: NodeOptions, listen: str, root: Path) -> None:
    """Serve the files under `root` until a signal comes."""
    if not root.is_dir():
        raise HqError(f"{root} is not a directory")

    def refused(peer: Address, error: HandshakeFailed) -> None:
        output.event("refused", f"{peer}: {error}", peer=str(peer), error=str(error), alert=error.alert_name)

    tasks: set[asyncio.Task[None]] = set()

    async def accept(datapath: Datapath) -> None:
        async for connection in datapath.accept_connections():
            task = asyncio.ensure_future(_serve_connection(connection, root))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async with (
        options.datapath((ALPN_HQ,), listen=listen, on_failure=refused) as datapath,
        options.local(output, datapath, "hq serve"),
    ):
        options.settle(output)
        local = datapath.local_address
        output.event("listening", f"listening on {local}", address=local.ip, port=local.port)
        accepting = asyncio.ensure_future(accept(datapath))
        try:
            await until_signal()
        finally:
            for task in (accepting, *tasks):
                task.cancel()
        report = datapath_report(datapath)
    output.event("summary", **report)


# ---- client ----


@dataclass(slots=True)
class Fetch:
    """What a `get` does: the shared state of its connections."""

    datapath: Datapath
    directory: Path
    concurrency: int
    key_update_after: int | None = None
    version_negotiation: bool = False
    bytes: int = 0
    handshakes: list[float] = field(default_factory=list)
    key_updated: bool = False
    early_data: bool = False
    resumed_early: list[bool | None] = field(default_factory=list)  # By connection; None: none was offered.

    async def connection(self, authority: str, paths: Sequence[str]) -> None:
        """Fetch `paths` over one connection. Raises HqError or ConnectionClosed."""
        connection = await self._connect(authority)
        async with connection:
            gate = asyncio.Semaphore(self.concurrency)
            async with asyncio.TaskGroup() as group:
                for path in paths:
                    await gate.acquire()
                    group.create_task(self._file(connection, path, gate))
            await connection.wait_connected()
            self.handshakes.append(connection.handshake_seconds)
            self.resumed_early.append(connection.early)

    async def _connect(self, authority: str) -> Connection:
        if self.version_negotiation:
            try:
                return await self.datapath.connect(authority, version=UNKNOWN_VERSION)
            except ConnectionClosed as closed:
                if not closed.version:
                    raise
        return await self.datapath.connect(authority, early=self.early_data)

    async def _file(self, connection: Connection, path: str, gate: asyncio.Semaphore) -> None:
        try:
            async with await connection.open_stream() as stream:
                stream.write(f"GET {path}\r\n".encode())
                stream.write_eof()
                await self._body(connection, stream, self.directory / PurePosixPath(path).name)
        except ConnectionClosed:
            raise
        except StoqError as error:
            raise HqError(f"{path}: {error}") from None
        finally:
            gate.release()

    async def _body(self, connection: Connection, stream: Stream, target: Path) -> None:
        with target.open("wb", buffering=0) as file:
            while True:
                async with stream.read_view() as view:
                    if not view:
                        return
                    written = file.write(view)
                    while written < len(view):
                        written += file.write(view[written:])
                    self.bytes += written
                if (
                    self.key_update_after is not None
                    and not self.key_updated
                    and self.bytes >= self.key_update_after
                ):
                    self.key_updated = True
                    await connection.key_update()


def split_urls(urls: Sequence[str]) -> tuple[str, list[str]]:
    """The one authority of all URLs and their paths. Raises HqError."""
    authorities, paths = set(), []
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.netloc or PurePosixPath(parts.path).name in ("", ".", ".."):
            raise HqError(f"{url!r}: a URL is https://[ADDRESS]:PORT/FILE")
        authorities.add(parts.netloc)
        paths.append(parts.path)
    if len(authorities) != 1:
        raise HqError("give URLs of one server")
    return authorities.pop(), paths


async def get(
    output: Output, options: NodeOptions, urls: Sequence[str], connections: int, **how: Any
) -> None:
    """Fetch all URLs, over `connections` connections one after the other."""
    authority, paths = split_urls(urls)
    if how["directory"] is None or not how["directory"].is_dir():
        raise HqError(f"{how['directory']} is not a directory: make it first")
    await resolve_address(authority)  # Refuse what is no IPv6 address before anything is opened.
    begin = time.monotonic()
    async with options.datapath((ALPN_HQ,)) as datapath, options.local(output, datapath, "hq get"):
        fetch = Fetch(datapath, early_data=options.early_data, **how)
        try:
            for number in range(connections):
                await fetch.connection(authority, paths[number::connections] or [paths[number % len(paths)]])
        except BaseExceptionGroup as group:
            # Requests fail together when their connection does: the first one's reason is everyone's.
            failed, rest = group.split(StoqError)
            if failed is None or rest is not None:
                raise
            first: BaseException = failed
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        seconds = time.monotonic() - begin
        report = datapath_report(datapath)
    output.event(
        "summary",
        f"{fetch.bytes} bytes in {seconds:.2f} s ({human_bits(fetch.bytes * 8 / seconds)}), handshakes: "
        + ", ".join(f"{h * 1e3:.1f} ms" for h in fetch.handshakes[:8]),
        handshakes=fetch.handshakes,
        early=fetch.resumed_early,
        bytes=fetch.bytes,
        seconds=seconds,
        **report,
    )


# ---- the commands ----


@click.group("hq")
def hq_group() -> None:
    """HTTP/0.9 over QUIC, for interoperability tests (test profile only)."""


@hq_group.command("serve")
@listen_option(f"[::]:{STOQ_PORT}")
@click.option("--root", type=FILE, required=True, help="Directory to serve.")
@click.option("--retry", is_flag=True, help="Validate every client's address with Retry first.")
@profile_option
@node_options
@click.pass_obj
def serve_command(output: Output, /, listen: str, root: Path, **options: Any) -> None:
    """Serve the files of a directory."""
    raise SystemExit(run_async(output, serve(output, NodeOptions(**options), listen, root)))


@hq_group.command("get")
@click.argument("urls", nargs=-1)
@click.option("--urls-from", type=FILE, help="File with one URL a line.")
@click.option("--output", "directory", type=FILE, required=True, help="Directory for what is fetched.")
@click.option("--insecure", is_flag=True, help="Take any server certificate.")
@click.option("--key-update-after", type=click.IntRange(0), help="Start a key update after so many bytes.")
@click.option("--version-negotiation", is_flag=True, help="Begin with an unknown version.")
@click.option(
    "--connections", type=click.IntRange(1), default=1, help="Spread the URLs over so many, in turn."
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=128, help="Requests at a time on a connection."
)
@profile_option
@node_options
@click.pass_obj
def get_command(
    output: Output,
    /,
    urls: tuple[str, ...],
    urls_from: Path | None,
    directory: Path,
    key_update_after: int | None,
    version_negotiation: bool,
    connections: int,
    concurrency: int,
    **options: Any,
) -> None:
    """Fetch URLs of one server."""

    async def main() -> None:
        lines = urls_from.read_text().split() if urls_from else []
        if not (*urls, *lines):
            raise HqError("no URL is given")
        await get(
            output,
            NodeOptions(**options),
            [*urls, *lines],
            connections,
            directory=directory,
            concurrency=concurrency,
            key_update_after=key_update_after,
            version_negotiation=version_negotiation,
        )

    raise SystemExit(run_async(output, main()))

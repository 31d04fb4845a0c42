"""`stoq serve`, `stoq receive` and `stoq send`: the main job's two halves.

All speak `stoq/1`, so both sides show certificates of a CA the other trusts.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from control.console import Output, human_bits, human_bytes, run_async, until_signal
from control.handshake.policy import ALPN_STOQ
from control.options import FILE, NodeOptions, listen_option, node_options
from control.report import connection_report, datapath_report
from control.transfer import Advance, TransferError, hash_file, receive_file, send_file
from dataplane import Address, Connection, Datapath, HandshakeFailed, StoqError, Stream, resolve_address
from dataplane.address import host_of

PROGRESS_SECONDS = 0.2  # Between two progress events of --json.


class ProgressEvents:
    """Turns advances into progress events, a few a second."""

    def __init__(self, output: Output, name: str) -> None:
        self._output = output
        self._name = name
        self._total = 0
        self._next = 0.0

    def set(self, total: int) -> None:
        """`total` bytes are done."""
        self._total = total
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._output.event("progress", what=self._name, bytes=total)

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        self.set(self._total + count)


class Receiver:
    """Serves connections: each stream carries one file."""

    def __init__(self, output: Output, directory: Path, *, once: bool) -> None:
        self._output = output
        self._directory = directory
        self._once = once
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()
        self.error: StoqError | None = None

    def refused(self, peer: Address, error: HandshakeFailed) -> None:
        """A handshake failed."""
        self._output.event(
            "refused", f"{peer}: {error}", peer=str(peer), error=str(error), alert=error.alert_name
        )

    async def serve(self, datapath: Datapath) -> None:
        """Until a signal comes, or with `once` until one file was taken and its connection closed."""
        accepting = asyncio.ensure_future(self._accept(datapath))
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(until_signal()), accepting]
        if self._once:
            waits.append(asyncio.ensure_future(self._done.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                accepting.result()
        finally:
            for task in (*waits, *self._tasks):
                task.cancel()
            await asyncio.gather(*waits, *self._tasks, return_exceptions=True)

    async def _accept(self, datapath: Datapath) -> None:
        async for connection in datapath.accept_connections():
            self._spawn(self._connection(connection))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, connection: Connection) -> None:
        self._output.event(
            "connected",
            f"{connection.peer}: {connection.identity}, "
            f"handshake {connection.handshake_seconds * 1e3:.1f} ms",
            peer=str(connection.peer),
            identity=str(connection.identity),
            handshake_seconds=connection.handshake_seconds,
        )
        try:
            async for stream in connection.accept_streams():
                self._spawn(self._stream(stream))
        except StoqError as error:
            self._output.event(
                "lost", f"{connection.peer}: {error}", peer=str(connection.peer), error=str(error)
            )

    async def _stream(self, stream: Stream) -> None:
        try:
            async with stream:
                await self._receive(stream)
        except StoqError as error:
            self._failed(stream, error)
        if self._once:
            await stream.connection.wait_closed()
            self._done.set()

    async def _receive(self, stream: Stream) -> None:
        progress = ProgressEvents(self._output, "received")
        try:
            received = await receive_file(stream, self._directory, advance=progress.add)
        except TransferError as error:
            # The receipt says why; leaving the stream by an exception would reset it before the sender reads
            # that.
            self._failed(stream, error)
            return
        self._output.event(
            "received",
            f"{received.path}: {human_bytes(received.size)}, SHA-256 {received.sha256} as announced",
            path=str(received.path),
            bytes=received.size,
            sha256=received.sha256,
            seconds=received.seconds,
        )

    def _failed(self, stream: Stream, error: StoqError) -> None:
        self.error = error
        self._output.event("failed", f"{stream.connection.peer}: {error}", error=str(error))


async def serve(output: Output, options: NodeOptions, listen: str, directory: Path, *, once: bool) -> None:
    """Open a server and receive files into `directory`."""
    if not directory.is_dir():
        raise TransferError(f"{directory} is not a directory: make it first")
    receiver = Receiver(output, directory, once=once)
    datapath = options.datapath((ALPN_STOQ,), listen=listen, on_failure=receiver.refused)
    async with (
        datapath,
        options.local(output, datapath, "receive" if once else "serve"),
        options.membership(output, datapath),
    ):
        options.settle(output)
        local = datapath.local_address
        backend = datapath.describe()
        output.event(
            "listening",
            "\n".join([*backend, f"listening on {local}"]),
            address=local.ip,
            port=local.port,
            backend=backend,
        )
        await receiver.serve(datapath)
        report = datapath_report(datapath)
    output.event("summary", **report)
    if once and receiver.error is not None:
        raise receiver.error.again()


async def send(output: Output, options: NodeOptions, path: Path, to: str, server_name: str | None) -> None:
    """Connect, send one file, say how it went."""
    if not path.is_file():
        raise TransferError(f"{path} is not a file")
    loop = asyncio.get_running_loop()
    # Whatever is wrong with the command line is said before a gigabyte is hashed.
    address = await resolve_address(to)
    node = options.datapath((ALPN_STOQ,))
    with output.progress() as bars:
        hashing = bars.add_task("SHA-256", total=path.stat().st_size)
        digest = await loop.run_in_executor(None, hash_file, path, lambda n: bars.advance(hashing, n))
        bars.remove_task(hashing)
        async with node as datapath, options.local(output, datapath, "send"), options.membership(output, datapath):
            connection = await datapath.connect(address, server_name=server_name or host_of(to))
            output.event(
                "connected",
                f"{connection.peer}: {connection.identity}, "
                f"handshake {connection.handshake_seconds * 1e3:.1f} ms",
                peer=str(connection.peer),
                identity=str(connection.identity),
                handshake_seconds=connection.handshake_seconds,
            )
            async with connection:
                sending = bars.add_task(path.name, total=path.stat().st_size)
                events = ProgressEvents(output, "acknowledged")

                def acknowledged(total: int) -> None:
                    bars.update(sending, completed=total)
                    events.set(total)

                result, report = await _send_on(connection, path, digest, acknowledged)
            report |= datapath_report(datapath)
    output.event(
        "sent",
        f"{result.name}: {human_bytes(result.size)} in {result.seconds:.2f} s, "
        f"{human_bits(result.goodput_bps)}, "
        f"loss {report['loss']:.4%}; SHA-256 {result.sha256} confirmed by the peer",
        bytes=result.size,
        seconds=result.seconds,
        goodput_bps=result.goodput_bps,
        sha256=result.sha256,
        **report,
    )


async def _send_on(
    connection: Connection, path: Path, digest: bytes, acknowledged: Advance
) -> tuple[Any, dict[str, Any]]:
    async with await connection.open_stream() as stream:
        result = await send_file(stream, path, digest, acknowledged)
        return result, await connection_report(connection)


# ---- the commands ----


def _receiving(once: bool, output: Output, listen: str, directory: Path, options: dict[str, Any]) -> None:
    raise SystemExit(run_async(output, serve(output, NodeOptions(**options), listen, directory, once=once)))


@click.command("serve")
@listen_option("[::]:9292")
@click.option("--output", "directory", type=FILE, default=Path(), help="Directory for the files received.")
@click.option("--retry", is_flag=True, help="Validate every client's address with Retry first.")
@node_options
@click.pass_obj
def serve_command(output: Output, /, listen: str, directory: Path, **options: Any) -> None:
    """Run a node that receives files over stoq/1 until it is interrupted."""
    _receiving(False, output, listen, directory, options)


@click.command("receive")
@listen_option("[::]:9292")
@click.option("--output", "directory", type=FILE, default=Path(), help="Directory for the file received.")
@click.option("--retry", is_flag=True, help="Validate every client's address with Retry first.")
@node_options
@click.pass_obj
def receive_command(output: Output, /, listen: str, directory: Path, **options: Any) -> None:
    """Receive one file over stoq/1, then end."""
    _receiving(True, output, listen, directory, options)


@click.command("send")
@click.argument("file", type=FILE)
@click.option(
    "--to", required=True, metavar="[ADDR]:PORT", help="The receiving node: IPv6 address or name, and port."
)
@click.option("--server-name", help="What the receiver's certificate must name; by default the host in --to.")
@node_options
@click.pass_obj
def send_command(output: Output, /, file: Path, to: str, server_name: str | None, **options: Any) -> None:
    """Send FILE over stoq/1 and compare its SHA-256 at the far end."""
    raise SystemExit(run_async(output, send(output, NodeOptions(**options), file, to, server_name)))

"""`stoq perf serve|client`: the `perf` protocol (draft-banks-quic-performance), both ends' data path in C.

The client's first 8 bytes on a stream ask for so many bytes back. Only in the test profile; no client
certificates.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import click

from control.console import Output, human_bits, run_async, until_signal
from control.handshake.policy import ALPN_PERF
from control.options import NodeOptions, listen_option, node_options, profile_option
from control.report import connection_report, datapath_report
from dataplane import STOQ_PORT, Address, Datapath, HandshakeFailed, resolve_address
from dataplane.address import host_of
from dataplane.stats import PerfResult


async def serve(output: Output, options: NodeOptions, listen: str) -> None:
    """Serve until a signal comes; the workers answer by themselves."""

    def refused(peer: Address, error: HandshakeFailed) -> None:
        output.event("refused", f"{peer}: {error}", peer=str(peer), error=str(error), alert=error.alert_name)

    async def accept(datapath: Datapath) -> None:
        async for _ in datapath.accept_connections():
            pass

    async with (
        options.datapath((ALPN_PERF,), listen=listen, on_failure=refused) as datapath,
        options.local(output, datapath, "perf serve"),
    ):
        options.settle(output)
        local = datapath.local_address
        output.event("listening", f"listening on {local}", address=local.ip, port=local.port)
        accepting = asyncio.ensure_future(accept(datapath))
        try:
            await until_signal()
        finally:
            accepting.cancel()
        report = datapath_report(datapath)
    output.event("summary", **report)


def merged(results: list[PerfResult]) -> PerfResult:
    """Of connections that ran at the same time: sums, and of the latencies the worst of any of them."""
    return PerfResult(
        bytes_sent=sum(result.bytes_sent for result in results),
        bytes_received=sum(result.bytes_received for result in results),
        requests=sum(result.requests for result in results),
        duration=max(result.duration for result in results),
        latency_min=min(result.latency_min for result in results),
        latency_p50=max(result.latency_p50 for result in results),
        latency_p90=max(result.latency_p90 for result in results),
        latency_p99=max(result.latency_p99 for result in results),
        latency_max=max(result.latency_max for result in results),
    )


async def client(
    output: Output, options: NodeOptions, to: str, server_name: str | None, connections: int, **args: Any
) -> None:
    """One measurement; the figures of the path are the first connection's."""
    address = await resolve_address(to)
    async with (
        options.datapath((ALPN_PERF,)) as datapath,
        options.local(output, datapath, "perf client"),
        AsyncExitStack() as stack,
    ):
        opened = []
        for _ in range(connections):
            connection = await datapath.connect(address, server_name=server_name or host_of(to))
            opened.append(await stack.enter_async_context(connection))
        output.event("connected", connections=len(opened))
        cpu = time.process_time()
        result = merged(list(await asyncio.gather(*(connection.perf(**args) for connection in opened))))
        cpu = time.process_time() - cpu
        report = await connection_report(opened[0]) | datapath_report(datapath)
    seconds = max(result.duration, 1e-9)
    down, up = result.bytes_received * 8 / seconds, result.bytes_sent * 8 / seconds
    output.event(
        "result",
        f"{result.requests} requests in {seconds:.2f} s: down {human_bits(down)}, "
        f"up {human_bits(up)}, latency p50 {result.latency_p50 * 1e6:.1f} us, "
        f"p99 {result.latency_p99 * 1e6:.1f} us, "
        f"loss {report['loss']:.4%}",
        download_bps=down,
        upload_bps=up,
        result=asdict(result),
        cpu_seconds=cpu,
        **report,
    )


@click.group("perf")
def perf_group() -> None:
    """Measure throughput and latency (test profile only)."""


@perf_group.command("serve")
@listen_option(f"[::]:{STOQ_PORT}")
@click.option("--retry", is_flag=True, help="Validate every client's address with Retry first.")
@profile_option
@node_options
@click.pass_obj
def serve_command(output: Output, /, listen: str, **options: Any) -> None:
    """Answer perf clients."""
    raise SystemExit(run_async(output, serve(output, NodeOptions(**options), listen)))


@perf_group.command("client")
@click.option("--to", required=True, metavar="[ADDR]:PORT")
@click.option("--server-name", help="What the server's certificate must name; by default the host in --to.")
@click.option("--insecure", is_flag=True, help="Take any server certificate.")
@click.option(
    "--download", "download_bytes", type=click.IntRange(0), default=0, help="Bytes to get on each stream."
)
@click.option(
    "--upload", "upload_bytes", type=click.IntRange(0), default=0, help="Bytes to send on each stream."
)
@click.option("--streams", type=click.IntRange(1), default=1, help="Streams at a time, each connection.")
@click.option("--connections", type=click.IntRange(1), default=1, help="Connections at a time.")
@click.option(
    "--requests",
    type=click.IntRange(0),
    default=0,
    help="Streams in all, each connection; 0: until --seconds are over.",
)
@click.option("--seconds", type=click.FloatRange(0), default=0.0, help="0: until --requests are done.")
@profile_option
@node_options
@click.pass_obj
def client_command(
    output: Output,
    /,
    to: str,
    server_name: str | None,
    download_bytes: int,
    upload_bytes: int,
    streams: int,
    connections: int,
    requests: int,
    seconds: float,
    **options: Any,
) -> None:
    """Ask a perf server for bytes and measure."""
    if not requests and not seconds:
        requests = 1
    main = client(
        output,
        NodeOptions(**options),
        to,
        server_name,
        connections,
        download_bytes=download_bytes,
        upload_bytes=upload_bytes,
        streams=streams,
        requests=requests,
        seconds=seconds,
    )
    raise SystemExit(run_async(output, main))

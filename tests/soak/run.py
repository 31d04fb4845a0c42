"""Two nodes in two network namespaces, one process: rounds of random traffic, and after each the books.

    python -m tests.soak.run [--seconds 3600] [--backend afxdp] [--seed N] [--json]

A round opens connections, streams random bytes both ways, closes some in order and drops others in the
middle. Then it is quiet, and must be so exactly: no connection left, every chunk and every byte of metadata
given back, and of an AF_XDP queue every frame owned by one ring or pool. Descriptors may not grow after the
first rounds, memory (RSS) not after the first tenth of the time: until then pools reach the most that such
rounds ever use at once (pages once used stay resident), and so does the allocator.

Exit code 0 when all held, 1 with what did not and the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, TlsFactory
from dataplane import Address, Config, Connection, ConnectionClosed, Datapath, StreamReset, StreamStopped
from tests.netns import Link, Network, inside

INTERFACE = "eth0"
WARM_ROUNDS = 5  # At least.
WARM_SHARE = 0.1  # Of the time.
WARM_SECONDS = 3.0  # Of a short run at most half: a tenth of it is over before the pools have seen a large transfer.
RSS_GROWTH = 16 << 20  # Python's own heap breathes by some megabytes.
QUIET_SECONDS = 20.0  # A closed connection is kept for three probe timeouts; machines are busy.
ROUND_SECONDS = 60.0
MAX_BYTES = 2 << 20
POLL_SECONDS = 0.01


class SoakError(Exception):
    """What did not hold."""


def rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def descriptors() -> int:
    """Open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass
class Report:
    """What a soak did."""

    seed: int
    rounds: int = 0
    connections: int = 0
    streams: int = 0
    aborted: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rss_first: int = 0
    rss_last: int = 0
    descriptors_first: int = 0
    descriptors_last: int = 0
    queues: list[dict[str, int]] = field(default_factory=list)


class Pair:
    """The two datapaths, and an echo server on one."""

    def __init__(self, client: Datapath, server: Datapath, address: Address) -> None:
        self.client, self.server, self.address = client, server, address
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Echo every stream."""
        async for connection in self.server.accept_connections():
            self._spawn(self._connection(connection))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, connection: Connection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for stream in connection.accept_streams():
                self._spawn(self._stream(stream))

    async def _stream(self, stream: Any) -> None:
        with contextlib.suppress(ConnectionClosed, StreamReset, StreamStopped):
            async with stream:
                data = await stream.read_all(MAX_BYTES)
                stream.write(data)
                stream.write_eof()
                await stream.drain()


@contextlib.asynccontextmanager
async def two_nodes(network: Network, backend: str) -> AsyncIterator[Pair]:
    """Open both, each in its namespace."""
    authority = make_authority()
    factories = [
        TlsFactory(HandshakeConfig(issue(authority, name), authority.trust)) for name in ("node-a", "node-b")
    ]
    bind = Address(network.address("server", 0), 9292)

    def config(**more: Any) -> Config:
        return Config(backend=backend, ifindex=socket.if_nametoindex(INTERFACE), **more)

    async with contextlib.AsyncExitStack() as stack:
        with inside(network["server"]):
            server = await stack.enter_async_context(Datapath(config(server=True, bind=bind), factories[1]))
        with inside(network["client"]):
            client = await stack.enter_async_context(Datapath(config(), factories[0]))
        pair = Pair(client, server, bind)
        serving = asyncio.ensure_future(pair.serve())
        try:
            yield pair
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def one_round(pair: Pair, rng: random.Random, report: Report) -> None:
    """Connections with streams, all at once."""

    async def stream(connection: Connection, size: int, abort: bool) -> None:
        body = rng.randbytes(size)
        async with await connection.open_stream() as s:
            s.write(body)
            if abort:
                await asyncio.sleep(0)
                s.reset(7)
                report.aborted += 1
                return
            s.write_eof()
            if await s.read_all(MAX_BYTES) != body:
                raise SoakError(f"a stream of {size} bytes came back different")
        report.streams += 1
        report.bytes += 2 * size

    async def connection() -> None:
        c = await pair.client.connect(pair.address, server_name="node-b")
        report.connections += 1
        sizes = [int(MAX_BYTES ** rng.random()) for _ in range(rng.randint(1, 8))]
        drop = rng.random() < 0.2
        jobs = [asyncio.ensure_future(stream(c, size, rng.random() < 0.1)) for size in sizes]
        if drop:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            c.close(3, "dropped")
            report.aborted += 1
            results = await asyncio.gather(*jobs, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(
                    result, (ConnectionClosed, StreamReset)
                ):
                    raise result
            return
        await asyncio.gather(*jobs)
        c.close()
        await c.wait_closed()

    async with asyncio.timeout(ROUND_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(rng.randint(1, 6)):
            group.create_task(connection())


def imbalance(pair: Pair, used_at_rest: dict[str, dict[str, int]] | None) -> str | None:
    """What is not at rest now, in words; None: everything is."""
    for name, datapath in (("client", pair.client), ("server", pair.server)):
        pools = datapath.pool_stats()
        if pools["connections"] or datapath.connections:
            return f"{name}: {pools['connections']} connections"
        for key, value in pools.items():
            if key.endswith("_used") and used_at_rest and value > used_at_rest[name][key]:
                return f"{name}: {key} is {value}, at rest it was {used_at_rest[name][key]}"
        for queue in datapath.queues():
            if queue.frames_accounted != queue.frames:
                return f"{name}: {queue.frames_accounted} of {queue.frames} frames are accounted for: {queue}"
            if queue.frames_rx or queue.frames_worker or queue.frames_tx or queue.frames_completion:
                return f"{name}: frames are under way: {queue}"
            if queue.kernel_rx_invalid or queue.kernel_tx_invalid:
                return f"{name}: the kernel found descriptors of ours invalid: {queue}"
    return None


async def come_to_rest(pair: Pair, used_at_rest: dict[str, dict[str, int]] | None) -> None:
    """Wait for it. Raises SoakError with what does not."""
    deadline = time.monotonic() + QUIET_SECONDS
    while (what := imbalance(pair, used_at_rest)) is not None:
        if time.monotonic() > deadline:
            raise SoakError(f"not at rest {QUIET_SECONDS:g} s after the last connection closed: {what}")
        await asyncio.sleep(POLL_SECONDS)


async def soak(
    seconds: float, backend: str, seed: int, progress: bool = False, report: Report | None = None
) -> Report:
    """Rounds for so long. Raises SoakError. `report` is filled as it goes, for whoever interrupts."""
    report = report or Report(seed)
    rng = random.Random(seed)
    start = time.monotonic()
    with Network(("client", "server"), (Link("client", "server"),)) as network:
        async with two_nodes(network, backend) as pair:
            used: dict[str, dict[str, int]] | None = None
            while time.monotonic() - start < seconds or report.rounds <= WARM_ROUNDS:
                await one_round(pair, rng, report)
                await come_to_rest(pair, used)
                report.rounds += 1
                report.seconds, report.rss_last = time.monotonic() - start, rss_bytes()
                report.descriptors_last = descriptors()
                if report.rounds == WARM_ROUNDS:
                    used = {"client": pair.client.pool_stats(), "server": pair.server.pool_stats()}
                    report.descriptors_first = descriptors()
                warm = max(WARM_SHARE * seconds, min(WARM_SECONDS, seconds / 2))
                if report.rounds == WARM_ROUNDS or report.seconds < warm:
                    report.rss_first = rss_bytes()
                if progress:
                    line = (
                        f"{report.rounds} rounds, {report.connections} connections, "
                        f"{report.bytes >> 20} MiB, {rss_bytes() >> 20} MiB resident"
                    )
                    print(f"\r{line}  ", end="", file=sys.stderr, flush=True)
            report.rss_last = rss_bytes()
            report.descriptors_last = descriptors()
            for datapath in (pair.client, pair.server):
                report.queues += [
                    {name: getattr(queue, name) for name in type(queue).__dataclass_fields__}
                    for queue in datapath.queues()
                ]
    if progress:
        print(file=sys.stderr)
    report.seconds = time.monotonic() - start
    if report.descriptors_last > report.descriptors_first:
        raise SoakError(f"descriptors grew from {report.descriptors_first} to {report.descriptors_last}")
    if report.rss_last > report.rss_first + RSS_GROWTH:
        raise SoakError(f"resident memory grew from {report.rss_first >> 20} to {report.rss_last >> 20} MiB")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run", description="Soak two nodes.")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--backend", default="afxdp", choices=("afxdp", "io_uring", "socket"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("error: network namespaces and AF_XDP need root", file=sys.stderr)
        return 2
    report = Report(options.seed)
    code = 0
    try:
        asyncio.run(soak(options.seconds, options.backend, options.seed, sys.stderr.isatty(), report))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except (SoakError, ExceptionGroup, TimeoutError) as error:
        print(f"seed {options.seed}: {error}", file=sys.stderr)
        code = 1
    if options.json:
        print(json.dumps(report.__dict__))
    else:
        print(
            f"{report.rounds} rounds in {report.seconds:.0f} s (seed {report.seed}): "
            f"{report.connections} connections, {report.streams} streams, "
            f"{report.aborted} dropped in the middle, {report.bytes / 1e6:.0f} MB; "
            f"resident memory {report.rss_first >> 20} to {report.rss_last >> 20} MiB, "
            f"descriptors {report.descriptors_first} to {report.descriptors_last}; "
            "at the end of each round every frame had its owner"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())

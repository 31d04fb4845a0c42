"""A live node in one network namespace, its peer and an attacker in another, and the books kept of both.

      namespace "node"                        namespace "far"
      Datapath, server  ◀────────veth────────  Datapath, client: files over one connection
                        ◀────────veth────────  build/hostile/flood: garbage

The books. All figures are differences between two moments at which both ends are idle.

  on the wire    flood's datagrams + peer's datagrams - those the device refused
                 = engine's datagrams_received + rx_dropped_queue + rx_dropped_empty + rx_dropped_truncated
                   + rx_dropped_ipv4 + rx_errors
                   with AF_XDP: + what the guard dropped or answered, and what found no room in the rings
  in the engine  datagrams_received = packets_received + sum of drops by reason + version_negotiations_sent
                   + retries_sent

The first is exact when nobody sends trains: the kernel counts a coalesced train that it drops as one. The
second is always exact here, because a peer past its handshake puts one packet into a datagram, and a
stranger's datagram is judged by its first packet: dropped for one reason, or answered. (A stateless reset is
sent beside the drop for unknown_cid, so it is not an account of its own.)

By hand, with progress: python -m tests.hostile.scene --count 10000000 [--backend afxdp]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, TlsFactory
from control.transfer import hash_file, receive_file, send_file
from dataplane import STOQ_PORT, Address, Config, Connection, Datapath
from tests.netns import Link, Network, inside, remove_stale

FLOOD = Path(__file__).resolve().parents[2] / "build/hostile/flood"
FILE_BYTES = 4 << 20
QUIET_SECONDS = 0.1  # Nothing counted for so long, several times what an ACK or a timer of an idle end takes.
PATIENCE = 60.0  # Seconds; what a state may take to be reached.
UNSTEADY = ("loops", "sleeps")  # Counters that move on an idle worker.

RECEIVED_AT_SOCKET = ("rx_dropped_empty", "rx_dropped_truncated", "rx_dropped_ipv4", "rx_errors")


@dataclass(frozen=True)
class Books:
    """What both ends and the far device had counted at one moment."""

    counters: dict[str, int]
    drops: dict[str, int]
    io: dict[str, int]
    peer: dict[str, int]
    guard: dict[str, int]  # Frames that the guard dropped or answered, and that found the ring full.
    refused: int  # By the far device, of both senders; what it refuses is never on the wire.

    def since(self, start: Books) -> Books:
        """The difference."""

        def minus(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return {name: value - b[name] for name, value in a.items()}

        return Books(
            minus(self.counters, start.counters),
            minus(self.drops, start.drops),
            minus(self.io, start.io),
            minus(self.peer, start.peer),
            minus(self.guard, start.guard),
            self.refused - start.refused,
        )

    @property
    def dropped(self) -> dict[str, int]:
        """Drops by reason, without the zeros."""
        return {name: count for name, count in self.drops.items() if count}

    @property
    def arrived(self) -> int:
        """Datagrams that left the kernel's queue."""
        at_socket = sum(self.io[name] for name in RECEIVED_AT_SOCKET)
        return self.counters["datagrams_received"] + at_socket + sum(self.guard.values())

    def check_engine(self) -> None:
        """The second equation; each datagram under exactly one head."""
        counters = self.counters
        accounted = (
            counters["packets_received"]
            + sum(self.drops.values())
            + counters["version_negotiations_sent"]
            + counters["retries_sent"]
        )
        assert counters["datagrams_received"] == accounted, self
        assert counters["datagrams_received"] == self.io["rx_packets"], self
        assert counters["stateless_resets_sent"] <= self.drops["unknown_cid"], self

    def check_wire(self, flood: dict[str, Any]) -> None:
        """The first equation. With trains the kernel's count of what it dropped is only a lower bound."""
        on_the_wire = flood["datagrams"] + self.peer["datagrams_sent"] - self.peer_refused(flood)
        dropped = self.io["rx_dropped_queue"]
        if flood["trains"]:
            assert self.arrived + dropped <= on_the_wire <= self.arrived + 64 * dropped, (on_the_wire, self)
        else:
            # A Retry that XDP_TX cannot hand to the far end counts there as refused by the far device, though
            # nothing of the far end's was: so many more may have arrived than its books say.
            unsaid = self.guard.get("answer_retry", 0)
            assert on_the_wire <= self.arrived + dropped <= on_the_wire + unsaid, (on_the_wire, self)

    def peer_refused(self, flood: dict[str, Any]) -> int:
        """The peer's datagrams that the device refused. The flood was told of its own and sent them again."""
        return self.refused - int(flood["refusals"])


def device_refused(network: Network) -> int:
    """Packets that the far device refused to carry so far (proc_pid_net(5): net/dev)."""
    with inside(network["far"]):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    device = next(line for line in lines if line.strip().startswith(network.device("far")))
    return int(device.split(":")[1].split()[11])


def guarded(node: Datapath) -> dict[str, int]:
    """What ended before the worker, by reason; empty without a guard."""
    if node.guard is None:
        return {}
    ended = {
        verdict.key: packets
        for verdict, (packets, _) in node.guard.counts().items()
        if verdict.name.startswith(("DROP_", "ANSWER_"))
    }
    for queue in node.queues():
        for name in ("kernel_rx_dropped", "kernel_rx_ring_full", "kernel_fill_empty"):
            ended[name] = ended.get(name, 0) + int(getattr(queue, name))
    return ended


@dataclass
class Scene:
    """See the module's text."""

    network: Network
    node: Datapath
    client: Datapath
    directory: Path
    pools: dict[str, int] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0

    @property
    def address(self) -> Address:
        return Address(self.network.address("node"), STOQ_PORT)

    def books(self) -> Books:
        """Now."""
        return Books(
            self.node.counters(),
            self.node.drops(),
            self.node.io_stats(),
            self.client.counters(),
            guarded(self.node),
            device_refused(self.network),
        )

    async def quiet(self) -> Books:
        """When nothing has been counted anywhere for QUIET_SECONDS."""

        def steady(books: Books) -> tuple[Any, ...]:
            ends = (books.counters, books.peer)
            counted = [{k: v for k, v in end.items() if k not in UNSTEADY} for end in ends]
            received = {k: v for k, v in books.io.items() if k.startswith("rx_")}
            return (*counted, books.drops, books.guard, received)

        async with asyncio.timeout(PATIENCE):
            before = self.books()
            while True:
                await asyncio.sleep(QUIET_SECONDS)
                now = self.books()
                if steady(now) == steady(before):
                    return now
                before = now

    async def connect(self) -> tuple[Connection, Connection]:
        """A new connection, both ends of it."""
        connection = await self.client.connect(self.address, server_name="node")
        return connection, await self.node.accept()

    async def send(self, ends: tuple[Connection, Connection]) -> None:
        """One file over a stream of its own; its SHA-256 is compared by both ends (control.transfer)."""
        path = self.directory / "file.bin"
        if not path.exists():
            path.write_bytes(random.Random(FILE_BYTES).randbytes(FILE_BYTES))
        connection, server = ends

        async def receive() -> None:
            async with await server.accept_stream() as stream:
                received = await receive_file(stream, self.directory / "in")
                received.path.unlink()

        async def transmit() -> None:
            async with await connection.open_stream() as stream:
                await send_file(stream, path, hash_file(path))

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            group.create_task(transmit())
        self.files += 1
        self.bytes += FILE_BYTES

    async def close(self, ends: tuple[Connection, Connection]) -> None:
        """Close it and wait until neither end remembers it."""
        ends[0].close()
        await ends[0].wait_closed()
        await ends[1].wait_closed()
        async with asyncio.timeout(PATIENCE):
            while self.node.pool_stats()["connections"] or self.client.pool_stats()["connections"]:
                await asyncio.sleep(0.01)

    async def flood(self, *arguments: str, progress: bool = False) -> dict[str, Any]:
        """Run the attacker to its end; what it says it sent."""
        assert FLOOD.exists(), "build/hostile/flood is not built: run `make test-build`"
        argv = [str(FLOOD), "--to", self.address.ip, "--port", str(STOQ_PORT), *arguments]
        if progress:
            argv.append("--progress")
        process = await asyncio.create_subprocess_exec(
            *self.network["far"].wrap(argv), stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, argv
        return dict(json.loads(out))


@asynccontextmanager
async def live(*, retry_always: bool = False, backend: str = "io_uring") -> AsyncIterator[Scene]:
    """Both namespaces and both ends, warmed up: what a first connection allocates for good is there."""
    remove_stale()
    authority = make_authority(days=1)
    with (
        tempfile.TemporaryDirectory(prefix="stoq-hostile-") as directory,
        Network(("node", "far"), (Link("far", "node"),)) as network,
    ):
        Path(directory, "in").mkdir()
        address = Address(network.address("node"), STOQ_PORT)
        server = HandshakeConfig(issue(authority, "node"), authority.trust)
        client = HandshakeConfig(issue(authority, "far"), authority.trust)
        far = Datapath(Config(no_gso=True), TlsFactory(client))  # Single datagrams, so that each one counts.
        with inside(network["node"]):
            interface = socket.if_nametoindex(network.device("node")) if backend == "afxdp" else 0
        node = Datapath(
            Config(server=True, bind=address, retry_always=retry_always, backend=backend, ifindex=interface),
            TlsFactory(server),
        )
        try:
            with inside(network["node"]):
                await node.open()
            with inside(network["far"]):
                await far.open()
            scene = Scene(network, node, far, Path(directory))
            ends = await scene.connect()
            await scene.send(ends)
            await scene.close(ends)
            await scene.quiet()
            scene.pools = node.pool_stats()
            yield scene
        finally:
            await far.close()
            await node.close()


@dataclass(frozen=True)
class Outcome:
    """What a flood did."""

    flood: dict[str, Any]
    books: Books
    files: int
    during_seconds: float
    during_bytes: int


async def endure(scene: Scene, *arguments: str, progress: bool = False) -> Outcome:
    """An established connection carries file after file while the flood runs, and one more when it is over.
    Checks the books, that a new connection is accepted, and that the node's memory is as it was."""
    ends = await scene.connect()
    await scene.send(ends)
    start = await scene.quiet()
    files, carried = scene.files, scene.bytes
    begin = time.monotonic()
    flood = asyncio.create_task(scene.flood(*arguments, progress=progress))
    try:
        while not flood.done():
            await scene.send(ends)
        during_seconds, during_bytes = time.monotonic() - begin, scene.bytes - carried
        await scene.send(ends)
        sent = await flood
    finally:
        flood.cancel()
    books = (await scene.quiet()).since(start)
    assert not ends[0].closed and not ends[1].closed
    books.check_engine()
    books.check_wire(sent)
    await scene.close(ends)

    ends = await scene.connect()
    await scene.send(ends)
    await scene.close(ends)
    await scene.quiet()
    assert scene.node.pool_stats() == scene.pools
    return Outcome(sent, books, scene.files - files - 1, during_seconds, during_bytes)


def table(outcome: Outcome) -> str:
    """The books for people."""
    flood, books = outcome.flood, outcome.books
    rows: list[tuple[str, int | str]] = [
        ("garbage sent", flood["datagrams"]),
        ("  seconds", flood["seconds"]),
        ("  datagrams/s", int(flood["datagrams"] / flood["seconds"])),
        ("  in trains", flood["trains"]),
        ("peer's datagrams", books.peer["datagrams_sent"]),
        ("files carried", outcome.files),
        ("  Mbit/s during the flood", int(outcome.during_bytes * 8 / outcome.during_seconds / 1e6)),
        ("taken by the engine", books.counters["datagrams_received"]),
        ("  packets opened", books.counters["packets_received"]),
        ("  answered: version negotiation", books.counters["version_negotiations_sent"]),
        *((f"  dropped: {name}", count) for name, count in books.dropped.items()),
        *((f"before the worker: {name}", count) for name, count in books.guard.items() if count),
        ("  (stateless resets beside unknown_cid)", books.counters["stateless_resets_sent"]),
        *((name, books.io[name]) for name in ("rx_dropped_queue", *RECEIVED_AT_SOCKET)),
    ]
    return "\n".join(f"{name:42} {value:>12}" for name, value in rows)


async def _main(arguments: list[str], backend: str) -> None:
    async with live(backend=backend) as scene:
        print(table(await endure(scene, *arguments, progress=True)))
    print("every datagram accounted for; the node accepts connections, and its memory is as before")


def main() -> None:
    """A flood by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.scene", description=main.__doc__)
    parser.add_argument("--count", type=int, default=10_000_000, help="datagrams (default 10,000,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=int, default=1, help="most datagrams a UDP_SEGMENT train; 1: none")
    parser.add_argument("--backend", choices=("io_uring", "afxdp", "socket"), default="io_uring")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    arguments = [f"--{name}={value}" for name, value in vars(options).items() if name != "backend"]
    asyncio.run(_main(arguments, options.backend))


if __name__ == "__main__":
    main()

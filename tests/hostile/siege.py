"""A live node under an attack from the link layer, an established transfer beside it, and the books of both.

      namespace "node"                     namespace "far"                         namespace "aside"
      Datapath, server,    ◀────veth────▶  Datapath, client: a `perf` download,
      guard or not                         honest connections
                           ◀────veth─────  build/hostile/attack: whole frames
                                           the same attack, to nobody ────veth───▶ (no node, no XDP)

The attack at `aside` is the yardstick: on veth the receiver's work up to its XDP program is done in the
sender's system call, on the sender's core, so an attack costs the client's core something even if the node
took it for nothing. What the transfer keeps beside the attack on the node, compared with what it keeps beside
the attack on nobody, is what the attack costs the node.

The books, with a guard: every frame on the wire to the node has one verdict.

      sum of verdicts = attack's frames + client's datagrams - those the device refused
                        + neighbour discovery and the like (pass_management)

Node and attack are pinned: the node's worker to the last core we may use, client's worker and attack to the
first. The transfer is a download, because then the node's core is the one that limits it: an upload is
limited by the client's, where the attacker runs too, and would tell how those two share it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, Profile, TlsFactory
from control.handshake.policy import ALPN_PERF, ALPN_STOQ
from dataplane import STOQ_PORT, Address, Config, Connection, Datapath, StoqError
from dataplane.tables import Verdict
from tests.hostile.scene import device_refused
from tests.netns import Link, Namespace, NetnsError, Network, inside, remove_stale

ATTACK = Path(__file__).resolve().parents[2] / "build/hostile/attack"
KINDS = ("initials", "hellos", "garbage", "replay", "ipv4", "extensions")
CAPTURING = ("hellos", "replay")  # Attacks that need something of a victim first.
FOR_EVER_BYTES = 1 << 50  # A transfer that only its connection's end ends.
PATIENCE = 60.0  # Seconds; what a state may take to be reached.
QUIET_SECONDS = 0.1
SIOCGIFHWADDR = 0x8927  # linux/sockios.h
TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """The attacker's and client's core, and the node's."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def link_address(namespace: Namespace, device: str) -> str:
    """The MAC address of a device (netdevice(7))."""

    def ask() -> str:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock.fileno(), SIOCGIFHWADDR, struct.pack("16sH14x", device.encode(), 0))
        return answer[18:24].hex(":")

    return namespace.call(ask)


def _command(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetnsError(f"{' '.join(argv)} failed: {done.stderr.strip()}")


def prepare(network: Network) -> None:
    """A way out of the node for answers to any source, and neighbours that are known beforehand: a resolution
    under way is not what is measured."""
    _command("ip", "-n", network["node"].name, "-6", "route", "add", "default", "via", network.address("far"))
    for here, there in (("node", "far"), ("far", "node")):
        _command(
            *("ip", "-n", network[here].name, "neighbour", "replace", network.address(there)),
            *("lladdr", link_address(network[there], network.device(there))),
            *("dev", network.device(here), "nud", "permanent"),
        )


def ifindex(network: Network, label: str) -> int:
    """Of the label's end of the link between node and far."""
    device = network.device(label)
    return network[label].call(lambda: socket.if_nametoindex(device))


class Attack:
    """A running build/hostile/attack."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name; assertion when it ends before."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            found = dict(json.loads(line))
            if found["event"] == name:
                return found
        raise AssertionError(f"the attack ended without {name!r}")

    async def stop(self) -> dict[str, Any]:
        """End it; what it sent."""
        try:
            self.process.terminate()
        except ProcessLookupError:
            pass
        return await self.end()

    async def end(self) -> dict[str, Any]:
        """Wait for its own end; what it sent."""
        sent = await self.event("sent")
        assert await self.process.wait() == 0
        return sent


@dataclass(frozen=True)
class Verdicts:
    """Frames by verdict."""

    frames: dict[Verdict, int]

    def since(self, start: Verdicts) -> Verdicts:
        return Verdicts({v: n - start.frames[v] for v, n in self.frames.items()})

    def __getitem__(self, verdict: Verdict) -> int:
        return self.frames[verdict]

    @property
    def total(self) -> int:
        return sum(self.frames.values())

    @property
    def taken(self) -> int:
        """Given to the node, by either path."""
        return self.frames[Verdict.XSK] + self.frames[Verdict.SOCKET]

    @property
    def nonzero(self) -> dict[str, int]:
        return {v.key: n for v, n in self.frames.items() if n}


@dataclass(frozen=True)
class Books:
    """All that is counted, at one moment."""

    verdicts: Verdicts | None
    counters: dict[str, int]
    drops: dict[str, int]
    io: dict[str, int]
    client: dict[str, int]
    refused: int  # By the far device, of client and attack.

    def since(self, start: Books) -> Books:
        def minus(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return {name: value - b[name] for name, value in a.items()}

        verdicts = None
        if self.verdicts is not None and start.verdicts is not None:
            verdicts = self.verdicts.since(start.verdicts)
        return Books(
            verdicts,
            minus(self.counters, start.counters),
            minus(self.drops, start.drops),
            minus(self.io, start.io),
            minus(self.client, start.client),
            self.refused - start.refused,
        )

    def unaccounted(self, sent: int) -> int:
        """Frames of client and attack without a verdict (negative: verdicts without a frame). 0 when the
        books are right."""
        assert self.verdicts is not None
        wire = sent + self.client["datagrams_sent"] - self.refused
        management = self.verdicts[Verdict.PASS_MANAGEMENT]
        return wire - (self.verdicts.total - management)


@dataclass
class Cpu:
    """Seconds of CPU so far: of the workers' threads, and of each core in all (user, system, softirq)."""

    node: float
    client: float
    cores: dict[int, tuple[float, float, float]]


@dataclass
class Transfer:
    """The established transfer."""

    connection: Connection
    running: asyncio.Task[Any]

    async def end(self) -> None:
        self.connection.close()
        await self.connection.wait_closed()
        await asyncio.gather(self.running, return_exceptions=True)


@dataclass
class Siege:
    """See the module's text."""

    network: Network
    node: Datapath
    client: Datapath
    node_tids: list[int]
    client_tids: list[int]
    core: int  # Client's and attack's; -1: not pinned.
    accepted: list[Connection] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address(self.network.address("node"), STOQ_PORT)

    @property
    def carried(self) -> int:
        """Stream bytes that the client has received so far."""
        return self.client.counters()["stream_bytes_received"]

    def verdicts(self) -> Verdicts | None:
        guard = self.node.guard
        return None if guard is None else Verdicts({v: n for v, (n, _) in guard.counts().items()})

    def books(self) -> Books:
        return Books(
            self.verdicts(),
            self.node.counters(),
            self.node.drops(),
            self.node.io_stats(),
            self.client.counters(),
            device_refused(self.network),
        )

    def cpu(self) -> Cpu:
        """proc_pid_stat(5), proc_stat(5)."""

        def thread(tid: int) -> float:
            try:
                fields = Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()
            except FileNotFoundError:
                return 0.0
            return (int(fields[11]) + int(fields[12])) / TICKS

        found: dict[int, tuple[float, float, float]] = {}
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith("cpu") and line[3] != " ":
                number, user, nice, system, _, _, irq, softirq = line[3:].split()[:8]
                found[int(number)] = (
                    (int(user) + int(nice)) / TICKS,
                    int(system) / TICKS,
                    (int(irq) + int(softirq)) / TICKS,
                )
        return Cpu(sum(map(thread, self.node_tids)), sum(map(thread, self.client_tids)), found)

    async def transfer(self) -> Transfer:
        """Begin one; returns when data flow."""
        connection = await self.client.connect(self.address, server_name="node", alpns=(ALPN_PERF,))
        before = self.carried
        running = asyncio.create_task(connection.perf(download_bytes=FOR_EVER_BYTES, requests=1))
        await self.until_carried(before + (1 << 20))
        return Transfer(connection, running)

    async def until_carried(self, stream_bytes: int) -> None:
        """Until the client has received so many stream bytes since it began."""
        async with asyncio.timeout(PATIENCE):
            while self.carried < stream_bytes:
                await asyncio.sleep(0.005)

    async def goes_on(self, more: int = 1 << 20) -> None:
        """Until the transfer has carried so much more, which proves that it goes on."""
        await self.until_carried(self.carried + more)

    async def honest(self, seconds: float) -> float | None:
        """One new mutual `stoq/1` connection: seconds until it stands; None if it does not, in `seconds`."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                connection = await self.client.connect(self.address, server_name="node", alpns=(ALPN_STOQ,))
        except (TimeoutError, StoqError):
            return None
        took = time.monotonic() - begin
        connection.close()
        await connection.wait_closed()
        return took

    async def attack(self, kind: str, pps: int, count: int, *, aside: bool = False, seed: int = 1) -> Attack:
        """Begin an attack on the node (or on nobody); returns when it sends. One that captures is given
        something to capture: its caller must have a transfer under way for `replay`."""
        assert ATTACK.exists(), "build/hostile/attack is not built: run `make test-build`"
        link = 1 if aside else 0
        target = self.network[("aside" if aside else "node")]
        argv = [
            *(str(ATTACK), "--interface", self.network.device("far", link), "--kind", kind),
            *("--to", self.address.ip, "--port", str(STOQ_PORT), "--pps", str(pps), "--count", str(count)),
            *("--to-link", link_address(target, "eth0"), "--seed", str(seed)),
            *("--capture", self.network.device("far", 0)),
        ]
        if self.core >= 0:
            argv += ["--core", str(self.core)]
        process = await asyncio.create_subprocess_exec(
            *self.network["far"].wrap(argv), stdout=asyncio.subprocess.PIPE
        )
        attack = Attack(process)
        try:
            if kind in CAPTURING:
                await attack.event("capturing")
            if kind == "hellos":
                assert await self.honest(PATIENCE) is not None
            await attack.event("sending")
        except BaseException:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise
        return attack

    async def quiet(self) -> Books:
        """When nothing has been counted for QUIET_SECONDS. Not while a transfer runs."""

        def steady(books: Books) -> tuple[Any, ...]:
            moving = ("loops", "sleeps")
            return (
                {k: v for k, v in books.counters.items() if k not in moving},
                {k: v for k, v in books.client.items() if k not in moving},
                books.drops,
                books.verdicts,
                books.refused,
            )

        async with asyncio.timeout(PATIENCE):
            before = self.books()
            while True:
                await asyncio.sleep(QUIET_SECONDS)
                now = self.books()
                if steady(now) == steady(before):
                    return now
                before = now


@contextmanager
def _new_threads(found: list[int]) -> Iterator[None]:
    """Into `found`: the threads that this process has more after the block."""
    tasks = Path("/proc/self/task")
    before = {int(path.name) for path in tasks.iterdir()}
    yield
    found.extend(sorted({int(path.name) for path in tasks.iterdir()} - before))


@asynccontextmanager
async def siege(*, backend: str, guard: bool, pin: bool = True) -> AsyncIterator[Siege]:
    """A node on `backend`, with or without the XDP guard, and a client on io_uring; warmed up.

    The client has a guard too: a veth device takes what the other end's XDP program sends back (a Retry) only
    when it has a program itself. That also takes segmentation offload from what the node sends, whichever
    node it is. The client's datagrams are single ones, so that each counts.
    """
    remove_stale()
    authority = make_authority(days=1)
    far_core, node_core = cores() if pin else (-1, -1)
    links = (Link("far", "node"), Link("far", "aside"))
    with Network(("node", "far", "aside"), links) as network:
        prepare(network)
        alpns = (ALPN_STOQ, ALPN_PERF)
        server = HandshakeConfig(issue(authority, "node"), authority.trust, alpns=alpns, profile=Profile.TEST)
        client = HandshakeConfig(issue(authority, "far"), authority.trust, alpns=alpns, profile=Profile.TEST)
        node = Datapath(
            Config(
                server=True,
                bind=Address(network.address("node"), STOQ_PORT),
                backend=backend,
                ifindex=ifindex(network, "node") if guard else 0,
                guard=guard,
                cores=(node_core,),
                test_profile=True,
            ),
            TlsFactory(server),
        )
        far = Datapath(
            Config(
                cores=(far_core,),
                no_gso=True,
                test_profile=True,
                guard=True,
                ifindex=ifindex(network, "far"),
            ),
            TlsFactory(client),
        )
        node_tids: list[int] = []
        client_tids: list[int] = []
        accepting: asyncio.Task[None] | None = None
        try:
            with inside(network["node"]), _new_threads(node_tids):
                await node.open()
            with inside(network["far"]), _new_threads(client_tids):
                await far.open()
            scene = Siege(network, node, far, node_tids, client_tids, far_core)
            accepting = asyncio.create_task(_accept(scene))
            assert await scene.honest(PATIENCE) is not None
            yield scene
        finally:
            if accepting is not None:
                accepting.cancel()
            await far.close()
            await node.close()


async def _accept(scene: Siege) -> None:
    async for _ in scene.node.accept_connections():
        pass

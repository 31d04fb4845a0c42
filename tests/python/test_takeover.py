"""Who has the interface: a node killed, its successor, a second node, and the host's own traffic beside them
all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from control import devcerts
from control.handshake import HandshakeConfig, Profile, TlsFactory
from control.handshake.credentials import load_credentials, load_trust
from control.handshake.policy import ALPN_PERF
from dataplane import STOQ_PORT, Address, Config, Connection, Datapath
from tests.netns import Link, Namespace, Network, inside, remove_stale

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and XDP need root")

PATIENCE = 30.0  # Seconds; what a state may take to be reached on a busy machine.
STALL_SECONDS = 5.0  # Host traffic that stands still for longer does not go on.
START_SECONDS = 2.0  # What a start may take on an interface whose node was killed a moment ago.
ANSWER_SECONDS = 0.25  # A datagram without an answer by then is lost, and the next one is sent.
BLOCK = 16384
ECHO_PORT, UDP_PORT = 7007, 7008
ICMPV6_ECHO = 128  # RFC 4443 section 4.1; the answer is 129.
MIB = 1 << 20


def program(namespace: Namespace, device: str) -> int:
    """The id of the XDP program on a device, 0: none (rtnetlink, IFLA_XDP)."""

    def ask() -> int:
        with IPRoute() as route:
            (link,) = route.link("get", ifname=device)
            xdp = link.get_attr("IFLA_XDP")
            return int(xdp.get_attr("IFLA_XDP_PROG_ID") or 0) if xdp is not None else 0

    return namespace.call(ask)


@dataclass
class Beside:
    """The host's own traffic over the interface, from "far" to "node" and back: one TCP connection, UDP on
    another port, ping. What TCP carries is compared; datagrams may be lost, but the next one has to come
    through."""

    network: Network
    trips: dict[str, int] = field(default_factory=lambda: {"tcp": 0, "udp": 0, "ping": 0})
    lost: dict[str, int] = field(default_factory=lambda: {"udp": 0, "ping": 0})
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    def _socket(self, label: str, kind: int, protocol: int = 0) -> socket.socket:
        made = self.network[label].call(lambda: socket.socket(socket.AF_INET6, kind, protocol))
        made.setblocking(False)
        self._sockets.append(made)
        return made

    async def __aenter__(self) -> Beside:
        to = self.network.address("node")
        listener = self._socket("node", socket.SOCK_STREAM)
        listener.bind((to, ECHO_PORT))
        listener.listen()
        echo = self._socket("node", socket.SOCK_DGRAM)
        echo.bind((to, UDP_PORT))
        tcp = self._socket("far", socket.SOCK_STREAM)
        udp = self._socket("far", socket.SOCK_DGRAM)
        udp.connect((to, UDP_PORT))
        ping = self._socket("far", socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        ping.connect((to, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(tcp, (to, ECHO_PORT))
        peer, _ = await loop.sock_accept(listener)
        self._sockets.append(peer)
        for main in (self._tcp_echo(peer), self._udp_echo(echo), self._tcp(tcp), self._udp(udp),
                     self._ping(ping)):  # fmt: skip
            self._tasks.append(asyncio.create_task(main))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for made in self._sockets:
            made.close()

    async def _tcp_echo(self, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        peer.setblocking(False)
        while data := await loop.sock_recv(peer, BLOCK):
            await loop.sock_sendall(peer, data)

    async def _udp_echo(self, echo: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, sender = await loop.sock_recvfrom(echo, 2048)
            await loop.sock_sendto(echo, data, sender)

    async def _tcp(self, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            block = bytes((self.trips["tcp"] + n) % 251 for n in range(BLOCK))
            await loop.sock_sendall(tcp, block)
            back = b""
            while len(back) < BLOCK:
                piece = await loop.sock_recv(tcp, BLOCK - len(back))
                assert piece, "the TCP connection ended"
                back += piece
            assert back == block
            self.trips["tcp"] += 1

    async def _answered(
        self, name: str, sock: socket.socket, data: bytes, is_answer: Callable[[bytes], bool]
    ) -> None:
        """One question; what is not its answer (of one before) is passed over."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.sock_sendall(sock, data)
                while not is_answer(await loop.sock_recv(sock, 2048)):
                    pass
            self.trips[name] += 1
        except TimeoutError:
            self.lost[name] += 1
        await asyncio.sleep(0.001)

    async def _udp(self, udp: socket.socket) -> None:
        for number in range(1 << 60):
            data = number.to_bytes(8, "big") * 16
            await self._answered("udp", udp, data, data.__eq__)

    async def _ping(self, ping: socket.socket) -> None:
        for number in range(1 << 60):
            rest = struct.pack("!HH", 1, number & 0xFFFF) + bytes(32)
            ask = struct.pack("!BBH", ICMPV6_ECHO, 0, 0) + rest  # The kernel fills in the checksum.

            def is_answer(back: bytes, rest: bytes = rest) -> bool:
                return back[0] == ICMPV6_ECHO + 1 and back[4:] == rest

            await self._answered("ping", ping, ask, is_answer)

    async def goes_on(self) -> None:
        """Until each kind has made three more round trips: the first may have begun before."""
        goal = {name: trips + 3 for name, trips in self.trips.items()}
        async with asyncio.timeout(STALL_SECONDS):
            while any(self.trips[name] < goal[name] for name in goal):
                for task in self._tasks:
                    if task.done():
                        await task  # Says why it ended.
                await asyncio.sleep(0.005)


class Node:
    """`stoq --json perf serve` over AF_XDP, as a process in the namespace "node"."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = dict(json.loads(line))
            if event["event"] == name:
                return event
        raise AssertionError(f"no {name!r} event")

    async def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@dataclass
class Scene:
    """The network, certificates, the host's traffic and a client in this process."""

    network: Network
    certs: Path
    beside: Beside
    client: Datapath
    _nodes: list[Node] = field(default_factory=list)

    @property
    def device(self) -> str:
        return self.network.device("node")

    def program(self) -> int:
        return program(self.network["node"], self.device)

    async def start(self, port: int = STOQ_PORT) -> Node:
        """A node, not waited for."""
        argv = [
            *(sys.executable, "-m", "control.cli", "--json", "perf", "serve", "--profile", "test"),
            *("--listen", f"[{self.network.address('node')}]:{port}", "--control", "none"),
            *("--cert", str(self.certs / "node.pem"), "--key", str(self.certs / "node.key")),
            *("--backend", "afxdp", "--interface", self.device),
        ]
        process = await asyncio.create_subprocess_exec(
            *self.network["node"].wrap(argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        self._nodes.append(Node(process))
        return self._nodes[-1]

    def successor(self) -> Datapath:
        """A node of this process, not yet open."""
        with inside(self.network["node"]):
            ifindex = socket.if_nametoindex(self.device)
        config = Config(
            server=True,
            bind=Address(self.network.address("node"), STOQ_PORT),
            backend="afxdp",
            ifindex=ifindex,
            test_profile=True,
        )
        credentials = load_credentials(self.certs / "node.pem", self.certs / "node.key")
        return Datapath(
            config, TlsFactory(HandshakeConfig(credentials, alpns=(ALPN_PERF,), profile=Profile.TEST))
        )

    async def transfer(self) -> tuple[Connection, asyncio.Task[Any]]:
        """A download that does not end; returns when it has begun."""
        address = Address(self.network.address("node"), STOQ_PORT)
        connection = await self.client.connect(address, server_name="node")
        running = asyncio.create_task(connection.perf(download_bytes=1 << 50, requests=1))
        await self.carries()
        return connection, running

    async def carries(self) -> None:
        """Until the download has carried a MiB more."""
        goal = self.client.counters()["stream_bytes_received"] + MIB
        async with asyncio.timeout(PATIENCE):
            while self.client.counters()["stream_bytes_received"] < goal:
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        for node in self._nodes:
            if node.process.returncode is None:
                await node.kill()
            await node.process.communicate()


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    remove_stale()
    with Network(("node", "far"), (Link("far", "node"),)) as network:
        devcerts.write(directory, ["node"], [network.address("node")], days=1)
        trust = load_trust(directory / "ca.pem")
        tls = TlsFactory(HandshakeConfig(None, trust, alpns=(ALPN_PERF,), profile=Profile.TEST))
        client = Datapath(Config(test_profile=True), tls)
        with inside(network["far"]):
            await client.open()
        try:
            async with Beside(network) as beside:
                await beside.goes_on()
                made = Scene(network, directory, beside, client)
                try:
                    yield made
                finally:
                    await made.close()
        finally:
            await client.close()


def on_the_wire(main: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="stoq-takeover-") as directory:
            async with asyncio.timeout(4 * PATIENCE), scene(Path(directory)) as made:
                await main(made)

    asyncio.run(run())


def test_a_killed_node_leaves_the_interface_to_the_next() -> None:
    async def main(scene: Scene) -> None:
        assert scene.program() == 0
        node = await scene.start()
        await node.until("listening")
        first = scene.program()
        assert first != 0
        await scene.beside.goes_on()

        connection, running = await scene.transfer()
        await scene.beside.goes_on()
        await scene.carries()
        await node.kill()
        begin = time.monotonic()
        successor = scene.successor()  # At once: nothing is waited for first.
        try:
            with inside(scene.network["node"]):
                await successor.open()
            took = time.monotonic() - begin
            print(f"the next start took {took * 1e3:.0f} ms")
            assert took < START_SECONDS
            assert scene.program() not in (0, first)
            await scene.beside.goes_on()
            connection.close()
            await connection.wait_closed()
            await asyncio.gather(running, return_exceptions=True)

            connection, running = await scene.transfer()
            await scene.beside.goes_on()
            await scene.carries()
            connection.close()
            await connection.wait_closed()
            await asyncio.gather(running, return_exceptions=True)
        finally:
            await successor.close()
        assert scene.program() == 0
        await scene.beside.goes_on()
        print(f"beside: {scene.beside.trips}, lost {scene.beside.lost}")

    on_the_wire(main)


def test_a_killed_node_leaves_no_program() -> None:
    async def main(scene: Scene) -> None:
        node = await scene.start()
        await node.until("listening")
        _, running = await scene.transfer()
        assert scene.program() != 0
        begin = time.monotonic()
        await node.kill()
        async with asyncio.timeout(START_SECONDS):
            while scene.program() != 0:
                await asyncio.sleep(0.001)
        print(f"the interface was free {(time.monotonic() - begin) * 1e3:.0f} ms after the kill")
        await scene.beside.goes_on()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    on_the_wire(main)


def test_a_second_node_is_refused_and_told_whose_the_interface_is() -> None:
    async def main(scene: Scene) -> None:
        first = await scene.start()
        await first.until("listening")
        owner = scene.program()
        connection, running = await scene.transfer()
        second = await scene.start(STOQ_PORT + 1)
        error = (await second.until("error"))["error"]
        assert await second.process.wait() != 0
        assert f"interface {scene.device} already has an XDP program" in error, error
        assert '"stoq_guard"' in error and f"id {owner}," in error, error
        assert "a running process holds it" in error, error
        # The first has not noticed.
        assert scene.program() == owner
        await scene.carries()
        await scene.beside.goes_on()
        connection.close()
        await asyncio.gather(running, return_exceptions=True)

    on_the_wire(main)

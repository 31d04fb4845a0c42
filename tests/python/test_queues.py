"""Several workers over AF_XDP, each on a queue of its own: connections spread, stay whole while workers go
and come, and every UMEM frame has one owner afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from control.handshake import TlsFactory
from dataplane import STOQ_PORT, Address, Config, Connection, Datapath
from dataplane.tables import Verdict
from tests.netns import Link, Network, inside, remove_stale
from tests.python.conftest import Pki
from tests.python.test_scale import Traffic, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and XDP need root")

QUEUES = 2
PATIENCE = 120.0  # Seconds; on a busy machine.
CLIENTS = 16  # The kernel spreads ports over queues by a hash: all on one are one in 32,768.


@dataclass
class Scene:
    """A server with a worker a queue, and clients of one connection each, all of which carry data."""

    network: Network
    server: Datapath
    clients: AsyncExitStack
    pki: Pki
    connections: list[Connection] = field(default_factory=list)

    async def join(self, number: int) -> None:
        """So many clients more, with a port each."""
        tls = TlsFactory(self.pki.client)
        with inside(self.network["far"]):
            for _ in range(number):
                client = await self.clients.enter_async_context(Datapath(Config(), tls))
                address = Address(self.network.address("node"), STOQ_PORT)
                self.connections.append(await client.connect(address, server_name="node-b"))

    def received(self, worker: int) -> int:
        return self.server.counters(worker=worker)["datagrams_received"]


@asynccontextmanager
async def scene(pki: Pki) -> AsyncIterator[Scene]:
    remove_stale()
    with Network(("node", "far"), (Link("far", "node", queues=QUEUES),)) as network:
        with inside(network["node"]):
            config = Config(
                server=True,
                bind=Address(network.address("node"), STOQ_PORT),
                backend="afxdp",
                ifindex=socket.if_nametoindex(network.device("node")),
                cores=(-1,) * QUEUES,
                max_workers=QUEUES,
            )
            server = Datapath(config, TlsFactory(pki.server))
            await server.open()
        try:
            async with AsyncExitStack() as clients:
                yield Scene(network, server, clients, pki)
        finally:
            await server.close()


def under_traffic(pki: Pki, steps: Callable[[Scene, Traffic], Awaitable[None]]) -> None:
    """Run `steps` while sixteen connections carry data both ways."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE), scene(pki) as made:
            serving = asyncio.create_task(serve(made.server))
            await made.join(CLIENTS)
            traffic = Traffic(made.connections)
            running = asyncio.create_task(traffic.run())
            await traffic.everyone_goes_on()
            await steps(made, traffic)
            traffic.stop()
            await running
            for connection in made.connections:
                assert connection.connected
                connection.close()
                await connection.wait_closed()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            while any(queue.frames_accounted != queue.frames for queue in made.server.queues()):
                await asyncio.sleep(0.01)  # Until the last frames have come back.

    asyncio.run(run())


def test_each_queue_has_a_worker_and_each_worker_connections(pki: Pki) -> None:
    async def steps(made: Scene, traffic: Traffic) -> None:
        del traffic
        server = made.server
        assert [(queue.worker, queue.queue) for queue in server.queues()] == [(0, 0), (1, 1)]
        for worker in range(QUEUES):
            counters = server.counters(worker=worker)
            assert counters["connections_accepted"] > 0 and counters["datagrams_received"] > 0
        # Each connection's packets keep to the queue that its first came by: nothing has to be passed on.
        assert server.counters()["datagrams_passed"] == 0
        assert server.guard is not None
        assert server.guard.counts()[Verdict.XSK][0] > 0
        assert server.guard.counts()[Verdict.SOCKET][0] == 0

    under_traffic(pki, steps)


def test_a_worker_goes_and_its_queue_stays_served(pki: Pki) -> None:
    async def steps(made: Scene, traffic: Traffic) -> None:
        server = made.server
        before = server.counters(worker=1)["connections_accepted"]
        assert before > 0
        server.remove_worker(1)
        assert server.running_workers == [0]
        await traffic.everyone_goes_on()
        # What still comes by the second queue has no AF_XDP socket there: the kernel's socket takes it.
        assert server.guard is not None
        assert server.guard.counts()[Verdict.SOCKET][0] > 0
        received = made.received(0)
        await traffic.everyone_goes_on()
        assert made.received(0) > received
        with inside(made.network["node"]):
            assert server.add_worker() == 1
        await traffic.everyone_goes_on()
        assert [(queue.worker, queue.queue) for queue in server.queues()] == [(0, 0), (1, 1)]
        received = made.received(1)
        await traffic.everyone_goes_on()
        assert made.received(1) > received

    under_traffic(pki, steps)

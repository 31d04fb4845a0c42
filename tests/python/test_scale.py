"""Workers added and removed under load, over real sockets on ::1: no connection is lost and no byte."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from dataplane import Config, Connection, Datapath, DatapathError
from tests.python.conftest import Pki
from tests.python.test_datapath import Nodes, over_loopback

CONNECTIONS = 8
CHUNK = 200_000


async def serve(server: Datapath) -> None:
    """Echo every stream of every connection."""

    async def stream_back(stream: object) -> None:
        async with stream:  # type: ignore[attr-defined]
            data = await stream.read_all()  # type: ignore[attr-defined]
            stream.write(data)  # type: ignore[attr-defined]
            stream.write_eof()  # type: ignore[attr-defined]

    async def one(connection: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            async for stream in connection.accept_streams():
                group.create_task(stream_back(stream))

    async with asyncio.TaskGroup() as group:
        async for connection in server.accept_connections():
            group.create_task(one(connection))


class Traffic:
    """Round trips on every connection until told to stop; `trips` counts those of each."""

    def __init__(self, connections: list[Connection]) -> None:
        self.connections = connections
        self.trips = [0] * len(connections)
        self._stop = False
        self._moved = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index, connection in enumerate(self.connections):
                group.create_task(self._one(index, connection))

    async def _one(self, index: int, connection: Connection) -> None:
        body = bytes((index + n) % 251 for n in range(CHUNK))
        while not self._stop:
            async with await connection.open_stream() as stream:
                stream.write(body)
                stream.write_eof()
                assert await stream.read_all() == body
            self.trips[index] += 1
            self._moved.set()

    async def everyone_goes_on(self) -> None:
        """Until every connection has made two more round trips: the first may have begun before."""
        goal = [trips + 2 for trips in self.trips]
        while any(trips < target for trips, target in zip(self.trips, goal, strict=True)):
            self._moved.clear()
            await self._moved.wait()

    def stop(self) -> None:
        self._stop = True


def under_traffic(
    pki: Pki, cores: tuple[int, ...], max_workers: int, steps: Callable[[Nodes, Traffic], Awaitable[None]]
) -> None:
    """Run `steps` while eight connections carry data."""

    async def main(nodes: Nodes) -> None:
        serving = asyncio.create_task(serve(nodes.server))
        connections = [await nodes.client.connect(nodes.address) for _ in range(CONNECTIONS)]
        traffic = Traffic(connections)
        running = asyncio.create_task(traffic.run())
        await traffic.everyone_goes_on()
        await steps(nodes, traffic)
        traffic.stop()
        await running
        for connection in connections:
            assert connection.connected
            connection.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert nodes.server.drops()["conn_limit"] == 0

    over_loopback(pki.client, pki.server, main, cores=cores, max_workers=max_workers)


def test_workers_go_and_come_back(pki: Pki) -> None:
    async def steps(nodes: Nodes, traffic: Traffic) -> None:
        server = nodes.server
        assert server.running_workers == [0, 1, 2]
        for gone in (1, 0):
            server.remove_worker(gone)
            await traffic.everyone_goes_on()
        assert server.running_workers == [2]
        with pytest.raises(DatapathError, match="last"):
            server.remove_worker(2)
        with pytest.raises(DatapathError, match="not running"):
            server.remove_worker(0)
        assert server.add_worker() == 0
        await traffic.everyone_goes_on()
        # The host of the last guest goes too: its guest moves on with it.
        server.remove_worker(2)
        await traffic.everyone_goes_on()
        assert sorted([server.add_worker(), server.add_worker()]) == [1, 2]
        await traffic.everyone_goes_on()
        assert server.running_workers == [0, 1, 2]

    under_traffic(pki, (-1, -1, -1), 3, steps)


def test_new_workers_take_new_connections(pki: Pki) -> None:
    async def steps(nodes: Nodes, traffic: Traffic) -> None:
        server = nodes.server
        assert server.add_worker() == 1
        await traffic.everyone_goes_on()
        with pytest.raises(DatapathError, match="max_workers"):
            server.add_worker()
        # The kernel spreads sockets by a hash of addresses: sixteen ports all to one are one in 32,768.
        for _ in range(16):
            client = Datapath(Config(), nodes.client._handshakes)
            async with client:
                await client.connect(nodes.address)
        assert server.counters(worker=1)["connections_accepted"] > 0

    under_traffic(pki, (-1,), 2, steps)


def test_a_client_moves_its_connections(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        serving = asyncio.create_task(serve(nodes.server))
        client = Datapath(Config(cores=(-1, -1)), nodes.client._handshakes)
        async with client:
            connections = [await client.connect(nodes.address) for _ in range(4)]
            traffic = Traffic(connections)
            running = asyncio.create_task(traffic.run())
            await traffic.everyone_goes_on()
            client.remove_worker(0)
            await traffic.everyone_goes_on()
            assert client.add_worker() == 0
            await traffic.everyone_goes_on()
            traffic.stop()
            await running
            if os.geteuid() == 0:  # Steering needs CAP_BPF.
                assert all("steered by connection id" in text for text in nodes.server.describe())
                assert nodes.server.counters()["datagrams_passed"] == 0, "the kernel found each one's worker"
            migrations = nodes.server.counters()["migrations"]
            assert migrations >= 2, "the peers saw connections come from another port"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    over_loopback(pki.client, pki.server, main, cores=(-1, -1))

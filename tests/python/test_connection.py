"""Connections: streams in order and in number, datagrams, statistics, key updates, moves, ends. On the
virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from dataplane import Config, ConnectionClosed, DatagramTooLarge, StreamError
from dataplane.sim import REBIND_ADDRESS, REBIND_PORT, Impairment
from tests.python.conftest import Pki
from tests.python.simulated import PATIENCE, Pair, run


def test_identity_is_known_on_both_sides(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        assert pair.client.identity is not None and pair.client.identity.node_id == pki.b.node_id
        assert pair.server.identity is not None and pair.server.identity.node_id == pki.a.node_id
        assert pair.server.identity.subject == "node-a"
        assert (pair.client.alpn, pair.server.alpn) == ("stoq/1", "stoq/1")
        assert 0.01 <= pair.client.handshake_seconds < 0.2

    run(pki, main)


def test_streams_are_accepted_in_order_whatever_the_network_does(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        async def client() -> None:
            for number in range(60):
                async with await pair.client.open_stream(unidirectional=True) as stream:
                    stream.write(number.to_bytes(4, "big"))

        opening = asyncio.ensure_future(client())
        for number in range(60):
            stream = await pair.server.accept_stream()
            assert stream.id == number * 4 + 2
            assert await stream.read_all() == number.to_bytes(4, "big")
        await opening

    run(pki, main, wire=Impairment(delay=0.005, loss=0.1, reorder=0.3, reorder_delay=0.01))


def test_opening_waits_for_the_peer_s_permission(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        streams = [await pair.client.open_stream() for _ in range(4)]
        assert pair.client.streams_available == 0
        fifth = asyncio.ensure_future(pair.client.open_stream())
        sixth = asyncio.ensure_future(pair.client.open_stream())
        await asyncio.sleep(PATIENCE)
        assert not fifth.done()
        sixth.cancel()
        for stream in streams:
            stream.write_eof()
        for _ in streams:
            async with await pair.server.accept_stream() as theirs:
                assert await theirs.read_all() == b""
        for stream in streams:
            assert await stream.read_all() == b""
        assert (await fifth).id == 16, "a cancelled open takes no number"

    run(pki, main, server=Config(server=True, max_streams_bidi=4))


def test_streams_used_out_of_order(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        first = await pair.client.open_stream()
        second = await pair.client.open_stream()
        second.write(b"2")
        second.write_eof()
        one, two = await pair.server.accept_stream(), await pair.server.accept_stream()
        assert await two.read_all() == b"2"
        first.write(b"1")
        first.write_eof()
        assert await one.read_all() == b"1"

    run(pki, main)


def test_datagrams(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        for number in range(50):
            pair.client.send_datagram(bytes([number]) * 1000)
        got = [await pair.server.receive_datagram() for _ in range(50)]
        assert got == [bytes([number]) * 1000 for number in range(50)]
        with pytest.raises(DatagramTooLarge):
            pair.client.send_datagram(bytes(65537))

    run(pki, main)


def test_a_slow_reader_of_datagrams_loses_the_oldest(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        for number in range(1500):
            pair.client.send_datagram(number.to_bytes(2, "big"))
            if number % 50 == 49:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert pair.server.datagrams_dropped == 1500 - 1024
        assert await pair.server.receive_datagram() == (1500 - 1024).to_bytes(2, "big")

    run(pki, main)


def test_key_update_under_a_transfer(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        for round_number in range(1, 6):
            ours.write(bytes(100_000))
            assert await pair.client.key_update() == round_number
            assert await theirs.readexactly(100_000) == bytes(100_000)
            await asyncio.sleep(1)
        assert (await pair.server.stats()).key_updates == 5

    run(pki, main, wire=Impairment(delay=0.005, loss=0.02))


@pytest.mark.parametrize("what", [REBIND_PORT, REBIND_ADDRESS])
def test_a_client_that_moves_keeps_its_connection(pki: Pki, what: int) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        before = pair.server.peer
        pair.simulation.rebind(what)
        ours.write(bytes(200_000))
        assert await theirs.readexactly(200_000) == bytes(200_000)
        await asyncio.sleep(1)
        assert pair.server.peer != before
        assert (pair.server.peer.ip == before.ip) == (what == REBIND_PORT)
        assert pair.simulation.server.counters()["migrations"] == 1

    run(pki, main)


def test_statistics_have_their_names(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(bytes(100_000))
        await theirs.readexactly(100_000)
        await asyncio.sleep(0.1)
        stats = await pair.client.stats()
        assert stats.stream_bytes_sent == 100_001
        assert 0.0099 < stats.rtt_min < 0.0111
        client, server = pair.simulation.client, pair.simulation.server
        assert server.counters()["stream_bytes_received"] == 100_001
        assert server.counters()["connections_accepted"] == client.counters()["handshakes_completed"] == 1
        assert client.drops()["aead"] == 0
        assert client.io_stats()["tx_packets"] == server.io_stats()["rx_packets"]
        sent, _ = client.train_histogram()
        assert sum(sent) > 0
        assert client.crypto_name in ("ipsec-mb", "openssl")

    run(pki, main)


@pytest.mark.parametrize("closer", ["client", "server"])
def test_close_carries_code_and_reason(pki: Pki, closer: str) -> None:
    async def main(pair: Pair) -> None:
        near, far = (pair.client, pair.server) if closer == "client" else (pair.server, pair.client)
        near.close(0x1234, "enough — genug")
        near.close(1, "twice")
        error = await far.wait_closed()
        assert (error.code, error.reason, error.application, error.remote) == (
            0x1234,
            "enough — genug",
            True,
            True,
        )
        mine = await near.wait_closed()
        assert (mine.code, mine.remote) == (0x1234, False)
        for connection in (near, far):
            with pytest.raises(ConnectionClosed):
                await connection.open_stream()
            with pytest.raises(ConnectionClosed):
                connection.send_datagram(b"x")
            with pytest.raises(ConnectionClosed):
                await connection.stats()

    run(pki, main)


def test_a_long_reason_is_cut_between_characters(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        pair.client.close(1, "ä" * 400)
        error = await pair.server.wait_closed()
        assert error.reason and set(error.reason) == {"ä"}

    run(pki, main)


def test_accept_streams_ends_with_a_clean_close_and_raises_otherwise(pki: Pki) -> None:
    async def main(pair: Pair, code: int) -> None:
        async def accept() -> int:
            return len([stream async for stream in pair.server.accept_streams()])

        accepting = asyncio.ensure_future(accept())
        pair.client.close(code)
        if code:
            with pytest.raises(ConnectionClosed):
                await accepting
        else:
            assert await accepting == 0

    run(pki, lambda pair: main(pair, 0))
    run(pki, lambda pair: main(pair, 7))


def test_idle_timeout(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        error = await pair.client.wait_closed()
        assert error.idle and "stopped answering" in str(error)
        assert (await pair.server.wait_closed()).idle

    run(pki, main, client=Config(idle_timeout=3))


def test_leaving_the_block_closes(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        with pytest.raises(RuntimeError):
            async with pair.client:
                raise RuntimeError
        error = await pair.server.wait_closed()
        assert (error.code, error.reason) == (1, "RuntimeError")

    run(pki, main)


def test_perf_needs_its_alpn(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        with pytest.raises(StreamError, match="speaks 'stoq/1' here"):
            await pair.client.perf(requests=1)

    run(pki, main)

"""What the Python API promises of streams: bytes in order, back-pressure, cancellation, views, ends. On the
virtual clock."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from dataplane import Config, ConnectionClosed, IncompleteRead, StreamError, StreamReset, StreamStopped
from dataplane.sim import Impairment
from tests.python.conftest import Pki
from tests.python.simulated import PATIENCE, Pair, run

MIB = 1 << 20


def test_bytes_both_ways_with_loss(pki: Pki) -> None:
    up, down = random.Random(1).randbytes(700_000), random.Random(2).randbytes(300_000)

    async def main(pair: Pair) -> None:
        async def server() -> bytes:
            stream = await pair.server.accept_stream()
            async with stream:
                stream.write(down)
                return await stream.read_all(MIB)

        serving = asyncio.ensure_future(server())
        async with await pair.client.open_stream() as stream:
            stream.write(up)
            stream.write_eof()
            assert await stream.read_all(MIB) == down
        assert await serving == up
        assert (await pair.client.stats()).packets_lost > 0

    run(pki, main, wire=Impairment(delay=0.005, loss=0.03, reorder=0.02, reorder_delay=0.003))


def test_small_writes_of_one_turn_share_a_packet(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        before = (await pair.client.stats()).packets_sent
        for number in range(200):
            ours.write(bytes([number]))
        assert await theirs.readexactly(200) == bytes(range(200))
        assert (await pair.client.stats()).packets_sent - before <= 6

    run(pki, main)


def test_any_buffer_can_be_written_and_changed_afterwards(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        buffer = bytearray(b"first")
        ours.write(buffer)
        ours.write(memoryview(b"xxsecondxx")[2:8])
        ours.write(b"")
        buffer[:] = b"WRONG"
        assert await theirs.readexactly(11) == b"firstsecond"

    run(pki, main)


def test_drain_waits_for_a_reader_that_does_not_read(pki: Pki) -> None:
    written = 0

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()

        async def writer() -> None:
            nonlocal written
            for _ in range(64):
                ours.write(bytes(MIB))
                written += 1
                await ours.drain()
            ours.write_eof()

        writing = asyncio.ensure_future(writer())
        await asyncio.sleep(PATIENCE)
        assert not writing.done()
        # The windows (1 MiB of stream, 1 MiB of connection), what may be unacknowledged (1 MiB), and the
        # queue.
        assert written <= 5
        total = 0
        async for data in theirs:
            total += len(data)
        assert total == 64 * MIB
        await writing

    small = {"max_data": MIB, "max_stream_data": MIB, "max_data_limit": MIB, "max_stream_data_limit": MIB}
    run(
        pki,
        main,
        client=Config(stream_send_bytes=MIB),
        server=Config(server=True, **small),  # type: ignore[arg-type]
    )


def test_a_pool_smaller_than_what_is_written_only_slows_it_down(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        streams = [await pair.client.open_stream() for _ in range(20)]
        expected = {}
        for stream in streams:
            data = random.Random(stream.id).randbytes(400_000)
            expected[stream.id] = hashlib.sha256(data).digest()
            stream.write(data)
            stream.write_eof()

        async def read() -> tuple[int, bytes]:
            stream = await pair.server.accept_stream()
            return stream.id, hashlib.sha256(await stream.read_all(MIB)).digest()

        assert dict(await asyncio.gather(*(read() for _ in streams))) == expected

    run(pki, main, client=Config(send_bytes=2 * MIB))


def test_a_cancelled_read_loses_nothing(pki: Pki) -> None:
    data = random.Random(3).randbytes(100_000)

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        for count in (200_000, 5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    if count == 5:
                        await theirs.read()
                    else:
                        ours.write(data[:50_000])
                        await theirs.readexactly(count)
            if count == 200_000:
                # What had come is still there, for whichever call asks next.
                assert await theirs.readexactly(50_000) == data[:50_000]
        reading = asyncio.ensure_future(theirs.read())
        await asyncio.sleep(0.01)
        ours.write(data[50_000:])
        await asyncio.sleep(0.0055)  # Arriving now: cancelled in the very turn in which bytes come.
        reading.cancel()
        got = b""
        try:
            got = await reading
        except asyncio.CancelledError:
            pass
        ours.write_eof()
        assert got + await theirs.read_all() == data[50_000:]

    run(pki, main)


def test_a_cancelled_drain_loses_nothing(pki: Pki) -> None:
    data = random.Random(4).randbytes(3 * MIB)

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(data)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ours.drain()
        ours.write_eof()
        assert await theirs.read_all(4 * MIB) == data

    run(pki, main, client=Config(stream_send_bytes=65536))


def test_read_view_is_the_worker_s_memory_and_gives_it_back(pki: Pki) -> None:
    data = random.Random(5).randbytes(2 * MIB)

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(data)
        ours.write_eof()
        digest, views = hashlib.sha256(), 0
        while True:
            async with theirs.read_view() as view:
                if not view:
                    break
                assert view.readonly
                digest.update(view)
                views += 1
        assert digest.digest() == hashlib.sha256(data).digest()
        assert views > 30
        with pytest.raises(ValueError, match="released"):
            len(view[:1])
        await asyncio.sleep(1)
        pools = pair.simulation.server.pool_stats()
        assert pools["receive_chunks_large_used"] == 0 and pools["receive_chunks_small_used"] <= 1, pools

    run(pki, main)


def test_views_and_copies_mix(pki: Pki) -> None:
    data = random.Random(6).randbytes(200_000)

    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(data)
        ours.write_eof()
        got = await theirs.read(10)
        async with theirs.read_view() as view:
            got += bytes(view)
        got += await theirs.readexactly(1000)
        async with theirs.read_view() as view:
            got += bytes(view)
            with pytest.raises(StreamError, match="view of this stream is still open"):
                await theirs.read()
        got += await theirs.read_all()
        assert got == data

    run(pki, main)


def test_write_view_is_sent_as_filled(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(b"before ")
        async with ours.write_view() as view:
            view.data[:6] = b"inside"
            view.commit(6)
        async with ours.write_view():
            pass  # Nothing committed: nothing is sent, the chunk is returned.
        with pytest.raises(RuntimeError):
            async with ours.write_view() as view:
                view.commit(5)
                raise RuntimeError
        with pytest.raises(StreamError, match="cannot be committed"):
            async with ours.write_view() as view:
                view.commit(65537)
        ours.write(b" after")
        ours.write_eof()
        assert await theirs.read_all() == b"before inside after"
        await ours.wait_acknowledged()
        used = pair.simulation.client.pool_stats()
        assert used["send_chunks_large_used"] == 0, used

    run(pki, main)


def test_ends(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(b"12345")
        ours.write_eof()
        ours.write_eof()
        with pytest.raises(StreamError, match="already ended"):
            ours.write(b"more")
        with pytest.raises(IncompleteRead) as error:
            await theirs.readexactly(10)
        assert (error.value.partial, error.value.expected) == (b"12345", 10)
        assert theirs.at_eof and await theirs.read() == b"" and await theirs.read_all() == b""
        await ours.wait_acknowledged()
        # The other way is still open.
        theirs.write(b"yes")
        assert await ours.readexactly(3) == b"yes"

    run(pki, main)


def test_read_all_is_bounded(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(bytes(1001))
        ours.write_eof()
        with pytest.raises(StreamError, match="more than 1000 bytes"):
            await theirs.read_all(1000)

    run(pki, main)


def test_reset_reaches_the_reader_with_its_code(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        waiting = asyncio.ensure_future(theirs.read())
        await asyncio.sleep(0)
        ours.reset(77)
        with pytest.raises(StreamReset) as error:
            await waiting
        assert error.value.code == 77
        with pytest.raises(StreamError, match="we reset"):
            ours.write(b"x")

    run(pki, main)


def test_stop_reaches_the_writer_with_its_code(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(bytes(8 * MIB))
        draining = asyncio.ensure_future(ours.drain())
        await asyncio.sleep(0)
        theirs.stop(78)
        with pytest.raises(StreamStopped) as error:
            await draining
        assert error.value.code == 78
        with pytest.raises(StreamError, match="we asked the peer to stop"):
            await theirs.read()
        # Nothing is left behind: both ends forget the stream, and its chunks are free.
        theirs.write_eof()
        ours.stop()
        await asyncio.sleep(1)
        assert ours.id not in pair.client._streams and theirs.id not in pair.server._streams
        assert pair.simulation.client.pool_stats()["send_chunks_large_used"] == 0
        assert pair.simulation.server.pool_stats()["receive_chunks_large_used"] == 0

    run(pki, main, client=Config(stream_send_bytes=MIB))


def test_leaving_the_block_ends_or_aborts(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        async with ours:
            ours.write(b"complete")
        assert await theirs.read_all() == b"complete"
        ours, theirs = await pair.streams()
        with pytest.raises(RuntimeError):
            async with ours:
                raise RuntimeError
        with pytest.raises(StreamReset):
            await theirs.read_all()
        with pytest.raises(StreamStopped):
            while True:
                theirs.write(b"x")
                await asyncio.sleep(0.01)

    run(pki, main)


def test_unidirectional_streams(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours = await pair.server.open_stream(unidirectional=True)
        async with ours:
            ours.write(b"one way")
        theirs = await pair.client.accept_stream()
        assert await theirs.read_all() == b"one way"
        assert (ours.can_read, theirs.can_write) == (False, False)
        with pytest.raises(StreamError, match="only be written"):
            await ours.read()
        with pytest.raises(StreamError, match="only be read"):
            theirs.write(b"x")

    run(pki, main)


def test_two_readers_are_refused(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        _, theirs = await pair.streams()
        first = asyncio.ensure_future(theirs.read())
        await asyncio.sleep(0)
        with pytest.raises(StreamError, match="two tasks"):
            await theirs.read()
        first.cancel()

    run(pki, main)


def test_the_connection_s_end_reaches_every_waiter(pki: Pki) -> None:
    async def main(pair: Pair) -> None:
        ours, theirs = await pair.streams()
        ours.write(b"complete")
        ours.write_eof()
        other, _ = await pair.streams()
        other.write(bytes(32 * MIB))
        pending: list[asyncio.Future[object]] = [
            asyncio.ensure_future(pair.server.accept_stream()),
            asyncio.ensure_future(pair.server.receive_datagram()),
        ]
        draining = asyncio.ensure_future(other.drain())
        await asyncio.sleep(0.02)
        pair.client.close(9, "over")
        for future in pending:
            with pytest.raises(ConnectionClosed, match="application error 0x9: over") as error:
                await future
            assert error.value.remote
        with pytest.raises(ConnectionClosed):
            await draining
        # What had arrived whole can still be read.
        assert await theirs.read_all() == b"complete"

    run(pki, main, client=Config(stream_send_bytes=MIB))

"""0-RTT through the engine, on the virtual clock: when early data arrives to the millisecond, what becomes of
it when it is refused, limits, Retry, loss, and replay."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from control.handshake.replay import ReplayRegister
from dataplane import Config, Connection, HandshakeFailed
from dataplane.sim import Impairment, Simulation
from dataplane.tables import TransportError
from tests.python.conftest import Pki
from tests.python.earlytls import EarlyTls

DELAY = 0.010  # One way.
WIRE = Impairment(delay=DELAY)


@dataclass
class Arrival:
    """What the server got on the first stream, when (since the client began), and how it stood then."""

    data: bytes
    seconds: float
    connected: bool
    connection: Connection


def play(
    pki: Pki,
    main: Callable[[Simulation, EarlyTls, EarlyTls], Awaitable[None]],
    *,
    server: Config | None = None,
    register: ReplayRegister | None = None,
    wire: Impairment = WIRE,
    seed: int = 1,
) -> None:
    """A first connection for the ticket, then `main`."""
    ours, theirs = EarlyTls(), EarlyTls(pki.b, register)

    async def body(simulation: Simulation) -> None:
        async with await simulation.client.connect(simulation.server_address, server_name="localhost"):
            await simulation.server.accept()
            while ours.ticket is None:
                await asyncio.sleep(DELAY)
        await main(simulation, ours, theirs)

    config = server or Config(server=True)
    Simulation(seed, ours, theirs, client=Config(), server=config, up=wire, down=wire).run(body)


async def exchange(simulation: Simulation, data: bytes) -> tuple[Connection, Arrival, bytes]:
    """Connect with 0-RTT, send `data` at once on a stream, have it echoed. The client's connection, what the
    server got, and the echo."""
    begin = simulation.now

    async def echo() -> Arrival:
        connection = await simulation.server.accept()
        stream = await connection.accept_stream()
        got = await stream.read_all()
        arrival = Arrival(got, simulation.now - begin, connection.connected, connection)
        stream.write(got)
        stream.write_eof()
        return arrival

    serving = asyncio.ensure_future(echo())
    client = await simulation.client.connect(simulation.server_address, server_name="localhost", early=True)
    stream = await client.open_stream()
    stream.write(data)
    stream.write_eof()
    echoed = await stream.read_all()
    return client, await serving, echoed


def counters(simulation: Simulation) -> dict[str, int]:
    return {
        key: simulation.client.counters()[key] + simulation.server.counters()[key]
        for key in ("zero_rtt_sent", "zero_rtt_received", "zero_rtt_refused", "congestion_events", "pto")
    }


def test_accepted_early_data_arrives_half_a_round_trip_after_the_dial(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        client, arrival, echoed = await exchange(simulation, b"early " * 100)
        assert arrival.data == echoed == b"early " * 100
        assert arrival.seconds == pytest.approx(DELAY, abs=0.002)
        assert not arrival.connected, "before the handshake's end"
        await client.wait_connected()
        await arrival.connection.wait_connected()
        assert client.early is True and arrival.connection.early is True
        assert theirs.resumed == 1
        count = counters(simulation)
        assert count["zero_rtt_sent"] == count["zero_rtt_received"] > 0
        assert count["zero_rtt_refused"] == count["congestion_events"] == count["pto"] == 0

    play(pki, main)


def test_a_connection_is_given_to_accept_once(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        client, arrival, _ = await exchange(simulation, b"early")
        await arrival.connection.wait_connected()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await simulation.server.accept()
        client.close()
        await client.wait_closed()

    play(pki, main)


def test_refused_early_data_goes_again_as_soon_as_there_are_keys(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        theirs.forget = True
        client, arrival, echoed = await exchange(simulation, b"again " * 500)
        assert arrival.data == echoed == b"again " * 500
        assert arrival.seconds == pytest.approx(3 * DELAY, abs=0.003), (
            "with the Finished, not after a timeout"
        )
        assert arrival.connected and client.early is False and arrival.connection.early is None
        count = counters(simulation)
        assert count["zero_rtt_sent"] > 0 and count["zero_rtt_refused"] == 1
        assert count["zero_rtt_received"] == count["congestion_events"] == count["pto"] == 0

    play(pki, main)


def test_a_flight_larger_than_the_initial_window(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        for theirs.forget in (False, True):
            data = bytes(range(256)) * 400
            client, arrival, echoed = await exchange(simulation, data)
            assert arrival.data == echoed == data
            assert client.early is not theirs.forget
            client.close()
            await client.wait_closed()

    play(pki, main)


@pytest.mark.parametrize("seed", range(6))
def test_early_data_on_a_bad_path(pki: Pki, seed: int) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        simulation.impair(*[Impairment(delay=DELAY, loss=0.15, duplicate=0.1, reorder=0.2)] * 2)
        theirs.forget = seed % 2 == 1
        _, arrival, echoed = await exchange(simulation, b"x" * 9000)
        assert arrival.data == echoed == b"x" * 9000

    play(pki, main, seed=seed)


def test_with_retry(pki: Pki) -> None:
    """The first 0-RTT packets go to a server that keeps nothing: they are sent again with the token."""

    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        simulation.client._tokens.take(simulation.server_address)
        client, arrival, echoed = await exchange(simulation, b"once more")
        assert simulation.client.counters()["retries_received"] == 2  # The first connection's too.
        assert arrival.data == echoed == b"once more"
        assert arrival.seconds == pytest.approx(3 * DELAY, abs=0.002)
        assert client.early is True

    play(pki, main, server=Config(server=True, retry_always=True))


def test_a_replayed_ticket_is_refused(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        ours.keep_ticket = True
        for expected in (True, False, False):
            client, arrival, echoed = await exchange(simulation, b"pay")
            assert client.early is expected
            assert arrival.connected is not expected
            assert echoed == b"pay"
            client.close()
            await client.wait_closed()
        assert theirs.register is not None and theirs.register.refused_replays == 2

    play(pki, main, register=ReplayRegister(0.0, warm=True))


def changed(params: bytes, kind: int, value: int) -> bytes:
    """Transport parameters (RFC 9000 section 18) with one integer changed: of one byte ids and lengths."""
    out, at = b"", 0

    def varint(position: int) -> tuple[int, int]:
        size = 1 << (params[position] >> 6)
        number = int.from_bytes(params[position : position + size], "big")
        return number & ((1 << (8 * size - 2)) - 1), position + size

    while at < len(params):
        start = at
        ident, at = varint(at)
        length, at = varint(at)
        at += length
        item = params[start:at]
        if ident == kind:
            encoded = (value | 0xC0 << 56).to_bytes(8, "big")
            item = bytes([kind, 8]) + encoded
        out += item
    return out


INITIAL_MAX_DATA = 4


@pytest.mark.parametrize("refused", [False, True])
def test_limits_that_went_down(pki: Pki, refused: bool) -> None:
    """RFC 9000 section 7.4.1: with 0-RTT accepted they must not; refused, what was sent may not fit."""

    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        theirs.forget = refused
        ours.server_params = changed(ours.server_params, INITIAL_MAX_DATA, 1 << 40)
        client = await simulation.client.connect(
            simulation.server_address, server_name="localhost", early=True
        )
        with pytest.raises(HandshakeFailed) as failure:
            await client.wait_connected()
        expected = TransportError.INTERNAL_ERROR if refused else TransportError.PROTOCOL_VIOLATION
        assert failure.value.code == expected
        assert ("connect again without" if refused else "lowered its limits") in failure.value.reason

    play(pki, main)


def test_limits_that_were_lower_hold_early_data_back_and_no_longer(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        ours.server_params = changed(ours.server_params, INITIAL_MAX_DATA, 1000)
        client, arrival, echoed = await exchange(simulation, b"y" * 5000)
        assert client.early is True
        assert arrival.data == echoed == b"y" * 5000
        assert arrival.seconds > 2 * DELAY

    play(pki, main)


def test_remembered_parameters_that_are_none(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        ours.server_params = b"\x04"
        with pytest.raises(HandshakeFailed, match="transport parameter"):
            client = await simulation.client.connect(
                simulation.server_address, server_name="localhost", early=True
            )
            await client.wait_connected()

    play(pki, main)


def test_without_a_ticket_early_waits_for_the_handshake(pki: Pki) -> None:
    async def main(simulation: Simulation, ours: EarlyTls, theirs: EarlyTls) -> None:
        ours.ticket = None
        client, arrival, _ = await exchange(simulation, b"late")
        assert client.early is None and arrival.connected
        assert simulation.client.counters()["zero_rtt_sent"] == 0

    play(pki, main)

"""0-RTT with the real TLS: who may use it, what is checked before it is taken, and through the engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aioquic import tls

from control.handshake import HandshakeConfig, ProcessFactory, Profile, TlsFactory
from control.handshake.alerts import Alert
from control.handshake.replay import WINDOW_SECONDS
from control.handshake.tickets import Ticket
from dataplane import Config, ConfigError
from dataplane.address import Address
from dataplane.handshake import Level, Target
from dataplane.sim import Impairment, Simulation
from dataplane.tables import TransportError
from tests.python.conftest import Pki
from tests.python.loopback import CLIENT_PARAMS, SERVER_PARAMS, RecordingSink
from tests.python.test_resumption import DAY, DECRYPT_ERROR, Ends, resuming

ALPN = "stoq/1"
EARLY_DATA = int(tls.ExtensionType.EARLY_DATA)
DELAY = 0.010  # One way.


def early(config: HandshakeConfig) -> HandshakeConfig:
    """With 0-RTT for stoq/1, which nobody has without saying so."""
    return resuming(config, early_alpns=(ALPN,))


@pytest.fixture
def ends(pki: Pki) -> Ends:
    """Two that have met."""
    made = Ends(early(pki.client), early(pki.server))
    made.meet()
    return made


def refusals(ends: Ends) -> tuple[int, int, int]:
    """The register's counts: stale, replays, full."""
    register = ends.server.shared.register
    assert register is not None
    return register.refused_stale, register.refused_replays, register.refused_full


def test_taken_with_the_peers_identity_and_in_the_seams_order(ends: Ends, pki: Pki) -> None:
    client, server, ours, theirs = ends.meet(early=True)
    assert client.early is True and server.early is True
    assert ours.resumed and theirs.resumed
    assert client.early_remembered == SERVER_PARAMS
    assert client.secrets[(Level.ZERO_RTT, True)] == server.secrets[(Level.ZERO_RTT, False)]
    assert server.identity is not None and server.identity.node_id == pki.a.node_id
    assert client.identity is not None and client.identity.node_id == pki.b.node_id
    # dataplane.handshake.EarlySink.
    assert client.calls[:3] == ["early_params", "crypto INITIAL", "secret ZERO_RTT send"]
    assert client.calls.index("early_answer") < client.calls.index("params")
    assert server.calls[:4] == ["params", "early_accepted", "secret ZERO_RTT receive", "crypto INITIAL"]
    assert refusals(ends) == (0, 0, 0)
    client, *_ = ends.meet(early=True)
    assert client.early is True, "the ticket of a resumed session permits it too"


def test_only_who_asks_offers_it(ends: Ends) -> None:
    client, server, ours, _ = ends.meet()
    assert ours.resumed and client.early is None and server.early is None
    assert not any("ZERO_RTT" in call for call in client.calls + server.calls)


@pytest.mark.parametrize("side", ["client", "server"])
def test_both_must_permit_it(pki: Pki, side: str) -> None:
    """Off by default: a server's tickets do not permit it, a client does not use those that do."""
    client = early(pki.client) if side == "client" else resuming(pki.client)
    server = early(pki.server) if side == "server" else resuming(pki.server)
    ends = Ends(client, server)
    ends.meet()
    sink, other, ours, _ = ends.meet(early=True)
    assert ours.resumed and sink.early is None and other.early is None


def test_a_server_that_does_not_take_it_any_more(ends: Ends, pki: Pki) -> None:
    ends.change_server(resuming(pki.server))
    client, server, ours, _ = ends.meet(early=True)
    assert ours.resumed and client.early is False and server.early is None


def test_a_register_that_is_younger_than_the_keys_waits(ends: Ends, pki: Pki) -> None:
    ends.change_server(early(pki.server))
    client, server, ours, _ = ends.meet(early=True)
    assert ours.resumed and client.early is False and server.early is None
    assert refusals(ends) == (1, 0, 0)


def test_each_ticket_once(ends: Ends) -> None:
    tickets = ends.client.shared.client_tickets
    assert tickets is not None
    [kept] = next(iter(tickets._tickets.values()))
    assert ends.meet(early=True)[0].early is True
    tickets._tickets.clear()
    tickets.put("::1", (ALPN,), kept)
    client, server, ours, _ = ends.meet(early=True)
    assert ours.resumed and client.early is False and server.early is None
    assert refusals(ends) == (0, 1, 0)


def test_what_was_kept_back_is_stale(ends: Ends) -> None:
    """The client's idea of the ticket's age (RFC 8446 section 8.3) is not the server's."""
    tickets = ends.client.shared.client_tickets
    assert tickets is not None
    [kept] = next(iter(tickets._tickets.values()))
    tickets._tickets.clear()
    tickets.put("::1", (ALPN,), replace(kept, received_at=kept.received_at - WINDOW_SECONDS - 1))
    client, _, ours, _ = ends.meet(early=True)
    assert ours.resumed and client.early is False
    assert refusals(ends) == (1, 0, 0)


def test_early_data_is_not_sent_again_in_another_protocol(pki: Pki) -> None:
    both: Any = {"alpns": (ALPN, "hq-interop"), "profile": Profile.TEST}
    ends = Ends(replace(early(pki.client), **both), replace(early(pki.server), **both))
    ends.meet()
    ends.change_server(replace(pki.server, alpns=("hq-interop",), profile=Profile.TEST, resumption=True))
    client, *_ = ends.meet(early=True)
    assert client.alert == Alert.NO_APPLICATION_PROTOCOL and client.early is None
    assert client.params is None, "the engine would send it again when it is told"


def test_a_wrong_binder_asks_the_register_nothing(ends: Ends) -> None:
    def spoil(level: Level, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if level is Level.INITIAL else data

    _, server, *_ = ends.meet(spoil, early=True)
    assert server.alert == DECRYPT_ERROR and server.early is None
    register = ends.server.shared.register
    assert register is not None and len(register) == 0


def test_an_expired_certificate_ends_it(ends: Ends) -> None:
    ends.clock.now += 40 * DAY
    client, server, ours, _ = ends.meet(early=True)
    assert client.early is None and server.early is None and not ours.resumed


def insert_early_data(data: bytes) -> bytes:
    """EncryptedExtensions with early_data beside what it has."""
    assert data[0] == tls.HandshakeType.ENCRYPTED_EXTENSIONS
    length = int.from_bytes(data[1:4], "big")
    extensions = data[6 : 4 + length] + EARLY_DATA.to_bytes(2, "big") + b"\0\0"
    body = len(extensions).to_bytes(2, "big") + extensions
    return data[:1] + len(body).to_bytes(3, "big") + body + data[4 + length :]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_server_that_takes_what_was_not_offered(pki: Pki, resumed: bool) -> None:
    ends = Ends(early(pki.client), early(pki.server))
    if resumed:
        ends.meet()

    def insert(level: Level, data: bytes) -> bytes:
        return insert_early_data(data) if level is Level.HANDSHAKE else data

    client, *_ = ends.meet(tamper_back=insert)
    assert client.alert in (Alert.ILLEGAL_PARAMETER, DECRYPT_ERROR)
    assert client.early is None and client.alpn is None
    if resumed:
        assert client.alert == Alert.ILLEGAL_PARAMETER


def test_a_ticket_that_limits_early_data(pki: Pki) -> None:
    ends = Ends(early(pki.client), early(pki.server))

    def limit(level: Level, data: bytes) -> bytes:
        return data[:-4] + b"\0\0\x40\0" if level is Level.ONE_RTT else data

    client, *_ = ends.meet(tamper_back=limit)
    assert client.failure is not None and client.failure[0] == TransportError.PROTOCOL_VIOLATION
    assert len(ends.client.shared.client_tickets or ()) == 0


def test_only_a_whole_ticket_is_offered(ends: Ends) -> None:
    """Without the server's parameters nothing could be sent within limits."""
    tickets = ends.client.shared.client_tickets
    assert tickets is not None
    [kept] = next(iter(tickets._tickets.values()))
    assert isinstance(kept, Ticket) and kept.params == SERVER_PARAMS
    tickets._tickets.clear()
    tickets.put("::1", (ALPN,), replace(kept, params=b""))
    client, _, ours, _ = ends.meet(early=True)
    assert ours.resumed and client.early is None


def test_hellos_that_ask_for_early_data_without_a_psk(pki: Pki) -> None:
    """The extension alone is ignored."""
    server, sink = TlsFactory(early(pki.server)), RecordingSink()
    client = RecordingSink()
    TlsFactory(early(pki.client)).client(client, Target(Address("::1", 9292), "::1")).start(CLIENT_PARAMS)
    hello = client.outgoing.popleft()[1]
    at = 4 + 2 + 32 + 1  # RFC 8446 section 4.1.2; an empty session id.
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    extensions = hello[at + 2 :] + EARLY_DATA.to_bytes(2, "big") + b"\0\0"
    body = hello[4:at] + len(extensions).to_bytes(2, "big") + extensions
    theirs = server.server(sink, Address("::1", 1))
    theirs.start(SERVER_PARAMS)
    theirs.receive(Level.INITIAL, hello[:1] + len(body).to_bytes(3, "big") + body)
    assert sink.early is None and sink.failure is None and sink.outgoing


def test_configurations_that_make_no_sense(pki: Pki) -> None:
    with pytest.raises(ConfigError, match="resumption"):
        replace(pki.server, early_alpns=(ALPN,))
    with pytest.raises(ConfigError, match="not spoken here"):
        replace(pki.server, resumption=True, early_alpns=("hq-interop",))
    with pytest.raises(ConfigError, match="perf takes no early data"):
        replace(early(pki.server), alpns=("perf",), early_alpns=("perf",), profile=Profile.TEST)
    with pytest.raises(ConfigError, match="processes take no early data"):
        ProcessFactory(early(pki.server), 1)


def test_through_the_engine(pki: Pki) -> None:
    """A request arrives half a round trip after the dial, from a peer whose identity is known."""
    client, server = TlsFactory(early(pki.client)), TlsFactory(early(pki.server))
    wire = Impairment(delay=DELAY)

    async def main(simulation: Simulation) -> None:
        async with await simulation.client.connect(simulation.server_address, server_name="::1"):
            first = await simulation.server.accept()
            assert first.early is None
            await asyncio.sleep(1)
        begin = simulation.now
        connection = await simulation.client.connect(simulation.server_address, server_name="::1", early=True)
        assert not connection.connected
        stream = await connection.open_stream()
        stream.write(b"at once")
        stream.write_eof()
        theirs = await simulation.server.accept()
        got = await (await theirs.accept_stream()).read_all()
        assert got == b"at once" and simulation.now - begin == pytest.approx(DELAY, abs=0.002)
        assert theirs.early is True and not theirs.connected
        assert theirs.identity is not None and theirs.identity.node_id == pki.a.node_id
        await asyncio.gather(theirs.wait_connected(), connection.wait_connected())
        assert connection.early is True
        assert connection.identity is not None and connection.identity.node_id == pki.b.node_id
        connection.close()
        await asyncio.gather(connection.wait_closed(), theirs.wait_closed())

    Simulation(1, client, server, client=Config(), server=Config(server=True), up=wire, down=wire).run(main)

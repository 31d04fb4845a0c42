"""Session resumption: what is resumed, who the peer then is, and each reason to refuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, Profile, TlsFactory, Trust
from control.handshake.session import TlsSession
from control.handshake.tickets import (
    MAX_SERVERS,
    MAX_TICKETS_EACH,
    ClientTickets,
    Refusal,
    ServerTickets,
    Session,
    Ticket,
    TicketKeys,
)
from dataplane import Config
from dataplane.address import Address
from dataplane.handshake import Level, Target
from dataplane.sim import Simulation
from tests.python.conftest import Pki
from tests.python.loopback import CLIENT_PARAMS, SERVER_PARAMS, RecordingSink

DAY = 86400.0
DECRYPT_ERROR = 51


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Ends:
    """Two factories that meet again and again."""

    def __init__(self, client: HandshakeConfig, server: HandshakeConfig) -> None:
        self.clock = Clock()
        self.client = TlsFactory(client, self.clock)
        self.server = TlsFactory(server, self.clock)

    @property
    def tickets(self) -> ServerTickets:
        tickets = self.server.shared.server_tickets
        assert tickets is not None
        return tickets

    def change_server(self, config: HandshakeConfig) -> None:
        """The same node, so the same keys, with another configuration."""
        self.server = TlsFactory(config, self.clock, self.tickets.keys)

    def meet(
        self,
        tamper: Callable[[Level, bytes], bytes] = lambda level, data: data,
        *,
        early: bool = False,
        tamper_back: Callable[[Level, bytes], bytes] = lambda level, data: data,
    ) -> tuple[RecordingSink, RecordingSink, TlsSession, TlsSession]:
        client, server = RecordingSink(), RecordingSink()
        ours = self.client.client(client, Target(Address("::1", 9292), "::1", (), early))
        theirs = self.server.server(server, Address("::1", 1))
        theirs.start(SERVER_PARAMS)
        ours.start(CLIENT_PARAMS)
        while client.outgoing or server.outgoing:
            while client.outgoing:
                level, data = client.outgoing.popleft()
                theirs.receive(level, tamper(level, data))
            while server.outgoing:
                level, data = server.outgoing.popleft()
                ours.receive(level, tamper_back(level, data))
        return client, server, ours, theirs


def resuming(config: HandshakeConfig, **more: object) -> HandshakeConfig:
    return replace(config, resumption=True, **more)  # type: ignore[arg-type]


@pytest.fixture
def ends(pki: Pki) -> Ends:
    made = Ends(resuming(pki.client), resuming(pki.server))
    made.meet()
    assert made.tickets.issued == 1
    return made


@pytest.mark.parametrize("cipher", ["aes128", "aes256", "chacha20"])
def test_a_resumed_session_keeps_both_identities(pki: Pki, cipher: str) -> None:
    ends = Ends(resuming(pki.client, ciphers=(cipher,)), resuming(pki.server))
    first, *_ = ends.meet()
    for _ in range(3):  # Tickets of resumed sessions are good too.
        client, server, ours, theirs = ends.meet()
        assert ours.resumed and theirs.resumed
        assert client.identity is not None and client.identity.node_id == pki.b.node_id
        assert server.identity is not None and server.identity.node_id == pki.a.node_id
        assert (client.alpn, server.alpn) == ("stoq/1", "stoq/1")
        for level in (Level.HANDSHAKE, Level.ONE_RTT):
            assert client.secrets[(level, True)] == server.secrets[(level, False)]
            assert client.secrets[(level, False)] == server.secrets[(level, True)]
        assert client.secrets[(Level.ONE_RTT, True)] != first.secrets[(Level.ONE_RTT, True)]
    assert (ends.tickets.resumed, ends.tickets.refused) == (3, {})


def test_off_by_default(pki: Pki) -> None:
    ends = Ends(pki.client, pki.server)
    for _ in range(2):
        client, server, ours, theirs = ends.meet()
        assert not (ours.resumed or theirs.resumed)
        assert Level.ONE_RTT.name not in "".join(c for c in server.calls if c.startswith("crypto"))
        assert client.identity is not None
    assert ends.server.shared.server_tickets is None and ends.client.shared.client_tickets is None


@pytest.mark.parametrize("side", ["client", "server"])
def test_one_end_alone_resumes_nothing(pki: Pki, side: str) -> None:
    client = resuming(pki.client) if side == "client" else pki.client
    server = resuming(pki.server) if side == "server" else pki.server
    ends = Ends(client, server)
    for _ in range(2):
        _, sink, ours, theirs = ends.meet()
        assert not (ours.resumed or theirs.resumed)
        assert sink.identity is not None


def check_refused(ends: Ends, why: Refusal | None, pki: Pki) -> None:
    """The next handshake is a full one, in which both sides prove themselves again."""
    client, server, ours, theirs = ends.meet()
    assert not (ours.resumed or theirs.resumed)
    assert client.identity is not None and server.identity is not None, (client.failure, server.failure)
    assert server.identity.node_id == pki.a.node_id
    if why is not None:
        assert ends.tickets.refused == {why: 1}
    assert ends.tickets.resumed == 0


def test_a_client_forgets_a_ticket_that_is_too_old(ends: Ends, pki: Pki) -> None:
    ends.clock.now += 3600
    check_refused(ends, None, pki)
    assert not ends.tickets.refused, "it was not even offered"


def test_a_server_refuses_a_ticket_that_is_too_old(pki: Pki) -> None:
    ends = Ends(resuming(pki.client, ticket_lifetime=DAY), resuming(pki.server))
    ends.meet()
    keys = ends.tickets.keys
    ends.change_server(resuming(pki.server, ticket_lifetime=60.0))
    assert ends.tickets.keys is keys
    ends.clock.now += 61
    check_refused(ends, Refusal.AGE, pki)


def test_resumptions_do_not_prolong_the_proof(ends: Ends, pki: Pki) -> None:
    ends.clock.now += 3000
    assert ends.meet()[3].resumed
    ends.clock.now += 601
    client, server, ours, theirs = ends.meet()
    assert not (ours.resumed or theirs.resumed)
    assert client.identity is not None and server.identity is not None


def test_a_clock_that_went_back(ends: Ends, pki: Pki) -> None:
    ends.clock.now -= 10
    check_refused(ends, None, pki)


def test_a_certificate_that_expired_meanwhile(pki: Pki) -> None:
    brief = issue(pki.authority, "brief", days=0.5)
    ends = Ends(
        resuming(HandshakeConfig(brief, pki.authority.trust), ticket_lifetime=7 * DAY),
        resuming(pki.server, ticket_lifetime=7 * DAY),
    )
    assert ends.meet()[1].identity is not None
    ends.clock.now += 0.4 * DAY
    assert ends.meet()[3].resumed
    ends.clock.now += 0.2 * DAY
    _, server, _, theirs = ends.meet()
    assert not theirs.resumed and server.identity is None
    assert server.alert == 45, "in full, and then refused for what it is"
    assert ends.tickets.refused == {Refusal.CERTIFICATE: 1}


def test_a_servers_certificate_that_expired_meanwhile(pki: Pki) -> None:
    brief = issue(pki.authority, "brief", days=0.5)
    ends = Ends(
        resuming(pki.client, ticket_lifetime=7 * DAY),
        resuming(HandshakeConfig(brief, pki.authority.trust), ticket_lifetime=7 * DAY),
    )
    ends.meet()
    ends.clock.now += 0.6 * DAY
    client, _, ours, _ = ends.meet()
    assert not ours.resumed and client.alert == 45
    assert not ends.tickets.refused, "not offered"


def test_other_trust_other_policy(ends: Ends, pki: Pki) -> None:
    other = make_authority(name="another CA")
    both = Trust((*pki.authority.trust.anchors, *other.trust.anchors))
    ends.change_server(resuming(replace(pki.server, trust=both)))
    check_refused(ends, Refusal.POLICY, pki)


def test_a_client_whose_ca_is_trusted_no_longer(pki: Pki) -> None:
    other = make_authority(name="another CA")
    both = Trust((*pki.authority.trust.anchors, *other.trust.anchors))
    ends = Ends(
        resuming(HandshakeConfig(issue(other, "stranger"), both)), resuming(replace(pki.server, trust=both))
    )
    assert ends.meet()[1].identity is not None
    ends.change_server(resuming(pki.server))
    _, server, _, theirs = ends.meet()
    assert not theirs.resumed and server.identity is None and server.alert == 48


def test_a_new_certificate_of_the_server(ends: Ends, pki: Pki) -> None:
    ends.change_server(resuming(HandshakeConfig(issue(pki.authority, "node-b"), pki.authority.trust)))
    check_refused(ends, Refusal.POLICY, pki)


def test_another_node_cannot_read_it(ends: Ends, pki: Pki) -> None:
    ends.server = TlsFactory(resuming(pki.server), ends.clock)
    check_refused(ends, Refusal.UNREADABLE, pki)


def test_another_cipher(ends: Ends, pki: Pki) -> None:
    ends.change_server(resuming(pki.server, ciphers=("chacha20",)))
    check_refused(ends, Refusal.CIPHER, pki)


def session_of(pki: Pki, tickets: ServerTickets, clock: Clock, **more: object) -> Session:
    values: dict[str, object] = {
        "secret": bytes(32),
        "cipher": 0x1301,
        "alpn": "stoq/1",
        "proved_at": clock(),
        "valid_until": clock() + DAY,
        "policy": tickets.policy,
        "chain": bytes(32),
        "node_id": pki.a.node_id,
        "subject": "node-a",
        "certificate_der": b"der",
    }
    return Session(**(values | more))  # type: ignore[arg-type]


def test_a_session_without_an_identity_is_never_one_of_stoq(pki: Pki) -> None:
    config = resuming(pki.server, alpns=("stoq/1", "hq-interop"), profile=Profile.TEST)
    clock = Clock()
    tickets = ServerTickets(config, clock)
    assert tickets.issue(session_of(pki, tickets, clock, node_id=b"")) is None
    # One of a protocol that asks for none is not taken for one that does.
    ticket = tickets.issue(session_of(pki, tickets, clock, node_id=b"", alpn="hq-interop"))
    assert ticket is not None
    assert tickets.redeem(ticket, "stoq/1", 0x1301) is None
    assert tickets.refused == {Refusal.PROTOCOL: 1}
    assert tickets.redeem(ticket, "hq-interop", 0x1301) is not None
    # Even sealed with our key.
    forged = tickets.keys.seal(msgspec.msgpack.encode(session_of(pki, tickets, clock, node_id=b"")))
    assert tickets.redeem(forged, "stoq/1", 0x1301) is None
    assert tickets.refused[Refusal.IDENTITY] == 1


def test_damaged_tickets(pki: Pki) -> None:
    clock = Clock()
    tickets = ServerTickets(resuming(pki.server), clock)
    ticket = tickets.issue(session_of(pki, tickets, clock))
    assert ticket is not None
    for at in range(0, len(ticket), 7):
        damaged = ticket[:at] + bytes([ticket[at] ^ 1]) + ticket[at + 1 :]
        assert tickets.redeem(damaged, "stoq/1", 0x1301) is None
        assert tickets.redeem(ticket[:at], "stoq/1", 0x1301) is None
    assert tickets.redeem(bytes(3000), "stoq/1", 0x1301) is None
    assert set(tickets.refused) == {Refusal.UNREADABLE}
    assert tickets.redeem(ticket, "stoq/1", 0x1301) is not None


def test_a_ticket_whose_secret_one_does_not_have(ends: Ends) -> None:
    """A stolen ticket is worth nothing without its PSK: the binder is wrong."""
    held = ends.client.shared.client_tickets
    assert held is not None
    stolen = held.take("::1", ("stoq/1",), (0x1301,))
    assert stolen is not None
    session = msgspec.structs.replace(stolen.session, secret=bytes(32))
    held.put("::1", ("stoq/1",), replace(stolen, session=session))
    _, server, _, theirs = ends.meet()
    assert server.alert == DECRYPT_ERROR and server.identity is None and not theirs.resumed
    assert ends.tickets.resumed == 0


def test_keys_change_and_the_last_but_one_is_forgotten() -> None:
    clock = Clock()
    keys = TicketKeys(100.0, clock)
    sealed = keys.seal(b"x")
    assert keys.open(sealed) == b"x"
    clock.now += 101
    assert keys.open(sealed) == b"x" and keys.seal(b"x")[:8] != sealed[:8]
    clock.now += 101
    assert keys.open(sealed) is None
    late = keys.seal(b"y")
    clock.now += 201
    assert keys.open(late) is None


def test_a_client_keeps_a_bounded_number_and_uses_each_once(pki: Pki) -> None:
    clock = Clock()
    tickets = ClientTickets(resuming(pki.client), clock)
    server = ServerTickets(resuming(pki.client), clock)

    def ticket(name: bytes) -> Ticket:
        return Ticket(name, 0, clock(), clock() + 60, session_of(pki, server, clock))

    for number in range(MAX_SERVERS + 10):
        for each in range(MAX_TICKETS_EACH + 2):
            tickets.put(f"node-{number}", ("stoq/1",), ticket(b"%d" % each))
    assert len(tickets) == MAX_SERVERS * MAX_TICKETS_EACH
    assert tickets.take("node-0", ("stoq/1",), (0x1301,)) is None
    name = f"node-{MAX_SERVERS}"
    assert tickets.take(name, ("perf",), (0x1301,)) is None
    taken = [tickets.take(name, ("stoq/1",), (0x1301,)) for _ in range(MAX_TICKETS_EACH + 1)]
    assert [t.ticket for t in taken if t] == [b"5", b"4", b"3", b"2"] and taken[-1] is None
    tickets.put(name, ("stoq/1",), replace(ticket(b"long"), ticket=bytes(3000)))
    assert tickets.take(name, ("stoq/1",), (0x1301,)) is None


def test_through_the_engine(pki: Pki) -> None:
    """Tickets travel in 1-RTT CRYPTO frames and the second connection is resumed."""
    client, server = TlsFactory(resuming(pki.client)), TlsFactory(resuming(pki.server))

    async def main(simulation: Simulation) -> list[bool]:
        seen = []
        for _ in range(3):
            ours = await simulation.client.connect(simulation.server_address, server_name="::1")
            theirs = await simulation.server.accept()
            await asyncio.sleep(1)  # Virtual: the ticket arrives.
            assert isinstance(theirs.handshake, TlsSession)
            assert theirs.identity is not None and theirs.identity.node_id == pki.a.node_id
            seen.append(theirs.handshake.resumed)
            ours.close()
            await asyncio.gather(ours.wait_closed(), theirs.wait_closed())
        return seen

    simulation = Simulation(1, client, server, client=Config(), server=Config(server=True))
    assert simulation.run(main) == [False, True, True]

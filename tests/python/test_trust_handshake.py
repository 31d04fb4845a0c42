"""TrustChain's verifier in the handshake, over ::1 through the datapath in C and in memory: who is refused, by either
side, with which alert and reason on both; what a revocation reaches; what changes while a node runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.ctlog.errors import NotFound, Unavailable
from control.ctlog.note import TreeHead
from control.ctlog.precert import embedded_scts
from control.handshake import Credentials, HandshakeConfig, ProcessFactory, Profile, TlsFactory
from control.handshake.tickets import Refusal
from control.trustchain.bundle import (
    InclusionMode,
    InclusionPolicy,
    PinRecord,
    RequiredRoles,
    StaleBundle,
    TrustBundle,
    revoke,
)
from control.trustchain.inclusion import InclusionChecker
from control.trustchain.pins import format_pin
from control.trustchain.roles import Role
from control.trustchain.verifier import TrustVerifier, revoked_since
from dataplane import ConfigError, ConnectionClosed, HandshakeFailed
from dataplane.handshake import Level
from tests.python.loopback import Loopback
from tests.python.test_datapath import Nodes, echo, over_loopback
from tests.python.test_resumption import Ends, resuming
from tests.trustchain.pki import DAY, HOUR, NOW, Log, World, issue, make_root

ALWAYS = InclusionPolicy(InclusionMode.ALWAYS)
STRANGE_PINS = (format_pin(bytes(32)), format_pin(bytes([1] * 32)))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def a(world: World) -> Credentials:
    return world.issue("node-a")


@pytest.fixture(scope="module")
def b(world: World) -> Credentials:
    return world.issue("node-b")


def config(credentials: Credentials, bundle: TrustBundle, **more: object) -> HandshakeConfig:
    return HandshakeConfig(credentials, verifier=TrustVerifier(bundle), **more)  # type: ignore[arg-type]


def revoked(world: World, bundle: TrustBundle, credentials: Credentials) -> TrustBundle:
    """The next generation, without these credentials."""
    pair = (credentials.certificate, world.intermediate.certificate)
    return revoke(bundle, [pair], reason="keyCompromise", at=NOW)


# ---- one for each reason, refused by either side ----

Case = Callable[[World], tuple[Credentials, TrustBundle]]


def mis_issued(world: World) -> tuple[Credentials, TrustBundle]:
    return issue(make_root("root"), "node-x", world.logs), world.bundle()


def expired(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", begins=NOW - 2 * DAY, ends=NOW - HOUR), world.bundle()


def not_yet_valid(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", begins=NOW + HOUR), world.bundle()


def wrong_purpose(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", usages=[ExtendedKeyUsageOID.CODE_SIGNING]), world.bundle()


def revoked_leaf(world: World) -> tuple[Credentials, TrustBundle]:
    made = world.issue("node-x")
    return made, revoked(world, world.bundle(), made)


def revoked_intermediate(world: World) -> tuple[Credentials, TrustBundle]:
    pair = (world.intermediate.certificate, world.root.certificate)
    return world.issue("node-x"), revoke(world.bundle(), [pair], reason="cACompromise", at=NOW)


def wrong_pin(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x"), world.bundle(pins={"node-x": PinRecord(STRANGE_PINS)})


def wrong_role(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x"), world.bundle(required_roles=RequiredRoles(("operator",), ("operator",)))


def un_logged(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", ()), world.bundle()


def unknown_log(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", [Log("elsewhere")]), world.bundle()


def damaged_sct(world: World) -> tuple[Credentials, TrustBundle]:
    sct, other = embedded_scts(world.issue("node-x").certificate)
    return world.issue("node-x", (), scts=[replace(sct, timestamp=sct.timestamp + 1), other]), world.bundle()


def sct_of_another(world: World) -> tuple[Credentials, TrustBundle]:
    scts = embedded_scts(world.issue("node-x").certificate)
    return world.issue("node-x", (), scts=scts), world.bundle()


def sct_from_the_future(world: World) -> tuple[Credentials, TrustBundle]:
    return world.issue("node-x", at=NOW + 2 * HOUR), world.bundle()


def retired_log(world: World) -> tuple[Credentials, TrustBundle]:
    log = Log("retired", ends=NOW - 2 * HOUR)
    return world.issue("node-x", [log]), world.bundle(logs=(log.record,))


CASES: list[tuple[Case, int, str]] = [
    (mis_issued, 48, "is not trusted here"),
    (expired, 45, "expired on"),
    (not_yet_valid, 45, "is not valid before"),
    (wrong_purpose, 43, "is not for use as"),
    (revoked_leaf, 44, "of node-x was revoked on"),
    (revoked_intermediate, 44, "rests on 'intermediate', which was revoked on"),
    (wrong_pin, 46, "the keys pinned for node-x are others"),
    (wrong_role, 49, "it has node, and needs operator"),
    (un_logged, 46, "has no SCT"),
    (unknown_log, 46, "which is not known here"),
    (damaged_sct, 42, "is not for this certificate"),
    (sct_of_another, 42, "is not for this certificate"),
    (sct_from_the_future, 46, "is from the future"),
    (retired_log, 46, "was not accepted"),
]


async def failure(nodes: Nodes, name: str | None = None) -> HandshakeFailed:
    """Of a connection that is refused: TLS 1.3 lets a client finish first."""
    with pytest.raises(HandshakeFailed) as error:
        connection = await nodes.client.connect(nodes.address, server_name=name)
        raise await connection.wait_closed()
    return error.value


async def refused(nodes: Nodes, alert: int, text: str, *, by_server: bool, name: str | None = None) -> None:
    """Both sides are told the same, and the one who refuses says that it did."""
    error = await failure(nodes, name)
    told = await nodes.failure()
    for one, remote in ((error, by_server), (told, not by_server)):
        assert (one.alert, one.remote) == (alert, remote), one
        assert text in one.reason, one
    assert error.reason == told.reason
    assert nodes.server.counters()["handshakes_completed"] == 0


@pytest.mark.parametrize("by_server", [True, False], ids=["server-refuses", "client-refuses"])
@pytest.mark.parametrize(("case", "alert", "text"), CASES, ids=[case.__name__ for case, _, _ in CASES])
def test_refused_with_its_alert_and_reason_on_both_sides(
    world: World, a: Credentials, case: Case, alert: int, text: str, by_server: bool
) -> None:
    bad, bundle = case(world)
    peer = config(bad, world.bundle())
    judge = config(a, bundle)

    async def main(nodes: Nodes) -> None:
        await refused(nodes, alert, text, by_server=by_server)

    over_loopback(*((peer, judge) if by_server else (judge, peer)), main)


def test_a_server_of_another_name(world: World, a: Credentials, b: Credentials) -> None:
    async def main(nodes: Nodes) -> None:
        await refused(nodes, 42, "not for node-c", by_server=False, name="node-c")

    over_loopback(config(a, world.bundle()), config(b, world.bundle()), main)


def test_a_backup_pin_and_the_roles_of_both(world: World, b: Credentials) -> None:
    a = world.issue("node-a", roles=[Role.OPERATOR, Role.AUDITOR])
    pins = {name: PinRecord((STRANGE_PINS[0], format_pin(one.node_id))) for name, one in (("node-a", a), ("node-b", b))}
    bundle = world.bundle(pins=pins, required_roles=RequiredRoles(("operator",), ("node", "service")))

    async def main(nodes: Nodes) -> None:
        async with await nodes.client.connect(nodes.address, server_name="node-b") as connection:
            server = await nodes.server.accept()
            assert connection.identity is not None and connection.identity.roles == ("node",)
            assert server.identity is not None and server.identity.roles == ("auditor", "operator")
            assert server.identity.node_id == a.node_id in server.identity.rests_on

    over_loopback(config(a, bundle), config(b, bundle), main)


# ---- remembered verdicts and tickets ----


def test_a_verdict_is_remembered_until_it_is_revoked(world: World, a: Credentials, b: Credentials) -> None:
    bundle = world.bundle()
    client, server = TlsFactory(config(a, bundle)), TlsFactory(config(b, bundle))
    judges = [factory.config.verifier for factory in (client, server)]
    assert isinstance(judges[0], TrustVerifier) and isinstance(judges[1], TrustVerifier)
    for _ in range(3):
        pair = Loopback(client, server).run()
        assert pair.client.identity is not None and pair.server.identity is not None
    assert [judge.verified for judge in judges if isinstance(judge, TrustVerifier)] == [1, 1]

    # Another's certificate is revoked: what is remembered stays.
    other = revoked(world, bundle, world.issue("node-c"))
    assert server.update_trust(other.encode()) == 0
    assert Loopback(client, server).run().server.identity is not None
    assert judges[1].verified == 1

    mine = revoked(world, other, a)
    assert server.update_trust(mine.encode()) == 1 and len(server.verdicts) == 0
    pair = Loopback(client, server).run()
    assert pair.server.alert == 44 and pair.server.identity is None
    with pytest.raises(StaleBundle):
        server.update_trust(bundle.encode())
    assert Loopback(client, server).run().server.alert == 44


def test_a_verdict_does_not_outlive_a_revocation_without_a_sweep(world: World, a: Credentials, b: Credentials) -> None:
    bundle = world.bundle()
    client, server = TlsFactory(config(a, bundle)), TlsFactory(config(b, bundle))
    assert Loopback(client, server).run().server.identity is not None
    verifier = server.config.verifier
    assert verifier is not None and len(server.verdicts) == 1
    verifier.update(revoked(world, bundle, a).encode())
    assert Loopback(client, server).run().server.alert == 44
    assert len(server.verdicts) == 0


def ends(world: World, a: Credentials, b: Credentials, **more: object) -> Ends:
    bundle = world.bundle(**more)
    made = Ends(resuming(config(a, bundle)), resuming(config(b, bundle)))
    made.meet()
    assert made.tickets.issued == 1
    return made


def test_a_resumed_session_keeps_its_roles(world: World, b: Credentials) -> None:
    both = ends(world, world.issue("node-a", roles=[Role.OPERATOR, Role.AUDITOR]), b)
    for _ in range(2):
        client, server, ours, theirs = both.meet()
        assert ours.resumed and theirs.resumed
        assert server.identity is not None and server.identity.roles == ("auditor", "operator")
        assert client.identity is not None and client.identity.roles == ("node",)
        assert len(server.identity.rests_on) == 5


def test_a_server_resumes_no_session_of_a_client_revoked_since(world: World, a: Credentials, b: Credentials) -> None:
    both = ends(world, a, b)
    both.server.update_trust(revoked(world, world.bundle(), a).encode())
    _, server, _, theirs = both.meet()
    assert not theirs.resumed and server.identity is None and server.alert == 44
    assert both.tickets.refused == {Refusal.TRUST: 1} and both.tickets.resumed == 0


def test_a_client_resumes_no_session_of_a_server_revoked_since(world: World, a: Credentials, b: Credentials) -> None:
    both = ends(world, a, b)
    both.client.update_trust(revoked(world, world.bundle(), b).encode())
    client, _, ours, _ = both.meet()
    assert not ours.resumed and client.identity is None and client.alert == 44
    assert not both.tickets.refused, "not offered"


def test_an_intermediate_revoked_since(world: World, a: Credentials, b: Credentials) -> None:
    both = ends(world, a, b)
    pair = (world.intermediate.certificate, world.root.certificate)
    both.server.update_trust(revoke(world.bundle(), [pair], reason="cACompromise", at=NOW).encode())
    assert both.meet()[1].alert == 44
    assert both.tickets.refused == {Refusal.TRUST: 1}


def test_revoked_in_the_middle_of_a_resumption(world: World, a: Credentials, b: Credentials) -> None:
    """The server has taken the ticket and sent its flight; the client's Finished is not in yet."""
    both = ends(world, a, b)
    calls: list[Level] = []

    def tamper(level: Level, data: bytes) -> bytes:
        if not calls:
            both.server.update_trust(revoked(world, world.bundle(), a).encode())
        calls.append(level)
        return data

    _, server, _, _ = both.meet(tamper_back=tamper)
    assert both.tickets.resumed == 1, "it was taken"
    assert server.alert == 44 and server.identity is None and server.alpn is None


def test_other_rules_ask_for_a_full_handshake(world: World, a: Credentials, b: Credentials) -> None:
    both = ends(world, a, b)
    both.server.update_trust(world.bundle(generation=2, scts_required=2).encode())
    _, server, _, theirs = both.meet()
    assert not theirs.resumed and server.identity is not None
    assert both.tickets.refused == {Refusal.TRUST: 1}
    assert both.meet()[3].resumed


@pytest.mark.parametrize("hard", [True, False])
def test_a_bundle_past_its_time(world: World, a: Credentials, b: Credentials, hard: bool) -> None:
    both = ends(world, a, b, valid_until=NOW + HOUR, hard_stale=hard)
    both.client.update_trust(world.bundle(generation=2).encode())
    both.clock.now += 3601
    _, server, _, _ = both.meet()
    verifier = both.server.config.verifier
    assert isinstance(verifier, TrustVerifier) and verifier.stale(both.server.shared.now())
    if hard:
        assert server.alert == 46 and server.failure is not None and "newer trust bundle" in server.failure[1]
        both.server.update_trust(world.bundle(generation=2).encode())
        assert both.meet()[1].identity is not None
    else:
        assert server.identity is not None


def test_a_bundle_past_its_time_is_no_matter_where_no_certificate_is_asked_for(world: World, b: Credentials) -> None:
    stale = world.bundle(valid_until=NOW - HOUR / 2)
    server = config(b, stale, alpns=("hq-interop",), profile=Profile.TEST, resumption=True)
    client = HandshakeConfig(
        verifier=TrustVerifier(world.bundle()), alpns=("hq-interop",), profile=Profile.TEST, resumption=True
    )
    both = Ends(client, server)
    for resumed in (False, True):
        ours, theirs, session, _ = both.meet()
        assert ours.identity is not None and theirs.alpn == "hq-interop" and theirs.identity is None
        assert session.resumed == resumed


def test_trust_that_is_a_list_of_authorities_cannot_be_updated(world: World, a: Credentials) -> None:
    with pytest.raises(ConfigError, match="a fixed list"):
        TlsFactory(HandshakeConfig(a, world.trust)).update_trust(world.bundle().encode())


# ---- what changes while a node runs ----


def test_a_renewed_certificate_loses_no_connection_and_no_handshake(world: World, a: Credentials) -> None:
    """The handshake under way finishes with the old certificate, the next has the new one, and the connection from
    before goes on."""
    old = world.issue("node-b")
    server_config = config(old, world.bundle(), resumption=True)
    factory = TlsFactory(server_config)
    new = world.issue("node-b")

    pending = Loopback(config(a, world.bundle()), factory)
    factory.replace(replace(server_config, credentials=new))
    pending.run()
    assert pending.client.identity is not None and pending.client.identity.node_id == old.node_id
    assert pending.server.alpn == "stoq/1"
    after = Loopback(config(a, world.bundle()), factory).run()
    assert after.client.identity is not None and after.client.identity.node_id == new.node_id
    assert len(factory.verdicts) == 1, "the same client, verified once"

    async def main(nodes: Nodes) -> None:
        connection = await nodes.client.connect(nodes.address)
        server = await nodes.server.accept()
        again = world.issue("node-b")
        factory.replace(replace(server_config, credentials=again))
        async with await nodes.client.connect(nodes.address) as second:
            assert second.identity is not None and second.identity.node_id == again.node_id
        async with connection, await connection.open_stream() as stream:
            stream.write(b"still here")
            stream.write_eof()
            async with await server.accept_stream() as other:
                assert await other.read_all() == b"still here"
            assert connection.identity is not None and connection.identity.node_id == new.node_id

    over_loopback(config(a, world.bundle()), server_config, main, handshakes=factory)


def test_tickets_survive_a_renewal_with_the_same_key(world: World, a: Credentials, b: Credentials) -> None:
    both = ends(world, a, b)
    renewed = world.issue("node-b", key=b.key)
    both.server.replace(replace(both.server.config, credentials=renewed))
    both.client.replace(replace(both.client.config, credentials=world.issue("node-a", key=a.key)))
    client, _, ours, theirs = both.meet()
    assert ours.resumed and theirs.resumed and client.identity is not None
    both.server.replace(replace(both.server.config, credentials=world.issue("node-b")))
    assert not both.meet()[3].resumed
    assert both.tickets.refused == {Refusal.POLICY: 1}


def test_whose_connections_to_close(world: World, a: Credentials, b: Credentials) -> None:
    bundle = world.bundle()

    async def main(nodes: Nodes) -> None:
        connection = await nodes.client.connect(nodes.address)
        server = await nodes.server.accept()
        verifier = judge.verifier
        assert isinstance(verifier, TrustVerifier)
        verifier.update(world.bundle(generation=2, scts_required=2).encode())
        assert not revoked_since(verifier, [server.identity, None], NOW), "other rules close nothing"
        verifier.update(revoked(world, verifier.bundle, a).encode())
        [(identity, abort)] = revoked_since(verifier, [server.identity, None], NOW)
        assert identity is server.identity
        server.close(abort.code, abort.reason, application=False)
        error = await connection.wait_closed()
        assert isinstance(error, ConnectionClosed) and error.name == "TLS alert certificate_revoked (44)"
        assert "was revoked on" in error.reason

    judge = config(b, bundle)
    over_loopback(config(a, bundle), judge, main)


# ---- inclusion proofs ----


class Reader:
    """Reads the logs of a world, when it may."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = {log.log_id: log for log in logs}
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = 0
        self.heads = 0
        self.error: Exception | None = None
        self.spoil = False

    async def get_sth(self, log_id: bytes) -> TreeHead:
        self.heads += 1
        if self.error is not None:
            raise self.error
        return self._logs[log_id].head()

    async def get_proof_by_hash(self, log_id: bytes, leaf_hash: bytes, size: int) -> tuple[int, Sequence[bytes]]:
        self.asked += 1
        await self.may_answer.wait()
        index, hashes = self._logs[log_id].proof(leaf_hash, size)
        return index, [*hashes[:-1], bytes(32)] if self.spoil else hashes


def demanding(
    credentials: Credentials, reader: Reader, bundle: TrustBundle, *, timeout: float = 5.0, draw: float = 0.0
) -> HandshakeConfig:
    checker = InclusionChecker(reader, time.time, timeout=timeout)
    return HandshakeConfig(credentials, verifier=TrustVerifier(bundle, checker=checker, draw=lambda: draw))


@pytest.mark.parametrize("by_server", [True, False], ids=["server-asks", "client-asks"])
def test_nobody_is_let_in_before_the_proof(world: World, a: Credentials, b: Credentials, by_server: bool) -> None:
    async def main(nodes: Nodes) -> None:
        reader.may_answer.clear()
        connecting = asyncio.ensure_future(nodes.client.connect(nodes.address))
        accepting = asyncio.ensure_future(nodes.server.accept())
        while not reader.asked:
            await asyncio.sleep(0.001)
        done, _ = await asyncio.wait([connecting, accepting], timeout=0.05)
        assert done <= ({connecting} if by_server else set())  # A client finishes first.
        reader.may_answer.set()
        connection = await connecting
        await accepting
        connection.close()
        await echo(nodes)
        assert (reader.asked, reader.heads) == (1, 1), "once for each peer"

    reader = Reader(world.logs)
    judge = demanding(a, reader, world.bundle(inclusion=ALWAYS))
    peer = config(b, world.bundle())
    over_loopback(*((peer, judge) if by_server else (judge, peer)), main)


@pytest.mark.parametrize("by_server", [True, False], ids=["server-asks", "client-asks"])
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("spoil", "does not prove that it has the certificate"),
        ("missing", "does not have the certificate though it gave an SCT"),
        ("unavailable", "no log proves in time"),
        ("silent", "no answer within"),
    ],
)
def test_without_a_proof_both_sides_hear_why(
    world: World, a: Credentials, b: Credentials, fault: str, text: str, by_server: bool
) -> None:
    async def main(nodes: Nodes) -> None:
        if fault == "silent":
            reader.may_answer.clear()
        await refused(nodes, 46, text, by_server=by_server)

    reader = Reader(world.logs)
    reader.spoil = fault == "spoil"
    reader.error = {"missing": NotFound("no such leaf"), "unavailable": Unavailable("is down")}.get(fault)
    judge = demanding(a, reader, world.bundle(inclusion=ALWAYS), timeout=0.05 if fault == "silent" else 5.0)
    peer = config(b, world.bundle())
    over_loopback(*((peer, judge) if by_server else (judge, peer)), main)


def test_soft_passes_over_a_log_that_is_down_and_not_over_a_wrong_proof(
    world: World, a: Credentials, b: Credentials
) -> None:
    soft = world.bundle(inclusion=InclusionPolicy(InclusionMode.ALWAYS, hard=False))

    async def let_in(nodes: Nodes) -> None:
        await echo(nodes)

    async def refuse(nodes: Nodes) -> None:
        await refused(nodes, 46, "does not prove", by_server=True)

    reader = Reader(world.logs)
    reader.error = Unavailable("is down")
    over_loopback(config(b, world.bundle()), demanding(a, reader, soft), let_in)
    reader = Reader(world.logs)
    reader.spoil = True
    over_loopback(config(b, world.bundle()), demanding(a, reader, soft), refuse)


def test_a_sample(world: World, a: Credentials, b: Credentials) -> None:
    sampled = world.bundle(inclusion=InclusionPolicy(InclusionMode.SAMPLED, 0.25))
    for draw, asked in ((0.2, 1), (0.25, 0)):
        reader = Reader(world.logs)
        over_loopback(config(b, world.bundle()), demanding(a, reader, sampled, draw=draw), echo)
        assert reader.asked == asked


@pytest.mark.parametrize("make", [TlsFactory, lambda judge: ProcessFactory(judge, 1)], ids=["here", "processes"])
def test_revoked_while_the_proof_was_fetched(
    world: World, a: Credentials, b: Credentials, make: Callable[[HandshakeConfig], TlsFactory | ProcessFactory]
) -> None:
    bundle = world.bundle(inclusion=ALWAYS)

    async def main(nodes: Nodes) -> None:
        reader.may_answer.clear()
        connecting = asyncio.ensure_future(nodes.client.connect(nodes.address))
        while not reader.asked:
            await asyncio.sleep(0.001)
        factory.update_trust(revoked(world, bundle, b).encode())
        reader.may_answer.set()
        told = await nodes.failure()
        assert told.alert == 44 and not told.remote
        with contextlib.suppress(HandshakeFailed):
            await connecting

    reader = Reader(world.logs)
    judge = demanding(a, reader, bundle)
    factory = make(judge)
    over_loopback(config(b, world.bundle()), judge, main, handshakes=factory)


def test_a_client_that_goes_while_its_proof_is_fetched(world: World, a: Credentials, b: Credentials) -> None:
    async def main(nodes: Nodes) -> None:
        reader.may_answer.clear()
        connection = await nodes.client.connect(nodes.address)
        while not reader.asked:
            await asyncio.sleep(0.001)
        connection.close()
        while nodes.server.connections or nodes.client.connections:
            await asyncio.sleep(0.005)
        reader.may_answer.set()
        await echo(nodes)

    reader = Reader(world.logs)
    over_loopback(config(b, world.bundle()), demanding(a, reader, world.bundle(inclusion=ALWAYS)), main)


# ---- handshake processes ----


@pytest.mark.parametrize(("case", "alert", "text"), [CASES[0], CASES[4], CASES[7], CASES[8]])
def test_processes_refuse_alike(world: World, a: Credentials, case: Case, alert: int, text: str) -> None:
    bad, bundle = case(world)
    judge = config(a, bundle)

    async def main(nodes: Nodes) -> None:
        await refused(nodes, alert, text, by_server=True)

    over_loopback(config(bad, world.bundle()), judge, main, handshakes=ProcessFactory(judge, 1))


def test_processes_hear_of_new_trust_and_new_certificates(
    world: World, a: Credentials, b: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = world.bundle()
    server = config(b, bundle, resumption=True)
    client = config(a, bundle, resumption=True)
    factory = ProcessFactory(server, 2)

    async def main(nodes: Nodes) -> None:
        kept = await nodes.client.connect(nodes.address)
        accepted = await nodes.server.accept()
        assert accepted.identity is not None and accepted.identity.roles == ("node",)
        assert len(accepted.identity.rests_on) == 5
        renewed = world.issue("node-b")
        factory.replace(replace(server, credentials=renewed))
        for _ in range(4):
            async with await nodes.client.connect(nodes.address) as connection:
                assert connection.identity is not None and connection.identity.node_id == renewed.node_id
        async with await kept.open_stream() as stream:  # The connection of the old certificate goes on.
            stream.write_eof()
            await stream.wait_acknowledged()
        before = nodes.server.handshakes["completed"]
        factory.update_trust(revoked(world, bundle, a).encode())
        monkeypatch.setattr(factory, "admit", lambda complete: None)  # The processes know by themselves.
        for _ in range(4):
            error = await failure(nodes)
            assert error.alert == 44 and error.remote
        assert nodes.server.handshakes["completed"] == before
        kept.close()

    over_loopback(client, server, main, handshakes=factory)


def test_a_process_that_has_not_heard_yet_lets_nobody_in(world: World, a: Credentials, b: Credentials) -> None:
    bundle = world.bundle()
    server = config(b, bundle)
    factory = ProcessFactory(server, 1)

    async def main(nodes: Nodes) -> None:
        assert server.verifier is not None
        server.verifier.update(revoked(world, bundle, a).encode())  # Here alone.
        await refused(nodes, 44, "was revoked on", by_server=True)
        assert nodes.server.handshakes["pending"] == 0 and nodes.server.handshakes["failed"] == 1

    over_loopback(config(a, bundle), server, main, handshakes=factory)


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_process_started_again_has_the_newest_trust(
    world: World, a: Credentials, b: Credentials, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("control.handshake.processes.RESTART_SECONDS", 0.01)
    bundle = world.bundle()
    server = config(b, bundle)
    factory = ProcessFactory(server, 1)

    async def main(nodes: Nodes) -> None:
        state = revoked(world, bundle, a).encode()
        if moment == "before":
            factory.update_trust(state)
        [process] = factory._processes
        process._child.kill()
        if moment == "meanwhile":
            while not any(one.attached and one.pid != process.pid for one in factory._ended):
                await asyncio.sleep(0.001)
            factory.update_trust(state)
        while nodes.server.handshakes["restarts"] == 0:
            await asyncio.sleep(0.005)
        monkeypatch.setattr(factory, "admit", lambda complete: None)  # The process knows by itself.
        await refused(nodes, 44, "was revoked on", by_server=True)
        assert nodes.server.handshakes["failed"] == 1

    over_loopback(config(a, bundle), server, main, handshakes=factory)


@pytest.mark.parametrize("spoil", [False, True])
def test_the_node_fetches_proofs_for_its_processes(world: World, a: Credentials, b: Credentials, spoil: bool) -> None:
    reader = Reader(world.logs)
    reader.spoil = spoil
    server = demanding(b, reader, world.bundle(inclusion=ALWAYS))

    async def main(nodes: Nodes) -> None:
        if spoil:
            await refused(nodes, 46, "does not prove", by_server=True)
            assert nodes.server.handshakes["pending"] == 0
            return
        reader.may_answer.clear()
        accepting = asyncio.ensure_future(nodes.server.accept())
        connecting = asyncio.ensure_future(nodes.client.connect(nodes.address))
        while not reader.asked:
            await asyncio.sleep(0.001)
        done, _ = await asyncio.wait([accepting], timeout=0.05)
        assert not done and nodes.server.handshakes["pending"] == 1
        reader.may_answer.set()
        connection = await connecting
        await accepting
        connection.close()
        await echo(nodes)
        assert reader.asked == 1 and nodes.server.handshakes["completed"] == 2

    over_loopback(config(a, world.bundle()), server, main, handshakes=ProcessFactory(server, 1))


def test_a_bundle_of_many_revocations_reaches_a_process(world: World, a: Credentials, b: Credentials) -> None:
    made = revoked(world, world.bundle(), world.issue("node-c"))
    many = tuple(msgspec.structs.replace(made.revocations[0], serial=f"{number:x}") for number in range(20_000))
    bundle = msgspec.structs.replace(made, revocations=many)
    server = config(b, bundle)
    over_loopback(config(a, world.bundle()), server, echo, handshakes=ProcessFactory(server, 1))

"""Handshakes in processes of their own: who makes them, what is refused, and what becomes of it when one is
killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from control.handshake import HandshakeConfig, ProcessFactory, Profile, TlsFactory, exchange, processes
from control.handshake.alerts import Alert
from dataplane import DatapathError, HandshakeFailed
from dataplane.address import Address
from dataplane.handshake import Level, Target
from dataplane.tables import TransportError
from tests.python.conftest import Pki
from tests.python.loopback import CLIENT_PARAMS, SERVER_PARAMS, RecordingSink
from tests.python.test_datapath import Nodes, echo, over_loopback, refused_connect
from tests.python.test_refusals import ALERTS, Case

TARGET = Target(Address("::1", 9292), "::1")
PEER = Address("::1", 1)


@pytest.fixture
def factory(pki: Pki) -> Iterator[ProcessFactory]:
    """Two processes with node b's configuration."""
    made = ProcessFactory(pki.server, 2)
    yield made
    made.close()


def gone(pid: int) -> bool:
    """Has a process ended, and been waited for?"""
    return not Path(f"/proc/{pid}").exists()


def test_a_stream_there_and_back_and_nobody_stays(pki: Pki, factory: ProcessFactory) -> None:
    pids = factory.pids

    async def main(nodes: Nodes) -> None:
        await echo(nodes)
        assert nodes.server.handshakes == {
            "processes": 2,
            "pending": 0,
            "completed": 1,
            "resumed": 0,
            "failed": 0,
            "refused_busy": 0,
            "restarts": 0,
        }
        assert not any(gone(pid) for pid in pids)

    over_loopback(pki.client, pki.server, main, handshakes=factory)
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


@pytest.mark.parametrize(("case", "alert"), ALERTS, ids=[case.__name__ for case, _ in ALERTS])
def test_refusals_are_those_of_one_process(pki: Pki, case: Case, alert: int) -> None:
    client, server, name, text, by_server = case(pki)

    async def main(nodes: Nodes) -> None:
        errors = await refused_connect(nodes), await nodes.failure()
        for error, remote in zip(errors, (by_server, not by_server), strict=True):
            assert (error.alert, error.alert_name, error.remote) == (alert, name, remote), error
            assert text in error.reason
        while nodes.server.handshakes["pending"]:
            await asyncio.sleep(0.005)
        assert nodes.server.handshakes["completed"] == 0

    over_loopback(client, server, main, handshakes=ProcessFactory(server, 1))


def test_both_processes_work_and_sessions_are_resumed_in_either(pki: Pki) -> None:
    client, server = (replace(config, resumption=True) for config in (pki.client, pki.server))
    by: set[int] = set()

    class Watched(ProcessFactory):
        def server(self, sink, peer):  # type: ignore[no-untyped-def]
            remote = super().server(sink, peer)
            by.add(remote._owner.pid)  # type: ignore[attr-defined]
            return remote

    async def main(nodes: Nodes) -> None:
        for _ in range(4):
            connections = await asyncio.gather(*(nodes.client.connect(nodes.address) for _ in range(4)))
            identities = {(await nodes.server.accept()).identity for _ in connections}
            assert {identity.node_id for identity in identities if identity} == {pki.a.node_id}
            while len(nodes.server.connections) < 4:
                await asyncio.sleep(0)
            async with connections[0], await connections[0].open_stream() as stream:
                stream.write_eof()  # Once this is acknowledged the tickets before it have come.
                await stream.wait_acknowledged()
            for connection in connections:
                connection.close()
        assert nodes.server.handshakes["completed"] == 16
        assert nodes.server.handshakes["resumed"] >= 4

    factory = Watched(server, 2)
    pids = set(factory.pids)
    over_loopback(client, server, main, handshakes=factory)
    assert by == pids


def test_a_killed_process_is_replaced(
    pki: Pki, factory: ProcessFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RESTART_SECONDS", 0.01)
    pids = factory.pids

    async def main(nodes: Nodes) -> None:
        os.kill(pids[0], signal.SIGKILL)
        while nodes.server.handshakes["restarts"] == 0:
            await asyncio.sleep(0.005)
        assert nodes.server.handshakes["processes"] == 2 and pids[0] not in factory.pids
        for _ in range(4):
            await echo(nodes)
        assert nodes.server.handshakes["completed"] == 4

    over_loopback(pki.client, pki.server, main, handshakes=factory)
    assert gone(pids[0])


def test_without_a_process_the_node_makes_its_handshakes_itself(
    pki: Pki, factory: ProcessFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RESTART_SECONDS", 3600.0)

    async def main(nodes: Nodes) -> None:
        for pid in factory.pids:
            os.kill(pid, signal.SIGKILL)
        while nodes.server.handshakes["processes"]:
            await asyncio.sleep(0.005)
        await echo(nodes)
        assert nodes.server.handshakes["completed"] == 0

    over_loopback(pki.client, pki.server, main, handshakes=factory)


def test_too_many_at_once_are_refused(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_PENDING", 0)

    async def main(nodes: Nodes) -> None:
        with pytest.raises(HandshakeFailed, match="try again") as refused:
            await nodes.client.connect(nodes.address)
        assert refused.value.code == TransportError.CONNECTION_REFUSED and refused.value.remote
        assert nodes.server.handshakes["refused_busy"] == 1

    over_loopback(pki.client, pki.server, main, handshakes=ProcessFactory(pki.server, 1))


def test_new_ticket_keys_reach_every_process(pki: Pki) -> None:
    """A session of a ticket that one process sealed with a key made since the start is resumed by any."""
    client, server = (
        replace(config, resumption=True, ticket_lifetime=3600.0) for config in (pki.client, pki.server)
    )
    now = [time.time()]
    factory = ProcessFactory(server, 2, clock=lambda: now[0])

    async def main(nodes: Nodes) -> None:
        for _ in range(2):
            now[0] += 3601  # The node's clock alone: its keys change with each turn.
            for _ in range(4):
                connection = await nodes.client.connect(nodes.address)
                async with connection, await connection.open_stream() as stream:
                    stream.write_eof()
                    await stream.wait_acknowledged()
        # All but the first of each turn: the one before's key still opens its first too.
        assert nodes.server.handshakes["completed"] == 8
        assert nodes.server.handshakes["resumed"] == 7

    over_loopback(client, server, main, handshakes=factory)


# ---- without the engine ----


class Meeting:
    """A client in this process and a server in another."""

    def __init__(self, client: HandshakeConfig, factory: ProcessFactory) -> None:
        self.client, self.server = RecordingSink(), RecordingSink()
        self.ours = TlsFactory(client).client(self.client, TARGET)
        self.theirs = factory.server(self.server, PEER)

    async def run(self) -> None:
        """Until both are done."""
        self.theirs.start(SERVER_PARAMS)
        self.ours.start(CLIENT_PARAMS)
        while not (self.server.alpn or self.server.failure):
            while self.client.outgoing:
                self.theirs.receive(*self.client.outgoing.popleft())
            while self.server.outgoing:
                self.ours.receive(*self.server.outgoing.popleft())
            await asyncio.sleep(0.001)


def test_calls_come_in_their_order_with_secrets_that_fit(pki: Pki, factory: ProcessFactory) -> None:
    logged: list[tuple[bytes, str, bytes]] = []
    config = replace(pki.server, key_log=lambda *entry: logged.append(entry))

    async def main(factory: ProcessFactory) -> None:
        await factory.open()
        meeting = Meeting(pki.client, factory)
        await meeting.run()
        client, server = meeting.client, meeting.server
        assert server.alpn == "stoq/1" and server.params == CLIENT_PARAMS and client.params == SERVER_PARAMS
        assert server.identity is not None and server.identity.node_id == pki.a.node_id
        flipped = {(level, not send): secret for (level, send), secret in server.secrets.items()}
        assert client.secrets == flipped
        assert server.calls.index("params") < server.calls.index("secret ONE_RTT send")
        assert server.calls[-1] == "complete"
        # RFC 9001 section 6: a TLS KeyUpdate, or anything else, is not for QUIC.
        meeting.theirs.receive(Level.ONE_RTT, b"\x18\0\0\x01\0")
        assert server.alert == Alert.UNEXPECTED_MESSAGE

    made = ProcessFactory(config, 1)
    with contextlib.closing(made):
        asyncio.run(main(made))
    assert {label for _, label, _ in logged} == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    }


def test_a_process_that_dies_fails_its_handshakes_once(pki: Pki) -> None:
    async def main(factory: ProcessFactory) -> None:
        await factory.open()
        meeting = Meeting(pki.client, factory)
        meeting.theirs.start(SERVER_PARAMS)
        ended = factory.server(RecordingSink(), PEER)
        ended.start(SERVER_PARAMS)
        ended.end()
        os.kill(factory.pids[0], signal.SIGKILL)
        while meeting.server.failure is None:
            await asyncio.sleep(0.005)
        assert meeting.server.alert == Alert.INTERNAL_ERROR
        meeting.theirs.receive(Level.INITIAL, b"late")
        meeting.theirs.end()

    made = ProcessFactory(pki.server, 1)
    with contextlib.closing(made):
        asyncio.run(main(made))


def test_a_handshake_that_is_ended_is_forgotten(pki: Pki, factory: ProcessFactory) -> None:
    async def main() -> None:
        await factory.open()
        for _ in range(8):
            handshake = factory.server(sink := RecordingSink(), PEER)
            handshake.start(SERVER_PARAMS)
            handshake.receive(Level.INITIAL, b"\x01\0")  # A ClientHello's beginning.
            assert factory.report()["pending"] == 1
            handshake.end()
            assert factory.report()["pending"] == 0 and not sink.calls

    asyncio.run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_processes_give_up_their_privileges(pki: Pki) -> None:
    nobody = pwd.getpwnam("nobody")

    async def main(factory: ProcessFactory) -> None:
        await factory.open()
        lines = Path(f"/proc/{factory.pids[0]}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"] == [str(nobody.pw_uid)] * 4
        assert status["Groups"] == [] and status["NoNewPrivs"] == ["1"]
        assert int(status["CapPrm"][0], 16) == int(status["CapEff"][0], 16) == 0
        meeting = Meeting(pki.client, factory)
        await meeting.run()
        assert meeting.server.alpn == "stoq/1"

    made = ProcessFactory(pki.server, 1, user="nobody", drop=True)
    with contextlib.closing(made):
        asyncio.run(main(made))


def test_one_that_cannot_begin_is_told(pki: Pki) -> None:
    made = ProcessFactory(pki.server, 1, user="no-such-user", drop=True)
    with contextlib.closing(made), pytest.raises(DatapathError, match="before it was ready"):
        asyncio.run(made.open())


# ---- frames ----


def test_frames_come_together_from_any_pieces() -> None:
    requests: list[exchange.Request] = [
        exchange.Start(7, b"params"),
        exchange.Receive(7, 0, bytes(1000)),
        exchange.Forget(7),
    ]
    stream = b"".join(exchange.frame(request) for request in requests)
    for size in (1, 3, 7, len(stream)):
        frames = exchange.Frames(exchange.Request)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [request for piece in pieces for request in frames.feed(piece)] == requests


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\1\0\0\0\xc1", b"\3\0\0\0\x92\t\x90"])
def test_a_frame_that_is_none(data: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        list(exchange.Frames(exchange.Request).feed(data))


def test_a_configuration_there_and_back(pki: Pki) -> None:
    config = replace(
        pki.server, alpns=("stoq/1", "perf"), profile=Profile.TEST, ciphers=("aes256",), resumption=True
    )
    sent = exchange.setup(config, user="stoq", drop=True)
    [got] = exchange.Frames(exchange.Request).feed(exchange.frame(sent))
    assert got == sent
    back = exchange.config_of(got, None)
    assert back.credentials is not None and back.credentials.node_id == pki.b.node_id
    assert back.trust is not None and back.trust.anchors == (pki.authority.root,)
    assert (back.alpns, back.profile, back.ciphers, back.resumption) == (
        config.alpns,
        config.profile,
        config.ciphers,
        True,
    )

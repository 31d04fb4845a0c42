"""The datapath over real sockets on ::1: connects, refuses, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, Profile, TlsFactory
from dataplane import (
    Address,
    AddressError,
    Config,
    ConfigError,
    ConnectionClosed,
    Datapath,
    DatapathError,
    HandshakeFailed,
)
from dataplane.handshake import HandshakeFactory
from tests.python.conftest import Pki

ANY = Address("::1", 0)
PATIENCE = 20.0  # Seconds; a real network's time, so generous.


@dataclass
class Nodes:
    """A server on ::1 and a client; `failures` are the handshakes the server refused."""

    client: Datapath
    server: Datapath
    failures: list[HandshakeFailed] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.server.local_address

    async def failure(self) -> HandshakeFailed:
        while not self.failures:
            await asyncio.sleep(0.005)
        return self.failures[0]


def over_loopback(
    client: HandshakeConfig,
    server: HandshakeConfig,
    main: Callable[[Nodes], Awaitable[None]],
    *,
    backend: str = "io_uring",
    cores: tuple[int, ...] = (-1,),
    handshakes: HandshakeFactory | None = None,
    **server_config: int | bool | float,
) -> None:
    """Run `main` between two datapaths of this process; `handshakes`: the server's, where it is a special
    one."""

    async def both() -> None:
        failures: list[HandshakeFailed] = []
        config = replace(Config(server=True, bind=ANY, backend=backend, cores=cores), **server_config)  # type: ignore[arg-type]
        tls = handshakes or TlsFactory(server)
        listener = Datapath(config, tls, on_failure=lambda peer, error: failures.append(error))
        async with (
            asyncio.timeout(PATIENCE),
            listener,
            Datapath(Config(backend=backend), TlsFactory(client)) as node,
        ):
            await main(Nodes(node, listener, failures))

    asyncio.run(both())


async def echo(nodes: Nodes) -> None:
    """One stream there and back."""
    async with await nodes.client.connect(nodes.address) as connection:
        server = await nodes.server.accept()
        async with await connection.open_stream() as stream:
            stream.write(bytes(300_000))
            stream.write_eof()
            async with await server.accept_stream() as other:
                other.write(await other.read_all())
                other.write_eof()
                assert await stream.read_all() == bytes(300_000)


@pytest.mark.parametrize("backend", ["io_uring", "socket"])
def test_a_stream_there_and_back(pki: Pki, backend: str) -> None:
    over_loopback(pki.client, pki.server, echo, backend=backend)


def test_retry_validates_the_address_first(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        await echo(nodes)
        assert nodes.server.counters()["retries_sent"] == 1

    over_loopback(pki.client, pki.server, main, retry_always=True)


def test_a_token_spares_the_next_retry(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        async with await nodes.client.connect(nodes.address):
            while not len(nodes.client._tokens):
                await asyncio.sleep(0.005)
        async with await nodes.client.connect(nodes.address):
            assert nodes.server.counters()["retries_sent"] == 1

    over_loopback(pki.client, pki.server, main, retry_always=True)


def test_several_workers_share_the_port(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        connections = await asyncio.gather(*(nodes.client.connect(nodes.address) for _ in range(24)))
        servers = [await nodes.server.accept() for _ in connections]
        assert len({server.port.worker for server in servers}) > 1, "the kernel spreads clients by port"
        for connection in connections:
            async with await connection.open_stream() as stream:
                stream.write(b"ping")
        for server in servers:
            assert await (await server.accept_stream()).read_all() == b"ping"

    # Clients with several workers have several ports, which the server's kernel spreads.
    async def many(nodes: Nodes) -> None:
        config = Config(cores=(-1,) * 8)
        async with Datapath(config, TlsFactory(pki.client)) as client:
            await main(Nodes(client, nodes.server))

    over_loopback(pki.client, pki.server, many, cores=(-1, -1))


def expect(error: HandshakeFailed, alert: str, text: str, *, remote: bool) -> None:
    assert (error.alert_name, error.remote) == (alert, remote), error
    assert text in str(error) and alert in str(error)


async def refused_connect(nodes: Nodes) -> HandshakeFailed:
    """Connect, and use the connection until the server's refusal arrives: TLS 1.3 lets a client finish
    first."""
    with pytest.raises(HandshakeFailed) as error:
        connection = await nodes.client.connect(nodes.address)
        closed = await connection.wait_closed()
        raise closed
    return error.value


async def nothing_leaked(nodes: Nodes) -> None:
    """No connection, no chunk in use, on either side."""
    assert not nodes.client.connections and not nodes.server.connections
    for node in (nodes.client, nodes.server):
        while (pools := node.pool_stats())["connections"]:
            await asyncio.sleep(0.01)  # The closing period, three probe timeouts, has to pass.
        used = {name: count for name, count in pools.items() if name.endswith("_used") and "chunks" in name}
        assert not any(used.values()), used


def wrong_ca(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    other = make_authority(name="another CA")
    return HandshakeConfig(pki.a, other.trust), pki.server, "unknown_ca", "not trusted here", False


def wrong_client_ca(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    stranger = issue(make_authority(name="another CA"), "stranger")
    return HandshakeConfig(stranger, pki.authority.trust), pki.server, "unknown_ca", "'another CA'", True


def expired_server(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    old = issue(pki.authority, "old", days=-1)
    return pki.client, replace(pki.server, credentials=old), "certificate_expired", "of old expired on", False


def expired_client(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    old = issue(pki.authority, "old", days=-1)
    return replace(pki.client, credentials=old), pki.server, "certificate_expired", "of old expired on", True


def no_client_certificate(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    client = replace(pki.client, credentials=None)
    return client, pki.server, "certificate_required", "needs a client certificate", True


def wrong_alpn(pki: Pki) -> tuple[HandshakeConfig, HandshakeConfig, str, str, bool]:
    client = HandshakeConfig(pki.a, pki.authority.trust, alpns=("hq-interop",), profile=Profile.TEST)
    return client, pki.server, "no_application_protocol", "spoken here: stoq/1", True


CASES = [wrong_ca, wrong_client_ca, expired_server, expired_client, no_client_certificate, wrong_alpn]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.__name__))
def test_refusals_name_the_alert_and_the_reason_on_both_sides(
    pki: Pki, case: Callable[[Pki], tuple[HandshakeConfig, HandshakeConfig, str, str, bool]]
) -> None:
    client, server, alert, text, by_server = case(pki)

    async def main(nodes: Nodes) -> None:
        expect(await refused_connect(nodes), alert, text, remote=by_server)
        if by_server or case is not wrong_alpn:
            expect(await nodes.failure(), alert, text, remote=not by_server)
        await nothing_leaked(nodes)
        assert nodes.server.counters()["handshakes_completed"] == 0

    over_loopback(client, server, main)


def test_addresses_that_are_refused(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        for text in ("1.2.3.4:9292", "[::ffff:1.2.3.4]:9292", "0.0.0.0:1"):
            with pytest.raises(AddressError, match="STOQ is IPv6-only"):
                await nodes.client.connect(text)
        for address in (Address("1.2.3.4", 1), Address("::ffff:1.2.3.4", 1), Address("::", 1)):
            with pytest.raises(AddressError, match="STOQ is IPv6-only"):
                await nodes.client.connect(address)

    over_loopback(pki.client, pki.server, main)


@pytest.mark.parametrize("ip", ["0.0.0.0", "127.0.0.1", "::ffff:127.0.0.1"])
def test_binding_to_ipv4_is_refused(ip: str) -> None:
    with pytest.raises(AddressError, match="STOQ is IPv6-only"):
        Config(server=True, bind=Address(ip, 0))


def test_a_peer_that_is_not_there(pki: Pki) -> None:
    async def main() -> None:
        config = Config(handshake_timeout=0.5)
        async with Datapath(config, TlsFactory(pki.client)) as client:
            with pytest.raises(HandshakeFailed, match="timed out") as error:
                await client.connect(Address("::1", 9))
            assert error.value.idle

    asyncio.run(main())


def test_a_cancelled_connect_leaves_no_connection(pki: Pki) -> None:
    async def main() -> None:
        async with Datapath(Config(), TlsFactory(pki.client)) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.connect(Address("::1", 9))
            async with asyncio.timeout(PATIENCE):
                while client.connections:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_port_in_use(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        second = Datapath(Config(server=True, bind=nodes.address), TlsFactory(pki.server))
        with pytest.raises(DatapathError, match="in use"):
            await second.open()

    over_loopback(pki.client, pki.server, main)


def test_opening_and_closing_leaves_no_descriptor_or_thread(pki: Pki) -> None:
    async def one_life() -> None:
        async with Datapath(Config(cores=(-1, -1)), TlsFactory(pki.client)):
            pass

    def resources() -> tuple[int, int, int]:
        with open("/proc/self/maps") as maps:
            shared = sum("memfd" in line for line in maps)
        return (
            shared,
            len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())),
        )

    asyncio.run(one_life())
    before = resources()
    for _ in range(5):
        asyncio.run(one_life())
    # The kernel's own io_uring threads end a little later than ours.
    end = time.monotonic() + PATIENCE
    while (now := resources()) > before and time.monotonic() < end:
        time.sleep(0.01)
    assert now <= before


def test_closing_the_datapath_ends_connections_on_both_sides(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        connection = await nodes.client.connect(nodes.address)
        server = await nodes.server.accept()
        await nodes.client.close()
        assert connection.closed
        assert (await server.wait_closed()).clean
        with pytest.raises(DatapathError, match="closed"):
            await nodes.client.connect(nodes.address)
        with pytest.raises(ConnectionClosed):
            await connection.open_stream()
        await nodes.client.close()

    over_loopback(pki.client, pki.server, main)


def test_configurations_that_are_refused() -> None:
    with pytest.raises(ConfigError, match="backend 'rdma' is unknown"):
        Config(backend="rdma")
    with pytest.raises(ConfigError, match="1200"):
        Config(max_datagram=1199)
    with pytest.raises(ConfigError, match="workers"):
        Config(cores=())
    with pytest.raises(ConfigError, match="negative"):
        Config(idle_timeout=-1)


def test_a_value_that_does_not_fit_is_refused(pki: Pki) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="out of range"):
            await Datapath(Config(max_streams_bidi=1 << 65), TlsFactory(pki.client)).open()

    asyncio.run(main())

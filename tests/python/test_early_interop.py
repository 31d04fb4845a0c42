"""0-RTT with a stranger: aioquic's own QuicConnection as server and as client, over ::1."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aioquic import tls
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

from control.handshake import HandshakeConfig, Profile, TlsFactory, load_trust
from control.handshake.policy import ALPN_HQ as ALPN
from dataplane import Address, Config, Datapath
from dataplane.config import BACKENDS
from tests.python.conftest import Pki

EARLY: Any = {"alpns": (ALPN,), "early_alpns": (ALPN,), "profile": Profile.TEST}
PATIENCE = 10.0  # Seconds of a busy machine.


class Echo(QuicConnectionProtocol):
    """aioquic's server: says of each stream whether its data came before the handshake's end."""

    def quic_event_received(self, event: QuicEvent) -> None:
        """Answer a stream's first data."""
        if isinstance(event, StreamDataReceived) and event.data:
            when = b"early " if not self._quic._handshake_complete else b"late "
            self._quic.send_stream_data(event.stream_id, when + event.data, end_stream=True)
            self.transmit()


@asynccontextmanager
async def aioquic_server(certs: Path) -> AsyncIterator[tuple[Address, dict[bytes, tls.SessionTicket]]]:
    """Its address and the tickets it knows."""
    tickets: dict[bytes, tls.SessionTicket] = {}
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
    configuration.load_cert_chain(certs / "node-b.pem", certs / "node-b.key")
    server = await serve(
        "::1",
        0,
        configuration=configuration,
        create_protocol=Echo,
        session_ticket_fetcher=tickets.get,
        session_ticket_handler=lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
    )
    transport = server._transport
    assert transport is not None
    try:
        yield Address("::1", transport.get_extra_info("sockname")[1]), tickets
    finally:
        server.close()


async def ask(datapath: Datapath, server: Address) -> tuple[bytes, bool | None]:
    """What the server answers to what we send at once, and whether it took it early."""
    connection = await datapath.connect(server, server_name="node-b", early=True)
    async with connection, await connection.open_stream() as stream:
        stream.write(b"question")
        stream.write_eof()
        answer = await stream.read_all()
        await connection.wait_connected()
        return answer, connection.early


def test_our_client_and_aioquics_server(certs: Path) -> None:
    async def main() -> None:
        ours = TlsFactory(HandshakeConfig(trust=load_trust(certs / "ca.pem"), resumption=True, **EARLY))
        kept = ours.shared.client_tickets
        assert kept is not None
        async with (
            aioquic_server(certs) as (server, tickets),
            Datapath(Config(backend="socket"), ours) as datapath,
        ):
            async with asyncio.timeout(PATIENCE):
                assert await ask(datapath, server) == (b"late question", None)
                while not len(kept):
                    await asyncio.sleep(0.01)
                assert await ask(datapath, server) == (b"early question", True)
                tickets.clear()
                assert await ask(datapath, server) == (b"late question", False)
            counters = datapath.counters()
            assert counters["zero_rtt_sent"] >= 2 and counters["zero_rtt_refused"] == 1

    asyncio.run(main())


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "afxdp"])
def test_aioquics_client_and_our_server(pki: Pki, backend: str) -> None:
    async def main() -> None:
        theirs = TlsFactory(HandshakeConfig(pki.b, resumption=True, **EARLY))
        register = theirs.shared.register
        assert register is not None
        config = Config(server=True, bind=Address("::1", 0), backend=backend)
        kept: list[tls.SessionTicket] = []
        taken: list[bool | None] = []

        async def echo(datapath: Datapath) -> None:
            async for connection in datapath.accept_connections():
                taken.append(connection.early)
                stream = await connection.accept_stream()
                stream.write(await stream.read_all())
                stream.write_eof()

        async def ask_aioquic(port: int, ticket: tls.SessionTicket | None) -> tuple[bytes, bool]:
            configuration = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], server_name="localhost")
            configuration.verify_mode = ssl.CERT_NONE
            configuration.session_ticket = ticket
            async with connect(
                "::1",
                port,
                configuration=configuration,
                session_ticket_handler=kept.append,
                wait_connected=ticket is None,
            ) as client:
                reader, writer = await client.create_stream()
                writer.write(b"question")
                writer.write_eof()
                answer = await reader.read()
                while not kept:
                    await asyncio.sleep(0.01)
                return answer, client._quic.tls.early_data_accepted

        async with Datapath(config, theirs) as datapath:
            serving = asyncio.ensure_future(echo(datapath))
            port = datapath.local_address.port
            async with asyncio.timeout(PATIENCE):
                assert await ask_aioquic(port, None) == (b"question", False)
                ticket = kept[0]
                assert await ask_aioquic(port, ticket) == (b"question", True)
                # The same first flight's ticket again: a replay, by a client that is honest about it.
                assert await ask_aioquic(port, ticket) == (b"question", False)
            assert taken == [None, True, None]
            assert datapath.counters()["zero_rtt_received"] >= 1
            assert register.refused_replays == 1
            serving.cancel()

    asyncio.run(main())

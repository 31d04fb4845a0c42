"""Makes a handshake for each connection of a datapath."""

from __future__ import annotations

import time
from collections.abc import Callable

from control.handshake.policy import HandshakeConfig
from control.handshake.session import TlsSession
from control.handshake.shared import Shared
from control.handshake.tickets import TicketKeys
from control.handshake.verdicts import VerdictCache
from dataplane.address import Address
from dataplane.handshake import HandshakeSink, Target


class TlsFactory:
    """A `dataplane.handshake.HandshakeFactory` for one configuration."""

    def __init__(
        self,
        config: HandshakeConfig,
        clock: Callable[[], float] = time.time,
        ticket_keys: TicketKeys | None = None,
    ) -> None:
        self.config = config
        self.shared = Shared(config, clock, ticket_keys)

    @property
    def verdicts(self) -> VerdictCache:
        """Chains known to be good."""
        return self.shared.verdicts

    async def open(self) -> None:
        """See HandshakeFactory: there is nothing to open."""

    def close(self) -> None:
        """See HandshakeFactory: there is nothing to close."""

    def report(self) -> dict[str, int]:
        """See HandshakeFactory."""
        tickets = self.shared.server_tickets
        return {"processes": 0, "resumed": tickets.resumed if tickets else 0}

    def client(self, sink: HandshakeSink, target: Target) -> TlsSession:
        """A handshake as client."""
        return TlsSession(self.shared, sink, target)

    def server(self, sink: HandshakeSink, peer: Address) -> TlsSession:
        """A handshake as server; the client's address plays no part yet."""
        return TlsSession(self.shared, sink, None)

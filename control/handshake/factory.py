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
from dataplane.errors import ConfigError
from dataplane.handshake import HandshakeSink, Target


class TlsFactory:
    """A `dataplane.handshake.HandshakeFactory` for one configuration."""

    def __init__(
        self,
        config: HandshakeConfig,
        clock: Callable[[], float] = time.time,
        ticket_keys: TicketKeys | None = None,
        *,
        confirms: bool = True,
    ) -> None:
        self._ticket_keys = ticket_keys
        self.shared = Shared(config, clock, ticket_keys, confirms=confirms)

    @property
    def config(self) -> HandshakeConfig:
        """Of the handshakes that begin now."""
        return self.shared.config

    @property
    def verdicts(self) -> VerdictCache:
        """Chains known to be good."""
        return self.shared.verdicts

    def replace(self, config: HandshakeConfig) -> None:
        """Another configuration, a renewed certificate above all, for the handshakes that begin from now on. Those
        under way finish with the one they began with; connections are not touched. Sessions are resumed where their
        ticket's policy still fits: with a new certificate of the same key they are, with a new key they are not. Give
        the same `verifier`: it is the one that running handshakes ask, and remembered verdicts stay."""
        before = self.shared
        self.shared = Shared(
            config, before.clock, self._ticket_keys, confirms=before.confirms, before=before
        )

    def update_trust(self, state: bytes) -> int:
        """A new state (a trust bundle) for the verifier: counts for every handshake that is not complete yet, and for
        tickets. Verdicts that do not hold under it are forgotten; returns how many those are. Raises what
        `PeerVerifier.update` raises, and then nothing has changed; ConfigError without a verifier."""
        verifier = self.shared.verifier
        if verifier is None:
            raise ConfigError("trust can be updated where a peer verifier judges; here it is a fixed list of CAs")
        verifier.update(state)
        return self.shared.verdicts.sweep(self.shared.holds)

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

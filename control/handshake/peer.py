"""Who judges a peer's certificates, when it is more than a path to an anchor: the seam between the handshake and
TrustChain. This package knows no roles, pins, logs or revocation lists; it asks a `PeerVerifier` at four moments:

      full handshake     verify(chain)  ── Verdict or HandshakeAbort; remembered by `VerdictCache`
      a verdict or a ticket is used again      refusal(identity, policy) ── still good?
      before the connection is given out       confirm(verdict) ── what cannot be known at once (inclusion proofs)
      a node's handshake processes             export() there, `load` here; update() when the state changes

`verify` and `refusal` are called from within TLS, so they must not wait; `confirm` may.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

import msgspec

from control.handshake.alerts import HandshakeAbort
from control.handshake.verdicts import Verdict
from dataplane.errors import ConfigError
from dataplane.handshake import PeerIdentity

MAKERS = "control."  # Verifiers are of this project: what a process loads is never a name from elsewhere.


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """A verifier on its way to another process: `maker` is "module:function", which takes `state`."""

    maker: str
    state: bytes


class PeerVerifier(Protocol):
    """Judges peers. One object serves all handshakes of a node, also across `TlsFactory.replace`."""

    @property
    def policy(self) -> bytes:
        """Changes with whatever makes an old verdict worthless: anchors, logs, pins, rules. Not with revocations,
        which `refusal` looks at one by one."""

    def verify(self, chain_der: Sequence[bytes], server_name: str | None, now: datetime.datetime) -> Verdict:
        """Judge a chain, leaf first: a server's for `server_name`, or with None a client's. Raises HandshakeAbort
        with the alert and the reason."""

    def refusal(self, identity: PeerIdentity | None, policy: bytes, now: datetime.datetime) -> HandshakeAbort | None:
        """Why what was judged good under `policy` is not good now; None: it still is. A few look-ups."""

    def confirm(self, verdict: Verdict) -> Awaitable[None] | None:
        """What has to be awaited before a peer with this verdict is let in; None: nothing. Awaiting it raises
        HandshakeAbort. Asked for once a verdict that is not `confirmed`; it is told again in any handshake until it
        was agreed to once."""

    def update(self, state: bytes) -> None:
        """Take a new state, as `export` gives it; all or nothing. Raises StoqError."""

    def export(self) -> Exported:
        """For a handshake process."""


def load(exported: Exported) -> PeerVerifier:
    """The verifier that was exported. Raises ConfigError, or what its maker raises."""
    module, _, name = exported.maker.partition(":")
    if not module.startswith(MAKERS):
        raise ConfigError(f"a peer verifier is made in {MAKERS}*, not by {exported.maker!r}")
    make = cast(Callable[[bytes], PeerVerifier], getattr(importlib.import_module(module), name))
    return make(exported.state)

"""The verifier of a node: the trust bundle in use, behind the handshake's `PeerVerifier`.

      bundle ──▶ TrustVerifier ──▶ verify() ──▶ HandshakeAbort, or a verdict that the handshake remembers
                  ▲ update()          └ confirm() ──▶ InclusionChecker, where the bundle demands proofs

One object judges for all handshakes of a node, so a newer bundle counts from the next look. `refusal` is what makes a
revocation reach what was judged before: remembered verdicts and session tickets by the handshake, open connections by
whoever calls `TlsFactory.update_trust` (see `revoked_since`).
"""

from __future__ import annotations

import datetime
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import cast

from cryptography import x509

from control.ctlog.structs import Sct
from control.handshake.alerts import Alert, HandshakeAbort
from control.handshake.peer import Exported
from control.handshake.verdicts import Verdict as Accepted
from control.trustchain.bundle import (
    InclusionMode,
    Rules,
    StaleBundle,
    TrustBundle,
    compile_bundle,
    decode_bundle,
)
from control.trustchain.inclusion import InclusionChecker, InclusionProof, LoggedEntry
from control.trustchain.reasons import Reason, Refusal
from control.trustchain.revoked import find_revocation
from control.trustchain.verify import Context, Verdict, verify
from dataplane.handshake import PeerIdentity

log = logging.getLogger("stoq.trustchain")

MAKER = "control.trustchain.verifier:from_state"


def _abort(reason: Reason, text: str) -> HandshakeAbort:
    return HandshakeAbort.alert(reason.alert or Alert.INTERNAL_ERROR, text)


class TrustVerifier:
    """A `control.handshake.peer.PeerVerifier`. `checker` is needed where the bundle demands inclusion proofs, except in
    handshake processes, which leave that to their node. `draw` gives numbers in [0, 1) for the sample; who meets the
    node must not be able to guess them. Raises BundleError."""

    def __init__(
        self,
        bundle: TrustBundle,
        *,
        checker: InclusionChecker | None = None,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._rules = compile_bundle(bundle)
        self._checker = checker
        self._draw = draw or random.SystemRandom().random
        self.verified = 0
        self.refused: Counter[Reason] = Counter()

    @property
    def bundle(self) -> TrustBundle:
        """The one in use."""
        return self._rules.bundle

    @property
    def rules(self) -> Rules:
        """The one in use, ready for use."""
        return self._rules

    @property
    def policy(self) -> bytes:
        """See PeerVerifier."""
        return self._rules.policy

    def stale(self, now: datetime.datetime) -> bool:
        """Is the bundle past its time?"""
        return now > self.bundle.valid_until

    def judge(
        self,
        chain: Sequence[bytes | x509.Certificate],
        server_name: str | None,
        now: datetime.datetime,
        *,
        scts: Sequence[Sct] | None = None,
        proofs: Sequence[InclusionProof] = (),
        proof_demanded: bool = False,
    ) -> Verdict:
        """`verify` by this bundle; for whoever wants the whole verdict rather than a handshake. Never raises."""
        rules = self._rules
        context = Context(
            anchors=rules.anchors,
            now=now,
            server_name=server_name,
            logs=rules.logs,
            scts_required=rules.bundle.scts_required,
            required_roles=rules.client_roles if server_name is None else rules.server_roles,
            revoked=rules.revoked,
            pins=rules.pins,
            proof_demanded=proof_demanded,
            proofs=tuple(proofs),
            fresh_until=rules.fresh_until,
        )
        verdict = verify(chain, scts, context)
        if verdict.good:
            self.verified += 1
        else:
            self.refused[verdict.reason] += 1
        return verdict

    # ---- PeerVerifier ----

    def verify(self, chain_der: Sequence[bytes], server_name: str | None, now: datetime.datetime) -> Accepted:
        """See PeerVerifier. Where the bundle demands an inclusion proof, the verdict waits to be confirmed."""
        verdict = self.judge(chain_der, server_name, now)
        if not verdict.good or verdict.identity is None:
            raise _abort(verdict.reason, verdict.text)
        return Accepted(
            verdict.identity,
            verdict.begins,
            verdict.ends,
            verdict.path[0].public_key(),
            policy=self.policy,
            confirmed=self.bundle.inclusion.mode is InclusionMode.NONE,
            evidence=verdict.logged,
        )

    def refusal(self, identity: PeerIdentity | None, policy: bytes, now: datetime.datetime) -> HandshakeAbort | None:
        """See PeerVerifier. Who has shown no certificate was not judged."""
        rules = self._rules
        if identity is None:
            return None
        if rules.fresh_until is not None and now > rules.fresh_until:
            return _abort(Reason.TRUST_STALE, "this node's trust bundle is too old to judge by")
        revocation = find_revocation(rules.revoked, identity.rests_on)
        if revocation is not None:
            return _abort(
                Reason.REVOKED,
                f"what {identity.subject} proved itself with was {revocation}: the peer needs a new certificate",
            )
        if policy != rules.policy:
            return _abort(Reason.UNACCEPTABLE, "peers are judged by other rules now")
        return None

    def confirm(self, verdict: Accepted) -> Awaitable[None] | None:
        """See PeerVerifier: an inclusion proof, of all peers or of a sample."""
        policy = self.bundle.inclusion
        if policy.mode is InclusionMode.NONE:
            return None
        if policy.mode is InclusionMode.SAMPLED and self._draw() >= policy.rate:
            return None
        return self._include(verdict)

    async def _include(self, accepted: Accepted) -> None:
        logged, rules = cast(tuple[LoggedEntry, ...], accepted.evidence), self._rules
        try:
            if self._checker is None:
                raise Refusal(Reason.INCLUSION_UNAVAILABLE, "this node knows no way to ask a log for proofs")
            await self._checker.check(logged, rules.logs)
        except Refusal as refusal:
            if refusal.reason is Reason.INCLUSION_UNAVAILABLE and not rules.bundle.inclusion.hard:
                log.warning("%s is let in without an inclusion proof: %s", accepted.identity.subject, refusal.text)
                return
            self.refused[refusal.reason] += 1
            raise _abort(refusal.reason, refusal.text) from None

    def update(self, state: bytes) -> None:
        """Take a newer bundle. The one in use again changes nothing. Raises BundleError, and StaleBundle for an older
        one; then the one in use stays."""
        bundle = decode_bundle(state)
        if bundle.generation < self.bundle.generation:
            raise StaleBundle(
                f"the trust bundle has generation {bundle.generation}, {self.bundle.generation} is in use here: "
                "an older one would forget revocations"
            )
        if bundle.generation == self.bundle.generation:
            if bundle != self.bundle:
                raise StaleBundle(
                    f"another trust bundle of generation {bundle.generation} is in use here: one of the two is not "
                    "from this node's authority, or the authority's state was set back"
                )
            return
        self._rules = compile_bundle(bundle)

    def export(self) -> Exported:
        """See PeerVerifier."""
        return Exported(MAKER, self.bundle.encode())


def from_state(state: bytes) -> TrustVerifier:
    """What `TrustVerifier.export` is made into elsewhere. Raises BundleError."""
    return TrustVerifier(decode_bundle(state))


def revoked_since(
    verifier: TrustVerifier, identities: Iterable[PeerIdentity | None], now: datetime.datetime
) -> list[tuple[PeerIdentity, HandshakeAbort]]:
    """Of the peers that connections are open to, those whose proof does not hold any more, and what to close their
    connections with. A change of rules alone closes none: those peers are judged anew when they come again."""
    policy = verifier.policy
    found = [(one, verifier.refusal(one, policy, now)) for one in identities if one is not None and one.rests_on]
    return [(identity, abort) for identity, abort in found if abort is not None]

"""Peers whose certificate chain was verified lately, so that a chain is parsed and verified once and not in
every handshake. Only good verdicts are kept, and only for as long as every certificate they rest on is valid
and, where a `PeerVerifier` judges, none of them is revoked and its rules are the same.

What a handshake proves itself is not touched by this: the peer's signature over the transcript
(CertificateVerify) is checked each time. A cache belongs to one `TlsFactory`, that is to one set of trust
anchors and rules: other anchors, another cache.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from control.handshake.credentials import Trust
from dataplane.handshake import PeerIdentity

MAX_VERDICTS = 4096  # Peers; the one not met for longest goes. About 2 KiB each.


@dataclass(frozen=True, slots=True)
class Verdict:
    """A chain was good for this peer, from `begins` to `ends`."""

    identity: PeerIdentity
    begins: datetime.datetime
    ends: datetime.datetime
    # Of the leaf, parsed: its signature is checked in every handshake.
    public_key: CertificatePublicKeyTypes | None = None
    key: bytes = b""  # The chain's verdict_key.
    policy: bytes = b""  # PeerVerifier.policy then.
    confirmed: bool = True  # False: the peer must not be let in before PeerVerifier.confirm has agreed.
    evidence: object = None  # The PeerVerifier's own.


def verdict_key(chain_der: Sequence[bytes], server_name: str | None) -> bytes:
    """The chain byte for byte, leaf first, and what it was verified for; None: as a client."""
    digest = hashlib.sha256(b"client" if server_name is None else b"server " + server_name.encode())
    for certificate in chain_der:
        digest.update(len(certificate).to_bytes(4, "big"))
        digest.update(certificate)
    return digest.digest()


def validity(
    chain: Sequence[x509.Certificate], trust: Trust, now: datetime.datetime
) -> tuple[datetime.datetime, datetime.datetime]:
    """When all of the chain is valid, and every anchor that is valid now: whichever of them it ends in."""
    anchors = [a for a in trust.anchors if a.not_valid_before_utc <= now <= a.not_valid_after_utc]
    every = [*chain, *anchors]
    return (
        max(certificate.not_valid_before_utc for certificate in every),
        min(certificate.not_valid_after_utc for certificate in every),
    )


class VerdictCache:
    """The last good verdicts, by `verdict_key`."""

    def __init__(self, limit: int = MAX_VERDICTS) -> None:
        self._limit = limit
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: bytes, now: datetime.datetime) -> PeerIdentity | None:
        """The peer's identity if its chain is known to be good at this time."""
        verdict = self.find(key, now)
        return verdict.identity if verdict else None

    def find(self, key: bytes, now: datetime.datetime) -> Verdict | None:
        """The verdict on a chain if it is known to be good at this time."""
        verdict = self._verdicts.get(key)
        if verdict is None:
            return None
        if not verdict.begins <= now <= verdict.ends:
            del self._verdicts[key]
            return None
        self._verdicts.move_to_end(key)
        return verdict

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keep a verdict; the one not asked for longest makes room."""
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self._limit:
            self._verdicts.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget a verdict."""
        self._verdicts.pop(key, None)

    def sweep(self, holds: Callable[[Verdict], bool]) -> int:
        """Forget those that do not hold any more; how many they were."""
        gone = [key for key, verdict in self._verdicts.items() if not holds(verdict)]
        for key in gone:
            del self._verdicts[key]
        return len(gone)

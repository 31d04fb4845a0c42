"""What is asked of a peer, by application protocol (ALPN).

`stoq/1` is always mutual. `stoq-join/1` is for a node that has no certificate yet: it verifies the authority by what
its token says, and proves itself by the token's secret; nothing but joining is served on it. `perf` and `hq-interop`
exist for measuring and for strangers: they belong to the test profile, which has to be named to get them, and there no
client certificate is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from aioquic.tls import CipherSuite

from control.handshake.credentials import Credentials, Trust
from control.handshake.peer import PeerVerifier
from dataplane.errors import ConfigError

ALPN_STOQ = "stoq/1"
ALPN_JOIN = "stoq-join/1"
ALPN_PERF = "perf"
ALPN_HQ = "hq-interop"
MAX_TICKET_LIFETIME = 7 * 86400  # Seconds; RFC 8446 section 4.6.1.


class Profile(Enum):
    """`TEST` permits `perf` and `hq-interop`, and a client that does not verify the server."""

    NORMAL = "normal"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class AlpnPolicy:
    """One protocol: `mutual` demands certificates of both sides; `test_only` needs the test profile."""

    mutual: bool
    test_only: bool


ALPN_POLICIES: dict[str, AlpnPolicy] = {
    ALPN_STOQ: AlpnPolicy(mutual=True, test_only=False),
    ALPN_JOIN: AlpnPolicy(mutual=False, test_only=False),
    ALPN_PERF: AlpnPolicy(mutual=False, test_only=True),
    ALPN_HQ: AlpnPolicy(mutual=False, test_only=True),
}

# Names of the command line; best first is the default. AES-128-GCM is the fastest on CPUs with AES
# instructions.
CIPHERS: dict[str, CipherSuite] = {
    "aes128": CipherSuite.AES_128_GCM_SHA256,
    "aes256": CipherSuite.AES_256_GCM_SHA384,
    "chacha20": CipherSuite.CHACHA20_POLY1305_SHA256,
}


@dataclass(frozen=True, slots=True)
class HandshakeConfig:
    """How handshakes are made. Raises ConfigError for a combination that the profile does not permit."""

    credentials: Credentials | None = None
    trust: Trust | None = None
    alpns: tuple[str, ...] = (ALPN_STOQ,)
    profile: Profile = Profile.NORMAL
    ciphers: tuple[str, ...] = tuple(CIPHERS)
    insecure: bool = False  # Client: take any server certificate; test profile only.
    resumption: bool = False  # Session tickets and resumption by PSK, never without (EC)DHE.
    # 0-RTT, for these protocols only: whoever copies a client's first flight can send it again once to each
    # server that takes it, so what is asked in it must bear that. Needs resumption; connect(early=True) asks.
    early_alpns: tuple[str, ...] = ()
    ticket_lifetime: float = 3600.0  # Seconds after a full handshake in which its session may be resumed.
    # Is told each traffic secret: client random, label of the key log format, secret. Only on explicit wish.
    key_log: Callable[[bytes, str, bytes], None] | None = None
    verifier: PeerVerifier | None = None  # Judges peers in place of `trust`, which is then not looked at.

    def __post_init__(self) -> None:
        if not self.alpns:
            raise ConfigError("no application protocol is named")
        for alpn in self.alpns:
            policy = ALPN_POLICIES.get(alpn)
            if policy is None:
                raise ConfigError(
                    f"unknown application protocol {alpn!r}: use one of {', '.join(ALPN_POLICIES)}"
                )
            if policy.test_only and self.profile is not Profile.TEST:
                raise ConfigError(f"{alpn} belongs to the test profile: name it with --profile test")
            if policy.mutual and self.insecure:
                raise ConfigError(f"{alpn} is always mutually authenticated: --insecure is not possible")
            if policy.mutual and self.trust is None and self.verifier is None:
                raise ConfigError(f"{alpn} is always mutually authenticated: name the CA with --ca")
        if self.early_alpns and not self.resumption:
            raise ConfigError("early data needs session tickets: name --resumption too")
        if ALPN_PERF in self.early_alpns:
            raise ConfigError("perf takes no early data: it is served once the handshake is complete")
        if unknown := [alpn for alpn in self.early_alpns if alpn not in self.alpns]:
            raise ConfigError(f"early data for {', '.join(unknown)}, which is not spoken here")
        if self.insecure and self.profile is not Profile.TEST:
            raise ConfigError("--insecure belongs to the test profile: name it with --profile test")
        if not 0 < self.ticket_lifetime <= MAX_TICKET_LIFETIME:
            raise ConfigError(f"a ticket's lifetime is between 0 and {MAX_TICKET_LIFETIME} seconds")
        ciphers = [name for name in self.ciphers if name not in CIPHERS]
        if ciphers or not self.ciphers:
            raise ConfigError(
                f"unknown cipher {', '.join(ciphers) or '(none)'}: use one of {', '.join(CIPHERS)}"
            )

"""The interop cases as data: what is fetched, what the relay does to it, and what proves that it really
happened.

A case passes when every file arrived with the right SHA-256, both ends behaved, and its proofs hold. A proof
looks at the relay's statistics or, through decrypt.py, into the captured packets; it returns what it found,
in words, or raises `NotProven`. The endpoints' own claims are never the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.interop import decrypt
from tests.interop.endpoints import Wants
from tests.interop.wire import QUIC_V1, Kind

MIB = 1 << 20
# Observed loss may exceed the set probability by this factor before the relay is not believed
MAX_LOST_SHARE = 1.5
LONG_RTT_S = 0.75
BLACKHOLE_S = 5.0


class NotProven(Exception):
    """What the case is about did not happen, or happened wrongly."""


@dataclass(frozen=True)
class Evidence:
    """What a finished run left behind."""

    stats: dict[str, Any]  # relay.Stats
    capture: Path
    key_logs: list[Path]
    chain_bytes: int
    allowed_excess: int = 0  # Endpoint.amplification_excess of the server

    @cached_property
    def report(self) -> decrypt.Report:
        try:
            return decrypt.inspect(self.capture, self.key_logs)
        except ValueError as error:
            raise NotProven(f"the capture cannot be opened: {error}") from error

    @property
    def flow(self) -> dict[str, Any]:
        if not self.stats["flows"]:
            raise NotProven("no datagram came through the relay")
        first: dict[str, Any] = self.stats["flows"][0]
        return first


Proof = Callable[[Evidence], str]


def require(condition: bool, complaint: str) -> None:
    if not condition:
        raise NotProven(complaint)


def connections(count: int) -> Proof:
    def proof(evidence: Evidence) -> str:
        seen = evidence.stats["connections"]
        require(seen == count, f"{seen} connections instead of {count}")
        return f"{seen} connection{'s' * (seen != 1)}"

    return proof


def version_1(evidence: Evidence) -> str:
    versions = evidence.stats["to_client"]["versions"]
    require(versions == [QUIC_V1], f"the server answered in versions {[hex(v) for v in versions]}")
    kinds = evidence.stats["to_client"]["kinds"]
    require(Kind.RETRY not in kinds and Kind.VERSION_NEGOTIATION not in kinds, f"unasked packets: {kinds}")
    return "version 1 throughout, neither Retry nor Version Negotiation"


def chacha20(evidence: Evidence) -> str:
    chosen = [decrypt.CIPHER_NAMES.get(cipher, hex(cipher)) for cipher in decrypt.ciphers(evidence.capture)]
    require(chosen == ["chacha20"], f"the ServerHello chose {chosen}")
    return "the ServerHello chose TLS_CHACHA20_POLY1305_SHA256"


def retry(evidence: Evidence) -> str:
    sent, returned = evidence.flow["retry_tokens"], evidence.flow["initial_tokens"]
    require(bool(sent), "the server sent no Retry")
    require(any(token in sent for token in returned), "the client never returned a Retry token")
    return f"Retry with a token of {len(sent[0]) // 2} bytes, returned in the next Initial"


def version_negotiation(evidence: Evidence) -> str:
    asked = evidence.stats["to_server"]["versions"]
    offered = evidence.flow["offered_by_server"]
    require(bool(offered), f"no Version Negotiation packet; the client asked for {[hex(v) for v in asked]}")
    require(QUIC_V1 in offered, f"version 1 is not among the server's {[hex(v) for v in offered]}")
    require(asked[0] not in offered, f"the server refused version {asked[0]:#x} and lists it")
    return f"asked for {asked[0]:#010x}, was offered {', '.join(f'{v:#010x}' for v in offered)}"


def key_update(evidence: Evidence) -> str:
    report = evidence.report
    counts = []
    for name, direction in (("client", report.to_server), ("server", report.to_client)):
        updated = sum(count for generation, count in direction.by_generation.items() if generation > 0)
        require(updated > 0, f"no packet of the {name} opens with updated keys ({direction.by_generation})")
        require(direction.unopened == 0, f"{direction.unopened} packets of the {name} open with no key")
        counts.append(f"{updated} of the {name}'s")
    generations = max(max(report.to_server.by_generation), max(report.to_client.by_generation))
    return f"packets opened with updated keys: {', '.join(counts)}; {generations} update(s)"


def path_validated(evidence: Evidence) -> str:
    """Every new path was challenged by the server and answered (RFC 9000 section 9.3), and carried data."""
    stats, report = evidence.flow, evidence.report
    require(evidence.stats["rebindings"] > 0, "the relay never rebound")
    answered = {data for _, data in report.to_server.responses}
    for path in range(1, len(stats["upstream"])):
        challenges = [data for number, data in report.to_client.challenges if number == path]
        require(bool(challenges), f"the server sent no PATH_CHALLENGE on path {path}")
        require(any(data in answered for data in challenges), f"no PATH_RESPONSE on path {path}")
        require(stats["path_bytes_to_client"][path] > 0, f"nothing came back on path {path}")
    carried = "+".join(str(count) for count in stats["path_bytes_to_client"])
    return f"{evidence.stats['rebindings']} rebindings, each challenged and answered; bytes by path {carried}"


def new_port(evidence: Evidence) -> str:
    addresses = [tuple(upstream) for upstream in evidence.flow["upstream"]]
    require(len({address for address, _ in addresses}) == 1, f"the address changed too: {addresses}")
    require(len({port for _, port in addresses}) == len(addresses), f"the port did not change: {addresses}")
    return "only the port changed"


def new_address(evidence: Evidence) -> str:
    addresses = [upstream[0] for upstream in evidence.flow["upstream"]]
    require(len(set(addresses)) == len(addresses), f"the address did not change: {addresses}")
    return "the address changed"


def lost(share: float) -> Proof:
    def proof(evidence: Evidence) -> str:
        found = []
        for name in ("to_server", "to_client"):
            direction = evidence.stats[name]
            require(direction["lost"] > 0, f"nothing was lost {name}")
            found.append(direction["lost"] / direction["datagrams"])
        require(max(found) < share * MAX_LOST_SHARE + 0.02, f"the relay lost {found} instead of {share}")
        return f"lost {found[0]:.1%} of the client's and {found[1]:.1%} of the server's datagrams"

    return proof


def corrupted(evidence: Evidence) -> str:
    counts = [evidence.stats[name]["corrupted"] for name in ("to_server", "to_client")]
    require(all(counts), f"corrupted {counts}")
    return f"a bit flipped in {counts[0]} of the client's and {counts[1]} of the server's datagrams"


def blackhole(evidence: Evidence) -> str:
    stats = evidence.stats
    began, ended = stats["blackhole_began_s"], stats["blackhole_ended_s"]
    require(began is not None, "the transfer was over before the blackhole")
    require(ended is not None and ended - began >= BLACKHOLE_S, "nothing was sent after the blackhole")
    swallowed = stats["to_server"]["blackholed"] + stats["to_client"]["blackholed"]
    require(swallowed > 0, "the blackhole swallowed nothing")
    idle = f"resumed {stats['last_delivery_s'] - began:.1f} s after it began at the latest"
    return f"{swallowed} datagrams swallowed in {BLACKHOLE_S:.0f} s, {idle}"


def amplification(evidence: Evidence) -> str:
    flow = evidence.flow
    require(flow["validated"], "the client never got to a Handshake packet")
    received = flow["unvalidated_to_server"]
    require(
        flow["amplification_excess"] <= evidence.allowed_excess,
        f"the server sent {flow['amplification_excess']} bytes more than three times what it had received",
    )
    # The limit must have mattered: when the server began to answer, its credit was less than the certificates
    # alone.
    credit = 3 * flow["received_at_first_answer"]
    require(credit < evidence.chain_bytes, f"a credit of {credit} bytes suffices for {evidence.chain_bytes}")
    return (
        f"sent at most {flow['amplification_peak']:.2f} times the {received} bytes it had before validation; "
        f"{evidence.chain_bytes} bytes of certificates against a first credit of {credit}"
    )


def long_round_trip(evidence: Evidence) -> str:
    began, second = evidence.flow["first_initial_s"], evidence.flow["first_client_handshake_s"]
    require(began is not None and second is not None, "no Handshake packet of the client was seen")
    took = second - began
    require(took >= LONG_RTT_S, f"the client's Handshake packet came {took:.3f} s after its Initial")
    return f"the client's Handshake packet came {took:.2f} s after its first Initial"


@dataclass(frozen=True)
class Case:
    """`relay`: fields of relay.Config. `files`: (count, bytes). `quick` cases belong to every test run."""

    name: str
    what: str
    files: tuple[int, int]
    proofs: tuple[Proof, ...]
    proof_text: str
    wants: Wants = field(default_factory=Wants)
    relay: dict[str, Any] = field(default_factory=dict)
    long_chain: bool = False
    timeout_s: float = 30.0
    quick: bool = True


REBIND_AFTER = [MIB, 2 * MIB + MIB // 2]  # while a 4 MiB transfer runs
HANDSHAKE_LOSS_CONNECTIONS = 20
# A client that backs off sends eight datagrams before its idle timeout of 30 s: with all of them lost nobody
# is to blame.
LOSS_BURST = 5

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "handshake",
            "one connection, one small file",
            (1, 1024),
            (connections(1), version_1),
            "relay: one source connection id, only version 1 long headers",
        ),
        Case(
            "transfer",
            "10 MiB on one stream",
            (1, 10 * MIB),
            (connections(1), version_1),
            "relay: one connection; the file's hash",
        ),
        Case(
            "multiplexing",
            "1,999 files of 32 bytes on one connection, a stream each",
            (1999, 32),
            (connections(1),),
            "relay: one connection; 1,999 hashes",
        ),
        Case(
            "chacha20",
            "the client offers TLS_CHACHA20_POLY1305_SHA256 only",
            (1, 1024),
            (connections(1), chacha20),
            "capture: the ServerHello, opened with the Initial keys",
            wants=Wants(cipher="chacha20"),
        ),
        Case(
            "retry",
            "the server validates the address with a Retry packet",
            (1, 1024),
            (retry,),
            "relay: the Retry packet, and its token in a later Initial",
            wants=Wants(retry=True),
        ),
        Case(
            "versionnegotiation",
            "the client first asks for a version nobody has",
            (1, 1024),
            (version_negotiation,),
            "relay: the Version Negotiation packet and its list",
            wants=Wants(version_negotiation=True),
        ),
        Case(
            "keyupdate",
            "the client updates keys during 2 MiB",
            (1, 2 * MIB),
            (connections(1), key_update),
            "capture and a stranger's key log: packets of both ends open under keys of generation 1 and up, "
            "and none under none",
            wants=Wants(key_update_after=256 << 10),
            relay={"capture_all": True},
        ),
        Case(
            "portrebinding",
            "the client's port changes twice during 4 MiB",
            (1, 4 * MIB),
            (connections(1), new_port, path_validated),
            "capture and key log: PATH_CHALLENGE and PATH_RESPONSE on each new path",
            relay={"rebind_after": REBIND_AFTER, "capture_all": True},
        ),
        Case(
            "addressrebinding",
            "the client's address changes twice during 4 MiB",
            (1, 4 * MIB),
            (connections(1), new_address, path_validated),
            "capture and key log: PATH_CHALLENGE and PATH_RESPONSE on each new path",
            relay={"rebind_after": REBIND_AFTER, "rebind_address": True, "capture_all": True},
        ),
        Case(
            "amplificationlimit",
            "10 KB of certificates, more than the first credit",
            (1, 1024),
            (connections(1), amplification),
            "relay: bytes each way until the client's first Handshake packet is delivered",
            long_chain=True,
        ),
        Case(
            "amplificationloss",
            "the same, and the client's datagrams 3 to 7 are lost: it has to probe",
            (1, 1024),
            (connections(1), amplification),
            "relay: bytes each way until the client's first Handshake packet is delivered",
            long_chain=True,
            relay={"drop_to_server": [3, 4, 5, 6, 7]},
            timeout_s=60,
        ),
        Case(
            "transferloss",
            "10 MiB with 2 % loss each way",
            (1, 10 * MIB),
            (connections(1), lost(0.02)),
            "relay: datagrams lost",
            relay={"loss_to_server": 0.02, "loss_to_client": 0.02},
            timeout_s=60,
        ),
        Case(
            "transfercorruption",
            "2 MiB with a bit flipped in 2 % of the datagrams",
            (1, 2 * MIB),
            (connections(1), corrupted),
            "relay: datagrams altered",
            relay={"corrupt_to_server": 0.02, "corrupt_to_client": 0.02},
            timeout_s=60,
        ),
        Case(
            "longrtt",
            "256 KiB over a round trip of 750 ms",
            (1, MIB // 4),
            (connections(1), long_round_trip),
            "relay: time from the client's first Initial to its first Handshake packet",
            relay={"delay_s": LONG_RTT_S / 2},
            timeout_s=60,
        ),
        Case(
            "handshakeloss",
            f"{HANDSHAKE_LOSS_CONNECTIONS} connections one after the other, 30 % loss each way, at most "
            f"{LOSS_BURST} in a row",
            (HANDSHAKE_LOSS_CONNECTIONS, 1024),
            (connections(HANDSHAKE_LOSS_CONNECTIONS), lost(0.3)),
            "relay: distinct source connection ids, datagrams lost",
            wants=Wants(multiconnect=True),
            relay={"loss_to_server": 0.3, "loss_to_client": 0.3, "loss_burst": LOSS_BURST},
            timeout_s=240,
            quick=False,
        ),
        Case(
            "blackhole",
            "nothing passes for 5 s in the middle of 10 MiB",
            (1, 10 * MIB),
            (connections(1), blackhole),
            "relay: datagrams swallowed, and the first one after",
            relay={"blackhole_after": 4 * MIB, "blackhole_s": BLACKHOLE_S},
            timeout_s=60,
            quick=False,
        ),
    )
}

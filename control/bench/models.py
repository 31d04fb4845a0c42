"""What a congestion controller should reach on a path of known loss and round trip, by the published
formulas, and Jain's index. Rates are in Mbit/s of payload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

# In a full 1-RTT packet of one stream: short header 11, STREAM frame 6, AEAD tag 16.
PACKET_OVERHEAD_BYTES = 33
WIRE_OVERHEAD_BYTES = 48  # IPv6 and UDP.


@dataclass(frozen=True, slots=True)
class Path:
    """A bottleneck with random loss."""

    rate_mbps: float  # On the wire, of IPv6 packets.
    rtt_ms: float  # Without queue.
    loss: float  # Share of packets, 0 to 1.
    datagram: int  # UDP payload of a full packet, bytes.

    @property
    def payload(self) -> int:
        """Stream bytes of a full packet."""
        return self.datagram - PACKET_OVERHEAD_BYTES

    @property
    def capacity_mbps(self) -> float:
        """Payload that arrives when the bottleneck is never idle."""
        return self.rate_mbps * self.payload / (self.datagram + WIRE_OVERHEAD_BYTES) * (1 - self.loss)

    def goodput_mbps(self, window_packets: float) -> float:
        """Of a window that goes round once a round trip, less what is lost; the bottleneck bounds it."""
        sent = window_packets * self.payload * 8 / (self.rtt_ms * 1000)
        return min(sent * (1 - self.loss), self.capacity_mbps)


def mathis(path: Path, constant: float = sqrt(3 / 2)) -> float:
    """Reno: Mathis, Semke, Mahdavi and Ott 1997, with an ACK's growth for every packet (RFC 9002 counts
    bytes). The constant is 1.22 for losses at equal distances, 1.31 for random ones (their table 1)."""
    return path.goodput_mbps(constant / sqrt(path.loss))


def cubic(path: Path) -> float:
    """RFC 9438: the larger of section 4.3's estimate for AIMD(alpha, beta) and section 5.1's for the
    curve."""
    c, beta = 0.4, 0.7
    alpha = 3 * (1 - beta) / (1 + beta)
    aimd: float = sqrt(alpha * (1 + beta) / (2 * (1 - beta) * path.loss))
    curve: float = (c * (3 + beta) / (4 * (1 - beta))) ** 0.25 * (path.rtt_ms / 1000 / path.loss) ** 0.75
    return path.goodput_mbps(max(aimd, curve))


def bbr(path: Path) -> float:
    """draft-ietf-ccwg-bbr, "Design Considerations for Choosing Constant Parameters": between two probes for
    bandwidth each round trip with a loss rate p takes p off the sending rate, (1 - p)^n after n of them; a
    probe restores it. Probes come every 63 round trips, or as many as the path holds packets, or every 2 to
    3 s. The mean over such a cycle, less what is lost."""
    held = path.rate_mbps * path.rtt_ms * 1000 / 8 / (path.datagram + WIRE_OVERHEAD_BYTES)
    rounds = max(1.0, min(63.0, held, 2500 / path.rtt_ms))
    if path.loss == 0:
        return path.capacity_mbps
    return path.capacity_mbps * float(1 - (1 - path.loss) ** rounds) / (rounds * path.loss)


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all have the same, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares > 0 else 0.0

"""Measurements as typed values; times in seconds unless a name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """struct stoq_connection_stats: one connection, now."""

    rtt_min: float
    rtt_smoothed: float
    rtt_var: float
    rtt_latest: float
    congestion_window: int
    bytes_in_flight: int
    ssthresh: int
    pacing_rate_bps: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    packets_lost_spurious: int
    pto_count: int
    bytes_sent: int
    bytes_received: int
    stream_bytes_sent: int
    stream_bytes_received: int
    stream_bytes_retransmitted: int
    key_updates: int
    handshake: float
    datagram_bytes: int
    ecn_capable: bool
    aead: int


@dataclass(frozen=True, slots=True)
class PerfResult:
    """struct stoq_perf_result: what a perf client in C measured."""

    bytes_sent: int
    bytes_received: int
    requests: int
    duration: float
    latency_min: float
    latency_p50: float
    latency_p90: float
    latency_p99: float
    latency_max: float


def from_c(kind: type[Any], source: Any) -> Any:
    """Make `kind` from a C struct with the same fields; a field that C calls NAME_ns becomes NAME in
    seconds."""
    values: dict[str, Any] = {}
    for name in kind.__dataclass_fields__:
        if hasattr(source, f"{name}_ns"):
            values[name] = getattr(source, f"{name}_ns") / 1e9
        else:
            values[name] = getattr(source, name)
    if "ecn_capable" in values:
        values["ecn_capable"] = bool(values["ecn_capable"])
    return kind(**values)

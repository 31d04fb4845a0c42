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


@dataclass(frozen=True, slots=True)
class QueueStats:
    """struct stoq_queue_stats: one AF_XDP queue, now; csrc/io/io.h explains the fields. Flags are 0 or 1."""

    worker: int
    queue: int
    ifindex: int
    native: int
    zero_copy: int
    need_wakeup: int
    busy_poll: int
    multi_buffer: int
    tx_checksum: int
    frames: int
    frame_bytes: int
    frames_fill: int
    frames_rx: int
    frames_worker: int
    frames_free: int
    frames_tx: int
    frames_completion: int
    ring_fill: int
    ring_rx: int
    ring_tx: int
    ring_completion: int
    wakeups_rx: int
    wakeups_tx: int
    rx_batches: int
    tx_batches: int
    tx_socket: int
    rx_socket: int
    routes: int
    neighbours: int
    kernel_rx_dropped: int
    kernel_rx_invalid: int
    kernel_tx_invalid: int
    kernel_rx_ring_full: int
    kernel_fill_empty: int
    kernel_tx_empty: int

    @property
    def frames_accounted(self) -> int:
        """Frames by owner, summed: `frames`, whenever nothing is under way."""
        return (
            self.frames_fill
            + self.frames_rx
            + self.frames_worker
            + self.frames_free
            + self.frames_tx
            + self.frames_completion
        )


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

"""A node's figures as the answer to `status`.

`NodeView` and `GuardView` are what is asked of a datapath and of its guard; dataplane.Datapath is one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Protocol

from control.local.protocol import GuardStatus, QueueStatus, StatusAnswer, VerdictStatus, WorkerStatus
from control.report import TRAIN_BUCKETS
from dataplane.address import Address
from dataplane.guard import Block, GuardPolicy, GuardReport, Mirrored
from dataplane.stats import QueueStats
from dataplane.tables import Verdict

FRAME_OWNERS = ("fill", "rx", "worker", "free", "tx", "completion")
RINGS = ("fill", "rx", "tx", "completion")
KERNEL = ("rx_dropped", "rx_invalid", "tx_invalid", "rx_ring_full", "fill_empty", "tx_empty")


class GuardView(Protocol):
    """dataplane.guard.Guard says more about each name."""

    @property
    def report(self) -> GuardReport: ...
    @property
    def policy(self) -> GuardPolicy: ...
    @property
    def mirror_fd(self) -> int: ...
    def counts(self) -> dict[Verdict, tuple[int, int]]: ...
    def block(self, prefix: str, seconds: float | None) -> None: ...
    def unblock(self, prefix: str) -> bool: ...
    def blocks(self) -> list[Block]: ...
    def mirror(self, verdicts: Iterable[Verdict], sample: int, snap: int = ...) -> None: ...
    def read_mirror(self, limit: int) -> list[Mirrored]: ...


class NodeView(Protocol):
    """An open datapath; dataplane.Datapath says more about each name."""

    @property
    def local_address(self) -> Address: ...
    @property
    def crypto_name(self) -> str: ...
    @property
    def cores(self) -> Sequence[int]: ...
    @property
    def connections(self) -> Sequence[object]: ...
    @property
    def handshakes(self) -> dict[str, int]: ...
    def describe(self) -> Sequence[str]: ...
    def counters(self, *, worker: int | None = None) -> dict[str, int]: ...
    def drops(self, *, worker: int | None = None) -> dict[str, int]: ...
    def io_stats(self) -> dict[str, int]: ...
    def pool_stats(self) -> dict[str, int]: ...
    def train_histogram(self) -> tuple[list[int], list[int]]: ...
    def queues(self) -> list[QueueStats]: ...

    @property
    def guard(self) -> GuardView | None: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while a node runs."""

    command: str
    secrets_allowed: bool


def version() -> str:
    """Of the distribution."""
    try:
        return metadata.version("stoq-appliance")
    except metadata.PackageNotFoundError:
        return "unknown"


def interface_name(index: int) -> str:
    """An interface's name; its number when it has gone."""
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """Without the zeros."""
    return {name: count for name, count in counts.items() if count}


def _batch_size(packets: int, batches: int) -> float | None:
    return packets / batches if batches else None


def _queue(stats: QueueStats, worker: WorkerStatus) -> QueueStatus:
    return QueueStatus(
        worker=worker.worker,
        queue=stats.queue,
        interface=interface_name(stats.ifindex),
        native=bool(stats.native),
        zero_copy=bool(stats.zero_copy),
        why=worker.backend,
        need_wakeup=bool(stats.need_wakeup),
        busy_poll=bool(stats.busy_poll),
        multi_buffer=bool(stats.multi_buffer),
        tx_checksum=bool(stats.tx_checksum),
        frames_total=stats.frames,
        frame_bytes=stats.frame_bytes,
        frames={owner: getattr(stats, f"frames_{owner}") for owner in FRAME_OWNERS},
        rings={ring: getattr(stats, f"ring_{ring}") for ring in RINGS},
        wakeups_rx=stats.wakeups_rx,
        wakeups_tx=stats.wakeups_tx,
        rx_batches=stats.rx_batches,
        tx_batches=stats.tx_batches,
        rx_batch_size=_batch_size(worker.counters.get("datagrams_received", 0), stats.rx_batches),
        tx_batch_size=_batch_size(worker.counters.get("datagrams_sent", 0), stats.tx_batches),
        rx_socket=stats.rx_socket,
        tx_socket=stats.tx_socket,
        routes=stats.routes,
        neighbours=stats.neighbours,
        kernel={name: getattr(stats, f"kernel_{name}") for name in KERNEL},
    )


def _guard(guard: GuardView) -> GuardStatus:
    report = guard.report
    return GuardStatus(
        interface=interface_name(report.ifindex),
        mode=report.mode,
        notes=report.notes,
        program_id=report.program_id,
        instructions=report.instructions,
        verdicts={
            verdict.key: VerdictStatus(packets, octets)
            for verdict, (packets, octets) in sorted(guard.counts().items())
        },
        policy=asdict(guard.policy),
        blocked_prefixes=len(guard.blocks()),
    )


def status(node: NodeView, facts: Facts, *, uptime: float, capturing: bool) -> StatusAnswer:
    """All of it. Raises what the datapath raises when it is closed."""
    workers = [
        WorkerStatus(number, core, text, node.counters(worker=number), nonzero(node.drops(worker=number)))
        for number, (core, text) in enumerate(zip(node.cores, node.describe(), strict=True))
    ]
    sent, received = node.train_histogram()
    guard = node.guard
    return StatusAnswer(
        version=version(),
        pid=os.getpid(),
        command=facts.command,
        uptime=uptime,
        address=str(node.local_address),
        crypto=node.crypto_name,
        secrets_allowed=facts.secrets_allowed,
        capturing=capturing,
        connections=len(node.connections),
        handshakes=node.handshakes,
        workers=workers,
        counters=node.counters(),
        drops=nonzero(node.drops()),
        io=node.io_stats(),
        pools=node.pool_stats(),
        trains_sent=dict(zip(TRAIN_BUCKETS, sent, strict=True)),
        trains_received=dict(zip(TRAIN_BUCKETS, received, strict=True)),
        queues=[_queue(stats, workers[stats.worker]) for stats in node.queues()],
        guard=_guard(guard) if guard is not None else None,
    )

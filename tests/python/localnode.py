"""A hand-made node for tests of the control socket: what a datapath with AF_XDP queues and a guard would say,
and a mirror that the test fills."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from pathlib import Path

from control.console import Output
from control.local import place
from control.local.keylog import KeyLog
from control.local.server import control_socket
from control.local.snapshot import Facts
from dataplane.address import Address
from dataplane.errors import DatapathError
from dataplane.guard import SNAP_BYTES, Block, GuardPolicy, GuardReport, Mirrored
from dataplane.stats import QueueStats
from dataplane.tables import Counter, DropReason, Verdict

LOOPBACK_IFINDEX = 1


def queue(worker: int, **other: int) -> QueueStats:
    """4096 frames, each accounted for."""
    values = {
        "queue": worker, "ifindex": LOOPBACK_IFINDEX, "native": 1, "zero_copy": 0, "need_wakeup": 1,
        "busy_poll": 0, "multi_buffer": 0, "tx_checksum": 1, "frames": 4096, "frame_bytes": 2048,
        "frames_fill": 2000, "frames_rx": 40, "frames_worker": 8, "frames_free": 2000, "frames_tx": 30,
        "frames_completion": 18, "ring_fill": 1990, "ring_rx": 41, "ring_tx": 31, "ring_completion": 17,
        "wakeups_rx": 5, "wakeups_tx": 6, "rx_batches": 100, "tx_batches": 50, "tx_socket": 3,
        "rx_socket": 2, "routes": 4, "neighbours": 1, "kernel_rx_dropped": 71, "kernel_rx_invalid": 72,
        "kernel_tx_invalid": 73, "kernel_rx_ring_full": 74, "kernel_fill_empty": 75, "kernel_tx_empty": 76,
    }  # fmt: skip
    return QueueStats(worker=worker, **(values | other))


class Guard:
    """Remembers what it is asked for. `push` puts frames into the mirror, which holds `capacity`."""

    def __init__(self) -> None:
        self.report = GuardReport(LOOPBACK_IFINDEX, "native", 1234, 77, "native, as the driver permits")
        self.policy = GuardPolicy(500_000, 4000, 500, 200_000, 1000, 1000, True, False)
        self.blocked: dict[str, float | None] = {}
        self.mirrors: list[tuple[list[Verdict], int, int]] = []
        self.changed = asyncio.Event()
        self.capacity = 1000
        self.mirror_dropped = 7  # Of before.
        self.broken: str | None = None
        self._ring: deque[Mirrored] = deque()
        self.mirror_fd = os.eventfd(0, os.EFD_NONBLOCK)

    def close(self) -> None:
        os.close(self.mirror_fd)

    def counts(self) -> dict[Verdict, tuple[int, int]]:
        return {verdict: (int(verdict) * 10, int(verdict) * 1000) for verdict in Verdict}

    def block(self, prefix: str, seconds: float | None) -> None:
        if self.broken:
            raise DatapathError(self.broken)
        self.blocked[prefix] = seconds

    def unblock(self, prefix: str) -> bool:
        return self.blocked.pop(prefix, 0.0) != 0.0

    def blocks(self) -> list[Block]:
        return [Block(IPv6Network(prefix), seconds) for prefix, seconds in self.blocked.items()]

    def mirror(self, verdicts: Iterable[Verdict], sample: int, snap: int = SNAP_BYTES) -> None:
        if self.broken:
            raise DatapathError(self.broken)
        self.mirrors.append((list(verdicts), sample, snap))
        self.changed.set()

    @property
    def mirroring(self) -> bool:
        return bool(self.mirrors) and self.mirrors[-1][1] > 0

    async def until_mirroring(self, on: bool) -> None:
        """Returns when the mirror is on or off."""
        async with asyncio.timeout(10):
            while self.mirroring != on:
                self.changed.clear()
                await self.changed.wait()

    def push(self, *frames: Mirrored) -> None:
        for frame in frames:
            if len(self._ring) >= self.capacity:
                self.mirror_dropped += 1
            else:
                self._ring.append(frame)
        os.eventfd_write(self.mirror_fd, 1)

    def read_mirror(self, limit: int) -> list[Mirrored]:
        try:
            os.eventfd_read(self.mirror_fd)
        except BlockingIOError:
            pass
        return [self._ring.popleft() for _ in range(min(limit, len(self._ring)))]

    @property
    def waiting(self) -> int:
        return len(self._ring)


@dataclass
class Node:
    """A node with two workers, each with a queue."""

    guard: Guard | None = None
    local_address: Address = field(default_factory=lambda: Address("::1", 9292))
    crypto_name: str = "ipsec-mb"
    connections: tuple[object, ...] = ()
    handshakes: dict[str, int] = field(default_factory=lambda: {"processes": 0, "resumed": 0})
    scale: int = 1  # Counts grow with it.

    @property
    def cores(self) -> list[int]:
        return [0, -1]

    def describe(self) -> list[str]:
        return ["afxdp: copy: the driver has no zero-copy", "afxdp: the same on queue 1"]

    def counters(self, *, worker: int | None = None) -> dict[str, int]:
        share = 2 if worker is None else 1
        return {counter.key: share * self.scale * 250 for counter in Counter}

    def drops(self, *, worker: int | None = None) -> dict[str, int]:
        return {r.key: 9 * self.scale if r is DropReason.AEAD and worker != 1 else 0 for r in DropReason}

    def io_stats(self) -> dict[str, int]:
        return {
            "rx_packets": 500 * self.scale,
            "rx_bytes": 1 << 20,
            "tx_packets": 4,
            "tx_bytes": 5,
            "waits": 0,
        }

    def pool_stats(self) -> dict[str, int]:
        return {"metadata_bytes": 1 << 28, "metadata_used": 4096, "connections": 1}

    def train_histogram(self) -> tuple[list[int], list[int]]:
        return [1, 0, 0, 0, 0, 0, 3], [0] * 7

    def queues(self) -> list[QueueStats]:
        return [queue(0), queue(1, rx_batches=0)] if self.guard is not None else []


class Silent(Output):
    """Says nothing; remembers what it would."""

    def __init__(self) -> None:
        super().__init__(json_lines=False)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def event(self, event: str, text: str = "", **fields: object) -> None:
        self.notes.append(f"{event} {text} {fields}")


@asynccontextmanager
async def served(
    path: Path, *, guarded: bool = True, key_log: KeyLog | None = None, where: str | None = None
) -> AsyncIterator[Node]:
    """A node whose control socket is at `path`."""
    guard = Guard() if guarded else None
    node = Node(guard)
    facts = Facts("serve", key_log is not None)
    try:
        async with control_socket(Silent(), node, where or str(path), facts, key_log, place.owner()):
            yield node
    finally:
        if guard is not None:
            guard.close()

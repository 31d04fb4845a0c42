"""Running nodes: every frame of every AF_XDP queue has exactly one owner.

A node counts its frames ring by ring, one after the other, while the kernel moves them; so a single look at a
busy queue may miss some. Frames are lost only where a queue that did nothing between looks still misses them;
more owners than frames is an error at any time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from control.doctor.finding import Finding, good, missing, ok
from control.local import client
from control.local.protocol import QueueStatus, StatusAnswer, StatusRequest
from dataplane.errors import StoqError

LOOKS = 20  # At most, each
LOOK_SECONDS = 0.05  # after such a pause: a node publishes its figures every millisecond.


def _work(queue: QueueStatus) -> tuple[object, ...]:
    """What moves when the queue does anything."""
    batches = (queue.rx_batches, queue.tx_batches, queue.wakeups_rx, queue.wakeups_tx)
    return (*batches, *queue.frames.values(), *queue.rings.values(), *queue.kernel.values())


def judge(name: str, looks: list[QueueStatus]) -> Finding | None:
    """What the looks at one queue so far say; None: look again."""
    last = looks[-1]
    owned, total = sum(last.frames.values()), last.frames_total
    values = {"frames": total, "owned": owned, **last.frames}
    owners = ", ".join(f"{owner} {count:,}" for owner, count in last.frames.items())
    if owned == total:
        return good(name, f"{total:,} frames, each with one owner: {owners}", **values)
    if owned > total:
        return missing(name, f"{owned:,} owners for {total:,} frames: {owners}",
                       "restart the node and report this: a frame has two owners", **values)  # fmt: skip
    if len(looks) >= 3 and all(_work(queue) == _work(last) for queue in looks[-3:]):
        return missing(name, f"{total - owned:,} of {total:,} frames are nobody's: {owners}",
                       "restart the node and report this: frames were lost", **values)  # fmt: skip
    if len(looks) >= LOOKS:
        return ok(name, f"{total - owned:,} of {total:,} frames under way in the last look: {owners}",
                  "ask again when the node is less busy", **values)  # fmt: skip
    return None


def _name(path: Path, queue: QueueStatus) -> str:
    return f"node {path.stem}, {queue.interface} queue {queue.queue}"


async def look() -> list[Finding]:
    """A finding for each AF_XDP queue of each node that runs here and answers; one for a node without any."""
    findings: list[Finding] = []
    for path, status in await client.statuses():
        if status.queues:
            findings += await _queues(path, status)
        else:
            findings.append(good(f"node {path.stem}", f"on {status.address}: has no AF_XDP queue"))
    return findings


async def _queues(path: Path, status: StatusAnswer) -> list[Finding]:
    looks: dict[str, list[QueueStatus]] = {}
    done: dict[str, Finding] = {}
    while True:
        for queue in status.queues:
            name = _name(path, queue)
            looks.setdefault(name, []).append(queue)
            finding = None if name in done else judge(name, looks[name])
            if finding is not None:
                done[name] = finding
        if len(done) == len(looks):
            return list(done.values())
        await asyncio.sleep(LOOK_SECONDS)
        try:
            status = await client.ask(path, StatusRequest(), StatusAnswer)
        except StoqError as error:
            return [*done.values(), ok(f"node {path.stem}", f"ended while we looked: {error}")]

"""A log that kills itself: `python -m tests.ctlog.killed` reads orders, a line of JSON each, and forks a child for each.
The child opens the log of the order's directory, puts it under load and ends by SIGKILL at the order's n-th step; what
it gave away until then is in `DIR/given`, written before it was given.

A step is the boundary before or after every act that is to be durable: an object's write, sync and rename, each half of
a put of several objects, the swap of the head, a removal, the index, the handing out of an SCT.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from control.ctlog import local
from control.ctlog.index import Index, Row
from control.ctlog.local import LocalStorage, SqliteLock
from control.ctlog.log import Log, Options
from control.ctlog.signer import Signer
from control.ctlog.storage import LockStore, Storage
from tests.ctlog.world import ACCEPTOR, ORIGIN, submission

CLIENTS = 6
LIFE_SECONDS = 20  # A child that meets no n-th step ends so, and the test says so.


@dataclass
class Countdown:
    """Kills this process at the n-th step."""

    left: int

    def step(self) -> None:
        """One boundary."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Record:
    """What was given away, one line each; in the file as soon as the call is done."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *parts: str) -> None:
        """One line."""
        os.write(self._file, (" ".join(parts) + "\n").encode())


class DyingStorage:
    """A storage with steps."""

    def __init__(self, inner: Storage, countdown: Countdown, record: Record, dice: random.Random) -> None:
        self._inner, self._countdown, self._record, self._dice = inner, countdown, record, dice

    async def put(self, objects: Mapping[str, bytes]) -> None:
        """In two halves, in any order."""
        if "checkpoint" in objects:
            self._record.write("head", objects["checkpoint"].hex())
        keys = list(objects)
        self._dice.shuffle(keys)
        middle = self._dice.randint(0, len(keys))
        for part in (keys[:middle], keys[middle:]):
            self._countdown.step()
            await self._inner.put({key: objects[key] for key in part})
        self._countdown.step()

    async def get(self, key: str) -> bytes:
        """See Storage."""
        return await self._inner.get(key)

    async def delete(self, prefix: str) -> None:
        """See Storage."""
        self._countdown.step()
        await self._inner.delete(prefix)
        self._countdown.step()

    async def close(self) -> None:
        """See Storage."""
        await self._inner.close()

    def describe(self) -> str:
        """See Storage."""
        return self._inner.describe()


class DyingLock:
    """A lock store with steps."""

    def __init__(self, inner: LockStore, countdown: Countdown, record: Record) -> None:
        self._inner, self._countdown, self._record = inner, countdown, record

    async def load(self, log_id: bytes) -> bytes | None:
        """See LockStore."""
        return await self._inner.load(log_id)

    async def create(self, log_id: bytes, head: bytes) -> None:
        """See LockStore."""
        await self._inner.create(log_id, head)

    async def replace(self, log_id: bytes, old: bytes, new: bytes) -> None:
        """See LockStore."""
        self._countdown.step()
        await self._inner.replace(log_id, old, new)
        self._record.write("head", new.hex())
        self._countdown.step()

    async def close(self) -> None:
        """See LockStore."""
        await self._inner.close()

    def describe(self) -> str:
        """See LockStore."""
        return self._inner.describe()


class DyingIndex(Index):
    """An index with steps."""

    countdown: Countdown

    async def add(self, rows: list[Row], size: int) -> None:  # type: ignore[override]
        """See Index."""
        self.countdown.step()
        await super().add(rows, size)
        self.countdown.step()


def step_files(countdown: Countdown) -> None:
    """Every sync and rename of a file of objects is a step too (called in the child only)."""
    fsync, rename = os.fsync, Path.rename

    def stepping_fsync(descriptor: int) -> None:
        countdown.step()
        fsync(descriptor)

    def stepping_rename(path: Path, target: Path) -> Path:
        countdown.step()
        return rename(path, target)

    local.os.fsync = stepping_fsync  # type: ignore[attr-defined]
    Path.rename = stepping_rename  # type: ignore[assignment, method-assign]


def real_clock() -> float:
    """The tests' epoch goes on from the present, so that a restart's clock is never behind."""
    import time

    return time.time()


async def live(directory: Path, key: bytes, steps: int, seed: int, begin: int) -> None:
    """Open the log and submit to it until death."""
    countdown, record, dice = Countdown(steps), Record(directory / "given"), random.Random(seed)
    step_files(countdown)
    private: Any = load_pem_private_key(key, None)
    signer = Signer(ORIGIN, private)
    storage = DyingStorage(LocalStorage(directory / "data"), countdown, record, dice)
    lock = DyingLock(SqliteLock(directory / "lock.db"), countdown, record)
    index = DyingIndex(directory / "index.db")
    index.countdown = countdown
    log = await Log.open(signer, ACCEPTOR, storage, lock, index, real_clock, Options(period=0.0))
    numbers = iter(range(begin, begin + 1_000_000))

    async def client() -> None:
        while True:
            batch = [next(numbers) for _ in range(dice.choice((1, 1, 3, 20, 60)))]
            if dice.random() < 0.3:
                batch.append(dice.randrange(batch[0] + 1))  # Maybe in the log, on its way, or new.
            entries = await asyncio.gather(*(log.add(submission(number)) for number in batch))
            for number, entry in zip(batch, entries, strict=True):
                record.write("sct", str(number), str(entry.index), str(entry.timestamp), entry.leaf_hash.hex())
            countdown.step()

    record.write("head", log.note.hex())
    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def child(order: dict[str, Any]) -> None:
    """Never returns."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives the test.
    signal.alarm(LIFE_SECONDS)
    if after := order.get("after_us"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, after / 1e6)  # SIGALRM's default ends a process as SIGKILL does.
    try:
        key = bytes.fromhex(order["key"])
        asyncio.run(live(Path(order["directory"]), key, order["steps"], order["seed"], order["begin"]))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(1)


def main() -> None:
    """Answer each order with the child's wait status."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            child(json.loads(line))
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

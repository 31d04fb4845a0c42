"""kill -9 between any two durability steps: whatever was given away holds, and the log goes on by itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.ctlog import merkle
from control.ctlog.fsck import check
from control.ctlog.log import Log
from control.ctlog.note import TreeHead, open_checkpoint
from control.ctlog.sequencer import CHECKPOINT
from control.ctlog.signer import Signer
from control.ctlog.structs import LogEntry
from tests.ctlog.killed import real_clock
from tests.ctlog.world import ORIGIN, World, check_heads, new_key

ROOT = Path(__file__).parents[2]
LOGS, KILLS = 20, 10  # Seeded points: the product.
TIMED = 20


class Killer:
    """The helper process that forks the children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ctlog.killed"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def order(self, **order: object) -> int:
        """Let a child live and die; the signal that ended it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert os.WIFSIGNALED(status), "the child ended by itself: its error is on standard error"
        return os.WTERMSIG(status)

    def close(self) -> None:
        """End it; a child of it ends with it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """Started once: what costs is to import."""
    one = Killer()
    yield one
    one.close()


@pytest.fixture
def quick_directory() -> Iterator[Path]:
    """In memory where there is such a place: a killed process leaves the same there as on a disk."""
    shm = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Given:
    """Everything that children gave away."""

    heads: dict[bytes, TreeHead] = field(default_factory=dict)
    entries: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)  # Number: index, timestamp, leaf hash.
    read: int = 0

    def take(self, path: Path, key: ec.EllipticCurvePublicKey) -> list[int]:
        """Read on; numbers that were given an SCT since. One submission has one promise for ever."""
        new = []
        with path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                self.read += len(line)
                kind, *parts = line.decode().split()
                if kind == "head":
                    note = bytes.fromhex(parts[0])
                    if note not in self.heads:
                        self.heads[note] = open_checkpoint(note, ORIGIN, key)
                else:
                    number, index, timestamp = map(int, parts[:3])
                    promise = (index, timestamp, bytes.fromhex(parts[3]))
                    assert self.entries.setdefault(number, promise) == promise
                    new.append(number)
        return new


async def check_promises(log: Log, given: Given, numbers: list[int]) -> None:
    """Entries where they were promised, and proofs of some."""
    tile: list[LogEntry] = []
    for place, number in enumerate(sorted(numbers, key=lambda one: given.entries[one][0])):
        index, timestamp, leaf = given.entries[number]
        if not tile or not tile[0].index <= index <= tile[-1].index:
            tile = await log.entries(index // 256 * 256, index // 256 * 256 + 255)
        entry = tile[index - tile[0].index]
        assert (entry.index, entry.timestamp, entry.leaf_hash) == (index, timestamp, leaf)
        if place % 16 == 0:
            proof = await log.inclusion(index)
            merkle.verify_inclusion(index, log.head.size, leaf, proof, log.head.root)
            assert await log.find(leaf) == index


async def examine(world: World, given: Given) -> int:
    """Start the log again, as one does, and hold it to its word."""
    known = len(given.heads)
    new = given.take(world.directory / "given", world.signer.key.public_key())
    note = await world.lock.load(world.signer.log_id)
    assert note is not None
    given.heads[note] = open_checkpoint(note, ORIGIN, world.signer.key.public_key())
    async with world.log() as log:
        assert await world.storage.get(CHECKPOINT) == note == log.published.note
        await check_heads(log, list(given.heads.values())[known:])
        await check_promises(log, given, new)
        return log.head.size


async def finish(world: World, given: Given) -> None:
    """At the end everything once more, with every object of the log."""
    async with world.log() as log:
        await check_heads(log, list(given.heads.values()))
        await check_promises(log, given, list(given.entries)[::3])
        report = await check(
            ORIGIN, world.signer.key.public_key(), world.storage, lock=world.lock, index=log._index, chains=False
        )
        assert report.clean and report.entries == log.head.size, report.findings


def kill_and_examine(directory: Path, killer: Killer, seed: int, kills: int, *, timed: bool) -> tuple[int, int]:
    """One log that is killed again and again; returns its size in the end and how many promises it gave."""
    dice, given = random.Random(seed), Given()
    world = World(directory, Signer(ORIGIN, new_key()), real_clock)
    pem = world.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    async def run() -> int:
        await world.create()
        size = 0
        for kill in range(kills):
            # Every third start comes after two deaths, the second of them soon: in the recovery from the first.
            steps = dice.randint(1, 25) if kill % 3 == 1 else dice.randint(1, 160)
            after = dice.randint(1_000, 60_000) if timed else 0
            killer.order(
                directory=str(directory), key=pem.hex(), steps=1 << 40 if timed else steps, after_us=after,
                seed=dice.getrandbits(32), begin=len(given.entries) + 2000 * kill,
            )  # fmt: skip
            if kill % 3 != 0:
                size = await examine(world, given)
        size = await examine(world, given)
        await finish(world, given)
        return size

    try:
        return asyncio.run(run()), len(given.entries)
    finally:
        asyncio.run(world.close())


@pytest.mark.parametrize("seed", range(LOGS))
def test_killed_between_any_two_steps(quick_directory: Path, killer: Killer, seed: int) -> None:
    size, promised = kill_and_examine(quick_directory, killer, seed, KILLS, timed=False)
    assert promised <= size
    assert promised > 100  # Else nothing was tested.


def test_killed_at_any_time(quick_directory: Path, killer: Killer) -> None:
    kill_and_examine(quick_directory, killer, 99, TIMED, timed=True)


def test_a_child_dies_by_sigkill_at_its_step(quick_directory: Path, killer: Killer) -> None:
    world = World(quick_directory, Signer(ORIGIN, new_key()), real_clock)
    pem = world.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    async def run() -> None:
        await world.create()
        await world.close()

    asyncio.run(run())
    order = {"directory": str(quick_directory), "key": pem.hex(), "steps": 30, "seed": 1, "begin": 0}
    assert killer.order(**order) == signal.SIGKILL
    assert b"head " in (quick_directory / "given").read_bytes()

"""What the sequencer does when its stores fail, lie or belong to somebody else: it goes on where that is safe, and
where it is not it stops and says why. Never two heads that do not go on each other, never a promise for a lost entry."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from control.ctlog import merkle, sequencer
from control.ctlog.errors import LockConflict, LogError, LogStopped, Unavailable
from control.ctlog.local import SqliteLock
from control.ctlog.note import open_checkpoint
from control.ctlog.sequencer import CHECKPOINT, Sequencer, staging_key
from control.ctlog.signer import Signer
from control.ctlog.structs import LogEntry
from control.ctlog.tiles import Tree
from tests.ctlog.faulty import Gate, HookedLock, HookedStorage
from tests.ctlog.world import ORIGIN, Clock, World, check_heads, grow, new_key, run_with_deadline, submission, world


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between tries of what must succeed."""
    monkeypatch.setattr(sequencer, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(sequencer, "LONGEST_PAUSE", 0.002)


class Crash(BaseException):
    """The process ends here: nothing of ours catches it."""


def hooked(here: World) -> tuple[HookedStorage, HookedLock]:
    """A world whose stores can be made to fail."""
    storage, lock = HookedStorage(here.storage), HookedLock(here.lock)
    here.storage, here.lock = storage, lock
    return storage, lock


async def interrupted(here: World, entries: int = 300) -> tuple[HookedStorage, HookedLock]:
    """A log of 300 entries with a round that was committed, and then the process was gone."""
    await grow(await here.sequencer(), [entries])
    storage, lock = hooked(here)
    one = await here.sequencer()

    async def crash(objects: Mapping[str, bytes]) -> None:
        if any(key.startswith("tile/") for key in objects):
            raise Crash

    storage.before = crash
    with pytest.raises(Crash):
        await grow(one, [260], entries)
    storage.before = HookedStorage(here.storage).before
    return storage, lock


# ---- the storage fails ----


@pytest.mark.parametrize("what", ["issuer/", "staging/"])
def test_storage_fails_before_the_commit(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            storage, lock = hooked(here)
            one, failing = await here.sequencer(), True

            async def fail(objects: Mapping[str, bytes]) -> None:
                if failing and any(key.startswith(what) for key in objects):
                    raise Unavailable("no room")

            storage.before = fail
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await one.sequence([submission(0)])
            assert not lock.heads and one.published.head.size == 0
            failing = False
            assert [entry.index for entry in await one.sequence([submission(0)])] == [0]
            # What the failed rounds staged is gone with the first one that did not.
            assert not list((tmp_path / "data" / "staging").iterdir())

    run_with_deadline(main())


@pytest.mark.parametrize("what", ["tile/", CHECKPOINT])
@pytest.mark.parametrize("error", [Unavailable("away"), OSError(5, "Input/output error")])
def test_storage_fails_for_a_while_after_the_commit(tmp_path: Path, what: str, error: Exception) -> None:
    """Promises wait, then come."""

    async def main() -> None:
        async with world(tmp_path) as here:
            storage, lock = hooked(here)
            left, tried = 5, asyncio.Event()

            async def fail(objects: Mapping[str, bytes]) -> None:
                nonlocal left
                if any(key.startswith(what) for key in objects):
                    tried.set()
                    if left:
                        left -= 1
                        raise error

            storage.before = fail
            async with here.log() as log:
                waiting = asyncio.create_task(log.add(submission(1)))
                await tried.wait()
                assert not waiting.done() and log.head.size == 0
                entry = await waiting
                assert entry.index == 0 and log.head.size == 1 and left == 0
                assert log.sequencer.counts.retries == 5
                assert await here.storage.get(CHECKPOINT) == lock.heads[-1]

    run_with_deadline(main())


@pytest.mark.parametrize("what", ["tile/", CHECKPOINT])
@pytest.mark.parametrize("kind", [LogError, asyncio.CancelledError])
def test_a_round_cut_off_after_the_commit_is_never_built_beside(
    tmp_path: Path, what: str, kind: type[BaseException]
) -> None:
    """An error that trying again does not cure, or a cancellation: to go on in memory would fork the tree."""

    async def main() -> None:
        async with world(tmp_path) as here:
            storage, lock = hooked(here)
            one = await here.sequencer()

            async def fail(objects: Mapping[str, bytes]) -> None:
                if any(key.startswith(what) for key in objects):
                    raise kind("for good")

            storage.before = fail
            with pytest.raises(kind):
                await one.sequence([submission(0)])
            storage.before = HookedStorage(here.storage).before
            with pytest.raises(LogStopped, match="not finished"):
                await one.sequence([submission(1)])
            assert len(lock.heads) == 1
            async with here.log() as log:
                assert log.head.size == 1
                assert (await log.add(submission(0))).index == 0
                assert (await log.add(submission(1))).index == 1
                await check_heads(log, [open_checkpoint(one_, ORIGIN, here.signer.key.public_key()) for one_ in lock.heads])

    run_with_deadline(main())


def test_disk_full_at_each_step(small_disk: Path) -> None:
    """A real full disk: what cannot be written is refused, and the log goes on when there is room."""
    filler = small_disk / "filler"

    async def fill(keep: int) -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                pass
            file.truncate(max(0, file.tell() - keep))

    async def main() -> None:
        async with world(small_disk / "log") as here:
            number = 0
            async with here.log() as log:
                for keep in (0, 4096, 8192, 16384, 24576, 32768, 49152, 65536, 98304):
                    before = log.head
                    await fill(keep)
                    batch = [submission(one, 300) for one in range(number, number + 40)]
                    number += 40
                    tries = asyncio.gather(*(log.add(one) for one in batch), return_exceptions=True)
                    await asyncio.wait({tries}, timeout=0.1)
                    filler.unlink()  # What was committed is finished as soon as there is room.
                    for answer in await tries:
                        assert isinstance(answer, Unavailable | LogEntry), answer
                    await asyncio.gather(*(again(log.add, one) for one in batch))
                    await check_heads(log, [before])
                    assert log.stopped is None
                size = log.head.size
                assert size == number  # Nothing twice, nothing lost.
            async with here.log() as log:
                assert log.head.size == size
                assert [(await log.add(submission(one, 300))).index < size for one in range(0, number, 37)]

    run_with_deadline(main())


async def again(add: Callable[..., Awaitable[object]], one: object) -> None:
    """As a client does that is told to try again later."""
    while True:
        try:
            await add(one)
            return
        except Unavailable:
            await asyncio.sleep(0.002)


# ---- the lock store answers ambiguously ----


@pytest.mark.parametrize("error", [Unavailable("timed out"), LockConflict("twice"), OSError(5, "Input/output error")])
def test_the_swap_happened_but_an_error_is_answered(tmp_path: Path, error: Exception) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            _, lock = hooked(here)
            one = await here.sequencer()

            async def swap_and_fail(swap: Callable[[], Awaitable[None]]) -> None:
                await swap()
                raise error

            lock.on_swap = swap_and_fail
            await grow(one, [3, 0, 300])
            assert one.published.head.size == 303 and len(lock.heads) == 3
            assert (await here.sequencer()).published.head == one.published.head

    run_with_deadline(main())


def test_the_swap_did_not_happen_and_the_answer_is_late(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            _, lock = hooked(here)
            one = await here.sequencer()
            loads = 3

            async def fail(swap: Callable[[], Awaitable[None]]) -> None:
                raise Unavailable("timed out")

            def load() -> None:
                nonlocal loads
                if loads:
                    loads -= 1
                    raise Unavailable("timed out too")

            lock.on_swap, lock.on_load = fail, load
            with pytest.raises(Unavailable):
                await one.sequence([submission(0)])
            assert one.published.head.size == 0 and loads == 0 and one.stopped is None
            lock.on_swap = HookedLock(here.lock).on_swap
            await grow(one, [5])
            assert one.published.head.size == 5

    run_with_deadline(main())


@pytest.mark.parametrize("late_wins", [True, False])
def test_a_swap_that_arrives_after_it_was_given_up(tmp_path: Path, late_wins: bool) -> None:
    """A request lingers in the network: it may arrive before the next one, which then must not, or after it."""

    async def main() -> None:
        async with world(tmp_path) as here:
            _, lock = hooked(here)
            one = await here.sequencer()
            await grow(one, [10])
            lingering: list[Callable[[], Awaitable[None]]] = []

            async def linger(swap: Callable[[], Awaitable[None]]) -> None:
                lingering.append(swap)
                raise Unavailable("timed out")

            lock.on_swap = linger
            with pytest.raises(Unavailable):
                await grow(one, [20], 10)
            lock.on_swap = HookedLock(here.lock).on_swap
            if late_wins:
                await lingering[0]()
                with pytest.raises(LogStopped, match="stops"):
                    await grow(one, [30], 100)
                with pytest.raises(LogStopped):  # And stays so.
                    await grow(one, [1], 200)
                after = await here.sequencer()
                assert after.published.head.size == 30
            else:
                await grow(one, [30], 100)
                with pytest.raises(LockConflict):
                    await lingering[0]()
                after = await here.sequencer()
                assert after.published.head.size == 40
            await grow(after, [300], 1000)
            async with here.log() as log:
                key = here.signer.key.public_key()
                await check_heads(log, [open_checkpoint(note, ORIGIN, key) for note in lock.heads])

    run_with_deadline(main())


# ---- two sequencers ----


def test_two_sequencers_on_one_log(tmp_path: Path) -> None:
    """Exactly one goes on."""

    async def main() -> None:
        async with world(tmp_path) as here:
            _, lock = hooked(here)
            both = [await here.sequencer(), await here.sequencer()]
            results = await asyncio.gather(
                *(grow(one, [7] * 20, 1000 * place) for place, one in enumerate(both)), return_exceptions=True
            )
            stopped = [one for one in results if isinstance(one, LogStopped)]
            assert len(stopped) == 1 and len([one for one in results if isinstance(one, int)]) == 1, results
            assert [one.stopped is not None for one in both].count(True) == 1
            async with here.log() as log:
                assert log.head.size == 140
                key = here.signer.key.public_key()
                await check_heads(log, [open_checkpoint(note, ORIGIN, key) for note in lock.heads])

    run_with_deadline(main())


@pytest.mark.parametrize("held_at", ["tile/", CHECKPOINT])
@pytest.mark.parametrize("restart", [False, True])
def test_a_sequencer_that_was_held_up_wakes_after_another_took_over(tmp_path: Path, held_at: str, restart: bool) -> None:
    """It puts its old checkpoint over the new one. The promises it gives hold; then it stops; and whoever starts
    next finds its way from the old checkpoint to the lock's head."""

    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [200])
            plain = here.storage
            storage, lock = hooked(here)
            sleeper, gate = await here.sequencer(), Gate()

            async def hold(objects: Mapping[str, bytes]) -> None:
                if any(key.startswith(held_at) for key in objects):
                    await gate()

            storage.before = hold
            asleep = asyncio.create_task(sleeper.sequence([submission(number) for number in range(200, 300)]))
            await gate.reached.wait()
            here.storage = plain
            other = await here.sequencer()
            assert other.published.head.size == 300
            await grow(other, [400, 50, 250], 300)
            gate.open.set()
            entries = await asleep
            assert open_checkpoint(await plain.get(CHECKPOINT), ORIGIN, here.signer.key.public_key()).size == 300
            if not restart:
                await grow(other, [1], 5000)
                assert await plain.get(CHECKPOINT) == other.published.note
            with pytest.raises(LogStopped):
                await grow(sleeper, [1], 6000)
            async with here.log() as log:
                assert log.head.size == (1000 if restart else 1001)
                assert await plain.get(CHECKPOINT) == log.published.note
                for entry in entries:
                    assert await log.entry(entry.index) == entry
                key = here.signer.key.public_key()
                await check_heads(log, [open_checkpoint(note, ORIGIN, key) for note in lock.heads])

    run_with_deadline(main())


def test_two_storages_on_one_directory_never_tear_an_object(tmp_path: Path) -> None:
    """Two processes may write the checkpoint at once: whole at any time."""

    async def main() -> None:
        async with world(tmp_path) as here, world(tmp_path, new=False) as there:
            bodies = {bytes([which]) * 200_000 for which in (1, 2)}
            writing = True

            async def write(storage: object, which: int) -> None:
                for _ in range(60):
                    await storage.put({CHECKPOINT: bytes([which]) * 200_000})  # type: ignore[attr-defined]

            async def read() -> int:
                count = 0
                while writing:
                    assert await here.storage.get(CHECKPOINT) in bodies
                    count += 1
                    await asyncio.sleep(0)
                return count

            await here.storage.put({CHECKPOINT: bytes([1]) * 200_000})
            reading = asyncio.create_task(read())
            await asyncio.gather(write(here.storage, 1), write(there.storage, 2))
            writing = False
            assert await reading > 0
            assert [one.name for one in (tmp_path / "data").iterdir() if one.is_file()] == [CHECKPOINT]

    run_with_deadline(main())


# ---- damage ----


def flip(path: Path, bit: int) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
@pytest.mark.parametrize(
    "key",
    [
        CHECKPOINT, "tile/0/002.p/88", "tile/1/000.p/2", "tile/data/002.p/88",
    ],
)  # fmt: skip
def test_damage_of_what_a_start_looks_at_stops_it(tmp_path: Path, key: str, damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [600])
            path = tmp_path / "data" / key
            if damage == "remove":
                path.unlink()
            elif damage == "tear":
                path.write_bytes(path.read_bytes()[:-37])
            else:
                flip(path, 8 * 60 + 3)  # Inside a hash, the checkpoint's root, or an entry.
            before = (tmp_path / "lock.db").read_bytes()
            with pytest.raises(LogStopped):
                await here.sequencer()
            assert (tmp_path / "lock.db").read_bytes() == before

    run_with_deadline(main())


@pytest.mark.parametrize("key", ["tile/0/001", "tile/data/001"])
def test_damage_deeper_down_is_never_served(tmp_path: Path, key: str) -> None:
    """A start does not read everything; what is read later must lead to the head all the same."""

    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [600])
            async with here.log() as log:
                pass  # The index is there.
            path = tmp_path / "data" / key
            whole = path.read_bytes()
            begins = [at * len(whole) // 256 for at in (0, 60, 255)]
            if "data" in key:  # In the certificates of three entries. What RFC 6962 does not hash is fsck's part.
                begins = [whole.index(submission(number).entry.certificate) for number in (256, 300, 511)]
            for bit in (8 * begin + begin % 32 for begin in begins):
                path.write_bytes(whole)
                flip(path, bit)
                async with here.log() as log:
                    # An entry that is right beside one that is not is not trusted either.
                    with pytest.raises(LogStopped, match=r"fsck"):
                        await log.entry(300)
                    with pytest.raises(LogStopped):  # A tile with one bit changed does not go out.
                        await log.tile(*({"tile/0/001": (0, 1, 256)}.get(key, (-1, 1, 256))))
                    assert (await log.entry(10)).index == 10
                    assert (await log.add(submission(1000 + bit))).index >= 600  # And the log goes on …
                    with pytest.raises(LogStopped):  # … until it would have to vouch for what is lost.
                        await log.add(submission(300))
                    assert log.stopped is not None
                    with pytest.raises(LogStopped):
                        await log.add(submission(2))

    run_with_deadline(main())


def test_a_flipped_bit_in_the_lock_store_stops(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [20])
            note = await here.lock.load(here.signer.log_id)
            assert note is not None
            for at in range(0, len(note), 7):
                with sqlite3.connect(tmp_path / "lock.db") as database:
                    wrong = note[:at] + bytes([note[at] ^ 4]) + note[at + 1 :]
                    database.execute("UPDATE heads SET head = ?", (wrong,))
                database.close()
                with pytest.raises(LogStopped, match="not ours"):
                    await here.sequencer()
            (tmp_path / "lock.db").write_bytes(b"\0" * 8192)
            with pytest.raises(LogError):
                SqliteLock(tmp_path / "lock.db")

    run_with_deadline(main())


@pytest.mark.parametrize("damage", ["flip", "tear", "garbage", "remove"])
def test_damage_of_staged_tiles_stops_and_spoils_nothing(tmp_path: Path, damage: str) -> None:
    """Wherever the bit is: what is staged is checked whole before any of it is written."""

    async def main() -> None:
        async with world(tmp_path) as here:
            await interrupted(here)
            (staged,) = (tmp_path / "data" / "staging").iterdir()
            whole = staged.read_bytes()
            data = tmp_path / "data"
            before = {one: one.read_bytes() for one in data.rglob("*") if one.is_file() and one != staged}
            spoils = {"flip": 40, "tear": 3, "garbage": 1, "remove": 1}[damage]
            for turn in range(spoils):
                if damage == "flip":
                    flip(staged, 8 * (len(whole) * turn // spoils) + turn % 8)
                elif damage == "tear":
                    staged.write_bytes(whole[: len(whole) * turn // spoils])
                elif damage == "garbage":
                    body = msgspec.msgpack.encode({"checkpoint": b"x", "tile/../x": b""})
                    staged.write_bytes(hashlib.sha256(body).digest() + body)
                else:
                    staged.unlink()
                with pytest.raises(LogStopped):
                    await here.sequencer()
                now = {one: one.read_bytes() for one in data.rglob("*") if one.is_file() and one != staged}
                assert now == before
                staged.write_bytes(whole)
            one = await here.sequencer()  # Undamaged it is finished.
            assert one.published.head.size == 560
            await grow(one, [300], 560)
            async with here.log() as log:
                assert {entry.index for entry in await log.entries(256, 560)} == set(range(256, 561))

    run_with_deadline(main())


# ---- rolled back, exchanged ----


def test_storage_rolled_back_to_an_old_backup(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            one = await here.sequencer()
            await grow(one, [300])
            shutil.copytree(tmp_path / "data", tmp_path / "backup")
            await grow(one, [300, 20], 300)
            shutil.rmtree(tmp_path / "data")
            shutil.copytree(tmp_path / "backup", tmp_path / "data")
            with pytest.raises(LogStopped, match="rolled back or lost"):
                await here.sequencer()
            # Half a backup does no better: the newest checkpoint over old tiles.
            note = await here.lock.load(here.signer.log_id)
            assert note is not None
            (tmp_path / "data" / CHECKPOINT).write_bytes(note)
            with pytest.raises(LogStopped, match="fsck"):
                await here.sequencer()

    run_with_deadline(main())


@pytest.mark.parametrize("rounds", [[20], [0]])
def test_lock_rolled_back(tmp_path: Path, rounds: list[int]) -> None:
    """Also when it forgot no more than a head of the same size."""

    async def main() -> None:
        async with world(tmp_path) as here:
            one = await here.sequencer()
            await grow(one, [300])
            old = await here.lock.load(here.signer.log_id)
            await grow(one, rounds, 300)
            new = await here.lock.load(here.signer.log_id)
            assert old is not None and new is not None
            await here.lock.replace(here.signer.log_id, new, old)
            with pytest.raises(LogStopped, match="the lock store was rolled back"):
                await here.sequencer()
            assert await here.storage.get(CHECKPOINT) == new  # The witness of it stays.

    run_with_deadline(main())


def test_a_lock_whose_head_does_not_go_on_the_published_one(tmp_path: Path) -> None:
    """Both ours, both signed, of two trees: found before anything is overwritten, at every start again."""

    async def main() -> None:
        signer = Signer(ORIGIN, new_key())
        here, there = World(tmp_path / "a", signer, Clock()), World(tmp_path / "b", signer, Clock(1_790_000_000.0))
        try:
            await here.create()
            await there.create()
            await grow(await here.sequencer(), [300])
            await grow(await there.sequencer(), [300], 5000)
            shutil.copytree(tmp_path / "b", tmp_path / "c")
            await interrupted(there)
            # The storage of the one, with the checkpoint of the other.
            published = await here.storage.get(CHECKPOINT)
            (tmp_path / "b" / "data" / CHECKPOINT).write_bytes(published)
            for _ in range(2):
                with pytest.raises(LogStopped, match="does not go on"):
                    await there.sequencer()
                assert await there.storage.get(CHECKPOINT) == published
        finally:
            await here.close()
            await there.close()

    run_with_deadline(main())


def test_storage_and_lock_of_another_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "a") as here, world(tmp_path / "b") as there:
            await grow(await here.sequencer(), [300])
            await grow(await there.sequencer(), [300], 1000)
            with pytest.raises(LogStopped, match="checkpoint"):
                await Sequencer.open(here.signer, there.storage, here.lock, Clock())
            with pytest.raises(LogError, match="knows no log"):
                await Sequencer.open(here.signer, here.storage, there.lock, Clock())
            with pytest.raises(LogStopped, match="checkpoint"):
                await Sequencer.open(here.signer, there.storage, there.lock, Clock())
            # Nor is a new one made over it.
            with pytest.raises(LogError, match="holds a log already"):
                await Sequencer.create(here.signer, there.storage, there.lock, Clock())
            with pytest.raises(LogError):
                await Sequencer.create(here.signer, here.storage, here.lock, Clock())
            # Another name with the same key is another log.
            with pytest.raises(LogStopped, match="not ours"):
                await Sequencer.open(Signer("other.example", here.signer.key), here.storage, here.lock, Clock())

    run_with_deadline(main())


def test_a_log_that_was_created_but_not_published(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            (tmp_path / "data" / CHECKPOINT).unlink()
            one = await here.sequencer()
            await grow(one, [5])
            assert (await here.sequencer()).published.head.size == 5

    run_with_deadline(main())


# ---- the clock ----


def test_clock_stepped_back_and_on(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with world(tmp_path) as here:
            here.clock = clock
            async with here.log() as log:
                first = await log.add(submission(0))
                head = log.head
                clock.now -= 3600
                for _ in range(2):
                    with pytest.raises(Unavailable, match="clock"):
                        await log.add(submission(1))
                assert (await log.add(submission(0))) == first  # What is promised is told at any time.
                assert log.head == head and log.stopped is None
            async with here.log() as log:  # A restart does not forget.
                with pytest.raises(Unavailable, match="clock"):
                    await log.add(submission(1))
                clock.now += 3600
                entry = await log.add(submission(1))
                assert entry.index == 1 and entry.timestamp > first.timestamp
                assert log.head.timestamp > head.timestamp
                # A few milliseconds are nothing to refuse for; time goes on all the same.
                for number in range(2, 12):
                    before = log.head.timestamp
                    clock.now = before / 1000 - 0.005
                    await log.add(submission(number))
                    assert log.head.timestamp > before

    run_with_deadline(main())


# ---- the index ----


INDEX_DAMAGE = ["lost", "garbage", "torn", "zeros inside", "of another tree", "ahead", "of another kind"]


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_the_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path / "a") as here, world(tmp_path / "b") as there:
            for place, one in enumerate((here, there)):
                await grow(await one.sequencer(), [700], place * 5000)
                async with one.log():
                    pass
            path = tmp_path / "a" / "index.db"
            size = path.stat().st_size
            if damage == "lost":
                path.unlink()
            elif damage == "garbage":
                path.write_bytes(b"not a database" * 1000)
            elif damage == "torn":
                path.write_bytes(path.read_bytes()[: size // 2])
            elif damage == "zeros inside":
                data = bytearray(path.read_bytes())
                data[4096:] = b"\xff" * (size - 4096)
                path.write_bytes(data)
            elif damage == "of another kind":
                path.unlink()
                with sqlite3.connect(path) as database:
                    database.execute("CREATE TABLE state (other TEXT)")
                database.close()
            else:
                if damage == "ahead":
                    await grow(await there.sequencer(), [100], 9000)
                    async with there.log():
                        pass
                shutil.copy(tmp_path / "b" / "index.db", path)
            async with here.log() as log:
                for number in range(0, 700, 13):
                    assert (await log.add(submission(number))).index == number
                    assert await log.find((await log.entry(number)).leaf_hash) == number
                assert log.head.size == 700

    run_with_deadline(main())


def test_an_index_that_fails_in_a_round_lacks_nothing_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries are in the tree by then: the index gets them before the next round."""

    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log:
            add = log._index.add

            async def fail(*_: object) -> None:
                raise Unavailable("no room")

            monkeypatch.setattr(log._index, "add", fail)
            with pytest.raises(Unavailable):
                await log.add(submission(1))
            monkeypatch.setattr(log._index, "add", add)
            assert (await log.add(submission(2))).index == 1
            assert (await log.add(submission(1))).index == 0
            assert log.head.size == 2
            assert await log.find((await log.entry(0)).leaf_hash) == 0

    run_with_deadline(main())


def test_an_index_found_damaged_while_running_is_made_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [3000])
            async with here.log():
                pass
            path = tmp_path / "index.db"
            async with here.log() as log:
                size = path.stat().st_size
                with path.open("r+b") as file:  # Beneath the pages that it has read.
                    file.seek(3 * 4096)
                    file.write(b"\xff" * (size - 3 * 4096))
                for number in range(0, 3000, 7):
                    await again(log.add, submission(number))
                assert log.head.size == 3000 and log.stopped is None

    run_with_deadline(main())


def test_roots_are_those_of_the_definition(tmp_path: Path) -> None:
    """Whatever rounds made it: the head's root is that of the leaves."""

    async def main() -> None:
        async with world(tmp_path) as here:
            one = await here.sequencer()
            await grow(one, [1, 254, 1, 1, 255, 256, 0, 257, 512, 3])
            async with here.log() as log:
                leaves = []
                for start in range(0, 1540, 256):
                    leaves += [entry.leaf_hash for entry in await log.entries(start, start + 255)]
                assert len(leaves) == log.head.size == 1540
                tree = Tree()
                tree.append(leaves)
                assert tree.root() == log.head.root == await log.root(1540)
                for old in range(1, 1540, 41):
                    before = Tree()
                    before.append(leaves[:old])
                    assert await log.root(old) == before.root()
                    merkle.verify_consistency(old, 1540, before.root(), log.head.root, await log.consistency(old))
            assert not (tmp_path / "data" / staging_key(1540, one.published.head.root)).exists()

    run_with_deadline(main())

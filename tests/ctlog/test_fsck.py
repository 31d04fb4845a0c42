"""control.ctlog.fsck: every kind of damage is found under its name, and only what is proven is repaired."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from cryptography import x509

from control.ctlog.chains import Acceptor
from control.ctlog.errors import LogStopped
from control.ctlog.fsck import FsckReport, check
from control.ctlog.index import Index
from control.ctlog.local import LocalStorage
from control.ctlog.sequencer import CHECKPOINT
from tests.ctlog.test_faults import flip, interrupted
from tests.ctlog.world import ORIGIN, Ca, World, der, grow, run_with_deadline, submission, world

CA = Ca()


async def fsck(here: World, *, repair: bool = False, index: bool = False, chains: bool = False) -> FsckReport:
    """As the command does it."""
    opened = Index(here.directory / "index.db") if index else None
    steps: list[tuple[int, int]] = []
    try:
        report = await check(
            ORIGIN, here.signer.key.public_key(), here.storage, lock=here.lock, index=opened, repair=repair,
            chains=chains, progress=lambda done, total: steps.append((done, total)),
        )  # fmt: skip
    finally:
        if opened is not None:
            await opened.close()
    assert steps[-1] == (report.size, report.size)
    return report


def state(here: World) -> dict[Path, bytes]:
    """Every object."""
    return {one: one.read_bytes() for one in (here.directory / "data").rglob("*") if one.is_file()}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 700])
def test_a_log_that_is_right(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [size // 3, size - size // 3])
            async with here.log():
                pass
            report = await fsck(here, index=True)
            assert report.clean and report.proven and not report.findings
            assert report.entries == report.size == size

    run_with_deadline(main())


HASH_TILES = ["tile/0/000", "tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"]


@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
@pytest.mark.parametrize("keys", [[one] for one in HASH_TILES] + [HASH_TILES])
def test_hash_tiles_are_found_and_made_again(tmp_path: Path, keys: list[str], damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [700])
            whole = state(here)
            for place, key in enumerate(keys):
                path = tmp_path / "data" / key
                if damage == "remove":
                    path.unlink()
                elif damage == "tear":
                    path.write_bytes(path.read_bytes()[:-1])
                else:
                    flip(path, 8 * (37 + place) + 2)
            spoiled = state(here)
            report = await fsck(here)
            assert report.proven and not report.clean and {one.key for one in report.damaged} == set(keys)
            assert state(here) == spoiled  # Looking changes nothing.
            report = await fsck(here, repair=True)
            assert report.clean and {one.key for one in report.findings if one.repaired} == set(keys)
            assert state(here) == whole
            assert (await fsck(here)).findings == []
            assert (await here.sequencer()).published.head.size == 700

    run_with_deadline(main())


@pytest.mark.parametrize("key", ["tile/data/000", "tile/data/002.p/188"])
@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
def test_lost_entries_are_found_and_nothing_is_made_up(tmp_path: Path, key: str, damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [700])
            path = tmp_path / "data" / key
            if damage == "remove":
                path.unlink()
            elif damage == "tear":
                path.write_bytes(path.read_bytes()[:-1])
            else:
                number = 100 if key == "tile/data/000" else 600
                flip(path, 8 * path.read_bytes().index(submission(number).entry.certificate) + 5)
            spoiled = state(here)
            report = await fsck(here, repair=True)
            # The hashes are still all there: what is lost is known exactly.
            assert report.proven and not report.clean
            assert [one.key for one in report.damaged] == [key]
            assert report.entries == 700 - (256 if key == "tile/data/000" else 188)
            if damage == "flip":
                assert f"entry {number} (1 in all)" in report.damaged[0].what
            assert state(here) == spoiled

    run_with_deadline(main())


def test_damage_of_entries_and_of_other_hashes_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [700])
            data = tmp_path / "data"
            flip(data / "tile/data/000", 8 * (data / "tile/data/000").read_bytes().index(submission(9).entry.certificate))
            flip(data / "tile/0/001", 999)
            report = await fsck(here, repair=True)
            assert report.proven and [one.key for one in report.damaged] == ["tile/data/000"]
            assert [one.key for one in report.findings if one.repaired] == ["tile/0/001"]
            # Entries and their own hashes: nothing is left to go by there.
            flip(data / "tile/0/000", 8 * 32 * 9)
            spoiled = state(here)
            report = await fsck(here, repair=True)
            assert not report.proven and not report.clean and report.findings
            assert not any(one.repaired for one in report.findings) and state(here) == spoiled

    run_with_deadline(main())


@pytest.mark.parametrize("damage", ["flip", "remove", "older", "garbage"])
def test_the_checkpoint_comes_again_from_the_lock(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            one = await here.sequencer()
            await grow(one, [300])
            older = await here.storage.get(CHECKPOINT)
            await grow(one, [100], 300)
            path = tmp_path / "data" / CHECKPOINT
            right = path.read_bytes()
            if damage == "flip":
                flip(path, 8 * 40)
            elif damage == "remove":
                path.unlink()
            else:
                path.write_bytes(older if damage == "older" else b"\0")
            report = await fsck(here)
            assert [one_.key for one_ in report.damaged] == [CHECKPOINT]
            assert (await fsck(here, repair=True)).clean
            assert path.read_bytes() == right

    run_with_deadline(main())


def test_a_checkpoint_that_the_lock_forgot_is_never_overwritten(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            one = await here.sequencer()
            await grow(one, [300])
            old = await here.lock.load(here.signer.log_id)
            await grow(one, [100], 300)
            new = await here.lock.load(here.signer.log_id)
            assert old and new
            await here.lock.replace(here.signer.log_id, new, old)
            report = await fsck(here, repair=True)
            assert not report.clean and any("forgot" in one_.what for one_ in report.damaged)
            assert await here.storage.get(CHECKPOINT) == new

    run_with_deadline(main())


def test_an_interrupted_round_is_not_damage(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await interrupted(here)
            before = state(here)
            report = await fsck(here, repair=True)
            assert report.clean and report.size == 560
            assert any("start of the log" in one.what for one in report.findings) and state(here) == before
            await here.sequencer()
            report = await fsck(here)
            assert report.clean and not report.findings
            # And what a failed round left behind is told of, without harm.
            here.storage = LocalStorage(tmp_path / "data")
            await here.storage.put({"staging/600-00": b"tiles"})
            report = await fsck(here)
            assert report.clean and [one.key for one in report.findings] == ["staging/600-00"]

    run_with_deadline(main())


@pytest.mark.parametrize("damage", ["lost", "short", "wrong", "garbage"])
def test_the_index_is_made_again(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            await grow(await here.sequencer(), [600])
            async with here.log():
                pass
            path = tmp_path / "index.db"
            if damage in ("short", "wrong"):
                opened = Index(path)
                if damage == "short":
                    opened._writer.execute("DELETE FROM leaves WHERE idx = 77")
                else:
                    opened._writer.execute("UPDATE submissions SET idx = 5000 WHERE idx = 77")
                await opened.close()
            elif damage == "lost":
                path.unlink()
            else:
                path.write_bytes(b"garbage" * 3000)
            report = await fsck(here, index=True)
            assert [one.key for one in report.damaged] == ["index"]
            assert (await fsck(here, index=True, repair=True)).clean
            report = await fsck(here, index=True)
            assert report.clean and not report.findings

    run_with_deadline(main())


def test_what_the_tree_does_not_cover(tmp_path: Path) -> None:
    """Issuers, and the parts of an entry that RFC 6962 does not hash."""

    async def main() -> None:
        async with world(tmp_path) as here:
            async with here.log(Acceptor([CA.root.certificate])) as log:
                chains = [CA.precertificate(f"node-{number}") for number in range(5)]
                await asyncio.gather(*(log.add_chain(one, precertificate=True) for one in chains))
                await log.add_chain(CA.certificate("plain"), precertificate=False)
                await log.add_chain([der(CA.root.certificate)], precertificate=False)
                entry = await log.entry(2)
            report = await fsck(here, chains=True)
            assert report.clean and report.issuers == 2, report.findings
            path = tmp_path / "data" / "tile/data/000.p/7"
            shutil.copy(path, tmp_path / "kept")
            whole = path.read_bytes()
            begin = whole.index(entry.precertificate)
            signature = x509.load_der_x509_certificate(entry.precertificate).signature
            for place in (
                begin + 60, whole.index(signature) + 20,
                whole.index(entry.chain[0], begin), whole.index(entry.chain[1], begin) + 31,
            ):  # fmt: skip
                flip(path, 8 * place + 1)
                report = await fsck(here, chains=True, repair=True)
                assert report.proven and [one.key for one in report.damaged if one.key.startswith("tile")] == [
                    path.relative_to(tmp_path / "data").as_posix()
                ]
                assert any("entry 2" in one.what for one in report.damaged)
                shutil.copy(tmp_path / "kept", path)
            issuer = tmp_path / "data" / "issuer" / entry.chain[0].hex()
            flip(issuer, 400)
            report = await fsck(here, chains=True, repair=True)
            assert f"issuer/{entry.chain[0].hex()}" in {one.key for one in report.damaged}

    run_with_deadline(main())


def test_without_a_head_there_is_nothing_to_say(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "a") as here, world(tmp_path / "b") as there:
            await grow(await here.sequencer(), [30])
            key = here.signer.key.public_key()
            assert (await check(ORIGIN, key, here.storage, chains=False)).clean  # By the checkpoint alone.
            for storage, lock in ((here.storage, there.lock), (there.storage, None)):
                with pytest.raises(LogStopped):
                    await check(ORIGIN, key, storage, lock=lock, chains=False)
            # Another log's objects under this log's head.
            report = await check(ORIGIN, key, there.storage, lock=here.lock, repair=True, chains=False)
            assert not report.proven and not any(one.repaired for one in report.findings)

    run_with_deadline(main())


def test_a_log_that_runs_is_checked_beside(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log:
            running = True

            async def load() -> None:
                number = 0
                while running:
                    await asyncio.gather(*(log.add(submission(number + at)) for at in range(50)))
                    number += 50

            loading = asyncio.create_task(load())
            sizes = set()
            while log.head.size < 1000:
                report = await fsck(here)
                assert report.proven and not report.damaged, report.findings
                sizes.add(report.size)
                await asyncio.sleep(0)
            running = False
            await loading
            assert len(sizes) > 3

    run_with_deadline(main())

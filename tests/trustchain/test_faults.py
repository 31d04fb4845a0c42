"""The authority when its process is killed between two steps, and when its disk is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.trustchain.audit import read_audit
from control.trustchain.authority import Authority, Issued
from control.trustchain.errors import StoreError, TrustError
from control.trustchain.profiles import Names
from control.trustchain.store import State, Store
from control.trustchain.tokens import TokenGrant
from tests.trustchain.conftest import ADMIN, Ca

SEED = 9292
KILLS = 40


def test_killed_at_any_step_nothing_is_handed_out_that_is_not_kept(ca: Ca) -> None:
    command = [sys.executable, "-m", "tests.trustchain.crashes", str(ca.directory), str(SEED), str(KILLS), str(ca.clock())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    data = (ca.directory.parent / "handed-out").read_bytes()
    handed_out = {data[at : at + 32] for at in range(0, len(data), 32)}
    assert len(handed_out) > KILLS
    audited = "\n".join(line.detail for line in read_audit(ca.directory / "audit.jsonl") if line.decision == "done")

    async def look(authority: Authority) -> None:
        report = await authority.verify_audit(ADMIN)
        assert report.intact, report.finding
        for fingerprint in handed_out:
            row = authority._store.by_fingerprint(fingerprint)
            assert row is not None and row.state is State.FINAL
            assert fingerprint.hex() in audited
        assert authority._store.unfinished() == []
        # Tokens of joins that came to nothing can still be used; of those that were answered none.
        for used in authority._store._all("SELECT * FROM tokens WHERE used_at IS NOT NULL"):
            found = authority._store.certificate(used["serial"])
            assert found is not None and found.state is State.FINAL
        await authority.issue(ca.request("after.stoq.example"), ADMIN)

    ca.run(look)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=10)


def _fill(path: Path, leave: int) -> None:
    """Take all room but `leave` bytes."""
    found = os.statvfs(path.parent)
    with path.open("wb") as file:
        try:
            file.write(bytes(max(0, found.f_bavail * found.f_frsize - leave)))
        except OSError:
            pass


@pytest.mark.parametrize("leave", [0, 4096, 8192, 20480, 65536])
def test_a_full_disk_refuses_and_recovers(ca: Ca, small_disk: Path, leave: int) -> None:
    shutil.copytree(ca.directory, small_disk / "ca")
    ca.directory = small_disk / "ca"
    issued: list[Issued] = []

    async def main(authority: Authority) -> None:
        issued.append(await authority.issue(ca.request("first.stoq.example"), ADMIN))
        _fill(small_disk / "filler", leave)
        failures = 0
        for number in range(300):
            try:
                issued.append(await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN))
            except StoreError as error:
                assert "make room" in str(error)
                failures += 1
                if failures > 3:
                    break
        assert failures > 3
        with pytest.raises(TrustError):  # Not even a refusal, when it cannot be audited.
            await authority.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, ADMIN)
        (small_disk / "filler").unlink()
        issued.append(await authority.issue(ca.request("last.stoq.example"), ADMIN))

    ca.run(main)

    async def look(authority: Authority) -> None:
        assert (await authority.verify_audit(ADMIN)).intact
        for one in issued:
            row = await authority.show(one.row.serial.hex(), ADMIN)
            assert (row.state, row.der) == (State.FINAL, one.der)

    ca.run(look)
    finals = {line.subject for line in read_audit(ca.directory / "audit.jsonl") if line.decision == "done"}
    assert {f"{one.row.subject} serial {one.row.serial.hex()}" for one in issued} <= finals


def test_records_that_took_no_effect_are_told(ca: Ca) -> None:
    """The audit log is written, the database is not: the next batch says so."""

    async def main(authority: Authority) -> None:
        steps = []

        def fail(name: str) -> None:
            steps.append(name)
            if name == "audited" and steps.count("audited") == 1:
                authority._store.writer.execute("ROLLBACK")  # What a failing disk does to SQLite.

        authority._journal._on_step = fail
        with pytest.raises(StoreError, match="nothing was decided"):
            await authority.issue(ca.request("x.stoq.example"), ADMIN)
        await authority.issue(ca.request("y.stoq.example"), ADMIN)
        told = [line for line in read_audit(ca.directory / "audit.jsonl") if line.operation == "store.write"]
        assert [line.detail.partition(":")[0] for line in told] == ["records 2 to 2 did not take effect"]
        assert (await authority.verify_audit(ADMIN)).intact
        rows, _ = await authority.listing(ADMIN)
        assert [row.subject for row in rows] == ["y.stoq.example"]

    ca.run(main)


def test_closing_the_loop_leaves_nobody_waiting(ca: Ca) -> None:
    async def main() -> list[asyncio.Task[Issued]]:
        authority = ca.open()
        tasks = [asyncio.ensure_future(authority.issue(ca.request(f"n{n}.stoq.example"), ADMIN)) for n in range(20)]
        while authority.audit_head.seq < 5:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await authority.close()
        return tasks

    asyncio.run(asyncio.wait_for(main(), 30))
    store = Store.open(ca.directory / "ca.db", read_only=True)
    assert store.head()[0].seq >= 5
    store.close()
    ca.open().close_now()  # The lock is given up.

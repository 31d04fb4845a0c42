"""The S3 backend against a real SeaweedFS server: what it stores, who wins a race, and what it makes of a server that
fails, lies about conditions, or answers from the past."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.ctlog import s3
from control.ctlog.envelope import Envelope, LocalKey, StorageTampered
from control.ctlog.errors import LockConflict, LogError, NotFound, Unavailable
from control.ctlog.s3 import S3Denied, S3LockStore, S3Options, S3Storage, S3Unusable
from control.ctlog.storage import LockStore, Storage
from tests.ctlog.faulty_s3 import Conditions, Fault, FaultyS3, Plan
from tests.ctlog.seaweed import ROOT, Server, free_ports, running

LOG = bytes(range(32))
KEY = LocalKey(bytes(range(32)))
AMBIGUOUS = (Fault.RESET_AFTER, Fault.HANG_AFTER, Fault.ERROR_500_AFTER, Fault.TRUNCATE)
CLEAN = (Fault.RESET_BEFORE, Fault.HANG_BEFORE, Fault.ERROR_500, Fault.ERROR_503)
PATIENCE: dict[str, Any] = {"attempt_timeout_s": 0.2, "backoff_s": 0.01, "backoff_max_s": 0.05}

DOOMED = """
import os, signal
from tests.ctlog.seaweed import running
with running() as server:
    print(server.pid, server.directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def doomed() -> Iterator[subprocess.Popen[str]]:
    """A process that starts a server, says which, and kills itself."""
    with subprocess.Popen([sys.executable, "-c", DOOMED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()  # without effect on one that ended


@pytest.fixture(scope="module")
def server(doomed: subprocess.Popen[str]) -> Iterator[Server]:
    """The one of these tests; it starts while the other one does, since both mostly wait for themselves."""
    with running() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    """Of this test alone: one bucket serves them all."""
    return f"test-{os.urandom(6).hex()}/log"


@pytest.fixture
def log_id() -> bytes:
    """Of this test alone, for those that share `truth` and `faulty`."""
    return os.urandom(32)


@pytest.fixture(scope="module")
def truth(server: Server) -> Iterator[S3LockStore]:
    """What the server really holds below `shared`. To open one takes a while."""
    opened = asyncio.run(S3LockStore.open(server.options("shared"), Envelope(KEY)))
    yield opened
    asyncio.run(opened.close())


@pytest.fixture(scope="module")
def proxied(server: Server) -> Iterator[tuple[FaultyS3, S3LockStore]]:
    """A proxy, and a lock store below `shared` through it."""
    with FaultyS3(server.options("shared")) as proxy:
        opened = asyncio.run(S3LockStore.open(proxy.options(**PATIENCE), Envelope(KEY)))
        yield proxy, opened
        asyncio.run(opened.close())


@pytest.fixture
def faulty(proxied: tuple[FaultyS3, S3LockStore]) -> Iterator[tuple[FaultyS3, S3LockStore]]:
    """`proxied` without faults yet."""
    proxied[0].set(Plan())
    proxied[0].counts.clear()
    yield proxied
    proxied[0].set(Plan())


@asynccontextmanager
async def storage(options: S3Options) -> AsyncIterator[S3Storage]:
    opened = await S3Storage.open(options, Envelope(KEY))
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def lock(options: S3Options) -> AsyncIterator[S3LockStore]:
    opened = await S3LockStore.open(options, Envelope(KEY))
    try:
        yield opened
    finally:
        await opened.close()


def raw(options: S3Options) -> Any:
    """boto3's own client: what the storage sees."""
    boto3: Any = __import__("boto3")
    config: Any = __import__("botocore.config").config
    return boto3.session.Session().client(
        "s3",
        endpoint_url=options.endpoint,
        region_name=options.region,
        aws_access_key_id=options.access_key,
        aws_secret_access_key=options.secret_key,
        config=config.Config(s3={"addressing_style": "path"}, proxies={}),
    )


def test_objects(server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "DELETE_BATCH", 7)

    async def main() -> None:
        async with storage(server.options(prefix)) as opened:
            checked: Storage = opened
            with pytest.raises(NotFound, match="checkpoint is not in"):
                await checked.get("checkpoint")
            objects = {f"tile/0/x001/{number:03}": os.urandom(number * 997) for number in range(40)}
            await checked.put(objects)
            assert {key: await checked.get(key) for key in objects} == objects
            await checked.put({"checkpoint": b"1"})
            await checked.put({"checkpoint": b"2", "tile/0/x0": b"a sibling", "empty": b""})
            assert await checked.get("checkpoint") == b"2" and await checked.get("empty") == b""
            large = os.urandom(9 << 20)  # SeaweedFS splits it
            await checked.put({"large": large})
            assert await checked.get("large") == large
            await checked.delete("tile/0/x001")
            for key in objects:
                with pytest.raises(NotFound):
                    await checked.get(key)
            assert await checked.get("tile/0/x0") == b"a sibling"
            for _ in range(2):
                await checked.delete("checkpoint")
            with pytest.raises(NotFound):
                await checked.get("checkpoint")
            await checked.put({})
            for key in ("../a", "A", "", "a//b", "x" * 201):
                with pytest.raises(LogError, match="is not an object's name"):
                    await checked.put({"fine": b"", key: b""})
                with pytest.raises(LogError):
                    await checked.get(key)
                with pytest.raises(LogError):
                    await checked.delete(key)
            with pytest.raises(NotFound):  # nothing of a mapping with a wrong key was stored
                await checked.get("fine")

    asyncio.run(main())


def test_the_storage_sees_nothing_and_can_swap_nothing(server: Server, prefix: str) -> None:
    options = server.options(prefix)
    text = b"one certificate, in the clear, is enough to tell who asked"

    async def main() -> None:
        async with storage(options) as opened, lock(options) as locks:
            await opened.put({"a": text, "b": b"other"})
            await locks.create(LOG, text)
            client = raw(options)
            names = [found["Key"] for found in client.list_objects_v2(Bucket=options.bucket, Prefix=prefix)["Contents"]]
            assert sorted(names) == [f"{prefix}/a", f"{prefix}/b", f"{prefix}/lock/{LOG.hex()}"]
            bodies = {name: client.get_object(Bucket=options.bucket, Key=name)["Body"].read() for name in names}
            assert not any(text[:12] in body for body in bodies.values())
            client.put_object(Bucket=options.bucket, Key=f"{prefix}/b", Body=bodies[f"{prefix}/a"])
            with pytest.raises(StorageTampered, match="another object is in its place"):
                await opened.get("b")
            client.put_object(Bucket=options.bucket, Key=f"{prefix}/a", Body=b"")
            with pytest.raises(StorageTampered, match="not a sealed object"):
                await opened.get("a")
            moved = f"{prefix}/lock/{bytes(32).hex()}"
            client.put_object(Bucket=options.bucket, Key=moved, Body=bodies[f"{prefix}/lock/{LOG.hex()}"])
            with pytest.raises(StorageTampered):
                await locks.load(bytes(32))
            client.close()

    asyncio.run(main())


def test_wrong_credentials_and_buckets(server: Server, prefix: str) -> None:
    async def opened(**changes: Any) -> None:
        async with storage(server.options(prefix, **changes)) as store:
            await store.put({"a": b""})

    secret = "another-secret-of-somebody"
    for changes in ({"secret_key": secret}, {"access_key": "nobody", "secret_key": secret}):
        with pytest.raises(S3Denied, match="403") as caught:
            asyncio.run(opened(**changes))
        assert secret not in str(caught.value)
    with pytest.raises(S3Unusable, match=r"no such bucket.*create_bucket"):
        asyncio.run(opened(bucket="missing"))
    asyncio.run(opened(bucket="made", create_bucket=True))
    asyncio.run(opened(bucket="made"))


def test_secrets_are_not_told(server: Server, prefix: str) -> None:
    options = server.options(prefix)

    async def main() -> None:
        async with storage(options) as opened, lock(options) as locks:
            for text in (opened.describe(), locks.describe(), repr(options), repr(server)):
                assert options.bucket in text and options.secret_key not in text
            assert KEY.key_id in opened.describe() and "conditional" in locks.describe()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bucket": "No"}, "no name of a bucket"),
        ({"prefix": "/a"}, "not an object's name"),
        ({"endpoint": "http://user:pass@[::1]:1"}, "holds credentials"),
        ({"endpoint": "http://s3.example"}, "not encrypted"),
        ({"endpoint": "ftp://s3.example"}, "not of the form"),
        ({"endpoint": "https://s3.example/bucket"}, "not of the form"),
        ({"endpoint": "https://[::1"}, "no URL"),
        ({"access_key": "only"}, "give both"),
        ({"connections": 0}, "connections"),
        ({"deadline_s": 0.0}, "times"),
        ({"attempt_timeout_s": float("nan")}, "times"),
    ],
)
def test_options_that_cannot_be_right(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LogError, match=told) as caught:
        S3Options(**{"bucket": "fine", **changes})
    assert "pass@" not in str(caught.value)


def test_options_that_are_right() -> None:
    for endpoint in ("", "https://s3.example:9000", "http://[::1]:8333/", "http://localhost:1"):
        S3Options("fine", endpoint=endpoint)
    S3Options("fine", endpoint="http://s3.example", plain_http=True)


def test_a_missing_boto3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(S3Unusable, match="pip install boto3"):
        asyncio.run(S3Storage.open(S3Options("fine"), Envelope(KEY)))


def test_boto3_is_imported_when_it_is_needed() -> None:
    code = "import sys, control.ctlog.s3; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


def test_no_server_and_no_more_than_the_deadline() -> None:
    options = S3Options(
        "fine", endpoint=f"http://[::1]:{free_ports(1)[0]}", access_key="a", secret_key="b", deadline_s=0.3
    )
    before = time.monotonic()
    with pytest.raises(Unavailable, match=r"no success in \d+ tries within 0.3 s.*Could not connect"):
        asyncio.run(S3Storage.open(options, Envelope(KEY)))
    assert time.monotonic() - before < 3


def test_closed_is_unavailable_and_ends_pauses(server: Server, prefix: str) -> None:
    async def main() -> None:
        with FaultyS3(server.options(prefix)) as proxy:
            opened = await S3Storage.open(
                proxy.options(backoff_s=30.0, backoff_max_s=60.0, deadline_s=300.0), Envelope(KEY)
            )
            proxy.set(Plan(rates={Fault.ERROR_503: 1.0}))
            waiting = asyncio.create_task(opened.put({"a": b"1"}))
            while not proxy.counts[Fault.ERROR_503]:
                await asyncio.sleep(0.005)
            await opened.close()
            with pytest.raises(Unavailable, match="closed"):
                await asyncio.wait_for(waiting, 5)
            with pytest.raises(Unavailable, match="closed"):
                await opened.get("a")

    asyncio.run(main())


def test_transient_faults_are_outlived(server: Server, prefix: str) -> None:
    rates = dict.fromkeys((*AMBIGUOUS, *CLEAN), 0.05)

    async def main() -> None:
        with FaultyS3(server.options(prefix)) as proxy:
            async with storage(proxy.options(**PATIENCE)) as opened:
                proxy.set(Plan(rates=rates, seed=5))
                objects = {f"tile/{number}": os.urandom(2000) for number in range(60)}
                await opened.put(objects)
                assert await asyncio.gather(*map(opened.get, objects)) == list(objects.values())
                await opened.delete("tile")
                with pytest.raises(NotFound):
                    await opened.get("tile/7")
            for kind in (AMBIGUOUS, CLEAN):
                assert sum(proxy.counts[fault] for fault in kind) >= 5, proxy.counts

    asyncio.run(main())


def test_lasting_faults_end_with_the_deadline(server: Server, prefix: str) -> None:
    async def main() -> None:
        with FaultyS3(server.options(prefix)) as proxy:
            async with storage(proxy.options(**PATIENCE, deadline_s=0.3)) as opened:
                for fault, told in (
                    (Fault.ERROR_503, "503 SlowDown"),
                    (Fault.HANG_AFTER, "timeout"),
                ):
                    proxy.set(Plan(rates={fault: 1.0}))
                    before = time.monotonic()
                    with pytest.raises(Unavailable, match=f"within 0.3 s.*{told}"):
                        await opened.put({"a": b"1", "b": b"2"})
                    with pytest.raises(Unavailable, match=told):
                        await opened.get("a")
                    assert time.monotonic() - before < 4

    asyncio.run(main())


def test_reads_are_checked_not_cached(server: Server, prefix: str) -> None:
    async def main() -> None:
        with FaultyS3(server.options(prefix)) as proxy:
            async with storage(proxy.options(**PATIENCE)) as opened:
                await opened.put({"a": b"old" * 100})
                await opened.put({"a": b"new" * 100})
                for seed in range(20):
                    proxy.set(Plan((Fault.FLIP,), seed=seed))
                    with pytest.raises(StorageTampered):
                        await opened.get("a")
                proxy.set(Plan((Fault.STALE,) * 12))
                seen = set()
                for _ in range(12):
                    try:
                        seen.add(await opened.get("a"))
                    except NotFound:
                        seen.add(b"")
                # A storage may answer from the past; that is for the log to find out, by its head.
                assert seen == {b"old" * 100, b""}
                assert await opened.get("a") == b"new" * 100

    asyncio.run(main())


def test_lock(server: Server, prefix: str) -> None:
    async def main() -> None:
        async with lock(server.options(prefix)) as opened, lock(server.options(prefix)) as other:
            checked: LockStore = opened
            assert await checked.load(LOG) is None
            with pytest.raises(LockConflict, match="never created"):
                await checked.replace(LOG, b"a", b"b")
            await checked.create(LOG, b"a")
            for store in (checked, other):
                with pytest.raises(LockConflict, match="exists"):
                    await store.create(LOG, b"a")  # equal, and still not its own
            assert await other.load(LOG) == b"a"
            await other.replace(LOG, b"a", b"b")
            with pytest.raises(LockConflict, match="another sequencer"):
                await checked.replace(LOG, b"a", b"b")  # equal, and still not its own
            await checked.replace(LOG, b"b", b"c")
            await checked.replace(LOG, b"c", b"b")  # back to bytes that were there before
            await checked.replace(LOG, b"b", b"")
            assert await other.load(LOG) == b"" and await other.load(bytes(32)) is None
            for wrong in (b"", bytes(31), bytes(33)):
                with pytest.raises(LogError, match="log ID"):
                    await checked.load(wrong)

    asyncio.run(main())


def test_of_two_who_race_one_wins(server: Server, truth: S3LockStore) -> None:
    async def main() -> None:
        one = truth
        async with lock(server.options("shared")) as two:
            for _ in range(40):
                log_id = os.urandom(32)
                results = await asyncio.gather(
                    one.create(log_id, b"1"), two.create(log_id, b"2"), return_exceptions=True
                )
                assert sorted(type(result).__name__ for result in results) == ["LockConflict", "NoneType"], results
                assert await one.load(log_id) == (b"1" if results[0] is None else b"2")
            head = b"1" if results[0] is None else b"2"
            winners = set()
            for _ in range(120):
                heads = os.urandom(8), os.urandom(8)
                results = await asyncio.gather(
                    one.replace(log_id, head, heads[0]), two.replace(log_id, head, heads[1]), return_exceptions=True
                )
                assert sorted(type(result).__name__ for result in results) == ["LockConflict", "NoneType"], results
                winner = results.index(None)
                winners.add(winner)
                head = heads[winner]
                assert [await one.load(log_id), await two.load(log_id)] == [head, head]
            assert winners == {0, 1}

    asyncio.run(main())


COUNT = """
import asyncio, sys
import msgspec
from control.ctlog.envelope import Envelope, LocalKey
from control.ctlog.errors import LockConflict
from control.ctlog.s3 import S3LockStore, S3Options

async def main():
    options = S3Options(**msgspec.json.decode(sys.stdin.readline()))
    lock = await S3LockStore.open(options, Envelope(LocalKey(bytes(range(32)))))
    log_id, won = bytes.fromhex(sys.argv[1]), 0
    print("ready", flush=True)
    sys.stdin.readline()
    while won < 40:
        old = await lock.load(log_id)
        try:
            await lock.replace(log_id, old, str(int(old) + 1).encode())
            won += 1
        except LockConflict:
            pass
    await lock.close()

asyncio.run(main())
"""


def test_processes_that_count_lose_no_count(server: Server, truth: S3LockStore, log_id: bytes) -> None:
    options = server.options("shared")
    settings = msgspec.json.encode({name: getattr(options, name) for name in S3Options.__slots__}) + b"\n"
    asyncio.run(truth.create(log_id, b"0"))
    with ExitStack() as stack:
        children = []
        for _ in range(2):
            argv = [sys.executable, "-c", COUNT, log_id.hex()]
            child = stack.enter_context(
                subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            )
            stack.callback(child.kill)  # without effect on one that ended
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(settings)
            children.append((child, child.stdin, child.stdout))
        for _, _, said in children:
            assert said.readline() == b"ready\n"
        for _, told, _ in children:
            told.write(b"go\n")
        for child, _, _ in children:
            assert child.wait(60) == 0
    assert asyncio.run(truth.load(log_id)) == b"80"


@pytest.mark.parametrize("fault", [*AMBIGUOUS, *CLEAN], ids=lambda fault: fault.name.lower())
def test_an_unknown_outcome_is_resolved(
    truth: S3LockStore, faulty: tuple[FaultyS3, S3LockStore], log_id: bytes, fault: Fault
) -> None:
    """Whatever happens to the write, and to the read after it, create and replace say what is so."""
    proxy, opened = faulty

    async def main() -> None:
        proxy.set(Plan((fault,), path="/lock/"))
        await opened.create(log_id, b"0")
        assert await truth.load(log_id) == b"0"
        proxy.set(Plan((fault,), path="/lock/"))
        with pytest.raises(LockConflict):
            await opened.create(log_id, b"0")
        proxy.set(Plan((fault,), path="/lock/"))
        await opened.replace(log_id, b"0", b"1")
        assert await truth.load(log_id) == b"1"
        # The write, the read that asks what came of it, and the next write all fail; then the past answers.
        proxy.set(Plan((fault, Fault.ERROR_503, fault, Fault.STALE, Fault.STALE), path="/lock/"))
        await opened.replace(log_id, b"1", b"2")
        assert await truth.load(log_id) == b"2"
        await truth.replace(log_id, b"2", b"other")
        proxy.set(Plan((fault,), path="/lock/"))
        with pytest.raises(LockConflict):
            await opened.replace(log_id, b"2", b"3")
        assert await truth.load(log_id) == b"other"
        assert proxy.counts[fault] >= 5

    asyncio.run(main())


def test_a_lock_that_answers_from_the_past_is_not_believed(
    server: Server, faulty: tuple[FaultyS3, S3LockStore], log_id: bytes
) -> None:
    proxy, patient = faulty

    async def main() -> None:
        await patient.create(log_id, b"0")
        for number in range(5):
            await patient.replace(log_id, str(number).encode(), str(number + 1).encode())
        proxy.set(Plan((Fault.STALE,) * 3, path="/lock/"))
        assert await patient.load(log_id) == b"5" and proxy.counts[Fault.STALE] == 3
        proxy.set(Plan())
        async with lock(proxy.options(**PATIENCE, deadline_s=0.5)) as hasty:
            assert await hasty.load(log_id) == b"5"
            await hasty.replace(log_id, b"5", b"6")
            proxy.set(Plan((Fault.RESET_AFTER,), rates={Fault.STALE: 1.0}, path="/lock/"))
            with pytest.raises((Unavailable, LockConflict)):  # it happened, and nobody says so
                await hasty.replace(log_id, b"6", b"7")
            proxy.set(Plan())
            assert await hasty.load(log_id) == b"7"

    asyncio.run(main())


def test_two_sequencers_in_a_storm(
    server: Server, truth: S3LockStore, faulty: tuple[FaultyS3, S3LockStore], log_id: bytes
) -> None:
    """Every outcome told is true: success is what is there, a conflict is somebody else's, and one of them wins."""
    rates = {fault: 0.03 if "HANG" in fault.name else 0.08 for fault in (*AMBIGUOUS, *CLEAN)}
    one_proxy, one = faulty

    async def main() -> None:
        with FaultyS3(server.options("shared")) as two_proxy:
            async with lock(two_proxy.options(**PATIENCE)) as two:
                one_proxy.set(Plan(rates=rates, seed=1, path="/lock/"))
                two_proxy.set(Plan(rates=rates, seed=2, path="/lock/"))
                head = b"start"
                await truth.create(log_id, head)
                for _ in range(12):
                    heads = [os.urandom(8), os.urandom(8)]
                    results = await asyncio.gather(
                        one.replace(log_id, head, heads[0]), two.replace(log_id, head, heads[1]), return_exceptions=True
                    )
                    now = await truth.load(log_id)
                    assert sorted(type(result).__name__ for result in results) == ["LockConflict", "NoneType"], results
                    assert now == heads[results.index(None)]
                    head = now
                met = one_proxy.counts + two_proxy.counts
                for kind in (AMBIGUOUS, CLEAN):
                    assert sum(met[fault] for fault in kind) >= 3, met

    asyncio.run(main())


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        (Conditions.IGNORED, "ignores conditions.*If-None-Match"),
        (Conditions.CHECKED_FIRST, "does not check and write at once: 2 of 2"),
    ],
)
def test_a_server_without_real_conditions_is_refused(
    server: Server, prefix: str, conditions: Conditions, told: str
) -> None:
    with FaultyS3(server.options(prefix), conditions=conditions) as proxy, pytest.raises(S3Unusable, match=told):
        asyncio.run(S3LockStore.open(proxy.options(), Envelope(KEY)))


def test_the_probe_outlives_faults_and_leaves_nothing(server: Server, prefix: str) -> None:
    options = server.options(prefix)

    async def main() -> None:
        for seed, fault in enumerate((Fault.RESET_AFTER, Fault.HANG_BEFORE, Fault.ERROR_503)):
            with FaultyS3(options, Plan((Fault.NONE,) * (2 + seed) + (fault,), path="/probe/")) as proxy:
                async with lock(proxy.options(**PATIENCE)):
                    assert proxy.counts[fault] == 1

    asyncio.run(main())
    client = raw(options)
    left = client.list_objects_v2(Bucket=options.bucket, Prefix=prefix).get("Contents", [])
    client.close()
    assert left == []


def test_the_server_dies_with_its_test(doomed: subprocess.Popen[str]) -> None:
    said, _ = doomed.communicate(timeout=60)
    assert doomed.returncode == -signal.SIGKILL
    pid, directory = said.split()
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() or Path(directory).exists():
        assert time.monotonic() < deadline, f"process {pid} or {directory} is left"
        time.sleep(0.02)

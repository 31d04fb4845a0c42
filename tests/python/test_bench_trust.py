"""`stoq bench ct` and `stoq bench ca`: short runs with real programs. Checked is what the reports say, not how fast this
machine is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control.bench import processes, trust_figures
from control.bench.ct_chains import Pki, Precertificates
from control.bench.ct_growth import ROUND, marks
from control.bench.trust_load import Load
from control.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from control.ctlog.api import LogApi
from control.ctlog.chains import Acceptor
from control.ctlog.errors import ProofError
from control.ctlog.http import HttpServer, log_application
from control.ctlog.opening import OpenLog
from control.ctlog.site import LogConfig, create
from dataplane.address import Address
from tests.ctlog.world import Clock, new_key, run_with_deadline

TIMEOUT = 120.0  # Seconds; a run takes ten on an idle machine.
ENTRIES = 3 * ROUND + 5


def argv(*arguments: str) -> list[str]:
    """The command line of `stoq bench`."""
    return [sys.executable, "-m", "control.cli", "bench", *arguments]


def bench(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run it; its report. Nothing is left in the directory."""
    short = ("--json", "--trials", "1", "--directory", str(directory))
    done = subprocess.run(argv(*arguments, *short), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert "trial 1/1: " in done.stderr
    (line,) = done.stdout.splitlines()  # Nothing but the report: progress is on standard error.
    result = json.loads(line)
    assert isinstance(result, dict)
    assert result["environment"]["disk"]["fsync_ms"] > 0
    assert len(result["trials"]) == 1
    assert list(directory.iterdir()) == []
    return result


@pytest.mark.slow  # Some ten processes; `stoq bench ct` is the same.
def test_a_log_beside_its_yardsticks(tmp_path: Path) -> None:
    few = ("--seconds", "0.3", "--connections", "8", "--entries", str(ENTRIES))
    result = bench(tmp_path, "ct", "--seaweedfs", *few)
    (trial,) = result["trials"]
    # Every SCT was verified, and the log holds those entries and no others.
    for name in ("add_chain", "s3"):
        assert trial[name]["verified"] == trial[name]["tree_size"] == trial[name]["count"] > 0
        assert result[name]["per_second"] == trial[name]["per_second"]
        assert 0 < result[f"{name}_ratio"] < 1  # The yardstick does less.
    added = trial["add_chain"]
    assert added["entries_per_round"] == pytest.approx(added["count"] / added["rounds"], 1e-2)
    assert added["p50_ms"] <= added["p99_ms"] <= added["max_ms"]
    assert added["seconds"] >= 0.3
    assert added["server_cpu_seconds"] > 0
    ratio = added["per_second"] / trial["constant"]["per_second"]
    assert result["add_chain_ratio"] == pytest.approx(ratio, 1e-2)
    # The whole of the big log was read, both ways.
    for name in ("get_entries", "data_tiles"):
        assert trial[name]["entries"] >= ENTRIES
        assert result[name]["entries_per_second"] == trial[name]["entries_per_second"] > 0
    assert trial["proofs"]["verified"] == trial["proofs"]["count"] > 0
    assert trial["proofs"]["tree_size"] == trial["reopened"]["entries"] == ENTRIES
    growth = result["growth"]
    assert [mark["entries"] for mark in growth["marks"]] == [ENTRIES]
    assert growth["marks"][0]["us"] > growth["marks"][0]["append_us"] > 0
    assert growth["flatness"] == 1  # There is but one mark.
    assert growth["disk_mib"] * 2**20 > 1000 * ENTRIES  # A precertificate has 500 bytes, and is there twice.
    assert 0 < growth["reopened_seconds"] < trial["reopened"]["seconds"]


def test_an_authority_beside_its_yardsticks(tmp_path: Path) -> None:
    result = bench(tmp_path, "ca", "--seconds", "0.3", "--concurrency", "8")
    (trial,) = result["trials"]
    for name, scts in (("issued", 2), ("unlogged", 0)):
        figures = trial[name]
        assert figures["stored"] == figures["count"] > 0
        assert figures["scts_verified"] == scts * figures["count"]
        # A decision each, with SCTs its end too; before them the authority's making, after them our look.
        assert figures["audit_lines"] == figures["count"] * (2 if scts else 1) + 2
        assert figures["p50_ms"] <= figures["p99_ms"]
    assert 0 < result["issued_ratio"] < 1
    assert 0 < result["unlogged_ratio"] < 1
    assert trial["judged"]["count"] == trial["issued"]["count"]
    assert result["judged_ratio"] > 1  # It looks at the path, and at more.
    assert trial["ocsp"]["verified"] == trial["ocsp"]["count"] > 0
    assert trial["crl"]["bytes"] > 20 * min(100, trial["issued"]["count"])  # It names who was revoked.


@pytest.mark.parametrize(
    "arguments", [("--s3", "http://[::1]:1"), ("--s3", "http://[::1]:1", "--s3-bucket", "log", "--seaweedfs")]
)
def test_s3_is_named_whole_and_once(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(argv("ct", *arguments), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == EXIT_USAGE
    assert "--seaweedfs" in done.stderr


def test_without_s3_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    where = ("--s3", "http://192.0.2.1:1", "--s3-bucket", "log", "--entries", "10", "--directory", str(tmp_path))
    short = ("--seconds", "0.1", "--connections", "1", "--trials", "1")
    done = subprocess.run(
        argv("ct", *where, *short), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == EXIT_FAILED
    assert "use https" in done.stderr  # Said by the storage: not on this machine, and not encrypted.
    assert list(tmp_path.iterdir()) == []


def _processes_below(directory: Path) -> list[str]:
    """Command lines that name it."""
    found = []
    for one in Path("/proc").iterdir():
        try:
            line = (one / "cmdline").read_bytes() if one.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(directory) in line and int(one.name) != os.getpid():
            found.append(line.decode(errors="replace"))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    # For ever, as far as the test is concerned.
    command = argv("ct", "--json", "--entries", "10", "--seconds", "600", "--directory", str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "a log of 10 entries" in process.stderr.readline()
            assert _processes_below(tmp_path)
            process.send_signal(number)
            _, rest = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == EXIT_INTERRUPTED, rest
    assert list(tmp_path.iterdir()) == []
    assert _processes_below(tmp_path) == []


# ---- the parts ----


def test_precertificates_are_distinct_and_good() -> None:
    pki = Pki.make()
    makes = Precertificates(pki)
    acceptor = Acceptor([pki.root])
    made = [next(makes) for _ in range(20)]
    entries = {acceptor.submission([one, *pki.above], precertificate=True).entry for one in made}
    assert entries == {makes.entry(one) for one in made}
    assert len(entries) == len(made)


def test_a_pki_is_read_as_it_was_written(tmp_path: Path) -> None:
    pki = Pki.make()
    pki.save(tmp_path)
    assert (tmp_path / "issuer.key").stat().st_mode & 0o077 == 0
    read = Pki.load(tmp_path)
    assert read.above == pki.above
    assert read.key.private_numbers() == pki.key.private_numbers()


def test_marks() -> None:
    assert marks(10) == [10]
    assert marks(10_000) == [10_000]
    assert marks(10_001) == [10_000, 10_001]
    assert marks(1_000_000) == [10_000, 100_000, 1_000_000]


def test_in_flight_counts_what_failed() -> None:
    tally = trust_figures.Tally()
    calls = iter(range(10))

    async def once() -> bool | None:
        number = next(calls, None)
        if number is None:
            return False
        if number == 3:
            raise ProofError("no")
        return None

    asyncio.run(trust_figures.in_flight(2, 60.0, once, tally, ProofError))
    figures = tally.figures()
    assert (figures["count"], figures["failed"], figures["error"]) == (9, 1, "ProofError: no")


def test_a_log_with_another_key_is_found_out(tmp_path: Path) -> None:
    """The client checks what it measures."""
    pki = Pki.make()
    pki.save(tmp_path)

    async def main() -> None:
        site = await create(tmp_path / "log", LogConfig("localhost/bench"), [pki.root], Clock())
        async with OpenLog(site, Clock()) as log:
            server = HttpServer(log_application({"bench": LogApi(log)}), Address("::1", 0))
            await server.open()
            url = f"http://[::1]:{server.address.port}/bench"
            try:
                load = Load(url, 2, 60.0)
                good = await load.add(tmp_path, 8, log.signer.key.public_key())
                assert good["verified"] == good["tree_size"] == 8
                await load.carrier.close()
                other = Load(url, 2, 60.0)
                try:
                    with pytest.raises(ProofError):
                        await other.add(tmp_path, 8, new_key().public_key())
                finally:
                    await other.carrier.close()
            finally:
                await server.close()

    run_with_deadline(main())


def test_a_program_that_fails_is_an_error() -> None:
    async def main() -> None:
        ends = trust_figures.places_on(None)
        more = ("--url", "http://[::1]:9", "--seconds", "0.2", "--connections", "1", "get", "--path", "x")
        argv = processes.python("control.bench.trust_load", *more)
        async with processes.running("client", ends[0], argv, cwd=processes.ROOT) as program:
            result = await program.until("result")
            assert result["failed"] > 0
            assert "does not answer" in result["error"]

    run_with_deadline(main())

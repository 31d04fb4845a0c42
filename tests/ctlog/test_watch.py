"""`stoq ct watch` as a process, on logs in this one that lie, stall and fail."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.cli import cli
from control.console import exit_code
from control.ctlog.alerts import check_evidence, read_evidence
from control.ctlog.api import Reply
from control.ctlog.errors import ProofError
from control.ctlog.structs import EntryType, LogEntry, SignedEntry
from dataplane.errors import StoqError
from tests.ctlog.lying import CA, ENTRIES, STH, Scene, chain, grow, scene
from tests.ctlog.world import new_key, run_with_deadline
from tests.peers_ct.processes import DIES_WITH_US, Event, environment

FAILED, USAGE = 1, 2


class Watch:
    """The command, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, here: Scene, *arguments: str | Path) -> Watch:
        key = here.directory / "log.pem"
        key.write_bytes(here.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        argv = [
            *DIES_WITH_US, sys.executable, "-m", "control.cli", "--json", "ct", "watch", here.url, "--log-key", str(key),
            *map(str, arguments),
        ]  # fmt: skip
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env=environment()))

    async def end(self) -> tuple[int, list[Event], str]:
        """Exit code, events, what is on standard error, once it has ended."""
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


async def watch(here: Scene, *arguments: str | Path) -> tuple[int, list[Event], str]:
    """Run it to its end."""
    return await (await Watch.start(here, *arguments)).end()


def today(here: Scene) -> None:
    """The command knows only the real time."""
    here.world.clock.now = time.time()  # type: ignore[attr-defined]


def certificate(directory: Path, number: int) -> Path:
    """The file of a certificate with its chain."""
    path = directory / f"{number}.pem"
    pem = [x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in chain(number)[0]]
    path.write_bytes(b"".join(pem))
    return path


def names(events: list[Event]) -> list[str]:
    return [str(event.get("alert") or event["event"]) for event in events]


def test_once_and_once_more_after_a_fork(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as here:
            today(here)
            await grow(here.log, 0, 1, 2)
            forked = await here.fork()
            await grow(here.log, 3, 4)
            state = tmp_path / "state"
            arguments = ("--once", "--state", state, "--address", "fd00::/16", "--shard", "2026h1")
            code, events, complaints = await watch(here, *arguments)
            assert (code, names(events), complaints) == (0, ["head", "summary"], "")
            assert (events[0]["size"], events[0]["proven"]) == (5, 5)
            await grow(forked, 5, 6, 7)
            here.liar.become(forked)
            code, events, complaints = await watch(here, *arguments)
            assert code == FAILED and "1 alerts" in complaints
            assert names(events) == ["bad-consistency-proof", "summary", "error"]
            [kept] = (tmp_path / "state.evidence").iterdir()
            assert str(kept) == events[0]["evidence"]
            evidence = read_evidence(kept.read_bytes())
            assert check_evidence(evidence, here.key).proves
            for place in range(len(evidence.proof)):
                proof = list(evidence.proof)
                proof[place] = bytes(32)
                assert not check_evidence(msgspec.structs.replace(evidence, proof=tuple(proof)), here.key).proves
            bent = msgspec.structs.replace(evidence.heads[0], root=bytes(32))
            with pytest.raises(ProofError):
                check_evidence(msgspec.structs.replace(evidence, heads=(bent, evidence.heads[1])), here.key)

    run_with_deadline(main())


def test_a_promise_that_the_log_does_not_keep(tmp_path: Path) -> None:
    """Both SCTs are files beside their certificates; one has its entry."""

    async def main() -> None:
        async with scene(tmp_path) as here:
            today(here)
            here.world.clock.now -= 7200  # type: ignore[attr-defined]
            files: list[str | Path] = []
            for number, logged in ((0, True), (2, False)):
                ders, _ = chain(number)
                if logged:
                    sct, _ = await here.log.add_chain(ders, precertificate=False)
                else:
                    promise = LogEntry(SignedEntry(EntryType.X509, ders[0]), int(here.world.clock() * 1000), 1, ())
                    sct = here.world.signer.sct(promise)
                (tmp_path / f"{number}.sct").write_bytes(sct.encode())
                files += ["--cert", certificate(tmp_path, number), "--sct", tmp_path / f"{number}.sct"]
            today(here)
            await grow(here.log, 4)
            late, early = await asyncio.gather(
                watch(here, "--once", *files, "--mmd", "3600", "--evidence", tmp_path / "evidence"),
                watch(here, "--once", *files),
            )
            assert late[0] == FAILED and names(late[1]) == ["promise-broken", "head", "summary", "error"]
            evidence = read_evidence(Path(late[1][0]["evidence"]).read_bytes())
            assert check_evidence(evidence, here.key).owes and "node-2.example" in evidence.text
            # It is not due yet where the log may take a day; nothing is said of the first.
            assert early[0] == 0 and (early[1][-1]["promises"], early[1][-1]["promises_open"]) == (1, 1)

    run_with_deadline(main())


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (("--cert", "0.pem"), FAILED, "0.pem has no SCT of this log"),
        (("--cert", "0.pem", "--sct", "none"), FAILED, "none cannot be read"),
        (("--cert", "0.pem", "--sct", "0.pem"), FAILED, "an SCT of version"),
        (("--cert", "0.pem", "--cert", "0.pem", "--sct", "0.pem"), USAGE, "1 --sct for 2 --cert"),
        (("--address", "example.com"), USAGE, "no IPv6 address"),
        (("--address", "fd00::/200"), USAGE, "no IPv6 address"),
        (("--shard", "2026h3"), FAILED, "is no shard"),
    ],
)
def test_wrong_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    certificate(tmp_path, 0)
    key = new_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    argv = ["ct", "watch", "http://[::1]:1/log", "--once", "--log-key", base64.b64encode(key).decode(), *arguments]
    done = CliRunner().invoke(cli, argv)
    error = done.exception  # `stoq` makes text and exit codes of ours; click has made them of its own.
    found = (exit_code(error), str(error)) if isinstance(error, StoqError) else (done.exit_code, done.stderr)
    assert found[0] == code and says in found[1]


def test_interrupted_in_the_middle_it_goes_on_there_over_a_bad_line(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as here:
            today(here)
            many = [CA.certificate(f"many-{number}") for number in range(512)]
            await asyncio.gather(*(here.log.add_chain(one, precertificate=False) for one in many))
            here.liar.spoilers[ENTRIES] = lambda answer: {"entries": answer["entries"][:64]}
            # Four pages are asked for ahead: whoever asks for the last has had those before the last four.
            stalled, ended = asyncio.Event(), asyncio.Event()

            async def stall(path: str, query: Mapping[str, str]) -> Reply | None:
                if path == ENTRIES and int(query["start"]) >= 256:
                    if int(query["start"]) == 448:
                        stalled.set()
                    await ended.wait()
                return None

            here.liar.gate = stall
            state = tmp_path / "state"
            running = await Watch.start(here, "--state", state)
            await stalled.wait()
            running.process.send_signal(signal.SIGINT)
            code, events, complaints = await running.end()
            assert (code, names(events), complaints) == (0, ["summary"], "")
            assert (events[0]["entries"], events[0]["proven"], events[0]["size"]) == (256, 0, 512)
            ended.set()

            failed: set[str] = set()

            async def fail(path: str, query: Mapping[str, str]) -> Reply | None:
                what = f"{path} {query}"
                if path == STH or what in failed:
                    return None
                failed.add(what)
                return Reply(503, b"busy")

            here.liar.gate = fail
            asked = len(here.liar.asked)
            code, events, complaints = await watch(here, "--state", state, "--once")
            assert (code, names(events), complaints) == (0, ["retrying", "head", "summary"], "")
            assert (events[1]["entries"], events[1]["proven"]) == (256, 512)
            assert min(int(query["start"]) for path, query in here.liar.asked[asked:] if path == ENTRIES) == 256

    run_with_deadline(main())

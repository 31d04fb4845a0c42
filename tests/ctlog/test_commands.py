"""`stoq ct` as people and scripts meet it: logs and monitors are processes, HTTP is on ::1. What ends by itself is run as
the command runs it, in this process: a Python that starts takes longer than most of these commands."""

from __future__ import annotations

import base64
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.cli import cli
from control.ctlog.client_commands import ProofBundle, check_bundle
from control.ctlog.errors import LogError
from control.ctlog.precert import embedded_entry, sct_extension
from control.ctlog.site import load_log_key
from control.ctlog.structs import decode_sct, key_id, verify_sct
from tests.ctlog.world import Ca, Issuer, make_root
from tests.peers_ct.processes import DIES_WITH_US, Event, environment, run, serving

PATIENCE = 30.0
FAILED, USAGE = 1, 2
CA = Ca()  # Its certificates end in 2026h1.


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def command(*arguments: str | Path) -> tuple[int, list[Event], str]:
    """Run a command with --json: exit code, events, what is on standard error."""
    done = CliRunner().invoke(cli, ["--json", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def stoq(*arguments: str | Path) -> list[Event]:
    """A command that must succeed; its events."""
    code, events, complaints = command(*arguments)
    assert (code, complaints) == (0, "")
    return events


def failing(*arguments: str | Path, code: int = FAILED) -> Event:
    """A command that must fail; its error."""
    found, events, complaints = command(*arguments)
    assert found == code and complaints.startswith("stoq: "), complaints
    [error] = [event for event in events if event["event"] == "error"]
    return error


def init(directory: Path, origin: str, *more: str) -> Path:
    """A log; its public key's file."""
    roots = directory.with_suffix(".roots")
    roots.write_bytes(pem(CA.root.certificate))
    stoq("ct", "init", directory, "--origin", origin, "--roots", roots, "--period", "0.005", *more)
    return directory / "log.pem"


def base(common_name: str, issuer: Issuer = CA.issuer) -> x509.CertificateBuilder:
    return issuer.builder(common_name, CA.key.public_key())


def precertificate(common_name: str) -> tuple[x509.CertificateBuilder, bytes]:
    """What the final certificate is made from, and the precertificate with its issuer, PEM."""
    builder = base(common_name)
    poisoned = CA.issuer.sign(builder.add_extension(x509.PrecertPoison(), critical=True))
    return builder, pem(poisoned, CA.issuer.certificate)


class Watching:
    """`stoq ct watch` as it runs. `until` waits for an event."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[Event] = []
        self._queue: queue.Queue[Event | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def until(self, name: str, **fields: object) -> Event:
        deadline = time.monotonic() + PATIENCE
        while True:
            event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            assert event is not None, f"it ended: {self.events}"
            self.events.append(event)
            if event["event"] == name and all(event[key] == value for key, value in fields.items()):
                return event

    def rest(self) -> list[Event]:
        """After it has ended."""
        found = []
        while (event := self._queue.get(timeout=PATIENCE)) is not None:
            found.append(event)
        return found


@contextmanager
def watching(*arguments: str | Path) -> Iterator[Watching]:
    argv = [*DIES_WITH_US, sys.executable, "-m", "control.cli", "--json", "ct", "watch", *map(str, arguments)]
    process = subprocess.Popen(
        argv, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Watching(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def end(watch: Watching, number: signal.Signals) -> Event:
    """It ends cleanly; what it sums up."""
    watch.process.send_signal(number)
    assert watch.process.wait(PATIENCE) == 0
    summary = watch.rest()[-1]
    assert summary["event"] == "summary"
    return summary


def test_init_overwrites_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    key = init(tmp_path / "log", "ct.example/2026h1", "--shard", "2026h1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "log").glob("log.*")}
    assert (tmp_path / "log/log.key").stat().st_mode & 0o777 == 0o600 and key.exists()
    again = ("ct", "init", tmp_path / "log", "--origin", "a.example/1", "--roots", tmp_path / "log.roots")
    assert "nothing was overwritten" in failing(*again)["error"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "log").glob("log.*")} == before
    (tmp_path / "empty").write_bytes(b"")
    for more, word in (
        (("--origin", "a.example/1", "--roots", tmp_path / "empty"), "roots"),
        (("--origin", "a b", "--roots", tmp_path / "log.roots"), "origin"),
    ):
        assert word in failing("ct", "init", tmp_path / "other", *more)["error"]
        assert not (tmp_path / "other/log.json").exists()
    assert "no log's directory" in failing("ct", "serve", tmp_path / "other", "--http", "[::1]:0")["error"]


def test_a_wrong_command_line(tmp_path: Path) -> None:
    key = init(tmp_path / "log", "localhost/log")
    new = ("ct", "init", tmp_path / "new", "--origin", "a.example/1", "--roots", tmp_path / "log.roots")
    for arguments, code, kind in (
        (("ct", "serve", tmp_path / "log", "--http", "127.0.0.1:0"), USAGE, "AddressError"),
        (("ct", "watch", "http://[::1]:1/log", "--log-key", key, "--name", "10.0.0.1"), USAGE, "ConfigError"),
        ((*new, "--shard", "2026h3"), FAILED, "LogError"),
    ):
        done = run(sys.executable, "-m", "control.cli", "--json", *arguments)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert json.loads(done.stdout)["kind"] == kind
    assert not (tmp_path / "new").exists()


def test_two_shards_are_served_and_used(tmp_path: Path) -> None:
    """Everything a user does with logs, at two shards of one process: submit, prove, verify, watch, fsck."""
    key1 = init(tmp_path / "h1", "localhost/2026h1", "--shard", "2026h1")
    key2 = init(tmp_path / "h2", "localhost/2026h2", "--shard", "2026h2")
    leaf, chain = tmp_path / "leaf.pem", tmp_path / "chain.pem"
    leaf.write_bytes(pem(CA.issuer.sign(base("plain.example")), CA.issuer.certificate))
    builder, data = precertificate("pre.example")
    chain.write_bytes(data)
    bundle, sct_file, final = tmp_path / "proof.json", tmp_path / "sct.bin", tmp_path / "final.pem"
    with serving("ct", "serve", tmp_path / "h1", tmp_path / "h2", "--http", "[::1]:0") as served:
        logs = served.listening["logs"]
        url, url2 = (log["url"] for log in logs)
        listed = _log_list(served.port)
        assert [log["url"].rstrip("/") for log in listed] == [url, url2]
        assert [base64.b64decode(log["log_id"]) for log in listed] == [
            key_id(load_log_key(log["key"])) for log in listed
        ] == [key_id(load_log_key(str(key))) for key in (key1, key2)]
        assert listed[1]["temporal_interval"] == {
            "start_inclusive": "2026-07-01T00:00:00Z", "end_exclusive": "2027-01-01T00:00:00Z",
        }  # fmt: skip

        # A certificate: its SCT in a file, and the same promise again.
        [first] = stoq("ct", "submit", url, leaf, "--log-key", key1, "--out", sct_file)
        assert first["verified"] and first["index"] == 0
        assert decode_sct(sct_file.read_bytes()).timestamp == first["timestamp"]
        [again] = stoq("ct", "submit", url, leaf)
        assert not again["verified"]
        assert [again[name] for name in ("timestamp", "index", "log_id")] == [
            first[name] for name in ("timestamp", "index", "log_id")
        ]
        assert "SCT" in failing("ct", "submit", url, leaf, "--log-key", key2)["error"]
        refused = failing("ct", "submit", url2, leaf)
        assert refused["kind"] == "Refused" and "2026-07-01" in refused["error"]
        stranger = tmp_path / "stranger.pem"
        other = make_root("nobody")
        stranger.write_bytes(pem(other.sign(base("x", other))))
        assert "does not lead to a root" in failing("ct", "submit", url, stranger)["error"]

        # A precertificate, and the certificate that it promises.
        [event] = stoq("ct", "submit", url, chain, "--log-key", key1)
        sct = decode_sct(base64.b64decode(event["sct"]))
        certificate = CA.issuer.sign(builder.add_extension(sct_extension([sct]), critical=False))
        verify_sct(sct, embedded_entry(certificate, CA.issuer.certificate), load_log_key(str(key1)))
        final.write_bytes(pem(certificate, CA.issuer.certificate))
        [proof] = stoq("ct", "prove", url, final, "--log-key", key1, "--out", bundle)
        assert (proof["index"], proof["tree_size"], proof["verified"], len(proof["audit_path"])) == (1, 2, True, 1)
        [of_leaf] = stoq("ct", "prove", url, leaf, "--sct", sct_file, "--log-key", key1)
        assert of_leaf["index"] == 0
        assert "no SCT of this log" in failing("ct", "prove", url2, final, "--log-key", key2)["error"]
        assert "issuer" in failing("ct", "prove", url, _only_first(final, tmp_path), "--log-key", key1)["error"]

        # A monitor that expects one of the two, and follows up its promise.
        state = tmp_path / "state"
        watch = ("ct", "watch", url, "--log-key", key1, "--name", "example", "--expect", final, "--state", state, "--once")
        code, events, _ = command(*watch)
        assert code == FAILED
        assert [event["event"] for event in events] == ["alert", "head", "summary", "error"]
        assert (events[0]["alert"], events[0]["index"]) == ("unexpected-certificate", 0)
        assert "plain.example" in events[0]["what"]
        assert (events[1]["size"], events[1]["proven"]) == (2, 2)
        assert (events[2]["promises"], events[2]["alerts"]) == (1, 1)
        evidence = Path(events[0]["evidence"])
        assert evidence.parent == tmp_path / "state.evidence"
        assert "does not prove" in failing("ct", "verify", evidence, "--log-key", key1)["error"]
        assert [event["event"] for event in stoq(*watch)] == ["summary"]  # Told already.
    [first_log, second_log] = [event for event in served.summary if event["event"] == "summary"]
    assert (first_log["size"], first_log["duplicates"], second_log["size"], second_log["refused"]) == (2, 2, 0, 1)

    # Without the log.
    [kept] = stoq("ct", "verify", bundle, "--log-key", key1, "--log-key", key2)
    assert kept["index"] == 1
    [embedded] = stoq("ct", "verify", final, "--log-key", key1)
    assert embedded["verified"] and embedded["timestamp"] == sct.timestamp
    assert "key was not given" in failing("ct", "verify", bundle, "--log-key", key2)["error"]
    assert "does not answer" in failing("ct", "prove", url, final, "--log-key", key1)["error"]
    report = stoq("ct", "fsck", tmp_path / "h1")[-1]
    assert report["clean"] and report["proven"] and report["size"] == 2


def _only_first(file: Path, directory: Path) -> Path:
    path = directory / "alone.pem"
    path.write_bytes(pem(x509.load_pem_x509_certificates(file.read_bytes())[0]))
    return path


def _log_list(port: int) -> list[dict[str, Any]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://[::1]:{port}/log-list.json", timeout=PATIENCE) as answer:
        listing = json.load(answer)
    [operator] = listing["operators"]
    logs: list[dict[str, Any]] = operator["logs"]
    return logs


def test_a_kept_proof_is_refused_when_anything_in_it_was_changed(tmp_path: Path) -> None:
    """By the functions behind the command: there are many changes, and a process takes its time."""
    key = init(tmp_path / "log", "localhost/log")
    bundle, sct_file = tmp_path / "proof.json", tmp_path / "sct.bin"
    with serving("ct", "serve", tmp_path / "log", "--http", "[::1]:0") as served:
        url = served.listening["logs"][0]["url"]
        for number in range(3):
            leaf = tmp_path / f"{number}.pem"
            leaf.write_bytes(pem(CA.issuer.sign(base(f"{number}.example")), CA.issuer.certificate))
            stoq("ct", "submit", url, leaf, "--log-key", key, "--out", sct_file)
        stoq("ct", "prove", url, leaf, "--sct", sct_file, "--log-key", key, "--out", bundle)
    good = msgspec.json.decode(bundle.read_bytes(), type=ProofBundle)
    public = load_log_key(str(key))
    check_bundle(good, public)
    changed: list[dict[str, Any]] = [
        {"log_id": bytes(32)}, {"leaf": good.leaf[:-1] + b"\x01"}, {"index": good.index - 1}, {"index": 9},
        {"audit_path": good.audit_path[1:]}, {"audit_path": (*good.audit_path, bytes(32))},
        {"audit_path": (bytes(32), *good.audit_path[1:])}, {"tree_size": good.tree_size + 1},
        {"timestamp": good.timestamp + 1}, {"root": bytes(32)}, {"signature": good.signature[:-1]},
        {"algorithm": (4, 1)},
    ]  # fmt: skip
    for change in changed:
        with pytest.raises(LogError):
            check_bundle(msgspec.structs.replace(good, **change), public)
    value = msgspec.json.decode(bundle.read_bytes())
    bundle.write_bytes(msgspec.json.encode({**value, "root": base64.b64encode(bytes(32)).decode()}))
    assert failing("ct", "verify", bundle, "--log-key", key)["kind"] == "ProofError"
    bundle.write_bytes(b"{}")
    assert "no proof" in failing("ct", "verify", bundle, "--log-key", key)["error"]


def test_watch_follows_a_log_that_goes_away_and_comes_back_from_an_old_backup(tmp_path: Path) -> None:
    """One monitor sees: entries as they come, the log gone, the log back and well, and the log restored from a backup that
    lacks what it has signed, which it proves to others."""
    log, state, expect = tmp_path / "log", tmp_path / "state", tmp_path / "expect"
    key = init(log, "localhost/log")
    expect.write_text("")
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.pem")
        files[-1].write_bytes(pem(CA.issuer.sign(base(f"{number}.example")), CA.issuer.certificate))
    with serving("ct", "serve", log, "--http", "[::1]:0") as served:
        port, url = served.port, served.listening["logs"][0]["url"]
        stoq("ct", "submit", url, files[0])
    shutil.copytree(log, tmp_path / "backup")
    arguments = [
        url, "--log-key", key, "--state", state, "--interval", "0.05", "--name", "example", "--expect", expect,
        "--evidence", tmp_path / "evidence",
    ]  # fmt: skip
    with watching(*arguments) as watch:
        watch.until("unreachable")
        expect.write_bytes(files[0].read_bytes() + files[1].read_bytes())
        with serving("ct", "serve", log, "--http", f"[::1]:{port}"):
            assert watch.until("head")["size"] == 1
            stoq("ct", "submit", url, files[1])
            assert watch.until("head")["proven"] == 2
            assert not [event for event in watch.events if event["event"] == "alert"]
            stoq("ct", "submit", url, files[2])
            alert = watch.until("alert")
            assert (alert["alert"], alert["index"]) == ("unexpected-certificate", 2)
            watch.until("head", size=3)
        watch.until("unreachable")
        # It is killed and goes on where it was.
        watch.process.kill()
    shutil.rmtree(log)
    shutil.copytree(tmp_path / "backup", log)
    with (
        serving("ct", "serve", log, "--http", f"[::1]:{port}"),
        watching(*arguments) as watch,
    ):
        assert watch.until("alert")["alert"] == "older-head"
        stoq("ct", "submit", url, files[3])
        alert = watch.until("alert")
        assert alert["alert"] == "rolled-back"
        summary = end(watch, signal.SIGTERM)
    assert (summary["size"], summary["proven"], summary["alerts"]) == (3, 3, 2)
    [proven] = stoq("ct", "verify", alert["evidence"], "--log-key", key)
    assert proven["proves"] and "size 3" in proven["what"]
    other = init(tmp_path / "other", "localhost/other")
    assert "whose key was not given" in failing("ct", "verify", alert["evidence"], "--log-key", other)["error"]
    assert "is of log" in failing("ct", "watch", url, "--log-key", other, "--state", state, "--once")["error"]
    assert "does not answer" in failing("ct", "watch", url, "--log-key", key, "--once")["error"]


def test_watch_reads_tiles_over_https(tmp_path: Path) -> None:
    """And ends with Ctrl-C."""
    stoq("dev-certs", tmp_path / "tls", "--name", "web")
    tls = ("--tls-cert", tmp_path / "tls/web.pem", "--tls-key", tmp_path / "tls/web.key")
    key = init(tmp_path / "log", "localhost/log")
    with serving("ct", "serve", tmp_path / "log", "--http", "[::1]:0", *tls) as served:
        url = served.listening["logs"][0]["url"]
        assert url.startswith("https://[::1]:")
        watch = (url, "--log-key", key, "--interval", "0.05", "--tiles", "localhost/log")
        assert "certificate" in failing("ct", "watch", *watch, "--once")["error"].lower()
        with watching(*watch, "--ca", tmp_path / "tls/ca.pem") as there:
            assert there.until("head")["size"] == 0
            assert end(there, signal.SIGINT)["alerts"] == 0

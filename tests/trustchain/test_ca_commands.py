"""`stoq ca`, as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from control.console import Output
from control.trustchain.ca_commands import ca_group
from control.trustchain.keys import generate, load_key, same_key, write_key
from control.trustchain.profiles import Names
from control.trustchain.requests import make_csr
from control.trustchain.tokens import Token
from tests.trustchain.conftest import Ca, openssl


class Command:
    """`stoq ca -d DIRECTORY`."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def __call__(self, name: str, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
        """With --json; its events."""
        out = self._run(name, *arguments, code=code, json_lines=True)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def text(self, name: str, *arguments: str | Path, code: int = 0) -> str:
        """For people."""
        return self._run(name, *arguments, code=code, json_lines=False)

    def _run(self, name: str, *arguments: str | Path, code: int, json_lines: bool) -> str:
        command = [name, "-d", str(self.directory), *map(str, arguments)]
        # The output object must be made where click has already replaced the streams.
        runner = CliRunner(env=self.environment)
        with runner.isolation(env=self.environment) as streams:
            try:
                ca_group.main(command, standalone_mode=False, obj=Output(json_lines=json_lines))
                got = 0
            except SystemExit as end:
                got = int(end.code or 0)
            said = streams[0].getvalue().decode() + streams[1].getvalue().decode()
        assert got == code, said
        return said


@pytest.fixture
def ca_command(tmp_path: Path) -> Command:
    """A new authority, without logs."""
    command = Command(tmp_path / "ca", {})
    command("init", "--allow-unlogged", "--permit-dns", "stoq.example", "--organization", "STOQ")
    return command


def test_a_certificate_from_beginning_to_end(ca_command: Command, tmp_path: Path) -> None:
    root, out = ca_command.directory / "root.pem", tmp_path / "a"
    (issued,) = ca_command("issue", "--name", "a.stoq.example", "--address", "2001:db8::1", "--lifetime", "2h", "-o", out)
    assert issued["files"] == [f"{out}.pem", f"{out}.key"] and issued["not_after"] - issued["not_before"] == 7500
    openssl("verify", "-CAfile", root, "-untrusted", f"{out}.pem", f"{out}.pem")
    assert same_key(load_key(Path(f"{out}.key")), x509.load_pem_x509_certificate(Path(f"{out}.pem").read_bytes()))
    # From a CSR that OpenSSL made.
    openssl(
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "b.key",
        "-subj", "/CN=b.stoq.example", "-addext", "subjectAltName=DNS:b.stoq.example", "-out", tmp_path / "b.csr",
    )  # fmt: skip
    (other,) = ca_command("issue", "--csr", tmp_path / "b.csr", "-o", tmp_path / "b")
    assert other["subject"] == "b.stoq.example"
    (renewed,) = ca_command("renew", f"{out}.pem", "--key", f"{out}.key", "-o", tmp_path / "a2")
    assert renewed["names"] == issued["names"] and renewed["node_id"] == issued["node_id"]
    (revoked,) = ca_command("revoke", issued["serial"][:12], "--reason", "superseded")
    assert revoked["serial"] == issued["serial"]
    listed = ca_command("list")
    assert [one["state"] for one in listed] == ["valid", "valid", "revoked (superseded)"]
    assert [one["subject"] for one in ca_command("list", "--live", "--subject", "a.stoq.example")] == ["a.stoq.example"]
    *_, more = ca_command("list", "--limit", "2")
    assert [one["serial"] for one in ca_command("list", "--after", str(more["after"]))] == [issued["serial"]]
    (shown,) = ca_command("show", issued["fingerprint"])
    assert x509.load_pem_x509_certificate(shown["pem"].encode()).serial_number == int(issued["serial"], 16)
    ca_command("crl", "-o", tmp_path / "ca.crl")
    crl = x509.load_der_x509_crl((tmp_path / "ca.crl").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(int(issued["serial"], 16)) is not None
    (rotated,) = ca_command("rotate-intermediate")
    assert rotated["number"] == 2
    ca_command("revoke-intermediate", "1", "--reason", "cessationOfOperation")
    (verified,) = ca_command("audit", "--verify")
    lines = ca_command("audit")
    assert verified["lines"] == len(lines) and lines[0]["operation"] == "ca.init"
    assert ca_command("audit", "--last", "1") == lines[-1:]


def test_what_people_see(ca_command: Command, tmp_path: Path) -> None:
    said = ca_command.text("issue", "--name", "a.stoq.example", "-o", tmp_path / "a")
    assert "a.stoq.example" in said and "[admin] via command line" in said
    for command, part in (("list", "valid"), ("audit", "granted ca.issue"), ("show", "BEGIN CERTIFICATE")):
        assert part in ca_command.text(command, *(["a.stoq.example", "--pem"] if command == "show" else []))
    assert "2 records hold" in ca_command.text("audit", "--verify")


def test_tokens(ca_command: Command) -> None:
    (made,) = ca_command("token", "--name", "n.stoq.example", "--ttl", "5m", "--at", "[2001:db8::5]:999")
    token = Token.parse(made["token"])
    assert (str(token.address), token.port, token.secret_hash.hex()) == ("2001:db8::5", 999, made["hash"])
    assert [one["hash"] for one in ca_command("token", "--list")] == [made["hash"]]
    ca_command("token", "--cancel", made["hash"])
    assert ca_command("token", "--list") == []


def test_errors_say_what_to_do(ca_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "a"
    for arguments, part in (
        (("issue", "--name", "evil.example", "-o", out), "outside"),
        (("issue", "--address", "192.0.2.1", "-o", out), "IPv6-only"),
        (("issue", "-o", out), "give --name or --address"),
        (("issue", "--csr", tmp_path / "none", "-o", out), "cannot read"),
        (("issue", "--csr", tmp_path / "none", "--name", "a", "-o", out), "leave --name"),
        (("issue", "--name", "a.stoq.example", "--log", "nonsense", "-o", out), "URL=KEY"),
        (("renew", tmp_path / "none", "--key", "x", "-o", out), "cannot read"),
        (("revoke", "nobody"), "stoq ca list"),
        (("show", "nobody"), "stoq ca list"),
        (("token", "--cancel", "xyz"), "not hexadecimal"),
        (("rotate-intermediate", "--root-key", tmp_path / "none"), "--root-key"),
        (("init",), "nothing was overwritten"),
    ):
        event = ca_command(*map(str, arguments), code=1)[-1]
        assert event["event"] == "error" and part in event["error"], event
    assert not list(tmp_path.glob("a.*"))
    (tmp_path / "a.pem").write_text("mine")
    assert "nothing was overwritten" in ca_command.text("issue", "--name", "a.stoq.example", "-o", out, code=1)
    assert (tmp_path / "a.pem").read_text() == "mine"
    nowhere = Command(tmp_path / "nowhere", {})
    for name in ("list", "audit", "token"):
        assert "stoq ca init" in nowhere(name, *(["--verify"] if name == "audit" else []), code=1)[-1]["error"]


def test_an_altered_audit_log_fails_the_verification(ca_command: Command, tmp_path: Path) -> None:
    ca_command("issue", "--name", "a.stoq.example", "-o", tmp_path / "a")
    path = ca_command.directory / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a.stoq.example", b"b.stoq.example"))
    assert "line 2 (record 2) was altered" in ca_command("audit", "--verify", code=1)[-1]["error"]
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert "the file ends at record 1" in ca_command("audit", "--verify", code=1)[-1]["error"]
    assert "AuditBroken" in ca_command("issue", "--name", "b.stoq.example", "-o", tmp_path / "b", code=1)[-1]["kind"]


def test_looking_while_another_process_has_it(ca_command: Command, tmp_path: Path) -> None:
    from control.trustchain.authority import Authority

    ca_command("issue", "--name", "a.stoq.example", "-o", tmp_path / "a")
    authority = Authority.open(ca_command.directory)
    try:
        assert len(ca_command("list")) == 1
        assert ca_command("audit", "--verify")[0]["event"] == "verified"
        assert "in use by another process" in ca_command("revoke", "a.stoq.example", code=1)[-1]["error"]
    finally:
        authority.close_now()


def test_keys_at_rest(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    command = Command(tmp_path / "ca", {})
    command("init", "--allow-unlogged", "--passphrase-file", secret)
    openssl("pkey", "-in", tmp_path / "ca" / "root.key", "-passin", f"file:{secret}", "-noout")
    assert "STOQ_CA_PASSPHRASE" in command("issue", "--name", "a.b", "-o", tmp_path / "a", code=1)[-1]["error"]
    command("issue", "--name", "a.b", "-o", tmp_path / "a", "--passphrase-file", secret)
    by_variable = Command(tmp_path / "ca", {"STOQ_CA_PASSPHRASE": "correct horse"})
    by_variable("issue", "--name", "c.b", "-o", tmp_path / "c")
    wrong = Command(tmp_path / "ca", {"STOQ_CA_PASSPHRASE": "wrong horse"})
    assert "does not open" in wrong("issue", "--name", "d.b", "-o", tmp_path / "d", code=1)[-1]["error"]
    command("rotate-intermediate", "--passphrase-file", secret)
    by_variable("issue", "--name", "e.b", "-o", tmp_path / "e")


def test_without_a_log_it_says_how_to_name_one(ca: Ca, tmp_path: Path) -> None:
    command = Command(ca.directory, {})
    assert "add --log URL" in command("issue", "--name", "a.stoq.example", "-o", tmp_path / "a", code=1)[-1]["error"]
    key = generate()
    write_key(tmp_path / "k.key", key)
    (tmp_path / "k.csr").write_bytes(make_csr(key, "", Names(("a.stoq.example",))))
    (tmp_path / "log.pem").write_bytes(openssl("pkey", "-in", tmp_path / "k.key", "-pubout").encode())
    logs = ["--log", f"http://[::1]:1={tmp_path / 'log.pem'}", "--log", f"http://[::1]:2={tmp_path / 'log.pem'}"]
    error = command("issue", "--csr", tmp_path / "k.csr", *logs, "-o", tmp_path / "a", code=1)[-1]["error"]
    assert "0 of the 2 SCTs" in error and "does not answer" in error
    assert not list(tmp_path.glob("a.*"))

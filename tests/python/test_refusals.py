"""Refusals, end to end over ::1 through the datapath in C: who is refused, what both sides are told, and that
nothing stays behind. (Forms of IPv4 addresses: test_address.py and test_cli.py.)"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control import cli
from control.devcerts import write
from control.handshake import HandshakeConfig
from dataplane import AddressError
from tests.python.conftest import Pki
from tests.python.test_commands import Running, identity, running
from tests.python.test_datapath import (
    Nodes,
    expired_client,
    expired_server,
    no_client_certificate,
    over_loopback,
    refused_connect,
    wrong_alpn,
    wrong_ca,
    wrong_client_ca,
)

AGAIN = 8  # Refusals, at once, after the first one, which allocates what is kept for good.
Case = Callable[[Pki], tuple[HandshakeConfig, HandshakeConfig, str, str, bool]]

# RFC 8446 section 6.
ALERTS: list[tuple[Case, int]] = [
    (wrong_ca, 48),
    (wrong_client_ca, 48),
    (expired_server, 45),
    (expired_client, 45),
    (no_client_certificate, 116),
    (wrong_alpn, 120),
]


async def pools_at_rest(nodes: Nodes) -> list[dict[str, int]]:
    """Both ends' memory once no connection is left: closing periods, three probe timeouts, have passed."""
    while True:
        pools = [nodes.client.pool_stats(), nodes.server.pool_stats()]
        if not any(pool["connections"] for pool in pools):
            return pools
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("case", "alert"), ALERTS, ids=[case.__name__ for case, _ in ALERTS])
def test_a_refusal_has_its_alert_and_a_reason_on_both_sides_and_leaks_nothing(
    pki: Pki, case: Case, alert: int
) -> None:
    client, server, name, text, by_server = case(pki)

    async def main(nodes: Nodes) -> None:
        told = [await refused_connect(nodes)]
        start = await pools_at_rest(nodes)
        told += await asyncio.gather(*(refused_connect(nodes) for _ in range(AGAIN)))
        while len(nodes.failures) < len(told):
            await asyncio.sleep(0.005)
        for errors, remote in ((told, by_server), (nodes.failures, not by_server)):
            for error in errors:
                assert (error.alert, error.alert_name, error.remote) == (alert, name, remote), error
                assert text in error.reason and f"TLS alert {name} ({alert})" in str(error), error
        assert await pools_at_rest(nodes) == start
        assert not nodes.client.connections and not nodes.server.connections
        assert nodes.server.counters()["handshakes_failed"] == len(nodes.failures) == len(told)
        assert nodes.server.counters()["handshakes_completed"] == 0

    over_loopback(client, server, main)


# ---- the same between two commands ----


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Certificates of another authority, for the same names."""
    write(tmp_path / "elsewhere", ["node-a", "node-b"])
    return tmp_path / "elsewhere"


@pytest.fixture
def expired(certs: Path, tmp_path: Path) -> Path:
    """Certificates that were valid once."""
    write(tmp_path / "expired", ["node-a", "node-b"], days=-2)
    return tmp_path / "expired"


def both_sides(tmp_path: Path, server: list[str], client: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `stoq serve` and a client command say of a handshake that is refused. `PORT` in the client's
    arguments becomes the server's."""
    with running("serve", "--listen", "[::1]:0", "--output", str(tmp_path), *server) as node:
        port = str(node.until("listening")["port"])
        error = Running(*(part.replace("PORT", port) for part in client)).finish(code=1)[-1]
        refused = node.until("refused")
        summary = node.stop()[-1]
    assert error["event"] == "error"
    assert summary["counters"]["handshakes_failed"] == 1
    assert summary["counters"]["handshakes_completed"] == 0
    return error, refused


def check(error: dict[str, Any], refused: dict[str, Any], alert: str, text: str) -> None:
    for said in (error, refused):
        assert said["alert"] == alert and text in said["error"], said
    assert ("the peer closed" in error["error"]) != ("the peer closed" in refused["error"])


@pytest.fixture
def send(tmp_path: Path) -> list[str]:
    """`stoq send` of a small file."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"data")
    return ["send", str(path), "--to", "[::1]:PORT"]


def test_commands_wrong_ca(certs: Path, elsewhere: Path, tmp_path: Path, send: list[str]) -> None:
    # The client's own certificate is not trusted there, but it finds the server's wrong first.
    told = both_sides(tmp_path, identity(certs, "node-a"), send + identity(elsewhere, "node-b"))
    check(*told, "unknown_ca", "not trusted here")
    # The client trusts the server's, the server not the client's.
    mixed = identity(elsewhere, "node-b")[:4] + identity(certs, "node-b")[4:]
    told = both_sides(tmp_path, identity(certs, "node-a"), send + mixed)
    check(*told, "unknown_ca", "not trusted here")


def test_commands_expired_certificate(expired: Path, tmp_path: Path, send: list[str]) -> None:
    told = both_sides(tmp_path, identity(expired, "node-a"), send + identity(expired, "node-b"))
    check(*told, "certificate_expired", "expired on")


def test_commands_no_client_certificate(certs: Path, tmp_path: Path, send: list[str]) -> None:
    told = both_sides(tmp_path, identity(certs, "node-a"), [*send, "--ca", str(certs / "ca.pem")])
    check(*told, "certificate_required", "needs a client certificate")


def test_commands_wrong_alpn(certs: Path, tmp_path: Path) -> None:
    get = ["hq", "get", "https://[::1]:PORT/x", "--output", str(tmp_path), "--profile", "test"]
    told = both_sides(tmp_path, identity(certs, "node-a"), get + identity(certs, "node-b"))
    check(*told, "no_application_protocol", "spoken here: stoq/1")


# ---- a name without AAAA record ----

NAME = "v4only.example"


@pytest.fixture
def only_a_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows NAME by IPv4 alone, as getaddrinfo(3) tells it."""

    def getaddrinfo(host: str, port: int, family: int = 0, *rest: int, **more: int) -> list[Any]:
        assert host == NAME
        if family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_ADDRFAMILY, "Address family for hostname not supported")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("only_a_records")
def test_the_api_refuses_a_name_without_aaaa(pki: Pki) -> None:
    async def main(nodes: Nodes) -> None:
        before = nodes.client.pool_stats()
        with pytest.raises(AddressError, match=rf"{NAME} has no IPv6 address .*STOQ is IPv6-only"):
            await nodes.client.connect(f"{NAME}:9292")
        assert not nodes.client.connections and nodes.client.pool_stats() == before
        assert nodes.client.counters()["datagrams_sent"] == 0

    over_loopback(pki.client, pki.server, main)


COMMANDS = {
    "serve": ["serve", "--listen", "NAME"],
    "receive": ["receive", "--listen", "NAME"],
    "send": ["send", "FILE", "--to", "NAME"],
    "hq serve": ["hq", "serve", "--profile", "test", "--listen", "NAME", "--root", "DIR"],
    "hq get": ["hq", "get", "--profile", "test", "https://NAME/file", "--output", "DIR"],
    "perf serve": ["perf", "serve", "--profile", "test", "--listen", "NAME"],
    "perf client": ["perf", "client", "--profile", "test", "--to", "NAME"],
}


@pytest.mark.usefixtures("only_a_records")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_a_name_without_aaaa(
    command: str,
    certs: Path,
    tmp_path: Path,
    send: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {"NAME": f"{NAME}:9292", "https://NAME/file": f"https://{NAME}:9292/file"}
    words |= {"FILE": send[1], "DIR": str(tmp_path)}
    arguments = [words.get(word, word) for word in COMMANDS[command]]
    monkeypatch.setattr(sys, "argv", ["stoq", *arguments, *identity(certs, "node-a")])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    said = capsys.readouterr()
    assert leaving.value.code == 2, said.err
    assert f"{NAME} has no IPv6 address (no AAAA record): STOQ is IPv6-only" in said.err
    assert not said.out

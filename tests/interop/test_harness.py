"""The harness itself: what it believes must be true, and what is false it must not believe.

The packets are those of RFC 9001 appendix A; the runs are strangers against each other, some of them made to
go wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import netns
from tests.interop import decrypt, wire
from tests.interop.cases import (
    CASES,
    MIB,
    Case,
    Evidence,
    NotProven,
    amplification,
    key_update,
    path_validated,
)
from tests.interop.endpoints import STRANGERS, Wants
from tests.interop.relay import Config, validates
from tests.interop.runner import FAIL, PASS, Result, run_case
from tests.interop.table import OURS_SECTION, SELF_SECTION, write
from tests.netns import Link, Network
from tests.peers.install import ROOT

# RFC 9001 appendix A.1, A.3 and A.5.
INITIAL_DCID = bytes.fromhex("8394c8f03e515708")
SERVER_INITIAL = bytes.fromhex(
    "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a"
    "5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9"
    "c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4"
    "2158407dd074ee"
)
CHACHA_SECRET = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
CHACHA_PACKET = bytes.fromhex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb")
CHACHA_NUMBER = 654360564
CHACHA_UPDATED = bytes.fromhex("1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9")

TEN_KIB = dataclasses.replace(CASES["handshake"], files=(1, 10240))


def test_initial_packet_of_the_rfc() -> None:
    secret = decrypt.initial_secret(INITIAL_DCID, wire.QUIC_V1, to_server=False)
    keys = decrypt.Keys(secret, decrypt.AES_128_GCM, wire.QUIC_V1)
    (packet,) = wire.packets(SERVER_INITIAL)
    assert packet.kind is wire.Kind.INITIAL
    assert packet.scid == bytes.fromhex("f067a5502a4262b5")
    clear = keys.unmask(SERVER_INITIAL, packet.start, packet.number_at)
    assert clear is not None
    header, number, length = clear
    assert (number, length) == (1, 2)
    payload = keys.open(0, number, header, SERVER_INITIAL[packet.number_at + length : packet.end])
    assert payload is not None
    found = dict(decrypt.frames(payload))
    assert decrypt.server_hello_cipher({0: found[decrypt.CRYPTO][8:]}) == decrypt.AES_128_GCM


def test_initial_packet_with_a_flipped_bit_does_not_open() -> None:
    secret = decrypt.initial_secret(INITIAL_DCID, wire.QUIC_V1, to_server=False)
    keys = decrypt.Keys(secret, decrypt.AES_128_GCM, wire.QUIC_V1)
    broken = SERVER_INITIAL[:-1] + bytes([SERVER_INITIAL[-1] ^ 1])
    (packet,) = wire.packets(broken)
    assert decrypt._open_long(keys, broken, packet) is None


def test_chacha_packet_and_key_update_of_the_rfc() -> None:
    keys = decrypt.Keys(CHACHA_SECRET, decrypt.CHACHA20, wire.QUIC_V1)
    clear = keys.unmask(CHACHA_PACKET, 0, 1)
    assert clear is not None
    header, truncated, length = clear
    assert decrypt.full_number(truncated, length, CHACHA_NUMBER - 1) == CHACHA_NUMBER
    assert keys.open(0, CHACHA_NUMBER, header, CHACHA_PACKET[1 + length :]) == b"\x01"
    assert keys.open(1, CHACHA_NUMBER, header, CHACHA_PACKET[1 + length :]) is None
    assert keys.secrets[1] == CHACHA_UPDATED


def test_packet_number_of_the_rfc() -> None:
    assert decrypt.full_number(0x9B32, 2, 0xA82F30EA) == 0xA82F9B32  # RFC 9000 appendix A.3


@pytest.mark.parametrize("length", range(len(SERVER_INITIAL)))
def test_truncated_long_headers_are_no_packets(length: int) -> None:
    assert not list(wire.packets(SERVER_INITIAL[:length]))


def test_version_negotiation_and_coalesced_packets() -> None:
    negotiation = bytes.fromhex("80" + "00000000" + "02aabb" + "01cc" + "00000001" + "6b3343cf")
    (packet,) = wire.packets(negotiation)
    assert (packet.kind, packet.dcid, packet.scid) == (wire.Kind.VERSION_NEGOTIATION, b"\xaa\xbb", b"\xcc")
    assert packet.versions == (wire.QUIC_V1, wire.QUIC_V2)
    handshake = bytes.fromhex("e0" + "00000001" + "00" + "00" + "05" + "0011223344")
    kinds = [packet.kind for packet in wire.packets(SERVER_INITIAL + handshake + b"\x40rest")]
    assert kinds == [wire.Kind.INITIAL, wire.Kind.HANDSHAKE, wire.Kind.SHORT]
    assert validates(handshake, [])
    assert not validates(SERVER_INITIAL, [])


def _relay(tmp_path: Path, count: int, **values: object) -> tuple[list[bytes], dict[str, object]]:
    """Send numbered datagrams through a relay on ::1; returns what came out and its statistics."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("::1", 0))
        client.bind(("::1", 0))
        server.settimeout(5)
        stats = tmp_path / "stats.json"
        config = Config(
            listen=("::1", 0), server=("::1", server.getsockname()[1]), upstream=["::1"], stats=str(stats)
        )
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**dataclasses.asdict(config), **values}))
        argv = [sys.executable, "-m", "tests.interop.relay", str(file)]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout is not None
                port = json.loads(child.stdout.readline())["port"]
                client.connect(("::1", port))
                for number in range(count):
                    client.send(number.to_bytes(4, "big"))
                client.send(b"last")  # what follows is never waited for
                arrived: list[bytes] = []
                while not arrived or arrived[-1] != b"last":
                    arrived.append(server.recv(2048))
            finally:
                child.send_signal(signal.SIGTERM)
            assert child.wait(5) == 0
        result: dict[str, object] = json.loads(stats.read_text())
    return arrived[:-1], result


def _seed_that_spares(index: int, loss: float) -> int:
    """A seed under which the relay's datagram number `index` gets through: the test's end mark."""
    for seed in range(1000):
        rng = random.Random(f"{seed} up")
        for _ in range(index):
            rng.random()
            rng.random()
        if rng.random() >= loss:
            return seed
    raise AssertionError("no such seed")


def test_relay_loses_the_same_datagrams_with_the_same_seed(tmp_path: Path) -> None:
    seed = _seed_that_spares(200, 0.3)
    first, stats = _relay(tmp_path, 200, loss_to_server=0.3, seed=seed)
    again, _ = _relay(tmp_path, 200, loss_to_server=0.3, seed=seed)
    assert first == again
    assert 30 <= 200 - len(first) <= 90
    assert isinstance(stats["to_server"], dict)
    assert stats["to_server"]["lost"] == 200 - len(first)


def test_relay_ends_a_burst_of_losses(tmp_path: Path) -> None:
    arrived, _ = _relay(tmp_path, 199, loss_to_server=1.0, loss_burst=3, seed=1)
    assert [int.from_bytes(data, "big") for data in arrived] == list(range(3, 199, 4))


def test_relay_drops_by_number_and_delays(tmp_path: Path) -> None:
    began = time.monotonic()
    arrived, _ = _relay(tmp_path, 10, drop_to_server=[1, 4, 10], delay_s=0.3)
    assert [int.from_bytes(data, "big") for data in arrived] == [1, 2, 4, 5, 6, 7, 8]
    assert time.monotonic() - began >= 0.3


@pytest.mark.interop
@pytest.mark.usefixtures("peers")
class TestRuns:
    """Strangers against each other."""

    def test_a_good_run_passes_and_leaves_nothing(self) -> None:
        result = run_case(TEN_KIB, STRANGERS["aioquic"], STRANGERS["quic-go"])
        assert result.verdict == PASS, result.reason
        assert not list(netns.RUN_NETNS.glob(f"stoq-{os.getpid()}-*"))

    def test_a_changed_byte_fails(self) -> None:
        def spoil(directory: Path) -> None:
            file = directory / "downloads" / "file0"
            file.write_bytes(b"x" + file.read_bytes()[1:])

        result = run_case(TEN_KIB, STRANGERS["qh3"], STRANGERS["aioquic"], after=spoil)
        assert result.verdict == FAIL
        assert "other bytes" in result.reason

    def test_a_missing_file_fails(self) -> None:
        result = run_case(
            TEN_KIB,
            STRANGERS["aioquic"],
            STRANGERS["aioquic"],
            after=lambda directory: (directory / "downloads" / "file0").unlink(),
        )
        assert result.verdict == FAIL
        assert "missing" in result.reason

    @pytest.mark.parametrize(
        ("case", "lacking"),
        [
            (dataclasses.replace(CASES["retry"], wants=Wants()), "no Retry"),
            (dataclasses.replace(CASES["chacha20"], wants=Wants(cipher="aes128")), "chose"),
            (dataclasses.replace(CASES["versionnegotiation"], wants=Wants()), "no Version Negotiation"),
            (dataclasses.replace(CASES["keyupdate"], wants=Wants()), "updated keys"),
            (dataclasses.replace(CASES["amplificationlimit"], long_chain=False), "suffices"),
            (dataclasses.replace(CASES["transferloss"], relay={}, files=(1, MIB)), "nothing was lost"),
            (dataclasses.replace(CASES["longrtt"], relay={}), "after its Initial"),
            (dataclasses.replace(CASES["blackhole"], relay={}, files=(1, MIB)), "before the blackhole"),
            (dataclasses.replace(CASES["portrebinding"], relay={"capture_all": True}), "never rebound"),
        ],
        ids=lambda value: value.name if isinstance(value, Case) else "",
    )
    def test_what_did_not_happen_is_not_proven(self, case: Case, lacking: str) -> None:
        result = run_case(case, STRANGERS["aioquic"], STRANGERS["aioquic"])
        assert result.verdict == FAIL
        assert lacking in result.reason


def _evidence(tmp_path: Path, **flow: object) -> Evidence:
    return Evidence({"flows": [flow], "rebindings": 1}, tmp_path / "none", [], 10_000)


def test_a_server_past_the_amplification_limit_fails(tmp_path: Path) -> None:
    figures = {
        "validated": True,
        "unvalidated_to_server": 1200,
        "amplification_excess": 1,
        "amplification_peak": 3.01,
        "received_at_first_answer": 1200,
    }
    with pytest.raises(NotProven, match="more than three times"):
        amplification(_evidence(tmp_path, **figures))
    assert amplification(_evidence(tmp_path, **{**figures, "amplification_excess": 0}))


def _with_report(tmp_path: Path, report: decrypt.Report, **flow: object) -> Evidence:
    evidence = _evidence(tmp_path, **flow)
    evidence.__dict__["report"] = report  # where cached_property keeps it
    return evidence


def test_a_path_that_was_not_answered_fails(tmp_path: Path) -> None:
    report = decrypt.Report()
    report.to_client.challenges = [(1, b"12345678")]
    flow = {"upstream": [["::1", 1], ["::1", 2]], "path_bytes_to_client": [10, 20]}
    with pytest.raises(NotProven, match="no PATH_RESPONSE"):
        path_validated(_with_report(tmp_path, report, **flow))
    report.to_server.responses = [(1, b"12345678")]
    assert path_validated(_with_report(tmp_path, report, **flow))


def test_a_key_update_one_end_did_not_follow_fails(tmp_path: Path) -> None:
    report = decrypt.Report()
    report.to_server.by_generation.update({0: 10, 1: 5})
    report.to_client.by_generation.update({0: 10})
    with pytest.raises(NotProven, match="no packet of the server"):
        key_update(_with_report(tmp_path, report))


def test_table_keeps_the_other_section(tmp_path: Path) -> None:
    file = tmp_path / "INTEROP.md"
    write(file, [Result("retry", "aioquic", "quic-go", PASS)], SELF_SECTION)
    ours = [Result("retry", "stoq", "qh3", FAIL, reason="no Retry"), Result("retry", "qh3", "stoq", PASS)]
    write(file, ours, OURS_SECTION)
    text = file.read_text()
    assert "| case | aioquic → quic-go |\n|---|---|\n| retry | pass |" in text
    assert "| case | stoq → qh3 | qh3 → stoq |\n|---|---|---|\n| retry | **fail** [1] | pass |\n" in text
    assert "\n1. no Retry\n" in text


def test_network_of_two(tmp_path: Path) -> None:
    with Network(("a", "b"), (Link("a", "b", mtu=1400, extra=1),)) as network:
        names = [namespace.path for namespace in network.namespaces.values()]
        assert all(path.exists() for path in names)

        def server_socket() -> socket.socket:
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            made.bind((network.address("b", 0, 1), 9))
            made.settimeout(5)
            return made

        def send() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
                made.sendto(b"hello", (network.address("b", 0, 1), 9))

        with network["b"].call(server_socket) as waiting:
            network["a"].call(send)
            data, source = waiting.recvfrom(100)
        assert (data, source[0]) == (b"hello", network.address("a"))
        links = network["a"].run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
        assert "mtu 1400" in links.stdout
        assert set(network["a"].offloads("eth0")) == {"gso", "gro", "tso"}
    assert not any(path.exists() for path in names)


def test_namespaces_of_a_killed_process_are_removed() -> None:
    program = (
        "import sys\nfrom tests.netns import Network\nNetwork(('x',), ()).up()\n"
        "print('up', flush=True)\nsys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.kill()
        child.wait()
    name = f"stoq-{child.pid}-0-x"
    assert (netns.RUN_NETNS / name).exists()
    assert name in netns.remove_stale()
    assert not (netns.RUN_NETNS / name).exists()

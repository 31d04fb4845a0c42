"""`stoq bench`: short runs with real programs. Checked is what the reports say, not how fast this machine
is."""

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
from aioquic.quic.configuration import QuicConfiguration

from control.bench import handshaker, packets, peers, processes, report, throughput, wire, yardsticks
from control.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from control.netns import Pair, can_make_namespaces
from control.nodes import Place
from control.perf import merged
from dataplane.stats import PerfResult

TIMEOUT = 120.0  # Seconds; a run takes ten on an idle machine.
SHORT = ("--json", "--trials", "1", "--seconds", "0.5")
SIMULATED = {"kernel", "cpu", "cores", "governor", "loadavg", "mtu", "revision", "libraries"}
ENVIRONMENT = SIMULATED | {"provider"}

built = pytest.mark.skipif(
    not all((processes.ROOT / "build" / "bench" / name).is_file() for name in ("ceiling", "pingpong")),
    reason="the yardsticks are not built: make build/bench/ceiling build/bench/pingpong",
)


def argv(*arguments: str) -> list[str]:
    """The command line of `stoq bench`."""
    return [sys.executable, "-m", "control.cli", "bench", *arguments]


def bench(*arguments: str) -> dict[str, Any]:
    """Run it; its report."""
    done = subprocess.run(
        argv(*arguments, *SHORT), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "trial 1/1: " in done.stderr
    (line,) = done.stdout.splitlines()  # Nothing but the report: progress is on standard error.
    result = json.loads(line)
    assert isinstance(result, dict)
    assert result["environment"].keys() >= (SIMULATED if arguments[0] == "window" else ENVIRONMENT)
    assert len(result["trials"]) == 1
    return result


@built
def test_throughput_beside_its_yardsticks() -> None:
    result = bench("throughput", "--no-compare", "--many", "3")
    assert result.keys() >= {"goodput_gbps", "ceiling_gbps", "ratio", "trials", "environment"}
    trial = result["trials"][0]
    assert result["goodput_gbps"] == trial["ours"]["goodput_gbps"] > 0
    assert result["ceiling_gbps"] == trial["ceiling"]["goodput_gbps"] > 0
    assert result["ratio"] == pytest.approx(
        trial["ours"]["goodput_gbps"] / trial["ceiling"]["goodput_gbps"], 1e-2
    )
    assert result["raw_udp_gbps"] > 0
    assert result["compare"] == {}
    for name in throughput.MANY:
        many = result["many"][name]
        assert many["goodput_gbps"] == trial[name]["goodput_gbps"] > 0
        assert many["ratio"] == pytest.approx(many["goodput_gbps"] / result["goodput_gbps"], 1e-2)
    assert trial["ours"]["seconds"] == pytest.approx(0.5, abs=0.4)
    # The yardstick does the same work: datagrams of the same size, each opened.
    assert trial["ceiling"]["receiver"]["datagram_bytes"] == trial["ours"]["datagram_bytes"] == 1452
    assert trial["ceiling"]["receiver"]["crypto"] == trial["ours"]["crypto"]
    assert trial["ceiling"]["receiver"]["bad"] == 0
    assert trial["raw_udp"]["receiver"]["crypto"] == "none"
    # Delivered in full datagrams: what the packets can carry bounds what arrived.
    delivered = trial["ours"]["goodput_gbps"] * 1e9 / 8 * trial["ours"]["seconds"]
    assert 0 < delivered <= trial["ours"]["packets_sent"] * 1452


@pytest.mark.skipif(
    not (processes.ROOT / "build" / "bench" / "congestion").is_file(),
    reason="not built: make build/bench/congestion",
)
def test_windows_follow_a_long_path() -> None:
    result = bench("window", "--rate-mbps", "1000", "--rtt-ms", "100", "--warm-up", "2")
    assert result["bandwidth_delay_bytes"] == 12_500_000  # Twelve times the window to begin with.
    assert 0.9 <= result["of_rate"] < 1
    assert result["ratio"] == pytest.approx(1, abs=0.02)


@built
def test_upload_with_several_streams_and_connections_and_another_mtu() -> None:
    more = ("--direction", "upload", "--streams", "3", "--connections", "2", "--mtu", "4000")
    result = bench("throughput", "--no-compare", *more)
    trial = result["trials"][0]
    assert trial["ours"]["goodput_gbps"] > 0
    assert trial["ceiling"]["receiver"]["datagram_bytes"] == 3952
    assert 1200 <= trial["ours"]["datagram_bytes"] <= 3952  # The search may not be over on a busy machine.
    assert result["settings"]["connections"] == 2
    assert result["environment"]["mtu"] == 4000


@pytest.mark.slow
@built
def test_throughput_beside_other_libraries() -> None:
    for name in throughput.PEERS:
        pytest.importorskip(name)
    result = bench("throughput")
    (trial,) = result["trials"]
    assert set(result["compare"]) == set(throughput.PEERS)
    for name, compared in result["compare"].items():
        assert compared["goodput_gbps"] == trial[name]["goodput_gbps"] > 0
        ours = trial["ours_by_requests"]["goodput_gbps"]
        assert compared["ours_over_theirs"] == pytest.approx(ours / compared["goodput_gbps"], 2e-2)


@pytest.mark.slow
def test_beside_other_implementations() -> None:
    names = ("aioquic", "qh3")
    for name in names:
        pytest.importorskip(name)
    result = bench("peers", *(part for name in names for part in ("--peer", name)))
    (trial,) = result["trials"]
    assert [row["name"] for row in result["peers"]] == [peers.OURS, *names]
    assert result["left_out"] == {}
    for row in result["peers"]:
        figures = trial[row["name"]]
        assert row["version"] and row["settings"]
        for key in peers.KEYS:
            assert row[key] == figures[key] > 0
        assert figures["handshakes_failed"] == 0
        assert figures["p50_us"] <= figures["p99_us"]
        # What one core a side can have spent, and a tick or two.
        cpu = figures["client_cpu_seconds"], figures["server_cpu_seconds"]
        assert all(0 < seconds < figures["seconds"] + 0.3 for seconds in cpu)
        goodput = figures["bytes"] * 8 / figures["seconds"] / 1e9
        assert figures["goodput_gbps"] == pytest.approx(goodput, 1e-2)
    best = max(names, key=lambda name: trial[name]["goodput_gbps"])
    assert result["best_other"] == trial["best_other"] == best
    ratio = trial[peers.OURS]["goodput_gbps"] / trial[best]["goodput_gbps"]
    assert result["ratio"] == trial["ratio"] == pytest.approx(ratio, 2e-2)


def test_peers_that_are_missing_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "BUILT", tmp_path)
    (tmp_path / "quinn.reason").write_text("cargo is missing: install Rust")
    (tmp_path / "perf-s2n-quic").write_text("#!/bin/sh\necho no such option >&2\n")
    (tmp_path / "perf-s2n-quic").chmod(0o755)
    reasons = {"quic-go": "bench-peers", "quinn": "cargo is missing", "s2n-quic": "no such option"}
    for name, why in reasons.items():
        with pytest.raises(peers.MissingError, match=why):
            asyncio.run(peers.find(name))


def test_handshakes() -> None:
    result = bench("handshake", "--concurrency", "4")
    trial = result["trials"][0]
    for name in ("in_memory", "resumed", "aioquic", "sequential", "concurrent", "half_load"):
        figures = trial[name]
        assert figures["failed"] == 0
        assert figures["handshakes"] > 0
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert figures["handshakes_per_second"] * figures["seconds"] == pytest.approx(
            figures["handshakes"], 1e-2
        )
    assert result["handshakes_per_second"] == trial["in_memory"]["handshakes_per_second"]
    assert result["ratio"] == pytest.approx(
        trial["in_memory"]["handshakes_per_second"] / trial["aioquic"]["handshakes_per_second"], 1e-2
    )
    for key, ours in (("server_ratio", "in_memory"), ("resumed_ratio", "resumed")):
        rates = trial[ours]["server_per_second"], trial["aioquic"]["server_per_second"]
        assert result[key] == pytest.approx(rates[0] / rates[1], 1e-2)
        # A part of the handshake takes no longer than all of it.
        assert rates[0] >= trial[ours]["handshakes_per_second"]
    assert trial["half_load"]["rate"] == pytest.approx(trial["concurrent"]["handshakes_per_second"] / 2, 1e-2)
    assert trial["sequential"]["accepted"] == trial["sequential"]["handshakes"]
    assert trial["concurrent"]["concurrency"] == 4


def test_aioquic_is_measured_with_client_certificates(certs: Path) -> None:
    """A client that shows none is no comparison: its handshakes give an error, not a figure."""
    client = QuicConfiguration(is_client=True, alpn_protocols=["stoq/1"], server_name="node-b")
    client.load_verify_locations(cadata=(certs / "ca.pem").read_bytes())
    server = QuicConfiguration(is_client=False, alpn_protocols=["stoq/1"])
    server.load_cert_chain(certs / "node-b.pem", certs / "node-b.key")
    with pytest.raises(RuntimeError, match="certificate"):
        handshaker.aioquic_handshake(client, server)
    client.load_cert_chain(certs / "node-a.pem", certs / "node-a.key")
    handshaker.aioquic_handshake(client, server)


@built
def test_latency() -> None:
    result = bench("latency")
    assert 0 < result["p50_us"] <= result["p99_us"]
    assert 0 < result["raw_udp_p50_us"] <= result["raw_udp_p99_us"]
    assert result["ratio"] == pytest.approx(result["p50_us"] / result["raw_udp_p50_us"], 1e-2)
    assert result["trials"][0]["ours"]["requests"] > 0
    assert result["trials"][0]["raw_udp"]["bytes"] == 512
    assert 0 < result["idle_cpu"] < 0.5  # It sleeps; how little that costs is for `stoq bench` to say.


# ---- AF_XDP ----

packets_built = pytest.mark.skipif(
    can_make_namespaces() is not None
    or not all((processes.ROOT / "build" / "bench" / name).is_file() for name in packets.PROGRAMS.values()),
    reason="AF_XDP needs root and build/bench/xskloop and build/bench/packets",
)


@packets_built
def test_packets_beside_the_raw_loop() -> None:
    result = bench("packets")
    (trial,) = result["trials"]
    assert [(size["mtu"], size["payload_bytes"]) for size in result["sizes"]] == list(packets.SIZES)
    for size in result["sizes"]:
        found = trial["sizes"][str(size["payload_bytes"])]
        for which in (packets.RAW, packets.BACKEND):
            assert len(found[which]["runs"]) == 2
            for run in found[which]["runs"]:
                # What was counted is what was sent: size and content were right.
                assert run["sink"]["bad"] == 0
                assert run["sink"]["bytes"] == run["generator"]["bytes"] == size["payload_bytes"]
                assert 0 < run["sink"]["packets"] <= run["generator"]["packets"] + 4096
            assert size[f"{which}_pps"] == found[which]["pps"] > 0
        ours, raw = (found[which]["pps"] for which in (packets.BACKEND, packets.RAW))
        assert size["ratio"] == pytest.approx(ours / raw, 1e-2)
        assert size["backend_gbps"] == pytest.approx(ours * size["payload_bytes"] * 8 / 1e9, 1e-2)
    assert result["ratio"] == result["sizes"][0]["ratio"]
    rtt = result["rtt"]
    assert 0 < rtt["p50_us"] <= rtt["p99_us"]
    assert rtt["ratio"] == pytest.approx(rtt["p50_us"] / rtt["raw_p50_us"], 1e-2)


@packets_built
@pytest.mark.parametrize("raw_sends", [True, False])
def test_both_loops_speak_what_the_other_takes(raw_sends: bool) -> None:
    """And the kernel's UDP takes the raw loop's frames, so that headers and checksum are right."""
    with Pair(1500) as pair:
        sender, receiver = (Place(end, end.address, -1) for end in (pair.a, pair.b))
        loops = packets.Loops(sender, receiver)
        kernel = packets.Loops(sender, receiver, "socket")

        async def one(sends: list[str], sink: list[str]) -> dict[str, Any]:
            async with processes.running("sink", receiver, sink) as listening:
                await listening.ready()
                async with processes.running("generator", sender, sends) as sending:
                    await sending.result()
                    return await listening.result()

        def argv_of(loop: packets.Loops, which: str, role: str) -> list[str]:
            ends = (receiver, sender) if role == "sink" else (sender, receiver)
            return loop.argv(which, role, *ends, "--bytes", "1300", "--seconds", "0.5")

        first, second = (packets.RAW, packets.BACKEND) if raw_sends else (packets.BACKEND, packets.RAW)
        sends = argv_of(loops, first, "generate")
        crossed = asyncio.run(one(sends, argv_of(loops, second, "sink")))
        assert crossed["bad"] == 0
        assert crossed["packets"] > 0
        taken = asyncio.run(one(sends, argv_of(kernel, packets.BACKEND, "sink")))
        assert taken["io"] == "socket"
        assert taken["bad"] == 0
        assert taken["packets"] > 0


@packets_built
@built
def test_throughput_over_afxdp_beside_the_backend_alone() -> None:
    result = bench("throughput", "--backend", "afxdp")
    (trial,) = result["trials"]
    assert trial["ours"]["backend"][0].startswith("afxdp: ")
    assert result["goodput_gbps"] == trial["ours"]["goodput_gbps"] > 0
    assert result["packets_gbps"] == pytest.approx(result["packets_pps"] * 1452 * 8 / 1e9, 1e-2)
    assert result["ratio"] == pytest.approx(result["goodput_gbps"] / result["packets_gbps"], 1e-2)
    assert all(run["sink"]["bytes"] == trial["ours"]["datagram_bytes"] for run in trial["packets"]["runs"])


@packets_built
@built
def test_latency_over_afxdp_beside_the_raw_loop() -> None:
    result = bench("latency", "--backend", "afxdp")
    (trial,) = result["trials"]
    assert trial["ours"]["requests"] > 0
    assert trial["raw"]["bytes"] == trial["backend"]["bytes"] == 512
    assert 0 < result["raw_p50_us"] <= result["raw_p99_us"]
    assert result["ratio"] == pytest.approx(result["p50_us"] / result["raw_p50_us"], 1e-2)


def test_packets_need_namespaces() -> None:
    here = Place(None, "::1", -1)
    with pytest.raises(processes.BenchError, match="root"):
        asyncio.run(packets.Loops(here, here).rate(packets.RAW, 1400, 0.5))


def test_missing_yardstick_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(yardsticks, "ROOT", tmp_path)
    with pytest.raises(processes.BenchError, match="make build/bench/ceiling"):
        yardsticks.program("ceiling")


@pytest.mark.parametrize(
    "arguments", [("--cores", "0"), ("--cores", "a,b"), ("--trials", "0"), ("--mtu", "1000")]
)
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(argv("latency", *arguments), capture_output=True, timeout=TIMEOUT, check=False)
    assert done.returncode == EXIT_USAGE


def test_a_program_that_fails_is_named() -> None:
    """A core that does not exist: taskset's complaint reaches the user, and nothing stays behind."""
    done = subprocess.run(
        argv("handshake", "--cores", "4000,4001"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == EXIT_FAILED
    assert "simulate ended" in done.stderr
    assert "taskset" in done.stderr


def leftovers(pid: int, directory: Path) -> list[str]:
    """What a run of ours left: namespaces, and processes that inherited its TMPDIR."""
    found = [path.name for path in Path("/run/netns").glob(f"stoq-{pid}-*")]
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(directory).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@built
def test_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        argv("throughput", "--no-compare", "--seconds", "60"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        while not any(
            tmp_path.glob("stoq-bench-*/certs")
        ):  # The namespaces are there, programs are starting.
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert leftovers(process.pid, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# ---- figures ----


def test_figures() -> None:
    trials = [{"ours": {"x": 1.0}, "it": {"x": 2.0}}, {"ours": {"x": 9.0}, "it": {"x": 3.0}}]
    trials.append({"ours": {"x": 4.0}, "it": {"x": 4.0}})
    assert (
        report.pairwise(trials, "ours", "it", "x") == 1.0
    )  # Of 0.5, 3 and 1: not the ratio of medians, 4/3.
    assert report.ratio(1.0, 0.0) == 0.0
    values = [float(value) for value in range(100, 0, -1)]
    assert (report.quantile(values, 0.5), report.quantile(values, 0.99)) == (51.0, 100.0)
    assert report.quantile([7.0], 0.99) == 7.0
    assert report.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 … 3.0)"
    assert report.rounded({"a": [1.23456789, 2]}) == {"a": [1.2346, 2]}


def test_connections_at_the_same_time_are_added_up() -> None:
    one = PerfResult(10, 100, 3, 2.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    two = PerfResult(20, 50, 4, 1.0, 0.05, 0.3, 0.2, 0.6, 0.1)
    assert merged([one, two]) == PerfResult(30, 150, 7, 2.0, 0.05, 0.3, 0.3, 0.6, 0.5)


@built
@pytest.mark.slow
def test_wire_with_every_option() -> None:
    result = bench("wire")
    variants = result["variants"]
    assert variants.keys() == {v.name for v in wire.VARIANTS} | {f"trains of {n}" for n in wire.TRAINS}
    assert variants[wire.PLAIN]["ratio"] == 1
    for name, found in variants.items():
        assert found["gbps"] > 0, name
        assert found["rx_cpu_ns"] > 0 and found["tx_cpu_ns"] > 0, name
        assert len(result["trials"][0][name]["runs"]) == 2, name
    assert variants["trains of 32"]["tx_cpu_ns"] < variants["trains of 1"]["tx_cpu_ns"]

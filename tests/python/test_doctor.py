"""`stoq doctor`: each probe on a made-up machine, and the command on a real veth pair, which it leaves as it
was."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control.doctor import host, interface, nodes
from control.doctor.finding import Finding, Verdict
from control.doctor.link import NO, UNKNOWN, YES, Link, Xdp
from control.doctor.system import System, cpu_list
from control.local.protocol import QueueStatus
from control.local.snapshot import Facts, status
from dataplane import _stoq
from dataplane.stats import QueueStats
from tests.netns import Link as Veth
from tests.netns import Network
from tests.python import localnode
from tests.python.test_commands import Running, identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
ALL_CAPABILITIES = "000001ffffffffff"


class Machine:
    """A made-up /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/status", f"Name:\tx\nCapEff:\t{ALL_CAPABILITIES}\n")
        self.write("proc/sys/net/ipv6/conf/all/disable_ipv6", "0")
        self.write("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu aes pclmulqdq avx2 vaes avx512f\n")
        self.write("proc/meminfo", "HugePages_Total:  600\nHugePages_Free:  600\nHugepagesize:  2048 kB\n")
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        self.write("sys/devices/system/cpu/online", "0-3")
        self.write("sys/devices/system/cpu/isolated", "2-3")
        self.write("sys/devices/system/cpu/nohz_full", "2-3")
        self.write("sys/devices/system/node/online", "0-1")
        self.write("proc/sys/net/core/bpf_jit_enable", "1")
        self.write("proc/sys/kernel/unprivileged_bpf_disabled", "2")
        self.write("sys/kernel/btf/vmlinux", "x")
        self.write("proc/sys/net/core/rmem_max", str(16 << 20))
        self.write("proc/sys/net/core/wmem_max", str(16 << 20))

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def system(self, **more: Any) -> System:
        values: dict[str, Any] = {"release": "6.9.1", "cpus": frozenset(range(4)), "memory_lock_bytes": -1}
        return System(self.root, **(values | more))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def verdict(probe: host.HostProbe, system: System) -> tuple[str, str]:
    """Its verdict, and what it would have one do."""
    finding = probe.look(system)
    assert finding.name == probe.name and finding.text
    return finding.verdict.value, finding.advice


# ---- the host ----

# io_uring and AF_XDP are tried on the real kernel, providers are those of this build.
MADE_UP = [p for p in host.PROBES if not isinstance(p, host.IoUring | host.XdpSockets | host.Crypto)]


def test_a_machine_as_it_should_be_has_nothing_to_improve(machine: Machine) -> None:
    for probe in MADE_UP:
        assert verdict(probe, machine.system()) == ("good", ""), probe.name


def test_a_machine_that_says_nothing_is_no_reason_to_fail(tmp_path: Path) -> None:
    empty = System(tmp_path, release="odd", cpus=frozenset({0}), memory_lock_bytes=0)
    assert len(host.look(empty)) == len(host.PROBES)


@pytest.mark.parametrize(
    ("release", "expected", "text"),
    [
        ("6.9.0", "good", "6.9.0"),
        ("6.18.44-fc", "good", ""),
        ("6.1.0-17-cloud-amd64", "ok", "metadata (6.8)"),
        ("5.10.0", "ok", "deferred task work (6.1)"),
        ("4.19.0", "missing", "4.19.0"),
        ("strange", "ok", "not a version"),
    ],
)
def test_kernel_versions(machine: Machine, release: str, expected: str, text: str) -> None:
    finding = host.Kernel().look(machine.system(release=release))
    assert finding.verdict.value == expected and text in finding.text
    if release.startswith("6.1."):
        assert "deferred task work" not in finding.text


def test_without_ipv6_stoq_cannot_run(machine: Machine) -> None:
    machine.write("proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
    assert verdict(host.Ipv6(), machine.system()) == (
        "missing",
        "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
    )
    machine.remove("proc/sys/net/ipv6/conf/all/disable_ipv6")
    assert verdict(host.Ipv6(), machine.system())[0] == "missing"


def test_what_could_be_better_is_said_with_the_command(machine: Machine) -> None:
    machine.write("proc/sys/net/core/bpf_jit_enable", "0")
    assert "bpf_jit_enable=1" in verdict(host.Bpf(), machine.system())[1]
    machine.write("proc/sys/net/core/bpf_jit_enable", "1")
    machine.write("proc/sys/kernel/unprivileged_bpf_disabled", "0")
    assert "unprivileged_bpf_disabled=2" in verdict(host.Bpf(), machine.system())[1]
    machine.write("proc/meminfo", "HugePages_Total:  100\nHugePages_Free:  40\nHugepagesize:  2048 kB\n")
    # What others use of the 100 stays theirs.
    assert "vm.nr_hugepages=488" in verdict(host.HugePages(), machine.system())[1]
    machine.write("sys/devices/system/cpu/isolated", "")
    assert "isolcpus" in verdict(host.Cores(), machine.system())[1]
    assert "two cores" in verdict(host.Cores(), machine.system(cpus=frozenset({1})))[1]


def test_an_ordinary_user_is_told_what_he_lacks(machine: Machine) -> None:
    machine.write("proc/self/status", "CapEff:\t0000000000002000\n")  # CAP_NET_RAW alone.
    finding = host.Privileges().look(machine.system())
    assert finding.verdict is Verdict.OK and finding.values["lacks"] == ["CAP_NET_ADMIN", "CAP_BPF"]
    assert "ulimit" in verdict(host.MemoryLock(), machine.system(memory_lock_bytes=8 << 20))[1]
    machine.write("proc/sys/net/core/wmem_max", "212992")
    advice = verdict(host.SocketBuffers(), machine.system())[1]
    assert "net.core.wmem_max=8388608" in advice and "rmem_max" not in advice


def test_crypto_looks_at_instructions_and_providers(machine: Machine) -> None:
    finding = host.Crypto().look(machine.system())
    assert finding.values["instructions"] == ["aes", "pclmulqdq", "avx2", "vaes", "avx512f"]
    assert "openssl" in finding.values["providers"]
    machine.write("proc/cpuinfo", "flags\t\t: fpu sse2\n")
    assert "chacha20" in verdict(host.Crypto(), machine.system())[1]
    machine.write("proc/cpuinfo", "Features\t: fp asimd aes pmull sha2\n")  # arm64
    assert host.Crypto().look(machine.system()).values["instructions"] == ["aes", "pmull", "sha2"]


class Lib:
    """io_uring as an old kernel or a strict one has it."""

    def __init__(self, **answers: int) -> None:
        self.answers = answers

    def stoq_probe_io_uring(self, out: Any) -> None:
        for name, value in self.answers.items():
            setattr(out, name, value)


def test_io_uring_as_it_may_be(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**answers: int) -> Finding:
        monkeypatch.setattr(_stoq, "lib", Lib(**answers))
        return host.IoUring().look(machine.system())

    assert "seccomp" in look(setup_error=-1).advice
    machine.write("proc/sys/kernel/io_uring_disabled", "2")
    assert "io_uring_disabled=0" in look(setup_error=-1).advice
    assert "CONFIG_IO_URING" in look(setup_error=-38).advice
    old = look(single_issuer=0)
    assert old.verdict is Verdict.OK and "plain sockets" in old.text
    works = dict.fromkeys(("buffer_rings", "recvmsg_multishot", "single_issuer", "restrictions"), 1)
    assert "no deferred task work" in look(**works).text
    best = look(**works, defer_taskrun=1)
    assert best.verdict is Verdict.GOOD and "no zero-copy sendmsg" in best.text


def test_lists_of_cpus() -> None:
    assert cpu_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert cpu_list("") == cpu_list(None) == cpu_list("(null)") == set()


# ---- interfaces ----

BEST = Link(
    name="eth0",
    index=2,
    up=True,
    running=True,
    mtu=3498,
    address="02:00:00:00:00:01",
    speed_mbit=40000,
    rx_queues=4,
    tx_queues=4,
    numa_node=1,
    numa_cores=frozenset({2, 3}),
    features={"tx-generic-segmentation": True, "rx-gro": True, "tx-checksum-ipv6": True},
    switchable=frozenset({"tx-generic-segmentation", "rx-gro", "tx-checksum-ipv6"}),
    defer_hard_irqs=2,
    gro_flush_timeout_ns=200_000,
    xdp=Xdp(driver="mlx5_core", bpf=YES, native=YES, generic=YES, redirect=YES, ndo_xmit=YES, zero_copy=YES,
            multi_buffer=YES, tx_metadata=YES, tx_checksum=YES, zero_copy_segments=4),
)  # fmt: skip


def about(name: str, system: System, link: Link) -> Finding:
    return next(finding for finding in interface.look(system, link) if finding.name == name)


def test_an_interface_as_it_should_be_has_nothing_to_improve(machine: Machine) -> None:
    for finding in interface.look(machine.system(), BEST):
        assert (finding.verdict, finding.advice) == (Verdict.GOOD, ""), finding


def test_an_interface_nothing_is_known_of_is_no_reason_to_fail(machine: Machine) -> None:
    bare = Link(name="x0", index=9, up=True, running=True, mtu=1500, address="")
    found = interface.look(machine.system(), bare)
    assert len(found) == len(interface.PROBES)
    assert {finding.verdict for finding in found} <= {Verdict.GOOD, Verdict.OK}


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"mtu": 1279}, "mtu 1500"),
        ({"up": False}, "ip link set eth0 up"),
        ({"ipv6_disabled": True}, "net.ipv6.conf.eth0.disable_ipv6=0"),
    ],
)
def test_an_interface_stoq_cannot_run_on(machine: Machine, change: dict[str, Any], advice: str) -> None:
    finding = about("link", machine.system(), replace(BEST, **change))
    assert finding.verdict is Verdict.MISSING and advice in finding.advice


@pytest.mark.parametrize(
    ("name", "change", "advice"),
    [
        ("link", {"mtu": 1500}, "larger MTU"),
        ("link", {"running": False}, "cable"),
        ("queues", {"rx_queues": 64}, "ethtool -L eth0 combined 4"),
        ("queues", {"rx_queues": 1}, "more queues"),
        ("NUMA node", {"numa_cores": frozenset({8, 9})}, "cores 8, 9"),
        ("offloads", {"features": {"rx-gro": False, "tx-checksum-ipv6": True}}, "ethtool -K eth0 rx-gro on"),
        ("offloads", {"features": {"rx-gro": True, "tx-checksum-ipv6": False}}, "tx-checksum-ipv6 on"),
        ("busy polling", {"defer_hard_irqs": 0}, "napi_defer_hard_irqs"),
        ("XDP", {"xdp": replace(BEST.xdp, native=NO)}, "native XDP"),
        ("XDP", {"xdp": replace(BEST.xdp, redirect=NO)}, "io_uring"),
        ("XDP", {"xdp": replace(BEST.xdp, native=UNKNOWN)}, "root"),
        ("zero copy", {"xdp": replace(BEST.xdp, zero_copy=NO)}, "line rate"),
        ("multi-buffer", {"mtu": 9000, "xdp": replace(BEST.xdp, multi_buffer=NO)}, "mtu 3498"),
        ("checksum metadata", {"xdp": replace(BEST.xdp, tx_metadata=NO)}, "6.8"),
    ],
)
def test_what_would_make_an_interface_faster(
    machine: Machine, name: str, change: dict[str, Any], advice: str
) -> None:
    finding = about(name, machine.system(), replace(BEST, **change))
    assert finding.verdict is Verdict.OK and advice in finding.advice, finding


def test_checksums_of_another_kind_will_do(machine: Machine) -> None:
    features = {"tx-generic-segmentation": True, "rx-gro": True, "tx-checksum-ip-generic": True}
    assert about("offloads", machine.system(), replace(BEST, features=features)).verdict is Verdict.GOOD


def test_a_program_of_somebody_else_is_named(machine: Machine) -> None:
    process = machine.root / "proc/42"
    (process / "fd").mkdir(parents=True)
    (process / "fdinfo").mkdir()
    (process / "comm").write_text("cilium\n")
    (process / "fd/7").symlink_to("anon_inode:bpf-prog")
    (process / "fdinfo/7").write_text("pos:\t0\nprog_id:\t811\n")
    theirs = replace(BEST, xdp=replace(BEST.xdp, program_id=811, program="bpf_xdp"))
    finding = about("XDP program", machine.system(), theirs)
    assert finding.verdict is Verdict.OK and "stop that process" in finding.advice
    assert "cilium (process 42)" in finding.text and finding.values["ours"] is False
    # Not 81: numbers are compared whole.
    lost = replace(BEST, xdp=replace(BEST.xdp, program_id=81, program="bpf_xdp"))
    finding = about("XDP program", machine.system(), lost)
    assert "nobody" in finding.text and "xdp off" in finding.advice


# ---- nodes ----


def queue(**other: int) -> QueueStatus:
    """A queue as a node tells of it."""
    node = localnode.Node()
    node.queues = lambda: [localnode.queue(0, **other)]  # type: ignore[method-assign]
    return status(node, Facts("serve", False), uptime=1.0, capturing=False).queues[0]


def test_frames_with_one_owner_each() -> None:
    finding = nodes.judge("q", [queue()])
    assert finding is not None and finding.verdict is Verdict.GOOD and "4,096" in finding.text


def test_a_frame_with_two_owners_is_an_error_at_once() -> None:
    finding = nodes.judge("q", [queue(frames_free=2001)])
    assert finding is not None and finding.verdict is Verdict.MISSING and "4,097 owners" in finding.text


def test_frames_are_lost_only_where_nothing_moves() -> None:
    looks = [queue(frames_free=1990, rx_batches=n) for n in range(100)]
    for count in range(1, nodes.LOOKS):
        assert nodes.judge("q", looks[:count]) is None, "a busy queue is looked at again"
    finding = nodes.judge("q", looks[: nodes.LOOKS])
    assert finding is not None and finding.verdict is Verdict.OK and "under way" in finding.text
    still = [queue(frames_free=1990)] * 3
    assert nodes.judge("q", still[:2]) is None
    finding = nodes.judge("q", still)
    assert finding is not None and finding.verdict is Verdict.MISSING and "10 of 4,096" in finding.text


def test_every_node_is_asked_until_its_frames_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def settling() -> list[QueueStats]:
        nonlocal asked
        asked += 1
        return [localnode.queue(0), localnode.queue(1, frames_tx=30 - max(4 - asked, 0), tx_batches=asked)]

    async def main() -> list[Finding]:
        async with localnode.served(tmp_path / "1.sock") as node:
            node.queues = settling  # type: ignore[method-assign]
            return await nodes.look()

    monkeypatch.setenv("STOQ_RUNTIME_DIR", str(tmp_path))
    found = asyncio.run(main())
    assert [finding.verdict for finding in found] == [Verdict.GOOD, Verdict.GOOD], found
    assert asked == 4


# ---- the command ----


@pytest.fixture(scope="module")
def veth() -> Iterator[Network]:
    with Network(("a", "b"), (Veth("a", "b", mtu=3498),)) as network:
        yield network


def doctor(network: Network, *arguments: str, code: int = 0) -> dict[str, Any]:
    argv = [sys.executable, "-m", "control.cli", "doctor", "--json", *arguments]
    done = network["a"].run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def values(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    result: dict[str, Any] = next(finding for finding in found if finding["name"] == name)["values"]
    return result


def state(network: Network) -> str:
    """All that the kernel shows of the interfaces, programs included."""
    shown = network["a"].run(["ip", "-d", "address"], capture_output=True, text=True, check=True)
    return str(shown.stdout)


@needs_root
def test_a_veth_pair_is_described_and_left_alone(
    veth: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOQ_RUNTIME_DIR", str(tmp_path))
    before = state(veth)
    report = doctor(veth)
    assert state(veth) == before
    assert report["usable"] is True and list(report["interfaces"]) == ["eth0"], "lo is no Ethernet"
    found = report["interfaces"]["eth0"]
    assert values(found, "link")["driver"] == "veth" and values(found, "link")["mtu"] == 3498
    assert values(found, "XDP")["native"] == "yes"
    assert values(found, "zero copy")["zero_copy"] == "no"
    assert values(found, "XDP program") == {"id": 0}
    assert values(found, "queues")["rx"] >= 1
    assert {finding["name"] for finding in report["host"]} == {probe.name for probe in host.PROBES}


@needs_root
def test_what_is_missing_is_an_exit_code(veth: Network) -> None:
    veth["a"].run(["ip", "link", "add", "small", "mtu", "1279", "type", "veth", "peer", "other"], check=True)
    try:
        report = doctor(veth, "small", "eth0", code=1)
    finally:
        veth["a"].run(["ip", "link", "delete", "small"], check=True)
    assert report["usable"] is False and list(report["interfaces"]) == ["small", "eth0"]
    verdicts = {finding["verdict"] for finding in report["interfaces"]["eth0"]}
    assert "missing" not in verdicts


@needs_root
def test_an_interface_that_is_not_there(veth: Network) -> None:
    argv = [sys.executable, "-m", "control.cli", "doctor", "eth7"]
    done = veth["a"].run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "no interface 'eth7'" in done.stderr and "eth0" in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_a_node_of_ours_on_the_interface(
    veth: Network, certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOQ_RUNTIME_DIR", str(tmp_path / "run"))
    listen = [
        "--listen",
        f"[{veth.address('a')}]:9292",
        "--output",
        str(tmp_path),
        *identity(certs, "node-a"),
    ]
    node = Running.__new__(Running)
    argv = [
        sys.executable,
        "-m",
        "control.cli",
        "--json",
        "serve",
        "--backend",
        "afxdp",
        "--interface",
        "eth0",
    ]
    node.process = subprocess.Popen(
        veth["a"].wrap([*argv, *listen]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        node.until("listening")
        report = doctor(veth, "eth0")
    finally:
        node.process.terminate()
        node.process.communicate(timeout=30)
    program = values(report["interfaces"]["eth0"], "XDP program")
    assert program["ours"] is True and f"process {node.process.pid})" in program["owner"]
    [accounting] = [finding for finding in report["nodes"] if "queue 0" in finding["name"]]
    assert accounting["verdict"] == "good"
    assert accounting["values"]["owned"] == accounting["values"]["frames"] > 0
    assert values(doctor(veth, "eth0")["interfaces"]["eth0"], "XDP program") == {"id": 0}


def test_tables_for_people() -> None:
    argv = [sys.executable, "-m", "control.cli", "doctor"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    for name in ("kernel", "io_uring", "AES", "huge pages"):
        assert name in done.stdout
    assert ("STOQ can run here" in done.stdout) == (done.returncode == 0)

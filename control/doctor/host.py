"""Facts of the host, a class each. `look` never raises: what cannot be read is said to be unknown."""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

from control.doctor.finding import Finding, good, missing, ok
from control.doctor.system import System, cpu_list
from control.privileges import Capability
from dataplane import _stoq

AF_XDP = 44  # linux/socket.h; Python 3.11 has no name for it.
CAP_IPC_LOCK = 14
SOCKET_BYTES = 8 << 20  # What udp_socket.c asks for.
# 256 MiB of connections, 512 MiB of chunks, some buffers: 2 MiB each.
HUGE_PAGES_A_WORKER = 428


class HostProbe(Protocol):
    """One fact."""

    name: str

    def look(self, system: System) -> Finding:
        """Find it."""


class Kernel:
    """Its version says most."""

    name = "kernel"
    # What a version brings, and the backend loses without: see csrc/io and Documentation/networking.
    brings = (
        ((5, 0), "UDP GRO and GSO"),
        ((6, 1), "io_uring with deferred task work"),
        ((6, 6), "AF_XDP frames in several buffers"),
        ((6, 8), "checksums by AF_XDP's transmit metadata"),
        ((6, 9), "busy polling from io_uring"),
    )

    def look(self, system: System) -> Finding:
        lacks = [f"{text} ({a}.{b})" for (a, b), text in self.brings if system.kernel < (a, b)]
        if system.kernel == (0, 0):
            return ok(self.name, f"Linux {system.release}: not a version we can read", release=system.release)
        if system.kernel < self.brings[0][0]:
            return missing(
                self.name, f"Linux {system.release}", "run Linux 6.1 or later", release=system.release
            )
        if lacks:
            return ok(
                self.name,
                f"Linux {system.release}, without {', '.join(lacks)}",
                "a newer kernel (Debian 12: linux-image from bookworm-backports)",
                release=system.release,
            )
        return good(self.name, f"Linux {system.release}", release=system.release)


class Ipv6:
    """STOQ is IPv6-only."""

    name = "IPv6"

    def look(self, system: System) -> Finding:
        disabled = system.number("proc/sys/net/ipv6/conf/all/disable_ipv6")
        if disabled is None:
            return missing(
                self.name, "this kernel has no IPv6", "take ipv6.disable=1 off the kernel's command line"
            )
        if disabled:
            return missing(self.name, "switched off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
        return good(self.name, "on")


class IoUring:
    """What the io_uring backend gets; tried by making a ring."""

    name = "io_uring"

    def look(self, system: System) -> Finding:
        probe = _stoq.ffi.new("struct stoq_uring_probe *")
        _stoq.lib.stoq_probe_io_uring(probe)
        texts = {
            "single_issuer": "single issuer",
            "defer_taskrun": "deferred task work",
            "buffer_rings": "buffer rings",
            "recvmsg_multishot": "multishot recvmsg",
            "sendmsg_zero_copy": "zero-copy sendmsg",
            "napi": "busy polling",
            "restrictions": "restrictable rings",
        }
        values = {name: bool(getattr(probe, name)) for name in texts}
        if probe.setup_error:
            return self._refused(system, -probe.setup_error)
        has = ", ".join(text for name, text in texts.items() if values[name])
        lacks = [text for name, text in texts.items() if not values[name]]
        if not (values["buffer_rings"] and values["recvmsg_multishot"]):
            return ok(
                self.name,
                f"too old for the backend, which falls back to plain sockets: no {', '.join(lacks)}",
                "run Linux 6.1 or later",
                **values,
            )
        if not values["defer_taskrun"] or not values["restrictions"]:
            return ok(self.name, f"{has}; no {', '.join(lacks)}", "run Linux 6.1 or later", **values)
        # Zero-copy sends and NAPI are not what the backend's speed hangs on.
        return good(self.name, has + (f"; no {', '.join(lacks)}" if lacks else ""), **values)

    def _refused(self, system: System, error: int) -> Finding:
        why = os.strerror(error)
        switch = system.number("proc/sys/kernel/io_uring_disabled")
        if error == errno.EPERM and switch:
            advice = "sysctl -w kernel.io_uring_disabled=0 (1 permits CAP_SYS_ADMIN and io_uring_group)"
        elif error == errno.EPERM:
            advice = "a seccomp filter refuses io_uring_setup, as container runtimes' do: allow it there"
        elif error == errno.ENOSYS:
            advice = "a kernel built with CONFIG_IO_URING"
        else:
            advice = "raise RLIMIT_MEMLOCK (ulimit -l)"
        return ok(self.name, f"refused ({why}): plain sockets are used instead, slower", advice, error=why)


class Crypto:
    """Instructions of the processor and the providers that use them: most of a packet's cost."""

    name = "AES"
    wanted = ("aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq", "avx512f", "pmull", "sha2")

    def look(self, system: System) -> Finding:
        line = system.field("proc/cpuinfo", "flags") or system.field("proc/cpuinfo", "Features") or ""
        flags = [name for name in self.wanted if name in line.split()]
        lib = _stoq.lib
        providers = [name for name in ("ipsec-mb", "openssl") if lib.stoq_crypto_available(name.encode())]
        values = {"instructions": flags, "providers": providers}
        text = f"instructions {', '.join(flags) or 'none'}; providers {', '.join(providers) or 'none'}"
        if not providers:
            return missing(self.name, text, "rebuild with libssl-dev installed", **values)
        if "aes" not in flags:
            return ok(
                self.name,
                text,
                "a processor (or virtual machine type) with AES instructions; without, --cipher chacha20",
                **values,
            )
        if "pclmulqdq" in flags and "ipsec-mb" not in providers:
            return ok(self.name, text, "install libipsec-mb-dev, build again: it seals faster", **values)
        if "pclmulqdq" in flags and "vaes" not in flags:
            return ok(self.name, text, "a processor with VAES seals up to four blocks at once", **values)
        return good(self.name, text, **values)


class HugePages:
    """Buffers on huge pages need fewer TLB entries."""

    name = "huge pages"

    def look(self, system: System) -> Finding:
        def pages(name: str) -> int:
            value = (system.field("proc/meminfo", name) or "0").split()
            return int(value[0]) if value and value[0].isdigit() else 0

        total, free, kib = pages("HugePages_Total"), pages("HugePages_Free"), pages("Hugepagesize")
        modes = system.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
        transparent = modes.partition("[")[2].partition("]")[0] or "unknown"
        values = {"total": total, "free": free, "page_kib": kib, "transparent": transparent}
        text = f"{free} of {total} free, {kib} KiB each; transparent: {transparent}"
        if free >= HUGE_PAGES_A_WORKER:
            return good(self.name, text, **values)
        fallback = (
            "transparent huge pages are used instead"
            if transparent in ("always", "madvise")
            else "small pages are used instead"
        )
        wanted = total - free + HUGE_PAGES_A_WORKER
        return ok(
            self.name,
            f"{text}; {fallback}",
            f"sysctl -w vm.nr_hugepages={wanted} before the node starts, and {HUGE_PAGES_A_WORKER} more for "
            "each worker beyond the first",
            **values,
        )


class Cores:
    """Who may run where."""

    name = "cores"

    def look(self, system: System) -> Finding:
        online = cpu_list(system.text("sys/devices/system/cpu/online")) or set(system.cpus)
        isolated = cpu_list(system.text("sys/devices/system/cpu/isolated"))
        tickless = cpu_list(system.text("sys/devices/system/cpu/nohz_full"))
        nodes = cpu_list(system.text("sys/devices/system/node/online")) or {0}
        usable = system.cpus & online
        values = {
            "online": sorted(online),
            "usable": sorted(usable),
            "isolated": sorted(isolated),
            "nohz_full": sorted(tickless),
            "numa_nodes": sorted(nodes),
        }
        text = (
            f"{len(usable)} of {len(online)} usable, {len(isolated)} isolated, "
            f"{len(nodes)} NUMA node{'s' if len(nodes) > 1 else ''}"
        )
        if len(usable) < 2:
            return ok(self.name, text, "two cores: a worker shares this one with the control plane", **values)
        if not isolated:
            return ok(
                self.name,
                text,
                "isolcpus=, nohz_full= and rcu_nocbs= on the kernel's command line for the workers' cores, "
                "then --core for each: nothing else runs there",
                **values,
            )
        return good(self.name, text, **values)


class Privileges:
    """What we may open."""

    name = "privileges"

    def look(self, system: System) -> Finding:
        needed = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.BPF)
        lacks = [f"CAP_{capability.name}" for capability in needed if not system.has(capability)]
        if lacks:
            return ok(
                self.name,
                f"without {', '.join(lacks)}: no AF_XDP, no guard",
                "start as root: a node gives up what it does not need once it is open (--user)",
                lacks=lacks,
            )
        return good(self.name, "AF_XDP sockets and the guard can be opened")


class Bpf:
    """The guard's program."""

    name = "BPF"

    def look(self, system: System) -> Finding:
        jit = system.number("proc/sys/net/core/bpf_jit_enable")
        unprivileged = system.number("proc/sys/kernel/unprivileged_bpf_disabled")
        btf = system.exists("sys/kernel/btf/vmlinux")
        values = {"jit": jit, "unprivileged_disabled": unprivileged, "btf": btf}
        said = "unknown (only root may read it)" if jit is None else "on" if jit else "off"
        use = "allowed" if unprivileged == 0 else "disabled"
        text = f"JIT {said}; unprivileged use {use}; BTF {'there' if btf else 'not there'}"
        if jit == 0:
            return ok(self.name, text, "sysctl -w net.core.bpf_jit_enable=1: the guard runs faster", **values)
        if not btf:
            return ok(
                self.name, text, "a kernel with CONFIG_DEBUG_INFO_BTF, for bpftool and the like", **values
            )
        if unprivileged == 0:
            return ok(self.name, text, "sysctl -w kernel.unprivileged_bpf_disabled=2: safer", **values)
        return good(self.name, text, **values)


class XdpSockets:
    """AF_XDP in this kernel."""

    name = "AF_XDP"

    def look(self, system: System) -> Finding:
        try:
            socket.socket(AF_XDP, socket.SOCK_RAW).close()
        except OSError as error:
            if error.errno == errno.EPERM:
                return ok(self.name, "there, but not for us (CAP_NET_RAW)", "start as root", available=True)
            return ok(
                self.name,
                f"not in this kernel ({error.strerror}): io_uring is the fastest backend here",
                "a kernel with CONFIG_XDP_SOCKETS",
                available=False,
            )
        return good(self.name, "XDP sockets can be made", available=True)


class MemoryLock:
    """UMEM is locked memory."""

    name = "locked memory"

    def look(self, system: System) -> Finding:
        limit = system.memory_lock_bytes
        unlimited = limit < 0
        values = {"limit_bytes": None if unlimited else limit, "ipc_lock": system.has(CAP_IPC_LOCK)}
        text = "no limit" if unlimited else f"limit {limit >> 10} KiB"
        if unlimited or system.has(CAP_IPC_LOCK):
            return good(self.name, text + (" (CAP_IPC_LOCK lifts it)" if not unlimited else ""), **values)
        if limit >= 64 << 20:
            return good(self.name, text, **values)
        return ok(self.name, text, "LimitMEMLOCK=infinity in the service, or ulimit -l unlimited", **values)


class SocketBuffers:
    """What a burst may fill while a worker is busy."""

    name = "socket buffers"

    def look(self, system: System) -> Finding:
        # Other network namespaces than the first have no such files on some kernels.
        found = {name: system.number(f"proc/sys/net/core/{name}") for name in ("rmem_max", "wmem_max")}
        most = {name: value for name, value in found.items() if value is not None}
        text = ", ".join(f"{name} {value >> 10} KiB" for name, value in most.items()) or "limits unknown here"
        if system.has(Capability.NET_ADMIN):
            return good(self.name, f"{text} (CAP_NET_ADMIN goes beyond)", **most)
        short = [name for name, value in most.items() if value < SOCKET_BYTES]
        if short:
            advice = " ".join(f"net.core.{name}={SOCKET_BYTES}" for name in short)
            return ok(self.name, text, f"sysctl -w {advice}: short buffers drop bursts", **most)
        return good(self.name, text, **most)


PROBES: tuple[HostProbe, ...] = (
    Kernel(), Ipv6(), Privileges(), IoUring(), XdpSockets(), Bpf(), Crypto(), Cores(), HugePages(),
    MemoryLock(), SocketBuffers(),
)  # fmt: skip


def look(system: System) -> list[Finding]:
    """All facts of the host."""
    return [probe.look(system) for probe in PROBES]

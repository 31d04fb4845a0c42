"""Facts of an interface, a class each, from what link.py collected."""

from __future__ import annotations

from typing import Protocol

from control.doctor.finding import Finding, good, missing, ok
from control.doctor.link import FEATURES, NO, UNKNOWN, YES, Link, program_owner
from control.doctor.system import System

MIN_MTU = 1280  # RFC 8200 section 5.
HEADERS = 40 + 8  # IPv6 and UDP.
XDP_PAGE_MTU = 3498  # Native XDP of most drivers takes one page a frame: 4096 less headroom and tail.
OUR_PROGRAM = "stoq_guard"


class InterfaceProbe(Protocol):
    """One fact."""

    name: str

    def look(self, system: System, link: Link) -> Finding:
        """Find it."""


def answer(value: int) -> str:
    """For people."""
    return {YES: "yes", NO: "no", UNKNOWN: "unknown"}[value]


class Carrier:
    """What it is, and whether it can carry STOQ at all."""

    name = "link"

    def look(self, system: System, link: Link) -> Finding:
        speed = "speed unknown" if link.speed_mbit is None else f"{link.speed_mbit / 1000:g} Gbit/s"
        driver = link.xdp.driver or link.kind or "driver unknown"
        state = "up" if link.up and link.running else "up, no carrier" if link.up else "down"
        values = {
            "driver": link.xdp.driver,
            "kind": link.kind,
            "mtu": link.mtu,
            "speed_mbit": link.speed_mbit,
            "state": state,
            "index": link.index,
        }
        text = f"{driver}, {speed}, MTU {link.mtu}, {state}"
        if link.mtu < MIN_MTU:
            return missing(self.name, text, f"ip link set {link.name} mtu 1500: IPv6 needs 1280", **values)
        if link.ipv6_disabled:
            switch = f"net.ipv6.conf.{link.name}.disable_ipv6"
            return missing(self.name, f"{text}, IPv6 off", f"sysctl -w {switch}=0", **values)
        if not link.up:
            return missing(self.name, text, f"ip link set {link.name} up", **values)
        if not link.running:
            return ok(self.name, text, "plug in the cable, or start the other end", **values)
        payload = link.mtu - HEADERS
        if link.mtu <= 1500:
            return ok(
                self.name,
                text,
                f"datagrams carry {payload} bytes: where all on the way agree, a larger MTU (to "
                f"{XDP_PAGE_MTU} with native XDP in one buffer) makes fewer of them; then --max-datagram",
                **values,
            )
        return good(self.name, f"{text}: datagrams of up to {payload} bytes", **values)


class Queues:
    """A worker owns a queue."""

    name = "queues"

    def look(self, system: System, link: Link) -> Finding:
        rx, tx = link.rx_queues, link.tx_queues
        values = {"rx": rx, "tx": tx, "cores": len(system.cpus)}
        if rx is None or tx is None:
            return ok(self.name, "unknown", "", **values)
        text = f"{rx} for receiving, {tx} for sending; {len(system.cpus)} cores usable"
        if rx > len(system.cpus):
            return ok(
                self.name,
                text,
                f"ethtool -L {link.name} combined {len(system.cpus)}: with afxdp a queue without a worker "
                "goes by the slower socket path",
                **values,
            )
        if rx < len(system.cpus) - 1:
            return ok(
                self.name,
                text,
                f"with afxdp {rx} worker{'s' if rx > 1 else ''} can be used: more queues for more "
                f"(ethtool -L {link.name} combined N)",
                **values,
            )
        return good(self.name, text, **values)


class Numa:
    """Memory of another node costs a hop for every packet."""

    name = "NUMA node"

    def look(self, system: System, link: Link) -> Finding:
        if link.numa_node is None:
            return good(self.name, "none of its own", node=None)
        near = sorted(link.numa_cores & system.cpus)
        values = {"node": link.numa_node, "cores": near}
        if not near:
            return ok(
                self.name,
                f"node {link.numa_node}, and no core of it is ours",
                f"let the node run on cores {', '.join(map(str, sorted(link.numa_cores)))}",
                **values,
            )
        return good(self.name, f"node {link.numa_node}: prefer --core {', '.join(map(str, near))}", **values)


class Offloads:
    """What io_uring's trains need."""

    name = "offloads"

    def look(self, system: System, link: Link) -> Finding:
        if not link.features:
            return ok(self.name, "the driver does not say")
        on = [FEATURES[key] for key, enabled in link.features.items() if enabled]
        text = ", ".join(on) or "none"
        checksum = link.features.get("tx-checksum-ipv6") or link.features.get("tx-checksum-ip-generic")
        # What can be switched on and is off; one of the two checksums is enough.
        wanted = ["tx-generic-segmentation", "rx-gro", *([] if checksum else ["tx-checksum-ipv6"])]
        off = [key for key in wanted if link.features.get(key) is False and key in link.switchable]
        if off:
            switches = " ".join(f"{key} on" for key in off)
            return ok(
                self.name,
                f"{text}; off: {', '.join(FEATURES[key] for key in off)}",
                f"ethtool -K {link.name} {switches}: the io_uring backend sends and receives trains by them",
                **link.features,
            )
        if not checksum:
            advice = "UDP segmentation needs one: packets go singly"
            return ok(self.name, f"{text}; no transmit checksum", advice, **link.features)
        return good(self.name, text, **link.features)


class XdpMode:
    """Where the guard runs."""

    name = "XDP"

    def look(self, system: System, link: Link) -> Finding:
        xdp = link.xdp
        values = {name: answer(getattr(xdp, name)) for name in ("native", "generic", "redirect")}
        if xdp.native == YES:
            if xdp.redirect == NO:
                return ok(self.name, "native, but without redirect: the guard runs, AF_XDP receives nothing",
                          "use io_uring here", **values)  # fmt: skip
            return good(self.name, "native: in the driver, before the kernel touches a packet", **values)
        if xdp.native == UNKNOWN:
            return ok(self.name, f"unknown: {xdp.notes}", "ask as root", **values)
        if xdp.generic == YES:
            return ok(
                self.name,
                f"generic only: {xdp.driver or 'this driver'} has no native XDP here, so that packets cost "
                "the kernel's work first",
                "io_uring is faster here; for AF_XDP an interface whose driver has native XDP (mlx5, ice, "
                "i40e, ixgbe, igc, ena, gve, virtio_net)",
                **values,
            )
        return ok(self.name, f"none: {xdp.notes}", "use io_uring here", **values)


class ZeroCopy:
    """AF_XDP without a copy."""

    name = "zero copy"

    def look(self, system: System, link: Link) -> Finding:
        xdp = link.xdp
        values = {"zero_copy": answer(xdp.zero_copy), "segments": xdp.zero_copy_segments}
        if xdp.zero_copy == YES:
            several = xdp.zero_copy_segments > 1
            buffers = (
                f", up to {xdp.zero_copy_segments} buffers a frame" if several else ", one buffer a frame"
            )
            return good(self.name, f"yes{buffers}", **values)
        if xdp.zero_copy == NO:
            return ok(
                self.name,
                f"no: {xdp.driver or 'the driver'} copies every packet once",
                "line rate takes a driver with zero copy (mlx5, ice, i40e, ixgbe, igc)",
                **values,
            )
        return ok(self.name, f"unknown: {xdp.notes}", "Linux 6.3 tells; --xdp-mode zero-copy tries", **values)


class MultiBuffer:
    """Jumbo frames through XDP."""

    name = "multi-buffer"

    def look(self, system: System, link: Link) -> Finding:
        value = link.xdp.multi_buffer
        values = {"multi_buffer": answer(value)}
        if value == YES:
            return good(self.name, "yes: jumbo frames pass through XDP", **values)
        if link.xdp.native == NO:
            return good(self.name, "no, and no native XDP that would need it", **values)
        if link.mtu <= XDP_PAGE_MTU:
            return good(self.name, f"{answer(value)}; not needed at MTU {link.mtu}", **values)
        return ok(
            self.name,
            f"{answer(value)}, and MTU {link.mtu} does not fit a page",
            f"ip link set {link.name} mtu {XDP_PAGE_MTU} for native XDP, or io_uring for jumbo frames",
            **values,
        )


class ChecksumMetadata:
    """IPv6 makes UDP checksums mandatory."""

    name = "checksum metadata"

    def look(self, system: System, link: Link) -> Finding:
        xdp = link.xdp
        values = {
            "tx_metadata": answer(xdp.tx_metadata),
            "tx_checksum": answer(xdp.tx_checksum),
            "rx_hash": answer(xdp.rx_hash),
        }
        if xdp.tx_metadata == NO:
            return ok(
                self.name, "no: the worker computes AF_XDP's checksums", "run Linux 6.8 or later", **values
            )
        if xdp.tx_metadata == UNKNOWN:
            return ok(self.name, f"unknown: {xdp.notes}", "Linux 6.8 has it", **values)
        if xdp.zero_copy == YES and xdp.tx_checksum == NO:
            return ok(self.name, "not for zero copy: the worker computes them", "", **values)
        where = "in zero-copy mode, too" if xdp.tx_checksum == YES else "in copy mode"
        return good(self.name, f"the kernel takes AF_XDP's checksums over {where}", **values)


class BusyPoll:
    """Interrupts or polling."""

    name = "busy polling"

    def look(self, system: System, link: Link) -> Finding:
        defer, flush = link.defer_hard_irqs, link.gro_flush_timeout_ns
        values = {"defer_hard_irqs": defer, "gro_flush_timeout_ns": flush}
        if defer is None or flush is None:
            return ok(self.name, "settings unknown: sysfs shows another network namespace", "", **values)
        text = f"napi_defer_hard_irqs {defer}, gro_flush_timeout {flush / 1000:g} µs"
        if defer and flush:
            return good(self.name, f"{text}: interrupts stay off while a worker polls", **values)
        return ok(
            self.name,
            f"{text}: every packet may interrupt",
            f"for lowest latency: echo 2 > /sys/class/net/{link.name}/napi_defer_hard_irqs; "
            f"echo 200000 > /sys/class/net/{link.name}/gro_flush_timeout; then --busy-poll",
            **values,
        )


class Program:
    """What is attached now, and whose it is."""

    name = "XDP program"

    def look(self, system: System, link: Link) -> Finding:
        xdp = link.xdp
        if xdp.program_id == 0:
            return good(self.name, "none attached: the guard can be", id=0)
        owner = program_owner(xdp.program_id, system.root / "proc")
        mode = "generic" if xdp.program_generic else "native"
        ours = xdp.program == OUR_PROGRAM
        values = {"id": xdp.program_id, "program": xdp.program, "owner": owner, "mode": mode, "ours": ours}
        text = f"{xdp.program or 'unnamed'} (id {xdp.program_id}, {mode}) of {owner or 'nobody that we see'}"
        if ours:
            return good(self.name, f"{text}: the guard of a STOQ node", **values)
        advice = (
            "stop that process to use the guard or afxdp here; io_uring goes on working"
            if owner
            else f"ip link set dev {link.name} xdp off removes a program that nobody holds; a pinned link "
            "goes with its pin (/sys/fs/bpf)"
        )
        return ok(self.name, text, advice, **values)


PROBES: tuple[InterfaceProbe, ...] = (
    Carrier(), Queues(), Numa(), Offloads(), XdpMode(), ZeroCopy(), MultiBuffer(), ChecksumMetadata(),
    BusyPoll(), Program(),
)  # fmt: skip


def look(system: System, link: Link) -> list[Finding]:
    """All facts of an interface."""
    return [probe.look(system, link) for probe in PROBES]

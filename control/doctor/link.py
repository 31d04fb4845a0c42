"""An interface's facts, collected once for all its probes.

rtnetlink and ethtool answer for our network namespace; /sys/class/net for the one it was mounted in,
so sysfs is believed only where it shows the same interface (its number and address). The XDP part is
csrc/guard/probe.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.ethtool import Ethtool
from pyroute2.netlink.exceptions import NetlinkError

from control.doctor.system import System, cpu_list
from dataplane import _stoq
from dataplane.errors import StoqError

ETHER = 1  # ARPHRD_ETHER
UP = 0x1  # IFF_UP

UNKNOWN, NO, YES = range(3)  # STOQ_ANSWER_* of csrc/stoq.h.

FEATURES = {
    "tx-generic-segmentation": "GSO",
    "tx-udp-segmentation": "UDP segmentation in hardware",
    "rx-gro": "GRO",
    "rx-gro-hw": "GRO in hardware",
    "rx-checksum": "receive checksum",
    "tx-checksum-ipv6": "transmit checksum for IPv6",
    "tx-checksum-ip-generic": "transmit checksum for all",
}

T = TypeVar("T")


class LinkError(StoqError):
    """An interface cannot be looked at; the text says why."""


@dataclass(frozen=True, slots=True)
class Xdp:
    """struct stoq_interface_probe; answers are UNKNOWN, NO or YES."""

    driver: str = ""
    bpf: int = UNKNOWN
    native: int = UNKNOWN
    generic: int = UNKNOWN
    redirect: int = UNKNOWN
    ndo_xmit: int = UNKNOWN
    zero_copy: int = UNKNOWN
    multi_buffer: int = UNKNOWN
    rx_timestamp: int = UNKNOWN
    rx_hash: int = UNKNOWN
    tx_metadata: int = UNKNOWN
    tx_checksum: int = UNKNOWN
    tx_timestamp: int = UNKNOWN
    tx_launch_time: int = UNKNOWN
    program_generic: int = 0
    program_id: int = 0
    zero_copy_segments: int = 0
    program: str = ""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """What is known of an interface. None: could not be asked, or means nothing here."""

    name: str
    index: int
    up: bool
    running: bool
    mtu: int
    address: str
    kind: str = ""  # Of a virtual one: veth, bridge, bond…
    speed_mbit: int | None = None
    rx_queues: int | None = None
    tx_queues: int | None = None
    numa_node: int | None = None
    numa_cores: frozenset[int] = frozenset()
    features: dict[str, bool] = field(default_factory=dict)
    switchable: frozenset[str] = frozenset()  # Features that ethtool -K may change.
    defer_hard_irqs: int | None = None
    gro_flush_timeout_ns: int | None = None
    ipv6_disabled: bool = False
    xdp: Xdp = field(default_factory=Xdp)


def _quietly(ask: Callable[[], T], otherwise: T) -> T:
    """A driver need not answer everything."""
    try:
        return ask()
    except (OSError, NetlinkError, NotImplementedError, KeyError, ValueError):
        return otherwise
    except Exception as error:  # pyroute2's own for "not supported" share no base class but this.
        if type(error).__module__.startswith("pyroute2"):
            return otherwise
        raise


def _sysfs(system: System, name: str, index: int, address: str) -> str | None:
    """The interface's folder, if it is this interface's."""
    base = f"sys/class/net/{name}"
    if system.number(f"{base}/ifindex") != index or (system.text(f"{base}/address") or "") != address:
        return None
    return base


def _count(system: System, base: str | None, what: str) -> int | None:
    if base is None:
        return None
    return len(list((system.root / base / "queues").glob(f"{what}-*"))) or None


def _channels(ethtool: Any, name: str) -> tuple[int | None, int | None]:
    channels = _quietly(lambda: ethtool.get_channels(name), None)
    if channels is None:
        return None, None
    both = channels.combined_count or 0
    return (both + (channels.rx_count or 0)) or None, (both + (channels.tx_count or 0)) or None


def _speed(ethtool: Any, system: System, base: str | None, name: str) -> int | None:
    mode = _quietly(lambda: ethtool.get_link_mode(name, with_netlink=True), None)
    speed = getattr(mode, "speed", None) or (system.number(f"{base}/speed") if base else None)
    return speed if speed is not None and speed > 0 else None


def _xdp(index: int) -> Xdp:
    probe = _stoq.ffi.new("struct stoq_interface_probe *")
    error = _stoq.ffi.new("struct stoq_error *")
    if not _stoq.lib.stoq_probe_interface(index, probe, error):
        raise LinkError(_stoq.ffi.string(error.text).decode("utf-8", "replace"))
    values: dict[str, Any] = {}
    for name in Xdp.__dataclass_fields__:
        value = getattr(probe, name)
        values[name] = value if isinstance(value, int) else _stoq.ffi.string(value).decode("utf-8", "replace")
    return Xdp(**values)


def _read(system: System, ethtool: Any, message: Any) -> Link:
    name, index = str(message.get_attr("IFLA_IFNAME")), int(message["index"])
    address = str(message.get_attr("IFLA_ADDRESS") or "")
    base = _sysfs(system, name, index, address)
    rx, tx = _count(system, base, "rx"), _count(system, base, "tx")
    if rx is None or tx is None:
        rx, tx = _channels(ethtool, name)
    node = system.number(f"{base}/device/numa_node") if base else None
    if node is not None and node < 0:
        node = None  # The kernel's word for "there is only one, or nobody knows".
    found: dict[str, Any] = _quietly(lambda: ethtool.get_features(name).features, {})
    features = {key: bool(found[key].enable) for key in FEATURES if key in found}
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        name=name,
        index=index,
        up=bool(message["flags"] & UP),
        running=str(message.get_attr("IFLA_OPERSTATE") or "") in ("UP", "UNKNOWN"),
        mtu=int(message.get_attr("IFLA_MTU") or 0),
        address=address,
        kind=str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
        speed_mbit=_speed(ethtool, system, base, name),
        rx_queues=rx or message.get_attr("IFLA_NUM_RX_QUEUES"),
        tx_queues=tx or message.get_attr("IFLA_NUM_TX_QUEUES"),
        numa_node=node,
        numa_cores=frozenset(cpu_list(system.text(f"sys/devices/system/node/node{node}/cpulist"))),
        features=features,
        switchable=frozenset(key for key in features if found[key].available),
        defer_hard_irqs=system.number(f"{base}/napi_defer_hard_irqs") if base else None,
        gro_flush_timeout_ns=system.number(f"{base}/gro_flush_timeout") if base else None,
        ipv6_disabled=system.number(f"proc/sys/net/ipv6/conf/{name}/disable_ipv6") == 1,
        xdp=_xdp(index),
    )


def collect(system: System, names: tuple[str, ...] = ()) -> list[Link]:
    """The named interfaces, in that order; without names every Ethernet interface that is up. Raises
    LinkError."""
    ethtool: Any = Ethtool()
    try:
        with IPRoute() as route:
            messages = {str(m.get_attr("IFLA_IFNAME")): m for m in route.get_links()}
        for name in names:
            if name not in messages:
                here = ", ".join(messages) or "none"
                raise LinkError(f"there is no interface {name!r} in this network namespace: {here}")
        wanted = names or tuple(
            name for name, m in messages.items() if m["ifi_type"] == ETHER and m["flags"] & UP
        )
        return [_read(system, ethtool, messages[name]) for name in wanted]
    finally:
        ethtool.close()


def program_owner(program_id: int, proc: Path = Path("/proc")) -> str | None:
    """Which process holds this BPF program, or a link of it: "name (process pid)". Root sees all processes,
    others their own. None: nobody's that we see, as when a link or program is pinned."""
    line = f"prog_id:\t{program_id}\n"
    for process in proc.glob("[0-9]*"):
        try:
            if any(line in info.read_text() for info in _bpf_files(process)):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return None


def _bpf_files(process: Path) -> Iterator[Path]:
    for descriptor in (process / "fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("anon_inode:") and "bpf" in target:
            yield process / "fdinfo" / descriptor.name

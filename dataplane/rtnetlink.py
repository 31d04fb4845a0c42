"""rtnetlink: the socket, the dumps and the messages, as plain values.

pyroute2 decodes the attributes; its objects do not leave this module. What has to be looked at for every
message (its type, family, table, interface) is read from the fixed headers first, so that a message that is
none of our business costs no decoding, which takes some 70 µs.

Kernel documentation: rtnetlink(7), Documentation/userspace-api/netlink/intro.rst; the constants are those of
linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h, linux/if_addr.h and linux/if.h.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dataplane.errors import DatapathError

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_GET_STRICT_CHK = 12  # The kernel checks a dump's filters instead of ignoring them.
SO_RCVBUFFORCE = 33

NLM_F_DUMP_INTR = 0x10  # The table changed while it was dumped.
NLM_F_REPLACE = 0x100  # On an event: it took the place of another.
NLM_F_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH

NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

# LINK, NEIGH, IPV6_IFADDR, IPV6_ROUTE, IPV6_IFINFO, IPV6_RULE of enum rtnetlink_groups.
GROUPS = (1, 3, 9, 11, 12, 19)

RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTN_UNICAST = 1
RTM_F_CLONED = 0x200  # An exception cached for one destination, not an entry of the table.
RTNH_F_DEAD = 0x1
RTEXT_FILTER_SKIP_STATS = 0x8

NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE STALE DELAY PROBE NOARP PERMANENT
NTF_PROXY = 0x08
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x04, 0x08, 0x40
RT_SCOPE_SITE = 200  # Larger: link or host.
IFF_UP, IFF_RUNNING = 0x1, 0x40

# More than the largest piece of a dump, which the kernel bounds by 32 KiB and by what we read at once.
READ_BYTES = 32 * 1024
# The kernel's default of 208 KiB is some 150 route events; each takes about 1.3 KiB of it.
SOCKET_BYTES = 1 << 20

UNSPECIFIED = bytes(16)
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # struct ndmsg
_ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_MIN_LENGTH = {
    **dict.fromkeys((RTM_NEWLINK, RTM_DELLINK), _HEADER.size + _LINK.size),
    **dict.fromkeys((RTM_NEWADDR, RTM_DELADDR), _HEADER.size + _ADDRESS.size),
    **dict.fromkeys((RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWRULE, RTM_DELRULE), _HEADER.size + _ROUTE.size),
    **dict.fromkeys((RTM_NEWNEIGH, RTM_DELNEIGH), _HEADER.size + _NEIGHBOUR.size),
}


class NetlinkError(DatapathError):
    """rtnetlink refused a request, or sent what cannot be read; the text says which."""


class Dump(enum.Enum):
    """What can be asked for whole."""

    LINKS = enum.auto()
    ADDRESSES = enum.auto()
    RULES = enum.auto()
    LOCAL_ROUTES = enum.auto()
    MAIN_ROUTES = enum.auto()
    NEIGHBOURS = enum.auto()


@dataclass(frozen=True, slots=True)
class Hop:
    """One way of a route; `gateway` is :: when the destination is on the link."""

    ifindex: int
    gateway: bytes
    dead: bool = False


@dataclass(frozen=True, slots=True)
class RouteMessage:
    """An entry of table main or local appeared, changed, or went. `kind` is RTN_UNICAST or another type."""

    new: bool
    table: int
    prefix: bytes
    bits: int
    source_bits: int
    kind: int
    metric: int
    preference: int  # RFC 4191: 0 medium, 1 high, 3 low.
    hops: tuple[Hop, ...]
    preferred_source: bytes
    mtu: int  # The route's own; 0: none.
    tunnel: bool  # Packets are wrapped on their way (lightweight tunnels).
    replace: bool


@dataclass(frozen=True, slots=True)
class NeighbourMessage:
    """`link` is None when the neighbour cannot be reached by it now."""

    ifindex: int
    ip: bytes
    link: bytes | None


@dataclass(frozen=True, slots=True)
class AddressMessage:
    """`usable`: there, and duplicate address detection is through or not done (RFC 4862, RFC 4429)."""

    ifindex: int
    ip: bytes
    scope: int
    usable: bool


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """An interface. Only with `full` are name, MTU and link address known."""

    ifindex: int
    flags: int
    gone: bool
    full: bool = False
    name: str = ""
    mtu: int = 0
    address: bytes = b""


@dataclass(frozen=True, slots=True)
class ConfigurationMessage:
    """The IPv6 configuration of an interface changed, the MTU that routers announce, perhaps."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class RuleMessage:
    """A policy rule, by its text."""

    new: bool
    text: str


Message = RouteMessage | NeighbourMessage | AddressMessage | LinkMessage | ConfigurationMessage | RuleMessage


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of a datagram, undecoded."""

    type: int
    flags: int
    sequence: int
    port: int  # Whose request it answers or, for an event, whose made the change; 0: the kernel's own.
    data: bytes  # The whole datagram.
    offset: int
    length: int

    def error_number(self) -> int:
        """Of NLMSG_ERROR and NLMSG_DONE: the errno, 0 for none."""
        if self.length < _HEADER.size + 4:
            return 0
        return -int(struct.unpack_from("=i", self.data, self.offset + _HEADER.size)[0])


def open_socket(receive_bytes: int = SOCKET_BYTES, *, groups: tuple[int, ...] = GROUPS) -> socket.socket:
    """A non-blocking rtnetlink socket of this network namespace, joined to `groups`. Raises NetlinkError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise NetlinkError(f"rtnetlink socket: {error}") from error
    return sock


def request(dump: Dump, sequence: int) -> bytes:
    """The message that asks for a dump."""
    message: Any
    if dump is Dump.LINKS:
        kind, message = RTM_GETLINK, ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    elif dump is Dump.ADDRESSES:
        kind, message = RTM_GETADDR, ifaddrmsg()
    elif dump is Dump.RULES:
        kind, message = RTM_GETRULE, fibmsg()
    elif dump is Dump.NEIGHBOURS:
        kind, message = RTM_GETNEIGH, ndmsg()
    else:
        kind, message = RTM_GETROUTE, rtmsg()
        table = RT_TABLE_LOCAL if dump is Dump.LOCAL_ROUTES else RT_TABLE_MAIN
        message["attrs"] = [("RTA_TABLE", table)]
    message["family"] = socket.AF_UNSPEC if dump is Dump.LINKS else socket.AF_INET6
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST_DUMP
    message["header"]["sequence_number"] = sequence
    message.encode()
    return bytes(message.data)


def receive(sock: socket.socket) -> list[Envelope] | None:
    """One datagram of the kernel's; None when it was cut short, so that something is lost.

    Raises BlockingIOError when there is none, and OSError with ENOBUFS when the kernel had to drop some.
    """
    data, _, flags, sender = sock.recvmsg(READ_BYTES)
    if flags & socket.MSG_TRUNC:
        return None
    if sender[0] != 0:  # Another process's: not the kernel's word.
        return []
    return list(split(data))


def split(data: bytes) -> Iterator[Envelope]:
    """The messages of a datagram. Ends at the first one whose length cannot be."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield Envelope(kind, flags, sequence, port, data, offset, length)
        offset += (length + 3) & ~3


def decode(envelope: Envelope, ifindex: int | None) -> Message | None:
    """What a message says, or None if it is no concern of ours: another family, another table, another
    interface's neighbours. With `ifindex`, only that interface's link is decoded in full. Raises
    NetlinkError.
    """
    minimum = _MIN_LENGTH.get(envelope.type)
    if minimum is None:
        return None
    try:
        if envelope.length < minimum:
            raise ValueError(f"{envelope.length} bytes")
        if envelope.type in (RTM_NEWROUTE, RTM_DELROUTE):
            return _route(envelope)
        if envelope.type in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return _neighbour(envelope, ifindex)
        if envelope.type in (RTM_NEWADDR, RTM_DELADDR):
            return _address(envelope)
        if envelope.type in (RTM_NEWLINK, RTM_DELLINK):
            return _link(envelope, ifindex)
        return _rule(envelope)
    except Exception as error:  # pyroute2 raises whatever its parts raise.
        raise NetlinkError(f"rtnetlink message of type {envelope.type} cannot be read: {error!r}") from error


def _parse(message_class: Any, envelope: Envelope) -> Any:
    # A copy of this message alone: the decoder follows lengths to the end of what it is given.
    message = message_class(envelope.data[envelope.offset : envelope.offset + envelope.length])
    message.decode()
    return message


def _ip(text: str | None) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text) if text else UNSPECIFIED


def _hop(ifindex: int | None, flags: int, attributes: Any) -> Hop:
    # A gateway of another family (RTA_VIA) is none that we could resolve.
    via = attributes.get_attr("RTA_VIA") is not None
    gateway = _ip(attributes.get_attr("RTA_GATEWAY"))
    return Hop(0 if via else ifindex or 0, gateway, bool(flags & RTNH_F_DEAD))


def _route(envelope: Envelope) -> RouteMessage | None:
    head = _ROUTE.unpack_from(envelope.data, envelope.offset + _HEADER.size)
    family, bits, source_bits, _, table, _, _, kind, flags = head
    if (
        family != socket.AF_INET6
        or flags & RTM_F_CLONED
        or table not in (RT_TABLE_MAIN, RT_TABLE_LOCAL)
        or bits > 128
    ):
        return None
    message = _parse(rtmsg, envelope)
    metrics = message.get_attr("RTA_METRICS")
    several = message.get_attr("RTA_MULTIPATH")
    if several:
        hops = tuple(_hop(hop["oif"], hop["flags"], hop) for hop in several)
        tunnel = any(hop.get_attr("RTA_ENCAP") is not None for hop in several)
    else:
        hops = (_hop(message.get_attr("RTA_OIF"), flags, message),)
        tunnel = message.get_attr("RTA_ENCAP") is not None
    return RouteMessage(
        new=envelope.type == RTM_NEWROUTE,
        table=table,
        prefix=_ip(message.get_attr("RTA_DST")),
        bits=bits,
        source_bits=source_bits,
        kind=kind,
        metric=message.get_attr("RTA_PRIORITY") or 0,
        preference=message.get_attr("RTA_PREF") or 0,
        hops=hops,
        preferred_source=_ip(message.get_attr("RTA_PREFSRC")),
        mtu=(metrics.get_attr("RTAX_MTU") or 0) if metrics is not None else 0,
        tunnel=tunnel,
        replace=bool(envelope.flags & NLM_F_REPLACE),
    )


def _neighbour(envelope: Envelope, ifindex: int | None) -> NeighbourMessage | None:
    head = _NEIGHBOUR.unpack_from(envelope.data, envelope.offset + _HEADER.size)
    family, index, state, flags, _ = head
    if family != socket.AF_INET6 or flags & NTF_PROXY or (ifindex is not None and index != ifindex):
        return None
    message = _parse(ndmsg, envelope)
    ip = _ip(message.get_attr("NDA_DST"))
    if ip == UNSPECIFIED or ip[0] == 0xFF:  # Multicast needs no neighbour, and we send none.
        return None
    link: bytes | None = None
    text = message.get_attr("NDA_LLADDR")
    if envelope.type == RTM_NEWNEIGH and state & NUD_USABLE and text:
        link = _link_address(text)
    return NeighbourMessage(index, ip, link)


def _link_address(text: str) -> bytes | None:
    """An Ethernet address; None for what is none."""
    try:
        link = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return None
    return link if len(link) == 6 else None


def _address(envelope: Envelope) -> AddressMessage | None:
    head = _ADDRESS.unpack_from(envelope.data, envelope.offset + _HEADER.size)
    family, _, flags, scope, index = head
    if family != socket.AF_INET6:
        return None
    message = _parse(ifaddrmsg, envelope)
    flags = message.get_attr("IFA_FLAGS") or flags  # The header's field has only its low eight bits.
    # Of a point-to-point link IFA_ADDRESS is the other end's.
    ip = _ip(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
    waiting = flags & IFA_F_TENTATIVE and not flags & IFA_F_OPTIMISTIC
    usable = envelope.type == RTM_NEWADDR and not waiting and not flags & IFA_F_DADFAILED
    return AddressMessage(index, ip, scope, usable)


def _link(envelope: Envelope, ifindex: int | None) -> LinkMessage | ConfigurationMessage | None:
    head = _LINK.unpack_from(envelope.data, envelope.offset + _HEADER.size)
    family, _, index, flags, _ = head
    if family == socket.AF_INET6:
        return ConfigurationMessage(index)
    if family != socket.AF_UNSPEC:  # A bridge port's state.
        return None
    gone = envelope.type == RTM_DELLINK
    if ifindex is not None and index != ifindex:
        return LinkMessage(index, flags, gone)
    message = _parse(ifinfmsg, envelope)
    mtu = message.get_attr("IFLA_MTU") or 0
    protocols = message.get_attr("IFLA_AF_SPEC")
    ipv6 = protocols.get_attr("AF_INET6") if protocols is not None else None
    configuration = ipv6.get_attr("IFLA_INET6_CONF") if ipv6 is not None else None
    if configuration and configuration["mtu"]:
        mtu = min(mtu, configuration["mtu"])
    return LinkMessage(
        ifindex=index,
        flags=flags,
        gone=gone,
        full=True,
        name=message.get_attr("IFLA_IFNAME") or "",
        mtu=mtu,
        address=_link_address(message.get_attr("IFLA_ADDRESS") or "") or bytes(6),
    )


def _rule(envelope: Envelope) -> RuleMessage | None:
    if envelope.data[envelope.offset + _HEADER.size] != socket.AF_INET6:
        return None
    message = _parse(fibmsg, envelope)
    table = message.get_attr("FRA_TABLE") or message["table"]
    parts = [f"{message.get_attr('FRA_PRIORITY') or 0}:"]
    source, destination = message.get_attr("FRA_SRC"), message.get_attr("FRA_DST")
    parts.append(f"from {source}/{message['src_len']}" if source else "from all")
    if destination:
        parts.append(f"to {destination}/{message['dst_len']}")
    shown = ("FRA_FWMARK", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_IFNAME", "FRA_L3MDEV", "FRA_UID_RANGE",
             "FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE")  # fmt: skip
    for name in shown:
        value = message.get_attr(name)
        if value:
            parts.append(f"{name.removeprefix('FRA_').lower()} {value}")
    if message["action"] != 1:  # FR_ACT_TO_TBL
        parts.append(f"action {message['action']}")
    if message["flags"] & 0x2:  # FIB_RULE_INVERT
        parts.insert(1, "not")
    parts.append(f"lookup {table}")
    return RuleMessage(envelope.type == RTM_NEWRULE, " ".join(parts))


def dump_now(dump: Dump) -> list[Message]:
    """A whole dump, waited for: for a start, not for a running loop. Raises NetlinkError."""
    found: list[Message] = []
    with open_socket(groups=()) as sock:
        sock.settimeout(5.0)  # The kernel answers at once.
        try:
            sock.send(request(dump, 1))
            while True:
                envelopes = receive(sock)
                if envelopes is None:
                    raise NetlinkError("rtnetlink: a message is too long")
                for envelope in envelopes:
                    if envelope.type in (NLMSG_DONE, NLMSG_ERROR):
                        if number := envelope.error_number():
                            raise NetlinkError(f"rtnetlink, {dump.name.lower()}: {os.strerror(number)}")
                        return found
                    message = decode(envelope, None)
                    if message is not None:
                        found.append(message)
        except OSError as error:
            raise NetlinkError(f"rtnetlink, {dump.name.lower()}: {error}") from error


def interface_of(address: str) -> int | None:
    """The index of the interface that has this IPv6 address, or None; of a link-local address with a zone,
    that zone's. Raises ValueError when it is no IPv6 address, NetlinkError when the kernel does not answer.
    """
    ip = ipaddress.IPv6Address(address)
    for message in dump_now(Dump.ADDRESSES):
        if isinstance(message, AddressMessage) and message.ip == ip.packed:
            zone = ip.scope_id
            if zone in (None, str(message.ifindex)) or zone == socket.if_indextoname(message.ifindex):
                return message.ifindex
    return None


def default_interface() -> int | None:
    """The index of the interface that the default route of table main leaves by; None: there is none."""
    best: RouteMessage | None = None
    for message in dump_now(Dump.MAIN_ROUTES):
        if (
            isinstance(message, RouteMessage)
            and message.bits == 0
            and message.kind == RTN_UNICAST
            and message.source_bits == 0
            and any(not hop.dead and hop.ifindex for hop in message.hops)
            and (best is None or message.metric < best.metric)
        ):
            best = message
    return next((hop.ifindex for hop in best.hops if not hop.dead and hop.ifindex), None) if best else None

"""What KernelTables is made of, without a kernel and without root: messages, which route is told, bounds."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dataplane import rtnetlink
from dataplane.kernel_routes import Prefix, Route, RouteTable, Selection
from dataplane.kernel_tables import NetlinkError
from dataplane.kernel_view import MAX_ADDRESSES, View
from dataplane.rtnetlink import AddressMessage, Hop, LinkMessage, NeighbourMessage, RouteMessage
from tests.python.test_kernel_tables import STRANGER, Recorder, ip6, key


def message(kind: int, body: bytes, *attributes: tuple[int, bytes], flags: int = 0) -> bytes:
    data = body
    for attribute, value in attributes:
        data += struct.pack("=HH", len(value) + 4, attribute) + value.ljust((len(value) + 3) & ~3, b"\0")
    return struct.pack("=IHHII", len(data) + 16, kind, flags, 0, 0) + data


def decoded(data: bytes, ifindex: int = 7) -> rtnetlink.Message | None:
    (envelope,) = rtnetlink.split(data)
    return rtnetlink.decode(envelope, ifindex)


def neighbour_message(
    state: int, ifindex: int = 7, flags: int = 0, ip: str = "fd00::1", link: bytes = STRANGER
) -> bytes:
    body = struct.pack("=B3xiHBB", socket.AF_INET6, ifindex, state, flags, 1)
    return message(rtnetlink.RTM_NEWNEIGH, body, (1, ip6(ip)), *([(2, link)] if link else []))


@pytest.mark.parametrize(
    ("state", "usable"),
    [(0x00, False), (0x01, False), (0x02, True), (0x04, True), (0x08, True), (0x10, True), (0x20, False),
     (0x40, True), (0x80, True)],
)  # fmt: skip
def test_states_of_neighbours(state: int, usable: bool) -> None:
    expected = NeighbourMessage(7, ip6("fd00::1"), STRANGER if usable else None)
    assert decoded(neighbour_message(state)) == expected


def test_neighbours_that_are_none_of_ours() -> None:
    assert decoded(neighbour_message(0x80, ifindex=8)) is None
    assert decoded(neighbour_message(0x80, flags=0x08)) is None  # Proxy.
    assert decoded(neighbour_message(0x40, ip="ff02::1")) is None
    for link in (b"", b"\x01\x02", bytes(20)):  # None, and other kinds of link.
        assert decoded(neighbour_message(0x80, link=link)) == NeighbourMessage(7, ip6("fd00::1"), None)
    ipv4 = struct.pack("=B3xiHBB", socket.AF_INET, 7, 0x80, 0, 1)
    assert decoded(message(rtnetlink.RTM_NEWNEIGH, ipv4, (1, b"\x7f\0\0\1"), (2, STRANGER))) is None
    bridge = struct.pack("=B3xiHBB", socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7, 7, 0x80, 0, 1)
    assert decoded(message(rtnetlink.RTM_NEWNEIGH, bridge, (2, STRANGER))) is None


@pytest.mark.parametrize(
    ("flags", "usable"),
    [(0x80, True), (0x40, False), (0x48, False), (0x08, False), (0x44, True), (0x20, True),
     (0x100 | 0x40, False)],
)  # fmt: skip
def test_flags_of_addresses(flags: int, usable: bool) -> None:
    body = struct.pack("=4BI", socket.AF_INET6, 64, flags & 0xFF, 0, 7)
    attributes = ((1, ip6("fd00::1")), (8, struct.pack("=I", flags)))
    new = decoded(message(rtnetlink.RTM_NEWADDR, body, *attributes))
    assert new == AddressMessage(7, ip6("fd00::1"), 0, usable)
    gone = decoded(message(rtnetlink.RTM_DELADDR, body, *attributes))
    assert gone == AddressMessage(7, ip6("fd00::1"), 0, False)


def test_of_a_point_to_point_link_the_near_address_counts() -> None:
    body = struct.pack("=4BI", socket.AF_INET6, 128, 0x80, 0, 7)
    near, far = ip6("fd00::1"), ip6("fd00::2")
    assert decoded(message(rtnetlink.RTM_NEWADDR, body, (1, far), (2, near))) == AddressMessage(
        7, near, 0, True
    )


def test_route_messages() -> None:
    def body(bits: int, table: int = 254, flags: int = 0, family: int = socket.AF_INET6) -> bytes:
        return struct.pack("=8BI", family, bits, 0, 0, table, 3, 0, 1, flags)

    def word(value: int) -> bytes:
        return struct.pack("=I", value)

    whole = message(
        rtnetlink.RTM_NEWROUTE, body(32), (1, ip6("fd10::")), (4, word(7)), (5, ip6("fd00::9")),
        (6, word(50)), (7, ip6("fd00::1")), (8, struct.pack("=HHI", 8, 2, 1280)), (15, word(254)),
        (20, b"\x03"), flags=0x100,
    )  # fmt: skip
    assert decoded(whole) == RouteMessage(
        True,
        254,
        ip6("fd10::"),
        32,
        0,
        1,
        50,
        3,
        (Hop(7, ip6("fd00::9")),),
        ip6("fd00::1"),
        1280,
        False,
        True,
    )
    for other in (body(32, table=77), body(32, flags=0x200), body(24, family=socket.AF_INET), body(200)):
        assert decoded(message(rtnetlink.RTM_NEWROUTE, other, (4, word(7)))) is None
    hops = struct.pack("=HBBi", 8, 0x1, 0, 7) + struct.pack("=HBBi", 28, 0, 0, 8)
    hops += struct.pack("=HH", 20, 5) + ip6("fd00::8")
    several = decoded(message(rtnetlink.RTM_DELROUTE, body(0), (9, hops)))
    assert isinstance(several, RouteMessage) and not several.new
    assert several.hops == (Hop(7, bytes(16), dead=True), Hop(8, ip6("fd00::8")))


def test_malformed_messages_are_refused_or_end_the_datagram() -> None:
    good = neighbour_message(0x80)
    assert [e.type for e in rtnetlink.split(good + good)] == [rtnetlink.RTM_NEWNEIGH] * 2
    assert len(list(rtnetlink.split(good + good[:-1]))) == 1
    assert list(rtnetlink.split(b"")) == list(rtnetlink.split(good[:15])) == []
    for length in (0, 15, len(good) + 1, 0xFFFFFFFF):
        assert list(rtnetlink.split(struct.pack("=I", length) + good[4:])) == []
    for kind in (16, 17, 20, 21, 24, 25, 28, 29, 32, 33):
        (short,) = rtnetlink.split(message(kind, b"\x0a\0\0\0"))
        with pytest.raises(NetlinkError, match=f"type {kind}"):
            rtnetlink.decode(short, 7)
    # Every length an attribute may claim: an answer or our own error, and never for ever.
    for length in (*range(64), 255, 65535):
        data = bytearray(good)
        struct.pack_into("=H", data, 16 + 12, length)
        try:
            decoded(bytes(data))
        except NetlinkError:
            pass


def route_of(text: str, *hops: Hop, **changes: Any) -> RouteMessage:
    base = RouteMessage(True, 254, *key(text), 0, 1, 1024, 0, hops or (Hop(7, ip6("fd00::9")),), bytes(16), 0,
                        False, False)  # fmt: skip
    return replace(base, **changes)


def chosen(*candidates: RouteMessage, mtu: int = 1500, limit: int = 256) -> dict[Prefix, Route]:
    table = RouteTable()
    for candidate in candidates:
        table.add(candidate)
    selection = Selection(7, limit)
    selection.renew(table.slots, mtu)
    return selection.told()[0]


def test_which_route_is_told() -> None:
    wide, there = key("fd10::/32"), Hop(8, ip6("fd08::9"))
    ours = Route(*wide, ip6("fd00::9"), ours=True, mtu=1500)

    def one(*candidates: RouteMessage) -> Route | None:
        return chosen(*candidates).get(wide)

    assert one(route_of("fd10::/32")) == ours
    assert one(route_of("fd10::/32", there)) == Route(*wide)
    assert one(route_of("fd10::/32", there, metric=10), route_of("fd10::/32")) == Route(*wide)
    assert one(route_of("fd10::/32", metric=10), route_of("fd10::/32", there)) == ours
    assert one(route_of("fd10::/32", there), route_of("fd10::/32")) == ours  # Equal ones: ours will do.
    assert one(route_of("fd10::/32", preference=3), route_of("fd10::/32", there)) == Route(*wide)
    assert one(route_of("fd10::/32", preference=1), route_of("fd10::/32", there)) == ours
    assert one(route_of("fd10::/32", replace(there, dead=True), metric=1), route_of("fd10::/32")) == ours
    assert one(route_of("fd10::/32", Hop(7, bytes(16), dead=True))) is None
    assert one(route_of("fd10::/32"), route_of("fd10::/32", source_bits=64)) == Route(*wide)
    assert one(route_of("fd10::/32", tunnel=True)) == Route(*wide)
    assert one(route_of("fd10::/32", Hop(0, bytes(16)))) == Route(*wide)
    # Table local comes before any metric.
    assert one(route_of("fd10::/32", metric=1), route_of("fd10::/32", table=255, kind=2)) == Route(*wide)


def test_link_local_routes_of_other_interfaces_have_no_say() -> None:
    link = key("fe80::/64")
    both = (route_of("fe80::/64", Hop(8, bytes(16)), metric=1), route_of("fe80::/64", Hop(7, bytes(16))))
    assert chosen(*both)[link] == Route(*link, ours=True, mtu=1500)
    assert chosen(both[0]) == {}


def test_mtu_of_routes() -> None:
    def mtu(route: int, link: int) -> int:
        return chosen(route_of("fd10::/32", mtu=route), mtu=link)[key("fd10::/32")].mtu

    assert [mtu(0, 1500), mtu(1280, 1500), mtu(9000, 1500), mtu(1280, 0), mtu(0, 0), mtu(0, 65536)] == [
        1500, 1280, 1500, 1280, 0, 65535,
    ]  # fmt: skip


def test_the_most_specific_are_told_and_never_a_cover_without_its_exceptions() -> None:
    routes = [route_of("::/0"), *(route_of(f"fd10:{i:x}::/32", Hop(8, bytes(16))) for i in range(300))]
    told = chosen(*routes)
    assert len(told) == 256 and key("::/0") not in told  # It would take what the 44 others are for.
    assert key("::/0") in chosen(*routes[:256])
    # By an interface that is not ours anyway: what the socket path takes without being told gives way.
    told = chosen(*routes[1:], route_of("fd00::/8", Hop(8, bytes(16))), route_of("2001:db8::/32"))
    assert set(told) == {key("2001:db8::/32")}
    # Ours come first where order is free.
    told = chosen(*routes, route_of("fe00::/32"))
    assert key("fe00::/32") in told and len(told) == 256


def test_a_route_goes_before_its_exceptions_and_comes_after_them() -> None:
    sink = Recorder()
    view = View(7, sink)
    pair = route_of("::/0"), route_of("fd10::/32", Hop(8, bytes(16)))
    for new in (True, False):
        for event in pair:
            view.learn(replace(event, new=new))
        view.flush()
    assert [(told.bits, told.gone) for told in sink.told if isinstance(told, Route)] == [
        (32, False), (0, False), (0, True), (32, True),
    ]  # fmt: skip


def test_small_changes_come_to_the_same_as_all_anew() -> None:
    """Thousands of random events: what was told by differences is what a fresh view would tell."""
    random = Random(3)
    prefixes = ["::/0", "fd00::/8", "fd10::/16", "fd10::/32", "fd10:0:1::/48", "fd10:0:1::7/128", "fe80::/64"]
    sink = Recorder()
    view = View(7, sink, max_routes=5)
    table = RouteTable()
    events: list[RouteMessage] = []
    bounded: set[bool] = set()
    for step in range(3000):
        if events and random.random() < 0.45:
            event = replace(events.pop(random.randrange(len(events))), new=False)
        else:
            hop = random.choice((Hop(7, ip6("fd00::9")), Hop(7, bytes(16)), Hop(8, bytes(16))))
            event = route_of(
                random.choice(prefixes), hop,
                metric=random.choice((1, 2, 3)), table=random.choice((254, 254, 254, 255)),
            )  # fmt: skip
            if event in events:
                continue
            events.append(event)
        view.learn(event)
        table.apply(event)
        if random.random() < 0.5:
            view.flush()
            fresh = Selection(7, 5)
            fresh.renew(table.slots, 0)
            assert sink.routes == fresh.told()[0], step
            bounded.add(view.routes_left_out > 0)
    assert bounded == {True, False}


def test_route_events_that_do_not_say_all() -> None:
    here, there = Hop(7, ip6("fd00::9")), Hop(8, ip6("fd08::9"))
    table = RouteTable()
    assert table.apply(route_of("fd10::/32", here))
    assert table.apply(route_of("fd10::/32", here))  # Told again: still one.
    assert len(table.slots) == 1 and len(next(iter(table.slots.values()))) == 1
    assert table.apply(route_of("fd10::/32", here, there))  # Appended to: one of two ways.
    assert len(next(iter(table.slots.values()))) == 1
    assert not table.apply(route_of("fd10::/32", here, new=False))
    assert table.apply(route_of("fd10::/32", here, there, new=False))
    assert table.slots == {}
    assert table.apply(route_of("fd10::/32", new=False))  # Not known: nothing to do.
    table.apply(route_of("fd10::/32", metric=5))
    table.apply(route_of("fd10::/32", metric=6))
    assert table.apply(route_of("fd10::/32", there, metric=6, replace=True))
    assert [c.hops for c in next(iter(table.slots.values()))] == [(here,), (there,)]


def test_the_view_is_bounded() -> None:
    sink = Recorder()
    view = View(7, sink)
    view.learn(LinkMessage(7, 0x41, False, True, "eth0", 1500, bytes(6)))
    for i in range(MAX_ADDRESSES + 50):
        view.learn(AddressMessage(8, ip6(f"fd00::{i:x}"), 0, True))
    view.learn(AddressMessage(7, ip6("fd99::1"), 0, True))
    for i in range(20000):
        view.learn(NeighbourMessage(7, b"\xfd" + bytes(11) + i.to_bytes(4, "big"), STRANGER))
        view.learn(route_of("::/0", metric=i))
    for i in range(20000):
        view.learn(replace(route_of("::/0"), prefix=b"\x20" + i.to_bytes(5, "big") + bytes(10), bits=48))
    view.flush()
    assert len(sink.addresses) == MAX_ADDRESSES and ip6("fd99::1") in sink.addresses
    assert len(sink.neighbours) == 4096 and len(sink.routes) == 256
    counts = view.counters()
    assert counts["addresses_left_out"] == 51
    assert counts["neighbours_left_out"] == 20000 - 4096
    assert counts["routes_left_out"] > 0
    assert len(view.notes) == 3
    told = len(sink.told)
    view.flush()
    assert len(sink.told) == told  # Nothing new, nothing told.


def test_the_host_itself_can_be_asked() -> None:
    """No namespace and no root: what this machine has for ::1."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("IPv6 is off here")
    assert rtnetlink.interface_of("::1") == socket.if_nametoindex("lo")
    assert rtnetlink.interface_of("fd00:dead:beef::1234:5678") is None
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        rtnetlink.interface_of("127.0.0.1")

"""KernelTables against the tables of a real kernel, in namespaces."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane import rtnetlink
from dataplane.kernel_routes import Prefix, Route
from dataplane.kernel_tables import KernelTables, Link, Neighbour, NetlinkError
from dataplane.rtnetlink import Dump
from tests.netns import Link as Veth
from tests.netns import Network

SECONDS = 30.0  # Nothing here takes so long unless it is broken; most of it is milliseconds.
STRANGER = b"\x02\x00\x00\x00\x00\x99"


def ip6(text: str) -> bytes:
    return ipaddress.IPv6Address(text).packed


def key(text: str) -> Prefix:
    network = ipaddress.IPv6Network(text)
    return network.network_address.packed, network.prefixlen


class Recorder:
    """A sink: everything told, in order, and what it amounts to."""

    def __init__(self) -> None:
        self.told: list[Route | Neighbour | Link | tuple[bytes, bool]] = []
        self.routes: dict[Prefix, Route] = {}
        self.neighbours: dict[bytes, bytes] = {}
        self.addresses: set[bytes] = set()
        self.state: Link | None = None
        self._changed = asyncio.Event()

    def route(self, route: Route) -> None:
        if route.gone:
            del self.routes[route.prefix, route.bits]  # Never told of what it does not have.
        else:
            self.routes[route.prefix, route.bits] = route
        self._note(route)

    def neighbour(self, neighbour: Neighbour) -> None:
        if neighbour.gone:
            del self.neighbours[neighbour.ip]
        else:
            self.neighbours[neighbour.ip] = neighbour.link
        self._note(neighbour)

    def address(self, packed: bytes, present: bool) -> None:
        assert present is (packed not in self.addresses)
        self.addresses.symmetric_difference_update({packed})
        self._note((packed, present))

    def link(self, link: Link) -> None:
        self.state = link
        self._note(link)

    def _note(self, what: Route | Neighbour | Link | tuple[bytes, bool]) -> None:
        self.told.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what is told to make it true."""
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"not told in {SECONDS} s; the last things told: {self.told[-8:]}")


class Host:
    """Namespace a, whose eth0 (towards b) the tables are for; eth1 leads to b as well."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.space = network["a"]
        self.ifindex = self.space.call(lambda: socket.if_nametoindex("eth0"))
        self.other = self.space.call(lambda: socket.if_nametoindex("eth1"))

    def ip(self, command: str, label: str = "a") -> str:
        done = self.network[label].run(["ip", *command.split()], capture_output=True, text=True)
        assert done.returncode == 0, f"ip {command}: {done.stderr}"
        return str(done.stdout)

    def batch(self, commands: list[str]) -> None:
        done = self.space.run(
            ["ip", "-6", "-batch", "-"], input="\n".join(commands) + "\n", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def tables(self, sink: Recorder, *, receive_bytes: int = 1 << 20, **bounds: int) -> KernelTables:
        return KernelTables(
            self.ifindex,
            sink,
            open_socket=lambda: self.space.call(lambda: rtnetlink.open_socket(receive_bytes)),
            **bounds,
        )

    def kernel_routes(self) -> dict[Prefix, tuple[bool, bytes]]:
        """What iproute2 says: for each prefix, does its best route leave by eth0, and by which gateway.
        (Routes of one way only.)"""
        best: dict[Prefix, tuple[tuple[bool, int], bool, bytes]] = {}
        for table in ("local", "main"):
            for entry in json.loads(self.ip(f"-j -6 route show table {table}")):
                prefix = key("::/0" if entry["dst"] == "default" else entry["dst"])
                ours = (
                    entry.get("type", "unicast") == "unicast"
                    and entry.get("dev") == "eth0"
                    and prefix[0][0] != 0xFF
                )
                gateway = ip6(entry.get("gateway", "::")) if ours else bytes(16)
                candidate = ((table == "main", entry.get("metric", 0)), ours, gateway)
                if prefix not in best or candidate[0] < best[prefix][0]:
                    best[prefix] = candidate
        return {prefix: (ours, gateway) for prefix, (_, ours, gateway) in best.items()}


def told_routes(sink: Recorder) -> dict[Prefix, tuple[bool, bytes]]:
    return {prefix: (route.ours, route.gateway) for prefix, route in sink.routes.items()}


@pytest.fixture
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("not root: network namespaces cannot be made")
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: apt-get install iproute2 util-linux")
    with Network(("a", "b"), (Veth("a", "b"), Veth("a", "b"))) as network:
        yield Host(network)


def follow(host: Host, test: Callable[[KernelTables, Recorder], Awaitable[None]], **options: int) -> Recorder:
    """Run `test` while the tables are followed."""

    async def main() -> Recorder:
        sink = Recorder()
        async with host.tables(sink, **options) as tables:
            await test(tables, sink)
            assert tables.counters()["sink_errors"] == 0
        return sink

    return asyncio.run(main())


def test_all_is_told_at_the_start(host: Host) -> None:
    host.ip("-6 route add fd10::/32 via fd00:1::2")
    host.ip("-6 route add default via fd00:2::2")
    host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")

    async def test(tables: KernelTables, sink: Recorder) -> None:
        assert told_routes(sink) == host.kernel_routes()
        assert sink.routes[key("fd10::/32")] == Route(
            *key("fd10::/32"), ip6("fd00:1::2"), ours=True, mtu=1500
        )
        assert sink.routes[key("::/0")] == Route(*key("::/0"))
        assert sink.neighbours == {ip6("fd00:1::2"): STRANGER}
        assert sink.addresses == {ip6("fd00:1::1"), ip6("fd00:2::1")}
        assert sink.state is not None and sink.state.ifindex == host.ifindex
        assert (sink.state.name, sink.state.mtu, sink.state.up) == ("eth0", 1500, True)
        link = json.loads(host.ip("-j link show dev eth0"))[0]["address"]
        assert sink.state.address == bytes.fromhex(link.replace(":", ""))
        assert tables.routes == tuple(sink.routes[prefix] for prefix in map(prefix_of, tables.routes))
        assert tables.notes == []

    follow(host, test)


def prefix_of(route: Route) -> Prefix:
    return route.prefix, route.bits


def test_routes_are_followed(host: Host) -> None:
    wide = key("fd10::/32")

    async def test(tables: KernelTables, sink: Recorder) -> None:
        async def change(command: str, expected: Route | None, prefix: Prefix = wide) -> None:
            host.ip(f"-6 route {command}")
            await sink.until(lambda: sink.routes.get(prefix) == expected)
            assert told_routes(sink) == host.kernel_routes()

        ours = Route(*wide, ip6("fd00:1::2"), ours=True, mtu=1500)
        await change("add fd10::/32 via fd00:1::2 metric 50", ours)
        await change("add fd10::/32 via fd00:2::2 metric 20", Route(*wide))
        await change("del fd10::/32 metric 20", ours)
        await change("add fd10::/32 via fd00:1::9 metric 30", replace(ours, gateway=ip6("fd00:1::9")))
        await change("del fd10::/32 metric 30", ours)
        await change(
            "replace fd10::/32 via fd00:1::3 metric 50 mtu 1400 src fd00:1::1",
            Route(*wide, ip6("fd00:1::3"), ip6("fd00:1::1"), ours=True, mtu=1400),
        )
        await change("replace blackhole fd10::/32 metric 10", Route(*wide))
        await change("del blackhole fd10::/32 metric 10 dev lo", replace(
            ours, gateway=ip6("fd00:1::3"), source=ip6("fd00:1::1"), mtu=1400))  # fmt: skip
        await change("del fd10::/32 metric 50", None)
        for kind in ("unreachable", "prohibit", "blackhole"):
            await change(f"add {kind} fd11::/64", Route(*key("fd11::/64")), key("fd11::/64"))
            await change(f"del {kind} fd11::/64 dev lo", None, key("fd11::/64"))
        assert tables.counters()["overruns"] == 0
        assert sink.routes[key("ff00::/8")] == Route(*key("ff00::/8"))

    follow(host, test)


def test_a_worse_route_beside_is_not_told(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.ip("-6 route add fd10::/32 via fd00:1::2 metric 50")
        host.ip("-6 route add fd10::/32 via fd00:2::2 metric 60")
        host.ip("-6 route add fd12::/32 via fd00:1::2")
        await sink.until(lambda: key("fd12::/32") in sink.routes)
        about = [
            told for told in sink.told if isinstance(told, Route) and prefix_of(told) == key("fd10::/32")
        ]
        assert about == [Route(*key("fd10::/32"), ip6("fd00:1::2"), ours=True, mtu=1500)]

    follow(host, test)


def test_of_several_ways_ours_is_taken(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        wide = key("fd10::/32")
        host.ip("-6 route add fd10::/32 nexthop via fd00:2::2 nexthop via fd00:1::2")
        ours = Route(*wide, ip6("fd00:1::2"), ours=True, mtu=1500)
        await sink.until(lambda: sink.routes.get(wide) == ours)
        # The event of a member's end does not say what is left: a dump has to.
        host.ip("-6 route del fd10::/32 nexthop via fd00:1::2")
        await sink.until(lambda: sink.routes.get(wide) == Route(*wide))
        host.ip("-6 route append fd10::/32 via fd00:1::7")
        await sink.until(lambda: sink.routes.get(wide) == replace(ours, gateway=ip6("fd00:1::7")))
        host.ip("-6 route del fd10::/32")  # All of them.
        await sink.until(lambda: wide not in sink.routes)
        assert told_routes(sink) == host.kernel_routes()

    follow(host, test)


def test_a_way_that_lookups_cannot_know_is_the_socket_paths(host: Host) -> None:
    """By source, by tunnel, by policy rule, by a local prefix."""

    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.ip("-6 route add fd10::/32 via fd00:1::2 from fd00:1::/64")
        await sink.until(lambda: sink.routes.get(key("fd10::/32")) == Route(*key("fd10::/32")))
        assert any("by source" in note for note in tables.notes)
        host.ip("-6 route add fd12::/32 encap seg6 mode encap segs fd00:1::2 dev eth0")
        await sink.until(lambda: sink.routes.get(key("fd12::/32")) == Route(*key("fd12::/32")))
        host.ip("-6 rule add from fd00:9::/64 lookup 77")
        host.ip("-6 route add fd13::/32 via fd00:1::2 table 77")
        host.ip("-6 route add fd14:0:1::/64 via fd00:1::2")
        await sink.until(lambda: key("fd14:0:1::/64") in sink.routes)
        assert key("fd13::/32") not in sink.routes
        host.ip("-6 route add local fd14::/32 dev lo table local")
        await sink.until(lambda: sink.routes.get(key("fd14::/32")) == Route(*key("fd14::/32")))
        assert key("fd14:0:1::/64") not in sink.routes  # The kernel never comes to it.
        host.ip("-6 route del local fd14::/32 dev lo table local")
        await sink.until(lambda: key("fd14:0:1::/64") in sink.routes and key("fd14::/32") not in sink.routes)
        await noted(
            tables, lambda: "policy rule '32765: from fd00:9::/64 lookup 77'" in " ".join(tables.notes)
        )

    follow(host, test)


async def noted(tables: KernelTables, condition: Callable[[], bool]) -> None:
    """Wait for something that the sink is not told: looked at after each turn of the loop."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def test_neighbours_are_followed(host: Host) -> None:
    peer = ip6("fd00:1::2")

    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.ip(f"neigh add fd00:2::2 lladdr {STRANGER.hex(':')} dev eth1 nud permanent")
        host.ip("neigh add proxy fd00:1::44 dev eth0")
        host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
        await sink.until(lambda: sink.neighbours == {peer: STRANGER})
        host.ip("neigh change fd00:1::2 lladdr 02:00:00:00:00:98 dev eth0 nud permanent")
        await sink.until(lambda: sink.neighbours == {peer: STRANGER[:5] + b"\x98"})
        for state in ("stale", "reachable", "noarp", "delay", "probe"):
            host.ip(f"neigh add fd00:1::50 lladdr {STRANGER.hex(':')} dev eth0 nud {state}")
            await sink.until(lambda: ip6("fd00:1::50") in sink.neighbours)
            host.ip("neigh del fd00:1::50 dev eth0")
            await sink.until(lambda: ip6("fd00:1::50") not in sink.neighbours)
        host.ip("neigh change fd00:1::2 dev eth0 nud failed")
        await sink.until(lambda: sink.neighbours == {})

    sink = follow(host, test)
    assert ip6("fd00:2::2") not in {told.ip for told in sink.told if isinstance(told, Neighbour)}


def test_a_neighbour_that_the_kernel_resolves_is_told(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        assert sink.neighbours == {}

        def send() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("fd00:1::2", 9))
                sock.sendto(b"x", ("fd00:1::dead", 9))

        host.space.call(send)
        link = json.loads(host.ip("-j link show dev eth0", "b"))[0]["address"]
        expected = {ip6("fd00:1::2"): bytes.fromhex(link.replace(":", ""))}
        await sink.until(lambda: sink.neighbours == expected)
        # The peer goes: the kernel's entry fails in the end, here at once by its link's end.
        host.ip("link set eth0 down", "b")
        await sink.until(lambda: sink.neighbours == {})

    follow(host, test)


def test_addresses_are_followed(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        before = set(sink.addresses)
        host.ip("addr add fd00:1::21/64 dev eth0 nodad")
        host.ip("addr add fe80::21/64 dev eth0 nodad")
        host.ip("addr add fe80::22/64 dev eth1 nodad")  # Reached by eth1 only.
        host.ip("addr add fd77::1/128 dev lo")
        host.ip("addr add fd00:1::21/64 dev eth1 nodad")
        new = {ip6("fd00:1::21"), ip6("fe80::21"), ip6("fd77::1")}
        await sink.until(lambda: sink.addresses == before | new)
        host.ip("addr del fd00:1::21/64 dev eth0")  # eth1 has it still.
        host.ip("addr del fd77::1/128 dev lo")
        await sink.until(lambda: sink.addresses == (before | new) - {ip6("fd77::1")})
        host.ip("addr del fd00:1::21/64 dev eth1")
        host.ip("addr del fe80::21/64 dev eth0")
        await sink.until(lambda: sink.addresses == before)

    sink = follow(host, test)
    told = [told[0] for told in sink.told if isinstance(told, tuple)]
    assert ip6("fe80::22") not in told and ip6("::1") not in told


def test_an_address_is_told_when_it_is_known_to_be_unique(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.ip("addr add fd00:1::21/64 dev eth0")
        shown = json.loads(host.ip("-j -6 addr show dev eth0 tentative"))
        assert "fd00:1::21" in json.dumps(shown), "duplicate address detection is off here"
        host.ip("addr add fd00:1::22/64 dev eth0 nodad")
        await sink.until(lambda: ip6("fd00:1::22") in sink.addresses)
        assert ip6("fd00:1::21") not in sink.addresses
        await sink.until(lambda: ip6("fd00:1::21") in sink.addresses)

    follow(host, test)


def test_the_link_is_followed(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        first = sink.state
        assert first is not None and first.up
        host.ip("link set eth0 mtu 1300")
        await sink.until(lambda: sink.state == replace(first, mtu=1300))
        await sink.until(lambda: sink.routes[key("fd00:1::/64")].mtu == 1300)
        host.ip("link set eth0 address 02:00:00:00:00:99")
        await sink.until(lambda: sink.state == replace(first, mtu=1300, address=STRANGER))
        host.ip("-6 route add fd10::/32 via fd00:1::2")
        host.ip("link set eth0 down", "b")  # The carrier goes.
        await sink.until(lambda: sink.state is not None and not sink.state.up)
        host.ip("link set eth0 up", "b")
        await sink.until(lambda: sink.state is not None and sink.state.up)
        host.ip("link set eth0 down")
        await sink.until(lambda: key("fd10::/32") not in sink.routes)
        await sink.until(lambda: ip6("fd00:1::1") not in sink.addresses)
        assert sink.state is not None and not sink.state.up
        assert told_routes(sink) == host.kernel_routes()
        host.ip("link del eth0")
        await sink.until(lambda: sink.state is not None and sink.state.gone)
        assert sink.state is not None and sink.state.name == "eth0" and not sink.state.up

    follow(host, test)


def test_routes_that_a_lost_carrier_takes_out_of_use(host: Host) -> None:
    """The kernel does not say which: it has to be asked."""
    setting = Path("/proc/sys/net/ipv6/conf/eth1/ignore_routes_with_linkdown")
    host.space.call(lambda: setting.write_text("1"))
    host.ip("-6 route add fd10::/32 via fd00:2::2 metric 10")
    host.ip("-6 route add fd10::/32 via fd00:1::2 metric 20")

    async def test(tables: KernelTables, sink: Recorder) -> None:
        assert not sink.routes[key("fd10::/32")].ours
        host.ip("link set eth1 down", "b")
        await sink.until(lambda: sink.routes[key("fd10::/32")].ours)
        host.ip("link set eth1 up", "b")
        await sink.until(lambda: not sink.routes[key("fd10::/32")].ours)

    follow(host, test)


def test_after_an_overrun_the_mirror_is_the_kernels_table(host: Host) -> None:
    changes = [f"route add fd20:0:{i:x}::/48 via fd00:1::2" for i in range(1000)]
    changes += [f"route del fd20:0:{i:x}::/48 via fd00:1::2" for i in range(0, 1000, 10)]
    changes += [f"route replace fd20:0:{i:x}::/48 via fd00:1::3" for i in range(1, 1000, 10)]
    changes += [f"route add fd30:0:{i:x}::/48 via fd00:2::2" for i in range(800)]
    assert len(changes) == 2000

    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.batch(changes)  # The loop does not run meanwhile: the small buffer must overflow.
        host.ip("-6 route add fd40::/48 via fd00:1::2")
        expected = host.kernel_routes()
        assert len(expected) > 1700
        await sink.until(lambda: len(sink.routes) == len(expected) and told_routes(sink) == expected)
        assert tables.counters()["overruns"] >= 1
        # And events go on being followed.
        host.ip("-6 route del fd40::/48")
        await sink.until(lambda: key("fd40::/48") not in sink.routes)
        assert tables.counters()["routes_left_out"] == 0

    follow(host, test, receive_bytes=8192, max_routes=4096)


def test_a_start_amid_changes_ends_right(host: Host) -> None:
    """Events that come while the tables are dumped."""
    churn: list[str] = []
    for turn in range(40):
        verb = "del" if turn % 2 else "add"
        churn += [f"route {verb} fd20:0:{i:x}::/48 via fd00:1::2" for i in range(50)]
    churn += [f"route add fd20:0:{i:x}::/48 via fd00:1::2" for i in range(0, 50, 3)]
    churn.append("route add fd40::/48 via fd00:1::2")

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            *host.space.wrap(["ip", "-6", "-batch", "-"]), stdin=asyncio.subprocess.PIPE
        )
        writer = asyncio.create_task(process.communicate("\n".join(churn).encode()))
        sinks: list[tuple[Recorder, KernelTables]] = []
        expected: dict[Prefix, tuple[bool, bytes]] = {}
        while not writer.done() or not sinks:
            sink = Recorder()
            async with host.tables(sink) as tables:
                sinks.append((sink, tables))
                if len(sinks) == 1:
                    await sink.until(lambda: key("fd40::/48") in sinks[0][0].routes)
                    await writer
                    expected.update(host.kernel_routes())
                    await sink.until(lambda: told_routes(sinks[0][0]) == expected)
        assert process.returncode == 0
        assert sinks[0][1].counters()["events"] > 100

    asyncio.run(main())


def test_events_during_a_dump_are_not_undone_by_it(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        host.ip("-6 route add fd10::/48 via fd00:1::2")
        host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
        await sink.until(lambda: key("fd10::/48") in sink.routes and len(sink.neighbours) == 1)
        for dump in (Dump.MAIN_ROUTES, Dump.NEIGHBOURS, Dump.ADDRESSES):
            # The kernel answers the request at once, with the state of now; the end of the dump is read after
            # the events of what happens here.
            tables._wanted.add(dump)
            tables._start_run()
            host.ip("-6 route flush table main fd10::/48")
            host.ip("-6 route add fd11::/48 via fd00:1::2")
            host.ip("neigh del fd00:1::2 dev eth0")
            host.ip(f"neigh add fd00:1::3 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
            host.ip("addr add fd00:1::21/64 dev eth0 nodad")
            await noted(tables, lambda: tables._run is None)
            await sink.until(lambda: told_routes(sink) == host.kernel_routes())
            await sink.until(lambda: sink.neighbours == {ip6("fd00:1::3"): STRANGER})
            await sink.until(lambda: ip6("fd00:1::21") in sink.addresses)
            host.ip("-6 route add fd10::/48 via fd00:1::2")
            host.ip("-6 route del fd11::/48 via fd00:1::2")
            host.ip("neigh del fd00:1::3 dev eth0")
            host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
            host.ip("addr del fd00:1::21/64 dev eth0")
            await sink.until(lambda: ip6("fd00:1::21") not in sink.addresses)
            await sink.until(lambda: sink.neighbours == {ip6("fd00:1::2"): STRANGER})

    follow(host, test)


def test_a_dump_that_the_kernel_has_no_room_to_begin(host: Host) -> None:
    async def test(tables: KernelTables, sink: Recorder) -> None:
        # The socket is full when the dump is asked for, and nobody has seen it yet.
        host.batch([f"route add fd20:0:{i:x}::/48 via fd00:1::2" for i in range(11)])
        tables._wanted.add(Dump.MAIN_ROUTES)
        tables._start_run()
        expected = host.kernel_routes()
        await sink.until(lambda: told_routes(sink) == expected)
        host.ip("-6 route add fd40::/48 via fd00:1::2")
        await sink.until(lambda: key("fd40::/48") in sink.routes)

    follow(host, test, receive_bytes=8192)


def test_a_dump_whose_answer_is_lost_is_made_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.kernel_tables.STALL_SECONDS", 0.1)

    async def test(tables: KernelTables, sink: Recorder) -> None:
        tables._wanted.add(Dump.MAIN_ROUTES)
        tables._start_run()
        tables._sequence += 1  # As if what comes answered something else.
        host.ip("-6 route add fd10::/48 via fd00:1::2")
        await sink.until(lambda: key("fd10::/48") in sink.routes)
        await noted(tables, lambda: tables._run is None)
        assert told_routes(sink) == host.kernel_routes()

    follow(host, test)


def test_bounds(host: Host) -> None:
    host.batch([f"route add fd20:0:{i:x}::/48 via fd00:1::2" for i in range(40)])
    host.ip("-6 route add default via fd00:1::9")
    host.batch([f"neigh add fd00:1::{i:x} lladdr 02:00:00:00:01:{i:02x} dev eth0 nud permanent"
                for i in range(3, 40)])  # fmt: skip

    async def test(tables: KernelTables, sink: Recorder) -> None:
        everything = host.kernel_routes()
        assert len(sink.routes) == 16
        assert tables.counters()["routes_left_out"] == len(everything) - 16
        least = min(bits for _, bits in sink.routes)
        assert {prefix for prefix in everything if prefix[1] > least} <= set(sink.routes)
        assert any("routes did not fit" in note for note in tables.notes)
        assert len(sink.neighbours) == 8 and tables.counters()["neighbours_left_out"] == 29
        # A gateway comes first, whenever it comes: everything behind it depends on it.
        assert ip6("fd00:1::2") not in sink.neighbours
        host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
        await sink.until(lambda: ip6("fd00:1::2") in sink.neighbours and len(sink.neighbours) == 8)
        # Room is given to those that wait.
        host.batch([f"route del fd20:0:{i:x}::/48" for i in range(40)])
        await sink.until(lambda: told_routes(sink) == host.kernel_routes())
        host.batch([f"neigh del fd00:1::{i:x} dev eth0" for i in range(3, 36)])
        await sink.until(lambda: set(sink.neighbours) == {ip6(f"fd00:1::{i:x}") for i in (2, 36, 37, 38, 39)})
        assert tables.counters()["routes_left_out"] == tables.counters()["neighbours_left_out"] == 0

    sink = follow(host, test, max_routes=16, max_neighbours=8)
    # Never more than fits at any moment: what goes makes room first.
    for kind, bound in ((Route, 16), (Neighbour, 8)):
        there: set[object] = set()
        for told in sink.told:
            if isinstance(told, kind) and isinstance(told, Route | Neighbour):
                identity = prefix_of(told) if isinstance(told, Route) else told.ip
                (there.discard if told.gone else there.add)(identity)
                assert len(there) <= bound
        assert there


def test_interfaces_are_found(host: Host) -> None:
    def find(address: str) -> int | None:
        return host.space.call(lambda: rtnetlink.interface_of(address))

    assert host.space.call(rtnetlink.default_interface) is None
    host.ip("-6 route add default via fd00:2::2 metric 50")
    host.ip("-6 route add default via fd00:1::2 metric 60")
    assert host.space.call(rtnetlink.default_interface) == host.other
    host.ip("-6 route del default via fd00:2::2")
    assert host.space.call(rtnetlink.default_interface) == host.ifindex
    assert (find("fd00:1::1"), find("fd00:2::1")) == (host.ifindex, host.other)
    assert find("fd00:1::2") is None
    host.ip("addr add fe80::1/64 dev eth0 nodad")
    host.ip("addr add fe80::1/64 dev eth1 nodad")
    assert (find("fe80::1%eth1"), find(f"fe80::1%{host.ifindex}")) == (host.other, host.ifindex)


def test_an_interface_that_is_not_there_is_refused(host: Host) -> None:
    host.ifindex = 4711

    async def test(tables: KernelTables, sink: Recorder) -> None:
        pytest.fail("entered")

    with pytest.raises(NetlinkError, match="no interface with index 4711"):
        follow(host, test)


def test_nothing_is_told_after_the_end(host: Host) -> None:
    async def main() -> None:
        sink, witness = Recorder(), Recorder()
        async with host.tables(witness):
            async with host.tables(sink) as tables:
                pass
            told = len(sink.told)
            host.ip("-6 route add fd10::/32 via fd00:1::2")
            await witness.until(lambda: key("fd10::/32") in witness.routes)
            assert len(sink.told) == told
            tables.close()  # Twice is fine.
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        async with host.tables(Recorder()):
            pass
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors

    asyncio.run(main())


def test_a_sink_that_fails_is_still_told_of_the_rest(host: Host) -> None:
    class Failing(Recorder):
        def neighbour(self, neighbour: Neighbour) -> None:
            raise RuntimeError("no room")

    async def main() -> None:
        sink = Failing()
        async with host.tables(sink) as tables:
            host.ip(f"neigh add fd00:1::2 lladdr {STRANGER.hex(':')} dev eth0 nud permanent")
            host.ip("-6 route add fd10::/32 via fd00:1::2")
            await sink.until(lambda: key("fd10::/32") in sink.routes)
            await noted(tables, lambda: tables.counters()["sink_errors"] == 1)

    asyncio.run(main())

"""Routes: the candidates of the kernel's tables local and main, and what of them a datapath is told.

The kernel chooses among candidates for one prefix by metric, preference and reachability, and looks into
table local first. A datapath knows one interface and no source addresses: what it is told of a prefix is the
way by its interface, or that the way is not by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dataplane import rtnetlink
from dataplane.rtnetlink import UNSPECIFIED, RouteMessage

MAX_ROUTES = 256  # What a worker's table holds.
# Known may be more than told, so that an entry that goes makes room for one that waits; of a host with more
# (a router with the Internet's tables) the most specific are kept.
KNOWN_ROUTES = 8192
MAX_CANDIDATES = 64  # For one prefix, by metric, source or way; the kernel dumps the lowest metric first.

_PREFERENCE_RANK = {1: 0, 0: 1, 3: 2}  # RFC 4191: high, medium, low.


@dataclass(frozen=True, slots=True)
class Route:
    """``struct io_route``. Of a route that is not ours the gateway, source and MTU are zero."""

    prefix: bytes
    bits: int
    gateway: bytes = UNSPECIFIED
    source: bytes = UNSPECIFIED
    ours: bool = False
    mtu: int = 0  # Bytes; 0: unknown.
    gone: bool = False


Prefix = tuple[bytes, int]
Slot = tuple[int, bytes, int]  # Table, prefix, bits: the candidates in one slot compete.
Slots = dict[Slot, list[RouteMessage]]


def _leading(ip: bytes, bits: int) -> int:
    """Its first `bits` bits."""
    return int.from_bytes(ip, "big") >> (128 - bits)


def _is_link_local(prefix: bytes, bits: int) -> bool:
    return bits >= 10 and prefix[0] == 0xFE and prefix[1] & 0xC0 == 0x80


def _rank(candidate: RouteMessage, ifindex: int) -> tuple[int, int, bool]:
    elsewhere = not any(hop.ifindex == ifindex and not hop.dead for hop in candidate.hops)
    return candidate.metric, _PREFERENCE_RANK.get(candidate.preference, 1), elsewhere


def _best(candidates: Iterable[RouteMessage], ifindex: int, mtu: int) -> Route | None:
    """What one prefix of one table comes to; None: nothing there is usable."""
    usable: list[RouteMessage] = []
    for candidate in candidates:
        hops = [hop for hop in candidate.hops if not hop.dead]
        if _is_link_local(candidate.prefix, candidate.bits):
            # The zone of a link-local destination is the interface: other interfaces' routes have no say.
            hops = [hop for hop in hops if hop.ifindex == ifindex]
        if hops:
            usable.append(candidate)
    if not usable:
        return None
    best = min(usable, key=lambda candidate: _rank(candidate, ifindex))
    route = Route(best.prefix, best.bits)
    if (
        best.kind != rtnetlink.RTN_UNICAST
        or best.tunnel
        or best.prefix[0] == 0xFF
        # A route for some sources only: lookups here know no source, the kernel's do.
        or any(candidate.source_bits for candidate in usable)
    ):
        return route
    hop = next((hop for hop in best.hops if hop.ifindex == ifindex and not hop.dead), None)
    if hop is None:
        return route
    limit = min(best.mtu or mtu, mtu or best.mtu, 65535)
    return Route(best.prefix, best.bits, hop.gateway, best.preferred_source, True, limit)


class Selection:
    """What each prefix comes to, and what of that is told."""

    def __init__(self, ifindex: int, limit: int = MAX_ROUTES) -> None:
        self._ifindex = ifindex
        self._limit = limit
        self._chosen: dict[Prefix, Route] = {}
        self._wide: dict[int, set[int]] = {}  # Of table local those that are no single address: by length.

    @property
    def fits(self) -> bool:
        """All of it is told."""
        return len(self._chosen) <= self._limit

    def update(self, slots: Slots, mtu: int, changed: Iterable[Prefix]) -> dict[Prefix, Route | None] | None:
        """What these prefixes come to now (None: nothing), or None if others are concerned as well."""
        result: dict[Prefix, Route | None] = {}
        for key in changed:
            prefix, bits = key
            local = (rtnetlink.RT_TABLE_LOCAL, prefix, bits) in slots
            if bits < 128 and local is not (_leading(prefix, bits) in self._wide.get(bits, ())):
                return None
            route = self._choose(slots, key, mtu)
            result[key] = route
            if route is None:
                self._chosen.pop(key, None)
            else:
                self._chosen[key] = route
        return result

    def renew(self, slots: Slots, mtu: int) -> None:
        """All of it anew."""
        self._wide = {}
        for table, prefix, bits in slots:
            if table == rtnetlink.RT_TABLE_LOCAL and bits < 128:
                self._wide.setdefault(bits, set()).add(_leading(prefix, bits))
        self._chosen = {}
        for key in {(prefix, bits) for _, prefix, bits in slots}:
            route = self._choose(slots, key, mtu)
            if route is not None:
                self._chosen[key] = route

    def told(self) -> tuple[dict[Prefix, Route], int]:
        """What is told, most specific first, and how many prefixes had to be left out.

        Of equally specific ones ours come first. A prefix that is not ours and in none that is needs no
        telling when room is short: without a route packets take the socket path as well.
        """
        keys = list(self._chosen)
        if not self.fits:
            ours: dict[int, set[int]] = {}
            for (prefix, bits), route in self._chosen.items():
                if route.ours:
                    ours.setdefault(bits, set()).add(_leading(prefix, bits))
            keys = [key for key in keys if self._chosen[key].ours or _within(*key, ours)]
        keys.sort(key=lambda key: (-key[1], not self._chosen[key].ours, key[0]))
        return {key: self._chosen[key] for key in keys[: self._limit]}, max(0, len(keys) - self._limit)

    def _choose(self, slots: Slots, key: Prefix, mtu: int) -> Route | None:
        prefix, bits = key
        # The kernel looks into table local first, whatever table main says: a route of main within a prefix
        # of local is never reached.
        local = slots.get((rtnetlink.RT_TABLE_LOCAL, prefix, bits))
        if local is not None and (route := _best(local, self._ifindex, mtu)) is not None:
            return route
        if _within(prefix, bits, self._wide):
            return None
        return _best(slots.get((rtnetlink.RT_TABLE_MAIN, prefix, bits), ()), self._ifindex, mtu)


def _within(prefix: bytes, bits: int, outer: dict[int, set[int]]) -> bool:
    """Is it part of a larger one of these?"""
    return any(bits > length and _leading(prefix, length) in heads for length, heads in outer.items())


class RouteTable:
    """The candidates of both tables, bounded."""

    def __init__(self, slots: Slots | None = None) -> None:
        self.slots: Slots = dict(slots or {})
        self.dropped = 0  # What the bounds cost since the last dump.

    def apply(self, event: RouteMessage) -> bool:
        """Take an event. False: it does not say enough, the table has to be dumped."""
        slot = (event.table, event.prefix, event.bits)
        candidates = self.slots.get(slot, [])
        rivals = [c for c in candidates if c.metric == event.metric and c.source_bits == event.source_bits]
        same = [c for c in rivals if c.kind == event.kind and _ways(c) == _ways(event)]
        sure = not self.dropped
        if not event.new:
            if not same:  # Unknown, or a member of a multipath route.
                return sure and not rivals
            candidates.remove(same[0])
            if not candidates:
                del self.slots[slot]
            return sure
        if event.replace or len(event.hops) > 1:
            # A multipath route's event has all its members, of which each may have been a candidate before.
            sure = sure and len(rivals) <= 1
            replaced = rivals
        else:
            replaced = same
        kept = [c for c in candidates if c not in replaced]
        if replaced:
            kept.insert(min(candidates.index(c) for c in replaced), event)
        elif len(kept) < MAX_CANDIDATES:
            kept.append(event)
        else:
            self.dropped += 1
        self.slots[slot] = kept
        if len(self.slots) > 2 * KNOWN_ROUTES:
            self.trim()
        return sure and not self.dropped

    def add(self, entry: RouteMessage) -> None:
        """Take an entry of a dump."""
        slot = (entry.table, entry.prefix, entry.bits)
        candidates = self.slots.setdefault(slot, [])
        if len(candidates) < MAX_CANDIDATES:
            candidates.append(entry)
        else:
            self.dropped += 1
        if len(self.slots) > 2 * KNOWN_ROUTES:
            self.trim()

    def trim(self) -> None:
        """Back within the bound: table local and the most specific stay."""
        excess = len(self.slots) - KNOWN_ROUTES
        if excess > 0:
            order = sorted(self.slots, key=lambda slot: (slot[0] == rtnetlink.RT_TABLE_LOCAL, slot[2]))
            for slot in order[:excess]:
                del self.slots[slot]
            self.dropped += excess


def _ways(route: RouteMessage) -> list[tuple[int, bytes]]:
    return sorted((hop.ifindex, hop.gateway) for hop in route.hops)

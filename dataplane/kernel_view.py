"""What an AF_XDP datapath is told of the kernel's tables: what is known of them, and what of that is told.

*Known* mirrors the kernel: every candidate route of tables main and local, every usable neighbour of the
interface, every usable address of the host. *Told* is derived from it and is what the sink was given: of
equal prefixes the best route only, most specific first, bounded. What does not fit among the routes is less
specific than all that is told, so a lookup either finds the right route or none, and without a route packets
take the socket path. Nothing here talks to the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dataplane import rtnetlink
from dataplane.kernel_routes import MAX_ROUTES, Prefix, Route, RouteTable, Selection
from dataplane.rtnetlink import (
    AddressMessage,
    LinkMessage,
    Message,
    NeighbourMessage,
    RouteMessage,
)

log = logging.getLogger("stoq.kernel_tables")

MAX_NEIGHBOURS = 4096  # What a worker's table holds.
MAX_ADDRESSES = 1024
KNOWN_NEIGHBOURS = 16384
KNOWN_ADDRESSES = 4096  # And interfaces.

_DEFAULT_RULES = frozenset({"0: from all lookup 255", "32766: from all lookup 254"})
_LINK_UP = rtnetlink.IFF_UP | rtnetlink.IFF_RUNNING  # The flags that routes depend on.


@dataclass(frozen=True, slots=True)
class Neighbour:
    """``struct io_neighbour``."""

    ip: bytes
    link: bytes
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """The interface. `mtu` in bytes, IPv6's where that is smaller; `address` is zero where it has none."""

    ifindex: int
    name: str
    mtu: int
    address: bytes
    up: bool
    gone: bool = False


class Sink(Protocol):
    """Who is told. Upserts: a route or neighbour told again replaces what was told of its prefix or IP."""

    def route(self, route: Route) -> None: ...

    def neighbour(self, neighbour: Neighbour) -> None: ...

    def address(self, packed: bytes, present: bool) -> None: ...

    def link(self, link: Link) -> None: ...


class View:
    """See the module's text. `learn` what the kernel says, then `flush`."""

    def __init__(
        self, ifindex: int, sink: Sink, *, max_routes: int = MAX_ROUTES, max_neighbours: int = MAX_NEIGHBOURS
    ) -> None:
        self.ifindex = ifindex
        self.closed = False  # Nothing more is told.
        self._sink = sink
        self._selection = Selection(ifindex, max_routes)
        self._max_neighbours = max_neighbours
        # Known.
        self._routes = RouteTable()
        self._neighbours: dict[bytes, bytes] = {}
        self._neighbours_dropped = 0  # What the bound of known cost since the last dump.
        self._addresses: dict[tuple[int, bytes], bool] = {}  # True: the interface's own.
        self._link: LinkMessage | None = None
        self._flags: dict[int, int] = {}  # Of each interface that events were about since the last dump.
        self._rules: frozenset[str] = _DEFAULT_RULES
        # Told.
        self._told_routes: dict[Prefix, Route] = {}
        self._told_neighbours: dict[bytes, bytes] = {}
        self._told_addresses: set[bytes] = set()
        self._told_link: Link | None = None
        # What may have changed since; None: anything.
        self._routes_changed: set[Prefix] | None = set()
        self._neighbours_changed: set[bytes] | None = set()
        self._addresses_changed = False
        self.routes_left_out = self.neighbours_left_out = self.addresses_left_out = 0
        self.sink_errors = 0
        self._fitted = False  # All chosen routes are told.

    # ---- what is known ----

    def forget_neighbours(self) -> None:
        """A dump of them follows."""
        self._neighbours = {}
        self._neighbours_dropped = 0
        self._neighbours_changed = None

    def forget_addresses(self) -> None:
        """A dump of them follows."""
        self._addresses = {}
        self._addresses_changed = True

    def forget_links(self) -> None:
        """A dump of them follows. If ours is not in it, it is gone."""
        self._flags = {}
        self.learn(LinkMessage(self.ifindex, 0, gone=True, full=True))

    def replace_routes(self, routes: RouteTable) -> None:
        """By those of a dump of both tables."""
        routes.trim()
        self._routes = routes
        self._routes_changed = None

    def replace_rules(self, rules: frozenset[str]) -> None:
        """By those of a dump."""
        self._rules = rules

    def link_turned(self, message: LinkMessage) -> bool:
        """May this event, about any interface, put routes into or out of use? By events only: a dump may have
        the flags already while the routes' own are still being changed."""
        flags = 0 if message.gone else message.flags & _LINK_UP
        turned = self._flags.get(message.ifindex) != flags
        if message.gone:
            self._flags.pop(message.ifindex, None)
        elif turned and (message.ifindex in self._flags or len(self._flags) < KNOWN_ADDRESSES):
            self._flags[message.ifindex] = flags
        return turned

    def learn(self, message: Message) -> bool:
        """Put it into what is known. False: it does not say enough (routes only)."""
        if isinstance(message, RouteMessage):
            if self._routes_changed is not None:
                self._routes_changed.add((message.prefix, message.bits))
            sure = self._routes.apply(message)
            if not sure:
                self._routes_changed = None  # The bound may have cost others.
            return sure
        if isinstance(message, NeighbourMessage):
            self._learn_neighbour(message)
        elif isinstance(message, AddressMessage):
            self._learn_address(message)
        elif isinstance(message, LinkMessage) and message.full and message != self._link:
            if self._link is None or message.mtu != self._link.mtu:
                self._routes_changed = None  # Theirs too.
            self._link = message
        return True

    def _learn_neighbour(self, message: NeighbourMessage) -> None:
        if message.link is None:
            if self._neighbours.pop(message.ip, None) is None:
                return
        elif message.ip not in self._neighbours and len(self._neighbours) >= KNOWN_NEIGHBOURS:
            self._neighbours_dropped += 1
            return
        else:
            self._neighbours[message.ip] = message.link
        if self._neighbours_changed is not None:
            self._neighbours_changed.add(message.ip)

    def _learn_address(self, message: AddressMessage) -> None:
        key = (message.ifindex, message.ip)
        here = message.ifindex == self.ifindex
        # The host answers for an address on any of its interfaces (weak host model, RFC 1122 section
        # 3.3.4.2), unless its scope is a link or the host.
        if message.usable and (here or message.scope <= rtnetlink.RT_SCOPE_SITE):
            if key not in self._addresses and (here or len(self._addresses) < KNOWN_ADDRESSES):
                self._addresses[key] = here
                self._addresses_changed = True
        elif self._addresses.pop(key, None) is not None:
            self._addresses_changed = True

    # ---- what is told ----

    def _tell(self, tell: Callable[..., None], *what: object) -> None:
        if self.closed:  # By the sink, perhaps.
            return
        try:
            tell(*what)
        except Exception:  # A defect of the sink's must not end what keeps it fresh.
            self.sink_errors += 1
            log.exception("the datapath could not be told of a change")

    def flush(self) -> None:
        """Tell the differences."""
        if self._link is not None:
            self._flush_link(self._link)
        if self._addresses_changed:
            self._addresses_changed = False
            self._flush_addresses()
        if self._routes_changed != set():
            changed_routes, self._routes_changed = self._routes_changed, set()
            self._flush_routes(changed_routes)
        if self._neighbours_changed != set():
            changed, self._neighbours_changed = self._neighbours_changed, set()
            self._flush_neighbours(changed)

    def _flush_link(self, known: LinkMessage) -> None:
        link = Link(
            known.ifindex,
            known.name or (self._told_link.name if self._told_link is not None else ""),
            known.mtu,
            known.address or bytes(6),
            known.flags & _LINK_UP == _LINK_UP and not known.gone,
            known.gone,
        )
        if link != self._told_link:
            self._told_link = link
            self._tell(self._sink.link, link)

    def _flush_addresses(self) -> None:
        # Our own first: those of other interfaces are the ones to do without.
        keys = sorted(self._addresses, key=lambda key: not self._addresses[key])
        wanted = list(dict.fromkeys(ip for _, ip in keys))
        self.addresses_left_out = max(0, len(wanted) - MAX_ADDRESSES)
        addresses = set(wanted[:MAX_ADDRESSES])
        for ip in sorted(self._told_addresses - addresses):
            self._tell(self._sink.address, ip, False)
        for ip in sorted(addresses - self._told_addresses):
            self._tell(self._sink.address, ip, True)
        self._told_addresses = addresses

    def _flush_routes(self, changed: set[Prefix] | None) -> None:
        mtu = self._link.mtu if self._link is not None else 0
        selection = self._selection
        few = selection.update(self._routes.slots, mtu, changed) if changed is not None else None
        if few is None:
            selection.renew(self._routes.slots, mtu)
        if few is None or not selection.fits or not self._fitted:
            routes, left_out = selection.told()
            few = dict.fromkeys(self._told_routes) | routes
            self.routes_left_out = left_out + self._routes.dropped
        self._fitted = selection.fits
        # What goes makes room first, the least specific before what it covers; what comes comes the other way
        # round.
        order = sorted(few, key=lambda key: key[1])
        for key in order:
            if few[key] is None and self._told_routes.pop(key, None) is not None:
                self._tell(self._sink.route, Route(*key, gone=True))
        for key in reversed(order):
            route = few[key]
            if route is not None and self._told_routes.get(key) != route:
                self._told_routes[key] = route
                self._tell(self._sink.route, route)
        if self._neighbours_full:
            self._neighbours_changed = None  # Gateways come first, and may be others now.

    @property
    def _neighbours_full(self) -> bool:
        return len(self._neighbours) > self._max_neighbours

    def _flush_neighbours(self, changed: set[bytes] | None) -> None:
        known, told = self._neighbours, self._told_neighbours
        if self._neighbours_full:
            # Gateways first: all that is not on the link goes by them. Then those told already, so that the
            # table does not churn.
            gateways = {route.gateway for route in self._told_routes.values() if route.ours}
            order = sorted(known, key=lambda ip: (ip not in gateways, ip not in told))
            wanted = {ip: known[ip] for ip in order[: self._max_neighbours]}
            changed = None
        else:
            wanted = known
            if self.neighbours_left_out:
                changed = None  # Those that waited.
        self.neighbours_left_out = len(known) - len(wanted) + self._neighbours_dropped
        if changed is None:
            changed = told.keys() | wanted.keys()
        for ip in changed:
            if ip not in wanted and (link := told.pop(ip, None)) is not None:
                self._tell(self._sink.neighbour, Neighbour(ip, link, gone=True))
        for ip in changed:
            if ip in wanted and told.get(ip) != wanted[ip]:
                told[ip] = wanted[ip]
                self._tell(self._sink.neighbour, Neighbour(ip, wanted[ip]))

    # ---- for people and tests ----

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those told, most specific first."""
        return tuple(sorted(self._told_routes.values(), key=lambda route: (-route.bits, route.prefix)))

    @property
    def neighbours(self) -> tuple[Neighbour, ...]:
        """Those told."""
        return tuple(Neighbour(ip, link) for ip, link in self._told_neighbours.items())

    @property
    def addresses(self) -> frozenset[bytes]:
        """Those told."""
        return frozenset(self._told_addresses)

    @property
    def link(self) -> Link | None:
        """As it was told."""
        return self._told_link

    def counters(self) -> dict[str, int]:
        """Entries told and left out now; refusals of the sink since the start."""
        return {
            "routes": len(self._told_routes),
            "neighbours": len(self._told_neighbours),
            "addresses": len(self._told_addresses),
            "routes_left_out": self.routes_left_out,
            "neighbours_left_out": self.neighbours_left_out,
            "addresses_left_out": self.addresses_left_out,
            "sink_errors": self.sink_errors,
        }

    @property
    def notes(self) -> list[str]:
        """What of the kernel's routing cannot be followed here, for a report."""
        notes = [
            f"policy rule {rule!r} is not followed: routes are looked up in tables local and main"
            for rule in sorted(self._rules - _DEFAULT_RULES)
        ]
        if missing := sorted(_DEFAULT_RULES - self._rules):
            notes.append(f"the default policy rules are changed: {', '.join(missing)} missing")
        by_source = sum(any(c.source_bits for c in slot) for slot in self._routes.slots.values())
        if by_source:
            notes.append(f"{by_source} prefixes have routes by source: the socket path takes them")
        unknown = sum(
            any(not hop.ifindex for c in slot for hop in c.hops) for slot in self._routes.slots.values()
        )
        if unknown:
            notes.append(
                f"{unknown} prefixes have a way that routes do not show (net.ipv4.nexthop_compat_mode=0, "
                "or a gateway that is not IPv6): the socket path takes them"
            )
        if self.routes_left_out:
            notes.append(
                f"the {self.routes_left_out} least specific routes did not fit: the socket path takes them"
            )
        if self.neighbours_left_out:
            notes.append(f"{self.neighbours_left_out} neighbours did not fit: the socket path takes them")
        if self.addresses_left_out:
            notes.append(f"{self.addresses_left_out} of the host's addresses did not fit")
        return notes

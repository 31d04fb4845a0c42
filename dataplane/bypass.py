"""What a datapath that goes past the kernel learns from it: the kernel's tables, told to workers and guard.

KernelTables ──route, neighbour──▶ a command to every worker of an AF_XDP datapath
             ──address──────────▶ the guard: at which addresses STOQ is served by its interface
             ──link─────────────▶ the log: an interface that goes away takes its queues with it
"""

from __future__ import annotations

import logging

from dataplane.errors import DatapathError
from dataplane.guard import Guard
from dataplane.kernel_tables import KernelTables, Link, Neighbour, Route
from dataplane.port import Port, lib
from dataplane.tables import Command

log = logging.getLogger("stoq.bypass")


class Bypass:
    """The sink of a datapath's KernelTables. `ports`: the workers that want to know ways."""

    def __init__(self, ports: list[Port], guard: Guard | None) -> None:
        self._ports = list(ports)
        self._guard = guard

    def tell_all(self, port: Port, tables: KernelTables) -> None:
        """A worker was added (again): all there is, and every change from now on."""
        if port not in self._ports:
            self._ports.append(port)
        for route in tables.routes:
            self._route(port, route)
        for neighbour in tables.neighbours:
            self._neighbour(port, neighbour)

    def route(self, route: Route) -> None:
        """A route came, changed, or went."""
        for port in self._ports:
            self._route(port, route)

    def neighbour(self, neighbour: Neighbour) -> None:
        """A neighbour's link-layer address came, changed, or went."""
        for port in self._ports:
            self._neighbour(port, neighbour)

    def _route(self, port: Port, route: Route) -> None:
        flags = (lib.STOQ_WAY_OURS if route.ours else 0) | (lib.STOQ_WAY_GONE if route.gone else 0)
        way = route.prefix + route.gateway + route.source
        port.put_way(Command.ROUTE, way, flags=flags, level=route.bits, mtu=route.mtu)

    def _neighbour(self, port: Port, neighbour: Neighbour) -> None:
        if len(neighbour.link) != 6 and not neighbour.gone:
            return  # No Ethernet: such an interface has no AF_XDP headers of ours.
        way = neighbour.ip + neighbour.link.ljust(16, b"\0")[:16] + bytes(16)
        port.put_way(Command.NEIGHBOUR, way, flags=lib.STOQ_WAY_GONE if neighbour.gone else 0)

    def address(self, packed: bytes, present: bool) -> None:
        """One of the host's addresses came or went."""
        if self._guard is None:
            return
        try:
            self._guard.address(packed, present)
        except DatapathError as error:
            log.warning("an address of ours is left to the socket path: %s", error)

    def link(self, link: Link) -> None:
        """The interface changed."""
        if link.gone:
            log.error("interface %s is gone: its queues are dead; open the datapath again", link.name)
        else:
            log.info("%s: %s, MTU %d", link.name, "up" if link.up else "down", link.mtu)

"""IPv6 addresses of STOQ, and the refusal of everything else.

STOQ is IPv6-only: an IPv4 address in any spelling, an IPv4-mapped or IPv4-compatible IPv6 address and a name
without an AAAA record are refused with an AddressError that says so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass

from dataplane.errors import AddressError

STOQ_PORT = 9292

ONLY = "STOQ is IPv6-only"

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_DOTTED = re.compile(r"^[0-9.]+$")


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv6 address and UDP port; ``scope_id`` is the interface index of a link-local address."""

    ip: str
    port: int = STOQ_PORT
    scope_id: int = 0

    @property
    def packed(self) -> bytes:
        """The 16 bytes of the address."""
        return socket.inet_pton(socket.AF_INET6, self.ip)

    @classmethod
    def from_packed(cls, ip: bytes, port: int, scope_id: int = 0) -> Address:
        """From the 16 bytes of an address."""
        return cls(socket.inet_ntop(socket.AF_INET6, ip), port, scope_id)

    def __str__(self) -> str:
        zone = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.ip}{zone}]:{self.port}"


def _split(text: str, default_port: int) -> tuple[str, int]:
    """``[v6]:port``, ``[v6]``, bare ``v6``, ``name:port`` or ``name`` into host and port."""
    port_text = ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise AddressError(f"{text!r} is not an address: write [IPv6]:port, as in [fd00::1]:{STOQ_PORT}")
        port_text = rest[1:]
        if rest and not port_text:
            raise AddressError(f"{text!r}: the port is missing after the colon")
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
        if not port_text:
            raise AddressError(f"{text!r}: the port is missing after the colon")
    else:
        host = text
    if not port_text:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
        raise AddressError(f"{text!r}: port {port_text!r} is not a number from 0 to 65535")
    return host, int(port_text)


def _is_ipv4(host: str) -> bool:
    """Any spelling the C library takes for IPv4: dotted, short (127.1), decimal, octal and hexadecimal."""
    if _DOTTED.match(host):
        return True
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def _check(ip: ipaddress.IPv6Address, shown: str) -> None:
    if ip in _MAPPED:
        raise AddressError(
            f"{shown} is the IPv4 address {ip.ipv4_mapped} written as IPv6: {ONLY}; give the node's own "
            "IPv6 address"
        )
    if ip in _COMPATIBLE and int(ip) > 1:
        raise AddressError(f"{shown} is an IPv4-compatible address (deprecated, RFC 4291): {ONLY}")


def _zone(zone: str, shown: str) -> int:
    if zone.isascii() and zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise AddressError(f"{shown}: there is no network interface called {zone!r}") from None


def _literal(host: str, port: int) -> Address | None:
    """The address `host` spells, or None when it is a name. Raises AddressError for IPv4 in any form."""
    if not host:
        return Address("::", port)
    if _is_ipv4(host):
        raise AddressError(
            f"{host} is an IPv4 address: {ONLY}; give an IPv6 address such as [fd00::1]:{STOQ_PORT}"
        )
    if ":" not in host:
        return None
    bare, _, zone = host.partition("%")
    try:
        ip = ipaddress.IPv6Address(bare)
    except ValueError:
        raise AddressError(f"{host!r} is not an IPv6 address ({ONLY})") from None
    _check(ip, host)
    return Address(ip.compressed, port, _zone(zone, host) if zone else 0)


def _from_resolver(
    host: str,
    port: int,
    found: list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]],
) -> Address:
    refused: AddressError | None = None
    for family, _, _, _, sockaddr in found:
        if family != socket.AF_INET6:
            continue
        ip = ipaddress.IPv6Address(str(sockaddr[0]).partition("%")[0])
        try:
            _check(ip, f"{host} ({ip})")
        except AddressError as error:
            refused = error
            continue
        scope = sockaddr[3]
        return Address(ip.compressed, port, scope if isinstance(scope, int) else 0)
    raise refused or _no_aaaa(host)


def _no_aaaa(host: str) -> AddressError:
    return AddressError(
        f"{host} has no IPv6 address (no AAAA record): {ONLY}; use a name or an address that has one"
    )


def _name(host: str) -> str:
    """The name in the form the resolver takes; raises AddressError when it is none."""
    if len(host) > 253 or any(c.isspace() or ord(c) < 33 for c in host) or host.startswith("."):
        raise AddressError(f"{host!r} is neither an IPv6 address nor a host name ({ONLY})")
    return host


def parse_address(text: str, default_port: int = STOQ_PORT) -> Address:
    """The IPv6 address and port that `text` spells; a name is looked up (AAAA only), which blocks.

    An empty host (``:9292``) means ``::``. Raises AddressError for IPv4 in any form, for a name without AAAA
    record and for what does not parse.
    """
    host, port = _split(text.strip(), default_port)
    literal = _literal(host, port)
    if literal is not None:
        return literal
    try:
        found = socket.getaddrinfo(_name(host), port, socket.AF_INET6, socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise _no_aaaa(host) from None
    return _from_resolver(host, port, list(found))


async def resolve_address(text: str, default_port: int = STOQ_PORT) -> Address:
    """As parse_address, without blocking the event loop."""
    host, port = _split(text.strip(), default_port)
    literal = _literal(host, port)
    if literal is not None:
        return literal
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(_name(host), port, family=socket.AF_INET6, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise _no_aaaa(host) from None
    return _from_resolver(host, port, list(found))


def host_of(text: str) -> str:
    """The host part of `text` as written (a certificate names it): without brackets, port and zone."""
    return _split(text.strip(), STOQ_PORT)[0].partition("%")[0]


def check_bind(address: Address) -> Address:
    """`address` if a socket can be bound to it as far as its form goes; raises AddressError otherwise."""
    if _literal(address.ip, address.port) is None:
        raise AddressError(f"{address.ip!r} is not an IPv6 address ({ONLY})")
    return address


def check_peer(address: Address) -> Address:
    """`address` if a connection can be opened to it; raises AddressError otherwise."""
    literal = _literal(address.ip, address.port)
    ip = ipaddress.IPv6Address(address.ip)
    if literal is None or ip.is_unspecified or ip.is_multicast:
        raise AddressError(f"{address}: a connection needs a unicast IPv6 address ({ONLY})")
    if address.port == 0:
        raise AddressError(f"{address}: a connection needs a port other than 0")
    return address

"""Which addresses a validation may connect to, and how a name becomes addresses. IPv6 only.

A CA that fetches what strangers name is a way into its own network, so by default only addresses of the world are
reached: no loopback, link-local, multicast, documentation, mapped IPv4 (which would leave IPv6). Unique local addresses
(fc00::/7) are what private networks are made of and need leave, as loopback does. The check is made on the addresses
themselves, just before connecting, for the first target and for that of every redirect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dataplane.errors import StoqError

MAX_ADDRESSES = 8  # Of a name, that are tried.


class ResolutionError(StoqError):
    """A name has no addresses, or asking for them failed."""


class Resolver(Protocol):
    """How names are looked up."""

    async def addresses(self, name: str) -> Sequence[str]:
        """IPv6 addresses of a name. Raises ResolutionError."""

    async def text(self, name: str) -> Sequence[str]:
        """The TXT records of a name, each joined (for dns-01). Raises ResolutionError."""


class SystemResolver:
    """The machine's own resolver. It cannot look up TXT records, so dns-01 needs another one."""

    async def addresses(self, name: str) -> Sequence[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                name, None, family=socket.AF_INET6, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise ResolutionError(f"{name} has no IPv6 address (AAAA record): {error}") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_ADDRESSES]

    async def text(self, name: str) -> Sequence[str]:
        raise ResolutionError(f"cannot look up TXT records of {name}: no resolver for them is configured")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which addresses may be reached, beyond those that the whole world can reach."""

    unique_local: bool = False
    loopback: bool = False

    def refusal(self, address: ipaddress.IPv6Address) -> str | None:
        """Why not, or None."""
        if address.ipv4_mapped is not None:
            return "it is a mapped IPv4 address, and STOQ is IPv6-only"
        if address.is_loopback:
            return None if self.loopback else "it is the loopback address"
        if address in _UNIQUE_LOCAL:
            return None if self.unique_local else "it is a unique local address, which this server does not reach"
        if address.is_unspecified:
            return "it is the unspecified address"
        if address.is_link_local:
            return "it is a link-local address"
        if address.is_multicast:
            return "it is a multicast address"
        if address not in _GLOBAL_UNICAST or not address.is_global or any(address in one for one in _EMBEDDING):
            return "it is not an address of the public internet"
        return None


_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # All that IANA has given out; NAT64 (64:ff9b::/96) lies outside.
_EMBEDDING = (  # Lead to an IPv4 address of the sender's choice: 6to4, Teredo.
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("2001::/32"),
)


def literal(text: str) -> ipaddress.IPv6Address | None:
    """The IPv6 address that a text is, without a zone; None if it is none."""
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    return None if address.scope_id is not None else address

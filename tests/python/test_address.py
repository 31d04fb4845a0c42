"""IPv6 only: what is refused, with which words, and what is understood."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dataplane import Address, AddressError, parse_address, resolve_address
from dataplane.address import check_peer, host_of

IPV4 = [
    "1.2.3.4",
    "1.2.3.4:9292",
    "0.0.0.0",
    "0.0.0.0:9292",
    "127.0.0.1:1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "[1.2.3.4]:9292",
    "::ffff:1.2.3.4",
    "[::ffff:1.2.3.4]:9292",
    "::ffff:102:304",
    "[0:0:0:0:0:FFFF:0102:0304]:9292",
    "::1.2.3.4",
    "999.1.2.3",
]


@pytest.mark.parametrize("text", IPV4)
def test_ipv4_in_any_form_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="STOQ is IPv6-only"):
        parse_address(text)
    with pytest.raises(AddressError, match="STOQ is IPv6-only"):
        asyncio.run(resolve_address(text))


def test_a_name_without_aaaa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ipv4(host: str, port: int, family: int = 0, *rest: int, **more: int) -> list[object]:
        assert family == socket.AF_INET6, "nothing but AAAA may be asked for"
        raise socket.gaierror(socket.EAI_ADDRFAMILY, "address family for hostname not supported")

    monkeypatch.setattr(socket, "getaddrinfo", only_ipv4)
    with pytest.raises(AddressError, match=r"v4only\.example has no IPv6 address .*STOQ is IPv6-only"):
        parse_address("v4only.example:9292")
    with pytest.raises(AddressError, match="STOQ is IPv6-only"):
        asyncio.run(resolve_address("v4only.example:9292"))


def test_a_name_that_resolves_to_a_mapped_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::ffff:10.0.0.1", 9292, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: answer)
    with pytest.raises(AddressError, match=r"10\.0\.0\.1 written as IPv6: STOQ is IPv6-only"):
        parse_address("mapped.example")


def test_the_first_usable_answer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::ffff:10.0.0.1", 9292, 0, 0)),
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("2001:db8::5", 9292, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: answers)
    assert parse_address("both.example:9292") == Address("2001:db8::5", 9292)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[fd00::1]:443", Address("fd00::1", 443)),
        ("fd00::1", Address("fd00::1", 9292)),
        ("[fd00::1]", Address("fd00::1", 9292)),
        ("::", Address("::", 9292)),
        (":4433", Address("::", 4433)),
        ("[::]:0", Address("::", 0)),
        ("[FD00:0:0::1]:1", Address("fd00::1", 1)),
        ("64:ff9b::102:304", Address("64:ff9b::102:304", 9292)),
    ],
)
def test_ipv6_is_understood(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert Address.from_packed(expected.packed, expected.port) == expected


def test_a_zone_becomes_the_interface_index() -> None:
    index, name = socket.if_nameindex()[0]
    assert parse_address(f"[fe80::1%{name}]:5").scope_id == index
    with pytest.raises(AddressError, match="no network interface called 'nosuch0'"):
        parse_address("fe80::1%nosuch0")


@pytest.mark.parametrize(
    "text", ["[fd00::1", "[fd00::1]x", "[fd00::1]:", "[fd00::1]:70000", "[fd00::1]:-1", "fd00::g"]
)
def test_what_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("address", [Address("::", 1), Address("ff02::1", 1), Address("::1", 0)])
def test_no_connection_to_what_is_no_peer(address: Address) -> None:
    with pytest.raises(AddressError):
        check_peer(address)


def test_host_of_is_what_a_certificate_names() -> None:
    assert host_of("[fd00::1]:443") == "fd00::1"
    assert host_of("node-a.example:443") == "node-a.example"
    assert host_of("[fe80::1%eth0]:443") == "fe80::1"

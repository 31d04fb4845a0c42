"""Address tokens: one use each, bounded, by server."""

from __future__ import annotations

from dataplane.address import Address
from dataplane.tokens import TokenCache


def server(port: int) -> Address:
    return Address("fd00::1", port)


def test_a_token_is_used_once_and_only_for_its_server() -> None:
    cache = TokenCache()
    cache.put(server(1), b"old")
    cache.put(server(1), b"new")
    assert cache.take(server(2)) == b""
    assert cache.take(server(1)) == b"new"
    assert cache.take(server(1)) == b""


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = TokenCache(capacity=2)
    for port in (1, 2, 3):
        cache.put(server(port), bytes([port]))
    assert len(cache) == 2
    assert cache.take(server(1)) == b""
    assert cache.take(server(3)) == b"\x03"

"""Address tokens from NEW_TOKEN frames, RFC 9000 section 8.1.3: with one, a later connection to the same
server needs no Retry and no anti-amplification limit holds it back."""

from __future__ import annotations

from collections import OrderedDict

from dataplane.address import Address

CAPACITY = 1024  # Servers remembered; the one not used for longest is forgotten.


class TokenCache:
    """The latest token of each server. A token is used once, as the RFC asks, so that it cannot link
    connections."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tokens)

    def put(self, server: Address, token: bytes) -> None:
        """Remember `token` for `server`."""
        key = (server.ip, server.port)
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        while len(self._tokens) > self._capacity:
            self._tokens.popitem(last=False)

    def take(self, server: Address) -> bytes:
        """The token for `server`, forgotten with this; empty when there is none."""
        return self._tokens.pop((server.ip, server.port), b"")

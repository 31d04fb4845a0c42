"""TLS secrets of recent connections, in memory only, for captures that ask for them.

Exists only in a node started with --allow-secrets. Lines are those of the NSS key log format
(draft-ietf-tls-keylogfile): label, client random, secret, in hexadecimal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_CONNECTIONS = 1024  # With MAX_LINES of under 200 bytes each: under 1 MiB in all.
MAX_LINES = 4  # Of one connection: as many secrets of TLS 1.3 as QUIC uses without early data.


class KeyLog:
    """Remembers the last MAX_CONNECTIONS connections' secrets; tells who watches of new ones."""

    def __init__(self) -> None:
        self._lines: OrderedDict[bytes, list[str]] = OrderedDict()
        self._watchers: list[Callable[[bytes], None]] = []

    def add(self, client_random: bytes, label: str, secret: bytes) -> None:
        """One secret, as the handshake derives it."""
        lines = self._lines.setdefault(client_random, [])
        if len(lines) >= MAX_LINES:
            return
        line = f"{label} {client_random.hex()} {secret.hex()}\n"
        lines.append(line)
        while len(self._lines) > MAX_CONNECTIONS:
            self._lines.popitem(last=False)
        for watcher in self._watchers:
            watcher(line.encode())

    def text(self) -> bytes:
        """All lines there are."""
        return "".join(line for lines in self._lines.values() for line in lines).encode()

    @contextmanager
    def watch(self, watcher: Callable[[bytes], None]) -> Iterator[None]:
        """Inside the block, `watcher` gets each new line."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

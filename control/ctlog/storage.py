"""What a log needs of the world: a place for objects, and a lock store for its signed head.

The storage is not trusted: it may lose, alter or roll back what was put there, and the log finds that out, since
every byte it serves hangs on the head. The lock store is trusted for one thing: it holds the one newest head, and a
replacement succeeds for exactly one of those who try it. One file a backend: `local`, `s3`.

Keys are relative paths of the static-ct-api layout (`checkpoint`, `tile/0/x001/067`, `issuer/<hex>`) or of our own
(`staging/…`): lower-case letters, digits, `/`, `.`, `-`; at most 200 characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from control.ctlog.errors import LogError

KEY = re.compile(r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*")
MAX_KEY_CHARACTERS = 200


def check_key(key: str) -> str:
    """The key, if it is one: no empty, hidden or parent part can get in. Raises LogError."""
    if len(key) > MAX_KEY_CHARACTERS or not KEY.fullmatch(key):
        raise LogError(f"{key!r} is not an object's name")
    return key


class Storage(Protocol):
    """Objects by key. Every method may raise Unavailable (worth another try)."""

    async def put(self, objects: Mapping[str, bytes]) -> None:
        """Store all of these, replacing what was there. When it returns all of them are durable and whole; when it
        raises, any of them may be stored, none of them in part."""

    async def get(self, key: str) -> bytes:
        """One object whole. Raises NotFound."""

    async def delete(self, prefix: str) -> None:
        """Remove the object of this key and all below `prefix/`; nothing there is fine. Need not be durable."""

    async def close(self) -> None:
        """Give up connections and threads."""

    def describe(self) -> str:
        """For people: kind and place, never a secret."""


class LockStore(Protocol):
    """The newest head of each log, by log ID (32 bytes). Every method may raise Unavailable, and then a `create` or
    `replace` may have happened or not: only `load` tells."""

    async def load(self, log_id: bytes) -> bytes | None:
        """The head; None: there is no such log."""

    async def create(self, log_id: bytes, head: bytes) -> None:
        """The first head. Raises LockConflict when there is one."""

    async def replace(self, log_id: bytes, old: bytes, new: bytes) -> None:
        """Compare and swap, durably. Raises LockConflict when the head is not `old`."""

    async def close(self) -> None:
        """Give up connections and threads."""

    def describe(self) -> str:
        """For people: kind and place, never a secret."""

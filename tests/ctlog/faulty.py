"""Stores that fail on demand, around real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from control.ctlog.storage import LockStore, Storage

Hook = Callable[[Mapping[str, bytes]], Awaitable[None]]


async def nothing(objects: Mapping[str, bytes]) -> None:
    """A hook that lets everything go."""


class HookedStorage:
    """Calls hooks before and after each put; they may raise, wait, or alter what is stored."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.before: Hook = nothing
        self.after: Hook = nothing

    async def put(self, objects: Mapping[str, bytes]) -> None:
        """See Storage."""
        await self.before(objects)
        await self._inner.put(objects)
        await self.after(objects)

    async def get(self, key: str) -> bytes:
        """See Storage."""
        return await self._inner.get(key)

    async def delete(self, prefix: str) -> None:
        """See Storage."""
        await self._inner.delete(prefix)

    async def close(self) -> None:
        """See Storage."""
        await self._inner.close()

    def describe(self) -> str:
        """See Storage."""
        return self._inner.describe()


Swap = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]


async def just_swap(swap: Callable[[], Awaitable[None]]) -> None:
    """As the real one."""
    await swap()


class HookedLock:
    """Hands each swap to `on_swap`, which may do it, or not, or later, and say anything; `on_load` may raise."""

    def __init__(self, inner: LockStore) -> None:
        self._inner = inner
        self.on_swap: Swap = just_swap
        self.on_load: Callable[[], None] = lambda: None
        self.heads: list[bytes] = []  # Every one that was swapped in.

    async def load(self, log_id: bytes) -> bytes | None:
        """See LockStore."""
        self.on_load()
        return await self._inner.load(log_id)

    async def create(self, log_id: bytes, head: bytes) -> None:
        """See LockStore."""
        await self._inner.create(log_id, head)

    async def replace(self, log_id: bytes, old: bytes, new: bytes) -> None:
        """See LockStore."""

        async def swap() -> None:
            await self._inner.replace(log_id, old, new)
            self.heads.append(new)

        await self.on_swap(swap)

    async def close(self) -> None:
        """See LockStore."""
        await self._inner.close()

    def describe(self) -> str:
        """See LockStore."""
        return self._inner.describe()


class Gate:
    """Something stops here until it is let go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        """Stop."""
        self.reached.set()
        await self.open.wait()

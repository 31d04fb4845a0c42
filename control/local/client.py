"""The commands' end of the control socket."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from control.local import place, protocol, stream
from control.local.protocol import StatusAnswer, StatusRequest
from dataplane.errors import ConfigError, StoqError

ANSWER_SECONDS = 10.0  # A node that is busy with handshakes answers late; one that is stopped, never.

A = TypeVar("A", bound=protocol.Answer)


class LocalError(StoqError):
    """A node could not be asked; the text says why."""


class Client:
    """``async with Client(path) as client``: a connection to one node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Client:
        """Connect. Raises LocalError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._reader, self._writer = await asyncio.open_unix_connection(
                    self.path, limit=protocol.MAX_ANSWER_BYTES
                )
        except TimeoutError:
            raise LocalError(f"{self.path}: the node does not accept us: is it stopped?") from None
        except OSError as error:
            raise LocalError(f"{self.path}: {error.strerror or error}") from None
        owner = place.peer_of(self._writer.get_extra_info("socket")).uid
        if os.geteuid() != 0 and owner not in (0, os.geteuid()):
            self._writer.close()
            raise LocalError(f"{self.path} belongs to user {owner}, not to a node of ours")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    async def ask(self, request: protocol.Request, kind: type[A]) -> A:
        """One request and its answer. Raises ProtocolError (what the node refuses, too) and LocalError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._writer.write(protocol.encode(request))
                await self._writer.drain()
                line = await self._reader.readline()
        except TimeoutError:
            raise LocalError(f"{self.path}: no answer within {ANSWER_SECONDS:g} s") from None
        except (OSError, ValueError) as error:
            raise LocalError(f"{self.path}: {error}") from None
        if not line.endswith(b"\n"):
            raise LocalError(f"{self.path}: the node ended")
        return protocol.decode_answer(line, kind)

    def say(self, request: protocol.Request) -> None:
        """A request that has no answer of its own."""
        self._writer.write(protocol.encode(request))

    async def record(self) -> stream.Frame | bytes | tuple[stream.Kind, stream.Figures]:
        """The next record of a capture. Raises LocalError when the node is gone, ProtocolError."""
        try:
            return await stream.read_record(self._reader)
        except (asyncio.IncompleteReadError, OSError):
            raise LocalError(f"{self.path}: the node ended") from None


async def ask(path: Path, request: protocol.Request, kind: type[A]) -> A:
    """Connect, ask, close."""
    async with Client(path) as client:
        return await client.ask(request, kind)


async def statuses() -> list[tuple[Path, StatusAnswer]]:
    """All nodes that run here and answer."""
    paths = place.running()
    answers = await asyncio.gather(
        *(ask(path, StatusRequest(), StatusAnswer) for path in paths), return_exceptions=True
    )
    return [(p, answer) for p, answer in zip(paths, answers, strict=True) if isinstance(answer, StatusAnswer)]


async def the_node(node: str | None) -> Path:
    """The socket of the node meant: the one named, or the only one. Raises LocalError, ConfigError when there
    are several."""
    if node is not None:
        return place.find(node)
    paths = place.running()
    if not paths:
        raise LocalError(NO_NODE)
    if len(paths) > 1:
        names = ", ".join(path.stem for path in paths)
        raise ConfigError(
            f"several nodes run here ({names}): choose one with --node PID (`stoq status` lists)"
        )
    return paths[0]


NO_NODE = (
    "no node of this user runs here (`stoq serve` starts one); a node started with --control PATH is found "
    "with --node PATH"
)

"""A node's membership while it runs: what its home holds becomes a handshake configuration, and the agent keeps it
true."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from control.handshake import HandshakeConfig
from control.handshake.credentials import Credentials
from control.trustchain.agent import Agent, Handshakes, OnEvent
from control.trustchain.home import Home, HomeError
from control.trustchain.inclusion import InclusionChecker
from control.trustchain.readers import BundleLogs
from control.trustchain.verifier import TrustVerifier
from dataplane import Datapath


class Membership:
    """Of the node whose home is `directory`. Raises HomeError, CredentialsError, BundleError."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.home = Home.read(directory)
        self.credentials: Credentials = self.home.credentials()
        bundle = self.home.bundle()
        self.logs = BundleLogs(lambda: self.verifier.bundle, lambda: self.verifier.rules.logs)
        self.verifier = TrustVerifier(bundle, checker=InclusionChecker(self.logs, clock))
        self._clock = clock

    def config(self, base: HandshakeConfig) -> HandshakeConfig:
        """`base` with this node's certificate, and TrustChain as judge."""
        return dataclasses.replace(base, credentials=self.credentials, verifier=self.verifier)

    def give_to(self, uid: int, gid: int) -> None:
        """The home becomes this user's, who is to renew what is in it. Raises HomeError."""
        try:
            for path in (self.home.directory, *self.home.directory.iterdir()):
                os.chown(path, uid, gid, follow_symlinks=False)
        except OSError as error:
            raise HomeError(f"{self.home.directory} cannot be given to user {uid}: {error.strerror}") from None

    @asynccontextmanager
    async def running(
        self, datapath: Datapath, handshakes: Handshakes, on_event: OnEvent
    ) -> AsyncIterator[Agent]:
        """The agent runs inside the block."""
        agent = Agent(
            self.home, datapath, handshakes, self.verifier, clock=self._clock, on_event=on_event
        )
        task = asyncio.create_task(agent.run(), name="trustchain agent")
        try:
            yield agent
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.logs.close()


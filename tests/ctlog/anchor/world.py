"""What the anchor's tests share: a chain with the contract on it, a log's heads, and a node that misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from control.ctlog.anchor.admin import Admin
from control.ctlog.anchor.anchor import AnchorConfig, ChainAnchor, Publisher
from control.ctlog.anchor.chain import Chain, ChainConfig
from control.ctlog.anchor.interface import AnchorStatus
from control.ctlog.anchor.libraries import Account
from control.ctlog.anchor.rpc import Node
from control.ctlog.anchor.trie import keccak
from tests.ctlog.anchor import anvil

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

LOG_ID = hashlib.sha256(b"a log").digest()
OTHER_LOG = hashlib.sha256(b"another log").digest()
FAST = AnchorConfig(every_seconds=0.0, poll_seconds=0.02, stuck_seconds=60.0, backoff_most=0.1)
OWNER, PUBLISHER, STRANGER = (Account.from_key(key) for key in anvil.KEYS)
ANCHORED = "0x" + keccak(b"Anchored(bytes32,uint64,bytes32,uint64,uint64)").hex()
BEGAN = 1_700_000_000_000  # Milliseconds; the contract takes no timestamp more than a day ahead of its block.


def root(size: int) -> bytes:
    return hashlib.sha256(b"tree of %d" % size).digest()


@dataclass
class World:
    """A chain with the contract, whose publisher for LOG_ID is PUBLISHER."""

    node: anvil.Anvil
    config: ChainConfig
    said: list[str] = field(default_factory=list)

    def chain(self, url: str = "", *, timeout_seconds: float = 2.0, **changes: object) -> Chain:
        node = Node(url or self.node.url, timeout_seconds=timeout_seconds, attempts=2)
        return Chain(replace(self.config, node=node, **changes))  # type: ignore[arg-type]

    def anchor(
        self,
        state: Path,
        config: AnchorConfig = FAST,
        *,
        chain: Chain | None = None,
        publisher: Publisher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> ChainAnchor:
        return ChainAnchor(
            chain or self.chain(),
            publisher or Publisher(PUBLISHER),
            LOG_ID,
            state,
            config,
            clock=clock,
            say=self.said.append,
        )

    def logs(self) -> int:
        """How many heads were ever taken, by the events of the chain as it is now."""
        asked = {"address": self.config.contract, "fromBlock": "0x0", "topics": [ANCHORED]}
        found = self.node.ask("eth_getLogs", asked)
        assert isinstance(found, list)
        return len(found)

    def transactions(self) -> int:
        """How many the publisher's account has in the chain as it is now."""
        return int(str(self.node.ask("eth_getTransactionCount", PUBLISHER.address, "latest")), 16)


async def publish(anchor: ChainAnchor, size: int) -> None:
    await anchor.publish(size, root(size), BEGAN + size)


async def until(anchor: ChainAnchor, what: Callable[[AnchorStatus], object], seconds: float = 10.0) -> AnchorStatus:
    """Wait for a status. Fails with the last one."""
    end = time.monotonic() + seconds
    while not what(status := anchor.status()):
        assert time.monotonic() < end, f"still {status}"
        await asyncio.sleep(0.005)
    return status


async def waiting(node: anvil.Anvil) -> dict[str, Any]:
    """The publisher's transaction that waits in the node's pool."""
    end = time.monotonic() + 10
    while True:
        pool: Any = await asyncio.to_thread(node.ask, "txpool_content")
        for account, by_nonce in pool["pending"].items():
            if account.lower() == PUBLISHER.address.lower():
                (transaction,) = by_nonce.values()
                return dict(transaction)
        assert time.monotonic() < end, f"the pool has only {pool}"
        await asyncio.sleep(0.005)


async def mined(node: anvil.Anvil, blocks: int) -> None:
    """Blocks with what waits in the pool."""
    await asyncio.to_thread(node.mine, blocks)


async def deploy(node: anvil.Anvil, account: LocalAccount = OWNER) -> ChainConfig:
    """The contract, with its publisher, on a chain that mines by itself meanwhile."""
    await asyncio.to_thread(node.ask, "evm_setAutomine", True)
    config = ChainConfig(Node(node.url, timeout_seconds=5.0), anvil.CHAIN_ID, confirmations=3)
    chain = Chain(config)
    config = replace(config, contract=await Admin(chain, account, poll_seconds=0.01).deploy())
    await chain.close()
    chain = Chain(config)
    await Admin(chain, account, poll_seconds=0.01).set_publisher(LOG_ID, PUBLISHER.address)
    await chain.close()
    await asyncio.to_thread(node.ask, "evm_setAutomine", False)
    await mined(node, 4)
    return config


@contextmanager
def world(*arguments: str) -> Iterator[World]:
    with anvil.running(*arguments) as node:
        yield World(node, asyncio.run(deploy(node)))


Handler = Callable[[dict[str, Any], Callable[[], Awaitable[web.Response]]], Awaitable[web.StreamResponse]]


async def passes(call: dict[str, Any], carry_out: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """A Relay's handler that does nothing to a call."""
    return await carry_out()


class Relay:
    """Stands between an anchor and its node; `handler` gets a call and a function that carries it out, and gives the
    answer. An async context manager."""

    def __init__(self, target: str, handler: Handler = passes) -> None:
        self._target = target
        self.handler = handler
        self.calls: list[str] = []
        self.url = ""

    async def __aenter__(self) -> Relay:
        self._session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "::1", 0)
        await site.start()
        self.url = f"http://[::1]:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = await request.json()
        self.calls.append(call["method"])

        async def carry_out() -> web.Response:
            async with self._session.post(self._target, json=call) as answer:
                return web.Response(body=await answer.read(), content_type="application/json")

        return await self.handler(call, carry_out)

"""Opens what a log's directory says: stores, index, log; and beside it witnesses and the anchor of its heads."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

from control.ctlog.anchor import AnchorUnavailable, HeadAnchor, check_log
from control.ctlog.chains import Acceptor
from control.ctlog.errors import LogStopped
from control.ctlog.log import Log, Options
from control.ctlog.sequencer import Published
from control.ctlog.site import AnchorPlace, LoadKey, Site
from control.ctlog.witnesses import Witnesses

logger = logging.getLogger("stoq.ctlog")


class OpenLog:
    """A log with all that belongs to it, as an async context manager. Raises LogError, LogStopped."""

    def __init__(self, site: Site, clock: Callable[[], float], load_key: LoadKey | None = None) -> None:
        self._site = site
        self._clock = clock
        self._load_key = load_key
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self.anchor: HeadAnchor | None = None
        self.witnesses: Witnesses | None = None

    async def __aenter__(self) -> Log:
        site = self._site
        signer = site.signer(self._load_key)
        acceptor = Acceptor(site.roots, site.config.window)
        async with AsyncExitStack() as stack:
            stack.callback(os.close, site.reserve())
            storage = await site.storage()
            stack.push_async_callback(storage.close)
            lock = await site.lock()
            stack.push_async_callback(lock.close)
            index, options = site.index(), Options(period=site.config.period)
            try:
                log = await Log.open(signer, acceptor, storage, lock, index, self._clock, options)
            except BaseException:
                await index.close()
                raise
            stack.push_async_callback(log.close)
            if site.config.anchor is not None:
                self.anchor = await self._anchor(stack, site.config.anchor, log)
            if site.witnesses:
                self.witnesses = Witnesses(log, site.witnesses)
                task = asyncio.create_task(self.witnesses.run(), name=f"witnesses of {signer.origin}")
                stack.push_async_callback(_end, task)
            self._stack = stack.pop_all()
        return log

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _anchor(self, stack: AsyncExitStack, place: AnchorPlace, log: Log) -> HeadAnchor:
        """Compare the log with what is final on the chain, then anchor its heads. Without an answer the log starts all
        the same: it anchors as soon as there is one, and stops if that contradicts it."""
        # web3 takes a second to import, and need not be there where nothing is anchored.
        from control.ctlog.anchor.account import load_account
        from control.ctlog.anchor.anchor import AnchorConfig, ChainAnchor, Publisher
        from control.ctlog.anchor.chain import Chain, ChainConfig
        from control.ctlog.anchor.rpc import Node

        directory = self._site.directory
        chain = Chain(ChainConfig(Node(place.rpc), place.chain_id, place.contract, confirmations=place.confirmations))
        anchor = ChainAnchor(
            chain,
            Publisher(load_account(directory / place.account)),
            log.signer.log_id,
            directory / "anchor.json",
            AnchorConfig(
                every_seconds=place.every_seconds, every_entries=place.every_entries, poll_seconds=place.poll_seconds
            ),
            clock=self._clock,
            say=logger.warning,
        )
        stack.push_async_callback(anchor.close)
        try:
            await chain.check()
            await check_log(await anchor.newest_final(log.signer.log_id), log.head.size, log.root)
        except AnchorUnavailable as error:
            logger.error("log %s starts without asking its chain: %s", log.signer.origin, error)
        anchor.start()

        def publish(published: Published) -> None:
            if conflict := anchor.status().conflict:
                log.stop(LogStopped(f"the chain contradicts this log: {conflict}"))
            elif published.head.size:
                head = published.head
                task = asyncio.ensure_future(anchor.publish(head.size, head.root, head.timestamp))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        log.on_publish(publish)
        publish(log.published)
        return anchor


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

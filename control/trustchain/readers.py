"""Reads the logs that a trust bundle names, where it says they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.errors import Unavailable
from control.ctlog.note import TreeHead
from control.trustchain.bundle import TrustBundle
from control.trustchain.known_logs import KnownLogs


class BundleLogs:
    """A `LogReader` over HTTP for the logs of the bundle in use, whichever it is now. `bundle` and `logs` are asked
    each time; connections are kept while a log's address stays the same."""

    def __init__(self, bundle: Callable[[], TrustBundle], logs: Callable[[], KnownLogs]) -> None:
        self._bundle = bundle
        self._logs = logs
        self._clients: dict[bytes, tuple[str, LogClient]] = {}

    def client(self, log_id: bytes) -> LogClient:
        """The client of a log. Raises Unavailable when the bundle does not say where it is."""
        known = self._logs().get(log_id)
        url = next((one.url for one in self._bundle().logs if known and one.name == known.name), "")
        if known is None or not url:
            raise Unavailable(f"the trust bundle does not say how to reach the log {log_id.hex()[:16]}")
        held = self._clients.get(log_id)
        if held is None or held[0] != url:
            held = self._clients[log_id] = (url, LogClient(HttpCarrier(url, timeout=5.0), known.key, known.name))
        return held[1]

    async def get_sth(self, log_id: bytes) -> TreeHead:
        """See LogReader."""
        return await self.client(log_id).get_sth()

    async def get_proof_by_hash(self, log_id: bytes, leaf_hash: bytes, size: int) -> tuple[int, Sequence[bytes]]:
        """See LogReader."""
        return await self.client(log_id).get_proof_by_hash(leaf_hash, size)

    async def close(self) -> None:
        """Give up connections."""
        clients, self._clients = self._clients, {}
        for _, client in clients.values():
            await client.close()

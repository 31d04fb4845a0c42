"""Logs as the authority submits to them (`submit.LogClient`): one in the same process, or one at an address."""

from __future__ import annotations

from collections.abc import Sequence

from control.ctlog.client import LogClient
from control.ctlog.log import Log
from control.ctlog.structs import LogKey, Sct, key_id
from control.trustchain.errors import BadRequest


class EmbeddedLog:
    """A log that this process runs."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.log_id = log.signer.log_id
        self.name = log.signer.origin
        self.key: LogKey = log.signer.key.public_key()

    async def add_pre_chain(self, chain: Sequence[bytes]) -> Sct:
        """See submit.LogClient."""
        return (await self._log.add_chain(chain, precertificate=True))[0]

    async def add_chain(self, chain: Sequence[bytes]) -> Sct:
        """See submit.LogClient."""
        return (await self._log.add_chain(chain, precertificate=False))[0]


class RemoteLog:
    """A log that is reached by a client, which must know its key. Raises BadRequest."""

    def __init__(self, client: LogClient, name: str) -> None:
        if client.key is None:
            raise BadRequest(f"the key of the log {name} is not known: an SCT that cannot be checked is none")
        self._client = client
        self.key: LogKey = client.key
        self.log_id = key_id(client.key)
        self.name = name

    async def add_pre_chain(self, chain: Sequence[bytes]) -> Sct:
        """See submit.LogClient."""
        return await self._client.add_pre_chain(chain)

    async def add_chain(self, chain: Sequence[bytes]) -> Sct:
        """See submit.LogClient."""
        return await self._client.add_chain(chain)

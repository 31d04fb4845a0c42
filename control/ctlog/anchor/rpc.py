"""JSON-RPC with a chain's node over HTTP, bounded: every request has a deadline and a few tries, every answer a size.

web3 speaks the protocol; this file gives it a session of ours (IPv6 only, no redirects, no proxies) and turns all that
can go wrong into two errors: the node does not answer as it should (AnchorUnavailable), or it answers with an error of
its own (NodeError). What a node says is checked where it is taken apart (`wire`); it is not trusted to be
well formed.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from control.ctlog.anchor.interface import AnchorError, AnchorUnavailable
from control.ctlog.anchor.libraries import AsyncHTTPProvider, ExceptionRetryConfiguration, RPCEndpoint
from control.ctlog.anchor.wire import MAX_TEXT, data
from dataplane.errors import ConfigError

MAX_ANSWER_BYTES = 4 << 20  # A block of a busy chain with its transactions' hashes takes some 100 KiB.
FIRST_BACKOFF_SECONDS = 0.1


class NodeError(AnchorError):
    """The node understood the request and answers with an error; `data` is what it says more, if it is bytes."""

    def __init__(self, method: str, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"the chain's node answers {method} with error {code}: {message[:MAX_TEXT]}")
        self.code = code
        self.message = message[:MAX_TEXT]
        self.data = data


@dataclass(frozen=True, slots=True)
class Node:
    """Where a chain's node is and how long it may take. The URL may carry secrets; `place` does not."""

    url: str
    timeout_seconds: float = 10.0
    attempts: int = 3

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"the chain node's URL cannot be read: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError("the chain node's URL must be like https://node.example/ or http://[::1]:8545")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if isinstance(address, ipaddress.IPv4Address) or getattr(address, "ipv4_mapped", None):
            raise ConfigError(f"{host} is an IPv4 address; name the chain's node by its IPv6 address or its name")
        if self.timeout_seconds <= 0 or self.attempts < 1:
            raise ConfigError("a chain node's timeout must be above 0 and its attempts at least 1")

    @property
    def place(self) -> str:
        """Scheme, host and port; a path or a user's name can be a key and stays out."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


class _BoundedResponse(aiohttp.ClientResponse):
    """Reads no more than an answer may have."""

    async def read(self) -> bytes:
        if self._body is None:
            pieces = bytearray()
            async for piece in self.content.iter_chunked(1 << 16):
                pieces += piece
                if len(pieces) > MAX_ANSWER_BYTES:
                    self.close()
                    raise AnchorUnavailable(f"the chain's node answers with more than {MAX_ANSWER_BYTES} bytes")
            self._body = bytes(pieces)
        return self._body


class Rpc:
    """One node. Belongs to the event loop it is first used in."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._opened = False
        self._provider = AsyncHTTPProvider(
            node.url,
            request_kwargs={
                "timeout": aiohttp.ClientTimeout(total=node.timeout_seconds),
                "allow_redirects": False,
            },
            # All that we ask is safe to ask again, the sending of a signed transaction too.
            exception_retry_configuration=ExceptionRetryConfiguration(
                errors=(aiohttp.ClientError, TimeoutError),
                retries=node.attempts,
                backoff_factor=FIRST_BACKOFF_SECONDS,
            ),
        )

    async def ask(self, method: str, *params: object) -> object:
        """The result of one call. Raises AnchorUnavailable and NodeError."""
        if not self._opened:
            self._opened = True
            await self._open()
        try:
            answer: object = await self._provider.make_request(RPCEndpoint(method), list(params))
        except AnchorError:
            raise
        except TimeoutError:
            raise AnchorUnavailable(
                f"the chain's node at {self._node.place} does not answer {method} within "
                f"{self._node.timeout_seconds:g} s ({self._node.attempts} tries)"
            ) from None
        except aiohttp.ClientResponseError as error:
            raise AnchorUnavailable(
                f"the chain's node at {self._node.place} answers {method} with HTTP status {error.status}"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            why = type(error).__name__ if isinstance(error, aiohttp.InvalidURL) else str(error)
            raise AnchorUnavailable(
                f"the chain's node at {self._node.place} cannot be reached: {why[:MAX_TEXT]}"
            ) from None
        except (ValueError, RecursionError):  # Not UTF-8, not JSON, or JSON to exhaust us.
            raise self._malformed(method) from None
        if not isinstance(answer, dict):
            raise self._malformed(method)
        if answer.get("error") is not None:
            raise _node_error(method, answer["error"])
        if "result" not in answer:
            raise self._malformed(method)
        return answer["result"]

    def _malformed(self, method: str) -> AnchorUnavailable:
        return AnchorUnavailable(f"what {self._node.place} answers to {method} is not JSON-RPC: is it a chain's node?")

    async def _open(self) -> None:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(family=socket.AF_INET6, limit=8),
            response_class=_BoundedResponse,
            raise_for_status=True,
        )
        await self._provider.cache_async_session(session)

    async def close(self) -> None:
        """Give up the connections."""
        await self._provider.disconnect()
        self._opened = False


def _node_error(method: str, error: object) -> NodeError:
    if not isinstance(error, dict):
        return NodeError(method, 0, json.dumps(error)[:MAX_TEXT])
    code, message, more = error.get("code"), error.get("message"), error.get("data")
    try:
        extra = data(more)
    except AnchorUnavailable:
        extra = b""
    return NodeError(method, code if isinstance(code, int) else 0, str(message), extra)

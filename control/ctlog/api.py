"""The log's interface without a transport: RFC 6962 section 4 (all eight calls) and the reads of static-ct-api. A
request is method, path below the log's prefix, query and body; a reply is a status as in HTTP, a type, a body, and how
long it may be cached. `http` carries it over HTTP/1.1, the node service over STOQ.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from control.ctlog.chains import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES
from control.ctlog.encoding import vector
from control.ctlog.errors import LogError, LogStopped, Malformed, NotFound, Refused, Unavailable
from control.ctlog.log import Log
from control.ctlog.sequencer import CHECKPOINT
from control.ctlog.structs import HASH_BYTES, EntryType, LogEntry
from control.ctlog.tiles import parse_tile_path

JSON = "application/json"
BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
NO_CACHE = "no-store"
HEAD_CACHE = "no-cache"
FOREVER = "public, max-age=31536000, immutable"
MAX_BODY_BYTES = MAX_CERTIFICATES * (MAX_CERTIFICATE_BYTES * 4 // 3 + 64) + 1024
MAX_INTEGER_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back; `cache` is a Cache-Control value."""

    status: int
    body: bytes
    content_type: str = JSON
    cache: str = NO_CACHE
    retry_after: int | None = None  # Seconds.


class _AddChain(msgspec.Struct):
    chain: list[str]


class SctAnswer(msgspec.Struct):
    """What add-chain and add-pre-chain answer; bytes in base64."""

    sct_version: int
    id: str
    timestamp: int
    extensions: str
    signature: str


class EntryAnswer(msgspec.Struct):
    """An entry; bytes in base64."""

    leaf_input: str
    extra_data: str


class EntriesAnswer(msgspec.Struct):
    """What get-entries answers."""

    entries: list[EntryAnswer]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _integer(query: Mapping[str, str], name: str) -> int:
    value = query.get(name, "")
    if not (value.isdigit() and value.isascii()) or len(value) > MAX_INTEGER_DIGITS:
        raise Malformed(f"{name} must be a number that is not negative")
    return int(value)


def decode_base64(text: str, what: str) -> bytes:
    """Raises Malformed."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} is not base64") from None


def _json(value: object, cache: str = NO_CACHE) -> Reply:
    return Reply(200, msgspec.json.encode(value), JSON, cache)


class LogApi:
    """One log's interface. `handle` never raises."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._calls: dict[tuple[str, str], Callable[[Mapping[str, str], bytes], Awaitable[Reply]]] = {
            ("POST", "ct/v1/add-chain"): lambda _, body: self._add(body, precertificate=False),
            ("POST", "ct/v1/add-pre-chain"): lambda _, body: self._add(body, precertificate=True),
            ("GET", "ct/v1/get-sth"): lambda query, _: self._get_sth(),
            ("GET", "ct/v1/get-sth-consistency"): lambda query, _: self._get_consistency(query),
            ("GET", "ct/v1/get-proof-by-hash"): lambda query, _: self._get_proof(query),
            ("GET", "ct/v1/get-entries"): lambda query, _: self._get_entries(query),
            ("GET", "ct/v1/get-roots"): lambda query, _: self._get_roots(),
            ("GET", "ct/v1/get-entry-and-proof"): lambda query, _: self._get_entry(query),
            ("GET", CHECKPOINT): lambda query, _: self._checkpoint(),
        }

    @property
    def paths(self) -> list[tuple[str, str]]:
        """Method and path of every fixed call."""
        return list(self._calls)

    async def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request."""
        try:
            call = self._calls.get((method, path))
            if call is not None:
                return await call(query, body)
            if method == "GET" and path.startswith("tile/"):
                return await self._tile(path)
            if method == "GET" and path.startswith("issuer/"):
                return await self._issuer(path.removeprefix("issuer/"))
            if any(path == known for _, known in self._calls):
                return _error(405, f"{path} is not for {method}")
            return _error(404, f"{path} is no call of this log")
        except (Malformed, Refused) as error:
            return _error(400, str(error))
        except NotFound as error:
            # RFC 6962 has no code for it; 404 is what clients take for "not yet".
            return _error(404, str(error))
        except Unavailable as error:
            return _error(503, str(error), retry_after=1)
        except (LogStopped, LogError) as error:
            return _error(500, str(error))

    # ---- RFC 6962 section 4 ----

    async def _add(self, body: bytes, *, precertificate: bool) -> Reply:
        if len(body) > MAX_BODY_BYTES:
            raise Refused(f"a body of {len(body)} bytes; {MAX_BODY_BYTES} are taken")
        try:
            request = msgspec.json.decode(body, type=_AddChain)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"the body is not {{'chain': [base64, …]}}: {error}") from None
        if not 1 <= len(request.chain) <= MAX_CERTIFICATES:
            raise Refused(f"{len(request.chain)} certificates; 1 to {MAX_CERTIFICATES} are taken")
        chain = [decode_base64(one, "a certificate of the chain") for one in request.chain]
        sct, _ = await self.log.add_chain(chain, precertificate=precertificate)
        signed = bytes(sct.algorithm) + vector(sct.signature, 2)
        answer = SctAnswer(0, _b64(sct.log_id), sct.timestamp, _b64(sct.extensions), _b64(signed))
        return _json(answer)

    async def _get_sth(self) -> Reply:
        head = self.log.head
        return _json(
            {
                "tree_size": head.size,
                "timestamp": head.timestamp,
                "sha256_root_hash": _b64(head.root),
                "tree_head_signature": _b64(head.signed),
            },
            HEAD_CACHE,
        )

    async def _get_consistency(self, query: Mapping[str, str]) -> Reply:
        old, new = _integer(query, "first"), _integer(query, "second")
        if old > new:
            raise Malformed("first must not be greater than second")
        proof = await self.log.consistency(old, new)
        return _json({"consistency": [_b64(one) for one in proof]}, FOREVER)

    async def _get_proof(self, query: Mapping[str, str]) -> Reply:
        size = _integer(query, "tree_size")
        leaf = decode_base64(query.get("hash", ""), "hash")
        if len(leaf) != HASH_BYTES or size == 0:
            raise Malformed("hash is 32 bytes in base64, and tree_size at least 1")
        index = await self.log.find(leaf)
        proof = await self.log.inclusion(index, size)
        return _json({"leaf_index": index, "audit_path": [_b64(one) for one in proof]}, FOREVER)

    async def _extra(self, entry: LogEntry) -> bytes:
        try:
            chain = vector(b"".join([vector(await self.log.issuer(one), 3) for one in entry.chain]), 3)
        except NotFound as error:
            raise LogStopped(f"entry {entry.index} cannot be told whole ({error}): run `stoq ct fsck`") from None
        if entry.entry.kind is EntryType.PRECERT:
            return vector(entry.precertificate, 3) + chain
        return chain

    async def _get_entries(self, query: Mapping[str, str]) -> Reply:
        start, end = _integer(query, "start"), _integer(query, "end")
        if start > end:
            raise Malformed("start must not be greater than end")
        entries = await self.log.entries(start, end)
        encoded = [EntryAnswer(_b64(one.leaf), _b64(await self._extra(one))) for one in entries]
        cache = FOREVER if len(entries) == end - start + 1 else NO_CACHE
        return _json(EntriesAnswer(encoded), cache)

    async def _get_roots(self) -> Reply:
        return _json({"certificates": [_b64(one) for one in self.log.acceptor.roots]}, HEAD_CACHE)

    async def _get_entry(self, query: Mapping[str, str]) -> Reply:
        index, size = _integer(query, "leaf_index"), _integer(query, "tree_size")
        proof = await self.log.inclusion(index, size)
        entry = await self.log.entry(index)
        answer = {
            "leaf_input": _b64(entry.leaf),
            "extra_data": _b64(await self._extra(entry)),
            "audit_path": [_b64(one) for one in proof],
        }
        return _json(answer, FOREVER)

    # ---- static-ct-api ----

    async def _checkpoint(self) -> Reply:
        return Reply(200, self.log.note, TEXT, HEAD_CACHE)

    async def _tile(self, path: str) -> Reply:
        return Reply(200, await self.log.tile(*parse_tile_path(path)), BINARY, FOREVER)

    async def _issuer(self, name: str) -> Reply:
        try:
            fingerprint = bytes.fromhex(name)
        except ValueError:
            fingerprint = b""
        if len(fingerprint) != HASH_BYTES or fingerprint.hex() != name:
            raise NotFound(f"issuer/{name[:70]} is not named by a SHA-256")
        return Reply(200, await self.log.issuer(fingerprint), "application/pkix-cert", FOREVER)


def _error(status: int, text: str, retry_after: int | None = None) -> Reply:
    return Reply(status, msgspec.json.encode({"error": text}), JSON, NO_CACHE, retry_after)

"""A client of any RFC 6962 log: typed calls over whatever carries requests to it, HTTP/1.1 here. Nothing that a log
says is taken on trust where it can be checked: signatures and proofs are, by whoever asks with the log's key.
"""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from control.ctlog import merkle
from control.ctlog.api import EntriesAnswer, SctAnswer, decode_base64
from control.ctlog.encoding import Reader
from control.ctlog.errors import LogError, Malformed, NotFound, ProofError, Refused, Unavailable
from control.ctlog.note import TreeHead
from control.ctlog.structs import (
    HASH_BYTES,
    EntryType,
    LogKey,
    Sct,
    SignedEntry,
    decode_leaf,
    decode_signed,
    key_id,
    verify_sct,
)

MAX_ANSWER_BYTES = 64 << 20
MAX_ENTRIES = 100_000  # Of one answer.
TIMEOUT_SECONDS = 30.0

T = TypeVar("T")


class Carrier(Protocol):
    """Takes a request to a log and brings status and body back. Raises Unavailable."""

    async def request(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes
    ) -> tuple[int, bytes]:
        """`path` is below the log's prefix."""

    async def close(self) -> None:
        """Give up connections."""


class HttpCarrier:
    """HTTP/1.1 over IPv6 with kept connections. `tls`: for https, a context that trusts the server."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.url = url.rstrip("/")
        host = urlsplit(url).hostname or ""
        if host.replace(".", "").isdigit():
            raise Refused(f"{host} is an IPv4 address: STOQ is IPv6-only; write http://[IPv6]:port/…")
        self._tls = tls
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes
    ) -> tuple[int, bytes]:
        """See Carrier."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=256, family=socket.AF_INET6, ssl=self._tls or True)
            timeout = aiohttp.ClientTimeout(total=self._timeout)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        try:
            async with self._session.request(
                method, f"{self.url}/{path}", params=query, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                data = bytearray()
                async for part in answer.content.iter_chunked(1 << 16):
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise Malformed(f"{self.url} answers with more than {MAX_ANSWER_BYTES} bytes")
                return answer.status, bytes(data)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, AssertionError) as error:
            what = str(error) or type(error).__name__
            raise Unavailable(f"the log at {self.url} does not answer: {what}") from None

    async def close(self) -> None:
        """See Carrier."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Sth(msgspec.Struct):
    tree_size: int
    timestamp: int
    sha256_root_hash: str
    tree_head_signature: str


class _Consistency(msgspec.Struct):
    consistency: list[str]


class _Proof(msgspec.Struct):
    leaf_index: int
    audit_path: list[str]


class _EntryAndProof(msgspec.Struct):
    leaf_input: str
    extra_data: str
    audit_path: list[str]


class _Roots(msgspec.Struct):
    certificates: list[str]


class _Problem(msgspec.Struct):
    error: str = ""


@dataclass(frozen=True, slots=True)
class FetchedEntry:
    """An entry as get-entries gives it. `leaf`: the MerkleTreeLeaf; `submitted`: certificate or precertificate, DER;
    `chain`: DER, issuer first."""

    index: int
    leaf: bytes
    entry: SignedEntry
    timestamp: int
    submitted: bytes
    chain: tuple[bytes, ...]

    @property
    def leaf_hash(self) -> bytes:
        """Its hash in the tree."""
        return merkle.leaf_hash(self.leaf)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _hashes(texts: Sequence[str]) -> list[bytes]:
    if len(texts) > merkle.MAX_PROOF_HASHES:
        raise Malformed(f"a proof of {len(texts)} hashes")
    return [decode_base64(one, "a hash of the proof") for one in texts]


def _chain(data: bytes) -> tuple[bytes, ...]:
    outer = Reader(data, "the entry's chain")
    reader = Reader(outer.vector(3), "the entry's chain")
    outer.end()
    chain = []
    while reader.left:
        chain.append(reader.vector(3))
    return tuple(chain)


def _entry(index: int, leaf: bytes, extra: bytes) -> FetchedEntry:
    entry, timestamp, _ = decode_leaf(leaf)
    if entry.kind is EntryType.PRECERT:
        reader = Reader(extra, "the precertificate's chain")
        submitted = reader.vector(3)
        chain = _chain(reader.take(reader.left))
    else:
        submitted, chain = entry.certificate, _chain(extra)
    return FetchedEntry(index, leaf, entry, timestamp, submitted, chain)


class LogClient:
    """One log. With its `key` every signature is checked, without it none can be. Raises Unavailable, Refused,
    NotFound, Malformed and ProofError. A context manager that closes the carrier."""

    def __init__(self, carrier: Carrier, key: LogKey | None, name: str = "") -> None:
        self._carrier = carrier
        self.key = key
        self.name = name

    @property
    def log_id(self) -> bytes:
        """SHA-256 of the key. Raises LogError without one."""
        if self.key is None:
            raise LogError("the log's key is not known: name it with --log-key")
        return key_id(self.key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up connections."""
        await self._carrier.close()

    async def _call(
        self, kind: type[T], path: str, query: Mapping[str, str | int] | None = None, body: bytes = b""
    ) -> T:
        status, data = await self._carrier.request("POST" if body else "GET", path, query or {}, body)
        if status != 200:
            raise self._failure(status, data)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"the log's answer to {path} is not what RFC 6962 says: {error}") from None

    def _failure(self, status: int, data: bytes) -> LogError:
        try:
            text = msgspec.json.decode(data, type=_Problem).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            text = data[:200].decode(errors="replace").strip()
        text = f"the log answers {status}: {text or 'without a reason'}"
        if status in (429, 502, 503, 504):
            return Unavailable(text)
        if status == 404:
            return NotFound(text)
        return Refused(text) if 400 <= status < 500 else LogError(text)

    async def fetch(self, path: str) -> bytes:
        """An object of the static-ct-api layout."""
        status, data = await self._carrier.request("GET", path, {}, b"")
        if status != 200:
            raise self._failure(status, data)
        return data

    # ---- RFC 6962 section 4 ----

    async def add_chain(self, chain: Sequence[bytes]) -> Sct:
        """Submit a certificate with its chain (DER, leaf first)."""
        return await self._add("ct/v1/add-chain", chain)

    async def add_pre_chain(self, chain: Sequence[bytes]) -> Sct:
        """Submit a precertificate with its chain."""
        return await self._add("ct/v1/add-pre-chain", chain)

    async def _add(self, path: str, chain: Sequence[bytes]) -> Sct:
        body = msgspec.json.encode({"chain": [_b64(one) for one in chain]})
        answer = await self._call(SctAnswer, path, body=body)
        if answer.sct_version != 0 or answer.timestamp < 0:
            raise Malformed("the log's answer is not an SCT of version 1")
        algorithm, signature = decode_signed(decode_base64(answer.signature, "the SCT's signature"))
        log_id, extensions = decode_base64(answer.id, "the log's id"), decode_base64(answer.extensions, "extensions")
        if self.key is not None and log_id != self.log_id:
            raise ProofError(f"the SCT is of log {log_id.hex()[:16]}, not of {self.log_id.hex()[:16]}")
        return Sct(log_id, answer.timestamp, extensions, signature, algorithm)

    def check_sct(self, sct: Sct, entry: SignedEntry) -> None:
        """That the SCT is this log's promise for `entry`. Raises ProofError."""
        if self.key is None:
            raise LogError("the log's key is not known: name it with --log-key")
        verify_sct(sct, entry, self.key)

    async def get_sth(self) -> TreeHead:
        """The newest tree head, its signature checked when the key is known."""
        answer = await self._call(_Sth, "ct/v1/get-sth")
        root = decode_base64(answer.sha256_root_hash, "the root hash")
        algorithm, signature = decode_signed(decode_base64(answer.tree_head_signature, "the tree head's signature"))
        if len(root) != HASH_BYTES or answer.tree_size < 0 or not 0 <= answer.timestamp < 1 << 63:
            raise Malformed("the log's tree head is malformed")
        head = TreeHead(answer.timestamp, answer.tree_size, root, signature, algorithm)
        if self.key is not None:
            head.verify(self.key)
        return head

    async def get_consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `new` goes on that of `old`; to be verified by the caller."""
        query = {"first": old, "second": new}
        return _hashes((await self._call(_Consistency, "ct/v1/get-sth-consistency", query)).consistency)

    async def get_proof_by_hash(self, leaf_hash: bytes, size: int) -> tuple[int, list[bytes]]:
        """Index and inclusion proof of a leaf hash; to be verified by the caller."""
        answer = await self._call(_Proof, "ct/v1/get-proof-by-hash", {"hash": _b64(leaf_hash), "tree_size": size})
        return answer.leaf_index, _hashes(answer.audit_path)

    async def prove(self, leaf_hash: bytes, head: TreeHead) -> tuple[int, list[bytes]]:
        """Index and proof that a leaf is in the tree of `head`, verified. Raises ProofError."""
        index, proof = await self.get_proof_by_hash(leaf_hash, head.size)
        merkle.verify_inclusion(index, head.size, leaf_hash, proof, head.root)
        return index, proof

    async def get_entries(self, start: int, end: int) -> list[FetchedEntry]:
        """Entries `start` to `end`, both included; a log may give fewer, at least one."""
        answer = await self._call(EntriesAnswer, "ct/v1/get-entries", {"start": start, "end": end})
        if not 1 <= len(answer.entries) <= min(end - start + 1, MAX_ENTRIES):
            raise Malformed(f"{len(answer.entries)} entries for {start} to {end}")
        return [
            _entry(
                start + place,
                decode_base64(one.leaf_input, "a leaf"),
                decode_base64(one.extra_data, "an entry's extra data"),
            )
            for place, one in enumerate(answer.entries)
        ]

    async def get_entry_and_proof(self, index: int, size: int) -> tuple[FetchedEntry, list[bytes]]:
        """One entry with its inclusion proof; to be verified by the caller."""
        answer = await self._call(
            _EntryAndProof, "ct/v1/get-entry-and-proof", {"leaf_index": index, "tree_size": size}
        )
        leaf = decode_base64(answer.leaf_input, "a leaf")
        extra = decode_base64(answer.extra_data, "an entry's extra data")
        return _entry(index, leaf, extra), _hashes(answer.audit_path)

    async def get_roots(self) -> list[bytes]:
        """The roots that the log takes chains to, DER."""
        return [decode_base64(one, "a root") for one in (await self._call(_Roots, "ct/v1/get-roots")).certificates]


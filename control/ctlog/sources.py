"""Where a monitor gets a log's heads and entries: the calls of RFC 6962 section 4, or the tiles of static-ct-api. Nothing is
believed here and little is checked: that is the monitor's."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from control.ctlog import merkle
from control.ctlog.client import Carrier, LogClient
from control.ctlog.errors import LogStopped, Malformed, NotFound, ProofError, Refused, Unavailable
from control.ctlog.monitor import RawEntry
from control.ctlog.note import TreeHead, open_checkpoint
from control.ctlog.structs import EntryType, LogKey
from control.ctlog.tiles import (
    DATA,
    TILE_HEIGHT,
    TILE_WIDTH,
    TileReader,
    Tree,
    split_entries,
    split_hashes,
    tile_path,
    tile_width,
    within,
)
from control.ctlog.watched import MAX_CHAIN, Extra, decode_extra

MAX_ISSUERS = 4096
MAX_ISSUER_BYTES = 64 << 10
PASSING = (408, 429, 500, 502, 503, 504)  # Answers that may be others soon.


class _Entry(msgspec.Struct):
    leaf_input: bytes  # msgspec decodes the base64.
    extra_data: bytes


class _Entries(msgspec.Struct):
    entries: list[_Entry]


def _raise(status: int, what: str) -> None:
    """For an answer that is none."""
    text = f"the log answers {status} to {what}"
    if status in PASSING:
        raise Unavailable(text)
    raise NotFound(text) if status == 404 else Refused(text)


class PatientCarrier:
    """Asks again, after longer and longer pauses (`first` seconds, doubled up to `most`), where no answer came and one may
    come soon: one lost answer does not end a long download. Only where the log has answered since `begin`, so that a wrong
    address, or a log that is away, is said at once. `tell` hears of the first of the failures since then."""

    def __init__(
        self, carrier: Carrier, tell: Callable[[str], None], *, retries: int = 6, first: float = 0.2, most: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._carrier = carrier
        self._tell = tell
        self._retries = retries
        self._pauses = (first, most)
        self._sleep = sleep
        self._answered = self._told = False

    def begin(self) -> None:
        """A new look at the log."""
        self._answered = self._told = False

    async def request(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes
    ) -> tuple[int, bytes]:
        """See Carrier."""
        pause, most = self._pauses
        for left in range(self._retries, -1, -1):
            try:
                status, data = await self._carrier.request(method, path, query, body)
                if status not in PASSING or not left or not self._answered:
                    self._answered = True
                    return status, data
                why = f"the log answers {status} to {path}"
            except Unavailable as error:
                if not left or not self._answered:
                    raise
                why = str(error)
            if not self._told:
                self._told = True
                self._tell(why)
            await self._sleep(pause)
            pause = min(2 * pause, most)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """See Carrier."""
        await self._carrier.close()


class RfcSource:
    """RFC 6962 over any carrier."""

    page = 1024  # Entries asked for at a time; logs give what they like.

    def __init__(self, carrier: Carrier, name: str) -> None:
        self._carrier = carrier
        self._client = LogClient(carrier, None, name)
        self._decoder = msgspec.json.Decoder(_Entries)

    async def head(self) -> TreeHead:
        """See Source."""
        return await self._client.get_sth()

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """See Source."""
        return await self._client.get_consistency(old, new)

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """See Source."""
        _, proof = await self._client.get_entry_and_proof(index, size)
        return proof

    async def left(self, old: int, new: int) -> bytes:
        """See Source."""
        proof = await self.inclusion(old, new)
        plan = merkle.inclusion_plan(old, new)
        for nodes, value in zip(plan.ranges, proof, strict=False):
            if nodes == tuple(merkle.perfect_subtrees(0, old)):
                return value
        return b""

    async def entries(self, start: int, end: int) -> list[RawEntry]:
        """See Source."""
        query: Mapping[str, str | int] = {"start": start, "end": end - 1}
        status, data = await self._carrier.request("GET", "ct/v1/get-entries", query, b"")
        if status != 200:
            _raise(status, f"get-entries {start} to {end - 1}")
        try:
            given = self._decoder.decode(data).entries
        except msgspec.MsgspecError as error:
            raise Malformed(f"the answer to get-entries is not what RFC 6962 says: {error}") from None
        if not 1 <= len(given) <= end - start:
            raise Malformed(f"{len(given)} entries for {start} to {end - 1}")
        return [(one.leaf_input, _extra(one)) for one in given]

    async def shows(self, leaf: bytes, index: int | None, head: TreeHead, tree: Tree) -> None:
        """See Source."""
        await self._client.prove(merkle.leaf_hash(leaf), head)

    async def close(self) -> None:
        """See Source."""
        await self._carrier.close()


def _extra(one: _Entry) -> Extra | Malformed:
    try:
        return decode_extra(one.leaf_input, one.extra_data)
    except Malformed as error:
        return error


class TileSource:
    """static-ct-api's read side over any carrier. `origin` is the log's name in its checkpoints."""

    page = TILE_WIDTH

    def __init__(self, carrier: Carrier, name: str, origin: str, key: LogKey) -> None:
        self._client = LogClient(carrier, None, name)
        self._origin = origin
        self._key = key
        self._size = 0
        self._issuers: OrderedDict[bytes, bytes] = OrderedDict()

    async def head(self) -> TreeHead:
        """See Source. Raises ProofError too: what a checkpoint's signature covers has its name in it."""
        head = open_checkpoint(await self._client.fetch("checkpoint"), self._origin, self._key)
        self._size = head.size
        return head

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """See Source. What an RFC 6962 log answers is made here of the same hashes."""
        plan = merkle.consistency_plan(old, new)
        return plan.fold(await self._nodes(plan.nodes, new))

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """See Source."""
        plan = merkle.inclusion_plan(index, size)
        return plan.fold(await self._nodes(plan.nodes, size))

    async def left(self, old: int, new: int) -> bytes:
        """See Source."""
        return (await self._nodes([(old.bit_length() - 1, 0)], new))[0]

    async def _nodes(self, nodes: Sequence[merkle.Node], size: int) -> list[bytes]:
        """Nodes of the tree of `size`, as the log has them."""
        tiles: dict[tuple[int, int], list[bytes]] = {}
        found = []
        for level, index in nodes:
            key = (level // TILE_HEIGHT, (index << (level % TILE_HEIGHT)) // TILE_WIDTH)
            if key not in tiles:
                width = tile_width(size, *key)
                data, full = await self._tile(*key, width)
                tiles[key] = split_hashes(data, full)[:width]
            found.append(within(tiles[key], (level, index)))
        return found

    async def entries(self, start: int, end: int) -> list[RawEntry]:
        """See Source."""
        number, skip = divmod(start, TILE_WIDTH)
        width = tile_width(self._size, DATA, number)
        entries = split_entries(*await self._tile(DATA, number, width))
        found: list[RawEntry] = []
        for one in entries[skip : end - number * TILE_WIDTH]:
            try:
                chain = tuple([await self._issuer(fingerprint) for fingerprint in one.chain[:MAX_CHAIN]])
                precertificate = one.precertificate if one.entry.kind is EntryType.PRECERT else b""
                found.append((one.leaf, Extra(precertificate, chain)))
            except (Malformed, NotFound) as error:
                found.append((one.leaf, Malformed(str(error))))
        if not found:
            raise Malformed(f"{tile_path(DATA, number, width)} has no entry {start}")
        return found

    async def _tile(self, level: int, number: int, width: int) -> tuple[bytes, int]:
        """A tile that has at least `width`, and how many it has."""
        try:
            return await self._client.fetch(tile_path(level, number, width)), width
        except NotFound:
            if width == TILE_WIDTH:
                raise
        # The log has gone on, and partial tiles go away when they are full.
        return await self._client.fetch(tile_path(level, number)), TILE_WIDTH

    async def _issuer(self, fingerprint: bytes) -> bytes:
        found = self._issuers.get(fingerprint)
        if found is None:
            found = await self._client.fetch(f"issuer/{fingerprint.hex()}")
            if len(found) > MAX_ISSUER_BYTES or hashlib.sha256(found).digest() != fingerprint:
                raise Malformed(f"issuer/{fingerprint.hex()} is another certificate")
            self._issuers[fingerprint] = found
            if len(self._issuers) > MAX_ISSUERS:
                self._issuers.popitem(last=False)
        return found

    async def shows(self, leaf: bytes, index: int | None, head: TreeHead, tree: Tree) -> None:
        """See Source."""
        if index is None:
            raise NotFound("the SCT does not say which entry it is")
        try:
            reader = TileReader(self._client.fetch, tree)
            hashes = await reader.hashes(0, index // TILE_WIDTH)
        except LogStopped as error:
            raise ProofError(str(error)) from None
        if hashes[index % TILE_WIDTH : index % TILE_WIDTH + 1] != [merkle.leaf_hash(leaf)]:
            raise ProofError(f"entry {index} is another one")

    async def close(self) -> None:
        """See Source."""
        await self._client.close()

"""Where the tree lies: tiles of 256 hashes or entries, as static-ct-api and tlog-tiles (C2SP) name them.

    tile/<L>/<N>            full: hashes N*256 … N*256+255 of level 8*L
    tile/<L>/<N>.p/<W>      partial: the first W of them, of a tree that ends there
    tile/data/<N>[.p/<W>]   the entries of tile/0/<N>
    N in groups of three digits, all but the last with an x: 1234067 is x001/x234/067

`Tree` is the right edge of a growing tree: for each level of tiles the hashes of the one that is not full. It is all
that appending needs: entries go in as leaf hashes, changed tiles come out. It is bounded by 256 hashes a level.

`TileReader` is the way back: it takes tiles from a storage that nobody trusts and lets none through whose hashes do
not lead to the edge, hence to the signed head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from control.ctlog.encoding import Reader
from control.ctlog.errors import LogStopped, Malformed, NotFound
from control.ctlog.merkle import EMPTY_ROOT, HASH_BYTES, Node, node_hash, root_plan
from control.ctlog.structs import LogEntry, read_log_entry

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
MAX_LEVEL = 8  # Of tiles: 256^8 leaves.
MAX_DATA_TILE_BYTES = 64 << 20

DATA = -1  # The "level" of data tiles.


def number_path(number: int) -> str:
    """A tile's number in groups of three digits."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03d}")
    return "/".join(groups)


def tile_path(level: int, number: int, width: int = TILE_WIDTH) -> str:
    """The key of a tile; `level` DATA for entries."""
    name = "data" if level == DATA else str(level)
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{name}/{number_path(number)}{partial}"


def partials_prefix(level: int, number: int) -> str:
    """What all partial forms of a tile lie under."""
    return tile_path(level, number) + ".p"


def parse_tile_path(key: str) -> tuple[int, int, int]:
    """Level (DATA for entries), number and width of a tile's key. Raises NotFound for anything else."""
    error = NotFound(f"{key!r} is no tile")
    parts = key.split("/")
    if len(parts) < 3 or len(parts) > 12 or parts[0] != "tile":
        raise error
    width = TILE_WIDTH
    if parts[-2].endswith(".p"):
        if not (parts[-1].isdigit() and parts[-1].isascii() and len(parts[-1]) <= 3):
            raise error
        width = int(parts[-1])
        parts = [*parts[:-2], parts[-2][:-2]]
    if parts[1] == "data":
        level = DATA
    elif parts[1].isdigit() and parts[1].isascii() and len(parts[1]) == 1:
        level = int(parts[1])
    else:
        raise error
    groups = parts[2:]
    digits = [group.removeprefix("x") if place < len(groups) - 1 else group for place, group in enumerate(groups)]
    if not digits or any(len(one) != 3 or not one.isdigit() or not one.isascii() for one in digits):
        raise error
    number = int("".join(digits))
    # One way to write each: what is not canonical is not there, so that caches cannot hold it twice.
    if not 1 <= width <= TILE_WIDTH or tile_path(level, number, width) != key:
        raise error
    return level, number, width


def level_width(size: int, level: int) -> int:
    """How many hashes (entries for DATA) the tiles of a level hold in a tree of `size`."""
    return size if level == DATA else size >> (TILE_HEIGHT * level)


def tile_width(size: int, level: int, number: int) -> int:
    """How full a tile is in a tree of `size`; 0: it does not exist."""
    return max(0, min(TILE_WIDTH, level_width(size, level) - number * TILE_WIDTH))


def subtree(hashes: Sequence[bytes]) -> bytes:
    """The hash over a power of two of neighbours."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def within(hashes: Sequence[bytes], node: Node) -> bytes:
    """A node from the hashes of the tile that it lies in."""
    level, index = node[0] % TILE_HEIGHT, node[1]
    begin = (index << level) % TILE_WIDTH
    return subtree(hashes[begin : begin + (1 << level)])


class Tree:
    """The right edge; see the module's text. `edge[L]` has the hashes of level 8*L that fill no tile yet."""

    __slots__ = ("edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[Iterable[bytes]] = ()) -> None:
        self.size = size
        self.edge = [list(level) for level in edge]

    def copy(self) -> Tree:
        """An independent one."""
        return Tree(self.size, self.edge)

    def append(self, leaves: Iterable[bytes]) -> dict[tuple[int, int, int], bytes]:
        """Append leaf hashes; returns the hash tiles that changed, by level, number and width."""
        tiles: dict[tuple[int, int, int], bytes] = {}
        level, incoming = 0, list(leaves)
        begin = self.size
        self.size += len(incoming)
        while incoming:
            if level == len(self.edge):
                self.edge.append([])
            held = self.edge[level]
            number = (begin >> (TILE_HEIGHT * level)) // TILE_WIDTH
            held += incoming
            incoming = []
            while len(held) >= TILE_WIDTH:
                full = held[:TILE_WIDTH]
                del held[:TILE_WIDTH]
                tiles[level, number, TILE_WIDTH] = b"".join(full)
                incoming.append(subtree(full))
                number += 1
            if held:
                tiles[level, number, len(held)] = b"".join(held)
            level += 1
        return tiles

    def node(self, node: Node) -> bytes | None:
        """A node that lies in a tile of the edge; None: in a full one."""
        level = node[0] // TILE_HEIGHT
        number = (node[1] << (node[0] % TILE_HEIGHT)) // TILE_WIDTH
        if level < len(self.edge) and number == level_width(self.size, level) // TILE_WIDTH:
            return within(self.edge[level], node)
        return None

    def root(self) -> bytes:
        """The root hash."""
        if self.size == 0:
            return EMPTY_ROOT
        # A perfect subtree of the whole tree lies in the edge: what fills a tile is one hash of the level above.
        plan = root_plan(self.size)
        hashes = [self.node(node) for node in plan.nodes]
        return plan.fold([one for one in hashes if one is not None])[0]


def split_hashes(data: bytes, width: int) -> list[bytes]:
    """The hashes of a tile. Raises Malformed when there are not `width`."""
    if len(data) != width * HASH_BYTES:
        raise Malformed(f"a tile of {len(data)} bytes; {width} hashes have {width * HASH_BYTES}")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def split_entries(data: bytes, width: int) -> list[LogEntry]:
    """The entries of a data tile. Raises Malformed when there are not `width`."""
    if len(data) > MAX_DATA_TILE_BYTES:
        raise Malformed(f"a data tile of {len(data)} bytes; {MAX_DATA_TILE_BYTES} are taken")
    reader = Reader(data, "the data tile")
    entries = [read_log_entry(reader) for _ in range(width)]
    reader.end()
    return entries


Fetch = Callable[[str], Awaitable[bytes]]


class TileReader:
    """Authenticated reads. `fetch` gets an object by key; `tree` is the edge of the head that is read at."""

    def __init__(self, fetch: Fetch, tree: Tree, *, hash_tiles: int = 1024, data_tiles: int = 32) -> None:
        self._fetch = fetch
        self._tree = tree
        self._hashes: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._entries: OrderedDict[int, list[LogEntry]] = OrderedDict()
        self._limits = (hash_tiles, data_tiles)

    def at(self, tree: Tree) -> None:
        """Read at a later head. Full tiles stay what they are."""
        self._tree = tree

    @property
    def size(self) -> int:
        """Of the tree that is read."""
        return self._tree.size

    async def hashes(self, level: int, number: int) -> list[bytes]:
        """The hashes of a tile as they are in this tree: a full one, or the edge's. Raises LogStopped when what the
        storage has does not lead to the head, NotFound when there is no such tile in the tree."""
        tree = self._tree
        width = tile_width(tree.size, level, number)
        if width == 0:
            raise NotFound(f"there is no tile {number} of level {level} in a tree of {tree.size}")
        if width < TILE_WIDTH:
            return tree.edge[level]
        key = (level, number)
        found = self._hashes.get(key)
        if found is not None:
            self._hashes.move_to_end(key)
            return found
        path = tile_path(level, number)
        try:
            hashes = split_hashes(await self._fetch(path), TILE_WIDTH)
        except (Malformed, NotFound) as error:
            raise LogStopped(f"{path} is damaged or lost ({error}): run `stoq ct fsck`") from None
        parent = (await self.hashes(level + 1, number // TILE_WIDTH))[number % TILE_WIDTH]
        if subtree(hashes) != parent:
            raise LogStopped(f"{path} does not lead to the signed head: run `stoq ct fsck`")
        self._hashes[key] = hashes
        if len(self._hashes) > self._limits[0]:
            self._hashes.popitem(last=False)
        return hashes

    async def nodes(self, nodes: Iterable[Node]) -> list[bytes]:
        """Any nodes of the tree."""
        found = []
        for level, index in nodes:
            number = (index << (level % TILE_HEIGHT)) // TILE_WIDTH
            found.append(within(await self.hashes(level // TILE_HEIGHT, number), (level, index)))
        return found

    async def entries(self, number: int) -> list[LogEntry]:
        """The entries of a data tile as they are in this tree. Raises LogStopped and NotFound as `hashes` does."""
        while True:
            tree = self._tree
            width = tile_width(tree.size, DATA, number)
            held = self._entries.get(number)
            if held is not None and len(held) >= width:
                self._entries.move_to_end(number)
                return held[:width]
            hashes = (await self.hashes(0, number))[:width]
            path = tile_path(DATA, number, width)
            try:
                entries = split_entries(await self._fetch(path), width)
                break
            except (Malformed, NotFound) as error:
                if self._tree is not tree:
                    continue  # The tree grew meanwhile, and the partial tile went away when it was full.
                raise LogStopped(f"{path} is damaged or lost ({error}): run `stoq ct fsck`") from None
        for place, entry in enumerate(entries):
            if entry.index != number * TILE_WIDTH + place or entry.leaf_hash != hashes[place]:
                raise LogStopped(f"entry {place} of {path} does not lead to the signed head: run `stoq ct fsck`")
        self._entries[number] = entries
        if len(self._entries) > self._limits[1]:
            self._entries.popitem(last=False)
        return entries

    async def entry(self, index: int) -> LogEntry:
        """One entry. Raises NotFound."""
        if not 0 <= index < self._tree.size:
            raise NotFound(f"there is no entry {index} in a tree of {self._tree.size}")
        return (await self.entries(index // TILE_WIDTH))[index % TILE_WIDTH]

"""Where the tree lies (control.ctlog.tiles): names, growth, and reads that let nothing wrong through."""

from __future__ import annotations

import hashlib
import random

import pytest

from control.ctlog import merkle
from control.ctlog.errors import LogStopped, Malformed, NotFound
from control.ctlog.structs import LogEntry
from control.ctlog.tiles import (
    DATA,
    TILE_WIDTH,
    TileReader,
    Tree,
    number_path,
    parse_tile_path,
    split_entries,
    split_hashes,
    tile_path,
    tile_width,
)
from tests.ctlog.test_merkle import flipped
from tests.ctlog.world import run_with_deadline, submission


def test_names_as_the_specification_shows_them() -> None:
    assert number_path(1234067) == "x001/x234/067"
    assert tile_path(0, 0) == "tile/0/000"
    assert tile_path(3, 999, 1) == "tile/3/999.p/1"
    assert tile_path(DATA, 1000) == "tile/data/x001/000"
    assert tile_path(DATA, 1234067, 255) == "tile/data/x001/x234/067.p/255"


def test_names_are_canonical_both_ways() -> None:
    dice, seen = random.Random(4), set()
    for _ in range(3000):
        level = dice.randint(-1, 8)
        number, width = dice.getrandbits(dice.randint(0, 48)), dice.randint(1, TILE_WIDTH)
        path = tile_path(level, number, width)
        assert parse_tile_path(path) == (level, number, width)
        seen.add(path)
    for path in seen:  # Whatever is near a name and parses at all is another tile's own name.
        at = dice.randrange(len(path))
        for near in (path[:at] + dice.choice("0123456789x/.pd") + path[at + 1 :], path[:at] + path[at + 1 :]):
            try:
                assert tile_path(*parse_tile_path(near)) == near
            except NotFound:
                pass


@pytest.mark.parametrize(
    "path",
    [
        "", "tile", "tile/", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/x000/000",
        "tile/0/x000", "tile/0/001/000", "tile/0/x001/x000", "tile/00/000", "tile/01/000", "tile/-1/000", "tile/a/000",
        "tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/01", "tile/0/000.p/256", "tile/0/000.p/257",
        "tile/0/000.p/-1", "tile/0/000.p/1/2", "tile/0/000.p/1.p/1", "tile/0/.p/1", "tile/0/x001.p/000",
        "tile/0//000", "/tile/0/000", "tile/0/000/", "tile/0/٠٠٠", "tile/0/²²²", "tile/0/000.p/²", "tile/data",
        "tile/data/x1/000", "tile/Data/000", "tile/0/xx01/000", "tile/0/ 00", "tile/0/+00", "tile/0/1_0",
        "tile/0/" + "x999/" * 200 + "999", "tile/0/../data/000", "tiles/0/000", "tile/0/000\n", "tile/0/000.p/1\n",
    ],
)  # fmt: skip
def test_what_is_no_name(path: str) -> None:
    with pytest.raises(NotFound):
        parse_tile_path(path)


def leaf(number: int) -> bytes:
    """A leaf hash."""
    return hashlib.sha256(b"\x00%d" % number).digest()


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, level by level: an odd node goes up as it is."""
    level = leaves or [hashlib.sha256(b"").digest()]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


@pytest.mark.parametrize("seed", range(4))
def test_grown_in_random_batches(seed: int) -> None:
    """The root is the naive one after each, and the tiles written so far are those of the tree, to the last one."""
    dice = random.Random(seed)
    tree, leaves = Tree(), [leaf(number) for number in range(70_000 if seed == 0 else 3_000)]
    tiles: dict[tuple[int, int, int], bytes] = {}
    while tree.size < len(leaves):
        count = dice.choice((0, 1, 2, 255, 256, 257, dice.randint(1, 1000), dice.randint(1, 30_000)))
        before = tree.copy()
        changed = tree.append(leaves[tree.size : tree.size + count])
        assert before.size + min(count, len(leaves) - before.size) == tree.size
        for key, data in changed.items():
            assert tiles.setdefault(key, data) == data  # A tile never changes.
        assert tree.root() == naive_root(leaves[: tree.size])
        for level, held in enumerate(tree.edge):
            assert len(held) == (tree.size >> 8 * level) % TILE_WIDTH
    for level in range(3):
        for number in range((tree.size >> 8 * level) // TILE_WIDTH):
            hashes = split_hashes(tiles[level, number, TILE_WIDTH], TILE_WIDTH)
            width = 1 << 8 * level
            first = (number * TILE_WIDTH) * width
            assert hashes[0] == naive_root(leaves[first : first + width])
            assert hashes[-1] == naive_root(leaves[first + 255 * width : first + 256 * width])


class Tiles:
    """A storage in memory, and a tree."""

    def __init__(self, size: int) -> None:
        self.tree = Tree()
        self.entries = [
            LogEntry(one.entry, 1000 + number, number, one.fingerprints, one.precertificate)
            for number, one in ((number, submission(number)) for number in range(size))
        ]
        self.leaves = [entry.leaf_hash for entry in self.entries]
        self.objects = {tile_path(*key): data for key, data in self.tree.append(self.leaves).items()}
        for begin in range(0, size, TILE_WIDTH):
            part = self.entries[begin : begin + TILE_WIDTH]
            path = tile_path(DATA, begin // TILE_WIDTH, len(part))
            self.objects[path] = b"".join(entry.encode() for entry in part)

    async def get(self, key: str) -> bytes:
        """See Storage."""
        if key not in self.objects:
            raise NotFound(f"there is no {key}")
        return self.objects[key]

    def reader(self, **limits: int) -> TileReader:
        """Without a memory of what it read."""
        return TileReader(self.get, self.tree, **limits)


def test_reads_and_bounds() -> None:
    async def main() -> None:
        tiles = Tiles(700)
        reader = tiles.reader(hash_tiles=1, data_tiles=1)
        for index in (0, 255, 256, 511, 512, 699, 3):
            assert await reader.entry(index) == tiles.entries[index]
        assert len(reader._hashes) == 1 and len(reader._entries) == 1
        for index in (-1, 700, 1 << 40):
            with pytest.raises(NotFound):
                await reader.entry(index)
        for level, number in ((0, 3), (1, 1), (2, 0), (7, 0)):
            with pytest.raises(NotFound):
                await reader.hashes(level, number)
        for size in (1, 255, 256, 257, 511, 512, 513, 699, 700):
            plan = merkle.root_plan(size)
            assert plan.fold(await reader.nodes(plan.nodes)) == [naive_root(tiles.leaves[:size])]

    run_with_deadline(main())


def test_no_flipped_bit_passes() -> None:
    """In every byte of a tile of hashes, and in every byte of entries that RFC 6962 hashes."""

    async def main() -> None:
        tiles, dice = Tiles(264), random.Random(5)
        path = tile_path(0, 0)
        whole = tiles.objects[path]
        for at in range(len(whole)):
            tiles.objects[path] = flipped(whole, 8 * at + dice.randrange(8))
            with pytest.raises(LogStopped):
                await tiles.reader().hashes(0, 0)
        tiles.objects[path] = whole
        await spoil_entries(tiles, 1, 8, 1)
        await spoil_entries(tiles, 0, 256, 97)
        path = tile_path(DATA, 1, 8)
        whole = tiles.objects[path]
        for torn in (whole[:-1], whole + b"\0", b"", whole[:-33], whole * 2, tiles.objects[tile_path(DATA, 0)]):
            tiles.objects[path] = torn
            with pytest.raises(LogStopped, match="fsck"):
                await tiles.reader().entries(1)
        del tiles.objects[path]
        with pytest.raises(LogStopped):
            await tiles.reader().entries(1)

    async def spoil_entries(tiles: Tiles, number: int, width: int, step: int) -> None:
        path, place = tile_path(DATA, number, width), 0
        whole = tiles.objects[path]
        for entry in tiles.entries[number * 256 : number * 256 + width]:
            beside = len(entry.precertificate) + 3 if entry.precertificate else 0
            hashed = len(entry.encode()) - beside - 2 - 32
            for at in range(place, place + hashed, step):
                tiles.objects[path] = flipped(whole, 8 * at + dice.randrange(8))
                with pytest.raises(LogStopped):
                    await tiles.reader().entries(number)
            place += len(entry.encode())
        tiles.objects[path] = whole

    dice = random.Random(9)
    run_with_deadline(main())


def test_a_full_tile_of_a_higher_level_must_lead_to_the_edge() -> None:
    async def main() -> None:
        tree, leaves = Tree(), [leaf(number) for number in range(66_000)]
        objects = {tile_path(*key): data for key, data in tree.append(leaves).items()}

        async def get(key: str) -> bytes:
            return objects[key]

        assert await TileReader(get, tree).hashes(0, 77) == leaves[77 * 256 : 78 * 256]
        whole = objects["tile/1/000"]
        for at in (0, 77 * 32, 77 * 32 + 31, 200 * 32, 8191):  # Also where nobody looked.
            objects["tile/1/000"] = flipped(whole, 8 * at)
            with pytest.raises(LogStopped):
                await TileReader(get, tree).hashes(0, 77)
        objects["tile/1/000"] = whole[32:] + whole[:32]
        with pytest.raises(LogStopped):
            await TileReader(get, tree).hashes(0, 77)

    run_with_deadline(main())


def test_a_reader_follows_the_tree_while_it_reads() -> None:
    """The partial tile goes away between the look at the head and the read: it is looked for again."""

    async def main() -> None:
        small, large = Tiles(300), Tiles(600)
        reader = TileReader(small.get, small.tree)

        async def get(key: str) -> bytes:
            if key == tile_path(DATA, 1, 44):
                reader.at(large.tree)
                raise NotFound("it was full and removed")
            return large.objects[key]

        reader._fetch = get
        assert [entry.index for entry in await reader.entries(1)] == list(range(256, 512))

    run_with_deadline(main())


def test_sizes_of_tiles() -> None:
    assert [tile_width(600, DATA, number) for number in range(4)] == [256, 256, 88, 0]
    assert [tile_width(600, 1, number) for number in range(2)] == [2, 0]
    assert tile_width(1 << 40, 4, 0) == 256
    with pytest.raises(Malformed):
        split_hashes(b"\0" * 31, 1)
    with pytest.raises(Malformed):
        split_entries(b"\0" * ((64 << 20) + 1), 256)

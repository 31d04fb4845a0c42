"""Proofs from chain data: made on a real chain, verified without it, and refused when any byte is another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import rlp  # type: ignore[import-untyped]
from aiohttp import web

from control.ctlog.anchor.fetch import confirm, fetch
from control.ctlog.anchor.header import decode_header, encode_header
from control.ctlog.anchor.interface import AnchoredHead, AnchorUnavailable
from control.ctlog.anchor.proof import HeadProof, verify
from control.ctlog.anchor.trie import keccak, nibbles_of, value_at, verify_value
from control.ctlog.errors import NotFound, ProofError
from tests.ctlog.anchor.world import BEGAN, LOG_ID, OTHER_LOG, PUBLISHER, Relay, World, mined, root, world

SIZES = [7 * n for n in range(1, 41)]


@dataclass(frozen=True)
class Proved:
    """Proofs of some heads, and what a verifier knows from elsewhere."""

    proofs: dict[int, HeadProof]
    block_hash: bytes
    contract: bytes
    blocks: dict[int, int]

    def verify(self, proof: HeadProof, size: int, **changes: Any) -> AnchoredHead:
        known: dict[str, Any] = {
            "log_id": LOG_ID, "size": size, "root": root(size),
            "contract_address": self.contract, "block_hash": self.block_hash,
        }  # fmt: skip
        return verify(proof, **(known | changes))


async def anchored(w: World) -> None:
    """Forty heads, in a few blocks."""
    chain = w.chain()
    call = chain.encode("anchor", [LOG_ID, SIZES[0], root(SIZES[0]), BEGAN])
    for nonce, size in enumerate(SIZES):
        call = chain.encode("anchor", [LOG_ID, size, root(size), BEGAN + size])
        fees = await chain.fees()
        unsigned = {"chainId": 31337, "nonce": nonce, "gas": 200_000, "value": 0, "to": chain.address, "data": call,
                    "maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.priority}  # fmt: skip
        await chain.send(bytes(PUBLISHER.sign_transaction(unsigned).raw_transaction))
        if nonce % 16 == 15:
            await mined(w.node, 1)
    await mined(w.node, 3)
    await chain.close()


@pytest.fixture(scope="module")
def proved() -> Proved:
    async def main(w: World) -> Proved:
        await anchored(w)
        chain = w.chain()
        proofs = {size: await fetch(chain, LOG_ID, size) for size in SIZES[::13]}
        number = decode_header(next(iter(proofs.values())).header).number
        block: Any = w.node.ask("eth_getBlockByNumber", hex(number), False)
        blocks = {}
        for size in proofs:
            head = await chain.newest_up_to_size(LOG_ID, size)
            assert head is not None
            blocks[size] = head.block_number
        for size, proof in proofs.items():
            confirmed = await confirm(chain, proof, log_id=LOG_ID, size=size, root=root(size))
            assert confirmed.block_number == blocks[size]
        with pytest.raises(NotFound, match="no head of 8 entries"):
            await fetch(chain, LOG_ID, 8)
        with pytest.raises(NotFound):
            await fetch(chain, OTHER_LOG, 7)
        await chain.close()
        contract = bytes.fromhex(str(w.config.contract)[2:])
        return Proved(proofs, bytes.fromhex(block["hash"][2:]), contract, blocks)

    with world() as w:
        return asyncio.run(main(w))


def test_a_proof_holds_by_itself(proved: Proved) -> None:
    for index, (size, proof) in enumerate(proved.proofs.items()):
        again = HeadProof.decode(proof.encode())
        head = AnchoredHead(LOG_ID, size, root(size), BEGAN + size, index * 13, proved.blocks[size])
        assert proved.verify(again, size) == head


def test_a_proof_is_of_this_head_alone(proved: Proved) -> None:
    size, proof = list(proved.proofs.items())[1]
    other = list(proved.proofs)[2]
    wrong: dict[str, dict[str, Any]] = {
        "entries and root": {"size": size + 1},
        "entries and root ": {"root": root(size + 1)},
        "entries and root  ": {"root": b""},
        "the chain's proof": {"log_id": OTHER_LOG},
        "is for contract": {"contract_address": bytes(20)},
        "is for block": {"block_hash": bytes(32)},
    }
    for text, change in wrong.items():
        with pytest.raises(ProofError, match=text.strip()):
            proved.verify(proof, **{"size": size, **change})
    with pytest.raises(ProofError):
        proved.verify(proved.proofs[other], size)


def _mutations(nodes: list[bytes]) -> list[list[bytes]]:
    """Every byte of every node flipped in one bit; nodes missing, doubled, swapped, cut, longer."""
    made = []
    for at, node in enumerate(nodes):
        for place in range(len(node)):
            flipped = bytearray(node)
            flipped[place] ^= 1 << (place % 8)
            made.append([*nodes[:at], bytes(flipped), *nodes[at + 1 :]])
        made += [
            nodes[:at] + nodes[at + 1 :],
            nodes[: at + 1] + nodes[at:],
            [*nodes[:at], node[:-1], *nodes[at + 1 :]],
            [*nodes[:at], node + b"\0", *nodes[at + 1 :]],
            [*nodes[:at], b"", *nodes[at + 1 :]],
        ]
    return [*made, [], [*nodes, b"\x80"], [*nodes, nodes[-1]], nodes[::-1] if len(nodes) > 1 else []]


def test_every_altered_byte_of_a_proof_is_refused(proved: Proved) -> None:
    size, proof = list(proved.proofs.items())[2]
    count = 0
    for part in ("account", "root", "word"):
        for nodes in _mutations(getattr(proof, part)):
            count += 1
            with pytest.raises(ProofError):
                proved.verify(msgspec.structs.replace(proof, **{part: nodes}), size)
    for (header,) in (m for m in _mutations([proof.header]) if len(m) == 1):
        count += 1
        with pytest.raises(ProofError):
            proved.verify(msgspec.structs.replace(proof, header=header), size)
    assert count > 2000
    for change in ({"index": proof.index + 1}, {"index": -1}, {"index": 1 << 64}, {"contract": bytes(20)}):
        with pytest.raises(ProofError):
            proved.verify(msgspec.structs.replace(proof, **change), size)
    swapped = msgspec.structs.replace(proof, root=proof.word, word=proof.root)
    with pytest.raises(ProofError):
        proved.verify(swapped, size)


def test_files_that_are_no_proof(proved: Proved) -> None:
    encoded = next(iter(proved.proofs.values())).encode()
    for bad in (b"", b"{}", encoded[:-1], encoded.replace(b'"format":1', b'"format":2'), b"[" * 10**5, b"\xff",
                encoded.replace(b'"index":0', b'"index":"0"'), b" " * (2 << 20)):  # fmt: skip
        with pytest.raises(ProofError):
            HeadProof.decode(bad)


def test_other_code_with_the_same_storage_proves_nothing() -> None:
    """Whoever can write what he likes into a contract's storage cannot pass it off as ours."""

    async def check(w: World) -> None:
        await anchored(w)
        chain = w.chain()
        await chain.check()
        await asyncio.to_thread(
            w.node.ask, "anvil_setCode", chain.address, w.node.ask("eth_getCode", chain.address, "latest")
        )
        await mined(w.node, 3)
        await fetch(chain, LOG_ID, 7)
        code = str(w.node.ask("eth_getCode", chain.address, "latest"))
        await asyncio.to_thread(w.node.ask, "anvil_setCode", chain.address, code + "00")
        await mined(w.node, 3)
        with pytest.raises(ProofError, match="is not the contract's"):
            await fetch(chain, LOG_ID, 7)
        await chain.close()

    with world() as w:
        asyncio.run(check(w))


def test_a_proof_of_a_block_that_is_not_final_or_not_of_the_chain_is_not_confirmed() -> None:
    async def check(w: World) -> None:
        await anchored(w)
        chain = w.chain()
        proof = await fetch(chain, LOG_ID, 7)
        number = decode_header(proof.header).number
        await asyncio.to_thread(w.node.ask, "anvil_reorg", w.node.number() - number + 1, [])
        with pytest.raises(ProofError, match="is for block"):
            await confirm(chain, proof, log_id=LOG_ID, size=7, root=root(7))
        with pytest.raises(ProofError, match="not final"):
            await confirm(w.chain(use_finalized=False, confirmations=50), proof, log_id=LOG_ID, size=7, root=root(7))
        await chain.close()

    with world() as w:
        asyncio.run(check(w))


def test_a_node_that_leaves_parts_out_makes_no_proof() -> None:
    cuts: dict[str, Callable[[Any], Any]] = {
        "does not have its hash": lambda r: {k: v for k, v in r.items() if k != "requestsHash"},
        "no list of nodes": lambda r: {**r, "accountProof": None} if "accountProof" in r else r,
        "other values": lambda r: {**r, "storageProof": []} if "storageProof" in r else r,
        "a block": lambda r: [] if "stateRoot" in r else r,
    }
    cut: list[Callable[[Any], Any]] = []

    async def cutting(call: dict[str, Any], carry_out: Callable[[], Any]) -> web.StreamResponse:
        answer = await carry_out()
        if call["method"] not in ("eth_getProof", "eth_getBlockByNumber"):
            return answer  # type: ignore[no-any-return]
        whole = msgspec.json.decode(answer.body)
        return web.json_response({**whole, "result": cut[0](whole["result"])})

    async def check(w: World) -> None:
        await anchored(w)
        async with Relay(w.node.url, cutting) as relay:
            chain = w.chain(relay.url)
            for text, function in cuts.items():
                cut[:] = [function]
                with pytest.raises(AnchorUnavailable, match=text):
                    await fetch(chain, LOG_ID, 7)
            await chain.close()

    with world() as w:
        asyncio.run(check(w))


@pytest.mark.parametrize("fork", ["berlin", "london", "paris", "shanghai", "cancun", "prague", "osaka"])
def test_headers_of_every_fork_have_their_hash(fork: str) -> None:
    from tests.ctlog.anchor import anvil

    with anvil.running("--hardfork", fork) as node:
        node.mine(2)
        block: Any = node.ask("eth_getBlockByNumber", "latest", False)
        header = decode_header(encode_header(block))
        assert header.hash.hex() == block["hash"][2:]
        assert header.state_root.hex() == block["stateRoot"][2:]


# ---- tries, against another maker of them ----


def _compact(path: tuple[int, ...], leaf: bool) -> bytes:
    head = [2 * leaf + 1, *path] if len(path) % 2 else [2 * leaf, 0, *path]
    return bytes(head[i] << 4 | head[i + 1] for i in range(0, len(head), 2))


class Trie:
    """Builds a whole trie from its entries by the definition, and proofs by walking it."""

    def __init__(self, entries: dict[tuple[int, ...], bytes]) -> None:
        self._tree = self._build(sorted(entries.items()))
        self.root = keccak(rlp.encode(self._tree))

    def _build(self, entries: list[tuple[tuple[int, ...], bytes]]) -> list[Any]:
        if len(entries) == 1:
            return [_compact(entries[0][0], True), entries[0][1]]
        first, last = entries[0][0], entries[-1][0]
        shared = 0
        while shared < len(first) and first[shared] == last[shared]:
            shared += 1
        if shared:
            below = self._build([(path[shared:], value) for path, value in entries])
            return [_compact(first[:shared], False), self._refer(below)]
        branch: list[Any] = [b""] * 17
        for nibble in range(16):
            inside = [(path[1:], value) for path, value in entries if path and path[0] == nibble]
            if inside:
                branch[nibble] = self._refer(self._build(inside))
        branch[16] = next((value for path, value in entries if not path), b"")
        return branch

    @staticmethod
    def _refer(node: list[Any]) -> Any:
        encoded = rlp.encode(node)
        if len(encoded) < 32:
            return node
        return _Hashed(keccak(encoded), node)

    def proof(self, path: tuple[int, ...]) -> list[bytes]:
        nodes, node = [rlp.encode(self._tree)], self._tree
        while True:
            if len(node) == 17:
                if not path:
                    return nodes
                child, path = node[path[0]], path[1:]
            else:
                flags = node[0][0] >> 4
                length = 2 * len(node[0]) - (1 if flags & 1 else 2)
                if flags & 2 or path[:length] != nibbles_of(node[0])[-length:]:
                    return nodes
                child, path = node[1], path[length:]
            if isinstance(child, _Hashed):
                node = child.node
                nodes.append(rlp.encode(node))
            elif child == b"":
                return nodes
            else:
                node = child


class _Hashed(bytes):
    """A child's hash that remembers the child."""

    node: list[Any]

    def __new__(cls, value: bytes, node: list[Any]) -> _Hashed:
        made = super().__new__(cls, value)
        made.node = node
        return made


@pytest.mark.parametrize("seed", range(4))
def test_tries_of_all_shapes(seed: int) -> None:
    """Short paths give extensions, inlined nodes and values in branches; every key is shown, and no other."""
    rng = random.Random(seed)
    for _ in range(40):
        length = rng.randint(1, 6)
        fixed = rng.random() < 0.5
        entries = {
            tuple(
                rng.randrange(rng.choice((2, 16))) for _ in range(length if fixed else rng.randint(0, length))
            ): bytes([rng.randrange(1, 256)] * rng.choice((1, 2, 33)))
            for _ in range(rng.randint(1, 30))
        }
        trie = Trie(entries)
        for path, value in entries.items():
            assert value_at(trie.root, path, trie.proof(path)) == value, (seed, path)
            longer = (*path, rng.randrange(16))
            for absent in (longer, path[:-1]):
                if absent not in entries:
                    with pytest.raises(ProofError):
                        value_at(trie.root, absent, trie.proof(absent))
        path = rng.choice(list(entries))
        for nodes in rng.sample(_mutations(trie.proof(path)), 6):
            with pytest.raises(ProofError):
                value_at(trie.root, path, nodes)


def test_nodes_that_are_none() -> None:
    path = (1, 2, 3)
    for node in (
        b"", [], [b""], [b"", b""], [b"\x40", b"x"], [b"\x01\x23", b"x"], [b"\x00", b"x"], [[], b"x"],
        [b"\x31\x23", []], [b"\x31\x23", b""], [b""] * 17, [b""] * 16, [b""] * 18, [b"", b"short", *[b""] * 15],
        [b"\x31\x23" + bytes(40), b"x"],
    ):  # fmt: skip
        encoded = rlp.encode(node)
        with pytest.raises(ProofError):
            value_at(keccak(encoded), path, [encoded])
    with pytest.raises(ProofError):
        verify_value(bytes(32), b"key", [b"x"] * 66)
    with pytest.raises(ProofError):
        verify_value(bytes(32), b"key", [bytes(1000)])

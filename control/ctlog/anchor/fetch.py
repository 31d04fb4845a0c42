"""Proofs of anchored heads, with a chain's node: `fetch` makes one from its answers, for the newest final block, and
verifies it before giving it out; `confirm` asks the verifier's own node for what a proof has to be trusted with.

A node keeps the state of some hundred blocks. Where more confirmations than that are asked for, `fetch` needs one that
keeps all (an archive node).
"""

from __future__ import annotations

from control.ctlog.anchor.chain import Chain
from control.ctlog.anchor.header import Header, decode_header, encode_header
from control.ctlog.anchor.interface import AnchoredHead, AnchorUnavailable
from control.ctlog.anchor.proof import HeadProof, head_slots, verify
from control.ctlog.anchor.wire import data, fields, quantity
from control.ctlog.errors import NotFound, ProofError


async def fetch(chain: Chain, log_id: bytes, size: int) -> HeadProof:
    """The proof for the head of `size` entries, in the newest final block; verified. Raises NotFound when there is no
    such head or it is not final, AnchorUnavailable, ProofError when the node's answers do not fit together."""
    number = await chain.final_block()
    head = await chain.newest_up_to_size(log_id, size)
    if head is None or head.size != size:
        raise NotFound(f"no head of {size} entries of this log is anchored")
    if number is None or head.block_number > number:
        raise NotFound(f"the head of {size} entries is in block {head.block_number}, which is not final yet")
    block = await chain.block(number)
    if block is None:
        raise AnchorUnavailable(f"the chain's node knows no block {number}, which it called final")
    header = encode_header(block)
    answer = await chain.account_proof(list(head_slots(log_id, head.index)), number)
    parts = answer.get("storageProof")
    if not isinstance(parts, list) or len(parts) != 2:
        raise AnchorUnavailable("the chain's node proves other values than those it was asked for")
    root, word = (_nodes(fields(part, "a storage proof").get("proof")) for part in parts)
    proof = HeadProof(
        chain.config.chain_id,
        bytes.fromhex(chain.address[2:]),
        head.index,
        header,
        _nodes(answer.get("accountProof")),
        root,
        word,
    )
    verify(
        proof,
        log_id=log_id,
        size=size,
        root=head.root,
        contract_address=proof.contract,
        block_hash=data(block.get("hash"), 32),
    )
    return proof


async def confirm(chain: Chain, proof: HeadProof, *, log_id: bytes, size: int, root: bytes) -> AnchoredHead:
    """Verify a proof with a node of one's own: it says which hash the proof's block has and whether that is final.
    Raises ProofError, AnchorUnavailable."""
    header: Header = decode_header(proof.header)
    await chain.check_chain()
    final = await chain.final_block()
    if final is None or header.number > final:
        raise ProofError(f"the proof's block {header.number} is not final yet")
    block = await chain.block(header.number)
    if block is None or quantity(block.get("number"), 64) != header.number:
        raise AnchorUnavailable(f"the chain's node knows no block {header.number}")
    return verify(
        proof,
        log_id=log_id,
        size=size,
        root=root,
        contract_address=bytes.fromhex(chain.address[2:]),
        block_hash=data(block.get("hash"), 32),
    )


def _nodes(value: object) -> list[bytes]:
    if not isinstance(value, list):
        raise AnchorUnavailable("the chain's node sends no list of nodes in its proof")
    return [data(node) for node in value]

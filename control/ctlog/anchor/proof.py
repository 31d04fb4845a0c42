"""Shows somebody who trusts neither the log nor its node that a head is on the chain.

    block hash ──▶ header ──▶ state root ──▶ contract's account ──▶ code hash: our code, and no other
     (trusted)     keccak      RLP field 3    Merkle-Patricia    └▶ storage root ──▶ root and word of the head
                                                                                     Merkle-Patricia

All that has to be trusted is one block's hash, from a node, a light client or an explorer of the verifier's own choice,
and the contract's address, which the log makes known with its key. The code's hash makes the rest follow: the code can
only append, so a head that is there was put there by the log's publisher and stays.
`verify` is pure and asks nobody; `fetch` has the functions that ask a node.
"""

from __future__ import annotations

import msgspec

from control.ctlog.anchor.contract import contract, unpack
from control.ctlog.anchor.header import decode_header
from control.ctlog.anchor.interface import AnchoredHead, check_log_id
from control.ctlog.anchor.trie import decode_rlp, keccak, uint, verify_value
from control.ctlog.errors import ProofError

FORMAT = 1
MAX_PROOF_BYTES = 1 << 20
HEADS = contract().slots["heads"]


class HeadProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of a proof; nodes are RLP, from the root down. `chain_id` and `contract` (20 bytes) tell where to look, and
    are not proved by it."""

    chain_id: int
    contract: bytes
    index: int
    header: bytes
    account: list[bytes]
    root: list[bytes]
    word: list[bytes]
    format: int = FORMAT

    def encode(self) -> bytes:
        """JSON, byte strings in base64."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> HeadProof:
        """Raises ProofError."""
        if len(encoded) > MAX_PROOF_BYTES:
            raise ProofError(f"the proof has {len(encoded)} bytes; {MAX_PROOF_BYTES} are enough for any")
        try:
            proof = msgspec.json.decode(encoded, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProofError(f"this is no anchor's proof: {error}") from None
        if proof.format != FORMAT:
            raise ProofError(f"the proof has format {proof.format}; {FORMAT} is known here")
        return proof


def head_slots(log_id: bytes, index: int) -> tuple[int, int]:
    """Where the contract keeps a head: the slots of its root and of its word (Vyper hashes a mapping's own place
    before the key)."""
    heads = keccak(HEADS.to_bytes(32, "big") + check_log_id(log_id))
    first = int.from_bytes(keccak(heads + index.to_bytes(32, "big")), "big")
    return first, (first + 1) % (1 << 256)


def verify(
    proof: HeadProof, *, log_id: bytes, size: int, root: bytes, contract_address: bytes, block_hash: bytes
) -> AnchoredHead:
    """Is the head of `size` entries with `root` in the contract's storage (address of 20 bytes) in the block with this
    hash? Raises ProofError, whose text says which step does not hold."""
    header = decode_header(proof.header)
    if header.hash != block_hash:
        raise ProofError(f"the proof is for block {header.hash.hex()}, not for {block_hash.hex()}")
    if proof.contract != contract_address or len(contract_address) != 20:
        raise ProofError(f"the proof is for contract {proof.contract.hex()}, not for {contract_address.hex()}")
    if not 0 <= proof.index < 1 << 64:
        raise ProofError(f"a head cannot have index {proof.index}")
    account = decode_rlp(verify_value(header.state_root, contract_address, proof.account), "the contract's account")
    if not isinstance(account, list) or len(account) != 4:
        raise ProofError("the contract's account has not the four fields of one")
    storage_root, code_hash = account[2], account[3]
    if code_hash != keccak(contract().runtime):
        raise ProofError(f"the code at {contract_address.hex()} is not the contract's: its heads prove nothing")
    root_slot, word_slot = head_slots(log_id, proof.index)
    found_root = _storage(storage_root, root_slot, proof.root)
    word = unpack(_storage(storage_root, word_slot, proof.word))
    if word is None or word.index != proof.index:
        raise ProofError(f"the contract has no head {proof.index} of this log")
    if word.size != size or found_root != int.from_bytes(root, "big") or len(root) != 32:
        raise ProofError(
            f"the contract's head {proof.index} has {word.size} entries and root {found_root:064x}, not {size} entries "
            f"and root {root.hex()}"
        )
    if word.block_number > header.number:
        raise ProofError(f"the head says that block {word.block_number} took it, after block {header.number}")
    return AnchoredHead(log_id, size, root, word.timestamp, word.index, word.block_number)


def _storage(storage_root: object, slot: int, nodes: list[bytes]) -> int:
    if not isinstance(storage_root, bytes) or len(storage_root) != 32:
        raise ProofError("the contract's account has no storage")
    value = verify_value(storage_root, slot.to_bytes(32, "big"), nodes)
    return uint(decode_rlp(value, "a value of the contract's"), "a value of the contract's")

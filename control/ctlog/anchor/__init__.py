"""A log's tree heads on a blockchain: what it once published there, nobody can take back, not even its operator.

The heads go into an append-only contract (`heads.vy`) on any chain of Ethereum's kind; `anchor` brings them there,
`proof` shows a third party that one is there, from the chain's data alone. Entries stay where they are: on local disk
or in S3.

    interface   what the log sees: HeadAnchor, AnchorStatus, AnchoredHead, and the check at the log's start
    anchor      ChainAnchor, the HeadAnchor: submitted → included → final, through reorganisations and restarts
    state       what a ChainAnchor remembers across restarts
    proof       HeadProof and verify (pure);  header: block headers;  trie: Merkle-Patricia proofs
    fetch       a proof from a node's answers, and a proof confirmed by the verifier's own node
    chain       one contract on one chain, typed;  rpc: JSON-RPC over HTTP;  wire: its values;  account: the key
    libraries   web3, imported in one place;  admin: deploy, say who publishes, hand over
    contract    the compiled contract;  compiler: makes contract.json from heads.vy

This module needs no library; `anchor`, `chain`, `proof` need web3 (or what comes with it) and say so if it is missing.
"""

from control.ctlog.anchor.interface import (
    AnchoredHead,
    AnchorError,
    AnchorRefused,
    AnchorStatus,
    AnchorUnavailable,
    HeadAnchor,
    Phase,
    check_log,
)

__all__ = [
    "AnchorError",
    "AnchorRefused",
    "AnchorStatus",
    "AnchorUnavailable",
    "AnchoredHead",
    "HeadAnchor",
    "Phase",
    "check_log",
]

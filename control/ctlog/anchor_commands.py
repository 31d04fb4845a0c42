"""`stoq ct anchor`: the contract that heads are anchored in, and proofs that one is there.

The libraries of the chain take a second to import, so they are imported when a command runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from control.console import Output, run_async
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.errors import LogError, NotFound
from control.ctlog.site import load_log_key
from control.ctlog.structs import key_id
from control.options import FILE

if TYPE_CHECKING:
    from control.ctlog.anchor.chain import Chain
    from control.ctlog.anchor.interface import AnchoredHead

F = TypeVar("F", bound=Callable[..., Any])


@click.group("anchor")
def anchor_group() -> None:
    """Tree heads on a blockchain: the contract, and proofs from the chain's data alone."""


def chain_options(function: F) -> F:
    """Which contract on which chain."""
    function = click.option("--contract", help="Address of the contract: 0x and 40 digits.")(function)
    function = click.option("--chain", "chain_id", type=int, required=True, help="The chain's id.")(function)
    return click.option("--rpc", required=True, help="A node of the chain, as http://[::1]:8545.")(function)


LOG_KEY = click.option("--log-key", metavar="PEM|BASE64", required=True, help="The log's public key.")


@asynccontextmanager
async def _opened(rpc: str, chain_id: int, contract: str | None) -> AsyncIterator[Chain]:
    from control.ctlog.anchor.chain import Chain, ChainConfig
    from control.ctlog.anchor.rpc import Node

    chain = Chain(ChainConfig(Node(rpc), chain_id, contract))
    try:
        yield chain
    finally:
        await chain.close()


@anchor_group.command("deploy")
@click.option("--rpc", required=True, help="A node of the chain, as http://[::1]:8545.")
@click.option("--chain", "chain_id", type=int, required=True, help="The chain's id.")
@click.option("--account", type=FILE, required=True, help="Key of the contract's owner; 0600. It pays.")
@click.pass_obj
def deploy_command(output: Output, /, rpc: str, chain_id: int, account: Path) -> None:
    """Put the contract on a chain; its owner then says who publishes for which log."""

    async def main() -> None:
        from control.ctlog.anchor.account import load_account
        from control.ctlog.anchor.admin import Admin

        async with _opened(rpc, chain_id, None) as chain:
            address = await Admin(chain, load_account(account)).deploy()
        text = f"contract {address}; say who publishes with `stoq ct anchor publisher`"
        output.event("deployed", text, contract=address, chain=chain_id)

    raise SystemExit(run_async(output, main()))


@anchor_group.command("publisher")
@chain_options
@click.option("--account", type=FILE, required=True, help="Key of the contract's owner; 0600.")
@LOG_KEY
@click.argument("address")
@click.pass_obj
def publisher_command(
    output: Output, /, rpc: str, chain_id: int, contract: str | None, account: Path, log_key: str, address: str
) -> None:
    """ADDRESS publishes for this log from now on, instead of who did; the zero address: nobody."""

    async def main() -> None:
        from control.ctlog.anchor.account import load_account
        from control.ctlog.anchor.admin import Admin

        log_id = key_id(load_log_key(log_key))
        async with _opened(rpc, chain_id, contract) as chain:
            await chain.check()
            await Admin(chain, load_account(account)).set_publisher(log_id, address)
        output.event("publisher", f"{address} publishes for log {log_id.hex()[:16]}", log_id=log_id.hex(), address=address)

    raise SystemExit(run_async(output, main()))


def _fields(head: AnchoredHead) -> dict[str, Any]:
    return {
        "log_id": head.log_id.hex(), "size": head.size, "root": head.root.hex(), "timestamp": head.timestamp,
        "index": head.index, "block": head.block_number,
    }  # fmt: skip


def _said(head: AnchoredHead, what: str) -> str:
    return f"head of {head.size} entries, root {head.root.hex()[:16]}…, {what} block {head.block_number} took"


@anchor_group.command("show")
@chain_options
@LOG_KEY
@click.pass_obj
def show_command(output: Output, /, rpc: str, chain_id: int, contract: str | None, log_key: str) -> None:
    """The newest head of a log that is final on the chain."""

    async def main() -> None:
        async with _opened(rpc, chain_id, contract) as chain:
            await chain.check()
            head = await chain.newest_final(key_id(load_log_key(log_key)))
        if head is None:
            raise NotFound("no head of this log is final on the chain")
        output.event("head", _said(head, "which"), **_fields(head))

    raise SystemExit(run_async(output, main()))


@anchor_group.command("prove")
@chain_options
@LOG_KEY
@click.option("--size", type=click.IntRange(1), help="Of the head; without it the newest that is final.")
@click.option("-o", "--out", type=FILE, required=True, help="Keep the proof here.")
@click.pass_obj
def prove_command(
    output: Output, /, rpc: str, chain_id: int, contract: str | None, log_key: str, size: int | None, out: Path
) -> None:
    """Fetch a proof, checkable from the chain's data alone, that a head of a log is in the contract."""

    async def main() -> None:
        from control.ctlog.anchor.fetch import fetch

        log_id = key_id(load_log_key(log_key))
        async with _opened(rpc, chain_id, contract) as chain:
            await chain.check()
            head = await chain.newest_final(log_id)
            wanted = size if size is not None else head.size if head is not None else None
            if wanted is None:
                raise NotFound("no head of this log is final on the chain")
            proof = await fetch(chain, log_id, wanted)
        out.write_bytes(proof.encode() + b"\n")
        output.event("proof", f"{out}: head {proof.index} of the log, {wanted} entries", size=wanted, index=proof.index)

    raise SystemExit(run_async(output, main()))


@anchor_group.command("verify")
@chain_options
@LOG_KEY
@click.argument("proof_file", metavar="PROOF", type=FILE)
@click.option("--size", type=click.IntRange(1), required=True, help="Entries of the head.")
@click.option("--root", required=True, metavar="HEX", help="Its root hash.")
@click.option("--log", "url", help="Also that the log at this URL still goes on that head.")
@click.pass_obj
def verify_command(
    output: Output, /, rpc: str, chain_id: int, contract: str | None, log_key: str, proof_file: Path, size: int, root: str,
    url: str | None,
) -> None:  # fmt: skip
    """Check a proof with a node of one's own, which is asked for nothing but the hash of the proof's block."""

    async def main() -> None:
        from control.ctlog import merkle
        from control.ctlog.anchor.fetch import confirm
        from control.ctlog.anchor.proof import HeadProof

        try:
            root_hash = bytes.fromhex(root)
            proof = HeadProof.decode(proof_file.read_bytes())
        except (ValueError, OSError) as error:
            raise LogError(f"{proof_file} or --root cannot be read: {error}") from None
        key = load_log_key(log_key)
        async with _opened(rpc, chain_id, contract) as chain:
            head = await confirm(chain, proof, log_id=key_id(key), size=size, root=root_hash)
        if url is not None:
            async with LogClient(HttpCarrier(url), key, url) as client:
                now = await client.get_sth()
                hashes = await client.get_consistency(size, now.size)
                merkle.verify_consistency(size, now.size, root_hash, now.root, hashes)
        text = _said(head, "which") + ("; the log goes on it" if url is not None else "")
        output.event("verified", text, **_fields(head), consistent=url is not None)

    raise SystemExit(run_async(output, main()))

"""`stoq member HOME`: what a node is a member by: its certificate, the SCTs in it, and for each an inclusion proof that is
fetched from the log and verified against the tree head that the log signs."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.console import Output, run_async
from control.ctlog.errors import LogError
from control.handshake.verify import subject_of
from control.options import FILE
from control.trustchain import messages
from control.trustchain.errors import TrustError
from control.trustchain.inclusion import InclusionProof, LoggedEntry, check_inclusion
from control.trustchain.membership import Membership
from control.trustchain.reasons import Refusal
from control.trustchain.roles import roles_of
from dataplane import HandshakeFailed, StoqError

SKEW = datetime.timedelta(minutes=5)
ASK_SECONDS = 5.0


async def _proof(member: Membership, entry: LoggedEntry) -> dict[str, Any]:
    """Fetch and verify. Raises LogError, Refusal."""
    known = member.verifier.rules.logs[entry.log_id]
    client = member.logs.client(entry.log_id)
    head = await client.get_sth()
    index, hashes = await client.get_proof_by_hash(entry.leaf_hash, head.size)
    proof = InclusionProof(entry.log_id, index, tuple(hashes), head)
    check_inclusion(entry, proof, known, datetime.datetime.now(datetime.UTC), SKEW)
    return {
        "log": known.name,
        "log_id": entry.log_id.hex(),
        "sct_timestamp": entry.timestamp / 1000,
        "index": index,
        "proof_hashes": len(hashes),
        "tree_size": head.size,
        "root": head.root.hex(),
        "head_timestamp": head.timestamp / 1000,
    }


def _utc(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


async def _refreshed(membership: Membership, directory: Path) -> str:
    """Ask the authority what is trusted now, and whether it still takes this certificate; says what became of it. Raises
    TrustError when it does not."""
    from control.trustchain.remote import calling

    try:
        async with asyncio.timeout(ASK_SECONDS), calling(directory) as calls:
            answer = await calls.call(messages.BUNDLE, messages.Nothing(), messages.BundleAnswer)
        membership.verifier.update(answer.bundle)
    except HandshakeFailed as error:
        raise TrustError(f"the authority does not take this certificate: {error}") from None
    except (StoqError, TimeoutError, OSError) as error:
        known = membership.verifier.bundle.issued_at
        why = str(error) or f"no answer in {ASK_SECONDS:g} s"
        return f"the authority was not asked ({why}); judged by what was known on {known:%Y-%m-%d %H:%M} UTC"
    bundle = membership.verifier.bundle
    return f"generation {bundle.generation}, {len(bundle.revocations)} revoked, asked now"


async def member(output: Output, directory: Path) -> None:
    """Show it. Raises HomeError, TrustError, LogError."""
    membership = Membership(directory, time.time)
    credentials = membership.credentials
    certificate = credentials.certificate
    chain: list[bytes | x509.Certificate] = [
        one.public_bytes(Encoding.DER) for one in (certificate, *credentials.chain)
    ]
    trust = await _refreshed(membership, directory)
    verdict = membership.verifier.judge(chain, None, datetime.datetime.now(datetime.UTC))
    if not verdict.good:
        raise TrustError(f"peers would refuse this certificate: {verdict.text}")
    roles = sorted(roles_of(certificate))
    fields: dict[str, Any] = {
        "subject": subject_of(certificate),
        "issuer": subject_of(credentials.chain[0]) if credentials.chain else "",
        "serial": f"{certificate.serial_number:040x}",
        "node_id": credentials.node_id.hex(),
        "roles": [str(role) for role in roles],
        "not_before": certificate.not_valid_before_utc.timestamp(),
        "not_after": certificate.not_valid_after_utc.timestamp(),
        "authority": membership.home.config.authority,
        "generation": membership.verifier.bundle.generation,
    }
    rows = [
        (
            "certificate",
            f"{fields['subject']}, serial {fields['serial'][:16]}…, issued by {fields['issuer']}, "
            f"roles {', '.join(fields['roles'])}, {_utc(fields['not_before'])} to {_utc(fields['not_after'])}",
        )
    ]
    rows.append(("trust", trust))
    try:
        answers = await asyncio.gather(
            *(_proof(membership, entry) for entry in verdict.logged), return_exceptions=True
        )
    finally:
        await membership.logs.close()
    proofs, errors = [], []
    for entry, answer in zip(verdict.logged, answers, strict=True):
        name = membership.verifier.rules.logs[entry.log_id].name
        rows.append(("SCT", f"log {name} ({entry.log_id.hex()[:16]}…), entry {entry.index}, {_utc(entry.timestamp / 1000)}"))
        if isinstance(answer, LogError | Refusal | OSError):
            errors.append(f"{name}: {answer}")
            rows.append(("inclusion", f"not shown: {answer}"))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            proofs.append(answer)
            rows.append(
                (
                    "inclusion",
                    f"proved: entry {answer['index']} by {answer['proof_hashes']} hashes in the tree of "
                    f"{answer['tree_size']} that {name} signed, root {answer['root'][:16]}…",
                )
            )
    output.table("", rows)
    output.event("member", **fields, proofs=proofs, errors=errors, lines=[f"{name}: {text}" for name, text in rows])
    if errors and not proofs:
        raise TrustError(f"no log proves that it has the certificate: {'; '.join(errors)}")


@click.command("member")
@click.argument("home", type=FILE)
@click.pass_obj
def member_command(output: Output, /, home: Path) -> None:
    """Show by what the node of HOME is a member: certificate, SCTs, and inclusion proofs, verified."""
    raise SystemExit(run_async(output, member(output, home)))

"""`stoq ct submit|prove|verify`: what a user does with any RFC 6962 log, and what can be checked without one."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.console import Output, run_async
from control.ctlog import merkle
from control.ctlog.alerts import check_evidence, read_evidence
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.errors import LogError, Malformed, NotFound, ProofError
from control.ctlog.note import TreeHead
from control.ctlog.precert import (
    certificate_entry,
    embedded_entry,
    embedded_scts,
    is_precertificate,
    precertificate_entry,
)
from control.ctlog.site import load_log_key
from control.ctlog.structs import LogKey, Sct, SignedEntry, decode_sct, key_id, leaf_bytes, verify_sct
from control.options import FILE


class ProofBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything to show later, without the log, that it has an entry: bytes in base64."""

    log_id: bytes
    leaf: bytes  # The MerkleTreeLeaf.
    index: int
    audit_path: tuple[bytes, ...]
    tree_size: int
    timestamp: int  # Of the tree head, ms.
    root: bytes
    signature: bytes
    algorithm: tuple[int, int]
    format: int = 1

    @property
    def head(self) -> TreeHead:
        """The signed tree head."""
        return TreeHead(self.timestamp, self.tree_size, self.root, self.signature, self.algorithm)


def load_chain(files: tuple[Path, ...]) -> list[x509.Certificate]:
    """Certificates of PEM files, in order. Raises LogError."""
    chain: list[x509.Certificate] = []
    for path in files:
        try:
            chain += x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            raise LogError(f"{path} holds no PEM certificate: {error}") from None
    return chain


def _client(url: str, key: str | None) -> LogClient:
    return LogClient(HttpCarrier(url), load_log_key(key) if key else None, url)


def _utc(milliseconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


async def _submit(output: Output, url: str, files: tuple[Path, ...], key: str | None, out: Path | None) -> None:
    chain = load_chain(files)
    precertificate = is_precertificate(chain[0])
    entry = precertificate_entry(chain[0], chain[1:]) if precertificate else certificate_entry(chain[0])
    ders = [one.public_bytes(Encoding.DER) for one in chain]
    async with _client(url, key) as client:
        sct = await (client.add_pre_chain(ders) if precertificate else client.add_chain(ders))
        if client.key is not None:
            client.check_sct(sct, entry)
    if out is not None:
        out.write_bytes(sct.encode())
    output.event(
        "sct",
        f"SCT of log {sct.log_id.hex()[:16]}, {_utc(sct.timestamp)}"
        + (f", entry {sct.leaf_index}" if sct.leaf_index is not None else "")
        + (", signature verified" if key else ", signature NOT verified: name the log's key with --log-key"),
        log_id=sct.log_id.hex(),
        timestamp=sct.timestamp,
        index=sct.leaf_index,
        verified=key is not None,
        sct=base64.b64encode(sct.encode()).decode(),
    )


_LOG_KEY = click.option("--log-key", metavar="PEM|BASE64", help="The log's public key; without it nothing is verified.")


@click.command("submit")
@click.argument("url")
@click.argument("files", metavar="PEM…", nargs=-1, required=True, type=FILE)
@_LOG_KEY
@click.option("--out", type=FILE, help="Write the SCT here, as RFC 6962 encodes it.")
@click.pass_obj
def submit_command(output: Output, /, url: str, files: tuple[Path, ...], log_key: str | None, out: Path | None) -> None:
    """Submit a certificate or precertificate with its chain (leaf first) to the log at URL."""
    raise SystemExit(run_async(output, _submit(output, url, files, log_key, out)))


def promised(chain: list[x509.Certificate], sct: Sct) -> SignedEntry:
    """What an SCT in `chain[0]`, or one that came beside it, is for. Raises Malformed."""
    leaf = chain[0]
    if is_precertificate(leaf):
        return precertificate_entry(leaf, chain[1:])
    if sct in embedded_scts(leaf):
        if len(chain) < 2:
            raise Malformed("the certificate's issuer is needed to check its SCTs: give the whole chain")
        return embedded_entry(leaf, chain[1])
    return certificate_entry(leaf)


async def _prove(
    output: Output, url: str, files: tuple[Path, ...], key: str | None, sct_file: Path | None, out: Path | None
) -> None:
    chain = load_chain(files)
    async with _client(url, key) as client:
        head = await client.get_sth()
        index, leaf, path = await _find(client, chain, head, sct_file)
    output.event(
        "proof",
        f"entry {index} is in the tree of {head.size} entries: {len(path)} hashes lead to the root "
        f"{head.root.hex()[:16]}… of {_utc(head.timestamp)}"
        + ("" if key else "; whether the log signed it was not checked: name its key with --log-key"),
        index=index,
        tree_size=head.size,
        root=head.root.hex(),
        timestamp=head.timestamp,
        audit_path=[one.hex() for one in path],
        verified=key is not None,
    )
    if out is not None:
        if client.key is None:
            raise LogError("a proof to keep needs the log's key: name it with --log-key")
        bundle = ProofBundle(
            client.log_id, leaf, index, tuple(path), head.size, head.timestamp, head.root, head.signature, head.algorithm
        )
        out.write_bytes(msgspec.json.format(msgspec.json.encode(bundle)) + b"\n")


async def _find(
    client: LogClient, chain: list[x509.Certificate], head: TreeHead, sct_file: Path | None
) -> tuple[int, bytes, list[bytes]]:
    """Of the SCTs that there are, the one of this log: index, leaf and verified path."""
    scts = [decode_sct(sct_file.read_bytes())] if sct_file is not None else list(embedded_scts(chain[0]))
    if client.key is not None:
        scts = [sct for sct in scts if sct.log_id == client.log_id]
    if not scts:
        raise NotFound("there is no SCT of this log in the certificate: name one with --sct, as `submit --out` wrote it")
    error: Exception | None = None
    for sct in scts:
        entry = promised(chain, sct)
        if client.key is not None:
            client.check_sct(sct, entry)
        leaf = leaf_bytes(entry, sct.timestamp, sct.extensions)
        try:
            index, path = await client.prove(merkle.leaf_hash(leaf), head)
            return index, leaf, path
        except NotFound as found:
            error = found
    raise NotFound(f"the log does not have the entry that it promised: {error}; keep the SCT, it proves that")


@click.command("prove")
@click.argument("url")
@click.argument("files", metavar="PEM…", nargs=-1, required=True, type=FILE)
@_LOG_KEY
@click.option("--sct", "sct_file", type=FILE, help="The SCT, if it is not in the certificate.")
@click.option("--out", type=FILE, help="Keep the proof here; `stoq ct verify` checks it without the log.")
@click.pass_obj
def prove_command(
    output: Output, /, url: str, files: tuple[Path, ...], log_key: str | None, sct_file: Path | None, out: Path | None
) -> None:
    """Fetch and verify an inclusion proof for a certificate (with its chain) from the log at URL."""
    raise SystemExit(run_async(output, _prove(output, url, files, log_key, sct_file, out)))


def check_bundle(bundle: ProofBundle, key: Any) -> None:
    """A kept proof against the log's key. Raises ProofError."""
    if bundle.log_id != key_id(key):
        raise ProofError(f"the proof is of log {bundle.log_id.hex()[:16]}, the key of {key_id(key).hex()[:16]}")
    bundle.head.verify(key)
    merkle.verify_inclusion(
        bundle.index, bundle.tree_size, merkle.leaf_hash(bundle.leaf), bundle.audit_path, bundle.root
    )


async def _verify(output: Output, files: tuple[Path, ...], keys: tuple[str, ...]) -> None:
    known = {key_id(key): key for key in map(load_log_key, keys)}
    if files[0].suffix == ".json":
        data = files[0].read_bytes()
        try:
            bundle = msgspec.json.decode(data, type=ProofBundle)
        except msgspec.MsgspecError as error:
            _verify_evidence(output, files[0], data, known, str(error))
            return
        if bundle.log_id not in known:
            raise ProofError(f"the proof is of log {bundle.log_id.hex()[:16]}, whose key was not given")
        check_bundle(bundle, known[bundle.log_id])
        text = f"entry {bundle.index} was in the tree of {bundle.tree_size} that log {bundle.log_id.hex()[:16]} signed"
        output.event("verified", f"{text} at {_utc(bundle.timestamp)}", log_id=bundle.log_id.hex(), index=bundle.index)
        return
    chain = load_chain(files)
    scts = embedded_scts(chain[0])
    if not scts:
        raise NotFound("the certificate carries no SCT")
    good = 0
    for sct in scts:
        key = known.get(sct.log_id)
        if key is not None:
            verify_sct(sct, promised(chain, sct), key)
            good += 1
        what = "verified" if key is not None else "of a log whose key was not given"
        output.event(
            "sct", f"SCT of log {sct.log_id.hex()[:16]}, {_utc(sct.timestamp)}: {what}",
            log_id=sct.log_id.hex(), timestamp=sct.timestamp, index=sct.leaf_index, verified=key is not None,
        )  # fmt: skip
    if not good:
        raise ProofError("no SCT is of a log whose key was given")


def _verify_evidence(output: Output, path: Path, data: bytes, known: dict[bytes, LogKey], problem: str) -> None:
    """What a monitor kept. Raises ProofError when it does not show that the log misbehaved."""
    try:
        evidence = read_evidence(data)
    except Malformed as error:
        raise LogError(f"{path} is no proof of `stoq ct prove --out` ({problem}), and {error}") from None
    if evidence.log_id not in known:
        raise ProofError(f"the evidence is of log {evidence.log_id.hex()[:16]}, whose key was not given")
    judgement = check_evidence(evidence, known[evidence.log_id])
    output.event(
        "evidence",
        f"{evidence.alert}: {judgement.text}",
        alert=evidence.alert.value,
        proves=judgement.proves,
        log_id=evidence.log_id.hex(),
        what=judgement.text,
    )
    if not judgement.proves:
        raise ProofError("this does not prove to others that the log misbehaved")


@click.command("verify")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=FILE)
@click.option("--log-key", "keys", multiple=True, required=True, metavar="PEM|BASE64", help="Of a log; repeatable.")
@click.pass_obj
def verify_command(output: Output, /, files: tuple[Path, ...], keys: tuple[str, ...]) -> None:
    """Check, without any log, the SCTs in a certificate (PEM, with its chain), or a proof or a monitor's evidence that was
    kept (.json)."""
    raise SystemExit(run_async(output, _verify(output, files, keys)))

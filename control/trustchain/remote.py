"""`stoq ca remote`: a running authority, asked over STOQ with the certificate of a home. What may be asked is what the
roles in that certificate permit; the authority audits it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.markup import escape
from rich.table import Table

from control.blocks import Duration
from control.console import Output, run_async
from control.handshake import HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_STOQ
from control.options import FILE
from control.rpc import RpcClient
from control.trustchain import errors, messages
from control.trustchain.audit import utc
from control.trustchain.ca_commands import LEAVES, must_not_exist, read_csr
from control.trustchain.errors import TrustError
from control.trustchain.keys import generate, write_file, write_key
from control.trustchain.membership import Membership
from control.trustchain.messages import (
    AuditAnswer,
    AuditBody,
    CertificateRow,
    ChainAnswer,
    IssueBody,
    ListAnswer,
    ListBody,
    Nothing,
    RevokeBody,
    StatusAnswer,
    TokenAnswer,
    TokenBody,
    WhichBody,
)
from control.trustchain.profiles import Names, profile_of
from control.trustchain.requests import make_csr
from control.trustchain.revocation import REASONS
from control.trustchain.roles import Role
from control.trustchain.serve_command import control_config
from dataplane import Datapath, StoqError

ERRORS: dict[str, type[StoqError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TrustError)
}
ROLES = [role.value for role in Role]


@asynccontextmanager
async def calling(home: Path) -> AsyncIterator[RpcClient]:
    """Calls on the authority of a home, with its certificate. Raises HomeError, HandshakeFailed."""
    member = Membership(home)
    config = HandshakeConfig(member.credentials, alpns=(ALPN_STOQ,), verifier=member.verifier)
    try:
        async with (
            Datapath(control_config(), TlsFactory(config)) as datapath,
            await datapath.connect(member.home.config.authority) as connection,
        ):
            yield RpcClient(connection, ERRORS)
    finally:
        await member.logs.close()


@click.group("remote")
@click.option("--home", type=FILE, required=True, envvar="STOQ_HOME", help="A home that has joined; also $STOQ_HOME.")
@click.pass_context
def remote_group(context: click.Context, home: Path) -> None:
    """Ask a running authority over STOQ, as whoever HOME is."""
    context.obj = (context.obj, home)


Where = tuple[Output, Path]


def _run(where: Where, main: Any) -> None:
    output, home = where

    async def run() -> None:
        async with calling(home) as calls:
            await main(output, calls)

    raise SystemExit(run_async(output, run()))


def _fields(row: CertificateRow) -> dict[str, Any]:
    now = time.time()
    state = f"revoked ({row.reason})" if row.revoked_at is not None else "valid" if row.not_after >= now else "expired"
    return {
        "serial": row.serial, "fingerprint": row.fingerprint, "subject": row.subject, "profile": row.profile,
        "names": list(row.names), "roles": list(row.roles), "not_before": row.not_before, "not_after": row.not_after,
        "state": state,
    }  # fmt: skip


@remote_group.command("status")
@click.pass_obj
def status_command(where: Where, /) -> None:
    """What the authority is doing."""

    async def main(output: Output, calls: RpcClient) -> None:
        answer = await calls.call(messages.STATUS, Nothing(), StatusAnswer)
        counts = ", ".join(f"{count} {what}" for what, count in answer.counts.items())
        rows = [
            ("authority", answer.name),
            ("certificates", counts),
            ("intermediate", str(answer.intermediate)),
            ("trust bundle", f"generation {answer.generation}, {answer.followers} follow it"),
            ("logs", ", ".join(answer.logs) or "none"),
            ("audit log", f"{answer.audit_seq} lines, head {answer.audit_hash}"),
        ]
        rows += [("log trouble", f"{name}: {text}") for name, text in answer.log_failures.items()]
        output.table("", rows)
        output.event(
            "status", name=answer.name, counts=answer.counts, generation=answer.generation, followers=answer.followers,
            logs=list(answer.logs), log_failures=answer.log_failures, audit_seq=answer.audit_seq,
            audit_hash=answer.audit_hash, intermediate=answer.intermediate,
        )  # fmt: skip

    _run(where, main)


@remote_group.command("list")
@click.option("--subject", default="", help="Of this subject only.")
@click.option("--profile", type=click.Choice(LEAVES), help="Of this profile only.")
@click.option("--live", is_flag=True, help="Only what is valid now.")
@click.option("--limit", type=click.IntRange(1, messages.MAX_ROWS), default=100, show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Go on where the last page said.")
@click.pass_obj
def list_command(where: Where, /, subject: str, profile: str | None, live: bool, limit: int, after: int) -> None:
    """Certificates, newest first."""

    async def main(output: Output, calls: RpcClient) -> None:
        body = ListBody(subject, profile or "", live, after, limit)
        answer = await calls.call(messages.LIST, body, ListAnswer)
        table = Table(box=None, pad_edge=False)
        for title in ("serial", "subject", "profile", "roles", "until (UTC)", "state"):
            table.add_column(title, overflow="fold")
        for row in answer.certificates:
            fields = _fields(row)
            output.event("certificate", **fields)
            until = utc(row.not_after)[:16].replace("T", " ")
            table.add_row(row.serial[:16], escape(row.subject), row.profile, ",".join(row.roles), until, fields["state"])
        if not output.json_lines:
            output.console.print(table)
        if answer.following:
            output.event("more", f"more: --after {answer.following}", after=answer.following)

    _run(where, main)


@remote_group.command("show")
@click.argument("which")
@click.option("--pem", is_flag=True, help="The certificate itself.")
@click.pass_obj
def show_command(where: Where, /, which: str, pem: bool) -> None:
    """One certificate: by serial number, fingerprint, or the newest of a subject."""

    async def main(output: Output, calls: RpcClient) -> None:
        answer = await calls.call(messages.SHOW, WhichBody(which), ListAnswer)
        for row in answer.certificates:
            text = x509.load_der_x509_certificate(row.der).public_bytes(Encoding.PEM).decode() if row.der else ""
            fields = _fields(row)
            output.event("certificate", text if pem else "", pem=text, **fields)
            if not pem:
                output.table("", [(name.replace("_", " "), str(value)) for name, value in fields.items()])

    _run(where, main)


@remote_group.command("issue")
@click.option("--csr", type=FILE, help="PEM or DER; without it a key is made, too.")
@click.option("--name", "names", multiple=True, help="DNS name; repeatable. With --csr the CSR's names count.")
@click.option("--address", "addresses", multiple=True, help="IPv6 address; repeatable.")
@click.option("--subject", default="", help="Common name; without it the first name.")
@click.option("--profile", type=click.Choice(LEAVES), default="node", show_default=True)
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Repeatable.")
@click.option("--lifetime", type=Duration(), help="For instance 12h; without it the profile's.")
@click.option("-o", "--out", type=FILE, required=True, help="Writes OUT.pem (and OUT.key).")
@click.pass_obj
def issue_command(
    where: Where, /, csr: Path | None, names: tuple[str, ...], addresses: tuple[str, ...], subject: str, profile: str,
    roles: tuple[str, ...], lifetime: float | None, out: Path,
) -> None:  # fmt: skip
    """Have a certificate issued for somebody else, from a CSR or with a new key."""

    async def main(output: Output, calls: RpcClient) -> None:
        chain_file, key_file = out.with_name(out.name + ".pem"), out.with_name(out.name + ".key")
        must_not_exist(chain_file, *([] if csr else [key_file]))
        key = None if csr else generate()
        if csr is not None:
            der = read_csr(csr)
        else:
            assert key is not None
            der = make_csr(key, subject, Names.parse(names, addresses, wildcards=profile_of(profile).wildcards))
        body = IssueBody(der, profile, subject, roles=roles, lifetime=lifetime)
        answer = await calls.call(messages.ISSUE, body, ChainAnswer)
        if key is not None:
            write_key(key_file, key)
        chain = [x509.load_der_x509_certificate(one) for one in answer.chain]
        write_file(chain_file, b"".join(one.public_bytes(Encoding.PEM) for one in chain[:-1]), 0o644)
        files = [str(chain_file), *([str(key_file)] if key is not None else [])]
        serial = f"{chain[0].serial_number:040x}"
        output.event("issued", f"serial {serial}: {', '.join(files)}", serial=serial, files=files)

    _run(where, main)


@remote_group.command("revoke")
@click.argument("which")
@click.option("--reason", type=click.Choice(list(REASONS)), default="unspecified", show_default=True)
@click.pass_obj
def revoke_command(where: Where, /, which: str, reason: str) -> None:
    """Revoke WHICH: a serial number, a fingerprint, or a subject (its newest). Nodes close its connections."""

    async def main(output: Output, calls: RpcClient) -> None:
        await calls.call(messages.REVOKE, RevokeBody(which, reason), Nothing)
        output.event("revoked", f"revoked {which} ({reason})", which=which, reason=reason)

    _run(where, main)


@remote_group.command("token")
@click.option("--name", "names", multiple=True, help="DNS name it may carry; repeatable.")
@click.option("--address", "addresses", multiple=True, help="IPv6 address it may carry; repeatable.")
@click.option("--subject", default="", help="Common name; without it the first name.")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Repeatable.")
@click.option("--profile", type=click.Choice(LEAVES), default="node", show_default=True)
@click.option("--ttl", type=Duration(), default="10m", show_default=True, help="How long it may be used.")
@click.pass_obj
def token_command(
    where: Where, /, names: tuple[str, ...], addresses: tuple[str, ...], subject: str, roles: tuple[str, ...],
    profile: str, ttl: float,
) -> None:  # fmt: skip
    """A one-time token with which one node joins."""

    async def main(output: Output, calls: RpcClient) -> None:
        body = TokenBody(subject, names, addresses, roles, profile, ttl)
        answer = await calls.call(messages.TOKEN, body, TokenAnswer)
        output.event("token", answer.token, token=answer.token, expires=answer.expires)

    _run(where, main)


@remote_group.command("audit")
@click.option("--last", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many lines.")
@click.pass_obj
def audit_command(where: Where, /, last: int) -> None:
    """The last decisions, oldest first."""

    async def main(output: Output, calls: RpcClient) -> None:
        answer = await calls.call(messages.AUDIT, AuditBody(last), AuditAnswer)
        for line in answer.lines:
            text = f"{line.seq} {line.time} {line.decision} {line.operation} {line.actor}: {line.subject} {line.detail}"
            output.event(
                "audit", text, seq=line.seq, time=line.time, actor=line.actor, operation=line.operation,
                decision=line.decision, subject=line.subject, detail=line.detail, hash=line.hash,
            )  # fmt: skip
        output.event("head", f"head: line {answer.seq}, {answer.hash}", seq=answer.seq, hash=answer.hash)

    _run(where, main)

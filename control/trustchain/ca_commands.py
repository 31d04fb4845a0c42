"""`stoq ca`: an authority's own directory, worked on directly. Who may read its keys is its administrator.

Commands that only look (list, show, audit) read the files and disturb nobody; those that decide take the directory over and
say so when another process has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from rich.markup import escape
from rich.table import Table

from control.blocks import Duration
from control.console import Output, run_async
from control.lazy import Lazy
from control.trustchain import directory as ca_directory
from control.trustchain.actor import Actor
from control.trustchain.audit import AuditReport, read_audit, utc, verify_audit
from control.trustchain.authority import Issued
from control.trustchain.ca_options import CA_PORT, directory_option, log_options, opened, passphrase_from, passphrase_options
from control.trustchain.certificates import Places
from control.trustchain.directory import AUDIT, DATABASE, CaConfig, InitOptions
from control.trustchain.errors import AuditBroken, BadRequest
from control.trustchain.keys import generate, load_key, write_file, write_key
from control.trustchain.profiles import Names, ProfileName, profile_of
from control.trustchain.requests import IssueRequest, RenewRequest, make_csr
from control.trustchain.revocation import REASONS
from control.trustchain.roles import Role, parse_roles
from control.trustchain.store import MAX_PAGE, Row, Store
from control.trustchain.tokens import TokenGrant
from dataplane.address import parse_address

LEAVES = [name.value for name in ProfileName if name not in (ProfileName.ROOT, ProfileName.INTERMEDIATE)]
ROOT_PASSPHRASE_VARIABLE = "STOQ_CA_ROOT_PASSPHRASE"


@click.group(
    "ca",
    cls=Lazy,
    commands_at={
        "serve": "control.trustchain.serve_command:serve_command",
        "acme-key": "control.trustchain.serve_command:acme_key_command",
        "remote": "control.trustchain.remote:remote_group",
    },
)
def ca_group() -> None:
    """TrustChain: the certificate authority."""


def _run(output: Output, main: Coroutine[Any, Any, None]) -> None:
    raise SystemExit(run_async(output, main))


def _look(output: Output, look: Callable[[], None]) -> None:
    async def main() -> None:
        look()

    _run(output, main())


def state_of(row: Row, now: float) -> str:
    """A certificate's state in a word or two."""
    if row.revocation is not None:
        return f"revoked ({row.reason})"
    if row.state != "final":
        return "not finished"
    return "valid" if row.not_after >= now else "expired"


def row_fields(row: Row, now: float) -> dict[str, Any]:
    """A certificate as JSON has it."""
    return {
        "serial": row.serial.hex(),
        "fingerprint": row.fingerprint.hex(),
        "subject": row.subject,
        "profile": row.profile,
        "names": list(row.names),
        "roles": list(row.roles),
        "node_id": row.spki.hex(),
        "issuer": row.issuer,
        "not_before": row.not_before,
        "not_after": row.not_after,
        "state": state_of(row, now),
        "scts": row.scts,
        "revoked_at": row.revoked_at,
        "reason": row.reason,
        "requester": row.requester,
    }


def _rows(row: Row, now: float) -> list[tuple[str, str]]:
    names = {"not_before": utc(row.not_before), "not_after": utc(row.not_after)}
    if row.revoked_at is not None:
        names["revoked_at"] = utc(row.revoked_at)
    fields = {**row_fields(row, now), **names}
    return [
        (name.replace("_", " "), escape(", ".join(value) if isinstance(value, list) else str(value)))
        for name, value in fields.items()
        if value not in (None, [], "")
    ]


@ca_group.command("init")
@directory_option
@passphrase_options
@click.option("--name", default="STOQ TrustChain", show_default=True, help="Begins the names of root and intermediates.")
@click.option("--organization", default="", help="In every certificate.")
@click.option("--permit-dns", multiple=True, metavar="SUFFIX", help="Names under this suffix only; repeatable.")
@click.option("--permit-ipv6", multiple=True, metavar="PREFIX", help="Addresses in this prefix only; repeatable.")
@click.option("--crl-url", default="", help="Where strangers get the CRL; in every leaf.")
@click.option("--ocsp-url", default="", help="Where strangers ask by OCSP; in every leaf.")
@click.option("--ca-issuers-url", default="", help="Where strangers get the intermediate; in every leaf.")
@click.option("--root-crl-url", default="", help="Where strangers get the root's CRL; in the intermediate.")
@click.option("--curve", type=click.Choice(["p256", "p384"]), default="p256", show_default=True, help="Of both keys.")
@click.option("--root-key", default=ca_directory.ROOT_KEY, metavar="URI", help="A pkcs11: URI instead of a file.")
@click.option("--intermediate-key", default="", metavar="URI", help="A pkcs11: URI instead of a file.")
@click.option("--root-passphrase-file", type=click.Path(path_type=Path), help="Encrypts the root's key.")
@click.option("--min-scts", type=click.IntRange(1, 16), default=1, show_default=True, help="SCTs every leaf needs.")
@click.option("--allow-unlogged", is_flag=True, help="Without any log, issue without SCTs (STOQ peers refuse these).")
@click.pass_obj
def init_command(
    output: Output,
    /,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    root_passphrase_file: Path | None,
    permit_dns: tuple[str, ...],
    permit_ipv6: tuple[str, ...],
    crl_url: str,
    ocsp_url: str,
    ca_issuers_url: str,
    curve: str,
    **more: Any,
) -> None:
    """Make a root, a first intermediate and their directory. Nothing is overwritten."""
    options = InitOptions(
        permitted_dns=permit_dns,
        permitted_ipv6=permit_ipv6,
        places=Places(crl_url, ocsp_url, ca_issuers_url),
        root_curve=curve,
        intermediate_curve=curve,
        **more,
    )

    async def main() -> None:
        passphrase = passphrase_from(passphrase_file, passphrase_prompt, confirm=True)
        ca_directory.init(
            directory,
            options,
            time.time(),
            actor=str(Actor.local()),
            root_passphrase=passphrase_from(root_passphrase_file, False, ROOT_PASSPHRASE_VARIABLE) or passphrase,
            passphrase=passphrase,
        )
        root = ca_directory.load_certificate(directory / ca_directory.ROOT)
        digest = root.fingerprint(SHA256()).hex()
        output.event("initialized", directory=str(directory), root=str(directory / "root.pem"), root_sha256=digest)
        output.table(f"Authority in {directory}", [("root", str(directory / "root.pem")), ("SHA-256", digest)])
        if options.root_key == ca_directory.ROOT_KEY:
            output.note(f"Move {directory / 'root.key'} to a safe place: only rotate-intermediate needs it.")

    _run(output, main())


def read_csr(path: Path) -> bytes:
    """A CSR file as DER. Raises BadRequest."""
    try:
        data = path.read_bytes()
        return (x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)) if b"-----BEGIN" in data else data
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadRequest(f"{path} holds no CSR: {error}") from None


def _say_issued(output: Output, issued: Issued, files: list[Path]) -> None:
    now = time.time()
    output.event("issued", files=[str(path) for path in files], **row_fields(issued.row, now))
    output.table("Issued", [*_rows(issued.row, now), ("files", ", ".join(map(str, files)))])


@ca_group.command("issue")
@directory_option
@passphrase_options
@log_options
@click.option("--csr", type=click.Path(path_type=Path), help="PEM or DER; without it a key is made, too.")
@click.option("--name", "names", multiple=True, help="DNS name; repeatable. With --csr the CSR's names count.")
@click.option("--address", "addresses", multiple=True, help="IPv6 address; repeatable.")
@click.option("--subject", default="", help="Common name; without it the first name.")
@click.option("--profile", type=click.Choice(LEAVES), default="node", show_default=True)
@click.option("--role", "roles", multiple=True, type=click.Choice([role.value for role in Role]), help="Repeatable.")
@click.option("--lifetime", type=Duration(), help="For instance 12h; without it the profile's.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Writes OUT.pem (and OUT.key).")
@click.pass_obj
def issue_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    logs: tuple[str, ...],
    csr: Path | None,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    subject: str,
    profile: str,
    roles: tuple[str, ...],
    lifetime: float | None,
    out: Path,
) -> None:
    """Issue a certificate, from a CSR or with a new key."""

    async def main() -> None:
        chain_file, key_file = out.with_name(out.name + ".pem"), out.with_name(out.name + ".key")
        chosen, key = profile_of(profile), None
        must_not_exist(chain_file, *([] if csr else [key_file]))
        if csr is not None:
            if names or addresses:
                raise BadRequest("with --csr the names are the CSR's: leave --name and --address out")
            der = read_csr(csr)
        else:
            key = generate()
            der = make_csr(key, subject, Names.parse(names, addresses, wildcards=chosen.wildcards))
        request = IssueRequest(der, chosen.name, parse_roles(roles), lifetime, subject)
        async with opened(directory, passphrase_from(passphrase_file, passphrase_prompt), logs) as authority:
            issued = await authority.issue(request, Actor.local())
        files = [chain_file]
        if key is not None:
            write_key(key_file, key)
            files.append(key_file)
        write_file(chain_file, issued.pem_chain, 0o644)
        _say_issued(output, issued, files)

    _run(output, main())


def must_not_exist(*paths: Path) -> None:
    """Raises BadRequest."""
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise BadRequest(f"{', '.join(taken)} exists: nothing was overwritten; name another --out")


@ca_group.command("renew")
@directory_option
@passphrase_options
@log_options
@click.argument("certificate", type=click.Path(path_type=Path))
@click.option("--csr", type=click.Path(path_type=Path), help="For the same key or a new one.")
@click.option("--key", type=click.Path(path_type=Path), help="The certificate's key, or a new one's file: a CSR is made.")
@click.option("--lifetime", type=Duration(), help="For instance 12h; without it the profile's.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Writes OUT.pem.")
@click.pass_obj
def renew_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    logs: tuple[str, ...],
    certificate: Path,
    csr: Path | None,
    key: Path | None,
    lifetime: float | None,
    out: Path,
) -> None:
    """Issue a successor for CERTIFICATE (a PEM file) with the same names and roles."""

    async def main() -> None:
        chain_file = out.with_name(out.name + ".pem")
        must_not_exist(chain_file)
        if (csr is None) == (key is None):
            raise BadRequest("give either --csr, or --key to make one with")
        old = ca_directory.load_certificate(certificate)
        der = read_csr(csr) if csr is not None else make_csr(load_key(key)) if key is not None else b""
        request = RenewRequest(der, old.fingerprint(SHA256()), lifetime)
        async with opened(directory, passphrase_from(passphrase_file, passphrase_prompt), logs) as authority:
            issued = await authority.renew(request, Actor.local())
        write_file(chain_file, issued.pem_chain, 0o644)
        _say_issued(output, issued, [chain_file])

    _run(output, main())


@ca_group.command("revoke")
@directory_option
@passphrase_options
@click.argument("which")
@click.option("--reason", type=click.Choice(list(REASONS)), default="unspecified", show_default=True)
@click.pass_obj
def revoke_command(
    output: Output, directory: Path, passphrase_file: Path | None, passphrase_prompt: bool, which: str, reason: str
) -> None:
    """Revoke WHICH: a serial number, a fingerprint, their first 8 digits or more, or a subject (its newest)."""

    async def main() -> None:
        async with opened(directory, passphrase_from(passphrase_file, passphrase_prompt)) as authority:
            event = await authority.revoke(which, reason, Actor.local())
        output.event(
            "revoked",
            f"revoked the certificate of {event.subject}, serial {event.serial:040x} ({event.reason})",
            serial=f"{event.serial:040x}",
            fingerprint=event.fingerprint.hex(),
            subject=event.subject,
            reason=event.reason,
            number=event.number,
        )

    _run(output, main())


@ca_group.command("list")
@directory_option
@click.option("--subject", default="", help="Of this subject only.")
@click.option("--profile", type=click.Choice(LEAVES), help="Of this profile only.")
@click.option("--live", is_flag=True, help="Only what is valid now.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=100, show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Go on where the last page said.")
@click.pass_obj
def list_command(
    output: Output, directory: Path, subject: str, profile: str | None, live: bool, limit: int, after: int
) -> None:
    """Certificates, newest first."""

    def look() -> None:
        now, store = time.time(), Store.open(directory / DATABASE, read_only=True)
        try:
            rows, more = store.listing(
                now=now, subject=subject, profile=profile or "", live=live, after=after, limit=limit
            )
        finally:
            store.close()
        table = Table(box=None, pad_edge=False)
        for title in ("serial", "subject", "profile", "roles", "until (UTC)", "state"):
            table.add_column(title, overflow="fold")
        for row in rows:
            output.event("certificate", **row_fields(row, now))
            until = utc(row.not_after)[:16].replace("T", " ")
            roles, state = ",".join(row.roles), state_of(row, now)
            table.add_row(row.serial.hex()[:16], escape(row.subject), row.profile, roles, until, state)
        if not output.json_lines:
            output.console.print(table)
        if more:
            output.event("more", f"more: --after {more}", after=more)

    _look(output, look)


@ca_group.command("show")
@directory_option
@click.argument("which")
@click.option("--pem", is_flag=True, help="The certificate itself.")
@click.pass_obj
def show_command(output: Output, directory: Path, which: str, pem: bool) -> None:
    """One certificate: by serial number, fingerprint, their first 8 digits or more, or subject (its newest)."""

    def look() -> None:
        store = Store.open(directory / DATABASE, read_only=True)
        try:
            row = store.find(which)
        finally:
            store.close()
        now, text = time.time(), x509.load_der_x509_certificate(row.der).public_bytes(Encoding.PEM).decode()
        output.event("certificate", text if pem else "", pem=text, **row_fields(row, now))
        if not pem:
            output.table(row.subject, _rows(row, now))

    _look(output, look)


@ca_group.command("audit")
@directory_option
@click.option("--last", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Lines to show.")
@click.option("--verify", "check", is_flag=True, help="Follow the whole chain; fails at the first line that is wrong.")
@click.pass_obj
def audit_command(output: Output, directory: Path, last: int, check: bool) -> None:
    """Every decision: show the last ones, or verify them all."""

    def look() -> None:
        if check:
            say_report(output, verify_directory(directory))
            return
        for line in read_audit(directory / AUDIT, last=last):
            text = f"{line.seq} {line.time[:19]} {line.decision} {line.operation} {line.subject} — {line.actor}"
            fields = {name: getattr(line, name) for name in line.__struct_fields__}
            output.event("audit", f"{text} — {line.detail}" if line.detail else text, **fields)

    _look(output, look)


def verify_directory(directory: Path) -> AuditReport:
    """Verify an authority's audit log against the head in its database, also while it works."""
    store = Store.open(directory / DATABASE, read_only=True)
    try:
        return verify_audit(directory / AUDIT, store.head()[0])
    finally:
        store.close()


def say_report(output: Output, report: AuditReport) -> None:
    """What a verification found. Raises AuditBroken when the log was altered."""
    if not report.intact:
        assert report.finding is not None
        raise AuditBroken(f"the audit log is not as it was written: {report.finding.text}")
    text = f"{report.lines} records hold; the last has SHA-256 {report.head.hash.hex()}"
    if report.finding is not None:
        text += f"; {report.finding.text}"
    output.event("verified", text, lines=report.lines, head=report.head.hash.hex())


@ca_group.command("token")
@directory_option
@passphrase_options
@click.option("--name", "names", multiple=True, help="DNS name the node may carry; repeatable.")
@click.option("--address", "addresses", multiple=True, help="IPv6 address it may carry; repeatable.")
@click.option("--role", "roles", multiple=True, type=click.Choice([role.value for role in Role]), help="Repeatable.")
@click.option("--profile", type=click.Choice(LEAVES), default="node", show_default=True)
@click.option("--subject", default="", help="Common name; without it the first name.")
@click.option("--ttl", type=Duration(), default="10m", show_default=True, help="How long it may be used.")
@click.option("--at", default=f"[::1]:{CA_PORT}", show_default=True, help="Where the node reaches the authority.")
@click.option("--list", "listing", is_flag=True, help="Show the tokens that wait to be used, instead.")
@click.option("--cancel", metavar="HASH", help="Make a token useless, instead; its hash as --list shows it.")
@click.pass_obj
def token_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    roles: tuple[str, ...],
    profile: str,
    subject: str,
    ttl: float | None,
    at: str,
    listing: bool,
    cancel: str | None,
) -> None:
    """A one-time token with which one node joins. It is a secret: hand it over as one."""

    async def main() -> None:
        async with opened(directory, passphrase_from(passphrase_file, passphrase_prompt)) as authority:
            if listing:
                for row in await authority.tokens(Actor.local()):
                    text = f"{row.hash.hex()} {row.subject} {row.profile} [{','.join(row.roles)}] until {utc(row.expires)}"
                    output.event("token", text, hash=row.hash.hex(), subject=row.subject, expires=row.expires)
                return
            if cancel is not None:
                await authority.cancel_token(_hexadecimal(cancel), Actor.local())
                output.event("cancelled", f"token {cancel} is useless now", hash=cancel)
                return
            chosen, place = profile_of(profile), parse_address(at, CA_PORT)
            allowed = Names.parse(names, addresses, wildcards=chosen.wildcards)
            grant = TokenGrant(allowed, parse_roles(roles), chosen.name, subject, 600 if ttl is None else ttl)
            token = await authority.create_token(grant, place.ip, place.port, Actor.local())
            output.event("token", str(token), token=str(token), expires=token.expires, hash=token.secret_hash.hex())

    _run(output, main())


def _hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadRequest(f"{text[:80]!r} is not hexadecimal") from None


@ca_group.command("rotate-intermediate")
@directory_option
@passphrase_options
@click.option("--root-key", metavar="FILE|URI", help="Where the root's key is, when not in the directory.")
@click.option("--root-passphrase-file", type=click.Path(path_type=Path), help="Opens the root's key.")
@click.option("--key", default="", metavar="URI", help="A pkcs11: URI for the new key instead of a file.")
@click.option("--curve", type=click.Choice(["p256", "p384"]), default="p256", show_default=True)
@click.option("--lifetime", type=Duration(), help="For instance 180d; without it a year.")
@click.pass_obj
def rotate_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    root_key: str | None,
    root_passphrase_file: Path | None,
    key: str,
    curve: str,
    lifetime: float | None,
) -> None:
    """Make a new intermediate, which issues from now on. What the former one issued stays good."""

    async def main() -> None:
        passphrase = passphrase_from(passphrase_file, passphrase_prompt)
        config: CaConfig = ca_directory.load_config(directory)
        secret = passphrase_from(root_passphrase_file, False, ROOT_PASSPHRASE_VARIABLE) or passphrase
        root = ca_directory.load_root_key(directory, config, secret, root_key)
        async with opened(directory, passphrase) as authority:
            issuer = await authority.rotate_intermediate(
                root, Actor.local(), curve=curve, key=key, lifetime_s=lifetime, passphrase=passphrase
            )
        path = ca_directory.intermediate_path(directory, issuer.number)
        output.event(
            "rotated",
            f"intermediate {issuer.number} issues now, until {utc(issuer.not_after)}: {path}",
            number=issuer.number,
            not_after=issuer.not_after,
            file=str(path),
        )

    _run(output, main())


@ca_group.command("revoke-intermediate")
@directory_option
@passphrase_options
@click.argument("number", type=click.IntRange(1))
@click.option("--reason", type=click.Choice(list(REASONS)), default="unspecified", show_default=True)
@click.option("--root-key", metavar="FILE|URI", help="Where the root's key is, when not in the directory.")
@click.option("--root-passphrase-file", type=click.Path(path_type=Path), help="Opens the root's key.")
@click.pass_obj
def revoke_intermediate_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    number: int,
    reason: str,
    root_key: str | None,
    root_passphrase_file: Path | None,
) -> None:
    """Put a former intermediate on the root's list: nothing that it issued is good any more."""

    async def main() -> None:
        passphrase = passphrase_from(passphrase_file, passphrase_prompt)
        secret = passphrase_from(root_passphrase_file, False, ROOT_PASSPHRASE_VARIABLE) or passphrase
        root = ca_directory.load_root_key(directory, ca_directory.load_config(directory), secret, root_key)
        async with opened(directory, passphrase) as authority:
            await authority.revoke_intermediate(number, reason, root, Actor.local())
        path = directory / ca_directory.ROOT_CRL
        output.event("revoked-intermediate", f"intermediate {number} is revoked: {path}", number=number, file=str(path))

    _run(output, main())


@ca_group.command("crl")
@directory_option
@passphrase_options
@click.option("--intermediate", type=click.IntRange(1), help="Of this one; without it, the one that issues.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="PEM, or DER when it ends in .crl.")
@click.pass_obj
def crl_command(
    output: Output,
    directory: Path,
    passphrase_file: Path | None,
    passphrase_prompt: bool,
    intermediate: int | None,
    out: Path,
) -> None:
    """Write the certificate revocation list."""

    async def main() -> None:
        async with opened(directory, passphrase_from(passphrase_file, passphrase_prompt)) as authority:
            crl = await authority.crl(intermediate)
        try:
            out.write_bytes(crl.der if out.suffix == ".crl" else crl.pem)
        except OSError as error:
            raise BadRequest(f"cannot write {out}: {error.strerror}") from None
        text = f"CRL {crl.number}, next update {utc(crl.next_update)}: {out}"
        output.event("crl", text, number=crl.number, next_update=crl.next_update, file=str(out))

    _run(output, main())

"""`stoq ct init|serve|fsck`: a log's own side."""

from __future__ import annotations

import base64
import os
import ssl
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.console import Output, run_async, until_signal
from control.ctlog import fsck
from control.ctlog.api import MAX_BODY_BYTES, LogApi
from control.ctlog.client_commands import prove_command, submit_command, verify_command
from control.ctlog.errors import LogError
from control.ctlog.http import HttpServer, add_logs
from control.ctlog.log import Log
from control.ctlog.opening import OpenLog
from control.ctlog.site import (
    AnchorPlace,
    LocalPlace,
    LogConfig,
    S3Place,
    Site,
    WitnessPlace,
    create,
    load_roots,
    shard_window,
)
from control.ctlog.watch_command import watch_command
from control.lazy import Lazy
from control.options import FILE
from dataplane import Address, parse_address

HTTP_PORT = 8462
MMD_SECONDS = 60  # Nothing is promised before it is in the tree; lists want a number.


@click.group("ct", cls=Lazy, commands_at={"anchor": "control.ctlog.anchor_commands:anchor_group"})
def ct_group() -> None:
    """Certificate Transparency: a log, and what its users need of any log."""


ct_group.add_command(submit_command)
ct_group.add_command(prove_command)
ct_group.add_command(verify_command)
ct_group.add_command(watch_command)


def _load_key(directory: Path) -> Any:
    """Keys in tokens are TrustChain's; a log in a file needs none of it."""

    def load(where: str) -> Any:
        from control.trustchain.keys import open_key

        return open_key(where, directory)

    return load


@ct_group.command("init")
@click.argument("directory", type=FILE)
@click.option("--origin", required=True, help="The log's name: host and path it is served at, as ct.example/2026h2.")
@click.option("--roots", type=FILE, required=True, help="Roots whose chains are taken, PEM.")
@click.option("--shard", help="Take certificates that end in this year or half of one, as 2026 or 2026h2.")
@click.option("--key", default="log.key", show_default=True, help="A pkcs11: URI instead of a file.")
@click.option("--period", type=click.FloatRange(0.001, 10), default=0.05, show_default=True, help="Seconds of a round.")
@click.option("--witness", "witnesses", type=(str, str), multiple=True, metavar="VKEY URL", help="Repeatable.")
@click.option("--s3-endpoint", default="", help="Where the S3 service is; empty: AWS.")
@click.option("--s3-bucket", help="Entries (and with --s3-lock heads) go into this bucket, encrypted.")
@click.option("--s3-prefix", default="", help="Below this prefix of the bucket.")
@click.option("--s3-region", default="us-east-1", show_default=True)
@click.option("--s3-create", is_flag=True, help="Make the bucket when there is none.")
@click.option("--s3-lock", is_flag=True, help="Heads go there too, by conditional writes.")
@click.option("--anchor-rpc", help="Anchor heads on the chain of this node, as http://[::1]:8545.")
@click.option("--anchor-chain", type=int, default=1, help="The chain's id.")
@click.option("--anchor-contract", default="", help="Address of the contract.")
@click.option("--anchor-account", default="account.key", show_default=True, help="File of the publisher's key.")
@click.option("--anchor-every", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds.")
@click.pass_obj
def init_command(
    output: Output, /, directory: Path, origin: str, roots: Path, shard: str | None, key: str, period: float,
    witnesses: tuple[tuple[str, str], ...], **more: Any,
) -> None:  # fmt: skip
    """Make an empty log in DIRECTORY. Nothing is overwritten; S3 credentials are read from where boto3 looks."""
    start, limit = shard_window(shard) if shard else (None, None)
    config = LogConfig(
        origin,
        start,
        limit,
        storage=_s3(more) or LocalPlace(),
        lock=(_s3(more) if more["s3_lock"] else None) or LocalPlace(),
        key=key,
        period=period,
        witnesses=tuple(WitnessPlace(vkey, url) for vkey, url in witnesses),
        anchor=_anchor(more),
    )
    raise SystemExit(run_async(output, _init(output, directory, config, roots)))


def _s3(more: dict[str, Any]) -> S3Place | None:
    if not more["s3_bucket"]:
        return None
    return S3Place(
        more["s3_bucket"],
        endpoint=more["s3_endpoint"],
        prefix=more["s3_prefix"],
        region=more["s3_region"],
        create_bucket=more["s3_create"],
    )


def _anchor(more: dict[str, Any]) -> AnchorPlace | None:
    if not more["anchor_rpc"]:
        return None
    return AnchorPlace(
        more["anchor_rpc"], more["anchor_chain"], more["anchor_contract"], more["anchor_account"], more["anchor_every"]
    )


async def _init(output: Output, directory: Path, config: LogConfig, roots: Path) -> None:
    site = await create(directory, config, load_roots(roots), time.time, _load_key(directory))
    signer = site.signer(_load_key(directory))
    output.event(
        "made",
        f"log {config.origin}, id {signer.log_id.hex()}, takes certificates that end {config.window}\n"
        f"its public key is {directory / 'log.pem'}; witnesses know it by {site.vkey}\n"
        f"serve it with `stoq ct serve {directory}`",
        origin=config.origin,
        log_id=signer.log_id.hex(),
        directory=str(directory),
        public_key=str(directory / "log.pem"),
        vkey=site.vkey,
    )


def log_list(logs: list[tuple[Log, Site, str]]) -> dict[str, Any]:
    """The logs as lists of logs describe them (schema of log list v3)."""
    entries = []
    for log, site, url in logs:
        spki = log.signer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        entry: dict[str, Any] = {
            "description": site.config.origin,
            "log_id": base64.b64encode(log.signer.log_id).decode(),
            "key": base64.b64encode(spki).decode(),
            "url": f"{url}/",
            "mmd": MMD_SECONDS,
            "state": {"usable": {"timestamp": "1970-01-01T00:00:00Z"}},
        }
        if site.config.start is not None and site.config.limit is not None:
            entry["temporal_interval"] = {
                "start_inclusive": _rfc3339(site.config.start),
                "end_exclusive": _rfc3339(site.config.limit),
            }
        entries.append(entry)
    return {"version": "1", "operators": [{"name": "STOQ", "email": [], "logs": entries, "tiled_logs": []}]}


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def _serve(output: Output, directories: tuple[Path, ...], bind: Address, tls: ssl.SSLContext | None) -> None:
    sites = [Site.read(directory) for directory in directories]
    prefixes = [site.config.prefix for site in sites]
    if len(set(prefixes)) != len(prefixes):
        raise LogError("two logs have the same path in their origins: serve them apart")
    async with AsyncExitStack() as stack:
        logs = [
            await stack.enter_async_context(OpenLog(site, time.time, _load_key(site.directory))) for site in sites
        ]
        server = HttpServer(web.Application(), bind, tls)
        await server.bind()
        base = f"{'https' if tls else 'http'}://{server.address}"
        urls = [f"{base}/{prefix}".rstrip("/") for prefix in prefixes]
        listing = log_list(list(zip(logs, sites, urls, strict=True)))
        application = web.Application(client_max_size=MAX_BODY_BYTES)

        async def listed(_: web.Request) -> web.Response:
            return web.json_response(listing)

        application.router.add_get("/log-list.json", listed)
        add_logs(application, {prefix: LogApi(log) for prefix, log in zip(prefixes, logs, strict=True)})
        await server.serve(application)
        stack.push_async_callback(server.close)
        lines = [
            f"log {log.signer.origin}: {log.head.size} entries, id {log.signer.log_id.hex()[:16]}, {url}"
            for log, url in zip(logs, urls, strict=True)
        ]
        output.event(
            "listening",
            "\n".join([*lines, f"listening on {base}; {base}/log-list.json describes the logs"]),
            address=server.address.ip,
            port=server.address.port,
            logs=[
                {"origin": log.signer.origin, "log_id": log.signer.log_id.hex(), "url": url, "size": log.head.size}
                for log, url in zip(logs, urls, strict=True)
            ],
        )
        await until_signal()
        for log in logs:
            counts = log.sequencer.counts
            output.event(
                "summary",
                f"log {log.signer.origin}: {counts.entries} entries in {counts.rounds} rounds, {log.duplicates} "
                f"submitted again, {log.refused} refused, {log.head.size} in all",
                origin=log.signer.origin,
                size=log.head.size,
                entries=counts.entries,
                rounds=counts.rounds,
                duplicates=log.duplicates,
                refused=log.refused,
                retries=counts.retries,
                failed_rounds=counts.failed_rounds,
                stopped=str(log.stopped or ""),
            )


@ct_group.command("serve")
@click.argument("directories", metavar="DIRECTORY…", nargs=-1, required=True, type=FILE)
@click.option("--http", default=f"[::1]:{HTTP_PORT}", show_default=True, metavar="[ADDR]:PORT", help="Where to listen.")
@click.option("--tls-cert", type=FILE, help="Serve HTTPS with this chain, PEM.")
@click.option("--tls-key", type=FILE, help="Its key, PEM.")
@click.pass_obj
def serve_command(
    output: Output, /, directories: tuple[Path, ...], http: str, tls_cert: Path | None, tls_key: Path | None
) -> None:
    """Run the logs of these directories, each below the path of its origin, until interrupted."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    context = None
    if tls_cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls_cert, tls_key)
    raise SystemExit(run_async(output, _serve(output, directories, parse_address(http, HTTP_PORT), context)))


async def _fsck(output: Output, directory: Path, repair: bool) -> None:
    site = Site.read(directory)
    key = site.signer(_load_key(directory)).key.public_key()
    async with AsyncExitStack() as stack:
        stack.callback(os.close, site.reserve())
        storage = await site.storage()
        stack.push_async_callback(storage.close)
        lock = await site.lock()
        stack.push_async_callback(lock.close)
        index = site.index()
        stack.push_async_callback(index.close)
        with output.counting() as bars:
            task = bars.add_task("entries", total=None)
            report = await fsck.check(
                site.config.origin, key, storage, lock=lock, index=index, repair=repair,
                progress=lambda done, total: bars.update(task, completed=done, total=total),
            )  # fmt: skip
    for one in report.findings:
        what = "repaired" if one.repaired else "damaged" if one.damage else "note"
        output.event("finding", f"{what}: {one.key}: {one.what}", key=one.key, what=one.what, repaired=one.repaired)
    output.event(
        "result",
        f"{report.size} entries, root {report.root.hex()[:16]}…: "
        + ("every entry leads to the signed head" if report.proven else "NOT shown to lead to the signed head")
        + f" ({report.entries} entries, {report.tiles} tiles, {report.issuers} issuers read)",
        size=report.size,
        root=report.root.hex(),
        proven=report.proven,
        findings=len(report.findings) + report.more,
        clean=report.clean,
    )
    if not report.clean:
        hint = "what is left cannot be mended from here: restore it" if repair else "--repair mends what can be"
        raise LogError(f"the log is damaged; {hint}")


@ct_group.command("fsck")
@click.argument("directory", type=FILE)
@click.option("--repair", is_flag=True, help="Make anew what follows from what is proven, and nothing else.")
@click.pass_obj
def fsck_command(output: Output, /, directory: Path, repair: bool) -> None:
    """Read the whole log of DIRECTORY and prove it against its signed head. The log must not be served meanwhile."""
    raise SystemExit(run_async(output, _fsck(output, directory, repair)))



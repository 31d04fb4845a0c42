"""`stoq ca serve` and `stoq join`: an authority runs, a node joins it."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import click

from control import privileges
from control.blocks import Duration
from control.console import Output, run_async, until_signal
from control.options import FILE, listen_option
from control.trustchain.acme.addresses import AddressPolicy
from control.trustchain.acme.challenges import ValidationConfig
from control.trustchain.acme.encoding import encode
from control.trustchain.acme.store import Store
from control.trustchain.acme_serving import DATABASE, AcmeOptions
from control.trustchain.ca_options import CA_PORT, LogSpec, directory_option, passphrase_from, passphrase_options
from control.trustchain.joining import join
from control.trustchain.profiles import ProfileName
from control.trustchain.server import Served, ServerOptions, serve
from control.trustchain.tokens import Token
from dataplane import Address, Config, HandshakeFailed, parse_address

HTTP_PORT = 8462
ACME_PORT = 8463
CONTROL_BYTES = 64 << 20  # A datapath for calls needs no more; each of its pools.
KEY_ID_BYTES, MAC_KEY_BYTES = 9, 32
LEAVES = [name.value for name in ProfileName if name not in (ProfileName.ROOT, ProfileName.INTERMEDIATE)]


def control_config(**more: Any) -> Config:
    """A datapath for calls rather than bulk."""
    return Config(
        receive_bytes=CONTROL_BYTES, send_bytes=CONTROL_BYTES, metadata_bytes=CONTROL_BYTES, backend="socket", **more
    )


async def _serve(output: Output, options: ServerOptions, listen: Address, user: str | None) -> None:
    def refused(peer: Address, error: HandshakeFailed) -> None:
        output.event("refused", f"{peer}: {error}", peer=str(peer), error=str(error), alert=error.alert_name)

    config = control_config(server=True, bind=listen)
    async with serve(options, config, on_failure=refused) as served:
        if user is not None:
            _give(options, user)
            output.event("privileges", str(privileges.drop(user)))
        _said(output, served)
        await until_signal()
        calls = served.calls
    text = f"{calls.calls} calls, {calls.failures} refused or failed"
    output.event("summary", text, calls=calls.calls, failures=calls.failures)


def _give(options: ServerOptions, user: str) -> None:
    """What is written while it runs must belong to who it runs as."""
    who = privileges.identity(user)
    if who is None:
        return
    for top in (options.directory, *options.logs):
        for path in (top, *top.rglob("*")):
            os.chown(path, who.uid, who.gid, follow_symlinks=False)


def _said(output: Output, served: Served) -> None:
    root = served.authority.root_sha256.hex()
    http = f"http://{served.http.address}" if served.http else ""
    acme = served.acme.directory_url if served.acme else ""
    address = served.datapath.local_address
    places = [str(address), *(one for one in (http, acme) if one)]
    lines = [
        f"authority {served.authority.config.name}, root SHA-256 {root}",
        *(f"log {name}: {one.head.size} entries, id {one.signer.log_id.hex()[:16]}" for name, one in served.logs.items()),
        f"listening on {', '.join(places)}",
    ]
    output.event(
        "listening",
        "\n".join(lines),
        address=address.ip,
        port=address.port,
        http=http,
        acme=acme,
        root_sha256=root,
        logs={origin: one.signer.log_id.hex() for origin, one in served.logs.items()},
        generation=served.trust.bundle.generation,
    )


@click.command("serve")
@directory_option
@passphrase_options
@listen_option(f"[::1]:{CA_PORT}")
@click.option("--address", metavar="IPV6", help="Where nodes reach it, if not where it listens.")
@click.option("--name", "names", multiple=True, help="DNS name of the authority; repeatable.")
@click.option(
    "--log", "logs", multiple=True, metavar="DIR|URL=KEY",
    help="A log to submit to: the directory of one that is run here too, or one elsewhere with its PEM key; repeatable.",
)  # fmt: skip
@click.option(
    "--http", metavar="[ADDR]:PORT|none", default=f"[::1]:{HTTP_PORT}", show_default=True,
    help="CRLs, OCSP, the logs' own interface.",
)  # fmt: skip
@click.option("--public-url", default="", help="What the HTTP side is known as outside [default: its address].")
@click.option("--acme", metavar="[ADDR]:PORT", help=f"Serve ACME over HTTPS here, as [::]:{ACME_PORT}.")
@click.option("--acme-host", default="", help="What ACME clients call it [default: the first --name, or its address].")
@click.option("--acme-open", is_flag=True, help="Anybody may register; otherwise keys are given by `stoq ca acme-key`.")
@click.option("--acme-http-port", type=int, default=80, show_default=True, help="Where http-01 looks (for tests).")
@click.option("--acme-loopback", is_flag=True, help="Challenges may be on this machine (for tests).")
@click.option("--accept-clock", is_flag=True, help="The clock is right though it is behind the last decision.")
@click.option("--user", metavar="NAME", help="Become this user once everything is open.")
@click.pass_obj
def serve_command(
    output: Output, /, directory: Path, passphrase_file: Path | None, passphrase_prompt: bool, listen: str,
    address: str | None, names: tuple[str, ...], logs: tuple[str, ...], http: str, public_url: str, user: str | None,
    acme: str | None, acme_host: str, acme_open: bool, acme_http_port: int, acme_loopback: bool,
    accept_clock: bool,
) -> None:  # fmt: skip
    """Run the authority: calls over STOQ, and CRLs, OCSP and logs over HTTP, until it is interrupted."""
    bind = parse_address(listen, CA_PORT)
    reached = parse_address(address, bind.port) if address else bind
    web = parse_address(http, HTTP_PORT) if http != "none" else None
    if web is not None and not public_url and web.port:
        public_url = f"http://{web if web.ip != '::' else Address(reached.ip, web.port)}"
    local = tuple(Path(one) for one in logs if "=" not in one)
    remote = [LogSpec.parse(one) for one in logs if "=" in one]
    options = ServerOptions(
        directory,
        Address(reached.ip, bind.port),
        names,
        local,
        tuple((one.url, str(one.key_file)) for one in remote),
        web,
        public_url,
        _acme(acme, acme_host or (names[0] if names else reached.ip), acme_open, acme_http_port, acme_loopback),
        accept_clock,
        passphrase_from(passphrase_file, passphrase_prompt),
    )
    raise SystemExit(run_async(output, _serve(output, options, bind, user)))


def _acme(listen: str | None, host: str, everybody: bool, port: int, loopback: bool) -> AcmeOptions | None:
    if listen is None:
        return None
    validation = ValidationConfig(http_port=port, addresses=AddressPolicy(unique_local=True, loopback=loopback))
    return AcmeOptions(parse_address(listen, ACME_PORT), host, everybody, validation)


@click.command("acme-key")
@directory_option
@click.option("--for", "ttl", type=Duration(), default="1d", show_default=True, help="How long it may be used, as 10m.")
@click.pass_obj
def acme_key_command(output: Output, /, directory: Path, ttl: float) -> None:
    """A key with which one ACME client may register once (external account binding), also while the authority runs."""
    raise SystemExit(run_async(output, _acme_key(output, directory, ttl)))


async def _acme_key(output: Output, directory: Path, ttl: float) -> None:
    kid, secret = secrets.token_urlsafe(KEY_ID_BYTES), secrets.token_bytes(MAC_KEY_BYTES)
    store = await Store.open(directory / DATABASE, time.time)
    try:
        await store.add_external_account(kid, secret, time.time() + ttl)
    finally:
        await store.close()
    encoded = encode(secret)
    output.event("key", f"--eab-kid {kid} --eab-hmac-key {encoded}", kid=kid, hmac_key=encoded, expires=time.time() + ttl)


@click.command("join")
@click.argument("token")
@click.argument("home", type=FILE)
@click.option("--name", default="node", show_default=True, help="What to be called, where the token leaves it open.")
@click.option("--profile", type=click.Choice(LEAVES), help="Refuse a token that is for another kind.")
@click.pass_obj
def join_command(output: Output, /, token: str, home: Path, name: str, profile: str | None) -> None:
    """Join the authority that TOKEN is of: a key is made in HOME, and a certificate fetched for it.

    TOKEN may be `-`: it is then read from standard input, and stands in no process list."""
    text = sys.stdin.readline() if token == "-" else token
    raise SystemExit(run_async(output, _join(output, text, home, name, profile or "")))


async def _join(output: Output, text: str, directory: Path, name: str, profile: str) -> None:
    token = Token.parse(text)
    authority = str(Address(str(token.address), token.port))
    home, credentials = await join(
        directory, authority=authority, root_sha256=token.root_sha256, secret=token.secret, name=name, profile=profile,
        config=control_config(),
    )  # fmt: skip
    certificate = credentials.certificate
    output.event(
        "joined",
        f"{home.config.name} ({credentials.node_id.hex()[:16]}) is a member of {authority} until "
        f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; run nodes with --home {directory}",
        name=home.config.name,
        node_id=credentials.node_id.hex(),
        authority=authority,
        home=str(directory),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )

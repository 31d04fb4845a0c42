"""The servers that `stoq bench ct` and `stoq bench ca` ask besides `stoq ct serve`, each a process of its own, over HTTP/1.1
on ::1.

      python -m control.bench.trust_server …
        constant --pki DIR the yardstick of add-chain: the same HTTP and JSON, one signature verified and one made for each
                           submission, and no log
        authority DIR      an authority's CRL and OCSP responder

Standard output gets JSON objects: `listening` with the port, and `summary` after SIGINT.
"""

from __future__ import annotations

import base64
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.bench.ct_chains import ECDSA, Pki
from control.bench.trust_figures import memory
from control.console import Output, run_async, until_signal
from control.ctlog.api import MAX_BODY_BYTES
from control.ctlog.http import HttpServer
from control.ctlog.signer import Signer
from control.ctlog.structs import EntryType, LogEntry, SignedEntry
from control.trustchain.authority import Authority
from control.trustchain.http import authority_application
from control.trustchain.trust import TrustMaker
from dataplane.address import Address

ANY_PORT = Address("::1", 0)
ORIGIN = "localhost/constant"


async def serve(output: Output, application: web.Application, **facts: Any) -> None:
    """Until SIGINT or SIGTERM."""
    server = HttpServer(application, ANY_PORT)
    await server.open()
    output.event("listening", port=server.address.port, **facts)
    await until_signal()
    await server.close()


class _Chain(msgspec.Struct):
    chain: list[str]


def _constant(pki: Pki) -> web.Application:
    signer = Signer(ORIGIN, ec.generate_private_key(ec.SECP256R1()))
    issuer = pki.issuer.public_key()
    assert isinstance(issuer, ec.EllipticCurvePublicKey)
    entry = LogEntry(SignedEntry(EntryType.X509, b"constant"), 0, 0, (), b"")
    log_id, extensions = base64.b64encode(signer.log_id).decode(), base64.b64encode(entry.extensions).decode()

    async def add(request: web.Request) -> web.Response:
        # The whole chain is decoded, as a log must, though only the leaf is looked at.
        chain = [base64.b64decode(one) for one in msgspec.json.decode(await request.read(), type=_Chain).chain]
        leaf = x509.load_der_x509_certificate(chain[0])
        issuer.verify(leaf.signature, leaf.tbs_certificate_bytes, ECDSA)
        signed = base64.b64encode(signer.sct(entry).signature).decode()
        answer = {"sct_version": 0, "id": log_id, "timestamp": 0, "extensions": extensions, "signature": signed}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.router.add_post("/ct/v1/add-pre-chain", add)
    return application


async def serve_authority(output: Output, directory: Path) -> None:
    """CRL and OCSP of an authority."""
    async with AsyncExitStack() as stack:
        authority = await stack.enter_async_context(Authority.open(directory))
        application = authority_application(authority, TrustMaker(authority, (), time.time))
        await serve(output, application)
        output.event("summary", cpu_seconds=time.process_time(), **memory())


@click.group()
def main() -> None:
    """See the module's text."""


_directory = click.argument("directory", type=click.Path(path_type=Path))


@main.command("constant")
@click.option("--pki", type=click.Path(path_type=Path), required=True)
def constant_command(pki: Path) -> None:
    """No log."""
    output = Output(json_lines=True)

    async def run() -> None:
        await serve(output, _constant(Pki.load(pki)))
        output.event("summary", cpu_seconds=time.process_time(), **memory())

    raise SystemExit(run_async(output, run()))


@main.command("authority")
@_directory
def authority_command(directory: Path) -> None:
    """CRL and OCSP."""
    output = Output(json_lines=True)
    raise SystemExit(run_async(output, serve_authority(output, directory)))


if __name__ == "__main__":
    main()

"""The programs that `stoq bench ca` measures, each a process of its own.

      python -m control.bench.ca_programs …
        issue DIR --logs 2   an authority with so many logs, which run here too as with `stoq ca serve --log`, issues to
                             requests made beforehand (each another key and name), many under way at a time; then all SCTs
                             are verified, and the audit log and the store are read back. `--logs 0`: without SCTs
        bare DIR --certificates 2
                             the yardstick: as many such certificates a request built and signed by `cryptography` alone,
                             and written down, synced for as many together as are under way there
        judge DIR            what was issued to DIR judged as in a handshake, none seen before; and each one's path by
                             `cryptography` alone, right after it

Standard output gets one JSON object, `result`. DIR gets what the other programs need: `issued.pem`, issuer first.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from control.bench.processes import BenchError
from control.bench.report import quantile, ratio
from control.bench.trust_figures import Tally, in_flight, memory
from control.console import Output, run_async
from control.ctlog.opening import OpenLog
from control.ctlog.precert import embedded_entry, embedded_scts
from control.ctlog.site import LogConfig, Site, create, load_log_key
from control.ctlog.structs import verify_sct
from control.trustchain.actor import Actor
from control.trustchain.audit import Decision, read_audit
from control.trustchain.authority import Authority, Issued
from control.trustchain.bundle import LogRecord, TrustBundle, anchors_of
from control.trustchain.directory import AUDIT, DATABASE, ROOT, InitOptions, init, load_certificate
from control.trustchain.errors import TrustError
from control.trustchain.keys import generate, spki
from control.trustchain.logs import EmbeddedLog
from control.trustchain.profiles import Names
from control.trustchain.requests import Freshness, IssueRequest, make_csr
from control.trustchain.store import Store as Records
from control.trustchain.verifier import TrustVerifier

LOGS = ("log-a", "log-b")
ISSUED = "issued.pem"
REVOKED = 100  # Certificates on the CRL that is asked for.
MOST_JUDGED = 2000
AUDIT_PAGE = 1 << 30


def _name(number: int) -> str:
    return f"node-{number}.bench"


def _requests(count: int) -> list[bytes]:
    """CSRs, each with a key and a name of its own."""
    found = []
    for number in range(count):
        key = generate("p256")
        found.append(make_csr(key, _name(number), Names.parse([_name(number)], ["::1"])))
    return found


async def _make(directory: Path, logs: int) -> x509.Certificate:
    """An authority's directory and its logs'."""
    init(directory, InitOptions("bench", min_scts=max(logs, 1), allow_unlogged=not logs), time.time())
    root = load_certificate(directory / ROOT)
    for name in LOGS[:logs]:
        await create(directory / name, LogConfig(f"localhost/{name}"), [root], time.time)
    return root


async def issue(directory: Path, logs: int, seconds: float, concurrency: int, most: int) -> dict[str, Any]:
    """See the module's text."""
    await _make(directory, logs)
    csrs = iter(_requests(most))
    actor, issued, tally = Actor.local(), list[Issued](), Tally()
    async with AsyncExitStack() as stack:
        sites = [Site.read(directory / name) for name in LOGS[:logs]]
        opened = [await stack.enter_async_context(OpenLog(site, time.time)) for site in sites]
        authority = Authority.open(directory, logs=[EmbeddedLog(one) for one in opened])
        stack.push_async_callback(authority.close)

        async def once() -> bool | None:
            csr = next(csrs, None)
            if csr is None:
                return False
            issued.append(await authority.issue(IssueRequest(csr, freshness=Freshness(time.time())), actor))
            return None

        cpu = time.process_time()
        await in_flight(concurrency, seconds, once, tally, TrustError)
        cpu = time.process_time() - cpu
        checked = {
            "scts_verified": _check_scts(directory, logs, issued),
            **await _check_durable(directory, authority, issued),
        }
        for one in issued[:REVOKED]:
            await authority.revoke(one.row.serial.hex(), "superseded", actor)
    _save(directory, issued)
    return {**tally.figures(), "cpu_seconds": cpu, **checked, **memory()}


def _check_scts(directory: Path, logs: int, issued: Sequence[Issued]) -> int:
    keys = [load_log_key(str(directory / name / "log.pem")) for name in LOGS[:logs]]
    count = 0
    for one in issued:
        scts = embedded_scts(one.certificate)
        if len(scts) != logs:
            raise BenchError(f"a certificate was issued with {len(scts)} SCTs, not {logs}")
        for sct, key in zip(scts, keys, strict=True):
            verify_sct(sct, embedded_entry(one.certificate, one.chain[0]), key)
            count += 1
    return count


async def _check_durable(directory: Path, authority: Authority, issued: Sequence[Issued]) -> dict[str, Any]:
    """What another process would read: the audit log whole, with a decision for each, and each in the store."""
    report = await authority.verify_audit(Actor.local())
    if not report.intact:
        raise BenchError(f"the audit log is not intact: {report.finding}")
    lines = await asyncio.to_thread(read_audit, directory / AUDIT, last=AUDIT_PAGE)
    granted = sum(line.decision == Decision.GRANTED and "issue" in line.operation for line in lines)
    store = Records.open(directory / DATABASE, read_only=True)
    try:
        for one in issued:
            row = store.by_fingerprint(one.row.fingerprint)
            if row is None or row.der != one.der:
                raise BenchError(f"the certificate of {one.row.subject} is not in the store")
    finally:
        store.close()
    if granted < len(issued):
        raise BenchError(f"{len(issued)} certificates were issued, and {granted} decisions are in the audit log")
    return {"audit_lines": report.lines, "stored": len(issued)}


def _save(directory: Path, issued: Sequence[Issued]) -> None:
    if issued:
        certificates = [issued[0].chain[0], *(one.certificate for one in issued)]
        (directory / ISSUED).write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))


# ---- the yardsticks ----


def _template(root: ec.EllipticCurvePrivateKey) -> Callable[[ec.EllipticCurvePublicKey, int], x509.CertificateBuilder]:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench intermediate 1")])
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())

    def build(key: ec.EllipticCurvePublicKey, number: int) -> x509.CertificateBuilder:
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _name(number))]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(_name(number))]), critical=False)
        )

    return build


def bare(directory: Path, certificates: int, seconds: float, concurrency: int) -> dict[str, Any]:
    """See the module's text."""
    directory.mkdir(parents=True, exist_ok=True)
    signing = ec.generate_private_key(ec.SECP256R1())
    build, key = _template(signing), ec.generate_private_key(ec.SECP256R1()).public_key()
    # As long as two SCTs are.
    scts = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), bytes(2 * 128))
    count, begin = 0, time.perf_counter()
    path = directory / "bare"
    with path.open("wb", buffering=0) as file:
        while time.perf_counter() - begin < seconds:
            done = []
            for _ in range(concurrency):
                builder = build(key, count)
                if certificates == 2:
                    done.append(builder.add_extension(x509.PrecertPoison(), critical=True).sign(signing, SHA256()))
                    builder = builder.add_extension(scts, critical=False)
                done.append(builder.sign(signing, SHA256()))
                count += 1
            file.write(b"".join(one.public_bytes(Encoding.DER) for one in done))
            os.fdatasync(file.fileno())
    took = time.perf_counter() - begin
    path.unlink()
    return {"count": count, "seconds": took, "per_second": ratio(count, took)}


def _bundle(directory: Path) -> TrustBundle:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    logs = tuple(
        LogRecord(name=name, key=spki(load_log_key(str(directory / name / "log.pem"))), begins=now - day)
        for name in LOGS
    )
    return TrustBundle(
        generation=1,
        issued_at=now,
        valid_until=now + day,
        anchors=anchors_of([load_certificate(directory / ROOT)]),
        logs=logs,
        scts_required=len(logs),
    )


def judge(directory: Path) -> dict[str, Any]:
    """See the module's text."""
    issuer, *leaves = x509.load_pem_x509_certificates((directory / ISSUED).read_bytes())
    verifier, anchors = TrustVerifier(_bundle(directory)), Store([load_certificate(directory / ROOT)])
    issuer_der, now = issuer.public_bytes(Encoding.DER), datetime.datetime.now(datetime.UTC)
    ours, theirs = list[float](), list[float]()
    chains = [(leaf.public_bytes(Encoding.DER), issuer_der) for leaf in leaves[:MOST_JUDGED]]
    for number, chain in enumerate(chains):
        begin = time.perf_counter()
        verifier.verify(chain, _name(number), now)
        middle = time.perf_counter()
        leaf, above = (x509.load_der_x509_certificate(one) for one in chain)
        policy = PolicyBuilder().store(anchors).time(now).build_server_verifier(x509.DNSName(_name(number)))
        policy.verify(leaf, [above])
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)
    return {
        "count": len(ours),
        "p50_ms": quantile(ours, 0.5) * 1e3,
        "p99_ms": quantile(ours, 0.99) * 1e3,
        "max_ms": max(ours, default=0.0) * 1e3,
        "path_p50_ms": quantile(theirs, 0.5) * 1e3,
        "path_p99_ms": quantile(theirs, 0.99) * 1e3,
    }


# ---- the command line ----


@click.group()
def main() -> None:
    """See the module's text."""


def _run(work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> None:
    output = Output(json_lines=True)

    async def run() -> None:
        output.event("result", **await work())

    raise SystemExit(run_async(output, run()))


_directory = click.argument("directory", type=click.Path(path_type=Path))
_seconds = click.option("--seconds", type=float, default=10.0, show_default=True)
_concurrency = click.option("--concurrency", type=click.IntRange(1), default=50, show_default=True)


@main.command("issue")
@_directory
@_seconds
@_concurrency
@click.option("--logs", type=click.IntRange(0, len(LOGS)), default=len(LOGS), show_default=True)
@click.option("--most", type=click.IntRange(1), default=10_000, show_default=True)
def issue_command(directory: Path, seconds: float, concurrency: int, logs: int, most: int) -> None:
    """Issue."""
    _run(lambda: issue(directory, logs, seconds, concurrency, most))


@main.command("bare")
@_directory
@_seconds
@_concurrency
@click.option("--certificates", type=click.IntRange(1, 2), default=2, show_default=True)
def bare_command(directory: Path, seconds: float, concurrency: int, certificates: int) -> None:
    """Build and sign."""

    async def work() -> dict[str, Any]:
        return bare(directory, certificates, seconds, concurrency)

    _run(work)


@main.command("judge")
@_directory
def judge_command(directory: Path) -> None:
    """Judge."""

    async def work() -> dict[str, Any]:
        return judge(directory)

    _run(work)


if __name__ == "__main__":
    main()

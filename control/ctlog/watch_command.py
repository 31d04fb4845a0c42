"""`stoq ct watch`: the monitor as a command."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from control.console import Output, run_async, until_signal
from control.ctlog.alerts import Alert, Evidence, EvidenceFiles, utc
from control.ctlog.chains import Window
from control.ctlog.client import HttpCarrier
from control.ctlog.client_commands import load_chain, promised
from control.ctlog.errors import LogError, ProofError, Unavailable
from control.ctlog.monitor import Monitor, Options, Source, StateFile
from control.ctlog.precert import embedded_scts
from control.ctlog.site import load_log_key, shard_window
from control.ctlog.sources import PatientCarrier, RfcSource, TileSource
from control.ctlog.structs import LogKey, decode_sct, key_id
from control.ctlog.watched import Examiner, Expected, Names, Promise
from control.options import FILE
from dataplane.errors import ConfigError

LONGEST_PAUSE = 300.0  # Seconds between two looks at a log that does not answer, unless --interval is longer.
SURE = (Alert.TWO_ROOTS, Alert.ROLLED_BACK, Alert.BAD_CONSISTENCY_PROOF, Alert.PROMISE_BROKEN)


@dataclass(frozen=True, slots=True)
class _Settings:
    url: str
    log_key: str
    state: Path | None
    evidence: Path | None
    names: Names
    expect: Path | None
    once: bool
    interval: float
    tiles: str | None
    tls: ssl.SSLContext | None
    window: Window | None
    promises: tuple[tuple[Path, Path | None], ...]  # A certificate with its chain, and its SCT if that is apart.
    options: Options


class _Expectations:
    """The file of what is expected, read again when it was changed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> Expected | None:
        """What it says, when that is new. Raises LogError."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError as error:
            raise LogError(f"{self._path} cannot be read: {error.strerror}") from None
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen == self._seen:
            return None
        expected = Expected.read(self._path)
        self._seen = seen
        return expected


class _Watch:
    """One run of the command."""

    def __init__(self, output: Output, settings: _Settings) -> None:
        self._output = output
        self._settings = settings
        key = load_log_key(settings.log_key)
        self._carrier = PatientCarrier(HttpCarrier(settings.url, settings.tls), self._retrying)
        self.source: Source = (
            RfcSource(self._carrier, settings.url)
            if settings.tiles is None
            else TileSource(self._carrier, settings.url, settings.tiles, key)
        )
        self._promises = [one for files in settings.promises for one in read_promises(*files, key)]
        self._files = EvidenceFiles(settings.evidence) if settings.evidence is not None else None
        self._expectations = _Expectations(settings.expect)
        self._told = ""
        self._progress: Callable[[int, int], None] = lambda done, total: None
        self.monitor = Monitor(
            settings.url, self.source, key, StateFile(settings.state),
            Examiner(settings.names, Expected(), settings.window), settings.options, time.time, self._tell,
            lambda done, total: self._progress(done, total),
        )  # fmt: skip
        self.monitor.expect(self._promises)
        self._read_expectations()

    def _read_expectations(self) -> None:
        expected = self._expectations.changed()
        if expected is not None:
            self.monitor.examiner.expected = expected
            self.monitor.expect([*self._promises, *expected.promises])
            for name in expected.unproven:
                self._output.note(f"the SCTs of {name} are not followed up: its issuer does not stand beside it")

    def _retrying(self, why: str) -> None:
        self._output.event("retrying", f"{why}: asking again", error=why)

    def _tell(self, evidence: Evidence) -> None:
        path, kept = None, ""
        if self._files is None:
            if evidence.alert in SURE:
                kept = "\n  the evidence, which others could check, is not kept: name a directory with --evidence"
        else:
            try:
                path = self._files.keep(evidence)
                kept = f"\n  evidence: {path}" if path is not None else "\n  no evidence is kept: there is too much already"
            except LogError as error:
                kept = f"\n  the evidence is lost: {error}"
        self._output.event(
            "alert",
            f"ALERT {evidence.alert}: {evidence.text}{kept}",
            alert=evidence.alert.value,
            what=evidence.text,
            index=evidence.index,
            evidence=str(path) if path is not None else None,
        )

    async def poll(self) -> None:
        """Look once, and say what is new. Raises LogError."""
        monitor = self.monitor
        self._read_expectations()
        self._carrier.begin()
        before, entries, began = monitor.head, monitor.counts.entries, time.monotonic()
        bars = self._output.counting()
        task = bars.add_task("entries", total=None)

        def progress(done: int, total: int) -> None:
            bars.start()  # Nothing is shown where there is nothing to fetch.
            bars.update(task, completed=done, total=total)

        self._progress = progress
        try:
            await monitor.poll()
        finally:
            if bars.live.is_started:
                bars.stop()
        head = monitor.head
        entries = monitor.counts.entries - entries
        if head is None or (head == before and not entries):
            return
        seconds = time.monotonic() - began
        if monitor.proven == head.size:
            says = f"{entries} new entries lead to it"
        else:
            says = f"only {monitor.proven} entries are shown to lead to a signed head"
        self._output.event(
            "head",
            f"{head.size} entries, root {head.root.hex()[:16]}…, signed {utc(head.timestamp)}: {says}",
            size=head.size,
            root=head.root.hex(),
            timestamp=head.timestamp,
            entries=entries,
            proven=monitor.proven,
            seconds=round(seconds, 3),
        )

    async def follow(self) -> None:
        """Look again and again, less often as long as that fails."""
        interval, failures = self._settings.interval, 0
        while True:
            try:
                await self.poll()
                self._told, failures = "", 0
            except LogError as error:
                failures += 1
                # Once as long as it is the same.
                kind = "unreachable" if isinstance(error, Unavailable) else "trouble"
                if self._told != kind:
                    self._output.event(kind, f"{error}: trying again", error=str(error))
                self._told = kind
            pause = min(interval * 2 ** min(failures - 1, 32), max(interval, LONGEST_PAUSE)) if failures else interval
            await asyncio.sleep(pause * (1 - random.random() / 4) if failures > 1 else pause)

    def summary(self) -> None:
        """What this run came to."""
        monitor, counts = self.monitor, self.monitor.counts
        size = monitor.head.size if monitor.head is not None else 0
        self._output.event(
            "summary",
            f"{counts.polls} looks, {counts.entries} entries read, {monitor.proven} of {size} shown to lead to a signed "
            f"head, {counts.promises} promises kept, {monitor.promises_open} not shown yet, {counts.alerts} alerts",
            polls=counts.polls,
            entries=counts.entries,
            proven=monitor.proven,
            size=size,
            promises=counts.promises,
            promises_open=monitor.promises_open,
            alerts=counts.alerts,
        )


def read_promises(certificate: Path, sct: Path | None, key: LogKey) -> list[Promise]:
    """What the log of this key promised for a certificate (PEM, with its chain): the SCT in the file `sct`, as `stoq ct
    submit --out` writes it, or those in the certificate. Raises LogError when there is none of this log."""
    chain = load_chain((certificate,))
    try:
        scts = [decode_sct(sct.read_bytes())] if sct is not None else list(embedded_scts(chain[0]))
    except OSError as error:
        raise LogError(f"{sct} cannot be read: {error.strerror}") from None
    name = chain[0].subject.rfc4514_string()[:200] or f"serial {chain[0].serial_number:040x}"
    ours = [Promise(one, promised(chain, one), name) for one in scts if one.log_id == key_id(key)]
    if not ours:
        raise LogError(f"{sct or certificate} has no SCT of this log: name the file of one with --sct, or another --log-key")
    return ours


async def _run(output: Output, settings: _Settings) -> None:
    async with AsyncExitStack() as stack:
        try:
            watch = _Watch(output, settings)
        except ProofError as error:
            raise LogError(f"an SCT that is to be followed up is not the log's: {error}") from None
        stack.push_async_callback(watch.source.close)
        if settings.once:
            await watch.poll()
        else:
            await _first(watch.follow, until_signal)
        watch.summary()
        if settings.once and (alerts := watch.monitor.counts.alerts):
            raise LogError(f"{alerts} alerts: see above")


async def _first(*works: Callable[[], Awaitable[None]]) -> None:
    """Until one of these ends; the others are cancelled."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@click.command("watch")
@click.argument("url")
@click.option("--log-key", required=True, metavar="PEM|BASE64", help="The log's public key.")
@click.option("--name", "names", multiple=True, metavar="DOMAIN|PREFIX|spki:HEX|*", help="What to look for; repeatable.")
@click.option("--address", "addresses", multiple=True, metavar="IPV6|PREFIX", help="Likewise an address; repeatable.")
@click.option("--expect", type=FILE, help="Certificates, keys and issuers that are no surprise; read again when changed.")
@click.option("--shard", metavar="YEAR[h1|h2]", help="When the log's certificates end; others are told of.")
@click.option("--cert", "certs", multiple=True, type=FILE, help="PEM with its chain: the log must have it; repeatable.")
@click.option("--sct", "scts", multiple=True, type=FILE, help="The SCT of each --cert, if it is not in the certificate.")
@click.option("--state", type=FILE, help="Remember here what was seen; without it a restart begins anew.")
@click.option("--evidence", type=FILE, help="Keep evidence in this directory; by default beside --state.")
@click.option("--once", is_flag=True, help="Look once; alerts make it fail.")
@click.option("--interval", type=click.FloatRange(0.05), default=30.0, show_default=True, help="Seconds between two looks.")
@click.option("--mmd", type=click.FloatRange(0), default=86400.0, show_default=True, help="Maximum merge delay, seconds.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, help="Older heads are fine if by no more seconds.")
@click.option("--tiles", metavar="ORIGIN", help="Read static-ct-api's tiles of the log with this name at URL.")
@click.option("--ca", type=FILE, help="Authorities that the server's certificate leads to, PEM; else the system's.")
@click.pass_obj
def watch_command(
    output: Output, /, url: str, log_key: str, names: tuple[str, ...], addresses: tuple[str, ...], expect: Path | None,
    shard: str | None, certs: tuple[Path, ...], scts: tuple[Path, ...], state: Path | None, evidence: Path | None,
    once: bool, interval: float, mmd: float, tolerance: float, tiles: str | None, ca: Path | None,
) -> None:  # fmt: skip
    """Follow the log at URL: verify every head, every consistency proof and every entry, and tell of misbehaviour and of
    certificates for watched names that nobody announced.

    Evidence of misbehaviour is kept in files that `stoq ct verify` checks with nothing but the log's key."""
    # What is odd about strangers' certificates is for the examiner to say, not for a library on standard error.
    warnings.filterwarnings("ignore", module=r"control\.ctlog\.")
    if scts and len(scts) != len(certs):
        raise click.UsageError(f"{len(scts)} --sct for {len(certs)} --cert: each has its own, in this order, or none has")
    if odd := next((one for one in addresses if ":" not in one), None):
        raise ConfigError(f"{odd!r} is no IPv6 address or prefix; domains are named with --name")
    if evidence is None and state is not None:
        evidence = state.with_name(f"{state.name}.evidence")
    try:
        tls = ssl.create_default_context(cafile=ca) if ca is not None else None
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca} holds no authorities (PEM): {error}") from None
    settings = _Settings(
        url, log_key, state, evidence, Names.parse((*names, *addresses)), expect, once, interval, tiles, tls,
        Window(*shard_window(shard)) if shard is not None else None,
        tuple(zip(certs, scts or (None,) * len(certs), strict=True)),
        Options(mmd=mmd, tolerance=tolerance, paths=256 if evidence is not None else 0),
    )  # fmt: skip
    raise SystemExit(run_async(output, _run(output, settings)))

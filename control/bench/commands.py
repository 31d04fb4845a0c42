"""The command line of `stoq bench`."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from control import devcerts
from control.bench import (
    ca,
    congestion,
    ct,
    engine,
    handshake,
    idle,
    latency,
    packets,
    peers,
    throughput,
    window,
    wire,
)
from control.bench.report import rounded
from control.bench.throughput import Bench, Settings
from control.bench.trust_figures import facts, places_on
from control.console import Output, run_async
from control.handshake.policy import CIPHERS
from control.options import BUSY_BACKEND, FILE
from control.run import places
from dataplane.config import BACKENDS, CRYPTO_PROVIDERS
from dataplane.tables import CongestionController

F = TypeVar("F", bound=Callable[..., Any])
Measure = Callable[[Bench], Awaitable[dict[str, Any]]]
Rows = Callable[[dict[str, Any]], list[tuple[str, str]]]


def _cores(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        client, server = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("want two numbers, as in 0,1") from None
    return client, server


async def _bench(
    output: Output,
    settings: Settings,
    cores: tuple[int, int] | None,
    title: str,
    measure: Measure,
    rows: Rows,
) -> None:
    """Make the place, measure, tell, take everything away again."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stoq-bench-")))
        client, server = places(stack, output, settings.backend, settings.mtu)
        if cores is not None:
            client, server = replace(client, core=cores[0]), replace(server, core=cores[1])
        addresses = list(dict.fromkeys([client.address, server.address, "::1"]))
        devcerts.write(work / "certs", ["client", "server"], addresses, days=1)
        report = await measure(Bench(settings, client, server, work / "certs"))
    where = report["environment"]
    facts = [
        ("machine", f"{where['cpu']}, Linux {where['kernel']}, {where['link']}, MTU {where['mtu']}"),
        ("cores", f"client {where['cores']['client']}, server {where['cores']['server']}"),
        ("crypto", str(where["provider"])),
        ("meanwhile", f"load {where['loadavg_end'][0]:.2f}, {where['cpu_stolen']:.1%} of CPU time stolen"),
    ]
    output.table(title, [*rows(report), *facts])
    output.event("result", **rounded(report))


_COMMON = [
    click.option("--json", "json_lines", is_flag=True, help="The result as one JSON object."),
    click.option("--trials", type=click.IntRange(1, 1000), default=3, show_default=True),
    click.option(
        "--seconds",
        type=click.FloatRange(0.3, 600),
        default=3.0,
        show_default=True,
        help="Of each contender in each trial.",
    ),
    click.option(
        "--cores", callback=_cores, metavar="C,S", help="Client's and server's; default: the first two."
    ),
]
_MTU = click.option(
    "--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True, help="Of the veth pair."
)
SOCKET_BACKENDS = tuple(name for name in BACKENDS if name != "afxdp")


def _backend(names: Sequence[str]) -> Callable[[F], F]:
    return click.option(
        "--backend", type=click.Choice(names), default=names[0], show_default=True, help="Packet I/O."
    )


def _common(function: F) -> F:
    for option in reversed(_COMMON):
        function = option(function)
    return function


def _output(output: Output, json_lines: bool) -> Output:
    return Output(json_lines=output.json_lines or json_lines)


@click.group("bench")
def bench_group() -> None:
    """Measure ourselves beside yardsticks: every trial, the ratio, the environment."""


@bench_group.command("throughput")
@_common
@_MTU
@_backend(BACKENDS)
@click.option("--compare/--no-compare", default=True, show_default=True, help="Also aioquic and qh3.")
@click.option("--direction", type=click.Choice(("download", "upload")), default="download", show_default=True)
@click.option(
    "--streams", type=click.IntRange(1), default=1, show_default=True, help="At a time, each connection."
)
@click.option("--connections", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--many",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also N streams, and N connections, in the same trial.",
)
@click.option("--crypto", type=click.Choice(CRYPTO_PROVIDERS), help="Crypto provider of ours.")
@click.option("--cipher", type=click.Choice(tuple(CIPHERS)), help="Offer only this cipher.")
@click.option("--congestion", type=click.Choice([c.key for c in CongestionController]))
@click.option("--ack-frequency/--no-ack-frequency", default=True, help="Ask the receiver for fewer ACKs.")
@click.option("--busy-poll", is_flag=True, help="Our workers never sleep.")
@click.pass_obj
def throughput_command(
    output: Output,
    /,
    json_lines: bool,
    cores: tuple[int, int] | None,
    direction: str,
    crypto: str | None,
    cipher: str | None,
    congestion: str | None,
    ack_frequency: bool,
    busy_poll: bool,
    **options: Any,
) -> None:
    """Goodput of one transfer, beside the no-protocol ceiling, raw UDP, aioquic and qh3.

    With --backend afxdp: beside what the backend delivers without QUIC in datagrams of the same size."""
    output = _output(output, json_lines)
    chosen = {"--crypto": crypto, "--cipher": cipher, "--congestion": congestion}
    more = tuple(part for name, value in chosen.items() if value for part in (name, value))
    more += () if ack_frequency else ("--no-ack-frequency",)
    more += ("--busy-poll",) if busy_poll else ()
    settings = Settings(download=direction == "download", options=more, **options)

    if settings.backend == "afxdp":
        main = _bench(
            output, settings, cores, "throughput", packets.measure_throughput, packets.throughput_rows
        )
        raise SystemExit(run_async(output, main))

    def measure(bench: Bench) -> Awaitable[dict[str, Any]]:
        return throughput.measure(output, bench)

    main = _bench(output, settings, cores, "throughput", measure, throughput.rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("handshake")
@_common
@_MTU
@_backend(SOCKET_BACKENDS)
@click.option(
    "--compare/--no-compare", default=True, show_default=True, help="Also aioquic's QuicConnection."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Handshakes at a time in the last part.",
)
@click.pass_obj
def handshake_command(
    output: Output,
    /,
    json_lines: bool,
    cores: tuple[int, int] | None,
    concurrency: int,
    **options: Any,
) -> None:
    """Full mutual handshakes a second, beside aioquic."""
    output = _output(output, json_lines)

    def measure(bench: Bench) -> Awaitable[dict[str, Any]]:
        return handshake.measure(bench, concurrency)

    main = _bench(output, Settings(**options), cores, "handshake", measure, handshake.rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("latency")
@_common
@_MTU
@_backend((BUSY_BACKEND, *(name for name in BACKENDS if name != BUSY_BACKEND)))
@click.pass_obj
def latency_command(
    output: Output, /, json_lines: bool, cores: tuple[int, int] | None, **options: Any
) -> None:
    """Request and response of 512 bytes, beside a raw ping-pong of UDP or AF_XDP; both ends busy-poll."""
    output = _output(output, json_lines)
    settings = Settings(options=("--busy-poll",), compare=False, **options)
    measure, rows = latency.measure, latency.rows
    if settings.backend == "afxdp":
        measure, rows = packets.measure_latency, packets.latency_rows
    main = _bench(output, settings, cores, "latency", measure, rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("peers")
@_common
@_MTU
@_backend(SOCKET_BACKENDS)
@click.option("--peer", "names", multiple=True, type=click.Choice(peers.NAMES), help="Only it; repeatable.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=8, show_default=True, help="Handshakes at a time."
)
@click.pass_obj
def peers_command(
    output: Output,
    /,
    json_lines: bool,
    cores: tuple[int, int] | None,
    names: tuple[str, ...],
    concurrency: int,
    **options: Any,
) -> None:
    """Goodput, processor time, handshakes and latency beside every other QUIC implementation here."""
    output = _output(output, json_lines)

    def measure(bench: Bench) -> Awaitable[dict[str, Any]]:
        return peers.measure(output, bench, names, concurrency)

    main = _bench(output, Settings(**options), cores, "peers", measure, peers.rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("packets")
@_common
@_backend(packets.BACKENDS)
@click.pass_obj
def packets_command(
    output: Output, /, json_lines: bool, cores: tuple[int, int] | None, **options: Any
) -> None:
    """Packets a second and round trips of a backend without QUIC, beside the least that AF_XDP costs."""
    output = _output(output, json_lines)
    main = _bench(output, Settings(**options), cores, "packets", packets.measure, packets.rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("wire")
@_common
@_MTU
@click.pass_obj
def wire_command(output: Output, /, json_lines: bool, cores: tuple[int, int] | None, **options: Any) -> None:
    """Trains through the kernel without QUIC: io_uring with each of its options beside plain system calls."""
    output = _output(output, json_lines)
    main = _bench(output, Settings(**options), cores, "wire", wire.measure, wire.rows)
    raise SystemExit(run_async(output, main))


@bench_group.command("engine")
@_COMMON[0]
@_COMMON[1]
@click.option("--mib", type=click.IntRange(1, 1 << 20), default=512, show_default=True, help="In each trial.")
@click.option(
    "--datagram", type=click.IntRange(1200, 65527), default=1350, show_default=True, help="Bytes of a packet."
)
@click.option("--cipher", type=click.Choice(tuple(CIPHERS)), default="aes128", show_default=True)
@click.option("--crypto", type=click.Choice(CRYPTO_PROVIDERS), default="auto", show_default=True)
@click.option("--core", type=int, default=None, help="Both ends'; default: the last.")
@click.pass_obj
def engine_command(output: Output, /, json_lines: bool, core: int | None, **options: Any) -> None:
    """The engine alone, in memory, both ends on one core, beside the AEAD alone."""
    output = _output(output, json_lines)
    settings = engine.Settings(core=engine.default_core() if core is None else core, **options)

    async def main() -> None:
        report = await engine.measure(settings)
        output.table("engine", engine.rows(report))
        output.event("result", **rounded(report))

    raise SystemExit(run_async(output, main()))


@bench_group.command("window")
@_COMMON[0]
@_COMMON[1]
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=0.1, show_default=True, help="Virtual.")
@click.option("--warm-up", type=click.FloatRange(0.1, 600), default=1.2, show_default=True, help="Before.")
@click.option("--congestion", type=click.Choice([c.key for c in CongestionController]), default="cubic")
@click.option("--rate-mbps", type=click.IntRange(1, 100000), default=40000, show_default=True)
@click.option("--rtt-ms", type=click.FloatRange(0.1, 10000), default=50.0, show_default=True)
@click.option("--datagram", type=click.IntRange(1200, 65527), default=8952, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the first trial.")
@click.pass_obj
def window_command(output: Output, /, json_lines: bool, **options: Any) -> None:
    """Flow control in simulation: one stream on a long fast path, windows at their defaults."""
    output = _output(output, json_lines)
    settings = window.Settings(**options)

    async def main() -> None:
        report = await window.measure(settings)
        output.table("window", window.rows(report))
        output.event("result", **rounded(report))

    raise SystemExit(run_async(output, main()))


@bench_group.command("idle")
@_COMMON[0]
@_COMMON[1]
@click.option("--connections", type=click.IntRange(1, 1000000), default=100000, show_default=True)
@click.option(
    "--mib", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="In each transfer."
)
@click.option(
    "--datagram", type=click.IntRange(1200, 65527), default=1350, show_default=True, help="Bytes of a packet."
)
@click.option("--cipher", type=click.Choice(tuple(CIPHERS)), default="aes128", show_default=True)
@click.option("--crypto", type=click.Choice(CRYPTO_PROVIDERS), default="auto", show_default=True)
@click.option("--core", type=int, default=None, help="All ends'; default: the last.")
@click.pass_obj
def idle_command(output: Output, /, json_lines: bool, core: int | None, **options: Any) -> None:
    """Idle connections in one worker: bytes of each, and an active one beside them against alone."""
    output = _output(output, json_lines)
    settings = idle.Settings(core=engine.default_core() if core is None else core, **options)

    async def main() -> None:
        report = await idle.measure(settings)
        output.table("idle", idle.rows(report))
        output.event("result", **rounded(report))

    raise SystemExit(run_async(output, main()))


@bench_group.command("congestion")
@_COMMON[0]
@_COMMON[1]
@click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=60.0, show_default=True, help="Virtual; of a trial."
)
@click.option(
    "--congestion",
    "controllers",
    type=click.Choice([c.key for c in CongestionController]),
    multiple=True,
    help="Only this one; may be repeated. Default: all.",
)
@click.option("--rate-mbps", type=click.IntRange(1, 100000), default=200, show_default=True)
@click.option("--rtt-ms", type=click.FloatRange(0.1, 10000), default=20.0, show_default=True)
@click.option("--loss", type=click.FloatRange(0.01, 50), default=1.0, show_default=True, help="Per cent.")
@click.option("--queue", type=click.IntRange(0), default=0, help="Bytes; default: what the path holds.")
@click.option("--flows", type=click.IntRange(2, 64), default=10, show_default=True, help="For fairness.")
@click.option("--datagram", type=click.IntRange(1200, 65527), default=1452, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the first trial.")
@click.pass_obj
def congestion_command(
    output: Output, /, json_lines: bool, controllers: tuple[str, ...], **options: Any
) -> None:
    """Congestion control in simulation: goodput under random loss beside its model, fairness of flows."""
    output = _output(output, json_lines)
    names = controllers or tuple(c.key for c in CongestionController)
    settings = congestion.Settings(controllers=names, **options)

    async def main() -> None:
        report = await congestion.measure(settings)
        output.table("congestion", congestion.rows(report))
        output.event("result", **rounded(report))

    raise SystemExit(run_async(output, main()))


def _trust_common(function: F) -> F:
    options = [
        _COMMON[0],
        _COMMON[1],
        click.option(
            "--seconds",
            type=click.FloatRange(0.1, 600),
            default=10.0,
            show_default=True,
            help="Of each contender in each trial.",
        ),
        _COMMON[3],
        click.option("--directory", type=FILE, help="Below it, on the disk that is meant; default: temporary files."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _trust(
    output: Output, title: str, report: Awaitable[dict[str, Any]], rows: Callable[[dict[str, Any]], list[tuple[str, str]]]
) -> int:
    async def main() -> None:
        found = await report
        output.table(title, [*rows(found), *facts(found["environment"])])
        output.event("result", **rounded(found))

    return run_async(output, main())


@bench_group.command("ct")
@_trust_common
@click.option(
    "--connections", type=click.IntRange(1, 1024), default=64, show_default=True, help="Submissions at a time."
)
@click.option("--entries", type=click.IntRange(1), default=1_000_000, show_default=True, help="Of the big log.")
@click.option("--s3", "s3_url", metavar="URL", help="Also add-chain in S3 there; credentials as boto3 finds them.")
@click.option("--s3-bucket", help="The bucket; what is written there is removed.")
@click.option("--seaweedfs", is_flag=True, help="Also add-chain in a SeaweedFS server of its own (in the checkout).")
@click.pass_obj
def ct_command(
    output: Output,
    /,
    json_lines: bool,
    cores: tuple[int, int] | None,
    s3_url: str | None,
    s3_bucket: str | None,
    seaweedfs: bool,
    **options: Any,
) -> None:
    """A log: add-chain, get-entries, proofs, each beside its yardstick, and its growth to many entries."""
    if (s3_url is None) != (s3_bucket is None) or (s3_url is not None and seaweedfs):
        raise click.UsageError("give --s3 and --s3-bucket, or --seaweedfs")
    target = None
    if s3_url is not None or seaweedfs:
        target = ct.S3Target(s3_url or "", s3_bucket or "", own=seaweedfs)
    report = ct.measure(ct.Settings(s3=target, **options), *places_on(cores))
    raise SystemExit(_trust(_output(output, json_lines), "ct", report, ct.rows))


@bench_group.command("ca")
@_trust_common
@click.option(
    "--concurrency", type=click.IntRange(1, 4096), default=50, show_default=True, help="Requests at a time."
)
@click.pass_obj
def ca_command(
    output: Output, /, json_lines: bool, cores: tuple[int, int] | None, **options: Any
) -> None:
    """An authority: issuance with and without SCTs, judging a peer, OCSP and CRLs, each beside its yardstick."""
    report = ca.measure(ca.Settings(**options), *places_on(cores))
    raise SystemExit(_trust(_output(output, json_lines), "ca", report, ca.rows))

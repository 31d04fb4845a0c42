"""`stoq run [FILE]`, the main job on one machine: two nodes, mutual TLS, one real file.

      network namespace a                          network namespace b
      `stoq receive` (worker on core 1) ◀──veth──  `stoq send FILE` (worker on core 0)
      `stoq ca serve` with two logs    ◀──veth──  `stoq join`, then whatever the node asks

Without root the two nodes are processes over ::1. The nodes are the same commands an operator would use,
started with --json; this one draws the bar and the table. Namespaces, certificates, the file made on the spot
and the file received are removed however it ends.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import click

from control.console import Output, human_bits, human_bytes, run_async
from control.netns import INTERFACE, Pair, can_make_namespaces
from control.nodes import Node, Place, RunError, start
from control.options import FILE
from control.report import trains_text
from control.trust_scene import TrustScene
from dataplane import STOQ_PORT
from dataplane.config import BACKENDS

DEFAULT_BYTES = 1 << 30
SPARE_BYTES = 64 << 20  # Left free on the disk beside the file and its copy.
PATTERN_BYTES = 1 << 20


def make_file(path: Path, size: int, output: Output) -> None:
    """A file of pseudo-random bytes that neither compress nor repeat: one random block, shifted by a counter
    each time."""
    block = random.Random(size).randbytes(PATTERN_BYTES)
    with output.progress() as bars, path.open("wb", buffering=0) as file:
        task = bars.add_task("making a file", total=size)
        for number in range(0, size, PATTERN_BYTES):
            head = number.to_bytes(8, "big")
            piece = head + block[8 + (number >> 20) % 4096 :] + block[: (number >> 20) % 4096]
            piece = piece[: min(PATTERN_BYTES, size - number)]
            file.write(piece)
            bars.advance(task, len(piece))


def cores() -> tuple[int, int]:
    """Two different cores we may use, for sender and receiver; (-1, -1) with only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (-1, -1)


def places(stack: ExitStack, output: Output, backend: str, mtu: int) -> tuple[Place, Place]:
    """Sender and receiver: in two namespaces if possible, else here, saying why."""
    core_a, core_b = cores()
    if core_a < 0:
        output.note("only one core: the two workers share it, unpinned")
    why = can_make_namespaces()
    if why is not None and backend == "afxdp":
        raise RunError(f"{why}, and afxdp needs interfaces of its own: run it as root, or use io_uring")
    if why is not None:
        output.note(
            f"{why}; the same job runs over ::1 instead, where no real link limits datagrams to {mtu} bytes"
        )
        return Place(None, "::1", core_a), Place(None, "::1", core_b)
    pair = stack.enter_context(Pair(mtu))
    interface = INTERFACE if backend == "afxdp" else None
    return (
        Place(pair.a, pair.a.address, core_a, interface),
        Place(pair.b, pair.b.address, core_b, interface),
    )


async def run(output: Output, file: Path | None, backend: str, size: int, mtu: int, more: list[str]) -> None:
    """The whole job."""
    if file is not None and not file.is_file():
        raise RunError(f"{file} is not a file")
    with ExitStack() as stack:
        # Ctrl-C ends up here as an exception, and the stack takes everything away again.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stoq-run-")))
        total = file.stat().st_size if file else size
        needed = total * (1 if file else 2) + SPARE_BYTES
        free = shutil.disk_usage(work).free
        if free < needed:
            raise RunError(
                f"{work.parent} has {human_bytes(free)} free, {human_bytes(needed)} are needed: set TMPDIR"
            )
        if file is None:
            file = work / f"random-{human_bytes(size).replace(' ', '')}.bin"
            make_file(file, size, output)
        sender, receiver = places(stack, output, backend, mtu)
        (work / "in").mkdir()
        await _transfer(output, file, work, sender, receiver, ["--backend", backend, *more])


async def _transfer(
    output: Output, file: Path, work: Path, sender: Place, receiver: Place, options: list[str]
) -> None:
    port = STOQ_PORT if receiver.namespace else 0
    async with AsyncExitStack() as stack:
        where = Place(receiver.namespace, receiver.address, -1)
        scene = TrustScene(work / "trust", where, {"receiver": receiver, "sender": sender})
        trust = await stack.enter_async_context(scene.running())
        listen = f"[{receiver.address}]:{port}"
        received = ["receive", "--listen", listen, "--output", str(work / "in"), *trust.home("receiver"), *options]
        node_b = await start("receiver", receiver, received)
        stack.push_async_callback(node_b.end)
        listening = await node_b.until("listening")
        to = f"[{receiver.address}]:{listening['port']}"
        node_a = await start("sender", sender, ["send", str(file), "--to", to, *trust.home("sender"), *options])
        stack.push_async_callback(node_a.end)
        sent = await _watch(output, node_a, node_b, file)
        summary = await node_b.until("summary")
        member = await trust.member("receiver", sender)
    _report(output, sent, listening, summary, member, sender, receiver)


async def _watch(output: Output, node_a: Node, node_b: Node, file: Path) -> dict[str, Any]:
    """Draw the bar until the sender has its receipt. The sender's own reason comes first if both fail."""
    size = file.stat().st_size
    with output.progress() as bars:
        task = bars.add_task("waiting for the handshake", total=size)
        async for event in node_a.events():
            if event["event"] == "connected":
                bars.update(task, description=f"{file.name}")
                output.event(
                    "connected", handshake_seconds=event["handshake_seconds"], identity=event["identity"]
                )
            elif event["event"] == "progress":
                bars.update(task, completed=event["bytes"])
                if event["bytes"] >= size:
                    bars.update(task, description="comparing SHA-256")
                output.event("progress", bytes=event["bytes"], total=size)
            elif event["event"] == "sent":
                bars.update(task, completed=size, description="done")
                return dict(event)
    await node_b.until("received")
    raise RunError("the sender ended without a result")


def _report(
    output: Output,
    sent: dict[str, Any],
    listening: dict[str, Any],
    summary: dict[str, Any],
    member: dict[str, Any],
    a: Place,
    b: Place,
) -> None:
    where = "two network namespaces joined by veth" if a.namespace else "::1, no namespaces"

    def core(number: int) -> str:
        return "not pinned" if number < 0 else f"core {number}"

    rows = [
        ("where", where),
        ("file", f"{human_bytes(sent['bytes'])}, SHA-256 {sent['sha256']} equal at the far end"),
        (
            "handshake",
            f"{sent['handshake_seconds'] * 1e3:.2f} ms, mutual TLS 1.3, {sent['aead']}, "
            f"peer {sent['identity']}",
        ),
        *(tuple(line.split(": ", 1)) for line in member["lines"]),
        (
            "goodput",
            f"{human_bits(sent['goodput_bps'])} ({sent['seconds']:.2f} s from "
            "first byte to last acknowledgement)",
        ),
        ("loss", f"{sent['loss']:.4%} of {sent['packets_sent']} packets"),
        ("round trip", f"smoothed {sent['rtt_smoothed'] * 1e3:.2f} ms, least {sent['rtt_min'] * 1e3:.2f} ms"),
        ("sender", f"{core(sent['cores'][0])}; {sent['backend'][0]}; {sent['crypto']}"),
        ("receiver", f"{core(summary['cores'][0])}; {listening['backend'][0]}; {summary['crypto']}"),
        ("datagrams per send", trains_text(sent["trains_sent"])),
        ("datagrams per receive", trains_text(summary["trains_received"])),
    ]
    output.table("", rows)
    output.event("result", where=where, sender=sent, receiver=summary, member=member)


@click.command("run")
@click.argument("file", type=FILE, required=False)
@click.option(
    "--backend", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True, help="Packet I/O."
)
@click.option(
    "--bytes",
    "size",
    type=click.IntRange(0),
    default=DEFAULT_BYTES,
    help="Size of the file made if none is given.",
)
@click.option(
    "--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True, help="Of the veth pair."
)
@click.option("--cipher", help="Offer only this cipher.")
@click.option("--congestion", help="Congestion controller of the sender.")
@click.option("--max-datagram", type=int, help="Largest UDP payload tried, bytes.")
@click.pass_obj
def run_command(
    output: Output, /, file: Path | None, backend: str, size: int, mtu: int, **options: str | int | None
) -> None:
    """Send FILE (default: 1 GiB made on the spot) between two nodes on this machine, and say how it went."""
    more = [
        part
        for name, value in options.items()
        if value
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    raise SystemExit(run_async(output, run(output, file, backend, size, mtu, more)))

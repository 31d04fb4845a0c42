"""`stoq status`: what a running node says about itself, once or again and again with rates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control.console import Output, human_bytes, run_async, until_signal
from control.local import client
from control.local.protocol import GuardStatus, QueueStatus, StatusAnswer, StatusRequest
from control.report import trains_text
from dataplane.tables import Counter, DropReason, Verdict

DROP_TEXTS = {reason.key: reason.text for reason in DropReason}
VERDICT_TEXTS = {verdict.key: verdict.text for verdict in Verdict}
COUNTER_TEXTS = {counter.key: counter.text for counter in Counter}


class Rates:
    """Of counts that only grow: how much a second since the status before."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._seconds = 0.0
        self._uptime = 0.0
        self._pid = 0

    def take(self, status: StatusAnswer) -> None:
        """The next status. A restarted node begins anew."""
        self._before = self._now if status.pid == self._pid else {}
        self._now = dict(counts(status))
        self._seconds = status.uptime - self._uptime
        self._uptime, self._pid = status.uptime, status.pid

    def rate(self, name: str) -> float | None:
        """A second; None when there is nothing to compare with."""
        if name not in self._before or name not in self._now or self._seconds <= 0:
            return None
        return (self._now[name] - self._before[name]) / self._seconds

    def rates(self) -> dict[str, float]:
        """All that are not zero."""
        found = {name: self.rate(name) for name in self._now}
        return {name: value for name, value in found.items() if value}


def counts(status: StatusAnswer) -> Iterator[tuple[str, int]]:
    """Everything in a status that only grows, by a name of its own."""
    for name, value in status.counters.items():
        yield f"counters.{name}", value
    # A reason appears when it has happened: before, it was zero.
    for name in (*DROP_TEXTS, *(status.drops.keys() - DROP_TEXTS.keys())):
        yield f"drops.{name}", status.drops.get(name, 0)
    for name, value in status.io.items():
        yield f"io.{name}", value
    if status.guard is not None:
        for name, verdict in status.guard.verdicts.items():
            yield f"verdicts.{name}.packets", verdict.packets
            yield f"verdicts.{name}.bytes", verdict.bytes
    for queue in status.queues:
        for name in ("rx_batches", "tx_batches", "wakeups_rx", "wakeups_tx", "rx_socket", "tx_socket"):
            yield f"queues.{queue.queue}.{name}", getattr(queue, name)


# ---- for people ----


def _table(title: str, *columns: str, rates: bool = False) -> Table:
    """Names and texts to the left, everything between to the right. A column named `text` may wrap."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        if column == "per second" and not rates:
            continue
        left = column in (columns[0], "text", "XDP", "UMEM", "in use")
        table.add_column(column, justify="left" if left else "right", overflow="fold", header_style="dim")
    return table


def _pairs(title: str, rows: list[tuple[str, str]]) -> Table:
    table = _table(title, "", "text")
    table.show_header = False
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _number(value: float | None) -> str:
    """A count or a mean."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """A time span for people, to the second."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts[:2])


def _header(status: StatusAnswer) -> Table:
    io, pools = status.io, status.pools
    rows = [
        ("node", f"process {status.pid}, `{status.command}`, version {status.version}, "
                 f"up {duration(status.uptime)}"),
        ("address", f"{status.address}; {status.connections} connections; {status.crypto}"),
    ]  # fmt: skip
    for worker in status.workers:
        core = "not pinned" if worker.core < 0 else f"core {worker.core}"
        rows.append((f"worker {worker.worker}", f"{core}; {worker.backend}"))
    rows += [
        ("received", f"{io.get('rx_packets', 0):,} datagrams, {human_bytes(io.get('rx_bytes', 0))}; "
                     f"trains of {trains_text(status.trains_received)}"),
        ("sent", f"{io.get('tx_packets', 0):,} datagrams, {human_bytes(io.get('tx_bytes', 0))}; "
                 f"trains of {trains_text(status.trains_sent)}"),
        ("I/O", ", ".join(f"{name} {value:,}" for name, value in io.items()
                          if value and name not in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes"))),
        ("pools", ", ".join(f"{name.removesuffix('_used')} {value:,} of "
                            f"{pools.get(name.removesuffix('_used'), pools.get('metadata_bytes', 0)):,}"
                            for name, value in pools.items() if name.endswith("_used"))),
    ]  # fmt: skip
    if status.secrets_allowed:
        rows.append(("secrets", "TLS secrets are kept in memory (--allow-secrets)"))
    if status.capturing:
        rows.append(("capture", "running"))
    return _pairs("", rows)


def _counts(
    title: str, values: Mapping[str, int], texts: Mapping[str, str], rates: Rates, prefix: str, watch: bool
) -> Table:
    table = _table(title, "", "count", "per second", "text", rates=watch)
    for name, value in values.items():
        if value:
            rate = [_number(rates.rate(f"{prefix}.{name}"))] if watch else []
            table.add_row(name, f"{value:,}", *rate, texts.get(name, ""))
    return table


def _features(queue: QueueStatus) -> str:
    names = {
        "need-wakeup": queue.need_wakeup,
        "busy poll": queue.busy_poll,
        "multi-buffer": queue.multi_buffer,
        "checksum offload": queue.tx_checksum,
    }
    return ", ".join(name for name, used in names.items() if used) or "none"


def _queues(queues: list[QueueStatus]) -> Iterator[RenderableType]:
    # Why a queue got what it got stands beside its worker, in the header.
    table = _table(
        "Queues", "queue", "worker", "XDP", "UMEM", "in use", "rx batch", "tx batch", "rx wake-ups",
        "tx wake-ups", "rx by socket", "tx by socket", "routes", "neighbours",
    )  # fmt: skip
    for queue in queues:
        table.add_row(
            f"{queue.interface} {queue.queue}",
            str(queue.worker),
            "native" if queue.native else "generic",
            "zero-copy" if queue.zero_copy else "copy",
            _features(queue),
            *(_number(value) for value in (
                queue.rx_batch_size, queue.tx_batch_size, queue.wakeups_rx, queue.wakeups_tx,
                queue.rx_socket, queue.tx_socket, queue.routes, queue.neighbours,
            )),
        )  # fmt: skip
    yield table
    frames = _table("Frames by owner", "queue", "in all", *queues[0].frames, "under way", "bytes each")
    for queue in queues:
        under_way = queue.frames_total - sum(queue.frames.values())
        values = (queue.frames_total, *queue.frames.values(), under_way, queue.frame_bytes)
        frames.add_row(f"{queue.interface} {queue.queue}", *map(_number, values))
    yield frames
    rings = _table("Entries in rings", "queue", *queues[0].rings)
    kernel = _table("XDP_STATISTICS", "queue", *queues[0].kernel)
    for queue in queues:
        rings.add_row(f"{queue.interface} {queue.queue}", *map(_number, queue.rings.values()))
        kernel.add_row(f"{queue.interface} {queue.queue}", *map(_number, queue.kernel.values()))
    yield rings
    yield kernel


def _guard(guard: GuardStatus, rates: Rates, watch: bool) -> Iterator[RenderableType]:
    policy = ", ".join(f"{name} {value:,}" for name, value in guard.policy.items())
    yield _pairs(
        "Guard",
        [
            ("interface", f"{guard.interface}, {guard.mode}; {guard.notes}"),
            ("program", f"id {guard.program_id}, {guard.instructions:,} instructions as verified"),
            ("policy", policy),
            ("blocklist", f"{guard.blocked_prefixes:,} prefixes"),
        ],
    )
    table = _table("Verdicts", "", "packets", "bytes", "per second", "text", rates=watch)
    for name, verdict in guard.verdicts.items():
        if verdict.packets:
            rate = [_number(rates.rate(f"verdicts.{name}.packets"))] if watch else []
            table.add_row(
                name, f"{verdict.packets:,}", human_bytes(verdict.bytes), *rate, VERDICT_TEXTS.get(name, "")
            )
    yield table


def render(status: StatusAnswer, rates: Rates, *, watch: bool = False) -> Group:
    """A status as tables; with `watch` there is a column of rates."""
    parts: list[RenderableType] = [_header(status)]
    if status.queues:
        parts += _queues(status.queues)
    if status.guard is not None:
        parts += _guard(status.guard, rates, watch)
    if status.drops:
        parts.append(_counts("Dropped by the engine", status.drops, DROP_TEXTS, rates, "drops", watch))
    else:
        parts.append(Text("The engine dropped nothing."))
    if watch:
        parts.append(_counts("Counters", status.counters, COUNTER_TEXTS, rates, "counters", watch))
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, ""]
    return Group(*spaced[:-1])


def _list(output: Output, found: list[tuple[Path, StatusAnswer]]) -> None:
    table = _table("Nodes", "process", "text", "address", "up", "control socket")
    for path, status in found:
        table.add_row(str(status.pid), status.command, status.address, duration(status.uptime), str(path))
    if not output.json_lines:
        output.console.print(table)
        output.console.print("Several nodes run here: choose one with --node PID.", markup=False)
    output.event(
        "nodes",
        nodes=[
            {
                "pid": status.pid,
                "command": status.command,
                "address": status.address,
                "uptime": status.uptime,
                "control": str(path),
            }
            for path, status in found
        ],
    )


# ---- the command ----


def _show(output: Output, status: StatusAnswer, **more: Any) -> None:
    fields: dict[str, Any] = msgspec.to_builtins(status)
    del fields["answer"]
    output.event("status", **fields, **more)


async def show(output: Output, node: str | None) -> None:
    """One status, or the list of nodes when none is named and several run."""
    if node is None:
        found = await client.statuses()
        if len(found) > 1:
            _list(output, found)
            return
        if not found:
            raise client.LocalError(client.NO_NODE)
        status = found[0][1]
    else:
        status = await client.ask(await client.the_node(node), StatusRequest(), StatusAnswer)
    _show(output, status)
    if not output.json_lines:
        output.console.print(render(status, Rates()))


async def watch(output: Output, node: str | None, seconds: float) -> None:
    """Again every `seconds`, until a signal comes. Raises LocalError when the node has gone."""
    path = await client.the_node(node)
    rates = Rates()
    signalled = asyncio.ensure_future(until_signal())
    drawing = not output.json_lines
    with Live(console=output.console, auto_refresh=False, vertical_overflow="crop") as live:
        due = time.monotonic()
        while not signalled.done():
            status = await client.ask(path, StatusRequest(), StatusAnswer)
            rates.take(status)
            _show(output, status, per_second=rates.rates())
            if drawing:
                live.update(render(status, rates, watch=True), refresh=True)
            due = max(due + seconds, time.monotonic())
            await asyncio.wait((signalled,), timeout=due - time.monotonic())


@click.command("status")
@click.option("--node", metavar="PID|PATH", help="Which node, if several run here.")
@click.option("--json", "json_lines", is_flag=True, help="As `stoq --json status`.")
@click.option(
    "--watch",
    "seconds",
    type=click.FloatRange(0.1, 3600),
    help="Draw again every so many seconds, with rates, until Ctrl-C.",
)
@click.pass_obj
def status_command(output: Output, /, node: str | None, json_lines: bool, seconds: float | None) -> None:
    """Show what a running node does: queues, frames, the guard's verdicts, drops and why."""
    output.json_lines |= json_lines
    main = show(output, node) if seconds is None else watch(output, node, seconds)
    raise SystemExit(run_async(output, main))

"""Floods against a live node, with the XDP guard and without, beside an established transfer.

For each node (io_uring without guard; io_uring and afxdp with it) and each kind of attack, rounds of three
windows, one after the other, with the same download under way:

      calm      nobody attacks
      aside     the attack goes to nobody, over another veth: what it costs the client's core is all it costs
      attacked  the same attack on the node

A round's ratios are attacked / aside (what the node lost) and attacked / calm (with the attacker's own use
of the client's core, which on a machine of two cores nobody else can have); of the rounds the median counts.
A round in which the attacker could not keep its rate (it needs a twentieth of a core) met other users of the
machine, says nothing, and is made again, up to as many times as there are rounds. Then honest clients
connect, under the attack. At the end the books must be right: every frame has its verdict.

By hand: make floods N=10000 SECONDS=0.3, or python -m tests.hostile.floods --help. As root. Exit code 1 when
a node with a guard keeps less than 80 % of its rate, or an honest client does not get in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataplane.tables import Verdict
from tests.hostile.siege import KINDS, Attack, Siege, cores, siege

NODES = {"none": ("io_uring", False), "io_uring": ("io_uring", True), "afxdp": ("afxdp", True)}
KEEPS = 0.8  # What a guarded node must keep.
SETTLE_SECONDS = 0.2  # Between windows: a few round trips of recovery, and the attacker's start.
HONEST = 5
HONEST_SECONDS = 5.0  # A client that is not in by then has given up.
ANY_NUMBER = 1 << 62
KEPT_RATE = 0.97  # Of the frames asked for; what is less was not our doing.
FEWEST = 3  # Undisturbed rounds; with fewer, all count, and the table says so.


@dataclass
class Window:
    """One measurement. CPU in seconds a second: of worker threads, and of whole cores (user, system,
    softirq)."""

    round: int
    what: str
    seconds: float
    gbps: float
    node_cpu: float
    client_cpu: float
    attack_cpu: float
    core_cpu: dict[int, tuple[float, float, float]]
    disturbed: bool = False


@dataclass
class Trial:
    """One attack on one node. `keeps` and `keeps_of_calm` are medians over rounds; see the module's text."""

    node: str
    kind: str
    pps: int
    windows: list[Window] = field(default_factory=list)
    sent: int = 0
    refused: int = 0
    left_out: int = 0
    attack_seconds: float = 0.0
    connected: list[float | None] = field(default_factory=list)
    retries_received: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    unaccounted: int | None = None
    drops: dict[str, int] = field(default_factory=dict)
    lost_at_socket: int = 0
    accepted: int = 0

    @property
    def disturbed(self) -> set[int]:
        """Rounds that met others."""
        return {window.round for window in self.windows if window.disturbed}

    @property
    def disturbed_count(self) -> bool:
        """Are too few rounds left, so that disturbed ones count too?"""
        return len({window.round for window in self.windows}) - len(self.disturbed) < FEWEST

    def good(self, what: str) -> list[Window]:
        """Windows that count, by round."""
        skip: set[int] = set() if self.disturbed_count else self.disturbed
        found = [window for window in self.windows if window.what == what and window.round not in skip]
        return sorted(found, key=lambda window: window.round)

    def rate(self, what: str) -> float:
        """Median, Gbit/s."""
        return statistics.median(window.gbps for window in self.good(what))

    def median_cpu(self, what: str, whose: str) -> float:
        return statistics.median(float(getattr(window, whose)) for window in self.good(what))

    def _ratio(self, other: str) -> float:
        pairs = zip(self.good("attacked"), self.good(other), strict=True)
        return statistics.median(mine.gbps / max(theirs.gbps, 1e-9) for mine, theirs in pairs)

    @property
    def keeps(self) -> float:
        return self._ratio("aside")

    @property
    def keeps_of_calm(self) -> float:
        return self._ratio("calm")

    @property
    def real_pps(self) -> float:
        return self.sent / max(self.attack_seconds, 1e-9)

    @property
    def failures(self) -> list[str]:
        """What a guarded node must not do. Without a guard nothing is promised."""
        if self.unaccounted is None:
            return []
        found = []
        if self.keeps < KEEPS:
            found.append(f"keeps {self.keeps:.2f} of its rate, {KEEPS} are asked")
        if None in self.connected:
            found.append(f"{self.connected.count(None)} of {len(self.connected)} honest clients are not in")
        if self.unaccounted != 0:
            found.append(f"{self.unaccounted} frames without a verdict")
        return found

    def note(self, sent: dict[str, Any]) -> None:
        self.sent += sent["sent"]
        self.refused += sent["refused"]
        self.left_out += sent["left_out"]
        self.attack_seconds += sent["seconds"]


async def window(scene: Siege, number: int, what: str, seconds: float) -> Window:
    """The rate at which stream data arrive at the client, and whose CPU it took."""
    cpu, carried = scene.cpu(), scene.carried
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - begin
    carried = scene.carried - carried
    now = scene.cpu()
    return Window(
        number,
        what,
        took,
        carried * 8 / took / 1e9,
        (now.node - cpu.node) / took,
        (now.client - cpu.client) / took,
        0.0,
        {core: _minus(now.cores[core], cpu.cores[core], took) for core in now.cores},
    )


def _minus(
    a: tuple[float, float, float], b: tuple[float, float, float], by: float
) -> tuple[float, float, float]:
    return ((a[0] - b[0]) / by, (a[1] - b[1]) / by, (a[2] - b[2]) / by)


async def attacked(scene: Siege, trial: Trial, number: int, what: str, seconds: float) -> Window:
    """A window beside an attack that begins before it and ends after it."""
    attack = await scene.attack(trial.kind, trial.pps, ANY_NUMBER, aside=what == "aside")
    await asyncio.sleep(SETTLE_SECONDS)
    found = await window(scene, number, what, seconds)
    sent = await attack.stop()
    found.attack_cpu = sent["cpu_seconds"] / max(sent["seconds"], 1e-9)
    found.disturbed = sent["sent"] + sent["refused"] < KEPT_RATE * trial.pps * sent["seconds"]
    if what == "attacked":
        trial.note(sent)
    await asyncio.sleep(SETTLE_SECONDS)
    return found


async def honest(scene: Siege, attack: Attack, trial: Trial) -> None:
    """New connections under the attack, one after the other."""
    for _ in range(HONEST):
        trial.connected.append(await scene.honest(HONEST_SECONDS))
    trial.note(await attack.stop())


async def run_trial(scene: Siege, trial: Trial, rounds: int, seconds: float) -> None:
    """All windows, then honest clients, then the books."""
    start = await scene.quiet()
    transfer = await scene.transfer()
    await asyncio.sleep(2 * SETTLE_SECONDS)  # Slow start.
    order = deque(("calm", "aside", "attacked"))
    for number in range(2 * rounds):
        for what in order:
            if what == "calm":
                trial.windows.append(await window(scene, number, what, seconds))
            else:
                trial.windows.append(await attacked(scene, trial, number, what, seconds))
        order.rotate()  # What drifts within a round is then nobody's advantage.
        if number + 1 - len(trial.disturbed) == rounds:
            break
    attack = await scene.attack(trial.kind, trial.pps, ANY_NUMBER)
    await asyncio.sleep(SETTLE_SECONDS)
    before = scene.client.counters()["retries_received"]
    await honest(scene, attack, trial)
    trial.retries_received = scene.client.counters()["retries_received"] - before
    alive = not transfer.connection.closed
    await transfer.end()
    books = (await scene.quiet()).since(start)
    if books.verdicts is not None:
        assert alive, f"{trial.node}, {trial.kind}: the transfer did not live through the attack"
        trial.verdicts = books.verdicts.nonzero
        trial.unaccounted = books.unaccounted(trial.sent)
    trial.drops = {name: count for name, count in books.drops.items() if count}
    trial.lost_at_socket = books.io["rx_dropped_queue"]
    trial.accepted = books.counters["connections_accepted"]


# ---- for people ----


def taken_by_guard(trial: Trial) -> int:
    """Frames that the guard dropped or answered."""
    return sum(
        trial.verdicts.get(verdict.key, 0)
        for verdict in Verdict
        if Verdict.DROP_IPV4 <= verdict <= Verdict.ANSWER_RETRY
    )


HEADS = ("node", "attack", "kpps", "rounds", "calm", "aside", "attacked", "keeps", "of calm",
         "node CPU", "attack CPU", "honest in", "took ms", "Retry", "guard took",
         "refused by engine")  # fmt: skip


def row(trial: Trial) -> tuple[str, ...]:
    """One line of the table."""
    took = [seconds for seconds in trial.connected if seconds is not None]
    median = f"{statistics.median(took) * 1e3:.0f}" if took else "–"
    guard = "–" if trial.unaccounted is None else f"{taken_by_guard(trial) / max(trial.sent, 1):.2%}"
    return (
        trial.node if trial.node != "none" else "no guard",
        trial.kind,
        f"{trial.real_pps / 1e3:.1f}",
        f"{len(trial.good('calm'))}"
        + (f" ({len(trial.disturbed)} disturbed)" if trial.disturbed_count else ""),
        *(f"{trial.rate(what):.2f}" for what in ("calm", "aside", "attacked")),
        f"{trial.keeps:.2f}",
        f"{trial.keeps_of_calm:.2f}",
        f"{trial.median_cpu('calm', 'node_cpu'):.2f}→{trial.median_cpu('attacked', 'node_cpu'):.2f}",
        f"{trial.median_cpu('attacked', 'attack_cpu'):.2f}",
        f"{len(took)}/{len(trial.connected)}",
        median,
        str(trial.retries_received),
        guard,
        str(sum(trial.drops.values())),
    )


def table(trials: list[Trial]) -> str:
    """All of them."""
    rows = [HEADS, *(row(trial) for trial in trials)]
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEADS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in rows]
    legend = (
        "rounds: that count. calm, aside, attacked: Gbit/s of the transfer. keeps: attacked / aside; "
        "of calm: attacked / calm\n(medians of rounds). CPU: of one core; attack CPU includes the guard's "
        "work, which veth does in the sender's\nsystem call. guard took: share of the attack's frames that "
        "it dropped or answered."
    )
    return "\n".join([*lines, "", legend])


async def _main(options: argparse.Namespace) -> list[Trial]:
    trials: list[Trial] = []
    for name in options.nodes:
        backend, guard = NODES[name]
        async with siege(backend=backend, guard=guard) as scene:
            for kind in options.kinds:
                trial = Trial(name, kind, options.pps)
                print(f"… {name}: {kind}", file=sys.stderr)
                await run_trial(scene, trial, options.rounds, options.seconds)
                trials.append(trial)
                if guard:
                    print(f"  {trial.sent} sent; verdicts {trial.verdicts}", file=sys.stderr)
    return trials


def main() -> None:
    """Floods, and what a node keeps beside them."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.floods", description=main.__doc__)
    parser.add_argument("--pps", type=int, default=10_000, help="frames a second (default 10,000)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each window (default 0.3)")
    parser.add_argument("--rounds", type=int, default=7, help="of three windows each (default 7)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--nodes", nargs="+", choices=list(NODES), default=list(NODES))
    parser.add_argument("--json", type=Path, help="every window and count into this file")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    trials = asyncio.run(_main(options))
    print(table(trials))
    failures = [f"{t.node}, {t.kind}: {text}" for t in trials for text in t.failures]
    if options.json:
        head = {"kernel": platform.release(), "cores": cores(), "load": os.getloadavg()}
        body = [{**asdict(t), "keeps": t.keeps, "keeps_of_calm": t.keeps_of_calm} for t in trials]
        options.json.write_text(json.dumps({**head, "failures": failures, "trials": body}, indent=1) + "\n")
    print("\n".join(failures) if failures else "every frame accounted for; every guarded node kept its rate")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

"""Runs the interop matrix.

    python -m tests.interop.run [--peer P].. [--case C].. [--direction client|server]
        [--backend B] [--json FILE] [--table docs/INTEROP.md]
    python -m tests.interop.run --self [--pair CLIENT:SERVER]..     strangers against each other

Exit code 0 when nothing failed, 1 otherwise, 2 for a usage error. One line a run on stdout, progress on
stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import netns
from tests.interop import table
from tests.interop.cases import CASES, Case
from tests.interop.endpoints import STRANGERS, Endpoint
from tests.interop.ours import OURS, OURS_BY_BACKEND, Ours, stoq_command
from tests.interop.runner import FAIL, Result, run_case, write_json
from tests.peers import install

DIRECTIONS = ("client", "server")


@dataclass(frozen=True)
class Planned:
    case: Case
    client: Endpoint
    server: Endpoint

    @property
    def title(self) -> str:
        return f"{self.case.name}-{self.client.name}-{self.server.name}"


def plan(
    cases: Sequence[str] = (),
    peers: Sequence[str] = (),
    directions: Sequence[str] = (),
    *,
    quick: bool | None = None,
    ours: Ours = OURS,
) -> list[Planned]:
    """Ours with every chosen peer, in every chosen direction (ours as client, ours as server)."""
    planned = []
    for case in [CASES[name] for name in cases or CASES]:
        if quick is not None and case.quick != quick:
            continue
        for peer in [STRANGERS[name] for name in peers or STRANGERS]:
            for direction in directions or DIRECTIONS:
                client, server = (ours, peer) if direction == "client" else (peer, ours)
                planned.append(Planned(case, client, server))
    return planned


def plan_strangers(cases: Sequence[str] = (), pairs: Sequence[tuple[str, str]] = ()) -> list[Planned]:
    """Every stranger as client of every other one, or the chosen pairs."""
    chosen = pairs or [(a, b) for a in STRANGERS for b in STRANGERS if a != b]
    return [
        Planned(CASES[name], STRANGERS[client], STRANGERS[server])
        for name in cases or CASES
        for client, server in chosen
    ]


def describe(result: Result) -> str:
    words = f"{result.verdict:6} {result.title:48} {result.seconds:6.1f} s  "
    return words + (result.reason if result.reason else "; ".join(result.proof))


def execute(planned: Sequence[Planned], jobs: int, seed: int | None) -> list[Result]:
    """Run them, `jobs` at a time, printing a line each; the results are in the order of the plan."""

    stop = threading.Event()

    def one(item: Planned) -> Result:
        result = run_case(item.case, item.client, item.server, seed=seed, stop=stop)
        line = describe(result) + (f"  (seed {result.seed})" if result.verdict == FAIL else "")
        print(line, flush=True)
        return result

    pool = ThreadPoolExecutor(jobs)
    try:
        return list(pool.map(one, planned))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _pair(text: str) -> tuple[str, str]:
    client, _, server = text.partition(":")
    if client not in STRANGERS or server not in STRANGERS:
        raise argparse.ArgumentTypeError(f"{text!r}: CLIENT:SERVER, each one of {', '.join(STRANGERS)}")
    return client, server


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.interop.run", description="Run the interop matrix."
    )
    parser.add_argument("--peer", action="append", choices=list(STRANGERS), default=[])
    parser.add_argument("--case", action="append", choices=list(CASES), default=[])
    parser.add_argument("--direction", choices=DIRECTIONS, help="what ours is (default: both)")
    parser.add_argument("--self", action="store_true", dest="strangers", help="strangers against each other")
    parser.add_argument("--pair", action="append", type=_pair, default=[], help="with --self: CLIENT:SERVER")
    parser.add_argument("--backend", choices=list(OURS_BY_BACKEND), default="io_uring", help="of ours")
    parser.add_argument("--seed", type=int, help="instead of each combination's own")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time (default 1: they are timing-sensitive)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="write the section of the table these runs make up"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and leave")
    options = parser.parse_args(arguments)
    if options.list:
        print(
            json.dumps(
                {case.name: {"what": case.what, "proof": case.proof_text} for case in CASES.values()},
                indent=1,
            )
        )
        return 0
    netns.exit_on_sigterm()
    try:
        install.ensure()
        if options.strangers:
            planned = plan_strangers(options.case, options.pair)
        else:
            stoq_command()
            directions = [options.direction] if options.direction else []
            ours = OURS_BY_BACKEND[options.backend]
            planned = plan(options.case, options.peer, directions, ours=ours)
    except (install.InstallError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in netns.remove_stale():
        print(f"removed {name}, left behind by a run that was killed", file=sys.stderr)
    try:
        results = execute(planned, options.jobs, options.seed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except netns.NetnsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        with options.json.open("w", encoding="ascii") as stream:
            write_json(results, stream)
    if options.table:
        section = table.SELF_SECTION if options.strangers else table.OURS_SECTIONS[options.backend]
        table.write(options.table, results, section)
    failed = [result for result in results if result.verdict == FAIL]
    print(f"{len(results)} runs, {len(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`stoq doctor [INTERFACE…]`."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from control.console import EXIT_FAILED, Output, run_async
from control.doctor import host, interface, nodes
from control.doctor.finding import Finding, Verdict
from control.doctor.link import collect
from control.doctor.system import System

STYLES = {Verdict.GOOD: "green", Verdict.OK: "yellow", Verdict.MISSING: "bold red"}


def _table(title: str, findings: list[Finding]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="dim")
        table.add_row(Text(finding.verdict.value, style=STYLES[finding.verdict]), finding.name, text)
    return table


async def doctor(output: Output, names: tuple[str, ...]) -> bool:
    """Look, say, and answer whether STOQ can run. Raises LinkError for an interface that is not there."""
    system = System()
    groups: list[tuple[str, list[Finding]]] = [("host", host.look(system))]
    # In a thread: pyroute2 runs an event loop of its own, and drivers answer slowly.
    links = await asyncio.to_thread(collect, system, names)
    groups += [(link.name, interface.look(system, link)) for link in links]
    running = await nodes.look()
    if running:
        groups.append(("nodes", running))
    lacks = [(where, f) for where, found in groups for f in found if f.verdict is Verdict.MISSING]
    if output.json_lines:
        report: dict[str, Any] = {where: [finding.to_json() for finding in found] for where, found in groups}
        output.event(
            "doctor",
            usable=not lacks,
            host=report.pop("host"),
            nodes=report.pop("nodes") if running else [],
            interfaces=report,
        )
        return not lacks
    for index, (where, found) in enumerate(groups):
        if index:
            output.console.print()
        output.console.print(_table(where, found))
    output.console.print()
    if lacks:
        output.note("STOQ cannot run: " + ", ".join(f"{where}: {finding.name}" for where, finding in lacks))
    else:
        better = sum(bool(finding.advice) for _, found in groups for finding in found)
        output.note(f"STOQ can run here; {better} things would make it faster or safer (→)" if better
                    else "STOQ can run here, and nothing would make it faster that we know of")  # fmt: skip
    return not lacks


@click.command("doctor")
@click.argument("interfaces", nargs=-1, metavar="[INTERFACE]...")
@click.option("--json", "json_lines", is_flag=True, help="One JSON object instead of tables.")
@click.pass_obj
def doctor_command(output: Output, interfaces: tuple[str, ...], json_lines: bool) -> None:
    """Say what this machine and its interfaces can do, and what would make them faster.

    Without INTERFACE: every Ethernet interface that is up. Nothing is changed. Ends with 1 when something is
    missing that STOQ cannot run without.
    """
    if json_lines and not output.json_lines:
        output = Output(json_lines=True)
    usable = True

    async def main() -> None:
        nonlocal usable
        usable = await doctor(output, interfaces)

    code = run_async(output, main())
    raise SystemExit(code or (0 if usable else EXIT_FAILED))

"""`stoq block`, `unblock`, `blocks`: the blocklist of a running node's XDP guard."""

from __future__ import annotations

import re

import click

from control.console import Output, run_async
from control.local import client
from control.local.protocol import (
    MAX_SECONDS,
    BlockAnswer,
    BlockRequest,
    BlocksAnswer,
    BlocksRequest,
    UnblockRequest,
    canonical_prefix,
)
from control.status import duration

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

node_option = click.option("--node", metavar="PID|PATH", help="Which node, if several run here.")


class Duration(click.ParamType[float]):
    """90, 90s, 10m, 2h or 1d; in seconds."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises click.BadParameter."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", str(value).strip())
        seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
        if not 0 < seconds <= MAX_SECONDS:
            self.fail(f"{value!r} is no duration: write it as 90s, 10m, 2h or 1d", param, ctx)
        return seconds


def _for(seconds: float | None) -> str:
    return "until it is unblocked" if seconds is None else f"for {duration(seconds)}"


@click.command("block")
@click.argument("prefix")
@click.option("--for", "seconds", type=Duration(), metavar="10m", help="By default until it is unblocked.")
@node_option
@click.pass_obj
def block_command(output: Output, /, prefix: str, seconds: float | None, node: str | None) -> None:
    """Drop everything from the source PREFIX at the interface, before it costs anything."""

    async def main() -> None:
        request = BlockRequest(canonical_prefix(prefix), seconds)
        answer = await client.ask(await client.the_node(node), request, BlockAnswer)
        text = f"{answer.prefix} is blocked {_for(answer.seconds)}"
        output.event("blocked", text, prefix=answer.prefix, seconds=answer.seconds)

    raise SystemExit(run_async(output, main()))


@click.command("unblock")
@click.argument("prefix")
@node_option
@click.pass_obj
def unblock_command(output: Output, /, prefix: str, node: str | None) -> None:
    """Take the source PREFIX off the blocklist."""

    async def main() -> None:
        request = UnblockRequest(canonical_prefix(prefix))
        answer = await client.ask(await client.the_node(node), request, BlockAnswer)
        output.event("unblocked", f"{answer.prefix} is not blocked any more", prefix=answer.prefix)

    raise SystemExit(run_async(output, main()))


@click.command("blocks")
@node_option
@click.pass_obj
def blocks_command(output: Output, /, node: str | None) -> None:
    """List what is blocked, and for how long yet."""

    async def main() -> None:
        answer = await client.ask(await client.the_node(node), BlocksRequest(), BlocksAnswer)
        blocks = [{"prefix": block.prefix, "seconds": block.seconds} for block in answer.blocks]
        lines = [f"{block.prefix}  {_for(block.seconds)}" for block in answer.blocks]
        output.event("blocks", "\n".join(lines) or "nothing is blocked", blocks=blocks)

    raise SystemExit(run_async(output, main()))

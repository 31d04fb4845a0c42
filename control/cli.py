"""The `stoq` command."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from control import devcerts
from control.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Output, exit_code
from control.lazy import Lazy
from dataplane.errors import StoqError

COMMANDS = {
    "serve": "control.node:serve_command",
    "receive": "control.node:receive_command",
    "send": "control.node:send_command",
    "run": "control.run:run_command",
    "status": "control.status:status_command",
    "capture": "control.capture:capture_command",
    "block": "control.blocks:block_command",
    "unblock": "control.blocks:unblock_command",
    "blocks": "control.blocks:blocks_command",
    "hq": "control.hq:hq_group",
    "perf": "control.perf:perf_group",
    "bench": "control.bench.commands:bench_group",
    "doctor": "control.doctor.command:doctor_command",
    "ca": "control.trustchain.ca_commands:ca_group",
    "ct": "control.ctlog.commands:ct_group",
    "join": "control.trustchain.serve_command:join_command",
    "member": "control.trustchain.member_command:member_command",
}


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Lazy, commands_at=COMMANDS, context_settings=SETTINGS)
@click.option("--json", "json_lines", is_flag=True, help="One JSON object a line on standard output.")
@click.option("-v", "--verbose", count=True, help="Log to standard error; twice: in detail.")
@click.pass_context
def cli(context: click.Context, json_lines: bool, verbose: int) -> None:
    """STOQ: a secure transport (QUIC) over IPv6, every packet in C."""
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    logging.basicConfig(
        level=levels[min(verbose, 2)], format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    context.obj = Output(json_lines=json_lines)


@cli.command("dev-certs")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--name",
    "names",
    multiple=True,
    default=("node-a", "node-b"),
    show_default=True,
    help="Node; repeatable.",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    default=("::1",),
    show_default=True,
    help="IPv6 address; repeatable.",
)
@click.option(
    "--days", type=click.FloatRange(-36500, 3650), default=30.0, show_default=True, help="Negative: expired."
)
@click.option(
    "--chain-length", type=click.IntRange(0, 16), default=0, help="Intermediate CAs, for long chains."
)
@click.pass_obj
def dev_certs_command(
    output: Output,
    directory: Path,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    days: float,
    chain_length: int,
) -> None:
    """Make a throw-away CA and node certificates in DIRECTORY. Nothing is overwritten."""
    files = devcerts.write(directory, names, addresses, days, chain_length)
    output.event("written", "\n".join(str(path) for path in files), files=[str(path) for path in files])


def main() -> None:
    """Entry point: exit codes as in control.console."""
    json_lines = "--json" in sys.argv[1:]
    output = Output(json_lines=json_lines)
    try:
        cli.main(standalone_mode=False)
    except ImportError as error:
        if "_stoq" not in str(error) and "dataplane" not in str(error):
            raise
        output.error(f"the data plane is not built ({error}): run `make build`")
        sys.exit(EXIT_FAILED)
    except click.ClickException as error:
        output.error(error.format_message())
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        output.error("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except StoqError as error:
        output.error(error)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

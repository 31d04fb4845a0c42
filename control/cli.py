"""The `stoq` command."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from control import devcerts
from control.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Output, exit_code
from dataplane.errors import StoqError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


def _add_commands() -> None:
    """Commands that need the compiled data plane; without it dev-certs and help still work."""
    from control import blocks, capture, hq, node, perf, run, status
    from control.bench.commands import bench_group
    from control.ctlog.commands import ct_group
    from control.doctor.command import doctor_command
    from control.trustchain.ca_commands import ca_group
    from control.trustchain.member_command import member_command
    from control.trustchain.remote import remote_group
    from control.trustchain.serve_command import acme_key_command, join_command, serve_command

    ca_group.add_command(serve_command)
    ca_group.add_command(acme_key_command)
    ca_group.add_command(remote_group)
    for command in (
        ca_group,
        ct_group,
        join_command,
        member_command,
        node.serve_command,
        node.receive_command,
        node.send_command,
        run.run_command,
        status.status_command,
        capture.capture_command,
        blocks.block_command,
        blocks.unblock_command,
        blocks.blocks_command,
        hq.hq_group,
        perf.perf_group,
        bench_group,
        doctor_command,
    ):
        cli.add_command(command)


def main() -> None:
    """Entry point: exit codes as in control.console."""
    json_lines = "--json" in sys.argv[1:]
    output = Output(json_lines=json_lines)
    try:
        _add_commands()
    except ImportError as error:
        output.error(f"the data plane is not built ({error}): run `make build`")
        sys.exit(EXIT_FAILED)
    try:
        cli.main(standalone_mode=False)
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

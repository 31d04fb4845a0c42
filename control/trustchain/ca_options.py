"""Options that several `stoq ca` commands share, and how an authority is opened by what they say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from control.trustchain.authority import Authority
from control.trustchain.errors import BadRequest, KeyUnavailable
from control.trustchain.keys import Passphrase, read_private_file
from control.trustchain.submit import LogClient

F = TypeVar("F", bound=Callable[..., Any])
CA_PORT = 9293  # Beside STOQ_PORT, so that a node and an authority fit on one machine.
DIRECTORY_VARIABLE = "STOQ_CA"
PASSPHRASE_VARIABLE = "STOQ_CA_PASSPHRASE"


def directory_option(function: F) -> F:
    """Where the authority is."""
    return click.option(
        "-d",
        "--directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=DIRECTORY_VARIABLE,
        default=Path("ca"),
        show_default=True,
        help=f"The authority's directory; also ${DIRECTORY_VARIABLE}.",
    )(function)


def passphrase_options(function: F) -> F:
    """How the intermediate's key is unlocked."""
    function = click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help=f"Passphrase (or PIN) of the intermediate's key; also ${PASSPHRASE_VARIABLE}.",
    )(function)
    return click.option("--passphrase-prompt", is_flag=True, help="Ask for it on the terminal.")(function)


def log_options(function: F) -> F:
    """Logs that certificates go to."""
    return click.option(
        "--log",
        "logs",
        multiple=True,
        metavar="URL=KEY",
        help="A log's URL and the PEM file of its public key; repeatable.",
    )(function)


def passphrase_from(
    file: Path | None, prompt: bool, variable: str = PASSPHRASE_VARIABLE, *, confirm: bool = False
) -> Passphrase | None:
    """Where the passphrase comes from; None: nowhere. It is read when a key needs it."""
    if file is not None:
        return lambda: read_private_file(file, "passphrase file").rstrip(b"\r\n")
    if prompt:
        return lambda: str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)).encode()
    if variable in os.environ:
        return lambda: os.environ[variable].encode()
    return None


@dataclass(frozen=True, slots=True)
class LogSpec:
    """A log as the command line names it."""

    url: str
    key_file: Path

    @classmethod
    def parse(cls, text: str) -> LogSpec:
        """Raises BadRequest."""
        url, equals, key = text.rpartition("=")
        if not equals or not url.startswith(("http://", "https://")) or not key:
            raise BadRequest(f"{text!r}: a log is URL=KEY, the key being the PEM file of its public key")
        return cls(url, Path(key))


LogFactory = Callable[[LogSpec], tuple[LogClient, Callable[[], Any]]]


def http_log(spec: LogSpec) -> tuple[LogClient, Callable[[], Any]]:
    """A log over HTTP, and how it is closed (a coroutine function). Raises BadRequest."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    from control.ctlog.client import HttpCarrier
    from control.ctlog.client import LogClient as Client
    from control.trustchain.known_logs import load_log_key
    from control.trustchain.logs import RemoteLog

    try:
        public = load_pem_public_key(spec.key_file.read_bytes())
    except OSError as error:
        raise BadRequest(f"cannot read the log's key {spec.key_file}: {error.strerror}") from None
    except ValueError as error:
        raise BadRequest(f"{spec.key_file} holds no PEM public key: {error}") from None
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    client = Client(HttpCarrier(spec.url), load_log_key(der, spec.url), spec.url)
    return RemoteLog(client, spec.url), client.close


@asynccontextmanager
async def opened(
    directory: Path, passphrase: Passphrase | None, logs: Sequence[str] = (), factory: LogFactory = http_log
) -> AsyncIterator[Authority]:
    """The authority, with its logs; closed afterwards."""
    async with AsyncExitStack() as stack:
        clients = []
        for text in logs:
            client, close = factory(LogSpec.parse(text))
            stack.push_async_callback(close)
            clients.append(client)
        try:
            authority = Authority.open(directory, passphrase=passphrase, logs=clients)
        except KeyUnavailable as error:
            if passphrase is None and "encrypted" in str(error):
                raise KeyUnavailable(f"{error}; or set ${PASSPHRASE_VARIABLE}, or --passphrase-prompt") from None
            raise
        await stack.enter_async_context(authority)
        yield authority

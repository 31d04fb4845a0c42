"""The ACME server before the real authority."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from control.trustchain.acme import ValidationConfig
from control.trustchain.acme.issuer import AuthorityIssuer
from control.trustchain.authority import Authority
from control.trustchain.directory import InitOptions, init
from tests.trustchain.acme.served import Server, World


@contextmanager
def authority_served(world: World, validation: ValidationConfig) -> Iterator[tuple[Authority, Server]]:
    """A server before an authority whose names lie in stoq.test, without logs."""
    directory = world.directory / "ca"
    init(directory, InitOptions(permitted_dns=("stoq.test",), allow_unlogged=True), time.time())
    authority = Authority.open(directory)
    try:
        with world.serve(validation, issuer=AuthorityIssuer(authority)) as server:
            yield authority, server
            server.call(authority.close())
    finally:
        authority.close_now()

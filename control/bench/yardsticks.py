"""The C yardsticks of csrc/bench: the no-protocol ceiling (with and without crypto) and the raw UDP
ping-pong."""

from __future__ import annotations

from typing import Any

from control.bench.processes import ROOT, BenchError, running
from control.nodes import Place

HEADERS_BYTES = 48  # IPv6 and UDP: what of the MTU is not UDP payload.
CEILING_PORT = 9299
PINGPONG_PORT = 9298


def program(name: str) -> str:
    """Path of a program of csrc/bench. Raises BenchError, naming the command that builds it."""
    path = ROOT / "build" / "bench" / name
    if not path.is_file():
        raise BenchError(
            f"the yardstick {path.relative_to(ROOT)} is not built: run `make build/bench/{name}` "
            f"in the project's directory (`make bench` builds all yardsticks and runs all benchmarks)"
        )
    return str(path)


async def ceiling(
    client: Place, server: Place, *, download: bool, datagram_bytes: int, seconds: float, crypto: bool
) -> dict[str, Any]:
    """One run of the ceiling in the direction of a download (server sends) or an upload.

    `goodput_gbps` is what the receiver opened."""
    sender, receiver = (server, client) if download else (client, server)
    options = ["--port", str(CEILING_PORT), "--datagram", str(datagram_bytes), "--json"]
    options += [] if crypto else ["--no-crypto"]
    path = program("ceiling")
    receive = [path, "--listen", receiver.address, *options]
    send = [path, "--connect", receiver.address, "--seconds", f"{seconds:g}", *options]
    async with running("ceiling, receiver", receiver, receive) as listening:
        await listening.ready()
        async with running("ceiling, sender", sender, send) as sending:
            sent = await sending.result()
            received = await listening.result()
    return {"goodput_gbps": received["goodput_gbit_s"], "receiver": received, "sender": sent}


async def pingpong(client: Place, server: Place, *, count: int, size: int) -> dict[str, Any]:
    """`count` round trips of `size` bytes between two busy-polling sockets; microseconds."""
    options = ["--port", str(PINGPONG_PORT), "--bytes", str(size)]
    path = program("pingpong")
    async with running(
        "pingpong, listener", server, [path, "--listen", server.address, *options]
    ) as listener:
        await listener.ready()
        call = [path, "--connect", server.address, "--count", str(count), "--json", *options]
        async with running("pingpong", client, call) as caller:
            return await caller.result()

"""A sustained mix of calls to an authority over STOQ: `python -m tests.trustchain.load --seconds 60 --rate 50`.

The calls come at their times whether or not those before were answered, so a slow answer delays no other. What every
call answers is checked: a certificate has its two SCTs, a proof leads to the log's own signed head, a revocation shows.
Prints one JSON object; the exit code is 1 when a call failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from control.ctlog import merkle
from control.ctlog.client import LogClient
from control.ctlog.precert import embedded_entry, embedded_scts
from control.ctlog.service import StoqCarrier
from control.ctlog.structs import leaf_bytes
from control.rpc import RpcClient
from control.trustchain import messages
from control.trustchain.bundle import decode_bundle
from control.trustchain.profiles import Names
from control.trustchain.requests import make_csr
from control.trustchain.roles import Role
from control.trustchain.server import Served
from dataplane import StoqError
from tests.trustchain.world import World, chain_of, new_key

MIX = {"issue": 10, "renew": 8, "show": 8, "list": 6, "proof": 10, "bundle": 5, "revoke": 3}
NODES, REGISTRARS = 4, 2  # Connections.
KEPT = 256  # Certificates that show, proof and revoke choose from.


@dataclass
class Timings:
    """Of one kind of call."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def quantile(self, part: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.seconds)
        return round(1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2) if ordered else 0.0

    def summary(self) -> dict[str, object]:
        return {
            "count": len(self.seconds) + self.errors.total(),
            "p50_ms": self.quantile(0.5),
            "p99_ms": self.quantile(0.99),
            "errors": dict(self.errors),
        }


class Load:
    """The calls."""

    def __init__(self, served: Served, registrars: list[RpcClient], nodes: list[RpcClient], seed: int) -> None:
        self._registrars = registrars
        self._nodes = nodes
        self._random = random.Random(seed)
        self._live: deque[list[x509.Certificate]] = deque(maxlen=KEPT)
        self._numbers = iter(range(1 << 30))
        self._logs = {one.signer.log_id: (origin, one.signer.key.public_key()) for origin, one in served.logs.items()}
        self.timings = {name: Timings() for name in MIX}

    def _registrar(self) -> RpcClient:
        return self._random.choice(self._registrars)

    def _some(self) -> list[x509.Certificate]:
        return self._random.choice(self._live)

    def _checked(self, answer: messages.ChainAnswer) -> list[x509.Certificate]:
        chain = chain_of(answer.chain)
        assert {sct.log_id for sct in embedded_scts(chain[0])} == set(self._logs), "an SCT is missing"
        return chain

    async def issue(self) -> None:
        name = f"load-{next(self._numbers)}"
        body = messages.IssueBody(make_csr(new_key(), name, Names.parse([name], ["::1"])), "node", name)
        answer = await self._registrar().call(messages.ISSUE, body, messages.ChainAnswer)
        self._live.append(self._checked(answer))

    async def renew(self) -> None:
        node = self._random.choice(self._nodes)
        body = messages.RenewBody(make_csr(new_key(), "node"))
        self._checked(await node.call(messages.RENEW, body, messages.ChainAnswer))

    async def show(self) -> None:
        serial = self._some()[0].serial_number
        answer = await self._registrar().call(messages.SHOW, messages.WhichBody(f"{serial:040x}"), messages.ListAnswer)
        assert int(answer.certificates[0].serial, 16) == serial, "another certificate"

    async def list(self) -> None:
        answer = await self._registrar().call(messages.LIST, messages.ListBody(limit=50), messages.ListAnswer)
        assert answer.certificates, "an empty list"

    async def proof(self) -> None:
        leaf, issuer = self._some()[:2]
        sct = self._random.choice(embedded_scts(leaf))
        origin, key = self._logs[sct.log_id]
        log = LogClient(StoqCarrier(self._random.choice(self._nodes), origin), key, origin)
        hashed = merkle.leaf_hash(leaf_bytes(embedded_entry(leaf, issuer), sct.timestamp, sct.extensions))
        await log.prove(hashed, await log.get_sth())

    async def bundle(self) -> None:
        answer = await self._random.choice(self._nodes).call(messages.BUNDLE, messages.Nothing(), messages.BundleAnswer)
        decode_bundle(answer.bundle)

    async def revoke(self) -> None:
        leaf = self._live.popleft()[0]
        which = f"{leaf.serial_number:040x}"
        await self._registrar().call(messages.REVOKE, messages.RevokeBody(which, "superseded"), messages.Nothing)
        answer = await self._registrar().call(messages.SHOW, messages.WhichBody(which), messages.ListAnswer)
        assert answer.certificates[0].reason == "superseded", "not revoked"

    async def _timed(self, name: str, call: Callable[[], Awaitable[None]], due: float) -> None:
        try:
            await call()
        except (StoqError, AssertionError, IndexError) as error:
            self.timings[name].errors[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            self.timings[name].seconds.append(time.monotonic() - due)

    async def run(self, seconds: float, rate: float) -> None:
        """`rate` calls a second, each at its time."""
        for _ in range(8):
            await self.issue()  # So that there is something to ask for.
        names = self._random.choices(list(MIX), list(MIX.values()), k=max(1, round(seconds * rate)))
        begin = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for index, name in enumerate(names):
                due = begin + index / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(self._timed(name, getattr(self, name), due))


async def run_load(directory: Path, seconds: float, rate: float, seed: int) -> dict[str, object]:
    """The whole of it; the summary."""
    world = World(directory)
    await world.init(min_scts=2)  # With one, a log that is slow for a moment would be left out.
    async with world.serve() as served, world.callers(served) as callers:
        registrar = await world.credentials(served, "registrar", Role.REGISTRAR)
        registrars = [await callers.calls(registrar) for _ in range(REGISTRARS)]
        nodes = [await callers.calls(await world.credentials(served, f"node-{one}", Role.NODE)) for one in range(NODES)]
        load = Load(served, registrars, nodes, seed)
        begin = time.monotonic()
        await load.run(seconds, rate)
        took = time.monotonic() - begin
        sizes = {origin: one.head.size for origin, one in served.logs.items()}
        generation, calls, failures = served.trust.bundle.generation, served.calls.calls, served.calls.failures
    report = world.audit()
    return {
        "seconds": round(took, 2),
        "rate": rate,
        "seed": seed,
        "operations": {name: one.summary() for name, one in load.timings.items()},
        "errors": sum(one.errors.total() for one in load.timings.values()),
        "calls": calls,
        "failures": failures,
        "log_entries": sizes,
        "generation": generation,
        "audit_lines": report.lines,
        "audit_intact": report.intact,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        summary = asyncio.run(run_load(Path(directory), options.seconds, options.rate, options.seed))
    print(json.dumps(summary, indent=2))
    return 1 if summary["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run by test_faults.py: one process after another works with an authority and is killed at a step chosen by a seed.

    python -m tests.trustchain.crashes DIRECTORY SEED COUNT TIME

Each child issues certificates and joins nodes by tokens, several at once, with two logs, and writes down what it was
handed (32-byte fingerprints) before the next step can kill it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256

from control.trustchain.actor import Actor
from control.trustchain.authority import Authority, Issued
from control.trustchain.keys import generate
from control.trustchain.profiles import Names
from control.trustchain.requests import Freshness, IssueRequest, make_csr
from control.trustchain.roles import Role
from control.trustchain.submit import LogPolicy
from control.trustchain.tokens import TokenGrant
from tests.trustchain.clock import Clock
from tests.trustchain.signinglog import SigningLog

ADMIN = Actor("admin", frozenset({Role.ADMIN}), "test")
KEYS = [generate() for _ in range(4)]


async def work(directory: Path, clock: Clock, dice: random.Random, out: int) -> None:
    """Until it is killed."""
    left = dice.randint(1, 40)

    def step(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    logs = [SigningLog("log a", clock), SigningLog("log b", clock)]
    async with Authority.open(directory, clock=clock, logs=logs, policy=LogPolicy(2), on_step=step) as authority:

        def note(issued: Issued) -> None:
            os.write(out, issued.certificate.fingerprint(SHA256()))

        async def issue() -> None:
            while True:
                csr = make_csr(dice.choice(KEYS), "", Names(("x.stoq.example",)))
                request = IssueRequest(csr, freshness=Freshness(clock()))
                note(await authority.issue(request, ADMIN))

        async def join() -> None:
            while True:
                token = await authority.create_token(TokenGrant(Names(("t.stoq.example",))), "::1", 1, ADMIN)
                request = IssueRequest(make_csr(dice.choice(KEYS)), freshness=Freshness(clock()))
                note(await authority.join(request, token.secret, Actor.anonymous("[::1]")))

        await asyncio.gather(*(issue() for _ in range(dice.randint(1, 6))), join(), join())


def main() -> None:
    """Children one after another; each ends by SIGKILL."""
    directory, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    out = os.open(directory.parent / "handed-out", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    clock = Clock(float(sys.argv[4]))
    for number in range(count):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # Never longer, also when whoever started us is gone.
            asyncio.run(work(directory, clock, random.Random(seed + number), out))
            os._exit(3)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"child of seed {seed + number} ended with status {status}")


if __name__ == "__main__":
    main()

"""Cosignatures (control.ctlog.witnesses) from a witness that is one: C2SP tlog-witness with a memory of its own, which
signs nothing that it was not shown to go on what it signed before."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519

from control.ctlog import merkle
from control.ctlog.errors import Malformed, ProofError
from control.ctlog.http import HttpServer
from control.ctlog.log import Log
from control.ctlog.note import Witness, cosign, decode_note, open_checkpoint, parse_checkpoint
from control.ctlog.structs import LogKey
from control.ctlog.witnesses import Witnesses
from dataplane.address import Address
from tests.ctlog.world import ORIGIN, run_with_deadline, submission, world


class WitnessServer:
    """tlog-witness. `seen` is what it remembers: size and root."""

    def __init__(self, name: str, log_key: LogKey) -> None:
        self.name = name
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.seen: tuple[int, bytes] = (0, merkle.EMPTY_ROOT)
        self.statuses: list[int] = []
        self.spoil: Callable[[str], str] = lambda text: text
        self.delay = 0.0
        self._log_key = log_key
        application = web.Application()
        application.router.add_post("/w/add-checkpoint", self._add)
        self.server = HttpServer(application, Address("::1", 0))

    @property
    def place(self) -> tuple[Witness, str]:
        """As a log is told of it."""
        return Witness(self.name, self.key.public_key()), f"http://[::1]:{self.server.address.port}/w/"

    async def _add(self, request: web.Request) -> web.Response:
        answer = self._answer(await request.read())
        self.statuses.append(answer.status)
        await asyncio.sleep(self.delay)
        return answer

    def _answer(self, body: bytes) -> web.Response:
        head, _, note = body.partition(b"\n\n")
        first, *lines = head.decode().split("\n")
        word, _, number = first.partition(" ")
        if word != "old" or not number.isdigit() or len(lines) > 63:
            return web.Response(status=400)
        proof = [base64.b64decode(line, validate=True) for line in lines]
        try:
            origin, size, root = parse_checkpoint(decode_note(note).text)
            if origin != ORIGIN:
                return web.Response(status=404)
            open_checkpoint(note, ORIGIN, self._log_key)
        except ProofError:
            return web.Response(status=403)
        except Malformed:
            return web.Response(status=400)
        if int(number) > size:
            return web.Response(status=400)
        if int(number) != self.seen[0]:
            return web.Response(status=409, text=f"{self.seen[0]}\n", content_type="text/x.tlog.size")
        try:
            merkle.verify_consistency(self.seen[0], size, self.seen[1], root, proof)
        except ProofError:
            return web.Response(status=422)
        self.seen = (size, root)
        line = cosign(self.name, self.key, decode_note(note).text, 1_780_000_000 + len(self.statuses)).line
        return web.Response(text=self.spoil(line))


@asynccontextmanager
async def serving(*names: str, key: LogKey) -> AsyncIterator[list[WitnessServer]]:
    """Witnesses that listen."""
    made = [WitnessServer(name, key) for name in names]
    try:
        for one in made:
            await one.server.open()
        yield made
    finally:
        for one in made:
            await one.server.close()


async def grow_log(log: Log, count: int) -> None:
    """More entries."""
    begin = log.head.size
    await asyncio.gather(*(log.add(submission(number)) for number in range(begin, begin + count)))


def verified(log: Log, servers: list[WitnessServer]) -> list[str]:
    """Names of those whose cosignature stands on the log's checkpoint, verified."""
    note, found = decode_note(log.note), []
    assert open_checkpoint(log.note, ORIGIN, log.signer.key.public_key()) == log.head
    for line in note.signatures[1:]:
        (server,) = [one for one in servers if one.name == line.name]
        server.place[0].verify(line, note.text)
        found.append(line.name)
    return found


def test_checkpoints_are_cosigned_as_the_log_grows(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log, aiohttp.ClientSession() as session:
            key = here.signer.key.public_key()
            async with serving("w1.example", "w2.example", key=key) as servers:
                witnesses = Witnesses(log, [one.place for one in servers])
                for count in (0, 1, 1, 254, 1, 44, 300):
                    await grow_log(log, count)
                    await witnesses.ask(session)
                    assert verified(log, servers) == ["w1.example", "w2.example"]
                    assert {one.seen for one in servers} == {(log.head.size, log.head.root)}
                # One that remembers while the log was started anew: it says what it saw, and is asked again.
                fresh = Witnesses(log, [one.place for one in servers])
                await grow_log(log, 3)
                await fresh.ask(session)
                assert verified(log, servers) == ["w1.example", "w2.example"]
                assert servers[0].statuses[-2:] == [409, 200]
                # The same head once more: nothing to prove.
                await fresh.ask(session)
                assert servers[0].statuses[-1] == 200
                assert all(state.failed == 0 and state.cosigned == 2 for state in fresh.states)

    run_with_deadline(main())


def test_a_witness_of_another_mind_holds_nothing_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log, aiohttp.ClientSession() as session:
            key = here.signer.key.public_key()
            async with serving("good.example", "other.example", key=key) as servers:
                good, other = servers
                witnesses = Witnesses(log, [one.place for one in servers])
                await grow_log(log, 10)
                # It saw another tree of the same log: it refuses, and says that it does.
                other.seen = (5, bytes(32))
                await witnesses.ask(session)
                assert other.statuses == [409, 422] and verified(log, servers) == ["good.example"]
                assert "422" in witnesses.states[1].error
                # It is ahead of us: no proof there is.
                other.seen = (11, bytes(32))
                await witnesses.ask(session)
                assert verified(log, servers) == ["good.example"] and witnesses.states[1].failed == 2
                # It signs something else, or answers with nothing, with much, or with another's line.
                forged = ed25519.Ed25519PrivateKey.generate()
                text = decode_note(log.note).text
                spoils: list[Callable[[str], str]] = [
                    lambda line: "",
                    lambda line: "hello\n" * 5000,
                    lambda line: line.replace("other", "good"),
                    lambda line: line[:-9] + "\n",
                    lambda line: cosign("other.example", forged, text, 1).line,
                    lambda line: cosign("other.example", other.key, text.replace("10", "11"), 1).line,
                ]
                for place, spoil in enumerate(spoils):
                    other.seen, witnesses.states[1].seen, other.spoil = (0, merkle.EMPTY_ROOT), 0, spoil
                    await witnesses.ask(session)
                    assert verified(log, servers) == ["good.example"]
                    assert witnesses.states[1].failed == 3 + place
                # And when it comes round it is heard.
                other.seen, witnesses.states[1].seen, other.spoil = (0, merkle.EMPTY_ROOT), 0, lambda line: "x\n" + line
                await witnesses.ask(session)
                assert verified(log, servers) == ["good.example", "other.example"]
                # Gone altogether.
                await other.server.close()
                await grow_log(log, 1)
                await witnesses.ask(session)
                assert verified(log, servers) == ["good.example"] and good.seen[0] == 11

    run_with_deadline(main())


def test_a_slow_witness_is_late_for_a_head_that_is_gone(tmp_path: Path) -> None:
    """Its signature is over the old head: it is never put on the new one."""

    async def main() -> None:
        async with (
            world(tmp_path) as here,
            here.log() as log,
            aiohttp.ClientSession() as session,
            serving("slow.example", key=here.signer.key.public_key()) as servers,
        ):
            servers[0].delay = 0.1
            witnesses = Witnesses(log, [servers[0].place])
            await grow_log(log, 5)
            asking = asyncio.create_task(witnesses.ask(session))
            while not servers[0].statuses:
                await asyncio.sleep(0.001)
            await grow_log(log, 5)
            await asking
            assert verified(log, servers) == [] and log.note == log.published.note
            await witnesses.ask(session)
            assert verified(log, servers) == ["slow.example"] and servers[0].statuses == [200, 200]

    run_with_deadline(main())


def test_it_follows_the_log_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            world(tmp_path) as here,
            here.log() as log,
            serving("w.example", key=here.signer.key.public_key()) as servers,
        ):
            witnesses = Witnesses(log, [servers[0].place])
            running = asyncio.create_task(witnesses.run())
            for count in (3, 4):
                await grow_log(log, count)
                while verified(log, servers) != ["w.example"]:
                    await asyncio.sleep(0.005)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert servers[0].seen[0] == 7

    run_with_deadline(main())

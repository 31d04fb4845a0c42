"""Asks witnesses to cosign a log's checkpoints (C2SP tlog-witness): each gets the new one and a proof that it goes
on the one it saw last, and answers with its signature, which is then published with the checkpoint.

A witness that is slow, gone or of another mind holds nothing up: checkpoints are published as they are, and again with
the cosignatures that came.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from control.ctlog.errors import LogError, LogStopped, Malformed, ProofError
from control.ctlog.log import Log
from control.ctlog.note import Note, NoteSignature, Witness, decode_note, decode_signature

logger = logging.getLogger("stoq.ctlog")

TIMEOUT = aiohttp.ClientTimeout(total=10)
MAX_ANSWER_BYTES = 16 << 10
PAUSE_SECONDS = 1.0  # Between two rounds of asking.


@dataclass(slots=True)
class WitnessState:
    """One witness: its key, where it is asked, and what it saw."""

    witness: Witness
    url: str
    seen: int = 0
    cosigned: int = 0
    failed: int = 0
    error: str = ""
    line: NoteSignature | None = field(default=None)


class Witnesses:
    """The witnesses of one log. `run` asks until it is cancelled."""

    def __init__(self, log: Log, witnesses: Sequence[tuple[Witness, str]]) -> None:
        self._log = log
        self.states = [WitnessState(witness, url.rstrip("/")) for witness, url in witnesses]

    async def run(self) -> None:
        """Follow the log's heads."""
        changed = asyncio.Event()
        self._log.on_publish(lambda _: changed.set())
        changed.set()
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while True:
                await changed.wait()
                changed.clear()
                await self.ask(session)
                await asyncio.sleep(PAUSE_SECONDS)

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """Ask all of them about the newest head, and publish what came."""
        published = self._log.published
        note = decode_note(published.note)
        lines = await asyncio.gather(*(self._ask(session, one, note) for one in self.states))
        given = tuple(line for line in lines if line is not None)
        if given:
            await self._log.publish_note(published, Note(note.text, note.signatures + given).encode())

    async def _ask(
        self, session: aiohttp.ClientSession, state: WitnessState, note: Note
    ) -> NoteSignature | None:
        size = int(note.text.split("\n")[1])
        try:
            for _ in range(2):  # Once more when it saw another size than we thought.
                proof = await self._log.consistency(state.seen, size) if state.seen else []
                lines = [f"old {state.seen}\n", *(base64.b64encode(one).decode() + "\n" for one in proof), "\n"]
                body = "".join(lines).encode() + note.encode()
                async with session.post(f"{state.url}/add-checkpoint", data=body) as answer:
                    text = (await answer.content.read(MAX_ANSWER_BYTES)).decode(errors="replace")
                    if answer.status == 409 and text.strip().isdigit() and int(text) <= size:
                        state.seen = int(text)
                        continue
                    if answer.status != 200:
                        raise LogError(f"{answer.status} {text.strip()[:200]}")
                return self._take(state, note, size, text)
            raise LogError("it names another size each time it is asked")
        except (LogError, LogStopped, aiohttp.ClientError, TimeoutError, OSError) as error:
            state.failed += 1
            state.error = str(error) or type(error).__name__
            logger.warning("witness %s: %s", state.witness.name, state.error)
            return None

    def _take(self, state: WitnessState, note: Note, size: int, text: str) -> NoteSignature:
        for line in text.splitlines()[:16]:
            try:
                signature = decode_signature(line)
                state.witness.verify(signature, note.text)
            except (Malformed, ProofError):
                continue
            state.seen, state.line, state.error = size, signature, ""
            state.cosigned += 1
            return signature
        raise ProofError("it answered without a signature of its key over the checkpoint")

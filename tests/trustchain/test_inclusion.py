"""The inclusion checker: what it asks of logs, and what it makes of their answers; against logs in memory, and end to
end against a real one, through its interface and client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.api import LogApi
from control.ctlog.chains import Acceptor
from control.ctlog.client import LogClient
from control.ctlog.errors import LogStopped, Malformed, NotFound, Unavailable
from control.ctlog.index import Index
from control.ctlog.local import LocalStorage, SqliteLock
from control.ctlog.log import Log as RealLog
from control.ctlog.note import TreeHead
from control.ctlog.precert import sct_extension
from control.ctlog.sequencer import Sequencer
from control.ctlog.signer import Signer
from control.trustchain.inclusion import InclusionChecker, InclusionProof, LogClients, LoggedEntry
from control.trustchain.known_logs import KnownLog, known_logs
from control.trustchain.reasons import Reason, Refusal
from control.trustchain.verify import Context, Inclusion, Verdict, verify
from tests.trustchain.pki import DAY, HOUR, NOW, Log, World, chain_of, new_key


class Reader:
    """Logs in memory; an error, or another head, in place of an answer."""

    def __init__(self, *logs: Log) -> None:
        self.logs = {log.log_id: log for log in logs}
        self.errors: dict[bytes, Exception] = {}
        self.given: dict[bytes, TreeHead] = {}
        self.silent: set[bytes] = set()
        self.heads = 0

    async def get_sth(self, log_id: bytes) -> TreeHead:
        self.heads += 1
        if log_id in self.silent:
            await asyncio.Event().wait()
        if log_id in self.errors:
            raise self.errors[log_id]
        return self.given.get(log_id) or self.logs[log_id].head()

    async def get_proof_by_hash(self, log_id: bytes, leaf_hash: bytes, size: int) -> tuple[int, Sequence[bytes]]:
        return self.logs[log_id].proof(leaf_hash, size)


class Setting:
    """A world, a certificate that is in both its logs, and a checker."""

    def __init__(self, timeout: float = 5.0) -> None:
        self.world = World()
        self.reader = Reader(*self.world.logs)
        self.checker = InclusionChecker(self.reader, time.time, timeout=timeout)
        self.logs = known_logs(log.known for log in self.world.logs)
        self.verdict = self.judge("node-a")
        self.north, self.south = self.world.logs

    def judge(self, name: str) -> Verdict:
        context = Context(self.world.trust, NOW, logs=self.logs)
        verdict = verify(chain_of(self.world.issue(name)), None, context)
        assert verdict.good
        return verdict

    def check(self, entries: Sequence[LoggedEntry] | None = None) -> InclusionProof:
        return asyncio.run(self.checker.check(self.verdict.logged if entries is None else entries, self.logs))

    def refused(self, entries: Sequence[LoggedEntry] | None = None) -> Refusal:
        with pytest.raises(Refusal) as refusal:
            self.check(entries)
        return refusal.value


def test_the_first_log_that_proves_is_enough_and_its_head_is_kept() -> None:
    setting = Setting()
    assert setting.check().log_id == setting.north.log_id
    setting.check()
    assert setting.reader.heads == 1
    # An entry that the head does not have yet asks for a newer one.
    setting.check(setting.judge("node-b").logged)
    assert setting.reader.heads == 2


def test_the_other_log_when_the_first_is_down() -> None:
    setting = Setting()
    setting.reader.errors[setting.north.log_id] = Malformed("is not JSON")
    assert setting.check().log_id == setting.south.log_id
    setting.reader.errors[setting.south.log_id] = LogStopped("has stopped")
    assert setting.check().log_id == setting.south.log_id, "by the head that was kept"
    refusal = setting.refused(setting.judge("node-b").logged)
    assert refusal.reason is Reason.INCLUSION_UNAVAILABLE
    assert "is not JSON" in refusal.text and "has stopped" in refusal.text


def test_a_log_that_says_it_has_not_is_worse_than_one_that_is_down() -> None:
    setting = Setting()
    setting.reader.errors[setting.north.log_id] = NotFound("no such leaf")
    setting.reader.errors[setting.south.log_id] = Unavailable("is down")
    refusal = setting.refused()
    assert refusal.reason is Reason.INCLUSION_MISSING and "though it gave an SCT" in refusal.text


def test_a_tree_that_is_too_small_for_the_entry_it_promised() -> None:
    setting = Setting()
    for log in setting.world.logs:
        setting.reader.given[log.log_id] = Log(log.name, log.key).head()
    refusal = setting.refused()
    assert refusal.reason is Reason.INCLUSION_MISSING and "has 0 entries" in refusal.text


@pytest.mark.parametrize("fault", ["signature", "root", "another log's"])
def test_a_wrong_answer_is_final(fault: str) -> None:
    setting = Setting()
    head = setting.north.head()
    setting.reader.given[setting.north.log_id] = {
        "signature": replace(head, timestamp=head.timestamp + 1),
        "root": Log("north", setting.north.key, [bytes(32)]).head(),
        "another log's": setting.south.head(),
    }[fault]
    assert setting.refused().reason is Reason.INCLUSION_WRONG


def test_silence_ends() -> None:
    setting = Setting(timeout=0.02)
    setting.reader.silent = set(setting.reader.logs)
    refusal = setting.refused()
    assert refusal.reason is Reason.INCLUSION_UNAVAILABLE and "within 0.02 s" in refusal.text


def test_nothing_to_ask_for() -> None:
    setting = Setting()
    assert setting.refused([]).reason is Reason.INCLUSION_UNAVAILABLE
    setting.logs = known_logs([])
    assert setting.refused().reason is Reason.INCLUSION_UNAVAILABLE
    clients = InclusionChecker(LogClients({}), time.time)
    with pytest.raises(Refusal, match="not known how to reach"):
        asyncio.run(clients.check(setting.verdict.logged, known_logs([setting.north.known])))


# ---- a real log ----


class InMemory:
    """A Carrier straight into a log's interface."""

    def __init__(self, api: LogApi) -> None:
        self._api = api

    async def request(self, method: str, path: str, query: Mapping[str, str | int], body: bytes) -> tuple[int, bytes]:
        reply = await self._api.handle(method, path, {name: str(value) for name, value in query.items()}, body)
        return reply.status, reply.body

    async def close(self) -> None:
        pass


def test_against_a_real_log(tmp_path: Path) -> None:
    world = World(logs=())
    signer = Signer("log.example/2026", new_key())

    async def main() -> None:
        storage, lock = LocalStorage(tmp_path / "data"), SqliteLock(tmp_path / "lock.db")
        await Sequencer.create(signer, storage, lock, time.time)
        acceptor = Acceptor([world.root.certificate])
        log = await RealLog.open(signer, acceptor, storage, lock, Index(tmp_path / "index.db"), time.time)
        client = LogClient(InMemory(LogApi(log)), signer.key.public_key())
        checker = InclusionChecker(LogClients({signer.log_id: client}), time.time)
        known = known_logs([KnownLog("real", signer.key.public_key(), NOW - DAY)])
        try:
            for name in ("node-a", "node-b", "node-c"):
                made = await logged(world, client, name)
                now = NOW + HOUR  # The SCT is of this very moment.
                context = Context(world.trust, now, logs=known, proof_demanded=True)
                assert verify(made, None, context).reason is Reason.INCLUSION_MISSING
                verdict = verify(made, None, replace(context, proof_demanded=False))
                assert verdict.good, verdict.text
                proof = await checker.check(verdict.logged, known)
                assert proof.index == verdict.logged[0].index
                assert verify(made, None, replace(context, proofs=(proof,))).inclusion is Inclusion.PROVED
        finally:
            await client.close()
            await log.close()
            await lock.close()
            await storage.close()

    asyncio.run(main())


async def logged(world: World, client: LogClient, name: str) -> list[bytes]:
    """A chain whose leaf carries the SCT that the log gave for its precertificate."""
    issuer = world.intermediate
    plain = world.issue(name, ()).certificate

    def builder(certificate: x509.Certificate) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(
            certificate.issuer,
            certificate.subject,
            certificate.public_key(),
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            list(certificate.extensions),
        )

    poisoned = builder(plain).add_extension(x509.PrecertPoison(), critical=True).sign(issuer.key, SHA256())
    chain = [one.public_bytes(Encoding.DER) for one in (*issuer.chain, world.root.certificate)]
    sct = await client.add_pre_chain([poisoned.public_bytes(Encoding.DER), *chain])
    final = builder(plain).add_extension(sct_extension([sct]), critical=False).sign(issuer.key, SHA256())
    return [final.public_bytes(Encoding.DER), *chain[:-1]]

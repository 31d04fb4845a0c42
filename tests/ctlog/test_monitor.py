"""The monitor (control.ctlog.monitor) on logs that behave, and on logs that lie in every way there is an alert for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog import merkle
from control.ctlog.alerts import Alert, Evidence, EvidenceFiles, HeadRecord, check_evidence, read_evidence
from control.ctlog.chains import Window
from control.ctlog.errors import LogError, Malformed, ProofError, Unavailable
from control.ctlog.monitor import Options, RawEntry, Source, StateFile, _Pages
from control.ctlog.precert import precertificate_entry, sct_extension
from control.ctlog.site import shard_window
from control.ctlog.structs import EntryType, LogEntry, SignedEntry, leaf_bytes
from control.ctlog.watched import Expected, Extra, Promise
from tests.ctlog.lying import CA, CONSISTENCY, ENTRIES, STH, Answer, Scene, b64, chain, flipped, grow, scene
from tests.ctlog.world import der, new_key, run_with_deadline, submission


def proves(evidence: Evidence, here: Scene) -> bool:
    """Does the evidence, as others read it, prove by the log's key alone that it misbehaved?"""
    return check_evidence(read_evidence(msgspec.json.encode(evidence)), here.key).proves


async def settled(here: Scene, size: int) -> None:
    """The monitor has nothing to say, and everything is shown to lead to the head."""
    assert await here.poll() == []
    assert here.monitor.head == here.log.head and here.monitor.proven == here.log.head.size == size


# ---- logs that behave ----


@pytest.mark.parametrize("tiles", [False, True], ids=["rfc6962", "tiles"])
def test_follows_a_log_across_restarts(tmp_path: Path, tiles: bool) -> None:
    async def main() -> None:
        state = tmp_path / "state.json"
        async with scene(tmp_path, state=state, tiles=tiles) as here:
            await settled(here, 0)
            size = 0
            for count in (1, 1, 2, 60):
                await grow(here.log, *range(size, size + count))
                size += count
                await settled(here, size)
                asked = len(here.liar.asked)
                here.watch(state=state, tiles=tiles)
                await settled(here, size)
                # What was proven is not fetched again.
                again = [path for path, _ in here.liar.asked[asked:]]
                assert not any(path == ENTRIES or path.startswith("tile/") for path in again)
            for begin in (0, 300):
                many = [chain(1000 + begin + number) for number in range(300)]
                await asyncio.gather(*(here.log.add_chain(one, precertificate=pre) for one, pre in many))
                size += 300
                await settled(here, size)
            assert here.monitor.counts.entries == 600

    run_with_deadline(main())


@pytest.mark.parametrize("most", [1, 10, 100])
def test_a_log_that_gives_fewer_entries_than_asked_for(tmp_path: Path, most: int) -> None:
    def fewer(answer: Answer) -> Answer:
        return {"entries": answer["entries"][:most]}

    async def main() -> None:
        async with scene(tmp_path, 33) as here:
            here.liar.spoilers[ENTRIES] = fewer
            await settled(here, 33)

    run_with_deadline(main())


@dataclass
class _Numbers:
    """A source of entries that are numbers, at most `most` an answer."""

    most: int
    page: int = 1024
    asked: int = 0

    async def entries(self, start: int, end: int) -> list[RawEntry]:
        assert 0 <= start < end
        self.asked += 1
        await asyncio.sleep(0)
        return [(b"%d" % number, Extra(b"", ())) for number in range(start, min(end, start + self.most))]


@pytest.mark.parametrize("begin, end", [(0, 5000), (777, 5000), (1024, 4096), (4999, 5000), (7, 7)])
@pytest.mark.parametrize("most", [31, 32, 100, 1000, 1024, 5000])
def test_pages_come_in_order_and_few_are_asked_for_in_vain(begin: int, end: int, most: int) -> None:
    async def main() -> None:
        source = _Numbers(most)
        pages = [page async for page in _Pages(cast(Source, source), ahead=3).read(begin, end)]
        assert [leaf for page in pages for leaf, _ in page] == [b"%d" % number for number in range(begin, end)]
        # The step is a power of two that fits the answers; until it is found, what was fetched ahead is in vain.
        step = min(1024, 1 << (most.bit_length() - 1))
        assert source.asked <= (end - begin) // step + 2 + 6 * 4

    run_with_deadline(main())


def test_what_was_fetched_is_kept_when_the_log_goes_away(tmp_path: Path) -> None:
    """The state is of use in the middle of a download, and that middle leads to nothing wrong."""

    async def main() -> None:
        state = tmp_path / "state.json"
        async with scene(tmp_path, 40, state=state, options=Options(ahead=0)) as here:
            here.liar.spoilers[ENTRIES] = lambda answer: (
                None if int(here.liar.asked[-1][1]["start"]) >= 20 else {"entries": answer["entries"][:8]}
            )
            assert await here.poll() == [Alert.WITHHELD_ENTRIES]
            assert here.monitor.proven == 0 and here.monitor.head == here.log.head
            here.liar.spoilers.clear()
            asked = len(here.liar.asked)
            here.watch(state=state)
            await settled(here, 40)
            starts = [int(query["start"]) for path, query in here.liar.asked[asked:] if path == ENTRIES]
            assert min(starts) == 24

    run_with_deadline(main())


def test_a_log_that_does_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 3) as here:
            await settled(here, 3)
            here.liar.spoilers[STH] = lambda answer: None
            with pytest.raises(Unavailable, match="no tree head"):
                await here.poll()
            here.liar.spoilers[STH] = lambda answer: {"tree_size": "many"}
            with pytest.raises(Unavailable, match="no tree head"):
                await here.poll()
            here.liar.spoilers.clear()
            await grow(here.log, 3)
            await settled(here, 4)
            assert here.alerts == []

    run_with_deadline(main())


# ---- logs that lie: heads ----


async def _fork(here: Scene, at: int, to: int, other: int) -> None:
    """The log had `at` entries and went on to `to`, which was seen; now it goes on from `at` to `other` in another way."""
    await grow(here.log, *range(at))
    forked = await here.fork()
    await grow(here.log, *range(at, to))
    await settled(here, to)
    await grow(forked, *range(100, 100 + other - at))
    here.liar.become(forked)


@pytest.mark.parametrize("tiles", [False, True], ids=["rfc6962", "tiles"])
@pytest.mark.parametrize(
    "at, to, other", [(2, 5, 8), (4, 5, 6), (3, 4, 9), (0, 1, 2), (1, 8, 16), (7, 8, 9), (15, 16, 47), (3, 30, 33)]
)
def test_a_fork(tmp_path: Path, at: int, to: int, other: int, tiles: bool) -> None:
    async def main() -> None:
        async with scene(tmp_path, tiles=tiles) as here:
            await _fork(here, at, to, other)
            assert await here.poll() == [Alert.BAD_CONSISTENCY_PROOF]
            [evidence] = here.alerts
            assert [one.size for one in evidence.heads] == [to, other]
            assert proves(evidence, here)
            # Nothing of the fork was believed, and it is told once as long as it lasts …
            assert here.monitor.head == here.log.head and here.monitor.proven == to
            assert await here.poll() == []
            # … the old tree is fine, and the fork is told again after that.
            forked = here.liar.inner
            here.liar.become(here.log)
            await settled(here, to)
            here.liar.inner = forked
            assert await here.poll() == [Alert.BAD_CONSISTENCY_PROOF]

    run_with_deadline(main())


def test_a_fork_while_nobody_watched(tmp_path: Path) -> None:
    async def main() -> None:
        state = tmp_path / "state.json"
        async with scene(tmp_path, state=state) as here:
            await _fork(here, 3, 5, 9)
            here.watch(state=state)
            assert await here.poll() == [Alert.BAD_CONSISTENCY_PROOF]

    run_with_deadline(main())


@pytest.mark.parametrize("size", [1, 5])
def test_two_roots_of_one_size(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with scene(tmp_path) as here:
            await _fork(here, size - 1, size, size)
            assert await here.poll() == [Alert.TWO_ROOTS]
            assert proves(here.alerts[0], here)

    run_with_deadline(main())


def test_a_log_restored_from_an_old_backup(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as here:
            await _fork(here, 3, 6, 4)
            assert await here.poll() == [Alert.ROLLED_BACK]
            assert [one.size for one in here.alerts[0].heads] == [6, 4]
            assert proves(here.alerts[0], here)

    run_with_deadline(main())


def test_a_larger_tree_of_an_earlier_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 3) as here:
            forked = await here.fork()
            here.world.clock.now += 100  # type: ignore[attr-defined]
            await grow(here.log, 3)
            await settled(here, 4)
            here.world.clock.now -= 90  # type: ignore[attr-defined]
            await grow(forked, 3, 4)
            here.liar.become(forked)
            assert await here.poll() == [Alert.ROLLED_BACK]
            assert proves(here.alerts[0], here)

    run_with_deadline(main())


async def _recorded(here: Scene) -> Answer:
    """What get-sth answers now."""
    kept: list[Answer] = []

    def keep(answer: Answer) -> Answer:
        kept.append(answer)
        return answer

    here.liar.spoilers[STH] = keep
    assert await here.poll() == []
    del here.liar.spoilers[STH]
    return kept[0]


def test_an_older_head_of_the_same_tree(tmp_path: Path) -> None:
    """Told of, unless it is younger than the tolerance; it proves nothing to others."""

    async def main() -> None:
        async with scene(tmp_path, 3) as here:
            old = await _recorded(here)
            here.world.clock.now += 50  # type: ignore[attr-defined]
            await grow(here.log, 3, 4)
            await settled(here, 5)
            here.liar.spoilers[STH] = lambda answer: old
            assert await here.poll() == [Alert.OLDER_HEAD]
            assert not proves(here.alerts[0], here)
            assert here.monitor.head == here.log.head
            del here.liar.spoilers[STH]
            here.watch(options=Options(tolerance=60.0))
            await settled(here, 5)
            here.liar.spoilers[STH] = lambda answer: old
            assert await here.poll() == []
            assert here.monitor.head == here.log.head

    run_with_deadline(main())


def test_an_older_head_of_another_tree(tmp_path: Path) -> None:
    """Sizes and times alone would not tell."""

    async def main() -> None:
        async with scene(tmp_path, 3) as here:
            forked = await here.fork()
            await grow(forked, 50)
            here.world.clock.now += 50  # type: ignore[attr-defined]
            await grow(here.log, 3, 4)
            here.watch(options=Options(tolerance=60.0))
            await settled(here, 5)
            head = forked.head
            signed = {
                "tree_size": head.size, "timestamp": head.timestamp, "sha256_root_hash": b64(head.root),
                "tree_head_signature": b64(head.signed),
            }  # fmt: skip
            here.liar.spoilers[STH] = lambda answer: signed
            assert await here.poll() == [Alert.BAD_CONSISTENCY_PROOF]
            assert proves(here.alerts[0], here)

    run_with_deadline(main())


def _bent(answer: Answer) -> Answer:
    return {"consistency": [*answer["consistency"][:-1], flipped(answer["consistency"][-1])]}


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize(
    "spoil, alert",
    [
        (_bent, Alert.BAD_CONSISTENCY_PROOF),
        (lambda answer: {"consistency": answer["consistency"][1:]}, Alert.BAD_CONSISTENCY_PROOF),
        (lambda answer: {"consistency": [*answer["consistency"], answer["consistency"][0]]}, Alert.BAD_CONSISTENCY_PROOF),
        (lambda answer: {"consistency": []}, Alert.BAD_CONSISTENCY_PROOF),
        (lambda answer: {"consistency": ["?"]}, Alert.NO_CONSISTENCY_PROOF),
        (lambda answer: {"consistency": None}, Alert.NO_CONSISTENCY_PROOF),
        (lambda answer: None, Alert.NO_CONSISTENCY_PROOF),
    ],
)
def test_a_proof_that_is_none(
    tmp_path: Path, size: int, spoil: Callable[[Answer], Answer | None], alert: Alert
) -> None:
    """Of an honest tree: it is told, must not prove anything to others, and the right one is taken after it."""

    async def main() -> None:
        async with scene(tmp_path, size) as here:
            await settled(here, size)
            await grow(here.log, 10, 11, 12)
            here.liar.spoilers[CONSISTENCY] = spoil
            assert await here.poll() == [alert]
            assert not proves(here.alerts[0], here)
            assert here.monitor.proven == size
            here.liar.spoilers.clear()
            await settled(here, size + 3)

    run_with_deadline(main())


def test_a_hash_tile_that_was_altered(tmp_path: Path) -> None:
    """Proofs are made of tiles where a log has these: nothing follows for others from one that is damaged."""

    async def main() -> None:
        async with scene(tmp_path, 5, tiles=True) as here:
            await settled(here, 5)
            await grow(here.log, 10, 11, 12)
            here.liar.bytes_spoilers["tile/0/000.p/8"] = lambda data: data[:-1] + bytes((data[-1] ^ 1,))
            assert await here.poll() == [Alert.BAD_CONSISTENCY_PROOF]
            assert not proves(here.alerts[0], here)
            here.liar.bytes_spoilers["tile/0/000.p/8"] = lambda data: data[:-32]
            assert await here.poll() == [Alert.NO_CONSISTENCY_PROOF]
            assert here.monitor.proven == 5
            here.liar.bytes_spoilers.clear()
            await settled(here, 8)

    run_with_deadline(main())


def test_a_head_that_the_log_did_not_sign(tmp_path: Path) -> None:
    def bend(answer: Answer) -> Answer:
        return {**answer, "sha256_root_hash": flipped(answer["sha256_root_hash"])}

    async def main() -> None:
        async with scene(tmp_path, 2) as here:
            await settled(here, 2)
            here.liar.spoilers[STH] = bend
            assert await here.poll() == [Alert.BAD_SIGNATURE]
            assert not proves(here.alerts[0], here)
            assert await here.poll() == []
            here.liar.spoilers.clear()
            await settled(here, 2)

    run_with_deadline(main())


def test_the_age_of_heads(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 2, options=Options(mmd=3600.0, clock_skew=10.0)) as here:
            await settled(here, 2)
            here.world.clock.now += 3700  # type: ignore[attr-defined]
            assert await here.poll() == [Alert.HEAD_TOO_OLD]
            assert await here.poll() == []
            await grow(here.log, 2)
            await settled(here, 3)
            here.world.clock.now -= 60  # type: ignore[attr-defined]
            assert await here.poll() == [Alert.HEAD_FROM_FUTURE]
            assert not any(proves(one, here) for one in here.alerts)

    run_with_deadline(main())


# ---- logs that lie: entries ----


def _altered(answer: Answer) -> Answer:
    # A byte of the certificate's signature: nothing but the hash tells.
    leaf = bytearray(base64.b64decode(answer["entries"][2]["leaf_input"]))
    leaf[-14] ^= 1
    answer["entries"][2]["leaf_input"] = b64(bytes(leaf))
    return answer


def _swapped(answer: Answer) -> Answer:
    entries = answer["entries"]
    return {"entries": [entries[2], entries[1], entries[0], *entries[3:]]}


@pytest.mark.parametrize("spoil", [_altered, _swapped], ids=["altered", "swapped"])
def test_entries_that_are_not_those_of_the_tree(tmp_path: Path, spoil: Callable[[Answer], Answer]) -> None:
    async def main() -> None:
        state = tmp_path / "state.json"
        async with scene(tmp_path, 6, state=state) as here:
            here.liar.spoilers[ENTRIES] = spoil
            found = await here.poll()
            assert Alert.WRONG_ENTRIES in found
            # Swapped entries name their indexes too.
            assert set(found) <= {Alert.WRONG_ENTRIES, Alert.LEAF_MISMATCH}
            assert here.monitor.proven == 0
            assert await here.poll() == []
            here.watch(state=state)
            here.liar.spoilers.clear()
            await settled(here, 6)

    run_with_deadline(main())


@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_hidden_entry(tmp_path: Path, index: int) -> None:
    """The log leaves an entry out wherever it stands in an answer: there are never enough, or they do not hash."""

    async def main() -> None:
        async with scene(tmp_path, 6) as here:
            hidden = b64((await here.log.entry(index)).leaf)
            here.liar.spoilers[ENTRIES] = lambda answer: {
                "entries": [one for one in answer["entries"] if one["leaf_input"] != hidden]
            }
            found = await here.poll()
            assert found and set(found) <= {Alert.WITHHELD_ENTRIES, Alert.WRONG_ENTRIES, Alert.LEAF_MISMATCH}
            assert Alert.WITHHELD_ENTRIES in found or Alert.WRONG_ENTRIES in found
            assert here.monitor.proven == 0

    run_with_deadline(main())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: None,
        lambda answer: {"entries": []},
        lambda answer: {"entries": "none"},
        lambda answer: {"entries": answer["entries"] * 2},
        lambda answer: {"entries": [{"leaf_input": "!", "extra_data": ""}]},
    ],
)
def test_entries_that_are_not_given_out(tmp_path: Path, spoil: Callable[[Answer], Answer | None]) -> None:
    async def main() -> None:
        async with scene(tmp_path, 2) as here:
            await settled(here, 2)
            await grow(here.log, 2, 3)
            here.liar.spoilers[ENTRIES] = spoil
            assert await here.poll() == [Alert.WITHHELD_ENTRIES]
            assert here.monitor.proven == 2
            here.liar.spoilers.clear()
            await settled(here, 4)

    run_with_deadline(main())


def test_entries_beside_another_certificate(tmp_path: Path) -> None:
    """What stands beside a leaf is not hashed: it has to be what the leaf was made from."""

    def mix(answer: Answer) -> Answer:
        entries = answer["entries"]
        entries[1]["extra_data"], entries[3]["extra_data"] = entries[3]["extra_data"], entries[1]["extra_data"]
        return answer

    async def main() -> None:
        async with scene(tmp_path, 5) as here:
            here.liar.spoilers[ENTRIES] = mix
            assert await here.poll() == [Alert.LEAF_MISMATCH] * 2
            assert [one.index for one in here.alerts] == [1, 3]
            assert here.monitor.proven == 5  # The tree is right all the same.

    run_with_deadline(main())


def test_malformed_entries(tmp_path: Path) -> None:
    """A certificate that is none; extra data that is none; a name that is watched, in bytes that cannot be parsed."""

    def cut(answer: Answer) -> Answer:
        answer["entries"][1]["extra_data"] = answer["entries"][1]["extra_data"][:8]
        return answer

    async def main() -> None:
        async with scene(tmp_path, 2, names=["watched.example"]) as here:
            await here.log.add(submission(0))
            hidden = SignedEntry(EntryType.X509, b"\x30\x20 something for WATCHED.example in it")
            first = submission(2)
            await here.log.add(type(first)(hidden, b"", first.chain, first.fingerprints))
            here.liar.spoilers[ENTRIES] = cut
            found = await here.poll()
            assert [(one.alert, one.index) for one in here.alerts] == [
                (Alert.MALFORMED_ENTRY, 1), (Alert.MALFORMED_ENTRY, 2), (Alert.MALFORMED_ENTRY, 3),
                (Alert.UNEXPECTED_CERTIFICATE, 3),
            ]  # fmt: skip
            assert len(found) == 4 and here.monitor.proven == 4

    run_with_deadline(main())


def test_certificates_that_end_outside_the_shard(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 2, window=Window(*shard_window("2026h1"))) as here:
            assert await here.poll() == []
            here.watch(window=Window(*shard_window("2026h2")))
            assert await here.poll() == [Alert.OUTSIDE_WINDOW] * 2
            assert "ends at 2026-03-02" in here.alerts[0].text

    run_with_deadline(main())


# ---- promises ----


async def issue(here: Scene, common_name: str, *, logged: bool) -> bytes:
    """A certificate with an SCT of the log, logged or not, and its issuer, PEM."""
    base = CA.builder(common_name)
    precertificate = CA.issuer.sign(base.add_extension(x509.PrecertPoison(), critical=True))
    if logged:
        sct, _ = await here.log.add_chain([der(precertificate), der(CA.issuer.certificate)], precertificate=True)
    else:
        entry = precertificate_entry(precertificate, [CA.issuer.certificate])
        sct = here.world.signer.sct(LogEntry(entry, int(here.world.clock() * 1000), here.log.head.size - 1, ()))
    final = CA.issuer.sign(base.add_extension(sct_extension([sct]), critical=False))
    return final.public_bytes(Encoding.PEM) + CA.issuer.certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("tiles", [False, True], ids=["rfc6962", "tiles"])
def test_promises(tmp_path: Path, tiles: bool) -> None:
    """Of two certificates with SCTs one is in the log. The other is told of when it is due, and not before, and once."""

    async def main() -> None:
        async with scene(tmp_path, 2) as here:
            kept, broken = await issue(here, "kept", logged=True), await issue(here, "broken", logged=False)
            (tmp_path / "expected.pem").write_bytes(kept + broken)
            expected = Expected.read(tmp_path / "expected.pem")
            assert [one.name for one in expected.promises] == ["CN=kept", "CN=broken"]
            here.watch(expected=expected, options=Options(mmd=3600.0), tiles=tiles)
            assert await here.poll() == []
            assert here.monitor.counts.promises == 1
            here.world.clock.now += 3601  # type: ignore[attr-defined]
            await grow(here.log, 2)
            assert await here.poll() == [Alert.PROMISE_BROKEN]
            [evidence] = here.alerts
            assert "CN=broken" in evidence.text
            # An honest log's SCTs and heads look the same to who has not asked it: it owes, and is not convicted.
            judgement = check_evidence(evidence, here.key)
            assert not judgement.proves and judgement.owes == merkle.leaf_hash(evidence.leaf)
            assert await here.poll() == []

    run_with_deadline(main())


def test_an_honest_log_is_not_accused(tmp_path: Path) -> None:
    """An SCT that the log did not sign is refused, and evidence with one of another time proves nothing."""

    async def main() -> None:
        async with scene(tmp_path, 1) as here:
            pem = tmp_path / "expected.pem"
            pem.write_bytes(await issue(here, "broken", logged=False))
            [promise] = Expected.read(pem).promises
            other = Promise(type(promise.sct)(promise.sct.log_id, 1, b"", promise.sct.signature), promise.entry, "forged")
            with pytest.raises(ProofError):
                here.monitor.expect([other])
            here.watch(expected=Expected.read(pem), options=Options(mmd=1.0))
            here.world.clock.now += 2  # type: ignore[attr-defined]
            await grow(here.log, 1)
            assert await here.poll() == [Alert.PROMISE_BROKEN]
            [evidence] = here.alerts
            assert check_evidence(evidence, here.key).owes
            early = msgspec.structs.replace(evidence, mmd=86400.0)
            assert not check_evidence(early, here.key).owes
            entry, sct = promise.entry, promise.sct
            for leaf in (leaf_bytes(entry, sct.timestamp, b""), leaf_bytes(entry, 5, sct.extensions),
                         leaf_bytes(SignedEntry(EntryType.X509, b"x"), sct.timestamp, sct.extensions)):  # fmt: skip
                with pytest.raises(ProofError):
                    proves(msgspec.structs.replace(evidence, leaf=leaf), here)

    run_with_deadline(main())


# ---- certificates that nobody announced ----


def test_unexpected_certificates(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 4, names=["example"]) as here:
            assert await here.poll() == [Alert.UNEXPECTED_CERTIFICATE] * 4
            assert [one.index for one in here.alerts] == [0, 1, 2, 3]
            assert "node-0.example" in here.alerts[0].text and "precertificate for node-3" in here.alerts[3].text
            # Announced while the monitor runs, by fingerprint and by issuer.
            announced = hashlib.sha256(chain(4)[0][0]).hexdigest()
            (tmp_path / "expected").write_text(f"sha256 {announced}\n")
            here.examiner.expected = Expected.read(tmp_path / "expected")
            await grow(here.log, 4, 5)
            assert await here.poll() == [Alert.UNEXPECTED_CERTIFICATE]
            assert here.alerts[-1].index == 5
            evidence = here.alerts[-1]
            assert evidence.submitted == chain(5)[0][0] and evidence.chain[0] == chain(5)[0][1]
            assert merkle.leaf_hash(evidence.leaf) == (await here.log.entry(5)).leaf_hash

    run_with_deadline(main())


@pytest.mark.parametrize("tiles", [False, True], ids=["rfc6962", "tiles"])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_evidence_leads_from_an_entry_to_the_signed_root(tmp_path: Path, size: int, tiles: bool) -> None:
    """So that who issued a certificate cannot deny that the log has it; every part counts."""

    async def main() -> None:
        async with scene(tmp_path, size, names=["node-0.example"], tiles=tiles) as here:
            assert await here.poll() == [Alert.UNEXPECTED_CERTIFICATE]
            [evidence] = here.alerts
            judgement = check_evidence(evidence, here.key)
            assert not judgement.proves and "entry 0 of the tree" in judgement.text
            longer, shorter = (*evidence.path, bytes(32)), evidence.path[:-1]
            changed: list[dict[str, Any]] = [{"leaf": evidence.leaf[:-1] + b"?"}, {"index": size}, {"path": longer}]
            changed += [{"path": shorter}] if size > 2 else []
            for change in changed:
                with pytest.raises(ProofError):
                    proves(msgspec.structs.replace(evidence, **change), here)

    run_with_deadline(main())


def test_a_tree_with_a_leaf_that_is_none(tmp_path: Path) -> None:
    """Our own log signs no such tree, so it is signed by hand: that a log did is proven by its own signature."""

    async def main() -> None:
        async with scene(tmp_path) as here:
            leaf, other = b"\x07 something else", bytes(32)
            root = merkle.node_hash(other, merkle.leaf_hash(leaf))
            head = HeadRecord.of(here.world.signer.head(1, 2, root))
            evidence = Evidence(
                alert=Alert.MALFORMED_ENTRY, text="", log="", log_id=here.world.signer.log_id, seen=0.0, heads=(head,),
                index=1, leaf=leaf, path=(other,),
            )  # fmt: skip
            assert proves(evidence, here)
            assert not proves(msgspec.structs.replace(evidence, path=()), here)
            with pytest.raises(ProofError):
                proves(msgspec.structs.replace(evidence, index=0), here)

    run_with_deadline(main())


def test_alerts_do_without_paths_that_the_log_does_not_give(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 4, names=["example"], options=Options(paths=2)) as here:
            paths = "ct/v1/get-entry-and-proof"
            here.liar.spoilers[paths] = lambda answer: {**answer, "audit_path": [b64(bytes(32))] * 2}
            assert await here.poll() == [Alert.UNEXPECTED_CERTIFICATE] * 4
            assert [one.path for one in here.alerts] == [()] * 4
            assert len([path for path, _ in here.liar.asked if path == paths]) == 2
            assert here.monitor.proven == 4

    run_with_deadline(main())


# ---- state and evidence ----


def test_a_state_that_cannot_be_used(tmp_path: Path) -> None:
    async def main() -> None:
        state = tmp_path / "state.json"
        async with scene(tmp_path, 5, state=state) as here:
            await settled(here, 5)
            good = state.read_bytes()
            value = msgspec.json.decode(good)
            damaged = [
                b"", b"{}", good[:-20], good.replace(b'"size":5', b'"size":6', 1),
                msgspec.json.encode({**value, "proven": {"size": 5, "edge": []}}),
                msgspec.json.encode({**value, "tree": {"size": 4, "edge": [value["tree"]["edge"][0][:4]]}}),
                msgspec.json.encode({**value, "proven": {"size": 5, "edge": [value["tree"]["edge"][0][::-1]]}}),
                msgspec.json.encode({**value, "head": None}),
                msgspec.json.encode({**value, "tree": {"size": 5, "edge": [["AA=="] * 5]}}),
            ]  # fmt: skip
            for bad in damaged:
                state.write_bytes(bad)
                with pytest.raises(LogError, match=r"cannot be used.*begin anew"):
                    here.watch(state=state)
            state.write_bytes(good)
            with pytest.raises(LogError, match="is of log"):
                StateFile(state).load(new_key().public_key())
            here.watch(state=state)
            await settled(here, 5)

    run_with_deadline(main())


def test_a_state_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, 1, state=tmp_path / "there is no such directory" / "state") as here:
            with pytest.raises(LogError, match="cannot write"):
                await here.poll()

    run_with_deadline(main())


def test_evidence_in_files(tmp_path: Path) -> None:
    """Written whole, bounded in number, and of no worth once something in it was changed."""

    async def main() -> None:
        async with scene(tmp_path) as here:
            await _fork(here, 3, 6, 4)
            await here.poll()
            [evidence] = here.alerts
            files = EvidenceFiles(tmp_path / "evidence", most=2)
            path = files.keep(evidence)
            assert path is not None and read_evidence(path.read_bytes()) == evidence
            assert proves(evidence, here)
            for place in (0, 1):
                heads = list(evidence.heads)
                heads[place] = msgspec.structs.replace(heads[place], timestamp=heads[place].timestamp + 1)
                with pytest.raises(ProofError):
                    proves(msgspec.structs.replace(evidence, heads=tuple(heads)), here)
            with pytest.raises(ProofError):
                check_evidence(evidence, new_key().public_key())
            assert not proves(msgspec.structs.replace(evidence, heads=evidence.heads[:1]), here)
            assert files.keep(msgspec.structs.replace(evidence, text="2")) is not None
            assert files.keep(msgspec.structs.replace(evidence, text="3")) is None
            assert EvidenceFiles(tmp_path / "evidence", most=2).keep(evidence) is None
            assert len(list((tmp_path / "evidence").iterdir())) == 2
            with pytest.raises(Malformed):
                read_evidence(b"[]")

    run_with_deadline(main())


def test_hashes_of_other_lengths_are_no_evidence(tmp_path: Path) -> None:
    """A byte moved from one child to the other leaves their parent as it is: nobody may make a fork of that."""

    async def main() -> None:
        async with scene(tmp_path, 8) as here:
            old = [HeadRecord.of(here.world.signer.head(1, 6, await here.log.root(6)))]
            new = HeadRecord.of(here.log.head)
            proof = await here.log.consistency(6, 8)
            assert len(proof) == 3
            honest = Evidence(
                alert=Alert.BAD_CONSISTENCY_PROOF, text="", log="", log_id=here.world.signer.log_id, seen=0.0,
                heads=(old[0], new), proof=tuple(proof),
            )  # fmt: skip
            assert not proves(honest, here)
            moved = (proof[0] + proof[1][:1], proof[1][1:], proof[2])
            assert not proves(msgspec.structs.replace(honest, proof=moved), here)

    run_with_deadline(main())

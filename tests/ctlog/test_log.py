"""One log (control.ctlog.log, control.ctlog.chains): what it takes, once each, and what it answers."""

from __future__ import annotations

import asyncio
import datetime
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.ctlog import merkle
from control.ctlog.chains import MAX_CERTIFICATE_BYTES, Acceptor, Window
from control.ctlog.errors import LogError, Malformed, NotFound, Refused, Unavailable
from control.ctlog.log import Options
from control.ctlog.note import open_checkpoint
from control.ctlog.opening import OpenLog
from control.ctlog.precert import certificate_entry, precertificate_entry
from control.ctlog.site import LogConfig, Site, create, load_log_key, shard_window
from control.ctlog.structs import verify_sct
from tests.ctlog.faulty import Gate, HookedStorage
from tests.ctlog.test_tiles import naive_root
from tests.ctlog.world import (
    ORIGIN,
    START,
    Ca,
    Clock,
    der,
    make_issuer,
    make_root,
    name,
    run_with_deadline,
    submission,
    world,
)

CA = Ca()
ACCEPTOR = Acceptor([CA.root.certificate])


def test_a_chain_is_logged_and_promised(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log(ACCEPTOR) as log:
            key = here.signer.key.public_key()
            chain = CA.precertificate("a")
            sct, entry = await log.add_chain(chain, precertificate=True)
            made = precertificate_entry(x509.load_der_x509_certificate(chain[0]), [CA.issuer.certificate])
            verify_sct(sct, made, key)
            assert entry.precertificate == chain[0] and sct.leaf_index == entry.index == 0
            plain = CA.certificate("b")
            sct, entry = await log.add_chain(plain, precertificate=False)
            verify_sct(sct, certificate_entry(x509.load_der_x509_certificate(plain[0])), key)
            assert sct.timestamp == entry.timestamp == log.head.timestamp
            # What is told of the chain: issuer first, the root last, also when it was left out.
            assert [await log.issuer(one) for one in entry.chain] == [plain[1], der(CA.root.certificate)]
            for root_too in (plain, [*plain, der(CA.root.certificate)]):
                again, _ = await log.add_chain(root_too, precertificate=False)
                assert (again.timestamp, again.extensions) == (sct.timestamp, sct.extensions)
            assert log.head.size == 2 and log.duplicates == 2

    run_with_deadline(main())


def test_one_submission_is_one_entry(tmp_path: Path) -> None:
    """At once, while the round is under way, afterwards, and after a restart."""

    async def main() -> None:
        async with world(tmp_path) as here:
            storage, gate = HookedStorage(here.storage), Gate()
            here.storage = storage

            async def hold(objects: Mapping[str, bytes]) -> None:
                if any(key.startswith("staging/") for key in objects):
                    await gate()

            storage.before = hold
            async with here.log() as log:
                first = [asyncio.create_task(log.add(submission(1))) for _ in range(5)]
                await gate.reached.wait()
                first += [asyncio.create_task(log.add(submission(1))) for _ in range(5)]
                giving_up = asyncio.create_task(log.add(submission(1)))
                await asyncio.sleep(0)
                giving_up.cancel()
                gate.open.set()
                entries = await asyncio.gather(*first)
                entries.append(await log.add(submission(1)))
                assert log.head.size == 1 and len(set(entries)) == 1
                assert log.duplicates == 11
            async with here.log() as log:
                assert await log.add(submission(1)) == entries[0]
                assert log.head.size == 1

    run_with_deadline(main())


def test_the_same_certificate_under_another_key_or_form_is_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log(ACCEPTOR) as log:
            builder = CA.builder("same")
            twice = [der(CA.issuer.sign(builder)) for _ in range(2)]
            assert twice[0] != twice[1]  # ECDSA: two certificates of one TBS.
            above = der(CA.issuer.certificate)
            indexes = [(await log.add_chain([one, above], precertificate=False))[1].index for one in twice]
            # Two precertificates of one TBS promise the same final certificate.
            poisoned = builder.add_extension(x509.PrecertPoison(), critical=True)
            for _ in range(2):
                chain = [der(CA.issuer.sign(poisoned)), above]
                indexes.append((await log.add_chain(chain, precertificate=True))[1].index)
            assert indexes == [0, 1, 2, 2]

    run_with_deadline(main())


def test_what_is_refused_and_why() -> None:
    now = Window(START.timestamp(), (START + datetime.timedelta(days=30)).timestamp())
    acceptor = Acceptor([CA.root.certificate], now)
    leaf, above = CA.certificate("a")
    pre = CA.precertificate("a")
    root = der(CA.root.certificate)
    stranger = Ca()
    key = ec.generate_private_key(ec.SECP256R1())
    not_ca = CA.issuer.sign(CA.issuer.builder("not a ca", key.public_key()))
    below_leaf = type(CA.issuer)(not_ca, key)
    rogue = der(below_leaf.sign(below_leaf.builder("x", key.public_key())))
    # A root of the same name with another key signs nothing for ours.
    double = make_root("root")
    forged = Ca(double)
    rsa_root = make_root("another root")
    refusals: list[tuple[list[bytes], bool, str]] = [
        ([], False, "1 to 12"),
        ([leaf] * 13, False, "1 to 12"),
        ([b"\x30" * (MAX_CERTIFICATE_BYTES + 1)], False, "are taken"),
        ([leaf, above, b"\0" * (MAX_CERTIFICATE_BYTES + 1)], False, "are taken"),
        ([leaf], False, "does not lead to a root"),
        ([leaf, root], False, "is not issued by"),
        ([leaf, above, above], False, "is not issued by"),
        ([leaf, above, root, root], False, "after the root"),
        ([leaf, above, der(rsa_root.certificate)], False, "is not issued by"),
        (stranger.certificate("a"), False, "is not issued by|does not lead"),
        (forged.certificate("a"), False, "does not lead"),
        ([rogue, der(not_ca), above], False, "not a certificate authority"),
        ([leaf, above], True, "carries no poison"),
        (pre, False, "add-pre-chain"),
        (CA.certificate("late", days=31), False, "this log takes those that end"),
        (CA.certificate("at the limit", days=30), False, "this log takes those that end"),
    ]
    for chain, precertificate, why in refusals:
        with pytest.raises(Refused, match=why):
            acceptor.submission(chain, precertificate=precertificate)
    for garbage in (b"", b"\0", leaf[:-1], leaf + b"\0", b"-----BEGIN CERTIFICATE-----"):
        with pytest.raises(Malformed):
            acceptor.submission([garbage, above], precertificate=False)
        with pytest.raises(Malformed):
            acceptor.submission([leaf, garbage], precertificate=False)
    broken = bytearray(leaf)
    broken[-1] ^= 1
    with pytest.raises(Refused, match="is not issued by"):
        acceptor.submission([bytes(broken), above], precertificate=False)
    # The root may come along or not; a chain ends with it in any case.
    assert acceptor.submission([leaf, above, root], precertificate=False).chain == (above, root)
    assert acceptor.submission([leaf, above], precertificate=False).chain == (above, root)
    with pytest.raises(LogError):
        Acceptor([])


def test_the_window_takes_its_first_moment_and_not_its_last() -> None:
    start, end = START.timestamp() + 86400, START.timestamp() + 2 * 86400
    acceptor = Acceptor([CA.root.certificate], Window(start, end))
    assert acceptor.submission(CA.certificate("first", days=1), precertificate=False)
    with pytest.raises(Refused):
        acceptor.submission(CA.certificate("x", days=2), precertificate=False)
    early = Acceptor([CA.root.certificate], Window(start + 1, None))
    with pytest.raises(Refused):
        early.submission(CA.certificate("first", days=1), precertificate=False)
    assert shard_window("2026h2") == (
        datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC).timestamp(),
        datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp(),
    )
    assert shard_window("2026h1")[1] == shard_window("2026h2")[0] and shard_window("2026")[0] == shard_window("2026h1")[0]
    for wrong in ("26", "2026h3", "2026h", "x", "1969", "9001", "2026h1 "):
        with pytest.raises(LogError):
            shard_window(wrong)


def test_roots_and_deep_chains() -> None:
    """Two roots of one name; a root in the middle of what could be a longer chain; six intermediates."""
    double = make_root("root")
    acceptor = Acceptor([double.certificate, CA.root.certificate])
    assert acceptor.submission(CA.certificate("a"), precertificate=False).chain[-1] == der(CA.root.certificate)
    assert set(acceptor.roots) == {der(double.certificate), der(CA.root.certificate)}
    above = CA.root
    chain: list[bytes] = []
    for depth in range(6):
        above = make_issuer(above, f"level {depth}")
        chain.insert(0, der(above.certificate))
    leaf = der(above.sign(above.builder("deep", CA.key.public_key())))
    taken = acceptor.submission([leaf, *chain], precertificate=False)
    assert taken.chain == (*chain, der(CA.root.certificate))
    with pytest.raises(Refused):
        acceptor.submission([leaf, *chain[::-1]], precertificate=False)
    with pytest.raises(Refused):
        acceptor.submission([leaf, *chain[:2], *chain[3:]], precertificate=False)
    # Verified links are remembered, and do not make another chain true.
    acceptor.submission([leaf, *chain], precertificate=False)
    with pytest.raises(Refused):
        acceptor.submission([leaf, *chain[1:]], precertificate=False)


def test_precertificate_signing_chain_is_logged(tmp_path: Path) -> None:
    async def main() -> None:
        signer = make_issuer(CA.issuer, "precertificate signing", precert_signing=True)
        builder = signer.builder("host", CA.key.public_key()).add_extension(x509.PrecertPoison(), critical=True)
        chain = [der(signer.sign(builder)), der(signer.certificate), der(CA.issuer.certificate)]
        async with world(tmp_path) as here, here.log(ACCEPTOR) as log:
            _, entry = await log.add_chain(chain, precertificate=True)
            assert CA.issuer.certificate.subject.public_bytes() in entry.entry.certificate
            assert name("precertificate signing").public_bytes() not in entry.entry.certificate
            assert len(entry.chain) == 3

    run_with_deadline(main())


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            storage, gate = HookedStorage(here.storage), Gate()
            here.storage = storage

            async def hold(objects: Mapping[str, bytes]) -> None:
                await gate()

            async with here.log(options=Options(period=0.0, queue=10, round_entries=4)) as log:
                storage.before = hold
                tasks = [asyncio.create_task(log.add(submission(number))) for number in range(15)]
                await gate.reached.wait()
                assert log.waiting == 10
                refused = [task for task in tasks if task.done()]
                assert len(refused) == 5
                for task in refused:
                    with pytest.raises(Unavailable, match="wait already"):
                        await task
                twice = asyncio.create_task(log.add(submission(0)))  # What waits already costs nothing more.
                gate.open.set()
                entries = await asyncio.gather(*tasks[:10], twice)
                assert sorted(entry.index for entry in entries[:10]) == list(range(10))
                assert log.sequencer.counts.rounds == 3  # Four at a time.
            with pytest.raises(Unavailable):
                await log.add(submission(99))

    run_with_deadline(main())


def test_a_round_is_bounded_in_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            largest = 0
            storage = HookedStorage(here.storage)
            here.storage = storage

            async def look(objects: Mapping[str, bytes]) -> None:
                nonlocal largest
                largest = max([largest, *map(len, objects.values())])

            storage.before = look
            async with here.log() as log:
                big = [submission(2 * number, MAX_CERTIFICATE_BYTES) for number in range(300)]
                await asyncio.gather(*(log.add(one) for one in big))
                assert log.head.size == 300 and log.sequencer.counts.rounds >= 3
            assert 16 << 20 < largest < 64 << 20

    run_with_deadline(main())


def test_proofs_of_everything_at_every_older_size(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log:
            heads = []
            for count in (1, 1, 3, 60, 190, 1, 1, 255, 40):
                begin = log.head.size
                await asyncio.gather(*(log.add(submission(number)) for number in range(begin, begin + count)))
                heads.append(log.head)
            size = log.head.size
            assert size == 552
            leaves = [entry.leaf_hash for start in (0, 256, 512) for entry in await log.entries(start, start + 255)]
            roots = {old: naive_root(leaves[:old]) for old in range(size + 1)}
            for head in heads:
                assert head.root == roots[head.size]
            for old in range(1, size + 1):
                assert await log.root(old) == roots[old]
                for index in {0, old - 1, old // 2, old * 2 // 3}:
                    proof = await log.inclusion(index, old)
                    merkle.verify_inclusion(index, old, leaves[index], proof, roots[old])
                for new in {size, (old + size) // 2}:
                    merkle.verify_consistency(old, new, roots[old], roots[new], await log.consistency(old, new))
            for index in range(0, size, 5):
                assert await log.find(leaves[index]) == index
            assert await log.root(0) == naive_root([])
            for call in (
                log.root(size + 1), log.root(-1), log.inclusion(size), log.inclusion(-1), log.inclusion(0, size + 1),
                log.inclusion(5, 5), log.consistency(5, 4), log.consistency(0, size + 1), log.consistency(-1),
                log.find(bytes(32)), log.find(leaves[0][:16] + bytes(16)), log.entry(size), log.entries(size, size),
                log.entries(5, 4), log.issuer(bytes(32)), log.tile(0, 3, 1), log.tile(0, 2, 41), log.tile(-1, 0, 0),
            ):  # fmt: skip
                with pytest.raises(NotFound):
                    await call

    run_with_deadline(main())


def test_heads_are_signed_anew_while_nothing_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            async with here.log(options=Options(period=0.0, refresh=0.01)) as log:
                await log.add(submission(1))
                seen, enough = [log.head], asyncio.Event()

                def look(published: object) -> None:
                    seen.append(log.head)
                    if len(seen) > 4:
                        enough.set()

                log.on_publish(look)
                await enough.wait()
                assert {head.size for head in seen} == {1} and len({head.root for head in seen}) == 1
                times = [head.timestamp for head in seen]
                assert times == sorted(set(times))
            note = await here.storage.get("checkpoint")
            assert open_checkpoint(note, ORIGIN, here.signer.key.public_key()).timestamp >= seen[-1].timestamp

    run_with_deadline(main())


def test_cosignatures_are_of_the_head_they_were_given_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log:
            await log.add(submission(1))
            old = log.published
            await log.publish_note(old, old.note + b"more\n")
            assert log.note == old.note + b"more\n"
            await log.add(submission(2))
            assert log.note == log.published.note != old.note
            await log.publish_note(old, b"late")
            assert log.note == log.published.note

    run_with_deadline(main())


def test_closing_ends_soon_though_the_storage_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that is committed is finished by the next start."""

    async def main() -> None:
        monkeypatch.setattr("control.ctlog.log.CLOSE_SECONDS", 0.05)
        async with world(tmp_path) as here:
            storage, tried, plain = HookedStorage(here.storage), asyncio.Event(), here.storage
            here.storage = storage

            async def fail(objects: Mapping[str, bytes]) -> None:
                if "checkpoint" in objects:
                    tried.set()
                    raise Unavailable("gone")

            async with here.log() as log:
                storage.before = fail
                waiting = asyncio.create_task(log.add(submission(1)))
                await tried.wait()
            with pytest.raises(Unavailable, match="ending"):
                await waiting
            here.storage = plain
            async with here.log() as log:
                assert log.head.size == 1 and (await log.add(submission(1))).index == 0

    run_with_deadline(main())


def test_a_site_from_nothing_to_an_entry(tmp_path: Path) -> None:
    async def main() -> None:
        site = await create(tmp_path / "log", LogConfig("localhost/2026"), [CA.root.certificate], Clock())
        assert stat.S_IMODE((tmp_path / "log" / "log.key").stat().st_mode) == 0o600
        with pytest.raises(LogError, match="exists already"):
            await create(tmp_path / "log", LogConfig("localhost/2026"), [CA.root.certificate], Clock())
        assert site.config.prefix == "2026"
        async with OpenLog(Site.read(tmp_path / "log"), Clock(1_790_000_000.0)) as log:
            sct, entry = await log.add_chain(CA.certificate("a"), precertificate=False)
            verify_sct(sct, entry.entry, load_log_key(str(tmp_path / "log" / "log.pem")))
        os.chmod(tmp_path / "log" / "log.key", 0o644)  # noqa: PTH101
        with pytest.raises(LogError, match="chmod 600"):
            async with OpenLog(site, Clock()):
                pass
        for text in ("{}", "[", '{"origin": "a b"}', '{"origin": "x", "more": 1}'):
            (tmp_path / "log" / "log.json").write_text(text)
            with pytest.raises(LogError):
                Site.read(tmp_path / "log")
        with pytest.raises(LogError, match="stoq ct init"):
            Site.read(tmp_path)

    run_with_deadline(main())

"""A log over HTTP on ::1 (control.ctlog.api, http, client): all calls of RFC 6962 section 4 and the reads of
static-ct-api, with an HTTP client of the test's own where the answers' form matters."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from control.ctlog import merkle
from control.ctlog.api import FOREVER, HEAD_CACHE, MAX_BODY_BYTES, NO_CACHE, LogApi
from control.ctlog.chains import Acceptor, Window
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.errors import LogError, Malformed, NotFound, ProofError, Refused, Unavailable
from control.ctlog.http import HttpServer, log_application
from control.ctlog.log import Log, Options
from control.ctlog.note import open_checkpoint
from control.ctlog.precert import certificate_entry, precertificate_entry
from control.ctlog.structs import EntryType
from control.ctlog.tiles import split_entries, split_hashes
from dataplane.address import Address
from tests.ctlog.world import ORIGIN, START, Ca, World, der, new_key, run_with_deadline, submission, world

CA = Ca()
ACCEPTOR = Acceptor([CA.root.certificate], Window(START.timestamp(), None))


@dataclass
class Served:
    """A log that is served, and ways to ask it."""

    world: World
    log: Log
    url: str
    port: int
    session: aiohttp.ClientSession
    client: LogClient

    async def get(self, path: str, **query: object) -> tuple[int, bytes, str]:
        """Status, body and Cache-Control."""
        params = {name: str(value) for name, value in query.items()}
        async with self.session.get(f"{self.url}/{path}", params=params) as answer:
            return answer.status, await answer.read(), answer.headers.get("Cache-Control", "")

    async def json(self, path: str, cache: str, **query: object) -> Any:
        """The body of an answer that must be good."""
        status, body, found = await self.get(path, **query)
        assert (status, found) == (200, cache), body
        return json.loads(body)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        async with self.session.post(f"{self.url}/{path}", data=body) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def served(directory: Path, options: Options = Options(period=0.0)) -> AsyncIterator[Served]:  # noqa: B008
    """A new log over HTTP."""
    async with world(directory) as here, here.log(ACCEPTOR, options) as log:
        server = HttpServer(log_application({"2026": LogApi(log)}), Address("::1", 0))
        await server.open()
        port = server.address.port
        url = f"http://[::1]:{port}/2026"
        try:
            client = LogClient(HttpCarrier(url), here.signer.key.public_key())
            async with aiohttp.ClientSession() as session, client:
                yield Served(here, log, url, port, session, client)
        finally:
            await server.close()


def b64(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode()


def test_all_eight_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as it:
            key = it.world.signer.key.public_key()
            assert (await it.json("ct/v1/get-sth", HEAD_CACHE))["tree_size"] == 0
            plain, pre = CA.certificate("a"), CA.precertificate("b")
            entries = [
                certificate_entry(x509.load_der_x509_certificate(plain[0])),
                precertificate_entry(x509.load_der_x509_certificate(pre[0]), [CA.issuer.certificate]),
            ]
            for path, chain, entry, add in (
                ("ct/v1/add-chain", plain, entries[0], it.client.add_chain),
                ("ct/v1/add-pre-chain", pre, entries[1], it.client.add_pre_chain),
            ):
                status, body = await it.post(path, json.dumps({"chain": [b64(one) for one in chain]}).encode())
                answer = json.loads(body)
                assert status == 200 and set(answer) == {"sct_version", "id", "timestamp", "extensions", "signature"}
                assert answer["sct_version"] == 0 and base64.b64decode(answer["id"]) == it.world.signer.log_id
                sct = await add(chain)
                assert (sct.timestamp, b64(sct.extensions)) == (answer["timestamp"], answer["extensions"])
                it.client.check_sct(sct, entry)
                with pytest.raises(ProofError):
                    it.client.check_sct(sct, entries[entry is entries[0]])
            await asyncio.gather(*(it.log.add(submission(number)) for number in range(300)))
            sth = await it.json("ct/v1/get-sth", HEAD_CACHE)
            assert set(sth) == {"tree_size", "timestamp", "sha256_root_hash", "tree_head_signature"}
            head = await it.client.get_sth()
            assert head == it.log.head and head.size == sth["tree_size"] == 302
            old = await it.log.root(2)
            consistency = await it.json("ct/v1/get-sth-consistency", FOREVER, first=2, second=302)
            proof = [base64.b64decode(one) for one in consistency["consistency"]]
            merkle.verify_consistency(2, 302, old, head.root, proof)
            assert await it.client.get_consistency(2, 302) == proof
            assert (await it.json("ct/v1/get-sth-consistency", FOREVER, first=302, second=302))["consistency"] == []

            fetched = await it.client.get_entries(0, 1)
            assert [one.entry for one in fetched] == entries
            assert [one.submitted for one in fetched] == [plain[0], pre[0]]
            assert [one.entry.kind for one in fetched] == [EntryType.X509, EntryType.PRECERT]
            root = der(CA.root.certificate)
            assert [one.chain for one in fetched] == [(plain[1], root), (pre[1], root)]
            raw = await it.json("ct/v1/get-entries", FOREVER, start=0, end=1)
            assert set(raw["entries"][0]) == {"leaf_input", "extra_data"}
            leaf = base64.b64decode(raw["entries"][1]["leaf_input"])
            found = await it.json("ct/v1/get-proof-by-hash", FOREVER, hash=b64(merkle.leaf_hash(leaf)), tree_size=302)
            audit = [base64.b64decode(one) for one in found["audit_path"]]
            merkle.verify_inclusion(found["leaf_index"], 302, merkle.leaf_hash(leaf), audit, head.root)
            assert await it.client.prove(fetched[1].leaf_hash, head) == (1, audit)
            both = await it.json("ct/v1/get-entry-and-proof", FOREVER, leaf_index=1, tree_size=302)
            assert both["leaf_input"] == raw["entries"][1]["leaf_input"]
            assert both["extra_data"] == raw["entries"][1]["extra_data"] and both["audit_path"] == found["audit_path"]
            again, audit = await it.client.get_entry_and_proof(1, 2)
            merkle.verify_inclusion(1, 2, again.leaf_hash, audit, old)
            assert again == fetched[1]
            roots = await it.json("ct/v1/get-roots", HEAD_CACHE)
            assert roots == {"certificates": [b64(root)]} and await it.client.get_roots() == [root]
            note = await it.client.fetch("checkpoint")
            assert open_checkpoint(note, ORIGIN, key) == head

    run_with_deadline(main())


def test_entries_come_in_pieces_that_can_be_cached(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, Options(period=0.0, get_entries=512)) as it:
            await asyncio.gather(*(it.log.add(submission(number)) for number in range(1000)))
            at, seen, sizes = 100, 0, []
            while at < 1000:
                part = await it.client.get_entries(at, 10**17)
                assert [one.index for one in part] == list(range(at, at + len(part)))
                for one in part[::50]:
                    assert one.leaf_hash == (await it.log.entry(one.index)).leaf_hash
                sizes.append(len(part))
                at += len(part)
                seen += len(part)
            assert seen == 900 and sizes == [412, 488]
            # Only what is answered whole stays true for ever.
            assert (await it.get("ct/v1/get-entries", start=0, end=999))[2] == NO_CACHE
            assert (await it.get("ct/v1/get-entries", start=0, end=9))[2] == FOREVER

    run_with_deadline(main())


def test_the_static_layout(tmp_path: Path) -> None:
    """A reader of tiles gets the whole tree, and nothing beside it."""

    async def main() -> None:
        async with served(tmp_path) as it:
            for begin in range(0, 600, 200):
                await asyncio.gather(*(it.log.add(submission(number)) for number in range(begin, begin + 200)))
            await it.client.add_chain(CA.certificate("x"))
            tiles = {}
            for path, width in (("tile/0/000", 256), ("tile/0/001", 256), ("tile/0/002.p/89", 89), ("tile/1/000.p/2", 2)):
                status, body, cache = await it.get(path)
                assert (status, cache) == (200, FOREVER)
                tiles[path] = split_hashes(body, width)
            leaves = tiles["tile/0/000"] + tiles["tile/0/001"] + tiles["tile/0/002.p/89"]
            for number, path in enumerate(("tile/data/000", "tile/data/001", "tile/data/002.p/89")):
                entries = split_entries(await it.client.fetch(path), min(256, 601 - 256 * number))
                assert [one.leaf_hash for one in entries] == leaves[256 * number : 256 * number + 256]
            issuer = entries[-1].chain[0].hex()
            assert await it.client.fetch(f"issuer/{issuer}") == der(CA.issuer.certificate)
            # A partial tile of an older tree is the beginning of what is there now, also when it was full since.
            assert split_hashes(await it.client.fetch("tile/0/001.p/144"), 144) == leaves[256:400]
            for path in (
                "tile/0/003.p/1", "tile/0/002", "tile/0/002.p/90", "tile/1/000", "tile/2/000.p/1", "tile/data/002",
                "tile/0/000.p/0", "tile/0/0", "tile/0/x000/000", "tile/0/000.p/256", "tile/9/000.p/1", "tile/",
                "issuer/", f"issuer/{issuer.upper()}", f"issuer/{issuer[:-2]}", f"issuer/{bytes(32).hex()}",
                f"issuer/%20{issuer[:-1]}", "staging/1", "lock.db", "index.db", "checkpoint/", "ct/v1/", "ct/v2/get-sth",
                "tile/..%2f..%2flog.key", "tile/0/000%00",
            ):  # fmt: skip
                status, body, cache = await it.get(path)
                assert (status, cache) == (404, NO_CACHE), path
                assert set(json.loads(body)) == {"error"}
            for path in ("..%2flog.key", "%2e%2e/log.key", "", "/etc/passwd"):
                assert (await it.get(path))[0] == 404, path

    run_with_deadline(main())


def test_malformed_questions(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as it:
            await asyncio.gather(*(it.log.add(submission(number)) for number in range(20)))
            numbers = ["", "-1", "+1", "1.0", "0x1", "1e3", " 1", "1 ", "٣", "²", "1_0", "9" * 19, "9" * 5000, "a", "null"]
            for path, names in (
                ("ct/v1/get-sth-consistency", ("first", "second")),
                ("ct/v1/get-entries", ("start", "end")),
                ("ct/v1/get-entry-and-proof", ("leaf_index", "tree_size")),
            ):
                for number in numbers:
                    for wrong in names:
                        query: dict[str, object] = {name: number if name == wrong else "5" for name in names}
                        status, body, _ = await it.get(path, **query)
                        assert status == 400 and wrong in json.loads(body)["error"], (path, query)
                assert (await it.get(path))[0] == 400
            leaf = b64((await it.log.entry(3)).leaf_hash)
            for value in ("", "x", leaf[:-1], leaf[:-4], leaf + "AAAA", "*" + leaf[1:], b64(b"\0" * 31), b64(b"\0" * 33)):
                assert (await it.get("ct/v1/get-proof-by-hash", hash=value, tree_size=20))[0] == 400, value
            questions: list[tuple[str, dict[str, object], int]] = [
                ("ct/v1/get-sth-consistency", {"first": 6, "second": 5}, 400),
                ("ct/v1/get-sth-consistency", {"first": 5, "second": 21}, 404),
                ("ct/v1/get-entries", {"start": 6, "end": 5}, 400),
                ("ct/v1/get-entries", {"start": 20, "end": 20}, 404),
                ("ct/v1/get-entry-and-proof", {"leaf_index": 20, "tree_size": 20}, 404),
                ("ct/v1/get-entry-and-proof", {"leaf_index": 5, "tree_size": 5}, 404),
                ("ct/v1/get-entry-and-proof", {"leaf_index": 0, "tree_size": 21}, 404),
                ("ct/v1/get-proof-by-hash", {"hash": leaf, "tree_size": 3}, 404),
                ("ct/v1/get-proof-by-hash", {"hash": leaf, "tree_size": 21}, 404),
                ("ct/v1/get-proof-by-hash", {"hash": leaf, "tree_size": 0}, 400),
                ("ct/v1/get-proof-by-hash", {"hash": b64(bytes(32)), "tree_size": 20}, 404),
                ("ct/v1/add-chain", {}, 405),
            ]
            for path, query, status in questions:
                assert (await it.get(path, **query))[0] == status, (path, query)
            for path in ("ct/v1/get-sth", "checkpoint", "ct/v1/get-roots"):
                assert (await it.post(path, b"{}"))[0] == 405
            for method in ("PUT", "DELETE", "PATCH"):
                async with it.session.request(method, f"{it.url}/ct/v1/add-chain") as answer:
                    assert answer.status == 405
            assert it.log.head.size == 20

    run_with_deadline(main())


def test_malformed_submissions(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as it:
            leaf, above = CA.certificate("a")
            deep = b'{"chain": ["AA=="], "more": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
            bodies = [
                b"", b"{}", b"[]", b"null", b"{", b"\xff\xfe", b'{"chain": null}', b'{"chain": "x"}', b'{"chain": []}',
                b'{"chain": [1]}', b'{"chain": [null]}', b'{"chain": ["*"]}', b'{"chain": [""]}', b'{"chain": ["AAAA"]}',
                b'{"chain": ["AA==\\n"]}', b'{"chain": [' + b'"AAAA",' * 12 + b'"AAAA"]}', deep,
                b'{"chain": ["\xed\xa0\x80"]}',
                json.dumps({"chain": [b64(leaf)[:-1], b64(above)]}).encode(),
                json.dumps({"chain": [b64(leaf)]}).encode(),
                json.dumps({"chain": [b64(above), b64(leaf)]}).encode(),
                json.dumps({"chain": ["A" * (MAX_BODY_BYTES - 40)]}).encode(),
            ]  # fmt: skip
            for path in ("ct/v1/add-chain", "ct/v1/add-pre-chain"):
                for body in bodies:
                    status, answer = await it.post(path, body)
                    assert status == 400 and len(json.loads(answer)["error"]) > 10, body[:60]
            status, _ = await it.post("ct/v1/add-chain", b" " * (MAX_BODY_BYTES + 1))
            assert status == 413
            wrong = Ca()
            with pytest.raises(Refused, match="root of this log"):
                await it.client.add_chain(wrong.certificate("a"))
            with pytest.raises(Refused, match="add-pre-chain"):
                await it.client.add_chain(CA.precertificate("a"))
            assert it.log.head.size == 0 and it.log.waiting == 0
            await it.client.add_chain([leaf, above])  # After all that.

    run_with_deadline(main())


def test_a_log_that_cannot_answer_now(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as it:
            clock: Any = it.world.clock
            await it.client.add_chain(CA.certificate("a"))
            clock.now -= 100
            chain = [b64(one) for one in CA.certificate("b")]
            body = json.dumps({"chain": chain}).encode()
            async with it.session.post(f"{it.url}/ct/v1/add-chain", data=body) as answer:
                assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
                assert "clock" in (await answer.json())["error"]
            with pytest.raises(Unavailable):
                await it.client.add_chain(CA.certificate("c"))
            # One that lost an issuer says so, and not that there is no such entry.
            (path,) = [
                one for one in (tmp_path / "data" / "issuer").iterdir() if one.read_bytes() == der(CA.issuer.certificate)
            ]
            path.unlink()
            status, text, _ = await it.get("ct/v1/get-entries", start=0, end=0)
            assert status == 500 and b"fsck" in text

    run_with_deadline(main())


def test_ipv6_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as it:
            for host in ("127.0.0.1", "localhost"):
                with pytest.raises(OSError):
                    await asyncio.open_connection(host, it.port, family=2)
            assert (await it.client.get_sth()).size == 0

    run_with_deadline(main())


def test_a_client_believes_nothing(tmp_path: Path) -> None:
    """Against a log that answers well-formed lies."""

    class Liar:
        def __init__(self, inner: HttpCarrier) -> None:
            self.inner = inner
            self.change: dict[str, Any] = {}
            self.raw: tuple[int, bytes] | None = None

        async def request(self, method: str, path: str, query: Any, body: bytes) -> tuple[int, bytes]:
            if self.raw is not None:
                return self.raw
            status, data = await self.inner.request(method, path, query, body)
            return status, json.dumps({**json.loads(data), **self.change}).encode()

        async def close(self) -> None:
            await self.inner.close()

    async def main() -> None:
        async with served(tmp_path) as it:
            await asyncio.gather(*(it.log.add(submission(number)) for number in range(20)))
            liar = Liar(HttpCarrier(it.url))
            async with LogClient(liar, it.world.signer.key.public_key()) as client:
                head = await client.get_sth()
                change: dict[str, Any]
                for change in (
                    {"tree_size": 21}, {"timestamp": head.timestamp + 1}, {"sha256_root_hash": b64(bytes(32))},
                ):  # fmt: skip
                    liar.change = change
                    with pytest.raises(ProofError):
                        await client.get_sth()
                for change in (
                    {"tree_size": -1}, {"tree_size": "20"}, {"timestamp": 1 << 63}, {"sha256_root_hash": "AA=="},
                    {"tree_head_signature": "AA=="}, {"tree_head_signature": "*"}, {"timestamp": None},
                ):  # fmt: skip
                    liar.change = change
                    with pytest.raises(Malformed):
                        await client.get_sth()
                leaf = (await it.log.entry(7)).leaf_hash
                for change in ({"leaf_index": 6}, {"leaf_index": 20}, {"leaf_index": -1}, {"audit_path": []}):
                    liar.change = change
                    with pytest.raises(ProofError):
                        await client.prove(leaf, head)
                liar.change = {"audit_path": ["AAAA"] * 65}
                with pytest.raises(Malformed):
                    await client.prove(leaf, head)
                entry = (await it.json("ct/v1/get-entries", FOREVER, start=0, end=0))["entries"][0]
                for entries in (
                    [], [entry, entry], [{"leaf_input": "AA==", "extra_data": ""}], [{**entry, "extra_data": "AA=="}],
                ):  # fmt: skip
                    liar.change = {"entries": entries}
                    with pytest.raises(Malformed):
                        await client.get_entries(0, 0)
                liar.change = {"id": b64(bytes(32))}
                with pytest.raises(ProofError):
                    await client.add_chain(CA.certificate("a"))
                for status, kind in ((200, Malformed), (404, NotFound), (400, Refused), (503, Unavailable), (500, LogError)):
                    for body in (b"", b"<html>", b"\xff" * 300, b'{"error": 5}'):
                        liar.raw = (status, body)
                        with pytest.raises(kind):
                            await client.get_sth()
            other = LogClient(HttpCarrier(it.url), new_key().public_key())
            async with other:
                with pytest.raises(ProofError):
                    await other.get_sth()

    run_with_deadline(main())

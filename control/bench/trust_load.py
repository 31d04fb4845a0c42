"""The clients of `stoq bench ct` and `stoq bench ca`, each run a process of its own: kept connections over HTTP/1.1, real
requests, every answer checked, before or after the part that is timed.

      python -m control.bench.trust_load … --url http://[::1]:PORT/PREFIX
        add      --pki DIR [--key PEM]   precertificates made beforehand, each another; all SCTs are verified, and (with the
                                         log's key) that the log has exactly these entries at the indexes they promise
        entries  --key PEM               get-entries from the first on; leaf hashes lead to the signed head
        tiles    --key PEM               the same entries as static-ct-api's data tiles
        proofs   --key PEM               get-proof-by-hash of entries drawn from the whole tree, each proof verified
        get      --path PATH             one object again and again
        ocsp     --pem CHAIN             OCSP requests about one certificate after another, each answer's signature verified

Standard output gets one JSON object, `result`.
"""

from __future__ import annotations

import base64
import itertools
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from control.bench.ct_chains import ECDSA, Pki, Precertificates
from control.bench.processes import BenchError
from control.bench.trust_figures import Tally, in_flight
from control.console import Output, run_async
from control.ctlog import merkle
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.errors import LogError
from control.ctlog.note import TreeHead
from control.ctlog.site import load_log_key
from control.ctlog.structs import LogKey, Sct, decode_leaf, decode_signed, leaf_bytes, verify_sct
from control.ctlog.tiles import DATA, TILE_WIDTH, Tree, split_entries, split_hashes, tile_path, tile_width

SAMPLE = 128  # One SCT of so many is verified as it comes.
ANSWER_ENTRIES = 1024  # Asked for at a time.
SEGMENT_REQUESTS = 16  # Between two checks: what has come is held in memory meanwhile.
PROOF_TILES = 256  # Tiles whose entries are asked about.


class _Answer(msgspec.Struct):
    id: str
    timestamp: int
    extensions: str
    signature: str


class _Entry(msgspec.Struct):
    leaf_input: str


class _Entries(msgspec.Struct):
    entries: list[_Entry]


class _Proof(msgspec.Struct):
    leaf_index: int
    audit_path: list[str]


def _sct(body: bytes) -> Sct:
    answer = msgspec.json.decode(body, type=_Answer)
    algorithm, signature = decode_signed(base64.b64decode(answer.signature))
    return Sct(
        base64.b64decode(answer.id), answer.timestamp, base64.b64decode(answer.extensions), signature, algorithm
    )


class Load:
    """A server's client. Raises BenchError for a wrong answer."""

    def __init__(self, url: str, connections: int, seconds: float) -> None:
        self.carrier = HttpCarrier(url)
        self.connections = connections
        self.seconds = seconds
        self.tally = Tally()

    async def ask(self, method: str, path: str, query: dict[str, str | int], body: bytes = b"") -> bytes:
        """The body of a good answer."""
        status, data = await self.carrier.request(method, path, query, body)
        if status != 200:
            raise BenchError(f"{path} is answered with {status}: {data[:200].decode(errors='replace')}")
        return data

    async def measure(self, once: Callable[[], Any], seconds: float | None = None) -> None:
        """See in_flight."""
        await in_flight(
            self.connections, self.seconds if seconds is None else seconds, once, self.tally, (LogError, BenchError)
        )

    # ---- add-chain ----

    async def add(self, pki: Path, most: int, key: LogKey | None) -> dict[str, Any]:
        """Submit up to `most` precertificates."""
        makes = Precertificates(Pki.load(pki))
        above = [base64.b64encode(one).decode() for one in makes.pki.above]
        precertificates = [next(makes) for _ in range(most)]
        bodies = [
            msgspec.json.encode({"chain": [base64.b64encode(one).decode(), *above]}) for one in precertificates
        ]
        numbers, answers, sampled = iter(range(most)), [b""] * most, 0

        async def once() -> bool | None:
            nonlocal sampled
            number = next(numbers, None)
            if number is None:
                return False
            answers[number] = await self.ask("POST", "ct/v1/add-pre-chain", {}, bodies[number])
            if key is not None and number % SAMPLE == 0:
                verify_sct(_sct(answers[number]), makes.entry(precertificates[number]), key)
                sampled += 1
            return None

        cpu = time.process_time()
        await self.measure(once)
        figures = {"cpu_seconds": time.process_time() - cpu, "verified_during": sampled}
        if key is None:
            return figures
        promised: dict[int, bytes] = {}
        for precertificate, answer in zip(precertificates, answers, strict=True):
            if answer:
                sct, entry = _sct(answer), makes.entry(precertificate)
                verify_sct(sct, entry, key)
                index = sct.leaf_index
                if index is None or index in promised:
                    raise BenchError(f"an SCT promises entry {index}, which another one promises too")
                promised[index] = merkle.leaf_hash(leaf_bytes(entry, sct.timestamp, sct.extensions))
        head, leaves = await self._all_entries(key)
        lost = [index for index, leaf in promised.items() if index >= len(leaves) or leaves[index] != leaf]
        if lost:
            raise BenchError(f"entry {lost[0]} was promised and is not in the log of {head.size}")
        return {**figures, "verified": len(promised), "tree_size": head.size}

    async def _all_entries(self, key: LogKey) -> tuple[TreeHead, list[bytes]]:
        head = await LogClient(self.carrier, key).get_sth()
        leaves: list[bytes] = []
        while len(leaves) < head.size:
            leaves += self._leaves(await self._entries_from(len(leaves), head.size))
        tree = Tree()
        tree.append(leaves)
        if tree.root() != head.root:
            raise BenchError(f"the entries of the log do not lead to its head of {head.size}")
        return head, leaves

    # ---- reading entries ----

    async def _entries_from(self, start: int, size: int) -> bytes:
        end = min(start + ANSWER_ENTRIES, size) - 1
        return await self.ask("GET", "ct/v1/get-entries", {"start": start, "end": end})

    def _leaves(self, body: bytes) -> list[bytes]:
        leaves = [base64.b64decode(one.leaf_input) for one in msgspec.json.decode(body, type=_Entries).entries]
        for one in leaves[:1]:
            decode_leaf(one)
        return [merkle.leaf_hash(one) for one in leaves]

    async def entries(self, key: LogKey) -> dict[str, Any]:
        """By get-entries."""
        return await self._read(key, ANSWER_ENTRIES, self._entries_from, lambda body, width: self._leaves(body))

    async def tiles(self, key: LogKey) -> dict[str, Any]:
        """By data tiles."""

        async def fetch(start: int, size: int) -> bytes:
            number = start // TILE_WIDTH
            return await self.ask("GET", tile_path(DATA, number, tile_width(size, DATA, number)), {})

        def leaves(body: bytes, width: int) -> list[bytes]:
            return [one.leaf_hash for one in split_entries(body, width)]

        return await self._read(key, TILE_WIDTH, fetch, leaves)

    async def _read(
        self,
        key: LogKey,
        step: int,
        fetch: Callable[[int, int], Coroutine[Any, Any, bytes]],
        leaves: Callable[[bytes, int], list[bytes]],
    ) -> dict[str, Any]:
        """From the first entry on, in segments of which only the fetching is timed; at the end of the log anew."""
        client = LogClient(self.carrier, key)
        head = await client.get_sth()
        per_segment = SEGMENT_REQUESTS * ANSWER_ENTRIES
        tree, entries, received, cpu = Tree(), 0, 0, 0.0
        while self.tally.seconds < self.seconds:
            if tree.size == head.size:
                tree = Tree()
            end = min(tree.size + per_segment, head.size)
            starts, bodies = iter(range(tree.size, end, step)), dict[int, bytes]()

            async def once(starts: Any = starts, bodies: dict[int, bytes] = bodies) -> bool | None:
                start = next(starts, None)
                if start is None:
                    return False
                bodies[start] = await fetch(start, head.size)
                return None

            before = time.process_time()
            await self.measure(once, seconds=60.0)
            cpu += time.process_time() - before
            if self.tally.failed:
                break
            for start in sorted(bodies):
                found = leaves(bodies[start], min(step, head.size - start))
                tree.append(found)
                entries += len(found)
                received += len(bodies[start])
            if tree.size != end:
                raise BenchError(f"entries to {end} were asked for, and {tree.size} came")
        if not self.tally.failed:
            await self._check_prefix(client, tree, head)
        return {
            "entries": entries,
            "entries_per_second": entries / max(self.tally.seconds, 1e-9),
            "mib_per_second": received / 2**20 / max(self.tally.seconds, 1e-9),
            "checked_to": tree.size,
            "cpu_seconds": cpu,
        }

    async def _check_prefix(self, client: LogClient, tree: Tree, head: TreeHead) -> None:
        """What came is the beginning of what the log has signed: by its own consistency proof."""
        proof = await client.get_consistency(tree.size, head.size)
        merkle.verify_consistency(tree.size, head.size, tree.root(), head.root, proof)

    # ---- proofs ----

    async def proofs(self, key: LogKey) -> dict[str, Any]:
        """By get-proof-by-hash."""
        head = await LogClient(self.carrier, key).get_sth()
        draw = random.Random(head.size)
        count = -(-head.size // TILE_WIDTH)
        known: list[tuple[int, bytes]] = []
        for number in draw.sample(range(count), min(count, PROOF_TILES)):
            width = tile_width(head.size, 0, number)
            hashes = split_hashes(await self.ask("GET", tile_path(0, number, width), {}), width)
            known += [(number * TILE_WIDTH + place, one) for place, one in enumerate(hashes)]
        answers: list[tuple[int, bytes, bytes]] = []

        async def once() -> None:
            index, leaf = draw.choice(known)
            query: dict[str, str | int] = {"hash": base64.b64encode(leaf).decode(), "tree_size": head.size}
            answers.append((index, leaf, await self.ask("GET", "ct/v1/get-proof-by-hash", query)))

        cpu = time.process_time()
        await self.measure(once)
        figures = {"cpu_seconds": time.process_time() - cpu, "verified": len(answers), "tree_size": head.size}
        for index, leaf, body in answers:
            answer = msgspec.json.decode(body, type=_Proof)
            proof = [base64.b64decode(one) for one in answer.audit_path]
            if answer.leaf_index != index:
                raise BenchError(f"the log says that entry {index} is at {answer.leaf_index}")
            merkle.verify_inclusion(index, head.size, leaf, proof, head.root)
        return figures

    # ---- anything ----

    async def get(self, path: str) -> dict[str, Any]:
        """The same object each time."""
        bodies: set[bytes] = set()

        async def once() -> None:
            bodies.add(await self.ask("GET", path, {}))

        await self.measure(once)
        if len(bodies) != 1 and not self.tally.failed:
            raise BenchError(f"{path} was {len(bodies)} different things")
        return {"bytes": max(map(len, bodies), default=0)}

    async def ocsp(self, chain: Path) -> dict[str, Any]:
        """About certificates of an issuer, which comes first in the file."""
        issuer, *certificates = x509.load_pem_x509_certificates(chain.read_bytes())
        requests = [
            ocsp.OCSPRequestBuilder().add_certificate(one, issuer, SHA256()).build().public_bytes(Encoding.DER)
            for one in certificates
        ]
        turn, answers = itertools.cycle(enumerate(requests)), list[tuple[int, bytes]]()

        async def once() -> None:
            number, request = next(turn)
            paths = "ocsp/" + base64.b64encode(request).decode().replace("/", "%2F").replace("+", "%2B")
            answers.append((number, await self.ask("GET", paths, {})))

        await self.measure(once)
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for number, body in answers:
            answer = ocsp.load_der_ocsp_response(body)
            if answer.serial_number != certificates[number].serial_number:
                raise BenchError("the OCSP answer is about another certificate")
            key.verify(answer.signature, answer.tbs_response_bytes, ECDSA)
        return {"verified": len(answers)}


@click.group()
@click.option("--url", required=True)
@click.option("--connections", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.pass_context
def main(context: click.Context, url: str, connections: int, seconds: float) -> None:
    """See the module's text."""
    context.obj = Load(url, connections, seconds)


def _run(load: Load, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
    output = Output(json_lines=True)

    async def run() -> None:
        try:
            more = await work
        finally:
            await load.carrier.close()
        output.event("result", **load.tally.figures(), **more)

    raise SystemExit(run_async(output, run()))


_key = click.option("--key", type=click.Path(path_type=Path), required=True, help="The log's.")


@main.command("add")
@click.option("--pki", type=click.Path(path_type=Path), required=True)
@click.option("--most", type=click.IntRange(1), default=50_000, show_default=True)
@click.option("--key", type=click.Path(path_type=Path), default=None)
@click.pass_obj
def add_command(load: Load, pki: Path, most: int, key: Path | None) -> None:
    """Submit."""
    _run(load, load.add(pki, most, load_log_key(str(key)) if key is not None else None))


@main.command("entries")
@_key
@click.pass_obj
def entries_command(load: Load, key: Path) -> None:
    """Read by get-entries."""
    _run(load, load.entries(load_log_key(str(key))))


@main.command("tiles")
@_key
@click.pass_obj
def tiles_command(load: Load, key: Path) -> None:
    """Read data tiles."""
    _run(load, load.tiles(load_log_key(str(key))))


@main.command("proofs")
@_key
@click.pass_obj
def proofs_command(load: Load, key: Path) -> None:
    """Ask for inclusion proofs."""
    _run(load, load.proofs(load_log_key(str(key))))


@main.command("get")
@click.option("--path", required=True)
@click.pass_obj
def get_command(load: Load, path: str) -> None:
    """Ask for the same thing."""
    _run(load, load.get(path))


@main.command("ocsp")
@click.option("--pem", type=click.Path(path_type=Path), required=True, help="Issuer, then its certificates.")
@click.pass_obj
def ocsp_command(load: Load, pem: Path) -> None:
    """Ask an OCSP responder."""
    _run(load, load.ocsp(pem))


if __name__ == "__main__":
    main()

"""Strangers against a log that is served as it is in life, by `stoq ct serve`: Google's ctclient, scanlog, sctcheck and
ct_hammer; transparency-dev's witness, and its Merkle library on our proofs. `make peers` builds them.

sctcheck speaks https only, and looks for an entry without the extensions of its SCT: it cannot find one in any log that
follows static-ct-api, whose SCTs name their index there. It is told to check signatures; inclusion is ctclient's, which
takes the extensions.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import socket
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog import merkle
from control.ctlog.client import HttpCarrier, LogClient
from control.ctlog.log import Log
from control.ctlog.note import (
    COSIGNATURE_V1,
    RFC6962,
    Note,
    TreeHead,
    Witness,
    decode_note,
    note_key_id,
    open_checkpoint,
    parse_checkpoint,
)
from control.ctlog.precert import embedded_scts, sct_extension
from control.ctlog.site import LogConfig, create, load_log_key
from control.ctlog.structs import LogKey, key_id
from tests.ctlog.world import Ca, run_with_deadline, submission, world
from tests.peers_ct import install
from tests.peers_ct.processes import Serving, free_port, run, running, serving, stoq

ORIGIN = "localhost/2026"
HAMMER_OPERATIONS = 200
PERIOD = "0.005"
PATIENCE = 20.0


@pytest.fixture(scope="module")
def peers() -> Path:
    """Where the programs are, built if they were not."""
    return install.ensure()


@dataclass
class Scene:
    """A log that is served, an authority, and a certificate that it issued with an SCT of this log. `other`: another
    authority whose root the log takes, and whose alone a second log takes."""

    directory: Path
    peers: Path
    served: Serving
    other: Ca

    @property
    def url(self) -> str:
        return str(self.served.listening["logs"][0]["url"])

    @property
    def log_key(self) -> Path:
        return self.directory / "log/log.pem"

    @property
    def key(self) -> LogKey:
        return load_log_key(str(self.log_key))

    def client(self) -> LogClient:
        return LogClient(HttpCarrier(self.url), self.key, self.url)

    def ctclient(self, *arguments: str, key: Path | None = None, code: int = 0) -> str:
        """What ctclient says to a command, its first argument; it verifies by this log's key, or by another."""
        command, *rest = arguments
        done = run(self.peers / "ctclient", command, "--log_uri", self.url, "--pub_key", key or self.log_key, *rest)
        assert done.returncode == code, done.stdout + done.stderr
        if code == 0:
            assert "rror" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def chain(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self.directory / "chain.pem").read_bytes())


def _make_log(directory: Path, origin: str, *roots: Path, more: Sequence[str] = ()) -> str:
    """A log; the verifier key that witnesses know it by."""
    all_roots = directory.with_suffix(".roots")
    all_roots.write_bytes(b"".join(root.read_bytes() for root in roots))
    [made] = stoq("ct", "init", directory, "--origin", origin, "--roots", all_roots, "--period", PERIOD, *more)
    return str(made["vkey"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, peers: Path) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("strangers")
    ca, log = directory / "ca", directory / "log"
    stoq("ca", "init", "-d", ca, "--name", "Strangers")
    other = Ca()
    other_root = _write_pem(directory / "other.pem", other.root.certificate)
    _make_log(log, ORIGIN, ca / "root.pem", peers / "testdata" / install.ROOT_CERTIFICATE, other_root)
    asyncio.run(create(directory / "odd", LogConfig("localhost/odd"), [other.root.certificate], time.time))
    with serving("ct", "serve", log, directory / "odd", "--http", "[::1]:0") as served:
        here = Scene(directory, peers, served, other)
        stoq(
            "ca", "issue", "-d", ca, "--name", "localhost", "--address", "::1", "--log", f"{here.url}={here.log_key}",
            "--out", directory / "leaf",
        )  # fmt: skip
        (directory / "chain.pem").write_bytes((directory / "leaf.pem").read_bytes() + (ca / "root.pem").read_bytes())
        yield here


def _write_pem(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return path


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def _certificates(text: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text[text.index("-----BEGIN") :].encode())


# ---- Google's clients ----


def test_ctclient_reads(scene: Scene, tmp_path: Path) -> None:
    """The tree head by its signature, which another log's key does not verify; the roots; the entry that issuance made,
    with its chain."""
    head = asyncio.run(_head(scene))
    said = scene.ctclient("get-sth")
    assert f"(size={head.size}) at {scene.url}, hash {head.root.hex()}" in said and head.signature.hex() in said
    other = tmp_path / "other.pem"
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    other.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert "signature" in scene.ctclient("get-sth", key=other, code=1)

    roots = _certificates(scene.ctclient("get-roots", "--text=false"))
    assert roots == x509.load_pem_x509_certificates((scene.directory / "log.roots").read_bytes())

    leaf, issuer, root = scene.chain()
    said = scene.ctclient("get-entries", "--first", "0", "--chain", "--text=false")
    assert said.startswith("Index=0 ") and "pre-certificate from issuer" in said
    precertificate, *above = _certificates(said)
    assert precertificate.serial_number == leaf.serial_number and above == [issuer, root]
    assert "1.2.840.113556.1.8000.2554" in scene.ctclient("get-entries", "--first", "0")  # Parsed, the roles, too.
    scene.ctclient("get-entries", "--first", "1000000", code=1)


async def _head(scene: Scene) -> TreeHead:
    async with scene.client() as client:
        return await client.get_sth()


def test_ctclient_uploads_and_proves(scene: Scene, tmp_path: Path) -> None:
    """A certificate and a precertificate go in; the SCTs are verified by the log's key, and both are shown to be in the
    tree; a growing tree is shown to be the same. What was not promised is not found."""
    before = asyncio.run(_head(scene))
    new = [x509.load_der_x509_certificate(one) for one in scene.other.certificate("uploaded")]
    new_chain = _write_pem(tmp_path / "new.pem", *new, scene.other.root.certificate)
    said = scene.ctclient("upload", "--cert_chain", str(new_chain), "--log_mmd", "0s")
    assert _field(said, "LogID") == key_id(scene.key).hex()
    # It made the leaf's hash itself, from the certificate and the SCT, and went for a proof with it.
    assert f"Verified that hash {_field(said, 'LeafHash')} + proof = root hash" in said

    # The entry that the embedded SCT promises: the precertificate as it was submitted, the SCT's time and extensions.
    leaf, issuer, root = scene.chain()
    [sct] = embedded_scts(leaf)
    precertificate = _certificates(scene.ctclient("get-entries", "--first", "0", "--text=false"))[0]
    chain = _write_pem(tmp_path / "pre.pem", precertificate, issuer, root)
    prove = ("get-inclusion-proof", "--cert_chain", str(chain))
    said = scene.ctclient(*prove, "--timestamp", str(sct.timestamp), "--extensions", sct.extensions.hex())
    assert "Inclusion proof for index 0" in said and "Verified that hash" in said
    scene.ctclient(*prove, "--timestamp", str(sct.timestamp + 1), "--extensions", sct.extensions.hex(), code=1)
    again = scene.ctclient("upload", "--cert_chain", str(chain))
    assert f"timestamp: {sct.timestamp} " in again and _field(again, "Extensions") == sct.extensions.hex()

    after = asyncio.run(_head(scene))
    assert after.size == before.size + 1
    sizes = ("--prev_size", str(before.size), "--size", str(after.size))
    roots = ("--prev_hash", before.root.hex(), "--tree_hash", after.root.hex())
    assert "Verified that hash" in scene.ctclient("get-consistency-proof", *sizes, *roots)
    wrong = ("--prev_hash", after.root.hex(), "--tree_hash", before.root.hex())
    scene.ctclient("get-consistency-proof", *sizes, *wrong, code=1)


def test_scanlog(scene: Scene) -> None:
    """The whole log is read, each entry once, and there is nothing in a certificate that its parser finds wrong."""
    scene.ctclient("upload", "--cert_chain", str(scene.directory / "chain.pem"))
    size = asyncio.run(_head(scene)).size
    scanlog = (scene.peers / "scanlog", "--log_uri", scene.url, "--batch_size", "3")
    done = run(*scanlog)
    assert done.returncode == 0, done.stderr
    seen = re.findall(r"Process (cert|precert) at index (\d+): CN: '([^']+)'", done.stderr)
    assert sorted(int(index) for _, index, _ in seen) == list(range(size)) and "unparsed" not in done.stderr
    assert ("precert", "0", "localhost") in seen and any(kind == "cert" for kind, _, _ in seen)
    [line] = run(*scanlog, "--match_issuer_regex", "Strangers intermediate", "--precerts_only").stderr.splitlines()
    assert "precert at index 0" in line
    parse_errors = ("--parse_errors", "--non_fatal_errors")
    assert run(*scanlog, *parse_errors).stderr == ""

    # It would say so: the number of 2.25.UUID is more than its parser takes.
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"2.25.{(1 << 128) - 1}"), b"\x05\x00")
    der = scene.other.issuer.sign(scene.other.builder("odd").add_extension(odd, critical=False)).public_bytes(Encoding.DER)
    url = scene.served.listening["logs"][1]["url"]

    async def submit() -> None:
        async with LogClient(HttpCarrier(url), None, url) as client:
            await client.add_chain([der, scene.other.issuer.certificate.public_bytes(Encoding.DER)])

    asyncio.run(submit())
    [line] = run(scene.peers / "scanlog", "--log_uri", url, *parse_errors).stderr.splitlines()
    assert "at index 0" in line and "base 128 integer too large" in line


def test_sctcheck(scene: Scene, tmp_path: Path) -> None:
    """The embedded SCT by the log list that we serve: of a certificate in a file, and of the one that a TLS server has;
    not one of a log that is not in the list, nor one that stands in another certificate than it was made for."""
    leaf, ca = scene.directory / "leaf", scene.directory / "ca"
    trust = {"SSL_CERT_FILE": str(ca / "root.pem")}
    _make_log(tmp_path / "log", "localhost/tls", ca / "root.pem")
    log_list = tmp_path / "list.json"
    with urllib.request.urlopen(f"http://[::1]:{scene.served.port}/log-list.json", timeout=PATIENCE) as answer:
        log_list.write_bytes(answer.read())

    def sctcheck(what: str | Path, logs: str | Path) -> tuple[int, str]:
        options = ("--logtostderr", "--check_inclusion=false", "--log_list", logs)
        done = run(scene.peers / "sctcheck", *options, what, env=trust)
        return done.returncode, done.stdout + done.stderr

    tls = ("--tls-cert", f"{leaf}.pem", "--tls-key", f"{leaf}.key")
    with serving("ct", "serve", tmp_path / "log", "--http", "[::1]:0", *tls) as served:
        base = f"https://[::1]:{served.port}"
        log = f"{served.listening['logs'][0]['url']}={tmp_path / 'log/log.pem'}"
        stoq("ca", "issue", "-d", ca, "--name", "web", "--log", log, "--out", tmp_path / "web", env=trust)
        code, said = sctcheck(tmp_path / "web.pem", f"{base}/log-list.json")
        assert code == 0 and "Found 1 embedded SCTs" in said and "of which 1 were validated" in said, said
        code, said = sctcheck(tmp_path / "web.pem", log_list)
        assert code == 1 and "Unknown logID" in said and "of which 0 were validated" in said, said
        code, said = sctcheck(base, log_list)  # What the server shows has an SCT of the scene's log.
        assert code == 0 and "of which 1 were validated" in said, said

    other = Ca()
    borrowed = other.issuer.sign(
        other.builder("borrowed").add_extension(sct_extension(embedded_scts(scene.chain()[0])), critical=False)
    )
    chain = _write_pem(tmp_path / "borrowed.pem", borrowed, other.issuer.certificate)
    code, said = sctcheck(chain, log_list)
    assert code == 1 and "Failed to verify embedded SCT[0] signature" in said, said


def test_ct_hammer(scene: Scene) -> None:
    """A load of everything at random, a tenth of it wrong on purpose and so many submissions twice: each proof it asked
    for verified, each wrong request refused."""
    spki = scene.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    escaped = "".join(f"\\x{byte:02x}" for byte in spki)
    config = scene.directory / "hammer.cfg"
    prefix = scene.url.rpartition("/")[2]
    config.write_text(f'config {{ log_id: 1 prefix: "{prefix}" public_key: {{ der: "{escaped}" }} }}\n')
    before = asyncio.run(_head(scene)).size
    done = run(
        scene.peers / "ct_hammer", "--logtostderr", "--banner=false", "--log_config", config,
        "--ct_http_servers", f"[::1]:{scene.served.port}", "--testdata_dir", scene.peers / "testdata",
        f"--operations={HAMMER_OPERATIONS}", "--mmd=10ms", "--max_parallel_chains=8", "--oversized_get_entries",
        "--add_chain=12", "--add_pre_chain=12", "--get_sth=10", "--get_sth_consistency=10", "--get_proof_by_hash=10",
        "--get_entries=10", "-v=2",
    )  # fmt: skip
    assert done.returncode == 0 and "no errors; done" in done.stderr, done.stderr[-4000:]
    assert f"completed {HAMMER_OPERATIONS} operations" in done.stderr
    assert "Got STH consistency proof" in done.stderr and "Got entries" in done.stderr
    uploaded = len(re.findall("Uploaded NewCert (?:pre-)?cert", done.stderr))
    assert uploaded > HAMMER_OPERATIONS / 4 and asyncio.run(_head(scene)).size == before + uploaded


# ---- transparency-dev's Merkle library ----


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tampered(chance: random.Random, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same with something wrong in it."""

    def flipped(data: bytes) -> bytes:
        at, bit = divmod(chance.randrange(len(data) * 8), 8)
        return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]

    proof: list[bytes] = question["proof"]
    for name in ("root", "leaf", "first"):
        if name in question:
            yield {**question, name: flipped(question[name])}
    yield {**question, "proof": [*proof, merkle.EMPTY_ROOT]}
    if proof:
        at = chance.randrange(len(proof))
        yield {**question, "proof": [*proof[:at], flipped(proof[at]), *proof[at + 1 :]]}
        yield {**question, "proof": proof[:-1]}
    if len(proof) > 1:
        yield {**question, "proof": [*proof[1:], proof[0]]}


async def _questions(log: Log, chance: random.Random) -> list[dict[str, Any]]:
    whole = log.head.size
    sizes = sorted({*range(1, 67), *range(250, 262), whole, *(chance.randint(1, whole) for _ in range(40))})
    leaves = [merkle.leaf_hash(entry.leaf) for entry in await log.entries(0, whole - 1)]
    while len(leaves) < whole:
        leaves += [merkle.leaf_hash(entry.leaf) for entry in await log.entries(len(leaves), whole - 1)]
    found: list[dict[str, Any]] = []
    for size in sizes:
        root = await log.root(size)
        for index in {0, size - 1, *(chance.randrange(size) for _ in range(3))}:
            proof = await log.inclusion(index, size)
            found.append(
                {"kind": "inclusion", "index": index, "size": size, "leaf": leaves[index], "root": root, "proof": proof}
            )
        for old in {1, size, *(chance.randint(1, size) for _ in range(3))}:
            proof = await log.consistency(old, size)
            first = await log.root(old)
            found.append({"kind": "consistency", "old": old, "size": size, "first": first, "root": root, "proof": proof})
    return found


def test_merkle_library(peers: Path, tmp_path: Path) -> None:
    """Proofs of a log in trees of many sizes, also across full tiles: taken by a library that is not ours. Each of them
    tampered with: refused."""
    seed = random.randrange(1 << 32)
    chance, questions, wrong = random.Random(seed), list[dict[str, Any]](), list[dict[str, Any]]()

    async def main() -> None:
        async with world(tmp_path) as here, here.log() as log:
            await asyncio.gather(*(log.add(submission(number)) for number in range(1030)))
            questions.extend(await _questions(log, chance))

    run_with_deadline(main())
    for question in questions:
        wrong += _tampered(chance, question)
    lines = "".join(json.dumps(_encoded(one)) + "\n" for one in questions + wrong)
    done = run(peers / "merkleverify", stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(questions) > 800 and len(answers) == len(questions) + len(wrong)
    for question, answer in zip(questions, answers, strict=False):
        assert answer == "ok", (seed, question, answer)
    for question, answer in zip(wrong, answers[len(questions) :], strict=True):
        assert answer.startswith("refused"), (seed, question)


def _encoded(question: dict[str, Any]) -> dict[str, Any]:
    hashes = {name: _b64(value) for name, value in question.items() if isinstance(value, bytes)}
    return {**question, **hashes, "proof": [_b64(one) for one in question["proof"]]}


# ---- transparency-dev's witness ----


class OmniWitness:
    """An omniwitness that knows one log, by this verifier key. It runs in the stack's block."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._key = ed25519.Ed25519PrivateKey.generate()
        self.witness = Witness(name, self._key.public_key())
        self.port = free_port()

    @property
    def options(self) -> tuple[str, ...]:
        """As `stoq ct init` is told of it."""
        return ("--witness", self.witness.vkey, f"http://[::1]:{self.port}")

    def start(self, stack: ExitStack, program: Path, log_vkey: str) -> None:
        secret = base64.b64encode(bytes((COSIGNATURE_V1,)) + self._key.private_bytes_raw()).decode()
        key_file = self.directory / f"{self.name}.key"
        key_file.write_text(f"PRIVATE+KEY+{self.name}+{self.witness.key_id.hex()}+{secret}")
        logs = self.directory / f"{self.name}.yaml"
        logs.write_text(f"Logs:\n- Origin: {ORIGIN}\n  URL: http://[::1]/\n  PublicKey: {log_vkey}\n")
        argv: list[str | Path] = [
            program, "--listen", f"[::1]:{self.port}", "--metrics_listen=", "--private_key_path", key_file,
            "--additional_logs", logs, "--logtostderr",
        ]  # fmt: skip
        stack.enter_context(running(argv, self.directory / f"{self.name}.log"))


def _type5_vkey(key: LogKey) -> str:
    """The verifier key by which RFC 6962's signature on a checkpoint is known."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"{ORIGIN}+{note_key_id(ORIGIN, RFC6962, key_id(key)).hex()}+{_b64(bytes((RFC6962,)) + spki)}"


def _cosigned_by(note: Note, witnesses: Sequence[OmniWitness]) -> set[str]:
    """Names of those whose cosignature stands on the checkpoint, each verified, and made now."""
    found = set()
    for one in witnesses:
        for line in note.signatures:
            if line.name == one.name:
                assert abs(one.witness.verify(line, note.text) - time.time()) < PATIENCE
                found.add(one.name)
    return found


def test_witnesses(peers: Path, tmp_path: Path) -> None:
    """Witnesses cosign the log as it grows, the one that knows it by its RFC 6962 key and the one that knows it by its
    Ed25519 key; the one that was given another log's key does not."""
    ca, log = Ca(), tmp_path / "log"
    root = _write_pem(tmp_path / "root.pem", ca.root.certificate)
    witnesses = [OmniWitness(name, tmp_path) for name in ("rfc6962.example", "ed25519.example", "misled.example")]
    ed25519_vkey = _make_log(log, ORIGIN, root, more=[option for one in witnesses for option in one.options])
    key = load_log_key(str(log / "log.pem"))
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    with ExitStack() as stack:
        for witness, vkey in zip(witnesses, (_type5_vkey(key), ed25519_vkey, _type5_vkey(stranger)), strict=True):
            witness.start(stack, peers / "omniwitness", vkey)
        for witness in witnesses:
            _wait_for_port(witness.port)
        served = stack.enter_context(serving("ct", "serve", log, "--http", "[::1]:0", quiet=False))
        url = str(served.listening["logs"][0]["url"])

        async def main() -> None:
            async with LogClient(HttpCarrier(url), key, url) as client:
                size = 0
                for count in (1, 2, 5):
                    for number in range(size, size + count):
                        await client.add_chain(ca.certificate(f"host-{number}"))
                    size += count
                    while True:
                        data = await client.fetch("checkpoint")
                        note = decode_note(data)
                        assert open_checkpoint(data, ORIGIN, key).size == size == parse_checkpoint(note.text)[1]
                        if cosigned := _cosigned_by(note, witnesses):
                            assert cosigned == {"rfc6962.example", "ed25519.example"}
                            break
                        await asyncio.sleep(0.02)

        run_with_deadline(main(), PATIENCE)
    said = "\n".join(served.complaints)
    # C2SP wants 403 here; this witness has a 500 for any checkpoint that it cannot open.
    assert served.complaints and all("witness misled.example: 500" in line for line in served.complaints), said


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("::1", port), PATIENCE).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the witness does not listen"
            time.sleep(0.01)

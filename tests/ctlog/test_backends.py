"""Backends put together as a log's directory names them: entries and heads on disk or in S3, heads anchored on a chain;
opened by `OpenLog`, which is what `stoq ct serve` and `stoq ca serve` use."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from control.cli import cli
from control.ctlog import merkle
from control.ctlog.anchor.admin import Admin
from control.ctlog.anchor.chain import Chain
from control.ctlog.anchor.interface import HeadAnchor
from control.ctlog.errors import LogStopped
from control.ctlog.log import Log
from control.ctlog.opening import OpenLog
from control.ctlog.site import AnchorPlace, LocalPlace, LogConfig, S3Place, Site, create
from tests.ctlog import seaweed
from tests.ctlog.anchor import anvil
from tests.ctlog.anchor.world import OWNER, PUBLISHER, deploy, mined
from tests.ctlog.world import Ca


@pytest.fixture(scope="module")
def server() -> Iterator[seaweed.Server]:
    """A real S3 service."""
    with seaweed.running() as running:
        yield running


@pytest.fixture(scope="module")
def chain() -> Iterator[anvil.Anvil]:
    """A real chain."""
    with anvil.running() as node:
        yield node


async def _anchored(directory: Path, config: LogConfig, ca: Ca, node: anvil.Anvil) -> Site:
    """A log whose heads go into a contract of their own."""
    deployed = await deploy(node)
    assert deployed.contract is not None
    place = AnchorPlace(node.url, anvil.CHAIN_ID, deployed.contract, every_seconds=0.1, confirmations=3)
    place = msgspec.structs.replace(place, poll_seconds=0.05)
    config = LogConfig(config.origin, storage=config.storage, lock=config.lock, period=0.01, anchor=place)
    site = await create(directory, config, [ca.root.certificate], time.time)
    (directory / place.account).write_text(PUBLISHER.key.hex() + "\n")
    (directory / place.account).chmod(0o600)
    await asyncio.to_thread(node.ask, "evm_setAutomine", True)
    contract = Chain(replace(deployed))
    await Admin(contract, OWNER, poll_seconds=0.01).set_publisher(site.signer().log_id, PUBLISHER.address)
    await contract.close()
    await asyncio.to_thread(node.ask, "evm_setAutomine", False)
    return site


async def _final(anchor: HeadAnchor | None, node: anvil.Anvil, size: int) -> None:
    """Mine until a head of this size is final."""
    assert anchor is not None
    end = time.monotonic() + 20
    while (final := anchor.status().final) is None or final.size < size:
        assert time.monotonic() < end, f"still {anchor.status()}"
        await mined(node, 1)
        await asyncio.sleep(0.02)


async def _add(log: Log, chains: Sequence[list[bytes]]) -> None:
    await asyncio.gather(*(log.add_chain(chain, precertificate=True) for chain in chains))


async def _grow(log: Log, ca: Ca, count: int) -> None:
    await _add(log, [ca.precertificate(f"n{number}") for number in range(count)])


@pytest.mark.parametrize("where", ["entries and heads in S3", "entries in S3, heads on disk"])
def test_a_log_in_s3_goes_on_where_it_was(
    tmp_path: Path, server: seaweed.Server, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    ca = Ca()
    place = S3Place(server.bucket, endpoint=server.endpoint, prefix=tmp_path.name.replace("_", "-").lower()[:40] + "x")
    lock = place if "heads in S3" in where else LocalPlace()
    chains = [ca.precertificate(f"n{number}") for number in range(310)]

    async def main() -> None:
        config = LogConfig("log.example/s3", storage=place, lock=lock, period=0.01)
        site = await create(tmp_path / "log", config, [ca.root.certificate], time.time)
        assert (tmp_path / "log" / "s3.key").stat().st_mode & 0o777 == 0o600
        async with OpenLog(site, time.time) as log:
            await _add(log, chains[:300])
            old = log.head
        shutil.rmtree(tmp_path / "log" / "index.db", ignore_errors=True)
        async with OpenLog(Site.read(tmp_path / "log"), time.time) as log:
            assert log.head == old
            await _add(log, chains[290:])  # Ten of them are known.
            assert log.head.size == 310
            proof = await log.consistency(old.size)
            merkle.verify_consistency(old.size, 310, old.root, log.head.root, proof)
            for index in (0, 255, 256, 309):
                entry = await log.entry(index)
                merkle.verify_inclusion(index, 310, entry.leaf_hash, await log.inclusion(index), log.head.root)

    asyncio.run(main())


@pytest.mark.parametrize("entries", ["on disk", "in S3"])
def test_heads_on_a_chain_tell_an_old_backup(
    tmp_path: Path, server: seaweed.Server, chain: anvil.Anvil, monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    ca, directory, backup = Ca(), tmp_path / "log", tmp_path / "backup"
    place = S3Place(server.bucket, endpoint=server.endpoint, prefix=f"anchored-{time.monotonic_ns()}")

    async def main() -> None:
        config = LogConfig("log.example/anchored", storage=place if entries == "in S3" else LocalPlace())
        site = await _anchored(directory, config, ca, chain)
        async with (opened := OpenLog(site, time.time)) as log:
            await _grow(log, ca, 5)
            await _final(opened.anchor, chain, 5)
        shutil.copytree(directory, backup)
        async with (opened := OpenLog(site, time.time)) as log:  # It goes on with the same contract.
            assert log.head.size == 5
            await _grow(log, ca, 5)
            await _final(opened.anchor, chain, 10)
        # Storage, lock store and the anchor's own state are all set back: only the chain remembers.
        shutil.rmtree(directory)
        shutil.copytree(backup, directory)
        with pytest.raises(LogStopped, match=r"rolled back|a head of 10 is final|does not know"):
            async with OpenLog(Site.read(directory), time.time):
                pass

    asyncio.run(main())


def _stoq(*arguments: object) -> dict[str, Any]:
    """The last event of a command that succeeds. In this process: the chain's libraries take a second to import."""
    done = CliRunner().invoke(cli, ["--json", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_contract_by_commands(tmp_path: Path, chain: anvil.Anvil) -> None:
    """Deployed, used by a log, proved and verified, as an operator and a third party do it; a wrong root is refused."""
    owner, account = tmp_path / "owner.key", tmp_path / "account.key"
    for path, key in ((owner, OWNER.key), (account, PUBLISHER.key)):
        path.write_text(key.hex())
        path.chmod(0o600)
    ca = Ca()
    (tmp_path / "roots.pem").write_bytes(ca.root.certificate.public_bytes(Encoding.PEM))
    chain.ask("evm_setAutomine", True)
    where = ["--rpc", chain.url, "--chain", anvil.CHAIN_ID]
    contract = _stoq("ct", "anchor", "deploy", *where, "--account", owner)["contract"]
    log = tmp_path / "log"
    made = _stoq(
        "ct", "init", log, "--origin", "log.example/c", "--roots", tmp_path / "roots.pem", "--anchor-rpc", chain.url,
        "--anchor-chain", anvil.CHAIN_ID, "--anchor-contract", contract, "--anchor-every", 1,
    )  # fmt: skip
    shutil.copy(account, log / "account.key")
    where += ["--contract", contract, "--log-key", made["public_key"]]
    _stoq("ct", "anchor", "publisher", *where, "--account", owner, PUBLISHER.address)
    chain.ask("evm_setAutomine", False)

    async def main() -> bytes:
        site = Site.read(log)
        assert site.config.anchor is not None
        anchored = msgspec.structs.replace(site.config.anchor, poll_seconds=0.05)
        site = replace(site, config=msgspec.structs.replace(site.config, anchor=anchored))
        async with (opened := OpenLog(site, time.time)) as running:
            await _grow(running, ca, 7)
            await _final(opened.anchor, chain, 7)
            return running.head.root

    root = asyncio.run(main())
    shown = _stoq("ct", "anchor", "show", *where)
    assert (shown["size"], shown["root"]) == (7, root.hex())
    proof = tmp_path / "proof.json"
    _stoq("ct", "anchor", "prove", *where, "-o", proof)
    assert _stoq("ct", "anchor", "verify", *where, proof, "--size", 7, "--root", root.hex())["size"] == 7
    other = ["ct", "anchor", "verify", *map(str, where), str(proof), "--size", "7", "--root", "00" * 32]
    done = CliRunner().invoke(cli, other)
    assert done.exit_code == 1 and "entries and root" in done.output

"""Handshakes that are refused, between two nodes over QUIC: every kind of bad certificate, shown by the client and by the
server, each with its own reason, which both sides see."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from control.handshake import Credentials, HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_STOQ
from control.trustchain.actor import Actor
from control.trustchain.bundle import BundleError, PinRecord, RequiredRoles, TrustBundle
from control.trustchain.certificates import Leaf, leaf_builder, sign_final
from control.trustchain.directory import NOWHERE
from control.trustchain.errors import CaError
from control.trustchain.keys import spki
from control.trustchain.pins import format_pin
from control.trustchain.profiles import CLOCK_SKEW_S, PROFILES, Names, ProfileName
from control.trustchain.roles import Role
from control.trustchain.server import Served
from control.trustchain.trust import TRUST, TrustConfig
from control.trustchain.verifier import TrustVerifier
from dataplane import ConnectionClosed, Datapath, HandshakeFailed
from tests.trustchain.world import ANY, Node, World, ended, new_key, small, until

WRONG_PINS = PinRecord((format_pin(bytes(32)), format_pin(bytes(31) + b"1")))


@dataclass(frozen=True)
class Bad:
    """Credentials that are refused, the alert, and words of the reason."""

    credentials: Credentials
    alert: str
    words: tuple[str, ...]


def _unlogged(world: World, served: Served) -> Credentials:
    """By the authority's own key, past its logs."""
    key, issuer, now = new_key(), served.authority.issuer, int(world.clock())
    leaf = Leaf(
        PROFILES[ProfileName.NODE], "bad", "", key.public_key(), Names.parse(["bad"], ["::1"]), frozenset({Role.NODE}),
        x509.random_serial_number(), now - 60, now + 3600,
    )  # fmt: skip
    return Credentials(sign_final(leaf_builder(leaf, issuer, NOWHERE), issuer, (), None), issuer.chain[:-1], key)


@asynccontextmanager
async def _shows(bundle: TrustBundle, world: World) -> AsyncIterator[tuple[Datapath, TlsFactory, list[HandshakeFailed]]]:
    """A peer that shows whatever it is given, and judges by a bundle itself."""
    heard: list[HandshakeFailed] = []
    verifier = TrustVerifier(msgspec.structs.replace(bundle, pins={}, required_roles=RequiredRoles()))
    factory = TlsFactory(HandshakeConfig(alpns=(ALPN_STOQ,), verifier=verifier), world.clock)
    config = small(server=True, bind=ANY)
    async with Datapath(config, factory, on_failure=lambda peer, error: heard.append(error)) as datapath:
        yield datapath, factory, heard


async def _refused_both_ways(node: Node, bad: Bad, world: World) -> None:
    async with _shows(node.membership.verifier.bundle, world) as (datapath, factory, heard):
        factory.replace(HandshakeConfig(bad.credentials, alpns=(ALPN_STOQ,), verifier=factory.config.verifier))
        # As client: the server's verdict comes when the client thinks itself connected.
        before = len(node.refused)
        with pytest.raises(HandshakeFailed) as client:
            raise await ended(await datapath.connect(node.datapath.local_address, server_name="::1"))
        await until(lambda: len(node.refused) > before, "the node says so, too")
        _same(client.value, node.refused[-1], bad)
        # As server.
        with pytest.raises(HandshakeFailed) as judge:
            await node.datapath.connect(datapath.local_address, server_name="bad")
        await until(lambda: heard, "the bad server hears it")
        _same(heard[-1], judge.value, bad)
        assert not datapath.connections


def _same(shown: ConnectionClosed, judged: ConnectionClosed, bad: Bad) -> None:
    assert isinstance(shown, HandshakeFailed) and isinstance(judged, HandshakeFailed)
    assert shown.remote and not judged.remote and shown.reason == judged.reason
    assert shown.alert_name == judged.alert_name == bad.alert, judged
    for word in bad.words:
        assert word in judged.reason, f"{word!r} is not in {judged.reason!r}"


async def _bad_ones(world: World, served: Served, stranger: Credentials) -> dict[str, Bad]:
    issued = {
        name: await world.credentials(served, "bad", *roles, lifetime_s=lifetime)
        for name, roles, lifetime in (
            ("expired", (Role.NODE,), 60),
            ("revoked", (Role.NODE,), None),
            ("role", (Role.AUDITOR,), None),
            ("pin", (Role.SERVICE,), None),
        )
    }
    return {
        "mis-issued": Bad(stranger, "unknown_ca", ("bad",)),
        "expired": Bad(issued["expired"], "certificate_expired", ("bad", "expired on")),
        "revoked": Bad(issued["revoked"], "certificate_revoked", ("bad", "revoked on", "affiliationChanged")),
        "un-logged": Bad(_unlogged(world, served), "certificate_unknown", ("bad", "has no SCT")),
        "wrong role": Bad(issued["role"], "access_denied", ("bad", "it has auditor, and needs node or service")),
        "wrong pin": Bad(issued["pin"], "certificate_unknown", ("the keys pinned for bad are others",)),
    }


def test_each_refusal_has_its_own_reason(tmp_path: Path) -> None:
    """Mis-issued, expired, revoked, un-logged, of the wrong role, with the wrong key: as client and as server."""

    async def main() -> None:
        world, other = World(tmp_path / "ours"), World(tmp_path / "theirs")
        await other.init(("a",))
        async with other.serve(("a",)) as theirs:
            stranger = await other.credentials(theirs, "bad", Role.NODE)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.node(await world.member(served, "node")) as node:
            bad = await _bad_ones(world, served, stranger)
            await until(lambda: served.trust.followers == 1, "it follows")
            revoked = bad["revoked"].credentials.certificate
            await served.authority.revoke(f"{revoked.serial_number:040x}", "affiliationChanged", Actor.local())
            roles = RequiredRoles(("node", "service"), ("node", "service"))
            (world.ca / TRUST).write_bytes(msgspec.json.encode(TrustConfig(required_roles=roles)))
            served.trust.refresh()
            await until(lambda: node.membership.verifier.bundle.required_roles == roles, "the rules are there")
            world.clock.ahead = 60 + CLOCK_SKEW_S + 1
            reasons = set()
            for name, one in bad.items():
                if name == "wrong pin":
                    config = TrustConfig(required_roles=roles, pins={"bad": WRONG_PINS})
                    (world.ca / TRUST).write_bytes(msgspec.json.encode(config))
                    served.trust.refresh()
                    await until(lambda: node.membership.verifier.bundle.pins, "the pins are there")
                await _refused_both_ways(node, one, world)
                reasons.add(node.refused[-1].reason)
            assert len(reasons) == len(bad) == 6
            # And what is good is let in, by the same node under the same rules.
            async with _shows(node.membership.verifier.bundle, world) as (datapath, factory, _):
                good = await world.credentials(served, "good", Role.NODE)
                factory.replace(HandshakeConfig(good, alpns=(ALPN_STOQ,), verifier=factory.config.verifier))
                connection = await datapath.connect(node.datapath.local_address, server_name="node")
                accepted = await node.datapath.accept()
                assert connection.usable and accepted.identity is not None and accepted.identity.subject == "good"

    asyncio.run(main())


def test_rules_that_would_lock_everybody_out(tmp_path: Path) -> None:
    """By which nodes would refuse the authority itself, or which cannot be read: they are not given out, and revocations
    go out all the same; an authority does not start with them."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        trust = world.ca / TRUST
        async with world.serve(("a",)) as served, world.node(await world.member(served, "node")) as node:
            await until(lambda: served.trust.followers == 1, "it follows")
            bundle = served.trust.bundle
            wrong = (
                TrustConfig(required_roles=RequiredRoles(server=("node",))),
                TrustConfig(pins={"authority": WRONG_PINS}),
                TrustConfig(scts_required=2, logs=(msgspec.structs.replace(bundle.logs[0], name="z", key=_other_key()),)),
            )
            for number, data in enumerate((*(msgspec.json.encode(one) for one in wrong), b"{", b"\xff", b'{"valid_s":-1}')):
                trust.write_bytes(data)
                before = served.trust.bundle
                with pytest.raises((BundleError, CaError)):
                    served.trust.refresh()
                assert served.trust.bundle is before
                await world.credentials(served, f"victim-{number}", Role.NODE)
                await served.authority.revoke(f"victim-{number}", "superseded", Actor.local())
                await until(functools.partial(_revoked, node, number + 1), "it is pushed")
        for data in (msgspec.json.encode(wrong[0]), b"{"):
            trust.write_bytes(data)
            with pytest.raises((BundleError, CaError)):
                async with world.serve(("a",)):
                    pytest.fail("it runs")
        # Which roles clients need is between nodes: the authority has its own table.
        trust.write_bytes(msgspec.json.encode(TrustConfig(required_roles=RequiredRoles(client=("service",)))))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            await callers.calls(await world.credentials(served, "only-a-node", Role.NODE))
            await until(lambda: len(served.datapath.connections) == 1, "it is let in")

    asyncio.run(main())


def _revoked(node: Node, count: int) -> bool:
    return len(node.membership.verifier.bundle.revocations) == count


def _other_key() -> bytes:
    return spki(new_key().public_key())

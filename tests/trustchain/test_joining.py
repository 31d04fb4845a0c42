"""Joining with a one-time token: used once, by whoever holds it, at the authority that it is of and at no other."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from control.handshake import Credentials, HandshakeConfig, TlsFactory
from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import CallFailed
from control.trustchain import messages as m
from control.trustchain.audit import read_audit
from control.trustchain.bundle import load_bundle
from control.trustchain.directory import AUDIT
from control.trustchain.errors import BadRequest, Busy, Replayed, TokenRefused
from control.trustchain.home import Home, HomeConfig, HomeError
from control.trustchain.joining import RootVerifier
from control.trustchain.profiles import CLOCK_SKEW_S, Names
from control.trustchain.requests import make_csr
from control.trustchain.roles import Role
from control.trustchain.tokens import FAILURE_WINDOW_S, MAX_FAILURES, Token
from control.trustchain.verifier import TrustVerifier
from dataplane import Datapath, HandshakeFailed
from tests.trustchain.world import ANY, World, new_key, small, until


def test_a_token_is_good_once(tmp_path: Path) -> None:
    """Of many who come with it at the same time one is let in; nobody later; and who is refused is left with nothing."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init()
        async with world.serve() as served:
            token = await world.token(served, "node")
            homes = await asyncio.gather(*(world.join(token, f"home-{one}") for one in range(5)), return_exceptions=True)
            refused = [one for one in homes if isinstance(one, TokenRefused)]
            assert len(refused) == 4 and all("used" in str(one) for one in refused), homes
            [home] = [one for one in homes if isinstance(one, Home)]
            assert sorted(path.name for path in tmp_path.glob("home-*")) == [home.directory.name]
            with pytest.raises(TokenRefused, match="was used"):
                await world.join(token, "late")
            async with world.node(home) as node:  # And it is a member.
                await until(lambda: served.trust.followers == 1, "it follows")
                assert node.home.config.name == "node"
        assert world.audit().intact

    asyncio.run(main())


def test_a_token_ends(tmp_path: Path) -> None:
    """After its time the authority takes it no more, whatever its text says of when that is."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            token = await world.token(served, "node", ttl_s=5.0)
            world.clock.ahead = 6.0
            longer = replace(token, expires=token.expires + 3600)
            for one in (token, longer):
                with pytest.raises(TokenRefused, match="expired"):
                    await world.join(one, "late")

    asyncio.run(main())


def test_a_mistyped_token_is_told_from_a_refused_one() -> None:
    """Each character changed, one left out, one too many: never another token."""
    one = Token(ipaddress.IPv6Address("2001:db8::1"), 9293, bytes(range(32)), bytes(range(16)), 1 << 31)
    text = str(one)
    assert Token.parse(f" {text}\n") == one
    wrong = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text) - 1)]
    wrong += [text[:-1], text[1:], text + "A", text[: len(text) // 2], "", "é" * len(text), text.upper()]
    for tampered in wrong:
        with pytest.raises(BadRequest):
            Token.parse(tampered)


def test_another_authority_at_the_address_hears_no_secret(tmp_path: Path) -> None:
    """The connection is refused by what the token says of the root; not one call is made."""

    async def main() -> None:
        ours, theirs = World(tmp_path / "ours"), World(tmp_path / "theirs")
        await ours.init(("a",))
        await theirs.init(("a",))
        async with ours.serve(("a",)) as served:
            token = await ours.token(served, "node")
        refused: list[HandshakeFailed] = []
        async with theirs.serve(("a",), refused=refused) as served:
            wrong = replace(token, port=theirs.port)
            with pytest.raises(HandshakeFailed, match="not the authority that the token is of"):
                await theirs.join(wrong, "home")
            assert not (theirs.directory / "home").exists()
            await until(lambda: refused, "the other side hears why")
            assert "not the authority that the token is of" in str(refused[0])
            assert served.calls.calls == 0 and not served.datapath.connections
        async with ours.serve(("a",)):
            await ours.join(token, "home")  # Not spent.

    asyncio.run(main())


@asynccontextmanager
async def _impostor(credentials: Credentials, alpn: str) -> AsyncIterator[tuple[Datapath, list[HandshakeFailed]]]:
    refused: list[HandshakeFailed] = []
    factory = TlsFactory(HandshakeConfig(credentials, alpns=(alpn,), verifier=RootVerifier(bytes(32))))
    async with Datapath(small(server=True, bind=ANY), factory, on_failure=lambda _, e: refused.append(e)) as datapath:
        yield datapath, refused


def test_who_poses_as_the_authority(tmp_path: Path) -> None:
    """With the right root at the end of a wrong chain; and with a node's good certificate for the same address."""

    async def main() -> None:
        ours, theirs = World(tmp_path / "ours"), World(tmp_path / "theirs")
        await ours.init(("a",))
        await theirs.init(("a",))
        async with ours.serve(("a",)) as served, theirs.serve(("a",)) as other:
            token = await ours.token(served, "node")
            root = served.authority.root
            mine = await theirs.credentials(other, "authority", Role.SERVICE)
            pasted = Credentials(mine.certificate, (*mine.chain, root), mine.key)
            node = await ours.credentials(served, "neighbour", Role.NODE)
            neighbour = Credentials(node.certificate, (*node.chain, root), node.key)
            for credentials, why in ((pasted, "unknown_ca|bad_certificate"), (neighbour, "not the authority: no service")):
                async with _impostor(credentials, ALPN_JOIN) as (datapath, refused):
                    with pytest.raises(HandshakeFailed, match=why):
                        await ours.join(replace(token, port=datapath.local_address.port), "home")
                    await until(functools.partial(list, refused), "the impostor is told")
                    assert not datapath.connections
            home = await ours.join(token, "home")
            # The same once the node is a member: it takes no bundle from a neighbour.
            async with _follower_of_a_neighbour(ours, node) as datapath:
                elsewhere = HomeConfig(home.config.name, f"[::1]:{datapath.local_address.port}")
                moved = Home(home.directory, elsewhere)
                moved.complete()
                async with ours.node(moved) as running:
                    said = await until(lambda: running.said("trust-trouble"), "it says so")
                    assert "not the authority" in said[0]

    asyncio.run(main())


@asynccontextmanager
async def _follower_of_a_neighbour(world: World, node: Credentials) -> AsyncIterator[Datapath]:
    verifier = TrustVerifier(load_bundle(world.ca / "bundle.json"))
    factory = TlsFactory(HandshakeConfig(node, alpns=(ALPN_STOQ,), verifier=verifier))
    async with Datapath(small(server=True, bind=ANY), factory) as datapath:
        yield datapath


def test_guessing_is_bounded(tmp_path: Path) -> None:
    """Ten wrong tokens from one address, then not even the right one; a minute later that one."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            token = await world.token(served, "node")
            calls = await callers.calls(None, ALPN_JOIN)
            for guess in range(MAX_FAILURES + 2):
                body = m.JoinBody(guess.to_bytes(16, "big"), make_csr(new_key(), "node"))
                with pytest.raises(TokenRefused if guess < MAX_FAILURES else Busy):
                    await calls.call(m.JOIN, body, m.ChainAnswer)
            refusals = len(read_audit(world.ca / AUDIT, last=100))
            with pytest.raises(CallFailed, match="too many wrong tokens") as busy:
                await world.join(token, "home")
            assert busy.value.kind == "Busy"
            assert len(read_audit(world.ca / AUDIT, last=100)) == refusals  # No way to fill the disk.
            world.clock.ahead = FAILURE_WINDOW_S + 1
            await world.join(token, "home")

    asyncio.run(main())


def test_a_token_gives_what_it_was_made_for(tmp_path: Path) -> None:
    """Other names, another profile: refused, and the token still good; a registrar's token makes nobody mightier."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            token = await world.token(served, "node")
            calls = await callers.calls(None, ALPN_JOIN)
            greedy = make_csr(new_key(), "node", Names.parse(["node", "authority"], ["::1"]))
            with pytest.raises(BadRequest, match="authority: not among the names"):
                await calls.call(m.JOIN, m.JoinBody(token.secret, greedy), m.ChainAnswer)
            with pytest.raises(BadRequest, match="for a node certificate"):
                await calls.call(m.JOIN, m.JoinBody(token.secret, make_csr(new_key(), "node"), "operator"), m.ChainAnswer)
            other = make_csr(new_key(), "somebody-else")
            answer = await calls.call(m.JOIN, m.JoinBody(token.secret, other), m.ChainAnswer)
            registrar = await callers.calls(await world.credentials(served, "registrar", Role.REGISTRAR))
            shown = await registrar.call(m.LIST, m.ListBody(subject="node"), m.ListAnswer)
            assert [(row.names, row.roles) for row in shown.certificates] == [(("node", "::1"), ("node",))]
            assert len(answer.chain) == 3 and answer.bundle
            for role in ("admin", "registrar", "operator"):
                with pytest.raises(BadRequest, match="may not give"):
                    await registrar.call(m.TOKEN, m.TokenBody("x", ("x",), roles=(role,)), m.TokenAnswer)

    asyncio.run(main())


def test_a_token_is_not_lost_for_a_directory(tmp_path: Path) -> None:
    """What can be known before is: a home that exists, a place where none can be made. What was interrupted can be done
    again."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served:
            home = await world.member(served, "first")
            token = await world.token(served, "second")
            with pytest.raises(HomeError, match="home already"):
                await world.join(token, "first")
            (tmp_path / "file").write_text("")
            with pytest.raises(HomeError, match="cannot write"):
                await world.join(token, "file/home")
            begun = tmp_path / "second"
            begun.mkdir()
            for name in ("identity.pem", "bundle.json"):  # As if the power had gone before node.json.
                (begun / name).write_bytes((home.directory / name).read_bytes())
            with pytest.raises(HomeError, match="no node's home"):
                Home.read(begun)
            await world.join(token, "second")
            async with world.node(Home.read(begun)):
                await until(lambda: served.trust.followers == 1, "it is a member")

    asyncio.run(main())


def test_clocks_that_differ(tmp_path: Path) -> None:
    """Five minutes are borne, in both directions; beyond, the authority says what is wrong."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            calls = await callers.calls(None, ALPN_JOIN)
            for ahead in (CLOCK_SKEW_S - 10, 10 - CLOCK_SKEW_S, CLOCK_SKEW_S + 10, -CLOCK_SKEW_S - 10):
                token = await world.token(served, f"node{ahead}")
                calls._clock = lambda skew=ahead: world.clock() + skew  # type: ignore[misc]
                body = m.JoinBody(token.secret, make_csr(new_key(), "node"))
                if abs(ahead) > CLOCK_SKEW_S:
                    with pytest.raises(Replayed, match="check both clocks"):
                        await calls.call(m.JOIN, body, m.ChainAnswer)
                else:
                    await calls.call(m.JOIN, body, m.ChainAnswer)

    asyncio.run(main())

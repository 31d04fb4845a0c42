"""Every table at its bound: what is refused, what makes room, and that it works again afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from control.trustchain.acme import Limits, Store, ValidationConfig
from control.trustchain.acme.model import AccountStatus, NewAuthorization
from control.trustchain.acme.nonces import Nonces
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind
from control.trustchain.errors import StoreError
from tests.trustchain.acme.proving import NAME, by_dns, challenge_of, ready_order, valid_order, wait_for
from tests.trustchain.acme.rawclient import csr, problem, raw_client
from tests.trustchain.acme.served import LOOPBACK, Clock, Names, World, listen

DAY = 24 * 3600.0


# ---- nonces ----


def test_nonces_given_out_take_no_memory_and_those_used_a_bounded_one() -> None:
    now = [1000.0]
    nonces = Nonces(lambda: now[0], max_used=3, lifetime_seconds=60)
    given = [nonces.issue() for _ in range(10)]
    assert len(nonces) == 0 and len(set(given)) == 10
    assert [nonces.use(given[number]) for number in (5, 1, 9)] == [True] * 3
    assert len(nonces) == 3
    assert nonces.use(given[6]) and len(nonces) == 3  # given[1] is forgotten, and refused with all before it
    assert [nonces.use(given[number]) for number in (0, 1, 5, 6, 9)] == [False] * 5
    assert nonces.use(given[2])  # Later than what was forgotten. Now 2 goes in turn.
    assert not nonces.use(given[2])


def test_nonces_end_with_time_and_with_the_process() -> None:
    now = [1000.0]
    nonces = Nonces(lambda: now[0], lifetime_seconds=60)
    old, other = nonces.issue(), Nonces(lambda: now[0]).issue()
    now[0] += 61
    assert not nonces.use(old) and not nonces.use(other)
    assert nonces.use(nonces.issue())


def test_nonces_at_the_bound_in_any_order() -> None:
    """However they are used, none is good twice."""
    nonces = Nonces(time.time, max_used=8)
    given = [nonces.issue() for _ in range(64)]
    order = [(number * 37) % 64 for number in range(64)]
    used = {number for number in order if nonces.use(given[number])}
    assert used and not any(nonces.use(given[number]) for number in used)
    assert len(nonces) <= 8


# ---- the store ----


def in_store(path: Path, limits: Limits, clock: Clock | None = None) -> Store:
    return asyncio.run(Store.open(path / "acme.sqlite", clock or Clock(), limits))


WANTED = [NewAuthorization(Identifier("dns", NAME), False, ("http-01",))]
IDENTIFIERS = [Identifier("dns", NAME)]


async def _refused(work: object, kind: Kind) -> AcmeProblem:
    with pytest.raises(AcmeProblem) as refused:
        await work  # type: ignore[misc]
    assert refused.value.kind == kind
    return refused.value


def test_accounts(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path / "a.sqlite", Clock(), Limits(accounts=3))
        made = [(await store.register("{}", f"t{n}", (), True, None))[0] for n in range(3)]
        full = await _refused(store.register("{}", "t3", (), True, None), Kind.RATE_LIMITED)
        assert int(full.headers["Retry-After"]) > 0
        again, created = await store.register("{}", "t1", (), True, None)
        assert (again.id, created) == (made[1].id, False)
        await store.deactivate_account(made[1].id)
        await store.register("{}", "t3", (), True, None)  # The deactivated one made room.
        assert await store.account(made[1].id) is None
        left = await store.account(made[0].id)
        assert left is not None and left.status == AccountStatus.VALID
        await _refused(store.register("{}", "t4", (), True, None), Kind.RATE_LIMITED)
        await store.close()

    asyncio.run(main())


def test_idle_accounts_make_room(tmp_path: Path) -> None:
    """A flood of registrations lasts an hour; accounts with an order or an external account outlast it."""

    async def main() -> None:
        clock = Clock()
        store = await Store.open(tmp_path / "a.sqlite", clock, Limits(accounts=3))
        await store.add_external_account("kid", b"secret", clock() + 60)
        busy, _ = await store.register("{}", "busy", (), True, None)
        bound, _ = await store.register("{}", "bound", (), True, "kid")
        idle, _ = await store.register("{}", "idle", (), True, None)
        await store.new_order(busy.id, WANTED, IDENTIFIERS, clock() + DAY, None)
        await _refused(store.register("{}", "new", (), True, None), Kind.RATE_LIMITED)
        clock.ahead = 3601
        await store.register("{}", "new", (), True, None)
        left = [await store.account(one.id) is not None for one in (busy, bound, idle)]
        assert left == [True, True, False]
        await _refused(store.register("{}", "newer", (), True, None), Kind.RATE_LIMITED)
        await store.close()

    asyncio.run(main())


def test_external_accounts(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        store = await Store.open(tmp_path / "a.sqlite", clock, Limits(external_accounts=2))
        for name in ("a", "b"):
            await store.add_external_account(name, b"secret", clock() + 60)
        await _refused(store.add_external_account("c", b"secret", clock() + 60), Kind.RATE_LIMITED)
        assert await store.external_secret("a") == b"secret"
        await store.register("{}", "t", (), True, "a")
        assert await store.external_secret("a") is None
        await _refused(store.register("{}", "u", (), True, "a"), Kind.UNAUTHORIZED)
        assert await store.account_of_key("u") is None
        clock.ahead = 61
        assert await store.external_secret("b") is None
        await store.add_external_account("c", b"secret", clock() + 60)  # b has expired; a is an account's.
        await _refused(store.add_external_account("c", b"secret", clock() + 60), Kind.RATE_LIMITED)
        await store.close()

    asyncio.run(main())


def test_orders_of_an_account_and_in_all(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        limits = Limits(orders=5, orders_per_account=3)
        store = await Store.open(tmp_path / "a.sqlite", clock, limits)
        a, b = [(await store.register("{}", name, (), True, None))[0].id for name in "ab"]

        async def order(account: str) -> str:
            made = await store.new_order(account, WANTED, IDENTIFIERS, clock() + DAY, None)
            return made.authorizations[0]

        first = [await order(a) for _ in range(3)]
        await _refused(order(a), Kind.RATE_LIMITED)
        await store.deactivate_authorization(first[0])  # Its order is invalid now and makes room.
        await order(a)
        assert await store.authorization(first[0]) is None
        await _refused(order(a), Kind.RATE_LIMITED)
        await order(b)
        await order(b)
        await _refused(order(b), Kind.RATE_LIMITED)  # Five in all.
        clock.ahead = DAY + 1
        await order(b)  # All others have expired.
        assert len(await store.orders(a)) == 0 and len(await store.orders(b)) == 1
        await store.close()

    asyncio.run(main())


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "acme.sqlite"
    path.write_bytes(b"this is not a database, but long enough to look at" * 100)
    with pytest.raises(StoreError, match="damaged"):
        in_store(tmp_path, Limits())
    with pytest.raises(StoreError, match="cannot open"):
        in_store(tmp_path / "missing", Limits())


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path / "a.sqlite", Clock())
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.account("x")

    asyncio.run(main())


# ---- the server ----


def test_validations_that_wait(world: World) -> None:
    """A peer that accepts and says nothing holds a place until its time is over; what is over the bound is refused
    and stays pending."""
    silent = listen()
    names = Names({NAME: ["::1"]})
    validation = ValidationConfig(
        addresses=LOOPBACK, resolver=names, http_port=silent.getsockname()[1], attempts=1, timeout_seconds=1.0
    )
    with (
        silent,
        world.serve(validation, validations_at_once=1, validations_waiting=2) as server,
        raw_client(server.directory, world.root) as client,
    ):
        authorizations = [client.order(NAME).json()["authorizations"][0] for _ in range(3)]
        challenges = [challenge_of(client, one, "http-01")["url"] for one in authorizations]
        assert [client.post(one, {}).json()["status"] for one in challenges[:2]] == ["processing"] * 2
        refused = client.post(challenges[2], {})
        problem(refused, "serverInternal", 503)
        assert int(refused.headers["Retry-After"]) > 0
        assert client.post(authorizations[2]).json()["status"] == "pending"
        failed = wait_for(client, authorizations[0], "invalid")
        assert "did not answer within 1 s" in failed["challenges"][0]["error"]["detail"]
        assert client.post(challenges[2], {}).json()["status"] == "processing"


def test_certificates_that_wait(world: World) -> None:
    """A CA that is slow: the order is `processing`, others are refused until there is room, none is lost."""
    names = Names()
    with ExitStack() as stack:
        server = stack.enter_context(world.serve(by_dns(names), issuances_at_once=1, finalize_wait_seconds=0.05))
        client = stack.enter_context(raw_client(server.directory, world.root))
        world.ca.hold = threading.Event()
        stack.callback(world.ca.hold.set)
        (first, order), (second, other) = (ready_order(client, names) for _ in range(2))
        waiting = client.post(order["finalize"], {"csr": csr(NAME)})
        assert waiting.json()["status"] == "processing" and waiting.headers["Retry-After"]
        problem(client.post(order["finalize"], {"csr": csr(NAME)}), "orderNotReady", 403)
        problem(client.post(other["finalize"], {"csr": csr(NAME)}), "serverInternal", 503)
        assert client.post(second).json()["status"] == "ready"
        world.ca.hold.set()
        assert wait_for(client, first, "valid")["certificate"]
        assert client.post(other["finalize"], {"csr": csr(NAME)}).status_code == 200
        wait_for(client, second, "valid")


def test_orders_over_the_wire(world: World) -> None:
    """An account at its bound gets rateLimited; valid certificates hold their places, expiry frees them."""
    names, clock = Names(), Clock()
    limits = replace(Limits(), orders_per_account=2, identifiers_per_order=2)
    with (
        world.serve(by_dns(names), limits=limits, clock=clock) as server,
        raw_client(server.directory, world.root) as client,
    ):
        problem(client.order("a.test", "b.test", "c.test"), "malformed", 400)
        kept, _ = valid_order(client, names)
        client.order("a.test", "b.test")
        problem(client.order(NAME), "rateLimited", 429)
        clock.ahead = 23 * 3600.0
        assert client.post(kept).json()["status"] == "valid"
        problem(client.order(NAME), "rateLimited", 429)
        clock.ahead = 25 * 3600.0
        assert client.order(NAME).status_code == 201
        assert client.post(kept).status_code == 404

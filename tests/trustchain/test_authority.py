"""The authority's operations: what is issued, to whom, and what is refused; all with the real store and audit log."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from control.ctlog.precert import embedded_entry, embedded_scts
from control.ctlog.structs import verify_sct
from control.trustchain import issuing
from control.trustchain.actor import Actor
from control.trustchain.audit import AuditLine, read_audit
from control.trustchain.authority import Authority, Issued
from control.trustchain.certificates import Leaf, leaf_builder, sign_final
from control.trustchain.directory import InitOptions, init, load_config, load_root_key
from control.trustchain.errors import (
    AccessDenied,
    BadRequest,
    Busy,
    CaError,
    KeyUnavailable,
    NotFound,
    NotIssued,
    Replayed,
    Revoked,
    SubscriptionOverrun,
    TokenRefused,
    TrustError,
)
from control.trustchain.events import MAX_PENDING
from control.trustchain.keys import SigningKey, generate
from control.trustchain.profiles import PROFILES, Names, ProfileName
from control.trustchain.requests import Freshness, IssueRequest, RenewRequest, make_csr
from control.trustchain.roles import Operation, Role, permitted, roles_of
from control.trustchain.store import Limits, State
from control.trustchain.submit import LogPolicy
from control.trustchain.tokens import MAX_FAILURES, Token, TokenGrant, new_secret
from tests.trustchain.conftest import ADMIN, Ca, openssl
from tests.trustchain.signinglog import SigningLog

REGISTRAR = Actor("acme", frozenset({Role.REGISTRAR}), "test")


def _holder(issued: Issued) -> Actor:
    return Actor.of_certificate(issued.certificate, "test")


def _audit(ca: Ca) -> list[AuditLine]:
    return read_audit(ca.directory / "audit.jsonl")


def test_a_node_certificate_says_what_it_must(ca: Ca, tmp_path: Path) -> None:
    async def main(authority: Authority) -> Issued:
        return await authority.issue(ca.request("a.stoq.example", addresses=("2001:db8::1",)), ADMIN)

    issued: Issued = ca.run(main)
    leaf, intermediate = issued.certificate, issued.chain[0]
    assert roles_of(leaf) == {Role.NODE}
    assert leaf.not_valid_before_utc.timestamp() == ca.clock() - 300
    assert leaf.not_valid_after_utc.timestamp() == ca.clock() + 86400
    # The SCTs verify, for exactly this certificate, and stand last.
    entry = embedded_entry(leaf, intermediate)
    scts = embedded_scts(leaf)
    assert [sct.log_id for sct in scts] == [log.log_id for log in ca.logs]
    for sct, log in zip(scts, ca.logs, strict=True):
        verify_sct(sct, entry, log.key)
    last = list(leaf.extensions)[-1]
    assert isinstance(last.value, x509.PrecertificateSignedCertificateTimestamps)
    assert not any(isinstance(one.value, x509.PrecertPoison) for one in leaf.extensions)
    # OpenSSL agrees on chain, purposes, names and text.
    (tmp_path / "chain.pem").write_bytes(issued.pem_chain)
    for purpose in ("sslserver", "sslclient"):
        openssl(
            "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", "a.stoq.example",
            "-CAfile", ca.directory / "root.pem", "-untrusted", tmp_path / "chain.pem", tmp_path / "chain.pem",
        )  # fmt: skip
    text = openssl("x509", "-in", tmp_path / "chain.pem", "-noout", "-text")
    for part in ("CT Precertificate SCTs", "Version   : v1", "OCSP - URI:http://[::1]:1/ocsp", "URI:http://[::1]:1/ca.crl"):
        assert part in text
    assert "IP Address:2001:DB8:0:0:0:0:0:1" in text
    text = openssl("x509", "-in", ca.directory / "intermediate-1.pem", "-noout", "-text")
    for part in ("Name Constraints: critical", "DNS:stoq.example", "IP:0.0.0.0/0.0.0.0", "CA:TRUE, pathlen:0"):
        assert part in text


@pytest.mark.parametrize(
    ("profile", "purpose", "key"),
    [
        (ProfileName.SERVICE, "sslserver", rsa.generate_private_key(65537, 2048)),
        (ProfileName.SERVICE, "sslserver", generate("p384")),
        (ProfileName.NODE, "sslclient", ed25519.Ed25519PrivateKey.generate()),
        (ProfileName.OPERATOR, "sslclient", generate()),
        (ProfileName.CODE_SIGNING, "any", generate()),
    ],
)
def test_every_profile_passes_openssl(ca: Ca, tmp_path: Path, profile: ProfileName, purpose: str, key: SigningKey) -> None:
    names = () if profile is ProfileName.CODE_SIGNING else ("x.stoq.example",)
    asked = ca.request(*names, profile=profile, key=key, subject="Somebody there")
    issued: Issued = ca.run(lambda authority: authority.issue(asked, ADMIN))
    (tmp_path / "c.pem").write_bytes(issued.pem_chain)
    arguments = ["-CAfile", ca.directory / "root.pem", "-untrusted", tmp_path / "c.pem", tmp_path / "c.pem"]
    openssl("verify", "-x509_strict", "-purpose", purpose, *arguments)
    if profile in (ProfileName.OPERATOR, ProfileName.CODE_SIGNING):
        openssl("verify", "-purpose", "sslserver", *arguments, code=2)


def test_the_intermediate_cannot_issue_outside_its_names(ca: Ca, tmp_path: Path) -> None:
    # By its own key, past our checks: strangers refuse what the name constraints exclude.
    async def main(authority: Authority) -> bytes:
        issuer, now = authority.issuer, int(ca.clock())
        for names in (Names(("evil.example",)), Names(("a.stoq.example",))):
            leaf = Leaf(
                PROFILES[ProfileName.NODE], "Leaf node", "", generate().public_key(), names, frozenset(), 7, now, now + 999
            )
            certificate = sign_final(leaf_builder(leaf, issuer, authority.config.places), issuer, (), None)
            path = tmp_path / f"{names.dns[0]}.pem"
            path.write_bytes(certificate.public_bytes(Encoding.PEM))
        return b""

    ca.run(main)
    chain = ["-CAfile", ca.directory / "root.pem", "-untrusted", ca.directory / "intermediate-1.pem"]
    openssl("verify", *chain, tmp_path / "a.stoq.example.pem")
    assert "permitted subtree violation" in openssl("verify", *chain, tmp_path / "evil.example.pem", code=2)


def test_two_hundred_at_once(ca: Ca) -> None:
    async def main(authority: Authority) -> list[Issued]:
        asked = [ca.request(f"n{number}.stoq.example") for number in range(200)]
        return list(await asyncio.gather(*(authority.issue(one, ADMIN) for one in asked)))

    all_issued: list[Issued] = ca.run(main)
    assert len({issued.certificate.serial_number for issued in all_issued}) == 200

    async def look(authority: Authority) -> None:
        rows, more = await authority.listing(ADMIN, limit=1000)
        assert more == 0
        assert {row.fingerprint for row in rows} == {one.certificate.fingerprint(SHA256()) for one in all_issued}
        assert {row.state for row in rows} == {State.FINAL}
        report = await authority.verify_audit(ADMIN)
        assert report.intact

    ca.run(look)
    done = [line for line in _audit(ca) if line.operation == "ca.issue" and line.decision == "done"]
    assert len(done) == 200


def test_pages_of_a_listing(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        for number in range(7):
            await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN)
        seen, after = [], 0
        while True:
            rows, after = await authority.listing(ADMIN, limit=3, after=after)
            seen += [row.subject for row in rows]
            if not after:
                break
        assert seen == [f"n{number}.stoq.example" for number in reversed(range(7))]
        rows, _ = await authority.listing(ADMIN, subject="n3.stoq.example", live=True)
        assert len(rows) == 1
        ca.clock.now += 2 * 86400
        assert await authority.listing(ADMIN, live=True) == ([], 0)

    ca.run(main)


def test_the_long_expired_is_forgotten(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuing, "PRUNE_EVERY", 2)

    async def main(authority: Authority) -> None:
        for number in range(3):
            await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN)
        ca.clock.now += 31 * 86400 + 1
        await authority.issue(ca.request("new.stoq.example"), ADMIN)
        rows, _ = await authority.listing(ADMIN)
        assert [row.subject for row in rows] == ["new.stoq.example"]

    ca.run(main)


# Who may what.

Call = Callable[[Authority, Ca, Actor, Issued], Awaitable[object]]


def _renewal(ca: Ca, issued: Issued) -> RenewRequest:
    return RenewRequest(make_csr(generate()), issued.row.fingerprint, freshness=Freshness(ca.clock()))


CALLS: dict[Operation, Call] = {
    Operation.ISSUE: lambda a, ca, who, _: a.issue(ca.request("x.stoq.example"), who),
    Operation.ISSUE_OPERATOR: lambda a, ca, who, _: a.issue(
        ca.request("x.stoq.example", profile=ProfileName.OPERATOR), who
    ),
    Operation.ISSUE_CODE_SIGNING: lambda a, ca, who, _: a.issue(
        ca.request(profile=ProfileName.CODE_SIGNING, subject="Release"), who
    ),
    Operation.RENEW_OTHER: lambda a, ca, who, issued: a.renew(_renewal(ca, issued), who),
    Operation.REVOKE: lambda a, ca, who, issued: a.revoke(issued.row.serial.hex(), "unspecified", who),
    Operation.LIST: lambda a, ca, who, _: a.listing(who),
    Operation.SHOW: lambda a, ca, who, issued: a.show(issued.row.serial.hex(), who),
    Operation.TOKEN_CREATE: lambda a, ca, who, _: a.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, who),
    Operation.TOKEN_LIST: lambda a, ca, who, _: a.tokens(who),
    Operation.AUDIT_READ: lambda a, ca, who, _: a.audit(who),
    Operation.STATUS: lambda a, ca, who, _: a.status(who),
    Operation.EVENTS: lambda a, ca, who, _: a.decide(Operation.EVENTS, who),
    Operation.LOG_ADMIN: lambda a, ca, who, _: a.decide(Operation.LOG_ADMIN, who),
    Operation.NODE_CAPTURE: lambda a, ca, who, _: a.decide(Operation.NODE_CAPTURE, who),
}


@pytest.mark.parametrize("operation", list(CALLS))
def test_each_call_by_each_role(ca: Ca, operation: Operation) -> None:
    actors = [Actor.anonymous("[::1]"), *(Actor(role, frozenset({role}), "test") for role in Role)]

    async def main(authority: Authority) -> None:
        for actor in actors:
            issued = await authority.issue(ca.request("x.stoq.example"), ADMIN)
            before = authority.audit_head.seq
            try:
                await CALLS[operation](authority, ca, actor, issued)
                allowed = True
            except AccessDenied:
                allowed = False
            assert allowed is permitted(operation, actor.roles), actor
            if not allowed:
                line = _audit(ca)[-1]
                assert (line.operation, line.decision, line.seq) == (operation, "refused", before + 1)
                assert str(actor) == line.actor

    ca.run(main)


def test_whoever_may_issue_gives_no_role_above_its_own(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        for roles in ({Role.ADMIN}, {Role.NODE, Role.OPERATOR}, {Role.REGISTRAR}):
            with pytest.raises(BadRequest, match="may not give"):
                await authority.issue(ca.request("x.stoq.example", roles=frozenset(roles)), REGISTRAR)
            with pytest.raises(BadRequest, match="may not give"):
                grant = TokenGrant(Names(("x.stoq.example",)), frozenset(roles))
                await authority.create_token(grant, "::1", 1, REGISTRAR)
        with pytest.raises(AccessDenied):
            grant = TokenGrant(Names(("x.stoq.example",)), profile=ProfileName.OPERATOR)
            await authority.create_token(grant, "::1", 1, REGISTRAR)
        issued = await authority.issue(ca.request("x.stoq.example", roles=frozenset({Role.SERVICE, Role.NODE})), REGISTRAR)
        assert roles_of(issued.certificate) == {Role.SERVICE, Role.NODE}

    ca.run(main)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dns": ("evil.example",)}, "outside"),
        ({"dns": ()}, "needs a DNS name"),
        ({"lifetime_s": 8 * 86400}, "lives"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "is for keys of"),
        ({"profile": ProfileName.INTERMEDIATE, "dns": ()}, "rotate-intermediate"),
        ({"profile": ProfileName.ROOT, "dns": ()}, "rotate-intermediate"),
        ({"profile": ProfileName.CODE_SIGNING}, "no DNS names"),
        ({"profile": ProfileName.SERVICE, "roles": frozenset({Role.ADMIN})}, "does not carry the role admin"),
        ({"profile": ProfileName.CODE_SIGNING, "dns": (), "roles": frozenset({Role.NODE})}, "may carry none"),
        ({"subject": "x" * 64 + "y"}, "printable characters"),
    ],
)
def test_requests_that_are_refused(ca: Ca, change: dict[str, Any], why: str) -> None:
    dns = change.pop("dns", ("x.stoq.example",))
    subject = change.pop("subject", "")
    try:
        asked = ca.request(*dns, **change)
    finally:
        change["dns"] = dns  # Parametrized values are shared.
    asked = IssueRequest(asked.csr, asked.profile, asked.roles, asked.lifetime_s, subject, asked.freshness)
    with pytest.raises(BadRequest, match=why):
        ca.run(lambda authority: authority.issue(asked, ADMIN))
    assert ca.logs[0].asked == 0
    assert _audit(ca)[-1].decision == "refused"
    del change["dns"]


def test_a_request_counts_once_and_in_its_time(ca: Ca) -> None:
    asked = ca.request("x.stoq.example")

    async def main(authority: Authority) -> None:
        await authority.issue(asked, ADMIN)
        with pytest.raises(Replayed, match="came before"):
            await authority.issue(asked, ADMIN)
        both = ca.request("y.stoq.example")
        done = await asyncio.gather(*(authority.issue(both, ADMIN) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(one, Issued) for one in done) == 1
        for offset in (-301, 301):
            old = IssueRequest(both.csr, freshness=Freshness(ca.clock() + offset))
            with pytest.raises(Replayed, match="check both clocks"):
                await authority.issue(old, ADMIN)

    ca.run(main)

    async def later(authority: Authority) -> None:
        with pytest.raises(Replayed, match="came before"):
            await authority.issue(asked, ADMIN)  # Remembered over a restart,
        ca.clock.now += 301
        with pytest.raises(Replayed, match="check both clocks"):
            await authority.issue(asked, ADMIN)  # and when it is forgotten, its time has passed.
        for number in range(3):
            await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN)
        remembered = authority._store._all("SELECT count(*) FROM requests")[0][0]
        assert remembered == authority._store.counter("requests") == 3

    ca.run(later)


def test_bounds_are_busy_not_broken(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        for number in range(3):
            await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN)
        with pytest.raises(Busy, match="3 certificates"):
            await authority.issue(ca.request("n4.stoq.example"), ADMIN)

    ca.run(main, limits=Limits(certificates=3))

    async def requests(authority: Authority) -> None:
        with pytest.raises(Busy, match="requests in the last minutes"):
            await authority.issue(ca.request("n5.stoq.example"), ADMIN)

    ca.run(requests, limits=Limits(requests=3))

    async def tokens(authority: Authority) -> None:
        await authority.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, ADMIN)
        with pytest.raises(Busy, match="tokens wait"):
            await authority.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, ADMIN)

    ca.run(tokens, limits=Limits(tokens=1))


def test_the_clock_stepped_back(ca: Ca) -> None:
    async def first(authority: Authority) -> None:
        await authority.issue(ca.request("x.stoq.example"), ADMIN)
        ca.clock.now -= 299
        await authority.issue(ca.request("x.stoq.example"), ADMIN)
        ca.clock.now -= 2
        with pytest.raises(NotIssued, match="the clock is 301 s behind"):
            await authority.issue(ca.request("x.stoq.example"), ADMIN)
        await authority.revoke("x.stoq.example", "unspecified", ADMIN)  # That must always be possible.

    ca.run(first)

    async def refused(authority: Authority) -> None:
        with pytest.raises(NotIssued, match="--accept-clock"):
            await authority.issue(ca.request("x.stoq.example"), ADMIN)

    ca.run(refused)
    ca.run(lambda authority: authority.issue(ca.request("x.stoq.example"), ADMIN), accept_clock=True)


# Logs.


@pytest.mark.parametrize("fault", ["down", "silent", "forged", "future", "crash"])
def test_a_bad_log_beside_enough_good_ones(ca: Ca, fault: str) -> None:
    ca.logs.append(SigningLog("bad log", ca.clock, fault))

    async def main(authority: Authority) -> None:
        issued = await authority.issue(ca.request("x.stoq.example"), ADMIN)
        assert [sct.log_id for sct in issued.scts] == [log.log_id for log in ca.logs[:2]]

    ca.run(main)


@pytest.mark.parametrize("fault", ["down", "silent", "forged", "future", "crash"])
def test_too_few_scts_are_no_certificate(ca: Ca, fault: str) -> None:
    ca.logs[1].fault = fault
    ca.policy = LogPolicy(2, timeout_s=0.3)

    async def main(authority: Authority) -> None:
        with pytest.raises(NotIssued, match=r"1 of the 2 SCTs needed.*log b"):
            await authority.issue(ca.request("x.stoq.example"), ADMIN)
        row = await authority.show("x.stoq.example", ADMIN)
        assert row.state is State.PRECERTIFICATE  # It may be in a log: it can be revoked, and nobody has it.
        await authority.revoke(row.serial.hex(), "cessationOfOperation", ADMIN)
        ca.logs[1].fault = ""
        await authority.issue(ca.request("x.stoq.example"), ADMIN)  # Asked again at once, because it is needed.

    ca.run(main)
    assert [line.decision for line in _audit(ca) if line.operation == "ca.issue"] == ["granted", "failed", "granted", "done"]


def test_without_logs_only_when_allowed(ca: Ca) -> None:
    ca.logs = []
    with pytest.raises(NotIssued, match="0 logs are configured"):
        ca.run(lambda authority: authority.issue(ca.request("x.stoq.example"), ADMIN))
    ca.policy = LogPolicy(2, allow_unlogged=True)
    issued: Issued = ca.run(lambda authority: authority.issue(ca.request("x.stoq.example"), ADMIN))
    assert embedded_scts(issued.certificate) == ()


def test_revoked_while_the_logs_have_it(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        ca.logs[1].fault = "silent"
        pending = asyncio.ensure_future(authority.issue(ca.request("x.stoq.example"), ADMIN))
        while not ca.logs[1].asked:
            await asyncio.sleep(0)
        await authority.revoke("x.stoq.example", "superseded", ADMIN)
        with pytest.raises(Revoked, match="while it was being issued"):
            await pending

    ca.policy = LogPolicy(1, timeout_s=5, linger_s=0.3)
    ca.run(main)


# Renewal and revocation.


def test_a_node_renews_its_own(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        key = generate()
        first = await authority.issue(ca.request("x.stoq.example", addresses=("::1",), key=key), ADMIN)
        same = RenewRequest(make_csr(key), first.row.fingerprint, freshness=Freshness(ca.clock()))
        second = await authority.renew(same, _holder(first))
        third = await authority.renew(_renewal(ca, second), _holder(second))  # With a new key.
        assert third.row.names == first.row.names and third.row.roles == first.row.roles
        assert second.row.spki == first.row.spki != third.row.spki
        assert third.row.lineage == first.row.serial
        more = make_csr(key, "", Names(("x.stoq.example", "y.stoq.example")))
        with pytest.raises(BadRequest, match="keeps its names"):
            await authority.renew(RenewRequest(more, third.row.fingerprint), _holder(third))
        with pytest.raises(AccessDenied):  # Another node's.
            await authority.renew(_renewal(ca, first), _holder(second))
        with pytest.raises(NotFound):
            await authority.renew(RenewRequest(make_csr(key), bytes(32)), ADMIN)
        assert (await authority.renew(_renewal(ca, third), ADMIN)).row.lineage == first.row.serial
        ca.clock.now += 86400 + 301
        with pytest.raises(NotIssued, match="expired"):
            await authority.renew(_renewal(ca, third), _holder(third))

    ca.run(main)


def test_nothing_is_renewed_after_a_revocation(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        first = await authority.issue(ca.request("x.stoq.example"), ADMIN)
        second = await authority.renew(_renewal(ca, first), _holder(first))
        await authority.revoke(first.row.serial.hex(), "superseded", ADMIN)
        third = await authority.renew(_renewal(ca, second), _holder(second))  # Superseded: its successor stays good.
        await authority.revoke(second.row.serial.hex(), "keyCompromise", ADMIN)
        with pytest.raises(Revoked):
            await authority.renew(_renewal(ca, second), _holder(second))
        with pytest.raises(Revoked, match="keyCompromise"):  # It was revoked with the line.
            await authority.renew(_renewal(ca, third), _holder(third))

    ca.run(main)


def test_a_compromised_key_gets_nothing_more(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        key = generate()
        first = await authority.issue(ca.request("x.stoq.example", key=key), ADMIN)
        await authority.revoke(first.row.fingerprint.hex(), "keyCompromise", _holder(first))  # Its own: permitted.
        with pytest.raises(Revoked, match="new key"):
            await authority.issue(ca.request("y.stoq.example", key=key), ADMIN)
        with pytest.raises(BadRequest, match="revoked before"):
            await authority.revoke(first.row.fingerprint.hex(), "unspecified", ADMIN)
        with pytest.raises(NotFound, match="stoq ca list"):
            await authority.revoke("nobody", "unspecified", ADMIN)
        with pytest.raises(BadRequest, match="the reasons are"):
            await authority.revoke("x.stoq.example", "certificateHold", ADMIN)

    ca.run(main)


def test_revocations_reach_subscribers(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        issued = [await authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN) for number in range(3)]
        with authority.subscribe() as subscription:
            for one in issued:
                await authority.revoke(one.row.serial.hex(), "superseded", ADMIN)
            for number, one in enumerate(issued, 1):
                event = await anext(subscription)
                assert (event.number, event.serial) == (number, one.certificate.serial_number)
                assert event.fingerprint == one.certificate.fingerprint(SHA256())
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
        assert [event.number for event in authority.revocations(after=1)] == [2, 3]
        slow = authority.subscribe()
        for _ in range(MAX_PENDING + 1):
            authority._subscribers.push(event)
        with pytest.raises(SubscriptionOverrun):
            async for _ in slow:
                pass

    ca.run(main)


# Joining.


def test_a_token_is_for_one_node_once(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        grant = TokenGrant(Names.parse(["x.stoq.example"], ["::1"]))
        token = Token.parse(str(await authority.create_token(grant, "2001:db8::1", 9292, ADMIN)))
        assert (str(token.address), token.port, token.root_sha256) == ("2001:db8::1", 9292, authority.root_sha256)
        assert token.secret.hex().encode() not in (ca.directory / "audit.jsonl").read_bytes()
        assert token.secret not in (ca.directory / "ca.db-wal").read_bytes()
        anybody = Actor.anonymous("[::1]")
        with pytest.raises(BadRequest, match="not among the names granted"):
            await authority.join(ca.request("y.stoq.example"), token.secret, anybody)
        with pytest.raises(BadRequest, match="no others"):
            await authority.join(ca.request("x.stoq.example", roles=frozenset({Role.ADMIN})), token.secret, anybody)
        with pytest.raises(BadRequest, match="for a node certificate"):
            await authority.join(ca.request("x.stoq.example", profile=ProfileName.SERVICE), token.secret, anybody)
        tries = [IssueRequest(make_csr(generate(), "root"), freshness=Freshness(ca.clock())) for _ in range(8)]
        done = await asyncio.gather(
            *(authority.join(one, token.secret, anybody) for one in tries), return_exceptions=True
        )
        issued = [one for one in done if isinstance(one, Issued)]
        assert len(issued) == 1
        assert all(isinstance(one, TokenRefused) for one in done if not isinstance(one, Issued))
        assert issued[0].row.names == ("x.stoq.example", "::1") and issued[0].row.subject == "x.stoq.example"
        with pytest.raises(TokenRefused, match="was used"):
            await authority.join(ca.request("x.stoq.example"), token.secret, anybody)

    ca.run(main)


def test_tokens_end(ca: Ca) -> None:
    grant = TokenGrant(Names(("x.stoq.example",)), ttl_s=600)

    async def main(authority: Authority) -> None:
        token = await authority.create_token(grant, "::1", 1, ADMIN)
        other = await authority.create_token(grant, "::1", 1, ADMIN)
        assert {row.hash for row in await authority.tokens(ADMIN)} == {token.secret_hash, other.secret_hash}
        await authority.cancel_token(other.secret_hash, ADMIN)
        with pytest.raises(NotFound):
            await authority.cancel_token(other.secret_hash, ADMIN)
        with pytest.raises(TokenRefused, match="unknown"):
            await authority.join(ca.request("x.stoq.example"), other.secret, Actor.anonymous("a"))
        ca.clock.now += 601
        with pytest.raises(TokenRefused, match="expired"):
            await authority.join(ca.request("x.stoq.example"), token.secret, Actor.anonymous("a"))
        assert await authority.tokens(ADMIN) == []
        for wrong in (0, 8 * 86400, float("nan")):
            with pytest.raises(BadRequest, match="a token lives"):
                await authority.create_token(TokenGrant(grant.names, ttl_s=wrong), "::1", 1, ADMIN)
        with pytest.raises(BadRequest, match="IPv6-only"):
            await authority.create_token(grant, "192.0.2.1", 1, ADMIN)

    ca.run(main)


def test_guessing_tokens_is_bounded(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        token = await authority.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, ADMIN)
        guesser = Actor.anonymous("2001:db8::bad")
        for _ in range(MAX_FAILURES):
            with pytest.raises(TokenRefused, match="unknown"):
                await authority.join(ca.request("x.stoq.example"), new_secret(), guesser)
        before = authority.audit_head.seq
        for _ in range(5):
            with pytest.raises(Busy, match="too many wrong tokens"):
                await authority.join(ca.request("x.stoq.example"), token.secret, guesser)
        assert authority.audit_head.seq == before  # A flood does not fill the disk.
        # From many places: their flood ends too, and whoever has a token still gets in.
        refused: list[type[Exception]] = []
        for number in range(100 * MAX_FAILURES + 5):
            try:
                somebody = Actor.anonymous(f"source {number}")
                await authority.join(ca.request("x.stoq.example", key=key), new_secret(), somebody)
            except TrustError as error:
                refused.append(type(error))
        assert refused[-5:] == [Busy] * 5 and refused.count(TokenRefused) == 99 * MAX_FAILURES
        await authority.join(ca.request("x.stoq.example"), token.secret, Actor.anonymous("2001:db8::1"))

    key = generate()
    ca.run(main)


def test_a_failed_join_gives_the_token_back(ca: Ca) -> None:
    async def main(authority: Authority) -> None:
        token = await authority.create_token(TokenGrant(Names(("x.stoq.example",))), "::1", 1, ADMIN)
        ca.logs[0].fault = "down"
        with pytest.raises(NotIssued):
            await authority.join(ca.request("x.stoq.example"), token.secret, Actor.anonymous("a"))
        ca.logs[0].fault = "silent"
        pending = asyncio.ensure_future(
            authority.join(ca.request("x.stoq.example"), token.secret, Actor.anonymous("a"))
        )
        asked = ca.logs[0].asked
        while ca.logs[0].asked == asked:
            await asyncio.sleep(0)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        ca.logs[0].fault = ""
        await authority.join(ca.request("x.stoq.example"), token.secret, Actor.anonymous("a"))

    ca.run(main)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: "B" + t[1:], lambda t: t[:40] + "_" + t[41:], lambda t: "é" + t]
)
def test_a_mistyped_token_is_told(change: Callable[[str], str]) -> None:
    text = str(Token(ipaddress.IPv6Address("::1"), 9292, bytes(range(32)), bytes(16), 2_000_000_000))
    assert str(Token.parse(f" {text}\n")) == text
    with pytest.raises(BadRequest, match="join token"):
        Token.parse(change(text))


# The directory.


def test_rotation_keeps_what_was_issued(ca: Ca, tmp_path: Path) -> None:
    async def main(authority: Authority) -> tuple[Issued, Issued]:
        before = await authority.issue(ca.request("x.stoq.example"), ADMIN)
        root_key = load_root_key(ca.directory, authority.config, None)
        # Under traffic: nothing fails, and all comes from one intermediate or the other.
        work = [authority.issue(ca.request(f"n{number}.stoq.example"), ADMIN) for number in range(20)]
        rotation = asyncio.ensure_future(authority.rotate_intermediate(root_key, ADMIN))
        during = await asyncio.gather(*work)
        issuer = await rotation
        assert issuer.number == 2
        assert {issued.row.issuer for issued in during} <= {1, 2}
        after = await authority.issue(ca.request("y.stoq.example"), ADMIN)
        assert after.row.issuer == 2
        renewed = await authority.renew(_renewal(ca, before), _holder(before))
        assert renewed.row.issuer == 2
        return before, after

    before, after = ca.run(main)
    for name, issued in (("before", before), ("after", after)):
        path = tmp_path / f"{name}.pem"
        path.write_bytes(issued.pem_chain)
        openssl("verify", "-CAfile", ca.directory / "root.pem", "-untrusted", path, path)

    async def reopened(authority: Authority) -> None:
        assert authority.issuer.number == 2
        assert (await authority.issue(ca.request("z.stoq.example"), ADMIN)).row.issuer == 2

    (ca.directory / "root.key").rename(tmp_path / "root.key")  # Offline.
    ca.run(reopened)
    with pytest.raises(KeyUnavailable, match="--root-key"):
        load_root_key(ca.directory, load_config(ca.directory), None)
    assert load_root_key(ca.directory, load_config(ca.directory), None, str(tmp_path / "root.key"))


def test_an_intermediate_that_ends_says_so(ca: Ca) -> None:
    ca.clock.now += 365 * 86400 - 600

    async def main(authority: Authority) -> None:
        issued = await authority.issue(ca.request("x.stoq.example"), ADMIN)
        assert issued.certificate.not_valid_after_utc == authority.issuer.certificate.not_valid_after_utc
        ca.clock.now += 590
        with pytest.raises(NotIssued, match="rotate-intermediate"):
            await authority.issue(ca.request("x.stoq.example"), ADMIN)

    ca.run(main)


def test_encrypted_keys_at_rest(tmp_path: Path, ca: Ca) -> None:
    directory = tmp_path / "locked"
    init(
        directory,
        InitOptions(allow_unlogged=True),
        ca.clock(),
        passphrase=lambda: b"correct horse",
        root_passphrase=lambda: b"battery staple",
    )
    locked = Ca(directory, ca.clock, policy=LogPolicy(allow_unlogged=True))
    with pytest.raises(KeyUnavailable, match="encrypted"):
        locked.open()
    locked.passphrase = lambda: b"correct horse"
    locked.run(lambda authority: authority.issue(locked.request("x.stoq.example"), ADMIN))
    load_root_key(directory, load_config(directory), lambda: b"battery staple")


def test_directories_that_are_refused(ca: Ca, tmp_path: Path) -> None:
    with pytest.raises(CaError, match="stoq ca init"):
        Authority.open(tmp_path)
    with pytest.raises(CaError, match="nothing was overwritten"):
        init(ca.directory, InitOptions(), ca.clock())
    first = ca.open()
    with pytest.raises(CaError, match="in use by another process"):
        ca.open()
    first.close_now()
    for name in ("ca.db", "root.pem", "intermediate-1.pem", "intermediate-1.key", "audit.jsonl"):
        (ca.directory / name).rename(tmp_path / name)
        with pytest.raises(TrustError):
            ca.open()
        assert not (ca.directory / name).exists()  # Nothing is made anew in its place.
        (tmp_path / name).rename(ca.directory / name)
    config = ca.directory / "config.json"
    for damage in (b"", b"{}", config.read_bytes().replace(b'"current": 1', b'"current": 9'), config.read_bytes() + b"x"):
        whole = config.read_bytes()
        config.write_bytes(damage)
        with pytest.raises(CaError, match=r"config\.json"):
            ca.open()
        config.write_bytes(whole)
    ca.open().close_now()

"""Who may do what: every method of the authority and its logs, called by every role, by nobody, and over the protocol that
joining is for. The table of roles decides, a refusal is audited, and the audit log's chain finds what was done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from control.ctlog.service import LOG_CALL, LogCall, LogReply
from control.handshake import Credentials
from control.handshake.policy import ALPN_JOIN, ALPN_STOQ
from control.rpc import CallFailed, RpcClient
from control.trustchain import messages as m
from control.trustchain.audit import Damage, Decision, read_audit
from control.trustchain.directory import AUDIT
from control.trustchain.errors import AccessDenied, TokenRefused
from control.trustchain.profiles import CLOCK_SKEW_S, Names
from control.trustchain.requests import make_csr
from control.trustchain.roles import RULES, Operation, Role
from control.trustchain.server import Served
from tests.trustchain.world import World, new_key

O = Operation  # noqa: E741 The table below is read by column.


@dataclass(frozen=True)
class Case:
    """One call. `needs`: the operations it takes, in the order in which they are looked at; `audited`: as what a refusal
    stands in the audit log, if not as the first operation that is not permitted."""

    method: str
    body: Callable[[Credentials, str], msgspec.Struct]
    answer: type[msgspec.Struct]
    needs: tuple[Operation, ...]
    audited: Operation | None = None
    label: str = ""

    def refused_as(self, role: Role) -> Operation | None:
        """The operation that the role has no permission for."""
        for one in self.needs:
            if role not in RULES[one].roles and not RULES[one].anyone:
                return self.audited or one
        return None


def _issue(profile: str) -> Callable[[Credentials, str], msgspec.Struct]:
    def body(own: Credentials, other: str) -> msgspec.Struct:
        names = Names() if profile == "code-signing" else Names.parse(["somebody"], ["::1"])
        return m.IssueBody(make_csr(new_key(), "somebody", names), profile, "somebody")

    return body


def _own(own: Credentials) -> str:
    return f"{own.certificate.serial_number:040x}"


NOTHING = m.Nothing()
CASES = (  # The last ends the caller.
    Case(m.ISSUE, _issue("node"), m.ChainAnswer, (O.ISSUE,)),
    Case(m.ISSUE, _issue("service"), m.ChainAnswer, (O.ISSUE,)),
    Case(m.ISSUE, _issue("operator"), m.ChainAnswer, (O.ISSUE, O.ISSUE_OPERATOR)),
    Case(m.ISSUE, _issue("code-signing"), m.ChainAnswer, (O.ISSUE, O.ISSUE_CODE_SIGNING)),
    Case(m.RENEW, lambda own, other: m.RenewBody(make_csr(new_key())), m.ChainAnswer, (O.RENEW,)),
    Case(m.LIST, lambda own, other: m.ListBody(), m.ListAnswer, (O.LIST,)),
    Case(m.LIST, lambda own, other: m.ListBody(limit=-1), m.ListAnswer, (O.LIST,), label="against its rules"),
    Case(m.SHOW, lambda own, other: m.WhichBody(other), m.ListAnswer, (O.SHOW_OWN, O.SHOW)),
    Case(m.SHOW, lambda own, other: m.WhichBody("nobody"), m.ListAnswer, (O.SHOW_OWN, O.SHOW), label="of nobody"),
    Case(m.SHOW, lambda own, other: m.WhichBody(_own(own)), m.ListAnswer, (O.SHOW_OWN,)),
    Case(m.TOKEN, lambda own, other: m.TokenBody("new", ("new",)), m.TokenAnswer, (O.TOKEN_CREATE,)),
    Case(
        m.TOKEN,
        lambda own, other: m.TokenBody("new", ("new",), profile="operator"),
        m.TokenAnswer,
        (O.TOKEN_CREATE, O.ISSUE_OPERATOR),
        O.TOKEN_CREATE,
    ),
    Case(m.AUDIT, lambda own, other: m.AuditBody(5), m.AuditAnswer, (O.AUDIT_READ,)),
    Case(m.BUNDLE, lambda own, other: NOTHING, m.BundleAnswer, (O.EVENTS,)),
    Case(m.FOLLOW, lambda own, other: m.FollowBody(0), m.BundleAnswer, (O.EVENTS,)),
    Case(m.CRL, lambda own, other: NOTHING, m.CrlAnswer, (O.CRL_READ,)),
    Case(m.STATUS, lambda own, other: NOTHING, m.StatusAnswer, (O.STATUS,)),
    Case(LOG_CALL, lambda own, other: LogCall("localhost/a", "GET", "ct/v1/get-sth"), LogReply, (O.LOG_READ,)),
    Case(LOG_CALL, lambda own, other: LogCall("localhost/a", "POST", "ct/v1/add-chain"), LogReply, (O.LOG_SUBMIT,)),
    Case(LOG_CALL, lambda own, other: LogCall("localhost/a", "post", "ct/v1/add-chain"), LogReply, (O.LOG_SUBMIT,)),
    Case(m.REVOKE, lambda own, other: m.RevokeBody("nobody"), m.Nothing, (O.REVOKE_OWN, O.REVOKE), label="of nobody"),
    Case(m.REVOKE, lambda own, other: m.RevokeBody(other, "superseded"), m.Nothing, (O.REVOKE_OWN, O.REVOKE)),
    Case(m.REVOKE, lambda own, other: m.RevokeBody(_own(own), "superseded"), m.Nothing, (O.REVOKE_OWN,)),
)


async def _outcome(calls: RpcClient, case: Case, body: msgspec.Struct) -> str:
    """`granted`, or by what name it was refused. A failure that says something else was granted, too."""
    try:
        if case.method == m.FOLLOW:
            async for _ in calls.follow(case.method, body, case.answer):
                break
        else:
            await calls.call(case.method, body, case.answer)
    except AccessDenied:
        return "AccessDenied"
    except CallFailed as error:
        return error.kind
    except Exception as error:
        return type(error).__name__
    return "granted"


async def _everything(served: Served) -> set[str]:
    return set(served.calls._methods)


def _lines(world: World, decision: Decision) -> list[tuple[str, str]]:
    return [(one.operation, one.actor) for one in read_audit(world.ca / AUDIT, last=10_000) if one.decision == decision]


def test_every_role_may_what_the_table_says(tmp_path: Path) -> None:
    """Each case, each role: refused or not as the table says, and each refusal in the audit log as what it was."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            assert {case.method for case in CASES} | {m.JOIN} == await _everything(served), "a method is not tested here"
            expected: list[tuple[str, str]] = []
            for role in Role:
                own = await world.credentials(served, f"the-{role}", role)
                calls = await callers.calls(own)
                for number, case in enumerate(CASES):
                    other = f"other-{role}-{number}"
                    await world.credentials(served, other, Role.NODE)
                    outcome = await _outcome(calls, case, case.body(own, other))
                    refused = case.refused_as(role)
                    what = f"{case.method} {case.label} {case.needs} by {role}: {outcome}"
                    if refused is not None:
                        assert outcome == "AccessDenied", what
                        expected.append((refused, f"the-{role} [{role}]"))
                    else:
                        assert outcome in ("granted", "NotFound", "BadRequest"), what
                        assert (outcome == "granted") != bool(case.label), what
            refusals = [one for one in _lines(world, Decision.REFUSED) if one[1].startswith("the-")]
            seen = [(operation, actor) for operation, actor in refusals if (operation, actor.split(" via ")[0]) in expected]
            assert [(operation, actor.split(" via ")[0]) for operation, actor in seen] == expected
            assert len(expected) > 40, "the table refuses more than that"
        assert world.audit().intact

    asyncio.run(main())


def test_over_joining_there_is_nothing_but_joining(tmp_path: Path) -> None:
    """Neither somebody without a certificate nor an administrator, when they come over stoq-join/1; and whoever asks for
    joining on stoq/1 finds none."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            admin = await world.credentials(served, "admin", Role.ADMIN)
            before = _lines(world, Decision.GRANTED)
            for credentials in (None, admin):
                calls = await callers.calls(credentials, ALPN_JOIN)
                for case in CASES:
                    outcome = await _outcome(calls, case, case.body(admin, "admin"))
                    assert outcome == "UnknownMethod", f"{case.method}: {outcome}"
                join = m.JoinBody(bytes(16), make_csr(new_key(), "x"))
                with pytest.raises(TokenRefused, match="unknown"):
                    await calls.call(m.JOIN, join, m.ChainAnswer)
            assert _lines(world, Decision.GRANTED) == before
            assert _lines(world, Decision.REFUSED)[-1][0] == O.JOIN
            with pytest.raises(CallFailed) as failed:
                await (await callers.calls(admin, ALPN_STOQ)).call(m.JOIN, join, m.ChainAnswer)
            assert failed.value.kind == "UnknownMethod"

    asyncio.run(main())


def test_roles_end_with_the_certificate(tmp_path: Path) -> None:
    """A connection that outlives the certificate it was made with has its caller's roles no longer."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            admin = await world.credentials(served, "admin", Role.ADMIN, lifetime_s=60)
            calls = await callers.calls(admin)
            await calls.call(m.LIST, m.ListBody(), m.ListAnswer)
            world.clock.ahead = 60 + CLOCK_SKEW_S + 1
            with pytest.raises(AccessDenied, match="has not expired"):
                await calls.call(m.LIST, m.ListBody(), m.ListAnswer)
            with pytest.raises(AccessDenied):
                await calls.call(m.RENEW, m.RenewBody(make_csr(new_key())), m.ChainAnswer)
            operation, actor = _lines(world, Decision.REFUSED)[-1]
            assert operation == O.RENEW and "expired" in actor
        assert world.audit().intact

    asyncio.run(main())


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("remove", Damage.REMOVED),
        ("alter", Damage.ALTERED),
        ("swap", Damage.REORDERED),
        ("repeat", Damage.INSERTED),
        ("cut", Damage.TAIL_REMOVED),
    ],
)
def test_what_was_done_to_the_audit_log_is_found(tmp_path: Path, damage: str, found: Damage) -> None:
    """A refusal that is removed, altered, moved, repeated or cut off."""

    async def main() -> None:
        world = World(tmp_path)
        await world.init(("a",))
        async with world.serve(("a",)) as served, world.callers(served) as callers:
            calls = await callers.calls(await world.credentials(served, "node", Role.NODE))
            for which in ("first", "second", "third"):
                with pytest.raises(AccessDenied):
                    await calls.call(m.REVOKE, m.RevokeBody(which), m.Nothing)
        assert world.audit().intact
        path = world.ca / AUDIT
        _damage(path, damage)
        report = world.audit()
        assert report.finding is not None and report.finding.damage is found, report

    asyncio.run(main())


def _damage(path: Path, how: str) -> None:
    lines: Sequence[bytes] = path.read_bytes().splitlines(keepends=True)
    at = next(index for index, line in enumerate(lines) if b'"second"' in line)
    changed = list(lines)
    if how == "remove":
        del changed[at]
    elif how == "alter":
        changed[at] = changed[at].replace(b'"refused"', b'"granted"')
    elif how == "swap":
        changed[at], changed[at + 1] = changed[at + 1], changed[at]
    elif how == "repeat":
        changed.insert(at, changed[at])
    else:
        del changed[at:]
    path.write_bytes(b"".join(changed))

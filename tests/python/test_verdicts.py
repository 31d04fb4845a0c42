"""Remembered verdicts on certificate chains: used while everything they rest on is valid, for the same chain
and the same purpose only, and never instead of a refusal."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from control.devcerts import issue, make_authority
from control.handshake import HandshakeConfig, shared
from control.handshake.factory import TlsFactory
from control.handshake.verdicts import Verdict, VerdictCache, validity, verdict_key
from control.handshake.verify import verify_chain
from dataplane.handshake import PeerIdentity
from tests.python.conftest import Pki
from tests.python.loopback import Loopback

HOUR = datetime.timedelta(hours=1)
PEER = PeerIdentity(bytes(32), "a", b"der")


def test_a_chain_is_verified_once(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        verify_chain(*arguments, **named)

    monkeypatch.setattr(shared, "verify_chain", counted)
    client, server = TlsFactory(pki.client), TlsFactory(pki.server)
    for _ in range(3):
        pair = Loopback(client, server).run()
        assert pair.client.identity is not None and pair.client.identity.node_id == pki.b.node_id
        assert pair.server.identity is not None and pair.server.identity.node_id == pki.a.node_id
    assert len(calls) == 2  # Each end once.
    assert len(client.verdicts) == len(server.verdicts) == 1


def test_a_refusal_is_not_remembered_nor_forgotten(pki: Pki) -> None:
    other = make_authority(days=1, name="another CA")
    stranger = HandshakeConfig(issue(other, "a"), pki.client.trust, alpns=pki.client.alpns)
    client, server = TlsFactory(stranger), TlsFactory(pki.server)
    for _ in range(2):
        pair = Loopback(client, server).run()
        assert pair.server.alpn is None and pair.server.failure is not None
    assert len(server.verdicts) == 0


def test_a_verdict_ends_with_the_first_certificate_it_rests_on() -> None:
    authority = make_authority(days=30, chain_length=1)
    leaf = issue(authority, "a", days=2)
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = validity((leaf.certificate, *leaf.chain), authority.trust, now)
    assert begins <= now
    assert ends == leaf.certificate.not_valid_after_utc < authority.trust.anchors[0].not_valid_after_utc
    short = make_authority(days=1)
    _, ends = validity((issue(short, "a", days=9).certificate,), short.trust, now)
    assert ends == short.trust.anchors[0].not_valid_after_utc


def test_outside_its_time_a_verdict_is_none() -> None:
    cache, now = VerdictCache(), datetime.datetime.now(datetime.UTC)
    cache.put(b"k", Verdict(PEER, now - HOUR, now + HOUR))
    assert cache.get(b"k", now) is PEER
    assert cache.get(b"k", now + HOUR) is PEER
    assert cache.get(b"k", now + 2 * HOUR) is None
    assert cache.get(b"k", now) is None  # The clock that went back does not bring it back.


def test_the_key_is_the_whole_chain_and_the_purpose() -> None:
    keys = {
        verdict_key([b"a", b"b"], None),
        verdict_key([b"ab"], None),
        verdict_key([b"a"], None),
        verdict_key([b"a", b"b"], "node"),
        verdict_key([b"a", b"b"], "nod"),
        verdict_key([b"a", b"b"], ""),
        verdict_key([b"b", b"a"], None),
    }
    assert len(keys) == 7


def test_the_one_not_met_for_longest_makes_room() -> None:
    cache, now = VerdictCache(limit=2), datetime.datetime.now(datetime.UTC)
    verdict = Verdict(PEER, now - HOUR, now + HOUR)
    for key in (b"1", b"2"):
        cache.put(key, verdict)
    assert cache.get(b"1", now) is PEER
    cache.put(b"3", verdict)
    assert len(cache) == 2
    assert cache.get(b"2", now) is None and cache.get(b"1", now) is PEER and cache.get(b"3", now) is PEER

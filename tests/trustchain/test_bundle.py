"""The trust bundle: there and back, every mistake in it told, never half a file, never an older one."""

from __future__ import annotations

import datetime
import errno
import os
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from control.trustchain.bundle import (
    MAX_BUNDLE_BYTES,
    BundleError,
    InclusionMode,
    InclusionPolicy,
    LogRecord,
    PinRecord,
    RequiredRoles,
    RevocationRecord,
    StaleBundle,
    TrustBundle,
    compile_bundle,
    decode_bundle,
    load_bundle,
    revoke,
    save_bundle,
    take_crl,
)
from control.trustchain.pins import format_pin
from control.trustchain.verifier import TrustVerifier, from_state
from tests.trustchain.pki import DAY, HOUR, NOW, Issuer, World, make_root

PINS = PinRecord((format_pin(bytes(32)), format_pin(bytes([1] * 32))))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def full(world: World) -> TrustBundle:
    """With everything in it."""
    return world.bundle(
        pins={"node-a": PINS},
        inclusion=InclusionPolicy(InclusionMode.SAMPLED, 0.5),
        required_roles=RequiredRoles(client=("node", "operator")),
        revocations=(
            RevocationRecord(at=NOW, issuer_key_hash=bytes(32), serial="f" * 40, reason="keyCompromise"),
            RevocationRecord(at=NOW, key_hash=bytes([7] * 32)),
        ),
        crl_numbers={"00": 3},
    )


def test_there_and_back(full: TrustBundle, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    save_bundle(path, full)
    assert load_bundle(path) == full
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert from_state(TrustVerifier(full).export().state).bundle == full


def test_a_file_is_whole_or_as_it_was(full: TrustBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trust.json"
    save_bundle(path, full)

    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BundleError, match="No space left"):
        save_bundle(path, msgspec.structs.replace(full, generation=2))
    assert load_bundle(path) == full
    assert [one.name for one in tmp_path.iterdir()] == ["trust.json"]


def test_what_cannot_be_read(world: World, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    with pytest.raises(BundleError, match=r"cannot read .*No such file"):
        load_bundle(path)
    good = world.bundle().encode()
    for data in (b"", b"{}", good[:-1], good.replace(b'"anchors"', b'"anchor"'), b"\xff" + good, b"[]"):
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"trust\.json: the trust bundle cannot be read"):
            load_bundle(path)
    with pytest.raises(BundleError, match="are taken"):
        decode_bundle(bytes(MAX_BUNDLE_BYTES + 1))
    with pytest.raises(BundleError, match="version 2"):
        decode_bundle(world.bundle(version=2).encode())


def _log(world: World, **more: object) -> tuple[LogRecord, ...]:
    return (msgspec.structs.replace(world.logs[0].record, **more),)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: {"anchors": ()}, "no certificate authority"),
        (lambda w: {"anchors": (b"der",)}, "is no certificate"),
        (lambda w: {"logs": _log(w, key=b"key")}, "cannot be parsed"),
        (lambda w: {"logs": (*_log(w), *_log(w, name="twin"))}, "have the same key"),
        (lambda w: {"logs": ()}, "no certificate could be good"),
        (lambda w: {"scts_required": 3}, "no certificate could be good"),
        (lambda w: {"scts_required": -1}, "no certificate could be good"),
        (lambda w: {"scts_required": 0, "inclusion": InclusionPolicy(InclusionMode.ALWAYS)}, "at least one SCT"),
        (lambda w: {"inclusion": InclusionPolicy(InclusionMode.SAMPLED, 0.0)}, "a sample is"),
        (lambda w: {"inclusion": InclusionPolicy(InclusionMode.SAMPLED, float("nan"))}, "a sample is"),
        (lambda w: {"pins": {"a": PinRecord(PINS.pins[:1])}}, "needs a backup"),
        (lambda w: {"pins": {"a": PINS, "A.": PINS}}, "pinned twice"),
        (lambda w: {"required_roles": RequiredRoles(server=("king",))}, "is no role"),
        (lambda w: {"revocations": (RevocationRecord(at=NOW, serial="1"),)}, "key hash"),
        (lambda w: {"revocations": (RevocationRecord(at=NOW, issuer_key_hash=bytes(32), serial="-1"),)}, "in hex"),
        (lambda w: {"revocations": (RevocationRecord(at=NOW, issuer_key_hash=bytes(32), serial="f" * 41),)}, "in hex"),
        (lambda w: {"revocations": (RevocationRecord(at=NOW, key_hash=b"x"),)}, "32 bytes"),
        (lambda w: {"valid_until": NOW - DAY}, "ends before it begins"),
        (lambda w: {"valid_until": (NOW + DAY).replace(tzinfo=None)}, "time zone"),
        (lambda w: {"generation": -1}, "negative"),
    ],
)
def test_mistakes_are_told(world: World, change: object, text: str) -> None:
    with pytest.raises(BundleError, match=text):
        compile_bundle(world.bundle(**change(world)))  # type: ignore[operator]


def test_only_a_newer_one_is_taken(world: World) -> None:
    verifier = TrustVerifier(world.bundle(generation=5))
    verifier.update(world.bundle(generation=5).encode())
    with pytest.raises(StaleBundle, match="forget revocations"):
        verifier.update(world.bundle(generation=4).encode())
    with pytest.raises(StaleBundle, match="another trust bundle of generation 5"):
        verifier.update(world.bundle(generation=5, scts_required=2).encode())
    with pytest.raises(BundleError):
        verifier.update(world.bundle(generation=6, scts_required=9).encode())
    assert verifier.bundle == world.bundle(generation=5)
    verifier.update(world.bundle(generation=6, scts_required=2).encode())
    assert verifier.bundle.generation == 6 and verifier.rules.bundle.scts_required == 2


def test_the_policy_changes_with_rules_and_not_with_revocations(full: TrustBundle) -> None:
    policy = compile_bundle(full).policy
    same = msgspec.structs.replace(
        full, generation=9, revocations=(), crl_numbers={}, issued_at=NOW, valid_until=NOW + DAY
    )
    assert compile_bundle(same).policy == policy
    changes: list[dict[str, object]] = [
        {"scts_required": 2},
        {"pins": {}},
        {"required_roles": RequiredRoles()},
        {"logs": full.logs[:1]},
        {"hard_stale": False},
        {"inclusion": InclusionPolicy()},
    ]
    for change in changes:
        assert compile_bundle(msgspec.structs.replace(full, **change)).policy != policy, change


# ---- the next generation ----


def crl_of(issuer: Issuer, number: int, revoked: list[x509.Certificate]) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + HOUR)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(NOW)
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
            .build()
        )
    return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)


def test_a_crl_says_what_is_revoked(world: World, full: TrustBundle) -> None:
    leaf, other = world.issue("a").certificate, world.issue("b").certificate
    issuer = world.intermediate
    first = take_crl(full, crl_of(issuer, 1, [leaf]), issuer.certificate)
    assert first.generation == full.generation + 1 and first.valid_until == NOW + HOUR
    by_hand = revoke(full, [(leaf, issuer.certificate)], reason="keyCompromise", at=NOW)
    assert set(compile_bundle(first).revoked) == set(compile_bundle(by_hand).revoked)
    second = take_crl(first, crl_of(issuer, 2, [other]), issuer.certificate)
    expected = revoke(full, [(other, issuer.certificate)], reason="keyCompromise", at=NOW)
    assert set(compile_bundle(second).revoked) == set(compile_bundle(expected).revoked)
    assert {one.reason for one in second.revocations} == {"keyCompromise", "unspecified"}
    with pytest.raises(StaleBundle, match="number 1, the last one had 2"):
        take_crl(second, crl_of(issuer, 1, []), issuer.certificate)
    with pytest.raises(BundleError, match="not signed by"):
        take_crl(second, crl_of(make_root("intermediate"), 3, []), issuer.certificate)
    with pytest.raises(BundleError, match="cannot be read"):
        take_crl(second, b"crl", issuer.certificate)


def test_revoking_does_not_shorten_what_is_fresh(world: World) -> None:
    bundle = world.bundle()
    leaf = world.issue("a").certificate
    late = NOW + datetime.timedelta(days=5)
    after = revoke(bundle, [(leaf, world.intermediate.certificate)], reason="superseded", at=late)
    assert after.valid_until - after.issued_at == bundle.valid_until - bundle.issued_at
    assert after.valid_until > bundle.valid_until

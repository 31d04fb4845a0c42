"""The pure verifier: one certificate for each reason to refuse, and what a good one is good for."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.ctlog.precert import SCT_LIST, certificate_entry, embedded_entry, embedded_scts, key_hash, sct_extension
from control.ctlog.structs import encode_sct_list
from control.handshake import Credentials, Trust
from control.handshake.alerts import Alert
from control.trustchain.inclusion import InclusionProof
from control.trustchain.known_logs import known_logs
from control.trustchain.pins import PinSet, format_pin
from control.trustchain.reasons import Reason
from control.trustchain.revoked import Revocation, issuer_and_serial
from control.trustchain.roles import ROLES_OID, Role
from control.trustchain.verify import Context, Inclusion, Verdict, verify
from tests.trustchain.pki import DAY, HOUR, NOW, Log, World, chain_of, issue, make_root

SECOND = datetime.timedelta(seconds=1)
REVOCATION = Revocation("keyCompromise", NOW)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def good(world: World) -> Credentials:
    return world.issue("node-a")


def context(world: World, **more: object) -> Context:
    values: dict[str, object] = {"logs": known_logs(log.known for log in world.logs)}
    return Context(world.trust, NOW, **(values | more))  # type: ignore[arg-type]


def judged(world: World, credentials: Credentials, **more: object) -> Verdict:
    return verify(chain_of(credentials), None, context(world, **more))


def test_a_good_one_and_what_it_rests_on(world: World, good: Credentials) -> None:
    for name in (None, "node-a", "::1"):
        verdict = judged(world, good, server_name=name, scts_required=2, required_roles=frozenset({"node", "admin"}))
        assert (verdict.good, verdict.reason, verdict.alert) == (True, Reason.GOOD, None), verdict.text
        assert verdict.identity is not None and verdict.identity.node_id == good.node_id
        assert verdict.roles == {Role.NODE} and verdict.identity.roles == ("node",)
        assert verdict.log_ids == tuple(log.log_id for log in world.logs)
        assert [entry.index for entry in verdict.logged] == [0, 0]
        assert verdict.inclusion is Inclusion.NOT_DEMANDED
        assert (verdict.begins, verdict.ends) == (NOW - HOUR, NOW + DAY)
        path = [good.certificate, *good.chain, world.root.certificate]
        assert verdict.fingerprints == tuple(one.fingerprint(SHA256()) for one in path)
        assert {key_hash(one) for one in path} < set(verdict.identity.rests_on)
    # Parsed certificates are as good as DER.
    assert verify([good.certificate, *good.chain], None, context(world)).good


def test_until_the_bundle_is_stale(world: World, good: Credentials) -> None:
    assert judged(world, good, fresh_until=NOW + HOUR).ends == NOW + HOUR
    refused = judged(world, good, fresh_until=NOW - SECOND)
    assert (refused.good, refused.reason) == (False, Reason.TRUST_STALE) and "newer trust bundle" in refused.text


# ---- one for each reason ----

Case = Callable[[World], tuple[Credentials, dict[str, object]]]


def mis_issued(world: World) -> tuple[Credentials, dict[str, object]]:
    """By another authority of the same name."""
    return issue(make_root("root"), "node-a", world.logs), {}


def expired(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", begins=NOW - 2 * DAY, ends=NOW - SECOND), {}


def not_yet_valid(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", begins=NOW + SECOND), {}


def wrong_name(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-b"), {"server_name": "node-a"}


def wrong_purpose_server(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]), {"server_name": "node-a"}


def wrong_purpose_client(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", usages=[ExtendedKeyUsageOID.SERVER_AUTH]), {}


def revoked_leaf(world: World) -> tuple[Credentials, dict[str, object]]:
    made = world.issue("node-a")
    by_issuer = issuer_and_serial(key_hash(world.intermediate.certificate), made.certificate.serial_number)
    return made, {"revoked": {by_issuer: REVOCATION}}


def revoked_key(world: World) -> tuple[Credentials, dict[str, object]]:
    made = world.issue("node-a")
    return made, {"revoked": {made.node_id: REVOCATION}}


def revoked_intermediate(world: World) -> tuple[Credentials, dict[str, object]]:
    certificate = world.intermediate.certificate
    by_issuer = issuer_and_serial(key_hash(world.root.certificate), certificate.serial_number)
    return world.issue("node-a"), {"revoked": {by_issuer: REVOCATION}}


def revoked_root_key(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a"), {"revoked": {key_hash(world.root.certificate): REVOCATION}}


def wrong_pin(world: World) -> tuple[Credentials, dict[str, object]]:
    pins = PinSet.parse([format_pin(bytes(32)), format_pin(bytes([1] * 32))])
    return world.issue("node-a"), {"pins": {"node-a": pins}}


def wrong_role(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a"), {"required_roles": frozenset({"operator"})}


def no_role(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", roles=()), {"required_roles": frozenset({"node"})}


def unreadable_role(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", roles=(), extra=x509.UnrecognizedExtension(ROLES_OID, b"\x30\x01")), {}


def un_logged(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", ()), {}


def unknown_log(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", [Log("elsewhere")]), {}


def damaged_sct(world: World) -> tuple[Credentials, dict[str, object]]:
    made = world.issue("node-a")
    sct, other = embedded_scts(made.certificate)
    signature = bytearray(sct.signature)
    signature[-1] ^= 1
    return world.issue("node-a", (), scts=[replace(sct, signature=bytes(signature)), other]), {}


def sct_of_another(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", (), scts=embedded_scts(world.issue("node-a").certificate)), {}


def sct_of_another_issuer(world: World) -> tuple[Credentials, dict[str, object]]:
    """The same TBSCertificate, but promised under another issuer's key."""
    made = world.issue("node-a", [world.logs[0]])
    entry = replace(embedded_entry(made.certificate, made.chain[0]), issuer_key_hash=bytes(32))
    return made, {"_scts": [world.logs[0].sct(entry)]}


def sct_from_the_future(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", at=NOW + 2 * HOUR), {}


def retired_log(world: World) -> tuple[Credentials, dict[str, object]]:
    log = Log("retired", ends=NOW - 2 * HOUR)
    return world.issue("node-a", [log]), {"logs": known_logs([log.known])}


def wrong_shard(world: World) -> tuple[Credentials, dict[str, object]]:
    log = Log("last year's", shard=(NOW - 300 * DAY, NOW + HOUR))
    return world.issue("node-a", [log]), {"logs": known_logs([log.known])}


def one_log_of_two(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", [world.logs[0]]), {"scts_required": 2}


def one_log_twice(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", [world.logs[0], world.logs[0]]), {"scts_required": 2}


def unreadable_scts(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a", (), sct_value=x509.UnrecognizedExtension(SCT_LIST, b"\x04\x03\0\5x")), {}


def no_proof(world: World) -> tuple[Credentials, dict[str, object]]:
    return world.issue("node-a"), {"proof_demanded": True}


CASES: list[tuple[Case, Reason, int]] = [
    (mis_issued, Reason.UNKNOWN_CA, 48),
    (expired, Reason.EXPIRED, 45),
    (not_yet_valid, Reason.NOT_YET_VALID, 45),
    (wrong_name, Reason.WRONG_NAME, 42),
    (wrong_purpose_server, Reason.WRONG_PURPOSE, 43),
    (wrong_purpose_client, Reason.WRONG_PURPOSE, 43),
    (revoked_leaf, Reason.REVOKED, 44),
    (revoked_key, Reason.REVOKED, 44),
    (revoked_intermediate, Reason.ISSUER_REVOKED, 44),
    (revoked_root_key, Reason.ISSUER_REVOKED, 44),
    (wrong_pin, Reason.WRONG_PIN, 46),
    (wrong_role, Reason.WRONG_ROLE, 49),
    (no_role, Reason.WRONG_ROLE, 49),
    (unreadable_role, Reason.MALFORMED, 42),
    (un_logged, Reason.NO_SCT, 46),
    (unknown_log, Reason.SCT_UNKNOWN_LOG, 46),
    (damaged_sct, Reason.SCT_SIGNATURE, 42),
    (sct_of_another, Reason.SCT_SIGNATURE, 42),
    (sct_from_the_future, Reason.SCT_FUTURE, 46),
    (retired_log, Reason.SCT_LOG_RETIRED, 46),
    (wrong_shard, Reason.SCT_WRONG_SHARD, 46),
    (one_log_of_two, Reason.SCT_TOO_FEW, 46),
    (one_log_twice, Reason.SCT_TOO_FEW, 46),
    (unreadable_scts, Reason.MALFORMED, 42),
    (no_proof, Reason.INCLUSION_MISSING, 46),
]


@pytest.mark.parametrize(("case", "reason", "alert"), CASES, ids=[case.__name__ for case, _, _ in CASES])
def test_refused(world: World, case: Case, reason: Reason, alert: int) -> None:
    credentials, more = case(world)
    verdict = judged(world, credentials, **more)
    assert (verdict.good, verdict.reason, verdict.alert) == (False, reason, alert), verdict.text
    assert verdict.identity is None and not verdict.logged
    assert verdict.subject in ("node-a", "node-b")
    assert len(verdict.text) > 20


def test_every_reason_has_an_alert_and_they_are_tls_ones() -> None:
    for reason in Reason:
        assert isinstance(reason.alert, Alert) == (reason is not Reason.GOOD)


# ---- pins ----


def test_the_primary_and_the_backup_pin_are_both_good(world: World, good: Credentials) -> None:
    other = format_pin(bytes(32))
    issuer = format_pin(key_hash(world.intermediate.certificate))
    for mine in (format_pin(good.node_id), issuer):
        for pins in ([mine, other], [other, mine]):
            for name in ("node-a", "::1", good.node_id.hex()):
                assert judged(world, good, pins={name: PinSet.parse(pins)}).good


def test_pins_of_others_play_no_part(world: World, good: Credentials) -> None:
    pins = PinSet.parse([format_pin(bytes(32)), format_pin(bytes([1] * 32))])
    assert judged(world, good, pins={"node-b": pins}).good
    # But whoever claims a pinned name must have a pinned key, whatever name it was asked for.
    assert judged(world, good, pins={"node-a": pins}, server_name="::1").reason is Reason.WRONG_PIN


# ---- SCTs ----


def test_scts_that_are_delivered_otherwise_count(world: World) -> None:
    made = world.issue("node-a", ())
    scts = [log.sct(certificate_entry(made.certificate)) for log in world.logs]
    assert verify(chain_of(made), scts, context(world, scts_required=2)).good
    assert verify(chain_of(made), None, context(world)).reason is Reason.NO_SCT
    other = world.issue("node-a", ())
    assert verify(chain_of(other), scts, context(world)).reason is Reason.SCT_SIGNATURE
    # An SCT for the precertificate is not one for the certificate.
    embedded = embedded_scts(world.issue("node-a").certificate)
    assert verify(chain_of(made), embedded, context(world)).reason is Reason.SCT_SIGNATURE
    made, more = sct_of_another_issuer(world)
    assert verify(chain_of(made), more["_scts"], context(world)).reason is Reason.SCT_SIGNATURE  # type: ignore[arg-type]


def test_none_is_demanded_and_a_bad_one_is_refused_all_the_same(world: World) -> None:
    assert judged(world, world.issue("node-a", ()), scts_required=0).good
    credentials, _ = damaged_sct(world)
    assert judged(world, credentials, scts_required=0).reason is Reason.SCT_SIGNATURE


def test_one_of_an_unknown_log_beside_a_good_one_does_no_harm(world: World) -> None:
    made = world.issue("node-a", [Log("elsewhere"), world.logs[0]])
    assert judged(world, made).log_ids == (world.logs[0].log_id,)


def test_what_a_log_gave_before_it_retired_stays_good(world: World) -> None:
    log = Log("retired", ends=NOW - HOUR + SECOND)
    made = world.issue("node-a", [log])
    assert judged(world, made, logs=known_logs([log.known])).good
    log.begins = NOW - HOUR + SECOND
    assert judged(world, made, logs=known_logs([log.known])).reason is Reason.SCT_LOG_RETIRED


def test_the_shards_ends(world: World) -> None:
    log = Log("shard", shard=(NOW + DAY, NOW + 2 * DAY))
    for ends, good in (
        (NOW + DAY - SECOND, False),
        (NOW + DAY, True),
        (NOW + 2 * DAY - SECOND, True),
        (NOW + 2 * DAY, False),
    ):
        verdict = judged(world, world.issue("node-a", [log], ends=ends), logs=known_logs([log.known]))
        assert verdict.good == good and (good or verdict.reason is Reason.SCT_WRONG_SHARD)


def test_no_byte_of_the_sct_list_may_be_another(world: World) -> None:
    """Each byte of the list, in a certificate that its issuer has signed as it is, so that nothing but the SCTs can be
    wrong; and an end that is missing or too much."""
    rng = random.Random(7)
    key = world.intermediate.key
    made = world.issue("node-a", key=key)
    scts = encode_sct_list(embedded_scts(made.certificate))
    whole = sct_extension(embedded_scts(made.certificate)).value
    begin = len(whole) - len(scts)
    rules = context(world, scts_required=2)

    def resigned(value: bytes) -> Verdict:
        builder = x509.CertificateBuilder(
            made.certificate.issuer,
            made.certificate.subject,
            key.public_key(),
            made.certificate.serial_number,
            made.certificate.not_valid_before_utc,
            made.certificate.not_valid_after_utc,
            [
                replaced(extension, value) if extension.oid == SCT_LIST else extension
                for extension in made.certificate.extensions
            ],
        )
        signed = builder.sign(key, made.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
        return verify([signed, *made.chain], None, rules)

    def replaced(extension: x509.Extension[x509.ExtensionType], value: bytes) -> x509.Extension[x509.ExtensionType]:
        return x509.Extension(SCT_LIST, extension.critical, x509.UnrecognizedExtension(SCT_LIST, value))

    assert resigned(whole).good
    seen = set()
    for at in range(begin, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        verdict = resigned(bytes(damaged))
        assert not verdict.good, at
        seen.add(verdict.reason)
    for value in (whole[:-1], whole + b"\0", b"", whole[:begin]):
        assert not resigned(value).good
    assert {Reason.MALFORMED, Reason.SCT_SIGNATURE, Reason.SCT_TOO_FEW} <= seen


# ---- inclusion proofs ----


def proof_of(log: Log, verdict: Verdict) -> InclusionProof:
    entry = next(entry for entry in verdict.logged if entry.log_id == log.log_id)
    head = log.head()
    index, hashes = log.proof(entry.leaf_hash, head.size)
    return InclusionProof(log.log_id, index, hashes, head)


def test_an_inclusion_proof_where_one_is_demanded() -> None:
    world = World()
    others = [world.issue(f"node-{number}") for number in range(6)]
    made = world.issue("node-a")
    others.append(world.issue("node-z"))
    plain = judged(world, made)
    proof = proof_of(world.logs[0], plain)
    assert proof.index == len(others) - 1 and len(proof.hashes) == 3

    def with_proof(one: InclusionProof, **more: object) -> Verdict:
        return judged(world, made, proof_demanded=True, proofs=(one,), **more)

    good = with_proof(proof)
    assert good.good and good.inclusion is Inclusion.PROVED
    elsewhere = proof_of(world.logs[0], judged(world, others[0]))
    head = proof.head
    for bad in (
        elsewhere,
        replace(elsewhere, index=proof.index),
        replace(proof, index=proof.index - 1),
        replace(proof, hashes=proof.hashes[:-1]),
        replace(proof, hashes=(*proof.hashes, bytes(32))),
        replace(proof, hashes=(bytes(32), *proof.hashes[1:])),
        replace(proof, head=replace(head, root=bytes(32))),
        replace(proof, head=replace(head, size=head.size - 1)),
        replace(proof, head=replace(head, timestamp=head.timestamp + 1)),
        replace(proof, head=world.logs[1].head()),
        replace(proof, head=world.logs[0].head(NOW + HOUR)),
    ):
        refused = with_proof(bad)
        assert (refused.good, refused.reason) == (False, Reason.INCLUSION_WRONG), refused.text
        assert not judged(world, made, proofs=(bad,)).good, "a wrong proof is never passed over"
    # One of a log whose SCT does not count proves nothing.
    stranger = replace(proof, log_id=bytes(32))
    assert with_proof(stranger).reason is Reason.INCLUSION_MISSING


# ---- hostile chains ----


def test_what_is_no_chain(world: World, good: Credentials) -> None:
    der = chain_of(good)
    for chain in ([], [b""], [der[0][:-1], *der[1:]], [der[0] + b"\0"], der + [der[1]] * 15, [bytes(1000)]):
        verdict = verify(chain, None, context(world))
        assert not verdict.good and verdict.alert is Alert.BAD_CERTIFICATE, verdict.text


def test_flipped_bits_are_never_good_and_never_raise(world: World, good: Credentials) -> None:
    rng = random.Random(11)
    der = chain_of(good)
    rules = context(world)
    signed = [one.tbs_certificate_bytes for one in (good.certificate, *good.chain)]
    for _ in range(300):
        chain = [bytearray(one) for one in der]
        target = rng.choice(chain)
        target[rng.randrange(len(target))] ^= 1 << rng.randrange(8)
        verdict = verify([bytes(one) for one in chain], None, rules)
        if verdict.good:  # A bit outside of what is signed, and of the signature: the same certificate.
            assert [one.tbs_certificate_bytes for one in verdict.path[:2]] == signed


def test_an_intermediate_that_is_not_sent(world: World, good: Credentials) -> None:
    assert verify(chain_of(good)[:1], None, context(world)).reason is Reason.UNKNOWN_CA
    both = Trust((world.root.certificate, world.intermediate.certificate))
    verdict = verify(chain_of(good)[:1], None, replace(context(world), anchors=both))
    assert verdict.good and len(verdict.fingerprints) == 2

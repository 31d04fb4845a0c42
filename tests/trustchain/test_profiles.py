"""Which names, keys and lifetimes a certificate may have, and what a CSR must be."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from control.trustchain.errors import BadRequest, Replayed
from control.trustchain.keys import SigningKey, generate, signature_hash
from control.trustchain.profiles import (
    PROFILES,
    Constraints,
    Names,
    ProfileName,
    check_key,
    check_names,
    lifetime,
    parse_address,
    parse_dns,
)
from control.trustchain.requests import Freshness, check_csr, make_csr, names_for, subject_for

NODE, SERVICE = PROFILES[ProfileName.NODE], PROFILES[ProfileName.SERVICE]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1", "IPv6-only"),
        ("::ffff:192.0.2.1", "IPv4-mapped"),
        ("fe80::1%eth0", "zone"),
        ("::", "not the address of one machine"),
        ("ff02::1", "not the address of one machine"),
        ("2001:db8::/64", "not an IPv6 address"),
        ("node-a", "not an IPv6 address"),
    ],
)
def test_addresses_that_no_certificate_names(address: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        parse_address(address)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a b", "-a", "a-", "a..b", "ä.example", "a" * 64, "192.0.2.1", "a.1", "*.a.b", "x" * 60 + ".y" * 130, "a_b"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadRequest):
        parse_dns(name)


def test_names_are_told_in_one_form() -> None:
    assert parse_dns("Node-A.Example.") == "node-a.example"
    assert parse_dns("*.stoq.example", wildcards=True) == "*.stoq.example"
    for wild in ("*", "*.example", "a.*.example", "*.*.example", "*a.b.example"):
        with pytest.raises(BadRequest):
            parse_dns(wild, wildcards=True)
    names = Names.parse(["a.b", "A.b"], ["::1", "0:0::1"])
    assert names.texts() == ["a.b", "::1"]
    with pytest.raises(BadRequest, match="at most 32"):
        Names.parse([f"n{number}.b" for number in range(33)], [])
    with pytest.raises(BadRequest, match="service certificates only"):
        check_names(NODE, Names(("*.a.b",)))


def test_constraints_bound_names() -> None:
    constraints = Constraints.parse([".Stoq.Example"], ["2001:db8::/32"])
    constraints.check(Names.parse(["stoq.example", "a.b.stoq.example"], ["2001:db8::5"]))
    for names in (Names(("nostoq.example",)), Names(("stoq.example.evil.org",)), Names.parse([], ["2001:db9::1"])):
        with pytest.raises(BadRequest, match="outside"):
            constraints.check(names)
    with pytest.raises(BadRequest, match="prefix"):
        Constraints.parse([], ["2001:db8::1/32"])
    with pytest.raises(BadRequest, match="prefix"):
        Constraints.parse([], ["10.0.0.0/8"])


KEYS: dict[str, SigningKey] = {
    "p256": generate(),
    "p384": generate("p384"),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "rsa2048": rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("profile", list(ProfileName))
def test_keys_a_profile_takes(profile: ProfileName) -> None:
    taken = set()
    for name, key in KEYS.items():
        try:
            check_key(PROFILES[profile], key.public_key())
            taken.add(name)
        except BadRequest:
            pass
    leaf = {"p256", "p384", "ed25519"} if PROFILES[profile].leaf else {"p256", "p384"}
    assert taken == leaf | ({"rsa2048"} if profile is ProfileName.SERVICE else set())


def test_weak_and_odd_keys_are_refused() -> None:
    odd: list[Any] = [
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ]
    for key in odd:
        with pytest.raises(BadRequest, match="is for keys of"):
            check_key(SERVICE, key.public_key())


def test_lifetimes() -> None:
    assert lifetime(NODE, None) == 86400
    assert lifetime(NODE, 3600.5) == 3600
    for wrong in (59.0, 7 * 86400.0 + 1, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadRequest, match="lives"):
            lifetime(NODE, wrong)


def _csr(key: SigningKey, *names: x509.GeneralName, common_names: tuple[str, ...] = ()) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", KEYS)
def test_a_csr_of_each_kind_of_key(kind: str) -> None:
    names = Names.parse(["a.stoq.example"], ["2001:db8::1"])
    checked = check_csr(make_csr(KEYS[kind], "a.stoq.example", names), SERVICE)
    assert (checked.names, checked.common_name) == (names, "a.stoq.example")


def test_a_csr_proves_possession() -> None:
    der = bytearray(make_csr(generate(), "a", Names(("a.b",))))
    der[-1] ^= 1
    with pytest.raises(BadRequest, match="own key"):
        check_csr(bytes(der), NODE)
    # Somebody else's key, put in place of one's own.
    mine, theirs = make_csr(generate()), make_csr(generate())
    point, other = mine.index(b"\x03\x42\x00\x04") + 4, theirs.index(b"\x03\x42\x00\x04") + 4
    stolen = mine[:point] + theirs[other : other + 64] + mine[point + 64 :]
    with pytest.raises(BadRequest, match="own key"):
        check_csr(stolen, NODE)


@pytest.mark.parametrize(
    ("der", "why"),
    [
        (b"", "cannot be used"),
        (b"\x30\x80", "cannot be used"),
        (b"x" * 20_000, "at most"),
        (_csr(KEYS["p256"], x509.IPAddress(ipaddress.IPv4Address("192.0.2.1"))), "IPv6-only"),
        (_csr(KEYS["p256"], x509.IPAddress(ipaddress.IPv6Address("::ffff:192.0.2.1"))), "IPv4-mapped"),
        (_csr(KEYS["p256"], x509.RFC822Name("a@b.example")), "DNS names and IPv6"),
        (_csr(KEYS["p256"], x509.UniformResourceIdentifier("stoq:a")), "DNS names and IPv6"),
        (_csr(KEYS["p256"], x509.DNSName("*.a.example")), "wildcard"),
        (_csr(KEYS["p256"], common_names=("a", "b")), "several common names"),
        (_csr(KEYS["p256"], common_names=("a\nb",)), "printable"),
        (_csr(KEYS["rsa2048"], x509.DNSName("a.example")), "is for keys of"),
    ],
)
def test_csrs_that_are_refused(der: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        check_csr(der, NODE)


def test_any_damage_to_a_csr_is_a_bad_request() -> None:
    der = make_csr(KEYS["p256"], "a.example", Names.parse(["a.example"], ["::1"]))
    for at in range(len(der)):
        with pytest.raises(BadRequest):
            check_csr(der[:at] + bytes([der[at] ^ 0x55]) + der[at + 1 :], NODE)
        with pytest.raises(BadRequest):
            check_csr(der[:at], NODE)


def test_whose_names_count() -> None:
    csr = check_csr(_csr(KEYS["p256"], x509.DNSName("a.example"), common_names=("root",)), NODE)
    nameless = check_csr(_csr(KEYS["p256"], common_names=("root",)), NODE)
    allowed = Names.parse(["a.example", "b.example"], ["::1"])
    assert names_for(NODE, csr, allowed).dns == ("a.example",)
    assert names_for(NODE, nameless, allowed) == allowed
    with pytest.raises(BadRequest, match="not among the names granted"):
        names_for(NODE, csr, Names(("b.example",)))
    with pytest.raises(BadRequest, match="needs a DNS name"):
        names_for(NODE, nameless, None)
    # A common name that is none of the names is not believed, but whoever issues may say one.
    assert subject_for(NODE, "", csr, csr.names) == "a.example"
    assert subject_for(NODE, "node a", csr, csr.names) == "node a"
    assert subject_for(PROFILES[ProfileName.CODE_SIGNING], "", nameless, Names()) == "root"


def test_freshness() -> None:
    for age in (-300.0, 0.0, 300.0):
        Freshness(1e9 - age).check(1e9)
    for age in (-301.0, 301.0, 1e9, float("nan"), float("inf")):
        with pytest.raises(Replayed, match="check both clocks"):
            Freshness(1e9 - age).check(1e9)
    with pytest.raises(BadRequest, match="16 bytes"):
        Freshness(1e9, b"short").check(1e9)

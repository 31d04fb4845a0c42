"""What a monitor looks for and at (control.ctlog.watched): names, what is expected, single entries."""

from __future__ import annotations

import hashlib
import ipaddress
import random
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.alerts import Alert
from control.ctlog.encoding import vector
from control.ctlog.errors import LogError, Malformed
from control.ctlog.precert import POISON_DER, edited_tbs, precertificate_entry, sct_extension
from control.ctlog.structs import Sct, SignedEntry, index_extension, leaf_bytes
from control.ctlog.watched import Examiner, Expected, Extra, Names, decode_extra, quickly_without_poison
from dataplane.errors import ConfigError
from tests.ctlog.world import Ca, authority_key_id, der, make_issuer

CA = Ca()
SPKI = hashlib.sha256(
    CA.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).hexdigest()


def certificate(*names: str, common_name: str = "x", poison: bool = False) -> x509.Certificate:
    """For domains and addresses."""
    builder = CA.builder(common_name)
    if names:
        general = [
            x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() or ":" in one else x509.DNSName(one)
            for one in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if poison:
        builder = builder.add_extension(x509.PrecertPoison(), critical=True)
    return CA.issuer.sign(builder)


def findings(names: list[str], one: x509.Certificate, expected: Expected = Expected()) -> list[Alert]:  # noqa: B008
    """What the examiner says of a certificate or a precertificate, logged as it should be."""
    chain = (der(CA.issuer.certificate), der(CA.root.certificate))
    poisoned = any(extension.oid == x509.PrecertPoison.oid for extension in one.extensions)
    if poisoned:
        entry, extra = precertificate_entry(one, [CA.issuer.certificate]), Extra(der(one), chain)
    else:
        entry, extra = SignedEntry(0, der(one)), Extra(b"", chain)  # type: ignore[arg-type]
    leaf = leaf_bytes(entry, 1, index_extension(7))
    return [one.alert for one in Examiner(Names.parse(names), expected).examine(7, leaf, extra)]


WATCHED = [
    ("example.com", ["example.com"], True),
    ("example.com", ["EXAMPLE.com"], True),
    ("Example.COM.", ["www.example.com"], True),
    ("example.com", ["other.org", "a.b.example.com"], True),
    ("example.com", ["*.example.com"], True),
    ("*.example.com", ["www.example.com"], True),
    ("www.example.com", ["*.example.com"], True),
    ("www.example.com", ["*.com"], False),
    ("example.com", ["*.com"], True),
    ("a.www.example.com", ["*.example.com"], False),
    ("example.com", ["notexample.com"], False),
    ("example.com", ["example.com.evil.org"], False),
    ("www.example.com", ["example.com"], False),
    ("xn--bcher-kva.example", ["xn--bcher-kva.example"], True),
    ("localhost", ["localhost"], True),
    ("fd00::1", ["fd00::1"], True),
    ("fd00:1234::/32", ["fd00:1234:5::9"], True),
    ("fd00:1234::/30", ["fd00:1237::9"], True),
    ("fd00:1234::/32", ["fd00:1235::9"], False),
    ("::/0", ["2001:db8::1"], True),
    ("::/0", ["127.0.0.1"], False),
    (f"spki:{SPKI}", ["any"], True),
    (f"spki:{'00' * 32}", ["any"], False),
    ("*", [], True),
]


@pytest.mark.parametrize("watched, names, hit", WATCHED)
@pytest.mark.parametrize("poison", [False, True], ids=["certificate", "precertificate"])
def test_watched_names(watched: str, names: list[str], hit: bool, poison: bool) -> None:
    found = findings([watched], certificate(*names, poison=poison))
    assert found == ([Alert.UNEXPECTED_CERTIFICATE] if hit else [])
    # Among others that do not match.
    found = findings(["none.invalid", watched, "fd77::/16"], certificate(*names, poison=poison))
    assert found == ([Alert.UNEXPECTED_CERTIFICATE] if hit else [])


def test_a_common_name_in_any_alphabet() -> None:
    """X.509 has strings of one, two and four bytes a character: none hides a name."""
    assert findings(["example.com"], certificate(common_name="www.Example.com")) == [Alert.UNEXPECTED_CERTIFICATE]
    for kind in (x509.name._ASN1Type.BMPString, x509.name._ASN1Type.UniversalString):
        attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, "www.Example.com", _type=kind)
        builder = CA.builder("x")
        builder._subject_name = x509.Name([attribute])
        assert findings(["example.com"], CA.issuer.sign(builder)) == [Alert.UNEXPECTED_CERTIFICATE], kind
    assert findings(["example.com"], certificate(common_name="Example Company")) == []


@pytest.mark.parametrize(
    "text", ["", ".", "10.0.0.1", "::ffff:1.2.3.4/200", "fd00::/129", "bücher.example", "a b", "spki:00", "-", "a..b"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        Names.parse([text])


def test_what_is_expected(tmp_path: Path) -> None:
    """By certificate, key, issuer, and by the certificate that came of a precertificate; the log's word for who issued it
    is not enough."""
    plain, pre = certificate("a.example"), certificate("b.example", poison=True)
    file = tmp_path / "expected"
    key_hash = hashlib.sha256(
        CA.issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()
    root_hash = hashlib.sha256(
        CA.root.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()
    for text, of_plain, of_pre in (
        ("", False, False),
        ("# nothing\n\n", False, False),
        (f"sha256 {hashlib.sha256(der(plain)).hexdigest()}  # a comment\n", True, False),
        (f"sha256:{hashlib.sha256(der(pre)).hexdigest().upper()}\n", False, True),
        (f"spki {SPKI}\n", True, True),
        (f"issuer {key_hash}\n", True, True),
        (f"issuer {root_hash}\n", False, False),
        (plain.public_bytes(Encoding.PEM).decode() + "# and no more\n", True, False),
    ):
        file.write_text(text)
        expected = Expected.read(file)
        for one, hit in ((plain, of_plain), (pre, of_pre)):
            assert (findings(["example"], one, expected) == []) is hit, text
    # Another one's signature: the chain says "issuer", the certificate was not signed by it.
    file.write_text(f"issuer {key_hash}\n")
    other = Ca().issuer
    forged = other.sign(CA.builder("x").add_extension(x509.SubjectAlternativeName([x509.DNSName("c.example")]), False))
    assert findings(["example"], forged, Expected.read(file)) == [Alert.UNEXPECTED_CERTIFICATE]


def test_a_precertificate_is_expected_with_its_certificate(tmp_path: Path) -> None:
    base = CA.builder("d.example")
    pre = CA.issuer.sign(base.add_extension(x509.PrecertPoison(), critical=True))
    final = CA.issuer.sign(base.add_extension(sct_extension([]), critical=False))
    (tmp_path / "expected").write_bytes(final.public_bytes(Encoding.PEM))
    # An empty list of SCTs is none; with one it is expected as what was logged.
    assert findings(["example"], pre, Expected.read(tmp_path / "expected")) == [Alert.UNEXPECTED_CERTIFICATE]
    sct = Sct(bytes(32), 5, b"", b"signature")
    final = CA.issuer.sign(base.add_extension(sct_extension([sct]), critical=False))
    (tmp_path / "expected").write_bytes(final.public_bytes(Encoding.PEM))
    expected = Expected.read(tmp_path / "expected")
    assert findings(["example"], pre, expected) == []
    assert expected.unproven == ("CN=d.example",) and not expected.promises
    (tmp_path / "expected").write_bytes(
        final.public_bytes(Encoding.PEM) + CA.issuer.certificate.public_bytes(Encoding.PEM)
    )
    expected = Expected.read(tmp_path / "expected")
    assert [one.sct for one in expected.promises] == [sct] and not expected.unproven
    assert expected.promises[0].entry == precertificate_entry(pre, [CA.issuer.certificate])


NO_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("data", [b"sha256 00\n", b"md5 " + b"00" * 32, b"\xff\xfe", NO_CERTIFICATE])
def test_expectations_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "expected").write_bytes(data)
    with pytest.raises(LogError):
        Expected.read(tmp_path / "expected")
    with pytest.raises(LogError):
        Expected.read(tmp_path / "missing")


# ---- entries ----


def _shapes(dice: random.Random) -> x509.Certificate:
    """A precertificate with some extensions around the poison, of sizes that need lengths of one to three bytes."""
    builder = CA.builder("x" * dice.randint(1, 64))
    extensions: list[tuple[x509.ExtensionType, bool]] = []
    for number in range(dice.randint(0, 5)):
        oid = x509.ObjectIdentifier(f"1.3.6.1.4.1.99999.{number}")
        size = dice.choice([0, 1, 40, 105, 106, 107, 120, 128, 200, 256, 300, 1000, 40_000])
        extensions.append((x509.UnrecognizedExtension(oid, dice.randbytes(size)), dice.random() < 0.5))
    extensions.append((authority_key_id(CA.issuer), False))
    extensions.insert(dice.randint(0, len(extensions)), (x509.PrecertPoison(), True))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return CA.issuer.sign(builder)


def test_the_quick_way_without_poison_is_the_slow_one() -> None:
    dice, quick = random.Random(1), 0
    for _ in range(300):
        tbs = _shapes(dice).tbs_certificate_bytes
        found = quickly_without_poison(tbs)
        if found is not None:
            assert found == edited_tbs(tbs, POISON_DER)
            quick += 1
    assert quick > 250  # Else it is of no use.
    # Without poison, with two, with another value, cut, altered: it leaves all of that to the slow way.
    tbs = certificate("a.example", poison=True).tbs_certificate_bytes
    at = tbs.index(POISON_DER)
    assert quickly_without_poison(certificate("a.example").tbs_certificate_bytes) is None
    assert quickly_without_poison(tbs[: at + 12] + b"\x00" + tbs[at + 13 :]) is None
    twice = CA.builder("a").add_extension(x509.PrecertPoison(), critical=True)
    almost = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.9")
    twice = twice.add_extension(x509.UnrecognizedExtension(almost, b"another"), critical=False)
    twice_tbs = CA.issuer.sign(twice).tbs_certificate_bytes
    assert quickly_without_poison(twice_tbs) is not None
    assert quickly_without_poison(twice_tbs.replace(POISON_DER[:-1] + b"\x09", POISON_DER)) is None
    for cut in range(len(tbs)):
        assert quickly_without_poison(tbs[:cut]) is None
    for place in range(len(tbs)):
        altered = bytearray(tbs)
        altered[place] ^= 1 << dice.randrange(8)
        found = quickly_without_poison(bytes(altered))
        try:
            slow = edited_tbs(bytes(altered), POISON_DER)
        except Malformed:
            continue
        assert found in (None, slow), place


def test_the_only_extension_is_the_poison() -> None:
    alone = certificate(poison=True)
    assert quickly_without_poison(alone.tbs_certificate_bytes) is None
    assert findings([], alone) == []


def test_a_precertificate_of_a_precertificate_signing_certificate() -> None:
    signer = make_issuer(CA.issuer, "precertificates", precert_signing=True)
    builder = signer.builder("x", CA.key.public_key()).add_extension(x509.PrecertPoison(), critical=True)
    one = signer.sign(builder.add_extension(authority_key_id(signer), critical=False))
    above = [signer.certificate, CA.issuer.certificate]
    leaf = leaf_bytes(precertificate_entry(one, above), 1, b"")
    examiner = Examiner(Names.parse(["*"]), Expected(issuers=frozenset({_key_hash(CA.issuer.certificate)})))
    assert examiner.examine(0, leaf, Extra(der(one), tuple(map(der, above)))) == []
    without = examiner.examine(0, leaf, Extra(der(one), (der(signer.certificate),)))
    assert {finding.alert for finding in without} == {Alert.MALFORMED_ENTRY, Alert.UNEXPECTED_CERTIFICATE}


def _key_hash(one: x509.Certificate) -> bytes:
    key = one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def test_entries_that_do_not_fit() -> None:
    """Every part of a precertificate's entry that can differ from the submission is told of."""
    one, other = certificate("a.example", poison=True), certificate("b.example", poison=True)
    chain = (der(CA.issuer.certificate), der(CA.root.certificate))
    entry = precertificate_entry(one, [CA.issuer.certificate])
    examiner = Examiner(Names(), Expected())

    def alerts(what: SignedEntry, extra: Extra, index: int = 7, named: int = 7) -> list[Alert]:
        leaf = leaf_bytes(what, 1, index_extension(named))
        return [finding.alert for finding in examiner.examine(index, leaf, extra)]

    assert alerts(entry, Extra(der(one), chain)) == []
    assert alerts(entry, Extra(der(one), chain), named=8) == [Alert.LEAF_MISMATCH]
    assert alerts(entry, Extra(der(other), chain)) == [Alert.LEAF_MISMATCH]
    assert alerts(entry, Extra(der(one), chain[1:])) == [Alert.LEAF_MISMATCH]
    assert alerts(entry, Extra(der(one), ())) == [Alert.LEAF_MISMATCH]
    another_key = SignedEntry(entry.kind, entry.certificate, bytes(32))
    assert alerts(another_key, Extra(der(one), chain)) == [Alert.LEAF_MISMATCH]
    as_certificate = SignedEntry(0, der(one))  # type: ignore[arg-type]
    assert alerts(as_certificate, Extra(b"", chain)) == [Alert.LEAF_MISMATCH]
    assert alerts(entry, Extra(der(certificate("a.example")), chain)) == [Alert.MALFORMED_ENTRY]
    assert alerts(entry, Extra(der(one)[:-1], chain)) == [Alert.MALFORMED_ENTRY]
    assert alerts(entry, Extra(der(one), (b"no certificate",))) == [Alert.MALFORMED_ENTRY]
    assert [finding.alert for finding in examiner.examine(0, b"\x01", Extra(b"", ()))] == [Alert.MALFORMED_ENTRY]


@pytest.mark.filterwarnings("ignore")  # cryptography's, of certificates that will be refused one day.
def test_bytes_of_any_kind_are_malformed_and_no_more() -> None:
    """Whatever a log gives out is a finding, never an exception."""
    dice = random.Random(2)
    examiner = Examiner(Names.parse(["a.example", "fd00::/8", f"spki:{SPKI}"]), Expected(issuers=frozenset({bytes(32)})))
    one = certificate("a.example", "fd00::1", poison=True)
    chain = (der(CA.issuer.certificate), der(CA.root.certificate))
    good_leaf = leaf_bytes(precertificate_entry(one, [CA.issuer.certificate]), 1, index_extension(0))
    good_extra = vector(der(one), 3) + vector(b"".join(vector(one, 3) for one in chain), 3)
    assert [x.alert for x in examiner.examine(0, good_leaf, decode_extra(good_leaf, good_extra))] == [
        Alert.UNEXPECTED_CERTIFICATE
    ]
    for _ in range(4000):
        leaf, extra = bytearray(good_leaf), bytearray(good_extra)
        for data in (leaf, extra):
            for _ in range(dice.randint(0, 2)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            if dice.random() < 0.1:
                del data[dice.randrange(len(data)) :]
        try:
            given = decode_extra(bytes(leaf), bytes(extra))
        except Malformed:
            continue
        examiner.examine(0, bytes(leaf), given)


def test_extra_data() -> None:
    """RFC 6962 section 4.6: a chain, and before it the precertificate if the leaf is of one."""
    certificate_leaf = leaf_bytes(SignedEntry(0, b"c"), 1, b"")  # type: ignore[arg-type]
    precertificate_leaf = leaf_bytes(SignedEntry(1, b"t", bytes(32)), 1, b"")  # type: ignore[arg-type]
    chain = vector(vector(b"one", 3) + vector(b"two", 3), 3)
    assert decode_extra(certificate_leaf, chain) == Extra(b"", (b"one", b"two"))
    assert decode_extra(precertificate_leaf, vector(b"pre", 3) + chain) == Extra(b"pre", (b"one", b"two"))
    for leaf, extra in (
        (certificate_leaf, b""),
        (certificate_leaf, chain + b"\x00"),
        (certificate_leaf, chain[:-1]),
        (precertificate_leaf, chain),
        (certificate_leaf, vector(vector(b"", 3) * 100, 3)),
    ):
        with pytest.raises(Malformed):
            decode_extra(leaf, extra)



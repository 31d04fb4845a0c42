"""control.ctlog.precert against what `cryptography` and a certificate authority make of the same certificates."""

from __future__ import annotations

import hashlib
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.errors import Malformed
from control.ctlog.precert import (
    POISON_DER,
    SCT_LIST_DER,
    certificate_entry,
    edited_tbs,
    embedded_entry,
    embedded_scts,
    is_precertificate,
    precertificate_entry,
    sct_extension,
    signs_precertificates,
)
from control.ctlog.signer import Signer
from control.ctlog.structs import EntryType, LogEntry, Sct, verify_sct
from tests.ctlog.world import ORIGIN, Ca, Issuer, authority_key_id, der, make_issuer, new_key

CA = Ca()
SCTS = [Sct(bytes([number]) * 32, number, b"", bytes([number]) * 71) for number in (1, 2)]


def extended(
    builder: x509.CertificateBuilder, place: int, extra: x509.ExtensionType, critical: bool
) -> x509.CertificateBuilder:
    """With some extensions, and `extra` at the place."""
    names = x509.SubjectAlternativeName([x509.DNSName(f"host-{number}.example") for number in range(12)])
    others: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(False, None), True),
        (names, False),
        (authority_key_id(CA.issuer), False),
    ]
    others.insert(place, (extra, critical))
    for extension, is_critical in others:
        builder = builder.add_extension(extension, is_critical)
    return builder


@pytest.mark.parametrize("place", range(4))
def test_precertificate_and_certificate_give_the_same_entry(place: int) -> None:
    """Wherever the extension stands; and an independent library agrees about the TBSCertificate."""
    builder = CA.builder("host")
    precertificate = CA.issuer.sign(extended(builder, place, x509.PrecertPoison(), True))
    certificate = CA.issuer.sign(extended(builder, place, sct_extension(SCTS), False))
    logged = precertificate_entry(precertificate, [CA.issuer.certificate])
    assert logged == embedded_entry(certificate, CA.issuer.certificate)
    assert logged.certificate == certificate.tbs_precertificate_bytes
    assert edited_tbs(certificate.tbs_certificate_bytes, SCT_LIST_DER) == certificate.tbs_precertificate_bytes
    spki = CA.issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert logged.kind is EntryType.PRECERT and logged.issuer_key_hash == hashlib.sha256(spki).digest()
    assert embedded_scts(certificate) == tuple(SCTS)
    # And as cryptography's own parser sees the list.
    parsed = certificate.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps)
    assert [one.log_id for one in parsed.value] == [one.log_id for one in SCTS]
    assert not parsed.critical


@pytest.mark.parametrize("names", [1, 5, 40, 200, 2000])
def test_lengths_of_every_form(names: int) -> None:
    """The TBS crosses 127, 255 and 65535 bytes on its way."""
    builder = CA.builder("n")
    many = x509.SubjectAlternativeName([x509.DNSName(f"n{number}.a-long-name.example") for number in range(names)])
    builder = builder.add_extension(many, critical=False)
    certificate = CA.issuer.sign(builder.add_extension(sct_extension(SCTS[:1]), critical=False))
    assert edited_tbs(certificate.tbs_certificate_bytes, SCT_LIST_DER) == certificate.tbs_precertificate_bytes
    plain = CA.issuer.sign(builder)
    assert edited_tbs(certificate.tbs_certificate_bytes, SCT_LIST_DER) == plain.tbs_certificate_bytes


def test_the_only_extension_takes_its_field_along() -> None:
    """RFC 5280 knows no empty list of extensions, and so the field is left out."""
    poisoned = CA.issuer.sign(CA.builder("bare").add_extension(x509.PrecertPoison(), critical=True))
    spki = CA.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert edited_tbs(poisoned.tbs_certificate_bytes, POISON_DER).endswith(spki)


def test_precertificate_signing_certificate() -> None:
    """RFC 6962 section 3.1: what is logged names the final issuer, with its key."""
    signer = make_issuer(CA.issuer, "precertificate signing", precert_signing=True)
    assert signs_precertificates(signer.certificate) and not signs_precertificates(CA.issuer.certificate)
    final_builder = CA.builder("host")
    key_id = authority_key_id(CA.issuer)
    certificate = CA.issuer.sign(
        final_builder.add_extension(key_id, critical=False).add_extension(sct_extension(SCTS), critical=False)
    )
    pre = x509.CertificateBuilder(
        issuer_name=signer.certificate.subject,
        subject_name=certificate.subject,
        public_key=CA.key.public_key(),
        serial_number=certificate.serial_number,
        not_valid_before=certificate.not_valid_before_utc,
        not_valid_after=certificate.not_valid_after_utc,
    )
    pre = pre.add_extension(authority_key_id(signer), critical=False)
    precertificate = signer.sign(pre.add_extension(x509.PrecertPoison(), critical=True))
    logged = precertificate_entry(precertificate, [signer.certificate, CA.issuer.certificate, CA.root.certificate])
    assert logged == embedded_entry(certificate, CA.issuer.certificate)
    with pytest.raises(Malformed, match="final issuer"):
        precertificate_entry(precertificate, [signer.certificate])
    with pytest.raises(Malformed):
        precertificate_entry(precertificate, [])


def test_an_sct_verifies_from_the_final_certificate() -> None:
    log = Signer(ORIGIN, new_key())
    builder = CA.builder("host")
    precertificate = CA.issuer.sign(builder.add_extension(x509.PrecertPoison(), critical=True))
    entry = LogEntry(precertificate_entry(precertificate, [CA.issuer.certificate]), 1_780_000_000_000, 5, ())
    certificate = CA.issuer.sign(builder.add_extension(sct_extension([log.sct(entry)]), critical=False))
    (found,) = embedded_scts(certificate)
    verify_sct(found, embedded_entry(certificate, CA.issuer.certificate), log.key.public_key())
    assert found.leaf_index == 5


def test_which_are_precertificates() -> None:
    assert not is_precertificate(CA.issuer.certificate)
    assert is_precertificate(x509.load_der_x509_certificate(CA.precertificate("p")[0]))
    lenient = CA.issuer.sign(CA.builder("p").add_extension(x509.PrecertPoison(), critical=False))
    with pytest.raises(Malformed, match="critical"):
        is_precertificate(lenient)
    plain = x509.load_der_x509_certificate(CA.certificate("c")[0])
    assert embedded_scts(plain) == ()
    assert certificate_entry(plain).certificate == der(plain)
    with pytest.raises(Malformed):
        embedded_entry(plain, CA.issuer.certificate)
    with pytest.raises(Malformed):
        precertificate_entry(plain, [CA.issuer.certificate])


@pytest.mark.parametrize("value", [b"", b"\x04", b"\x04\x02\0\0\0", b"\x05\0", b"\x04\x05\0\3\0\1\0", b"\x04\x81\x02\0\0"])
def test_scts_that_are_none(value: bytes) -> None:
    from control.ctlog.precert import SCT_LIST

    certificate = CA.issuer.sign(CA.builder("x").add_extension(x509.UnrecognizedExtension(SCT_LIST, value), False))
    with pytest.raises(Malformed):
        embedded_scts(certificate)


def test_hostile_tbs_is_malformed_and_nothing_else() -> None:
    builder = extended(CA.builder("host"), 1, x509.PrecertPoison(), True)
    sample = CA.issuer.sign(builder).tbs_certificate_bytes
    edited_tbs(sample, POISON_DER)
    for at in range(len(sample)):
        with pytest.raises(Malformed):
            edited_tbs(sample[:at], POISON_DER)
    with pytest.raises(Malformed):
        edited_tbs(sample + b"\0", POISON_DER)
    dice, refused = random.Random(7), 0
    for _ in range(6000):
        data = bytearray(sample)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(data))
            if dice.random() < 0.2:
                del data[at : at + dice.randint(1, 4)]
            else:
                data[at] = dice.choice((0, 0x30, 0x7F, 0x80, 0x81, 0x84, 0xFF, dice.randrange(256)))
        try:
            edited_tbs(bytes(data), POISON_DER, issuer=b"\x30\0", authority_key_id=b"\x30\0")
        except Malformed:
            refused += 1
    assert refused > 1000


@pytest.mark.filterwarnings("ignore:Parsed a")
def test_hostile_certificates_are_malformed_and_nothing_else() -> None:
    """Through everything that is done with a submission before its signature is looked at."""
    sample = CA.precertificate("host")[0]
    issuer: Issuer = CA.issuer
    dice, parsed = random.Random(8), 0
    for _ in range(6000):
        data = bytearray(sample)
        for _ in range(dice.randint(1, 2)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            certificate = x509.load_der_x509_certificate(bytes(data))
        except (ValueError, x509.InvalidVersion):
            continue
        parsed += 1
        try:
            is_precertificate(certificate)
            embedded_scts(certificate)
            precertificate_entry(certificate, [issuer.certificate])
        except Malformed:
            pass
    assert parsed > 500

"""From certificates to what is logged of them (RFC 6962 sections 3.1 to 3.3): the poison and the SCT list come out of
the TBSCertificate, and nothing else changes, byte for byte.

A precertificate may be signed by a certificate made for that (extended key usage 1.3.6.1.4.1.11129.2.4.4); the TBS that
is logged then names the final issuer, and its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.encoding import Reader
from control.ctlog.errors import Malformed
from control.ctlog.structs import EntryType, Sct, SignedEntry, decode_sct_list, encode_sct_list

POISON = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.3")
SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
PRECERT_SIGNING = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.4")
POISON_DER = bytes.fromhex("060a2b06010401d679020403")
SCT_LIST_DER = bytes.fromhex("060a2b06010401d679020402")
AUTHORITY_KEY_ID_DER = bytes.fromhex("0603551d23")
SEQUENCE, OCTET_STRING, EXTENSIONS = 0x30, 0x04, 0xA3
MAX_NESTED_BYTES = 1 << 24


def _header(reader: Reader) -> tuple[int, int]:
    """Tag and length of the next DER element."""
    tag, length = reader.uint(1), reader.uint(1)
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3:
            raise Malformed("a DER length in the certificate is not acceptable")
        length = reader.uint(count)
        if length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise Malformed("a DER length in the certificate is not the shortest")
    return tag, length


def _elements(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """The DER elements that stand one after another: tag, content, the whole element."""
    reader, found = Reader(data, "the certificate"), []
    while reader.left:
        begin = reader.at
        tag, length = _header(reader)
        content = reader.take(length)
        found.append((tag, content, data[begin : reader.at]))
    return found


def _wrap(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _inside(data: bytes, tag: int) -> bytes:
    found = _elements(data)
    if len(found) != 1 or found[0][0] != tag:
        raise Malformed("the certificate is not built as X.509 says")
    return found[0][1]


def edited_tbs(
    tbs: bytes, without: bytes, *, issuer: bytes | None = None, authority_key_id: bytes | None = None
) -> bytes:
    """The TBSCertificate less the one extension whose OID is `without` (DER). `issuer`: another issuer name (DER);
    `authority_key_id`: another value of that extension, where it stands. Raises Malformed."""
    fields = _elements(_inside(tbs, SEQUENCE))
    removed, parts = 0, []
    # version [0], serial, signature algorithm, issuer, …: RFC 5280 section 4.1.
    issuer_at = 3 if fields and fields[0][0] == 0xA0 else 2
    for number, (tag, content, whole) in enumerate(fields):
        if number == issuer_at and issuer is not None:
            parts.append(issuer)
        elif tag == EXTENSIONS:
            kept = []
            for _, extension, der in _elements(_inside(content, SEQUENCE)):
                if extension.startswith(without):
                    removed += 1
                elif authority_key_id is not None and extension.startswith(AUTHORITY_KEY_ID_DER):
                    kept.append(
                        _wrap(SEQUENCE, AUTHORITY_KEY_ID_DER + _wrap(OCTET_STRING, authority_key_id))
                    )
                else:
                    kept.append(der)
            if kept:
                parts.append(_wrap(EXTENSIONS, _wrap(SEQUENCE, b"".join(kept))))
        else:
            parts.append(whole)
    if removed != 1:
        raise Malformed(
            "the certificate has not the one extension (poison, or SCT list) that this kind of entry has"
        )
    return _wrap(SEQUENCE, b"".join(parts))


def key_hash(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's SubjectPublicKeyInfo."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def is_precertificate(certificate: x509.Certificate) -> bool:
    """Does it carry the poison? Raises Malformed when it carries one that is not critical."""
    try:
        extension = certificate.extensions.get_extension_for_oid(POISON)
    except x509.ExtensionNotFound:
        return False
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Malformed(f"the certificate's extensions cannot be parsed: {error}") from None
    if not extension.critical:
        raise Malformed("the precertificate's poison is not critical")
    return True


def signs_precertificates(certificate: x509.Certificate) -> bool:
    """Is this a precertificate signing certificate?"""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return PRECERT_SIGNING in usage


def certificate_entry(certificate: x509.Certificate) -> SignedEntry:
    """What is logged of a certificate."""
    return SignedEntry(EntryType.X509, certificate.public_bytes(Encoding.DER))


def precertificate_entry(
    precertificate: x509.Certificate, issuers: Sequence[x509.Certificate]
) -> SignedEntry:
    """What is logged of a precertificate. `issuers`: its issuer, and above a precertificate signing certificate the
    final issuer too. Raises Malformed."""
    tbs = precertificate.tbs_certificate_bytes
    if not issuers:
        raise Malformed("a precertificate needs its issuer beside it")
    if not signs_precertificates(issuers[0]):
        return SignedEntry(EntryType.PRECERT, edited_tbs(tbs, POISON_DER), key_hash(issuers[0]))
    if len(issuers) < 2:
        raise Malformed("the final issuer is missing above the precertificate signing certificate")
    signer, final = issuers[0], issuers[1]
    try:
        signer_id: bytes | None = signer.extensions.get_extension_for_class(
            x509.AuthorityKeyIdentifier
        ).value.public_bytes()
    except x509.ExtensionNotFound:
        signer_id = None
    issuer = final.subject.public_bytes()
    edited = edited_tbs(tbs, POISON_DER, issuer=issuer, authority_key_id=signer_id)
    return SignedEntry(EntryType.PRECERT, edited, key_hash(final))


def embedded_entry(certificate: x509.Certificate, issuer: x509.Certificate) -> SignedEntry:
    """What the SCTs in a final certificate were given for. Raises Malformed."""
    return SignedEntry(
        EntryType.PRECERT, edited_tbs(certificate.tbs_certificate_bytes, SCT_LIST_DER), key_hash(issuer)
    )


def embedded_scts(certificate: x509.Certificate) -> tuple[Sct, ...]:
    """The SCTs in a certificate; none: it has no such extension. Raises Malformed."""
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Malformed(f"the certificate's extensions cannot be parsed: {error}") from None
    for extension in extensions:
        if extension.oid == SCT_LIST:
            value = extension.value
            data = value.value if isinstance(value, x509.UnrecognizedExtension) else value.public_bytes()
            reader = Reader(data, "the certificate's SCT extension")
            tag, length = _header(reader)
            if tag != OCTET_STRING:
                raise Malformed("the certificate's SCT extension is not an octet string")
            body = reader.take(length)
            reader.end()
            return decode_sct_list(body)
    return ()


def sct_extension(scts: Sequence[Sct]) -> x509.UnrecognizedExtension:
    """The extension that carries SCTs in a final certificate; not critical (RFC 6962 section 3.3)."""
    return x509.UnrecognizedExtension(SCT_LIST, _wrap(OCTET_STRING, encode_sct_list(scts)))

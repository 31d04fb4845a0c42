"""Which certificates a monitor looks for, which of these somebody expects, and what it finds in one entry of a log. Pure
functions of bytes.

Watched are names: a domain with all below it, and wildcards that cover it; an IPv6 prefix; a key by the SHA-256 of its
SubjectPublicKeyInfo; or everything. Expected are certificates, keys, and issuers.

    # a file of what is expected: a line each, and PEM certificates
    sha256 <64 hex digits>      this certificate, DER
    spki <64 hex digits>        any certificate for this key
    issuer <64 hex digits>      any certificate that the issuer with this key signed
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.ctlog.alerts import Alert
from control.ctlog.chains import Window
from control.ctlog.encoding import Reader
from control.ctlog.errors import LogError, Malformed, Refused
from control.ctlog.precert import (
    POISON_DER,
    SCT_LIST_DER,
    edited_tbs,
    embedded_scts,
    is_precertificate,
    key_hash,
    precertificate_entry,
    signs_precertificates,
)
from control.ctlog.structs import EntryType, Sct, SignedEntry, decode_leaf, leaf_index
from dataplane.errors import ConfigError

EVERYTHING = "*"
MAX_EXPECT_BYTES = 64 << 20
MAX_ISSUERS = 4096  # Parsed issuers remembered, about 4 KiB each.
MAX_CHAIN = 64  # Certificates of one entry's chain.
LINE = re.compile(r"(sha256|spki|issuer)[ :]\s*([0-9A-Fa-f]{64})")
LABELS = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.)*[a-z0-9_][a-z0-9_-]{0,62}")

# cryptography raises these for what it cannot parse, also when only a part is looked at.
PARSE_ERRORS = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
                UnsupportedAlgorithm)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
    """What is watched."""

    dns: tuple[str, ...] = ()
    networks: tuple[ipaddress.IPv6Network, ...] = ()
    keys: frozenset[bytes] = frozenset()
    everything: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Names:
        """From a command line: `example.com`, `fd00::/48`, `spki:<hex>`, `*`. Raises ConfigError."""
        dns, networks, keys, everything = [], [], set(), False
        for text in texts:
            if text == EVERYTHING:
                everything = True
            elif text.startswith("spki:"):
                if not re.fullmatch(r"[0-9A-Fa-f]{64}", text[5:]):
                    raise ConfigError(f"{text!r}: a key is named by the SHA-256 of its SubjectPublicKeyInfo, 64 hex digits")
                keys.add(bytes.fromhex(text[5:]))
            elif ":" in text:
                try:
                    networks.append(ipaddress.IPv6Network(text, strict=False))
                except ValueError as error:
                    raise ConfigError(f"{text!r} is no IPv6 address or prefix: {error}") from None
            else:
                name = text.lower().rstrip(".").removeprefix("*.")
                if not LABELS.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
                    raise ConfigError(f"{text!r} is no domain name (in ASCII, as xn--…), IPv6 prefix or spki:…")
                dns.append(name)
        return cls(tuple(dns), tuple(networks), frozenset(keys), everything)

    def __bool__(self) -> bool:
        return bool(self.dns or self.networks or self.keys or self.everything)

    def domain(self, name: str) -> bool:
        """Is this name, or what this wildcard covers, watched?"""
        name = name.lower().rstrip(".")
        wild = name.startswith("*.")
        base = name.removeprefix("*.")
        for one in self.dns:
            if base == one or base.endswith("." + one):
                return True
            if wild and one.endswith("." + base) and "." not in one[: -len(base) - 1]:
                return True
        return False

    def address(self, address: object) -> bool:
        """Is this address watched?"""
        return isinstance(address, ipaddress.IPv6Address) and any(address in one for one in self.networks)

    def touched(self, certificate: x509.Certificate) -> str | None:
        """What in the certificate is watched, for people; None: nothing. Raises PARSE_ERRORS."""
        if self.dns or self.networks:
            if self.dns:
                for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
                    if self.domain(str(attribute.value)):
                        return str(attribute.value)
            try:
                found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            except x509.ExtensionNotFound:
                found = None
            for name in found or ():
                if isinstance(name, x509.DNSName) and self.domain(name.value):
                    return name.value
                if isinstance(name, x509.IPAddress) and self.address(name.value):
                    return str(name.value)
        if self.keys and (found_key := _spki(certificate)) in self.keys:
            return f"key {found_key.hex()[:16]}…"
        if self.everything:
            return certificate.subject.rfc4514_string()[:200] or f"serial {certificate.serial_number:040x}"
        return None

    def hints(self) -> tuple[tuple[bytes, str], ...]:
        """Bytes, in lower case, of which a certificate has some if it has anything that is watched by name or address:
        domains, and wildcards that cover them, as X.509's strings have them (one byte a character, two, or four), and
        what is fixed of an IPv6 address."""
        found = []
        for one in self.dns:
            _, dot, parent = one.partition(".")
            for text in (one, f"*.{parent}") if dot else (one,):
                found += [(text.encode(code), one) for code in ("ascii", "utf-16-be", "utf-32-be")]
        for network in self.networks:
            start = network.network_address.packed[: network.prefixlen // 8]
            found.append(((b"\x87\x10" + start).lower(), str(network)))
        return tuple(found)


def _spki(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


@dataclass(frozen=True, slots=True)
class Promise:
    """An SCT that a certificate came with: the log must have its entry."""

    sct: Sct
    entry: SignedEntry
    name: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What somebody announced, by SHA-256. `certificates`: of the DER, and of the TBSCertificate without SCTs, which a
    precertificate and its certificate share. `promises`: of the PEM certificates whose issuer stands beside them."""

    certificates: frozenset[bytes] = frozenset()
    keys: frozenset[bytes] = frozenset()
    issuers: frozenset[bytes] = frozenset()
    promises: tuple[Promise, ...] = ()
    unproven: tuple[str, ...] = field(default=())  # Those with SCTs, but no issuer beside them.

    @classmethod
    def read(cls, path: Path) -> Expected:
        """See the module's text for the form. Raises LogError."""
        try:
            if path.stat().st_size > MAX_EXPECT_BYTES:
                raise LogError(f"{path} is larger than {MAX_EXPECT_BYTES} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise LogError(f"{path} cannot be read: {error.strerror}") from None
        try:
            pem = x509.load_pem_x509_certificates(data) if b"-----BEGIN" in data else []
            lines = re.sub(rb"-----BEGIN.*?-----END[^\n]*", b"", data, flags=re.DOTALL).decode().splitlines()
        except (ValueError, UnicodeDecodeError) as error:
            raise LogError(f"{path} cannot be read: {error}") from None
        sets: dict[str, set[bytes]] = {"sha256": set(), "spki": set(), "issuer": set()}
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = LINE.fullmatch(text)
            if match is None:
                raise LogError(f"{path}: {text!r} is not `sha256|spki|issuer` and 64 hex digits (line {number} outside PEM)")
            sets[match[1]].add(bytes.fromhex(match[2]))
        promises: list[Promise] = []
        unproven: list[str] = []
        for one in pem:
            _announce(one, pem, sets["sha256"], promises, unproven)
        certificates, keys, issuers = (frozenset(sets[name]) for name in ("sha256", "spki", "issuer"))
        return cls(certificates, keys, issuers, tuple(promises), tuple(unproven))

    def has(self, submitted: bytes, entry: SignedEntry) -> bool:
        """Was this certificate announced?"""
        if hashlib.sha256(submitted).digest() in self.certificates:
            return True
        return entry.kind is EntryType.PRECERT and hashlib.sha256(entry.certificate).digest() in self.certificates


def _announce(
    one: x509.Certificate, others: Sequence[x509.Certificate], fingerprints: set[bytes], promises: list[Promise],
    unproven: list[str],
) -> None:  # fmt: skip
    fingerprints.add(hashlib.sha256(one.public_bytes(Encoding.DER)).digest())
    scts = embedded_scts(one)
    if not scts:
        return
    tbs = edited_tbs(one.tbs_certificate_bytes, SCT_LIST_DER)
    fingerprints.add(hashlib.sha256(tbs).digest())
    name = one.subject.rfc4514_string()[:200] or f"serial {one.serial_number:040x}"
    issuer = next((other for other in others if issued(one, other)), None)
    if issuer is None:
        unproven.append(name)
        return
    entry = SignedEntry(EntryType.PRECERT, tbs, key_hash(issuer))
    promises += [Promise(sct, entry, name) for sct in scts]


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Did `issuer` sign `certificate`?"""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*PARSE_ERRORS, InvalidSignature):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an entry that somebody should know."""

    alert: Alert
    text: str


@dataclass(frozen=True, slots=True)
class Extra:
    """What get-entries gives beside a leaf: the precertificate as submitted (empty for a certificate), and the chain,
    issuer first; DER."""

    precertificate: bytes
    chain: tuple[bytes, ...]


def decode_extra(leaf: bytes, extra: bytes) -> Extra:
    """`extra_data` of RFC 6962 section 4.6, for this leaf. Raises Malformed."""
    outer = Reader(extra, "the entry's extra data")
    # Version, type and timestamp come first in a leaf: the entry's type stands in bytes 10 and 11.
    precertificate = outer.vector(3) if leaf[10:12] == b"\x00\x01" else b""
    reader = Reader(outer.vector(3), "the entry's chain")
    outer.end()
    chain = []
    while reader.left:
        chain.append(reader.vector(3))
        if len(chain) > MAX_CHAIN:
            raise Malformed(f"an entry's chain of more than {MAX_CHAIN} certificates")
    return Extra(precertificate, tuple(chain))


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key_hash: bytes
    for_precertificates: bool


class Examiner:
    """Looks at entries. `expected` may be replaced between two of them. `window`: the log's shard, if it is known."""

    def __init__(self, names: Names, expected: Expected, window: Window | None = None) -> None:
        self._window = window
        self.names = names
        self.expected = expected
        self._hints = names.hints()
        self._look_always = bool(names.keys or names.everything)
        self._issuers: OrderedDict[bytes, _Issuer] = OrderedDict()

    def examine(self, index: int, leaf: bytes, extra: Extra) -> list[Finding]:
        """What is wrong with an entry, or unexpected in it."""
        try:
            entry, _, extensions = decode_leaf(leaf)
            named = leaf_index(extensions)
        except Malformed as error:
            return self._malformed(index, leaf + extra.precertificate, str(error))
        submitted = extra.precertificate if entry.kind is EntryType.PRECERT else entry.certificate
        found = []
        if named is not None and named != index:
            found.append(Finding(Alert.LEAF_MISMATCH, f"entry {index} calls itself {named}"))
        try:
            certificate = x509.load_der_x509_certificate(submitted)
            certificate.extensions  # noqa: B018 - what cannot be parsed is to be told, whoever it is for.
            # Most certificates of a large log are nobody's here: their bytes say so in a tenth of the time.
            looked = self._look_always or self._hint(submitted) is not None
            what = self.names.touched(certificate) if looked else None
            mismatch = self._mismatch(entry, certificate, extra.chain)
            if self._window is not None:
                found += _outside(index, certificate, self._window)
            if what is not None and not self._expected(entry, submitted, certificate, extra.chain):
                text = _describe(index, entry, submitted, certificate, what)
                found.append(Finding(Alert.UNEXPECTED_CERTIFICATE, text))
        except (*PARSE_ERRORS, Malformed) as error:
            return found + self._malformed(index, submitted, str(error) or type(error).__name__)
        if mismatch:
            found.append(Finding(Alert.LEAF_MISMATCH, f"entry {index}: {mismatch}"))
        return found

    def _malformed(self, index: int, data: bytes, why: str) -> list[Finding]:
        found = [Finding(Alert.MALFORMED_ENTRY, f"entry {index} cannot be parsed: {why}")]
        hint = "something" if self.names.everything else self._hint(data)
        if hint is not None and hashlib.sha256(data).digest() not in self.expected.certificates:
            text = f"entry {index} cannot be parsed, and has the bytes of {hint} in it"
            found.append(Finding(Alert.UNEXPECTED_CERTIFICATE, text))
        return found

    def _mismatch(self, entry: SignedEntry, certificate: x509.Certificate, chain: tuple[bytes, ...]) -> str | None:
        """Why the leaf is not what is logged of the submission; None: it is."""
        if entry.kind is EntryType.X509:
            poisoned = POISON_DER in entry.certificate and is_precertificate(certificate)
            return "a precertificate is logged as a certificate" if poisoned else None
        if not chain:
            return "a precertificate without its issuer"
        issuer = self._issuer(chain[0])
        if (
            not issuer.for_precertificates
            and issuer.key_hash == entry.issuer_key_hash
            and quickly_without_poison(certificate.tbs_certificate_bytes) == entry.certificate
        ):
            return None
        # What a precertificate signing certificate is for needs the issuer above it too.
        made = precertificate_entry(certificate, [self._issuer(one).certificate for one in chain[:2]])
        if made.certificate != entry.certificate:
            return "what is logged is not what the submitted precertificate says"
        if made.issuer_key_hash != entry.issuer_key_hash:
            return "the issuer's key that is logged is not that of the issuer in the chain"
        return None

    def _hint(self, data: bytes) -> str | None:
        lower = data.lower()
        return next((name for hint, name in self._hints if hint in lower), None)

    def _issuer(self, der: bytes) -> _Issuer:
        found = self._issuers.get(der)
        if found is None:
            certificate = x509.load_der_x509_certificate(der)
            found = _Issuer(certificate, key_hash(certificate), signs_precertificates(certificate))
            self._issuers[der] = found
            if len(self._issuers) > MAX_ISSUERS:
                self._issuers.popitem(last=False)
        return found

    def _expected(
        self, entry: SignedEntry, submitted: bytes, certificate: x509.Certificate, chain: tuple[bytes, ...]
    ) -> bool:
        expected = self.expected
        if expected.has(submitted, entry) or (expected.keys and _spki(certificate) in expected.keys):
            return True
        if not expected.issuers or not chain:
            return False
        # The chain is the log's word; the signature is not.
        try:
            issuer = self._issuer(chain[0])
            if not issued(certificate, issuer.certificate):
                return False
            if issuer.for_precertificates and len(chain) > 1:
                final = self._issuer(chain[1])
                if issued(issuer.certificate, final.certificate):
                    issuer = final
            return issuer.key_hash in expected.issuers
        except PARSE_ERRORS:
            return False


def _outside(index: int, certificate: x509.Certificate, window: Window) -> list[Finding]:
    try:
        window.check(certificate)
    except Refused as error:
        return [Finding(Alert.OUTSIDE_WINDOW, f"entry {index}: {error}")]
    return []


def _describe(index: int, entry: SignedEntry, submitted: bytes, certificate: x509.Certificate, what: str) -> str:
    kind = "precertificate" if entry.kind is EntryType.PRECERT else "certificate"
    issuer = certificate.issuer.rfc4514_string()[:200] or "nobody named"
    return (
        f"entry {index} is a {kind} for {what} that nobody announced: serial {certificate.serial_number:040x}, by {issuer}, "
        f"SHA-256 {hashlib.sha256(submitted).hexdigest()}"
    )


POISON_EXTENSION = bytes.fromhex("3013") + POISON_DER + bytes.fromhex("0101ff04020500")  # Critical, NULL: RFC 6962.


def _head(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of the DER element at `at` begins and ends. Raises IndexError; the end may lie outside."""
    first = data[at + 1]
    if first < 0x80:
        return at + 2, at + 2 + first
    if first == 0x81:
        return at + 3, at + 3 + data[at + 2]
    if first == 0x82:
        return at + 4, at + 4 + (data[at + 2] << 8) + data[at + 3]
    raise IndexError


def _header(tag: int, length: int) -> bytes:
    if length < 0x80:
        return bytes((tag, length))
    return bytes((tag, 0x81, length)) if length < 0x100 else bytes((tag, 0x82, length >> 8, length & 0xFF))


def quickly_without_poison(tbs: bytes) -> bytes | None:
    """The TBSCertificate less its poison, as `precert.edited_tbs` makes it, at a tenth of the cost, for TBSCertificates as
    most are: the poison in its only form, once, among extensions that end with the certificate, all below 64 KiB. None: it
    is not such a one, and has to be looked at slowly."""
    total, shorter = len(tbs), len(POISON_EXTENSION)
    try:
        at, end = _head(tbs, 0)
        if end != total:
            return None
        first = at
        while tbs[at] != 0xA3:  # Over the fields before the extensions.
            at = _head(tbs, at)[1]
        outer, end = _head(tbs, at)
        inner, last = _head(tbs, outer)
        if end != total or last != total or tbs[outer] != 0x30:
            return None
        step, poison = inner, -1
        while step < total:  # Over the extensions: the poison must be one of them, and no other have its name.
            if tbs.startswith(POISON_EXTENSION, step):
                if poison >= 0:
                    return None
                poison, step = step, step + shorter
            else:
                body, step = _head(tbs, step)
                if tbs.startswith(POISON_DER, body):
                    return None
    except IndexError:
        return None
    left = total - inner - shorter
    if step != total or poison < 0 or left == 0:
        return None
    sequence = _header(0x30, left)
    extensions = _header(0xA3, len(sequence) + left)
    fields = tbs[first:at]
    size = len(fields) + len(extensions) + len(sequence) + left
    return b"".join((_header(0x30, size), fields, extensions, sequence, tbs[inner:poison], tbs[poison + shorter :]))

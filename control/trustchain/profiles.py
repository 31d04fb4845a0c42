"""What kinds of certificates there are, and what each may and must say: one table, read by whoever issues.

Extensions, key usages and constraints are those of RFC 5280 section 4.2; names are DNS names (RFC 1034, in A-label form)
and IPv6 addresses. IPv4 in any form is refused. A certificate is valid from five minutes before it was made, because
two machines' clocks differ.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.trustchain.errors import BadRequest
from control.trustchain.roles import Operation, Role

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400
CLOCK_SKEW_S = 5 * MINUTE  # How far two clocks may be apart.
MIN_LIFETIME_S = MINUTE
MAX_NAMES = 32
MAX_SUBJECT_CHARS = 64  # ub-common-name, RFC 5280 appendix A.1.
MAX_DNS_CHARS = 253
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")


class ProfileName(StrEnum):
    """A kind of certificate."""

    NODE = "node"
    SERVICE = "service"
    OPERATOR = "operator"
    CODE_SIGNING = "code-signing"
    INTERMEDIATE = "intermediate"
    ROOT = "root"


class Algorithm(StrEnum):
    """A kind of key, by size where the size matters."""

    P256 = "ECDSA P-256"
    P384 = "ECDSA P-384"
    ED25519 = "Ed25519"
    RSA = "RSA of 2048 to 4096 bits"


@dataclass(frozen=True, slots=True)
class Profile:
    """What certificates of one kind say. Lifetimes in seconds; `roles`: those a certificate may carry, and has to, unless
    there are none; `names`: may it carry DNS names and IPv6 addresses, and must it, then."""

    name: ProfileName
    usages: frozenset[str]
    purposes: tuple[x509.ObjectIdentifier, ...]
    keys: frozenset[Algorithm]
    lifetime_s: int
    max_lifetime_s: int
    names: bool
    roles: frozenset[Role] = frozenset()
    default_role: Role | None = None
    wildcards: bool = False
    ca: bool = False
    path_length: int | None = None
    critical_purposes: bool = False
    issuing: Operation = Operation.ISSUE  # What whoever has it issued must be permitted.

    @property
    def leaf(self) -> bool:
        """Does it end a chain? Then it is logged."""
        return not self.ca

    @property
    def key_usage(self) -> x509.KeyUsage:
        """The keyUsage extension."""
        return x509.KeyUsage(
            **{
                usage: usage in self.usages
                for usage in (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "key_cert_sign",
                    "crl_sign",
                    "encipher_only",
                    "decipher_only",
                )
            }
        )


_SIGN = frozenset({"digital_signature"})
_ISSUE = frozenset({"key_cert_sign", "crl_sign", "digital_signature"})  # The last for OCSP answers (RFC 6960).
_EC = frozenset({Algorithm.P256, Algorithm.P384})
_TLS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            ProfileName.NODE,
            _SIGN,
            _TLS,
            _EC | {Algorithm.ED25519},
            DAY,
            7 * DAY,
            names=True,
            roles=frozenset(Role),  # What a node may be given is the table GRANTS' matter.
            default_role=Role.NODE,
        ),
        Profile(
            ProfileName.SERVICE,
            _SIGN,
            _TLS,
            _EC | {Algorithm.ED25519, Algorithm.RSA},  # ACME clients still come with RSA keys.
            DAY,
            7 * DAY,
            names=True,
            roles=frozenset({Role.SERVICE, Role.REGISTRAR}),
            default_role=Role.SERVICE,
            wildcards=True,
        ),
        Profile(
            ProfileName.OPERATOR,
            _SIGN,
            (ExtendedKeyUsageOID.CLIENT_AUTH,),
            _EC | {Algorithm.ED25519},
            12 * HOUR,
            7 * DAY,
            names=True,
            roles=frozenset({Role.OPERATOR, Role.AUDITOR, Role.REGISTRAR, Role.ADMIN}),
            default_role=Role.OPERATOR,
            issuing=Operation.ISSUE_OPERATOR,
        ),
        Profile(
            ProfileName.CODE_SIGNING,
            _SIGN,
            (ExtendedKeyUsageOID.CODE_SIGNING,),
            _EC | {Algorithm.ED25519},
            DAY,
            7 * DAY,
            names=False,
            critical_purposes=True,
            issuing=Operation.ISSUE_CODE_SIGNING,
        ),
        Profile(ProfileName.INTERMEDIATE, _ISSUE, (), _EC, YEAR, 5 * YEAR, names=False, ca=True, path_length=0),
        Profile(ProfileName.ROOT, _ISSUE, (), _EC, 10 * YEAR, 30 * YEAR, names=False, ca=True, path_length=1),
    )
}


def profile_of(name: str) -> Profile:
    """A profile by name. Raises BadRequest that lists them."""
    try:
        return PROFILES[ProfileName(name)]
    except ValueError:
        raise BadRequest(f"{name!r} is no profile; the profiles are {', '.join(ProfileName)}") from None


def algorithm_of(key: object) -> Algorithm | None:
    """What kind of key it is; None: one that no profile permits."""
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return Algorithm.P256
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return Algorithm.P384
        case ed25519.Ed25519PublicKey():
            return Algorithm.ED25519
        case rsa.RSAPublicKey() if 2048 <= key.key_size <= 4096 and key.public_numbers().e == 65537:
            return Algorithm.RSA
    return None


def check_key(profile: Profile, key: object) -> None:
    """Raises BadRequest when the profile does not permit the public key."""
    algorithm = algorithm_of(key)
    if algorithm not in profile.keys:
        size = getattr(key, "key_size", None)
        what = algorithm or f"{type(key).__name__.removesuffix('PublicKey')}{f' of {size} bits' if size else ''}"
        raise BadRequest(f"a {profile.name} certificate is for keys of {', '.join(sorted(profile.keys))}, not {what}")


def lifetime(profile: Profile, wanted_s: float | None) -> int:
    """Seconds from now that a certificate is valid; None: the profile's default. Raises BadRequest."""
    if wanted_s is None:
        return profile.lifetime_s
    if not MIN_LIFETIME_S <= wanted_s <= profile.max_lifetime_s:
        raise BadRequest(
            f"a {profile.name} certificate lives {MIN_LIFETIME_S} s to {profile.max_lifetime_s} s, not {wanted_s:.0f} s"
        )
    return int(wanted_s)


def parse_dns(name: str, *, wildcards: bool = False) -> str:
    """A DNS name in lower case, as a certificate has it. Raises BadRequest."""
    text = name.lower().removesuffix(".")
    plain = text
    if text.startswith("*."):
        if not wildcards:
            raise BadRequest(f"{name!r}: wildcard names are for service certificates only")
        plain = text[2:]
        if "." not in plain:
            raise BadRequest(f"{name!r}: a wildcard needs at least two labels after it")
    labels = plain.split(".")
    if not text.isascii() or len(text) > MAX_DNS_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadRequest(f"{name[:80]!r} is not a DNS name (letters, digits, hyphens; IDNs as xn--…)")
    if labels[-1].isdigit():
        raise BadRequest(f"{name!r} looks like an IPv4 address: STOQ is IPv6-only")
    return text


def parse_address(address: str) -> ipaddress.IPv6Address:
    """An IPv6 address that a certificate may name. Raises BadRequest that says why not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise BadRequest(f"{address[:80]!r} is not an IPv6 address") from None
    return check_address(found)


def check_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    """Refuses IPv4, also in its IPv6 clothes, and addresses that are nobody's. Raises BadRequest."""
    if isinstance(address, ipaddress.IPv4Address):
        raise BadRequest(f"{address} is an IPv4 address: STOQ is IPv6-only")
    if address.ipv4_mapped is not None:
        raise BadRequest(f"{address} is an IPv4-mapped address: STOQ is IPv6-only")
    if address.scope_id is not None:
        raise BadRequest(f"{address} has a zone, which means nothing to others: name the address alone")
    if address.is_unspecified or address.is_multicast:
        raise BadRequest(f"{address} is not the address of one machine")
    return address


@dataclass(frozen=True, slots=True)
class Names:
    """The DNS names and addresses of a certificate, in the order asked for, each once."""

    dns: tuple[str, ...] = ()
    ipv6: tuple[ipaddress.IPv6Address, ...] = ()

    @classmethod
    def parse(cls, dns: Iterable[str], addresses: Iterable[str], *, wildcards: bool = False) -> Names:
        """From text. Raises BadRequest."""
        names = cls(
            tuple(dict.fromkeys(parse_dns(name, wildcards=wildcards) for name in dns)),
            tuple(dict.fromkeys(parse_address(address) for address in addresses)),
        )
        if len(names) > MAX_NAMES:
            raise BadRequest(f"a certificate carries at most {MAX_NAMES} names, not {len(names)}")
        return names

    def __len__(self) -> int:
        return len(self.dns) + len(self.ipv6)

    def texts(self) -> list[str]:
        """All of them as text."""
        return [*self.dns, *map(str, self.ipv6)]

    def within(self, other: Names) -> bool:
        """Has `other` all of these?"""
        return set(self.dns) <= set(other.dns) and set(self.ipv6) <= set(other.ipv6)

    def extension(self) -> x509.SubjectAlternativeName:
        """The subjectAltName extension."""
        addresses = [x509.IPAddress(address) for address in self.ipv6]
        return x509.SubjectAlternativeName([*map(x509.DNSName, self.dns), *addresses])


def check_names(profile: Profile, names: Names) -> None:
    """Raises BadRequest when the profile wants names and there are none, or the other way round."""
    if profile.names and not len(names):
        raise BadRequest(f"a {profile.name} certificate needs a DNS name or an IPv6 address: give --name or --address")
    if not profile.names and len(names):
        raise BadRequest(f"a {profile.name} certificate carries no DNS names or addresses")
    if not profile.wildcards and any(name.startswith("*.") for name in names.dns):
        raise BadRequest("wildcard names are for service certificates only")


def check_subject(subject: str) -> str:
    """A common name. Raises BadRequest."""
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable() or subject != subject.strip():
        raise BadRequest(f"a subject's name has 1 to {MAX_SUBJECT_CHARS} printable characters, not {subject[:80]!r}")
    return subject


@dataclass(frozen=True, slots=True)
class Constraints:
    """What an intermediate may issue for (nameConstraints, RFC 5280 section 4.2.1.10). No suffixes: any DNS name; no
    prefixes: any IPv6 address. IPv4 is excluded always."""

    dns: tuple[str, ...] = ()
    ipv6: tuple[ipaddress.IPv6Network, ...] = ()

    @classmethod
    def parse(cls, dns: Iterable[str], prefixes: Iterable[str]) -> Constraints:
        """From text. Raises BadRequest."""
        networks = []
        for prefix in prefixes:
            try:
                networks.append(ipaddress.IPv6Network(prefix))
            except ValueError as error:
                raise BadRequest(f"{prefix[:80]!r} is not an IPv6 prefix: {error}") from None
        constraints = cls(tuple(parse_dns(name.removeprefix(".")) for name in dns), tuple(networks))
        if len(constraints.dns) + len(networks) > MAX_NAMES:
            raise BadRequest(f"at most {MAX_NAMES} name constraints")
        return constraints

    def check(self, names: Names) -> None:
        """Raises BadRequest for a name outside."""
        for name in names.dns:
            bare = name.removeprefix("*.")
            if self.dns and not any(bare == suffix or bare.endswith("." + suffix) for suffix in self.dns):
                raise BadRequest(f"{name} is outside what this authority may name: {', '.join(self.dns)}")
        for address in names.ipv6:
            if self.ipv6 and not any(address in network for network in self.ipv6):
                raise BadRequest(f"{address} is outside what this authority may name: {', '.join(map(str, self.ipv6))}")

    def extension(self) -> x509.NameConstraints:
        """The nameConstraints extension."""
        permitted: list[x509.GeneralName] = [*map(x509.DNSName, self.dns), *map(x509.IPAddress, self.ipv6)]
        return x509.NameConstraints(permitted or None, [x509.IPAddress(ipaddress.IPv4Network("0.0.0.0/0"))])

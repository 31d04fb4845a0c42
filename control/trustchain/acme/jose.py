"""JSON Web Signatures as ACME uses them (RFC 8555 section 6.2): flattened JSON, everything in the protected header.

Keys of type EC and RSA and their algorithms are josepy's; Ed25519 (RFC 8037), which it does not have, is
`cryptography`'s. Here is what makes them safe to take from strangers: an allow list of algorithms, each for one type
of key, sizes checked before any arithmetic, and no header that is read before it is known to be signed for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from josepy.errors import Error as JoseError
from josepy.jwa import JWASignature
from josepy.jwk import JWKEC, JWKRSA
from josepy.util import ComparableKey
from msgspec import UNSET, UnsetType

from control.trustchain.acme.encoding import EncodingError, decode, encode
from control.trustchain.acme.messages import decode_json
from control.trustchain.acme.problems import AcmeProblem, Kind, malformed

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096  # Above, verification is a way to keep us busy.
RSA_EXPONENT = 65537
MAX_KID_CHARACTERS = 512
MAC_ALGORITHMS = ("HS256", "HS384", "HS512")  # Of an external account binding only.

Public = ComparableKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """A client's public key.

    `algorithm` is the one `alg` that goes with it, `jwk` its required members in canonical JSON (RFC 7638 section 3.3),
    `thumbprint` the base64url of that text's SHA-256.
    """

    algorithm: str
    jwk: str
    public: Public

    @property
    def thumbprint(self) -> str:
        return encode(hashlib.sha256(self.jwk.encode()).digest())


ALGORITHMS = ("ES256", "ES384", "EdDSA", "RS256")


class Jwk(msgspec.Struct):
    """A JSON Web Key (RFC 7517) as it arrives; other members are no concern of ours."""

    kty: str
    crv: str | UnsetType = UNSET
    x: str | UnsetType = UNSET
    y: str | UnsetType = UNSET
    n: str | UnsetType = UNSET
    e: str | UnsetType = UNSET
    d: msgspec.Raw | UnsetType = UNSET
    k: msgspec.Raw | UnsetType = UNSET


class _Protected(msgspec.Struct):
    alg: str
    url: str | UnsetType = UNSET
    nonce: str | UnsetType = UNSET
    kid: str | UnsetType = UNSET
    jwk: Jwk | UnsetType = UNSET
    crit: msgspec.Raw | UnsetType = UNSET
    b64: msgspec.Raw | UnsetType = UNSET


class _Flattened(msgspec.Struct):
    protected: str
    payload: str
    signature: str
    header: msgspec.Raw | UnsetType = UNSET
    signatures: msgspec.Raw | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Jws:
    """A signed message, taken apart and not yet verified. Exactly one of `key` and `kid` is there."""

    algorithm: str
    url: str
    nonce: str | None
    key: Key | None
    kid: str | None
    payload: bytes
    signing_input: bytes
    signature: bytes

    def verify(self, key: Key) -> None:
        """Raises AcmeProblem unless `key` made the signature with the algorithm that goes with it."""
        if self.algorithm != key.algorithm:
            raise AcmeProblem(
                Kind.BAD_SIGNATURE_ALGORITHM,
                f"the message says alg {self.algorithm}, but the key is for {key.algorithm}",
                algorithms=[key.algorithm],
            )
        if not _signature_holds(self.algorithm, key.public, self.signing_input, self.signature):
            raise malformed("the signature does not verify: check that the right account key signs")

    def verify_mac(self, secret: bytes) -> None:
        """Raises AcmeProblem unless the MAC is made with this secret (section 7.3.4)."""
        algorithm = JWASignature.from_json(self.algorithm)
        if not algorithm.verify(key=secret, msg=self.signing_input, sig=self.signature):
            raise AcmeProblem(
                Kind.UNAUTHORIZED,
                "the external account binding does not verify: check the MAC key that goes with the key identifier",
            )


def parse(body: bytes, *, mac: bool = False) -> Jws:
    """Take a message apart; with `mac` one whose algorithm is a MAC. Raises AcmeProblem."""
    outer = decode_json(body, _Flattened, "the request")
    if outer.header is not UNSET or outer.signatures is not UNSET:
        raise malformed("use the flattened JSON serialization, one signature, and no unprotected header")
    protected_bytes = _decode_text(outer.protected, "protected")
    header = decode_json(protected_bytes, _Protected, "the protected header")
    if header.crit is not UNSET or header.b64 is not UNSET:
        raise malformed("header extensions (crit, b64) are not supported")
    allowed = MAC_ALGORITHMS if mac else ALGORITHMS
    if header.alg not in allowed:
        raise AcmeProblem(
            Kind.BAD_SIGNATURE_ALGORITHM,
            f"alg {header.alg[:40]!r} is not taken here; use {', '.join(allowed)}",
            algorithms=allowed,
        )
    if (header.jwk is UNSET) == (header.kid is UNSET):
        raise malformed("the protected header has exactly one of jwk and kid")
    if header.url is UNSET:
        raise malformed("the protected header lacks url")
    kid = None if isinstance(header.kid, UnsetType) else header.kid
    if kid is not None and len(kid) > MAX_KID_CHARACTERS:
        raise malformed("kid is too long")
    return Jws(
        algorithm=header.alg,
        url=header.url,
        nonce=None if isinstance(header.nonce, UnsetType) else header.nonce,
        key=None if isinstance(header.jwk, UnsetType) else public_key(header.jwk),
        kid=kid,
        payload=_decode_text(outer.payload, "payload"),
        signing_input=f"{outer.protected}.{outer.payload}".encode("ascii"),
        signature=_decode_text(outer.signature, "signature"),
    )


def parse_jwk(text: bytes) -> Key:
    """A key from the JSON of a JWK. Raises AcmeProblem."""
    return public_key(decode_json(text, Jwk, "the key"))


def public_key(jwk: Jwk) -> Key:
    """The key that a JWK describes. Raises AcmeProblem (badPublicKey) for kinds and sizes that are not taken."""
    if jwk.d is not UNSET or jwk.k is not UNSET:
        raise AcmeProblem(
            Kind.BAD_PUBLIC_KEY, "the jwk contains a private or symmetric key: it is compromised now, make another one"
        )
    try:
        match jwk.kty:
            case "EC":
                return _elliptic(jwk)
            case "RSA":
                return _rsa(jwk)
            case "OKP":
                return _edwards(jwk)
    except (JoseError, EncodingError, ValueError, UnsupportedAlgorithm) as error:
        raise AcmeProblem(Kind.BAD_PUBLIC_KEY, f"the jwk is not a key: {error}") from None
    raise _not_taken(f"kty {jwk.kty[:40]!r}")


def of_certificate(public: PublicKeyTypes) -> str | None:
    """The thumbprint of a certificate's key, as a JWK would have it; None for a kind that cannot sign requests here."""
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            jwk = {"kty": "EC", **_selected(JWKEC(key=public).to_json(), "crv", "x", "y")}
        elif isinstance(public, rsa.RSAPublicKey):
            jwk = {"kty": "RSA", **_selected(JWKRSA(key=public).to_json(), "n", "e")}
        elif isinstance(public, Ed25519PublicKey):
            jwk = {"kty": "OKP", "crv": "Ed25519", "x": encode(public.public_bytes_raw())}
        else:
            return None
    except JoseError:
        return None
    return encode(hashlib.sha256(_canonical(jwk).encode()).digest())


def _selected(jwk: Any, *names: str) -> dict[str, str]:
    return {name: str(jwk[name]) for name in names}


def _canonical(members: dict[str, str]) -> str:
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


def _elliptic(jwk: Jwk) -> Key:
    algorithm = {"P-256": "ES256", "P-384": "ES384"}.get(jwk.crv or "")
    if algorithm is None:
        raise _not_taken(f"curve {str(jwk.crv)[:40]!r}")
    members = {"kty": "EC", "crv": str(jwk.crv), "x": _text(jwk.x, "x"), "y": _text(jwk.y, "y")}
    for name in ("x", "y"):
        decode(members[name])
    read = JWKEC.from_json(members)
    assert isinstance(read, JWKEC)
    return Key(algorithm, _canonical(members), read.key)


def _rsa(jwk: Jwk) -> Key:
    members = {"kty": "RSA", "n": _text(jwk.n, "n"), "e": _text(jwk.e, "e")}
    modulus = decode(members["n"])
    bits = int.from_bytes(modulus, "big").bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or modulus[0] == 0:
        raise _not_taken(f"an RSA modulus of {bits} bits (RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS})")
    if decode(members["e"]) != RSA_EXPONENT.to_bytes(3, "big"):
        raise _not_taken("an RSA exponent other than 65537")
    read = JWKRSA.from_json(members)
    assert isinstance(read, JWKRSA)
    return Key("RS256", _canonical(members), read.key)


def _edwards(jwk: Jwk) -> Key:
    if jwk.crv != "Ed25519":
        raise _not_taken(f"curve {str(jwk.crv)[:40]!r}")
    members = {"kty": "OKP", "crv": "Ed25519", "x": _text(jwk.x, "x")}
    return Key("EdDSA", _canonical(members), Ed25519PublicKey.from_public_bytes(decode(members["x"])))


def _text(value: str | UnsetType, name: str) -> str:
    if isinstance(value, UnsetType):
        raise ValueError(f"{name} is missing")
    return value


def _not_taken(what: str) -> AcmeProblem:
    return AcmeProblem(
        Kind.BAD_PUBLIC_KEY, f"{what} is not taken here: use P-256, P-384, Ed25519, or RSA", algorithms=ALGORITHMS
    )


def _signature_holds(algorithm: str, public: Public, message: bytes, signature: bytes) -> bool:
    if isinstance(public, Ed25519PublicKey):
        try:
            public.verify(signature, message)
        except InvalidSignature:
            return False
        return True
    return bool(JWASignature.from_json(algorithm).verify(key=public, msg=message, sig=signature))


def _decode_text(text: str, name: str) -> bytes:
    try:
        return decode(text)
    except EncodingError as error:
        raise malformed(f"{name} is {error}") from None

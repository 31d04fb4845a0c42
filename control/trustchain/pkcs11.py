"""Keys in a PKCS#11 token (an HSM, a smart card, SoftHSM): made there, used there, never out of it.

A `TokenKey` is an `ec.EllipticCurvePrivateKey` whose `sign` is done by the token, so that everything that takes a private
key takes it. Named by a URI (RFC 7512):

    pkcs11:token=LABEL;object=LABEL[;id=%01%02][;serial=…]?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/stoq/pin

The PIN comes from `pin-source` (a file that only its owner may read), from the passphrase the caller was given, or from
`pin-value`, in this order. Needs python-pkcs11 and the token's module; both are loaded when the first URI is opened.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import unquote, unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import Hash, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    PrivateFormat,
    load_der_public_key,
)

from control.trustchain.errors import KeyUnavailable
from control.trustchain.keys import CURVES, PKCS11_SCHEME, Passphrase, read_private_file

INSTALL = "pip install python-pkcs11 (and the token's module, for instance: apt install softhsm2)"
MAX_URI_CHARS = 2048
_PATH_KEYS = frozenset({"token", "object", "id", "serial", "type", "manufacturer", "model"})
_QUERY_KEYS = frozenset({"module-path", "pin-source", "pin-value"})
_PKCS11_CURVES = {"p256": "secp256r1", "p384": "secp384r1"}


@dataclass(frozen=True, slots=True)
class TokenUri:
    """The parts of a PKCS#11 URI that are used here; empty: not given."""

    module: str
    token: str
    object: str
    id: bytes
    serial: bytes
    pin_source: str
    pin_value: str

    def __str__(self) -> str:
        """Without its PIN, for people."""
        return f"pkcs11:token={self.token};object={self.object or self.id.hex()}"


def parse_uri(text: str) -> TokenUri:
    """Raises KeyUnavailable that says what is missing or unknown."""
    if not text.startswith(PKCS11_SCHEME) or len(text) > MAX_URI_CHARS:
        raise KeyUnavailable(f"{text[:60]!r} is not a pkcs11: URI")
    path, _, query = text[len(PKCS11_SCHEME) :].partition("?")
    values: dict[str, str] = {}
    for part, separator, known in ((path, ";", _PATH_KEYS), (query, "&", _QUERY_KEYS)):
        for item in filter(None, part.split(separator)):
            name, equals, value = item.partition("=")
            if not equals or name in values or name not in known:
                raise KeyUnavailable(f"{name!r} in the pkcs11: URI is unknown, twice, or without a value")
            values[name] = value
    if not values.get("module-path"):
        raise KeyUnavailable("the pkcs11: URI names no module: add ?module-path=/usr/lib/softhsm/libsofthsm2.so")
    if not (values.get("token") or values.get("serial")) or not (values.get("object") or values.get("id")):
        raise KeyUnavailable(
            "the pkcs11: URI must name the token and the object: pkcs11:token=…;object=…?module-path=…"
        )
    return TokenUri(
        module=unquote(values["module-path"]),
        token=unquote(values.get("token", "")),
        object=unquote(values.get("object", "")),
        id=unquote_to_bytes(values.get("id", "")),
        serial=unquote_to_bytes(values.get("serial", "")),
        pin_source=unquote(values.get("pin-source", "")),
        pin_value=unquote(values.get("pin-value", "")),
    )


def _pin(uri: TokenUri, passphrase: Passphrase | None) -> str | None:
    if uri.pin_source:
        path = Path(uri.pin_source.removeprefix("file:"))
        return read_private_file(path, "PIN").decode("utf-8", "replace").strip()
    if passphrase is not None:
        return passphrase().decode("utf-8", "replace")
    return uri.pin_value or None


class _Token:
    """A session with a token; logged in. `use` keeps threads apart: a session does one thing at a time."""

    def __init__(self, uri: TokenUri, passphrase: Passphrase | None, *, write: bool = False) -> None:
        try:
            import pkcs11
        except ImportError:
            raise KeyUnavailable(f"keys in a token need python-pkcs11: {INSTALL}") from None
        self.uri = uri
        self.api = pkcs11
        self.lock = threading.Lock()
        pin = _pin(uri, passphrase)
        try:
            library = pkcs11.lib(uri.module)
        except (RuntimeError, OSError) as error:
            raise KeyUnavailable(f"the PKCS#11 module {uri.module} cannot be loaded: {error}; {INSTALL}") from None
        try:
            wanted: dict[str, Any] = {}
            if uri.token:
                wanted["token_label"] = uri.token
            if uri.serial:
                wanted["token_serial"] = uri.serial
            token = library.get_token(**wanted)
            try:
                self.session = token.open(rw=write, user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:
                self.session = token.open(rw=write)  # A login is the process's, not the session's.
        except pkcs11.PKCS11Error as error:
            raise KeyUnavailable(f"{uri}: {_says(error)}") from None

    def find(self, kind: str) -> Any:
        """The private or public key that the URI names. Raises KeyUnavailable."""
        wanted: dict[str, Any] = {"object_class": self.api.ObjectClass[kind]}
        if self.uri.object:
            wanted["label"] = self.uri.object
        if self.uri.id:
            wanted["id"] = self.uri.id
        try:
            return self.session.get_key(**wanted)
        except self.api.PKCS11Error as error:
            raise KeyUnavailable(f"{self.uri} ({kind.lower().replace('_', ' ')}): {_says(error)}") from None


def _says(error: Exception) -> str:
    hints = {
        "PinIncorrect": "the PIN is wrong",
        "PinLocked": "the PIN is locked",
        "NoSuchToken": "there is no such token; see `softhsm2-util --show-slots` or `pkcs11-tool -L`",
        "NoSuchKey": "there is no such key in the token",
        "MultipleObjectsReturned": "several keys have this name: add ;id=… to the URI",
        "MultipleTokensReturned": "several tokens have this name: add ;serial=… to the URI",
        "UserNotLoggedIn": "the token wants a PIN: give pin-source",
    }
    name = type(error).__name__
    return hints.get(name, f"the token says {name}" + (f" ({error})" if str(error) else ""))


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key that stays in its token. Raises KeyUnavailable when the token does not sign."""

    def __init__(self, token: _Token, private: Any, public: ec.EllipticCurvePublicKey) -> None:
        self._token = token
        self._private = private
        self._public = public

    @property
    def curve(self) -> ec.EllipticCurve:
        """The key's curve."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self._public.curve.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public key, read from the token when it was opened."""
        return self._public

    def sign(
        self, data: bytes | bytearray | memoryview, signature_algorithm: ec.EllipticCurveSignatureAlgorithm
    ) -> bytes:
        """An ECDSA signature, DER. The hash is made here, the signature in the token (CKM_ECDSA)."""
        if not isinstance(signature_algorithm, ec.ECDSA):
            raise KeyUnavailable("a key in a token signs with ECDSA only")
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed):
            digest = bytes(data)
        else:
            assert isinstance(algorithm, HashAlgorithm)
            hasher = Hash(algorithm)
            hasher.update(data)
            digest = hasher.finalize()
        size = (self.key_size + 7) // 8
        try:
            with self._token.lock:
                raw = bytes(self._private.sign(digest[:size], mechanism=self._token.api.Mechanism.ECDSA))
        except self._token.api.PKCS11Error as error:
            raise KeyUnavailable(f"{self._token.uri}: {_says(error)}") from None
        if len(raw) != 2 * size:
            raise KeyUnavailable(f"{self._token.uri}: a signature of {len(raw)} bytes; {2 * size} were expected")
        return encode_dss_signature(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Not for key exchange."""
        raise KeyUnavailable("a key in a token signs only")

    def private_numbers(self) -> NoReturn:
        """Not to be had."""
        raise KeyUnavailable("a key in a token does not leave it")

    def private_bytes(
        self, encoding: Encoding, format: PrivateFormat, encryption_algorithm: KeySerializationEncryption
    ) -> NoReturn:
        """Not to be had."""
        raise KeyUnavailable("a key in a token does not leave it")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _public(token: _Token, found: Any) -> ec.EllipticCurvePublicKey:
    from pkcs11.util.ec import encode_ec_public_key

    try:
        public = load_der_public_key(encode_ec_public_key(found))
    except (ValueError, TypeError, token.api.PKCS11Error) as error:
        raise KeyUnavailable(f"{token.uri}: its public key cannot be read ({error})") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, tuple(CURVES.values())):
        raise KeyUnavailable(f"{token.uri} is no ECDSA P-256 or P-384 key")
    return public


def open_token_key(uri: str, passphrase: Passphrase | None = None) -> TokenKey:
    """The key that a URI names. Raises KeyUnavailable."""
    token = _Token(parse_uri(uri), passphrase)
    return TokenKey(token, token.find("PRIVATE_KEY"), _public(token, token.find("PUBLIC_KEY")))


def make_token_key(uri: str, curve: str = "p256", passphrase: Passphrase | None = None) -> TokenKey:
    """A new key in the token, not extractable. Raises KeyUnavailable, also when there is one of this name."""
    if curve not in _PKCS11_CURVES:
        raise KeyUnavailable(f"{curve!r} is no curve for a key; take one of {', '.join(_PKCS11_CURVES)}")
    token = _Token(parse_uri(uri), passphrase, write=True)
    try:
        token.find("PRIVATE_KEY")
    except KeyUnavailable:
        pass
    else:
        raise KeyUnavailable(f"{token.uri} exists: nothing was overwritten; name another object")
    from pkcs11.util.ec import encode_named_curve_parameters

    try:
        parameters = token.session.create_domain_parameters(
            token.api.KeyType.EC,
            {token.api.Attribute.EC_PARAMS: encode_named_curve_parameters(_PKCS11_CURVES[curve])},
            local=True,
        )
        public, private = parameters.generate_keypair(
            label=token.uri.object or None,
            id=token.uri.id or None,
            store=True,
            capabilities=token.api.MechanismFlag.SIGN | token.api.MechanismFlag.VERIFY,
        )
    except token.api.PKCS11Error as error:
        raise KeyUnavailable(f"{token.uri}: {_says(error)}") from None
    return TokenKey(token, private, _public(token, public))

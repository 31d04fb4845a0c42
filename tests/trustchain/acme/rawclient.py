"""An ACME client that can be told to do everything wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from josepy.jwa import ES256, JWASignature
from josepy.jwk import JWK, JWKEC

from control.trustchain.acme.encoding import encode

URN = "urn:ietf:params:acme:error:"


def new_key() -> JWKEC:
    """A P-256 account key."""
    return JWKEC(key=ec.generate_private_key(ec.SECP256R1()))


def sign(payload: bytes, header: dict[str, Any], key: JWK, algorithm: JWASignature = ES256) -> dict[str, str]:
    """A flattened JWS with exactly this protected header."""
    protected = encode(json.dumps(header).encode())
    body = encode(payload)
    signature = algorithm.sign(key.key, f"{protected}.{body}".encode())
    return {"protected": protected, "payload": body, "signature": encode(signature)}


def csr(*names: str, key: ec.EllipticCurvePrivateKey | None = None, **extra: Any) -> str:
    """A CSR for DNS names, base64url."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in extra.get("common", [])])
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names] + extra.get("others", [])), critical=False
    )
    if extra.get("ca"):
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), SHA256())
    return encode(made.public_bytes(Encoding.DER))


class RawClient:
    """One key, perhaps one account. `post` signs as it should unless told otherwise."""

    def __init__(self, directory: str, root: Path) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(root)
        self.urls: dict[str, Any] = self.session.get(directory, timeout=10).json()
        self.key = new_key()
        self.kid: str | None = None

    @property
    def jwk(self) -> dict[str, Any]:
        found: dict[str, Any] = self.key.public_key().to_json()
        return found

    def nonce(self) -> str:
        return self.session.head(self.urls["newNonce"], timeout=10).headers["Replay-Nonce"]

    def header(self, target: str, /, **changes: Any) -> dict[str, Any]:
        """The protected header of an honest request, with changes; a change to None leaves a member out."""
        header: dict[str, Any] = {"alg": "ES256", "nonce": self.nonce(), "url": target}
        header |= {"jwk": self.jwk} if self.kid is None else {"kid": self.kid}
        header |= changes
        return {name: value for name, value in header.items() if value is not None}

    def send(self, url: str, message: Any, content_type: str = "application/jose+json") -> requests.Response:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.session.post(url, data=data, headers={"Content-Type": content_type}, timeout=10)

    def post(self, target: str, payload: Any = None, /, **changes: Any) -> requests.Response:
        """`payload`: None for POST-as-GET."""
        body = b"" if payload is None else json.dumps(payload).encode()
        return self.send(target, sign(body, self.header(target, **changes), self.key))

    def register(self, **wish: Any) -> requests.Response:
        response = self.post(self.urls["newAccount"], wish)
        if response.ok:
            self.kid = response.headers["Location"]
        return response

    def order(self, *names: str, kind: str = "dns") -> requests.Response:
        return self.post(self.urls["newOrder"], {"identifiers": [{"type": kind, "value": name} for name in names]})

    def close(self) -> None:
        self.session.close()


@contextmanager
def raw_client(directory: str, root: Path, *, register: bool = True) -> Iterator[RawClient]:
    """A client with an account, unless told otherwise."""
    client = RawClient(directory, root)
    try:
        if register:
            assert client.register().status_code == 201
        yield client
    finally:
        client.close()


def problem(response: requests.Response, kind: str, status: int) -> dict[str, Any]:
    """The problem document, which must be of this type and status and, as every answer to a POST, bring a nonce."""
    assert response.headers["Content-Type"] == "application/problem+json", response.text
    document: dict[str, Any] = response.json()
    assert (document["type"], response.status_code) == (URN + kind, status), document
    assert document["status"] == status
    assert response.headers["Replay-Nonce"]
    return document


__all__ = ["RawClient", "csr", "new_key", "problem", "raw_client", "sign"]

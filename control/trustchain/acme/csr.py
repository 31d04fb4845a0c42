"""What a CSR must be to finalize an order (RFC 8555 section 7.4): well signed, a key worth certifying, the order's
names and no others. What goes into the certificate is the CA's choice, not the CSR's."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from control.trustchain.acme.jose import MAX_RSA_BITS, MIN_RSA_BITS, RSA_EXPONENT, of_certificate
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind

MAX_CSR_BYTES = 16_384


def _bad(detail: str) -> AcmeProblem:
    return AcmeProblem(Kind.BAD_CSR, detail)


def check_csr(der: bytes, identifiers: Sequence[Identifier], account_thumbprint: str) -> None:
    """Raises AcmeProblem (badCSR) unless this CSR fits an order for `identifiers`."""
    if len(der) > MAX_CSR_BYTES:
        raise _bad(f"the CSR has {len(der)} bytes; at most {MAX_CSR_BYTES} are taken")
    try:
        csr = x509.load_der_x509_csr(der)
        names = _names(csr)
        _check_key(csr, account_thumbprint)
        signed = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise _bad(f"the CSR cannot be read: {error}") from None
    if not signed:
        raise _bad("the CSR's signature does not verify")
    wanted = set(identifiers)
    if names != wanted:
        parts = [
            f"{word} {', '.join(sorted(str(one)[:80] for one in some)[:5])}"
            for word, some in (("lacks", wanted - names), ("has besides", names - wanted))
            if some
        ]
        raise _bad(f"the CSR's names are not the order's: it {' and '.join(parts)}")


def _names(csr: x509.CertificateSigningRequest) -> set[Identifier]:
    names: set[Identifier] = set()
    for extension in csr.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            for name in extension.value:
                if isinstance(name, x509.DNSName):
                    names.add(Identifier("dns", name.value.lower()))
                elif isinstance(name, x509.IPAddress):
                    names.add(Identifier("ip", str(name.value)))
                else:
                    raise _bad(
                        f"the CSR asks for a name of type {type(name).__name__}; only DNS and IP names are issued"
                    )
        elif isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise _bad("the CSR asks to be a certificate authority")
    for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if str(attribute.value).lower() not in {name.value for name in names}:
            raise _bad(f"the CSR's common name {str(attribute.value)[:80]!r} is not among its subjectAltName")
    return names


def _check_key(csr: x509.CertificateSigningRequest, account_thumbprint: str) -> None:
    public = csr.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS or public.public_numbers().e != RSA_EXPONENT:
            raise _bad(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits and exponent {RSA_EXPONENT}")
    elif isinstance(public, ec.EllipticCurvePublicKey):
        if not isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1):
            raise _bad(f"the CSR's key is on curve {public.curve.name}; use P-256 or P-384")
    elif not isinstance(public, ed25519.Ed25519PublicKey):
        raise _bad("the CSR's key is of a kind that is not certified; use P-256, P-384, Ed25519 or RSA")
    if of_certificate(public) == account_thumbprint:
        raise _bad("the CSR's key is the account's: a certificate needs a key of its own (section 11.1)")

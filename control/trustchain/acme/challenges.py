"""Does a client control what it asks a certificate for? http-01 and dns-01 (RFC 8555 section 8), tls-alpn-01
(RFC 8737), and what they mean for addresses (RFC 8738).

Everything here talks to strangers on strangers' say-so, so all of it is bounded: time in all, bytes of an answer,
redirects, addresses tried; and every address is checked (`addresses`) at the moment of connecting.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from yarl import URL

from control.trustchain.acme.addresses import (
    MAX_ADDRESSES,
    AddressPolicy,
    ResolutionError,
    Resolver,
    SystemResolver,
    literal,
)
from control.trustchain.acme.encoding import encode
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind

HTTP_01 = "http-01"
TLS_ALPN_01 = "tls-alpn-01"
DNS_01 = "dns-01"

ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 section 3.
ALPN = "acme-tls/1"
MAX_RESPONSE_BYTES = 4096  # A key authorization has some 90.
MAX_REDIRECTS = 3
USER_AGENT = "stoq-acme-validation"
_REDIRECTS = (301, 302, 303, 307, 308)
_DOTTED = re.compile(r"[0-9.]+")  # Everything that could be taken for IPv4.
_SPACE = b" \t\r\n"  # Section 8.3: whitespace after the body is ignored.


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """How challenges are tried. Ports other than 80 and 443 are for tests and closed networks: what is proved then is
    control of that port. `timeout_seconds` is for one try in all, redirects included; a connection or a look-up that
    fails is tried `attempts` times, `retry_seconds` apart."""

    types: Sequence[str] = (HTTP_01, TLS_ALPN_01)
    addresses: AddressPolicy = field(default_factory=AddressPolicy)
    resolver: Resolver = field(default_factory=SystemResolver)
    http_port: int = 80
    tls_port: int = 443
    timeout_seconds: float = 10.0
    attempts: int = 2
    retry_seconds: float = 2.0


class _CheckedResolver(AbstractResolver):
    """aiohttp's way to addresses: ours, IPv6 only, each checked. Literals do not come by here."""

    def __init__(self, config: ValidationConfig) -> None:
        self._config = config

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET6
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=str(address), port=port, family=family, proto=0, flags=0)
            for address in await targets(host, self._config)
        ]

    async def close(self) -> None:
        """There is nothing to give up."""


async def targets(host: str, config: ValidationConfig) -> list[ipaddress.IPv6Address]:
    """The addresses to connect to for a name or an IPv6 address. Raises AcmeProblem if none may be reached."""
    address = literal(host)
    try:
        found = [str(address)] if address is not None else await config.resolver.addresses(host)
    except ResolutionError as error:
        raise AcmeProblem(Kind.DNS, str(error)) from None
    refusal = f"{host} has no IPv6 address (AAAA record)"
    allowed: list[ipaddress.IPv6Address] = []
    for text in found[:MAX_ADDRESSES]:
        address = literal(text)
        why = "it is not an IPv6 address" if address is None else config.addresses.refusal(address)
        if address is None or why is not None:
            refusal = f"{host} is at {text}, which is not connected to: {why}"
        else:
            allowed.append(address)
    if not allowed:
        raise AcmeProblem(Kind.DNS, refusal)
    return allowed


class Validator:
    """Tries challenges. Has no state but its configuration."""

    def __init__(self, config: ValidationConfig) -> None:
        self.config = config

    def offered(self, identifier: Identifier, wildcard: bool) -> tuple[str, ...]:
        """The types of challenge that can prove control of this. A wildcard takes dns-01, which an address cannot."""
        if wildcard:
            possible: tuple[str, ...] = (DNS_01,)
        elif identifier.type == "ip":
            possible = (HTTP_01, TLS_ALPN_01)
        else:
            possible = (HTTP_01, TLS_ALPN_01, DNS_01)
        return tuple(kind for kind in possible if kind in self.config.types)

    async def validate(self, kind: str, identifier: Identifier, token: str, thumbprint: str) -> None:
        """Returns when the challenge is met. Raises AcmeProblem, whose text is for the client."""
        key_authorization = f"{token}.{thumbprint}"
        for left in range(self.config.attempts - 1, -1, -1):
            try:
                await self._once(kind, identifier, token, key_authorization)
                return
            except AcmeProblem as problem:
                if left == 0 or problem.kind not in (Kind.CONNECTION, Kind.DNS):
                    raise
            await asyncio.sleep(self.config.retry_seconds)

    async def _once(self, kind: str, identifier: Identifier, token: str, key_authorization: str) -> None:
        try:
            async with asyncio.timeout(self.config.timeout_seconds):
                if kind == HTTP_01:
                    await self._http_01(identifier, token, key_authorization)
                elif kind == TLS_ALPN_01:
                    await self._tls_alpn_01(identifier, key_authorization)
                else:
                    await self._dns_01(identifier, key_authorization)
        except TimeoutError:
            raise AcmeProblem(
                Kind.CONNECTION, f"{identifier.value} did not answer within {self.config.timeout_seconds:g} s"
            ) from None

    # ---- http-01, section 8.3 ----

    async def _http_01(self, identifier: Identifier, token: str, key_authorization: str) -> None:
        url = URL.build(
            scheme="http",
            host=identifier.value,
            port=self.config.http_port,
            path=f"/.well-known/acme-challenge/{token}",
        )
        connector = aiohttp.TCPConnector(
            family=socket.AF_INET6, resolver=_CheckedResolver(self.config), use_dns_cache=False, force_close=True
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        ) as session:
            for _ in range(MAX_REDIRECTS + 1):
                status, location, body = await self._get(session, url)
                if status not in _REDIRECTS:
                    break
                url = self._redirected(url, location)
            else:
                raise AcmeProblem(Kind.CONNECTION, f"{identifier.value} redirects more than {MAX_REDIRECTS} times")
        if status != 200:
            raise AcmeProblem(Kind.UNAUTHORIZED, f"{_shown(url)} answered {status}, not 200 with the key authorization")
        if body.rstrip(_SPACE) != key_authorization.encode():
            raise AcmeProblem(
                Kind.INCORRECT_RESPONSE, f"{_shown(url)} answered {_quoted(body)}, not the key authorization"
            )

    async def _get(self, session: aiohttp.ClientSession, url: URL) -> tuple[int, str | None, bytes]:
        await self._check_literal(url)
        try:
            # A server asked to prove control need not have a certificate yet: where it redirects to https, none is
            # verified. What proves control is the key authorization.
            async with session.get(url, allow_redirects=False, ssl=False) as response:
                body = bytearray()
                if response.status == 200:
                    async for part in response.content.iter_any():
                        body += part
                        if len(body) > MAX_RESPONSE_BYTES:
                            raise AcmeProblem(
                                Kind.INCORRECT_RESPONSE, f"{_shown(url)} answered more than {MAX_RESPONSE_BYTES} bytes"
                            )
                return response.status, response.headers.get("Location"), bytes(body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AcmeProblem(Kind.CONNECTION, f"cannot get {_shown(url)}: {_shown(error)}") from None

    async def _check_literal(self, url: URL) -> None:
        """Names are checked when they are resolved; addresses in a URL are not resolved, so they are checked here."""
        host = url.host or ""
        if ":" in host or _DOTTED.fullmatch(host):
            if literal(host) is None:
                raise AcmeProblem(Kind.CONNECTION, f"{_shown(host)} is not connected to: it is not an IPv6 address")
            await targets(host, self.config)

    def _redirected(self, base: URL, location: str | None) -> URL:
        """Where a redirect leads: another host perhaps, but http or https on its usual port, without credentials."""
        try:
            url = base.join(URL(location or ""))
        except ValueError:
            url = URL()
        ports = {"http": (80, self.config.http_port), "https": (443, self.config.tls_port)}
        if location is None or url.host is None or url.scheme not in ports:
            raise AcmeProblem(Kind.CONNECTION, f"{_shown(base)} redirects to {_shown(location)}, which is not http(s)")
        if url.user is not None or url.password is not None or url.port not in ports[url.scheme]:
            raise AcmeProblem(
                Kind.CONNECTION, f"{_shown(base)} redirects to {_shown(url)}: only the usual ports are followed"
            )
        return url

    # ---- tls-alpn-01, RFC 8737 section 3 ----

    async def _tls_alpn_01(self, identifier: Identifier, key_authorization: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        name = identifier.value if identifier.type == "dns" else ipaddress.ip_address(identifier.value).reverse_pointer
        last: AcmeProblem | None = None
        for address in await targets(identifier.value, self.config):
            try:
                _, writer = await asyncio.open_connection(
                    str(address), self.config.tls_port, ssl=context, server_hostname=name
                )
            except ssl.SSLError as error:
                last = AcmeProblem(Kind.TLS, f"no TLS with {identifier.value} at {address}: {_shown(error)}")
                continue
            except OSError as error:
                last = AcmeProblem(
                    Kind.CONNECTION, f"cannot connect to {address} port {self.config.tls_port}: {_shown(error)}"
                )
                continue
            try:
                session: ssl.SSLObject = writer.get_extra_info("ssl_object")
                protocol, certificate = session.selected_alpn_protocol(), session.getpeercert(binary_form=True)
            finally:
                writer.transport.abort()
            if protocol != ALPN:
                raise AcmeProblem(Kind.UNAUTHORIZED, f"{identifier.value} did not negotiate {ALPN}")
            check_alpn_certificate(certificate or b"", identifier, key_authorization)
            return
        assert last is not None
        raise last

    # ---- dns-01, section 8.4 ----

    async def _dns_01(self, identifier: Identifier, key_authorization: str) -> None:
        name = f"_acme-challenge.{identifier.value}"
        try:
            records = await self.config.resolver.text(name)
        except ResolutionError as error:
            raise AcmeProblem(Kind.DNS, str(error)) from None
        wanted = encode(hashlib.sha256(key_authorization.encode()).digest())
        if wanted not in records:
            raise AcmeProblem(
                Kind.UNAUTHORIZED, f"none of the {len(records)} TXT records of {name} is the digest that is expected"
            )


def check_alpn_certificate(der: bytes, identifier: Identifier, key_authorization: str) -> None:
    """Is this the certificate that RFC 8737 section 3 asks for? Raises AcmeProblem."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        proof = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise AcmeProblem(Kind.UNAUTHORIZED, f"the certificate shown is not one of {ALPN}: {_shown(error)}") from None
    if [str(name.value).lower() for name in names if isinstance(name, x509.DNSName | x509.IPAddress)] != [
        identifier.value
    ] or len(names) != 1:
        raise AcmeProblem(Kind.UNAUTHORIZED, f"the certificate shown is not for {identifier.value} alone")
    digest = hashlib.sha256(key_authorization.encode()).digest()
    value = proof.value.value if isinstance(proof.value, x509.UnrecognizedExtension) else b""
    if not proof.critical or value != b"\x04\x20" + digest:
        raise AcmeProblem(
            Kind.INCORRECT_RESPONSE, "the certificate shown does not carry the key authorization's digest"
        )


def _shown(thing: object) -> str:
    """What a stranger sent, fit for a line of text."""
    return "".join(c if c.isprintable() else "?" for c in str(thing))[:200]


def _quoted(body: bytes) -> str:
    return repr(body[:100].decode("ascii", "replace"))

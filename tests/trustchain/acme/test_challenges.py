"""Challenges against servers that are wrong, slow, endless, or want us to go elsewhere."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.trustchain.acme import AddressPolicy, ValidationConfig
from control.trustchain.acme.addresses import SystemResolver
from control.trustchain.acme.challenges import ACME_IDENTIFIER, ALPN, MAX_RESPONSE_BYTES, Validator
from control.trustchain.acme.encoding import encode
from control.trustchain.acme.problems import AcmeProblem, Identifier, Kind
from tests.trustchain.acme.served import LOOPBACK, Names

PATIENCE = 10.0
NAME = "node-a.stoq.test"
DNS = Identifier("dns", NAME)
TOKEN = "t" * 43
THUMBPRINT = "p" * 43
GOOD = f"{TOKEN}.{THUMBPRINT}"

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Web:
    """An HTTP server on ::1 that answers with bytes, or by a function; it knows what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head.split(" ")[1])
            await self._answer(self.asked[-1], writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def web(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    found = Web(answer)
    server = await asyncio.start_server(found.serve, "::1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def says(body: str | bytes, status: str = "200 OK", *headers: str) -> Answer:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else body.encode()
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Connection: close", *headers]
        writer.write("\r\n".join([*head, "", ""]).encode() + data)

    return answer


def config(port: int = 1, **changes: Any) -> ValidationConfig:
    settings: dict[str, Any] = {
        "addresses": LOOPBACK,
        "resolver": Names({NAME: ["::1"], "other.test": ["::1"]}),
        "http_port": port,
        "tls_port": port,
        "attempts": 1,
        "timeout_seconds": 3.0,
    }
    return ValidationConfig(**(settings | changes))


async def outcome(validation: ValidationConfig, identifier: Identifier = DNS, kind: str = "http-01") -> str:
    """`valid`, or the type of the problem and its text."""
    async with asyncio.timeout(PATIENCE):
        try:
            await Validator(validation).validate(kind, identifier, TOKEN, THUMBPRINT)
        except AcmeProblem as problem:
            return f"{problem.kind.value[0]}: {problem}"
    return "valid"


def http_01(answer: Answer, identifier: Identifier = DNS, **changes: Any) -> str:
    """What a server that answers so leads to."""

    async def main() -> str:
        async with web(answer) as server:
            return await outcome(config(server.port, **changes), identifier)

    return asyncio.run(main())


@pytest.mark.parametrize("body", [GOOD, GOOD + "\n", GOOD + " \r\n\t"])
def test_http_01(body: str) -> None:
    assert http_01(says(body)) == "valid"
    assert http_01(says(body), Identifier("ip", "::1")) == "valid"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says("x" + GOOD), "incorrectResponse"),
        (says(GOOD + "x"), "incorrectResponse"),
        (says(TOKEN), "incorrectResponse"),
        (says(b"\xff\x00\x1b[31m"), "incorrectResponse"),
        (says(""), "incorrectResponse"),
        (says(GOOD + " " * MAX_RESPONSE_BYTES), "incorrectResponse"),
        (says(GOOD, "404 Not Found"), "unauthorized"),
        (says("", "204 No Content"), "unauthorized"),
        (says(GOOD, "500 x"), "unauthorized"),
        (says(GOOD, "200 OK", "X: " + "a" * 100_000), "connection"),
        (says(GOOD, "200 OK", *(f"X{n}: a" for n in range(100_000))), "connection"),
    ],
)
def test_answers_that_do_not_prove(answer: Answer, expected: str) -> None:
    found = http_01(answer)
    assert found.startswith(expected + ":") and found.isprintable(), found


def test_garbage_and_silence() -> None:
    async def garbage(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x01" * 10)

    async def endless(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()

    async def drip(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    async def nothing(path: str, writer: asyncio.StreamWriter) -> None:
        return

    assert http_01(garbage).startswith("connection:")
    assert http_01(endless).startswith("incorrectResponse:")
    assert "within 0.3 s" in http_01(drip, timeout_seconds=0.3)
    assert http_01(nothing).startswith("connection:")


def test_nobody_listens_is_tried_again() -> None:
    """A server that is a moment late is waited for."""
    tries = 0

    async def late(path: str, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            await says(GOOD)(path, writer)

    assert http_01(late, attempts=2, retry_seconds=0.01) == "valid" and tries == 2


# ---- redirects ----


def to(location: str, port_of: str = "PORT") -> Answer:
    """Redirects to `location` (PORT: the server's own port) unless asked for /good."""

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/good":
            await says(GOOD)(path, writer)
        else:
            port = writer.get_extra_info("sockname")[1]
            await says("", "302 Found", f"Location: {location.replace(port_of, str(port))}")(path, writer)

    return answer


@pytest.mark.parametrize("location", ["/good", "//other.test:PORT/good", "http://[::1]:PORT/good", "../../good"])
def test_redirects_that_are_followed(location: str) -> None:
    assert http_01(to(location)) == "valid"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/again", "redirects more than 3 times"),
        ("http://other.test:22/good", "only the usual ports"),
        ("http://u:p@other.test:PORT/good", "only the usual ports"),
        ("ftp://other.test/good", "not http(s)"),
        ("file:///etc/passwd", "not http(s)"),
        ("http://127.0.0.1:PORT/good", "not an IPv6 address"),
        ("http://2130706433:PORT/good", "not an IPv6 address"),
        ("http://[::ffff:127.0.0.1]:PORT/good", "mapped IPv4"),
        ("http://[fe80::1]:PORT/good", "link-local"),
        ("http://[fd00::1]:PORT/good", "unique local"),
        ("http://[::1%25lo]:PORT/good", ""),
        ("http://unknown.test:PORT/good", "no IPv6 address"),
        ("http://[::1", ""),
        ("", "redirects more than 3 times"),
    ],
)
def test_redirects_that_are_not(location: str, expected: str) -> None:
    found = http_01(to(location))
    assert found != "valid" and expected in found, found


def test_a_redirect_is_not_a_way_in() -> None:
    """A first target that may be reached cannot send us to one that may not: the policy is asked for each."""

    async def main() -> tuple[str, list[str]]:
        async with web(says("secret")) as inner:
            names = Names({NAME: ["::1"], "inner.test": ["fd00::1"]})
            async with web(to(f"http://inner.test:{inner.port}/good")) as outer:
                found = await outcome(config(outer.port, resolver=names, http_port=outer.port))
            return found, inner.asked

    found, asked = asyncio.run(main())
    assert found.startswith("connection:") and not asked


# ---- addresses ----


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("2606:4700::1111", True),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("fd00::1", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False),
        ("2002:808:808::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("100::1", False),
    ],
)
def test_addresses_by_default(address: str, allowed: bool) -> None:
    assert (AddressPolicy().refusal(ipaddress.IPv6Address(address)) is None) == allowed


def test_addresses_by_leave() -> None:
    assert AddressPolicy(loopback=True).refusal(ipaddress.IPv6Address("::1")) is None
    assert AddressPolicy(unique_local=True).refusal(ipaddress.IPv6Address("fd00::1")) is None
    assert AddressPolicy(unique_local=True).refusal(ipaddress.IPv6Address("::1")) is not None


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1"], ["::1%lo"], ["nonsense"]])
def test_names_that_resolve_to_what_is_not_reached(addresses: list[str]) -> None:
    found = http_01(says(GOOD), resolver=Names({NAME: addresses}))
    assert found.startswith("dns:"), found


def test_loopback_needs_leave() -> None:
    found = http_01(says(GOOD), addresses=AddressPolicy())
    assert found.startswith("dns:") and "loopback" in found
    found = http_01(says(GOOD), Identifier("ip", "::1"), addresses=AddressPolicy())
    assert found.startswith("dns:") and "loopback" in found


def test_one_good_address_among_bad_ones() -> None:
    assert http_01(says(GOOD), resolver=Names({NAME: ["fe80::1", "127.0.0.1", "::1"]})) == "valid"


def test_the_machines_resolver() -> None:
    async def main() -> str:
        return await outcome(config(resolver=SystemResolver()), Identifier("dns", "name.invalid"))

    assert asyncio.run(main()).startswith("dns:")


# ---- tls-alpn-01 ----


def alpn_certificate(
    directory: Path, names: list[x509.GeneralName], key_authorization: str = GOOD, *, critical: bool = True
) -> ssl.SSLContext:
    """A server's context with the certificate that RFC 8737 section 3 asks for, or one that is nearly it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    value = b"\x04\x20" + hashlib.sha256(key_authorization.encode()).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, value), critical=critical)
        .sign(key, SHA256())
    )
    path = directory / "alpn.pem"
    path.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def tls_alpn_01(context: ssl.SSLContext, identifier: Identifier, protocols: list[str]) -> tuple[str, list[str | None]]:
    """The outcome, and the server names that were asked for."""
    asked: list[str | None] = []
    context.set_alpn_protocols(protocols)
    context.sni_callback = lambda _connection, name, _context: asked.append(name)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except OSError:
            pass
        writer.close()

    async def main() -> str:
        server = await asyncio.start_server(accept, "::1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await outcome(config(port), identifier, "tls-alpn-01")

    return asyncio.run(main()), asked


def test_tls_alpn_01(tmp_path: Path) -> None:
    named = alpn_certificate(tmp_path, [x509.DNSName(NAME)])
    assert tls_alpn_01(named, DNS, [ALPN]) == ("valid", [NAME])
    numbered = alpn_certificate(tmp_path, [x509.IPAddress(ipaddress.ip_address("::1"))])
    reverse = "1." + "0." * 31 + "ip6.arpa"
    assert tls_alpn_01(numbered, Identifier("ip", "::1"), [ALPN]) == ("valid", [reverse])


def test_tls_alpn_01_that_does_not_prove(tmp_path: Path) -> None:
    name = x509.DNSName(NAME)
    other = x509.DNSName("other.test")
    for context, protocols, expected in (
        (alpn_certificate(tmp_path, [name], "other"), [ALPN], "incorrectResponse"),
        (alpn_certificate(tmp_path, [name], critical=False), [ALPN], "incorrectResponse"),
        (alpn_certificate(tmp_path, [other]), [ALPN], "unauthorized"),
        (alpn_certificate(tmp_path, [name, other]), [ALPN], "unauthorized"),
        (alpn_certificate(tmp_path, [name, x509.RFC822Name("a@b.test")]), [ALPN], "unauthorized"),
        (alpn_certificate(tmp_path, [name]), ["http/1.1"], "unauthorized"),
    ):
        found, _ = tls_alpn_01(context, DNS, protocols)
        assert found.startswith((expected, "tls:") if protocols != [ALPN] else expected), found


def test_tls_alpn_01_where_there_is_no_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> tuple[str, str]:
        server = await asyncio.start_server(plain, "::1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            found = await outcome(config(port), DNS, "tls-alpn-01")
        return found, await outcome(config(port), DNS, "tls-alpn-01")

    found, closed = asyncio.run(main())
    assert found.startswith("tls:") and closed.startswith("connection:")


def test_a_redirect_to_https_needs_no_certificate(tmp_path: Path) -> None:
    """Who asks for a certificate may not have one yet."""

    async def main() -> str:
        tls = alpn_certificate(tmp_path, [x509.DNSName("whoever.test")])
        async with web(says(GOOD), tls) as inner, web(to(f"https://other.test:{inner.port}/good")) as outer:
            return await outcome(config(outer.port, tls_port=inner.port))

    assert asyncio.run(main()) == "valid"


# ---- dns-01, and what is offered ----


def test_dns_01() -> None:
    digest = encode(hashlib.sha256(GOOD.encode()).digest())
    for records, expected in (([digest], "valid"), (["x", digest], "valid"), (["x"], "unauthorized"), ([], "unauth")):
        names = Names(records={f"_acme-challenge.{NAME}": records})
        assert asyncio.run(outcome(config(resolver=names), DNS, "dns-01")).startswith(expected)
    assert asyncio.run(outcome(config(resolver=SystemResolver()), DNS, "dns-01")).startswith("dns:")


def test_what_is_offered() -> None:
    every = Validator(config(types=("http-01", "tls-alpn-01", "dns-01")))
    assert every.offered(DNS, False) == ("http-01", "tls-alpn-01", "dns-01")
    assert every.offered(DNS, True) == ("dns-01",)
    assert every.offered(Identifier("ip", "::1"), False) == ("http-01", "tls-alpn-01")
    assert Validator(config(types=("http-01",))).offered(DNS, True) == ()
    assert Kind.DNS.urn == "urn:ietf:params:acme:error:dns"

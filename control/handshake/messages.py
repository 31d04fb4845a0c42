"""TLS messages as bytes (RFC 8446 section 4): what a server reads and writes in every handshake.

Pure functions. Every length is checked against what holds it; a message that does not add up raises
`aioquic.tls.AlertDecodeError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from aioquic import tls

TLS_1_2 = b"\x03\x03"  # legacy_version, RFC 8446 section 4.1.2.
RANDOM_BYTES = 32
EARLY_DATA_SIZE = 0xFFFFFFFF  # In a ticket that permits 0-RTT; QUIC knows no other: RFC 9001 section 4.6.1.
ENDS_EARLY = "a TLS message ends early"
MAX_PSKS = 16  # Identities or binders in one ClientHello; more are malformed to us.


def message(kind: int, body: bytes) -> bytes:
    """A handshake message."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def opaque(size: int, value: bytes) -> bytes:
    """A vector with its length in `size` bytes."""
    return len(value).to_bytes(size, "big") + value


def extension(kind: int, value: bytes) -> bytes:
    """An extension."""
    return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


class Reader:
    """A cursor over one message."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        at, end = self.at, self.at + count
        if end > len(self.data):
            raise tls.AlertDecodeError(ENDS_EARLY)
        self.at = end
        return self.data[at:end]

    def number(self, size: int) -> int:
        """The next `size` bytes as a number."""
        at, end = self.at, self.at + size
        if end > len(self.data):
            raise tls.AlertDecodeError(ENDS_EARLY)
        self.at = end
        return int.from_bytes(self.data[at:end], "big")

    def opaque(self, size: int) -> bytes:
        """A vector whose length takes `size` bytes."""
        data, at = self.data, self.at
        begin = at + size
        end = begin + int.from_bytes(data[at:begin], "big")
        if end > len(data):  # Also when the length itself is cut off.
            raise tls.AlertDecodeError(ENDS_EARLY)
        self.at = end
        return data[begin:end]

    @property
    def done(self) -> bool:
        """All read?"""
        return self.at == len(self.data)

    def end(self) -> None:
        """All must have been read."""
        if not self.done:
            raise tls.AlertDecodeError("extra bytes at the end of a block")


def body_of(data: bytes) -> Reader:
    """The body of a whole message."""
    reader = Reader(data)
    reader.at = 1
    if reader.number(3) != len(data) - 4:
        raise tls.AlertDecodeError("a TLS message of another length than it says")
    return reader


def _numbers16(data: bytes) -> list[int]:
    if len(data) % 2:
        raise tls.AlertDecodeError("a list of odd length")
    return list(struct.unpack(f">{len(data) // 2}H", data))


def _only(value: bytes, size: int) -> bytes:
    """The vector that fills an extension."""
    reader = Reader(value)
    inner = reader.opaque(size)
    reader.end()
    return inner


def _items(value: bytes, size: int) -> Iterator[bytes]:
    reader = Reader(value)
    while not reader.done:
        yield reader.opaque(size)


def _key_shares(value: bytes) -> list[tuple[int, bytes]]:
    reader, shares = Reader(_only(value, 2)), []
    while not reader.done:
        shares.append((reader.number(2), reader.opaque(2)))
    return shares


def _protocols(value: bytes) -> list[str]:
    return [item.decode("ascii") for item in _items(_only(value, 2), 1) if item.isascii()]


def _offered_psks(value: bytes) -> tls.OfferedPsks:
    reader = Reader(value)
    identities, inner = [], Reader(reader.opaque(2))
    while not inner.done:
        identities.append((inner.opaque(2), inner.number(4)))
    binders = list(_items(reader.opaque(2), 1))
    reader.end()
    if not 0 < len(identities) == len(binders) <= MAX_PSKS:
        raise tls.AlertIllegalParameter("PreSharedKey without a binder for each identity")
    return tls.OfferedPsks(identities, binders)


def _server_name(value: bytes) -> str:
    reader = Reader(_only(value, 2))
    kind = reader.number(1)
    if kind != tls.NameType.HOST_NAME:
        raise tls.AlertIllegalParameter(f"ServerName has an unknown name type {kind}")
    name = reader.opaque(2)
    reader.end()
    if not name.isascii():
        raise tls.AlertDecodeError("ServerName is not ASCII")
    return name.decode("ascii")


def _key_share_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.key_share = _key_shares(value)


def _versions_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.supported_versions = _numbers16(_only(value, 1))


def _signatures_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.signature_algorithms = _numbers16(_only(value, 2))


def _groups_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.supported_groups = _numbers16(_only(value, 2))


def _psk_modes_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.psk_key_exchange_modes = list(_only(value, 1))


def _server_name_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.server_name = _server_name(value)


def _alpn_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.alpn_protocols = _protocols(value)


def _early_data_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.early_data = True


def _psk_extension(hello: tls.ClientHello, value: bytes) -> None:
    hello.pre_shared_key = _offered_psks(value)


CLIENT_HELLO: dict[int, Callable[[tls.ClientHello, bytes], None]] = {
    int(tls.ExtensionType.KEY_SHARE): _key_share_extension,
    int(tls.ExtensionType.SUPPORTED_VERSIONS): _versions_extension,
    int(tls.ExtensionType.SIGNATURE_ALGORITHMS): _signatures_extension,
    int(tls.ExtensionType.SUPPORTED_GROUPS): _groups_extension,
    int(tls.ExtensionType.PSK_KEY_EXCHANGE_MODES): _psk_modes_extension,
    int(tls.ExtensionType.SERVER_NAME): _server_name_extension,
    int(tls.ExtensionType.ALPN): _alpn_extension,
    int(tls.ExtensionType.EARLY_DATA): _early_data_extension,
    int(tls.ExtensionType.PRE_SHARED_KEY): _psk_extension,
}


def client_hello(data: bytes) -> tls.ClientHello:
    """RFC 8446 section 4.1.2."""
    reader = body_of(data)
    if reader.take(2) != TLS_1_2:
        raise tls.AlertDecodeError("ClientHello version is not 1.2")
    hello = tls.ClientHello(
        random=reader.take(RANDOM_BYTES),
        legacy_session_id=reader.opaque(1),
        cipher_suites=_numbers16(reader.opaque(2)),
        legacy_compression_methods=list(reader.opaque(1)),
    )
    extensions = Reader(reader.opaque(2))
    reader.end()
    while not extensions.done:
        if hello.pre_shared_key is not None:
            raise tls.AlertIllegalParameter("PreSharedKey is not the last extension")
        kind, value = extensions.number(2), extensions.opaque(2)
        known = CLIENT_HELLO.get(kind)
        if known is not None:
            known(hello, value)
        else:
            hello.other_extensions.append((kind, value))
    return hello


def binders_bytes(psks: tls.OfferedPsks) -> int:
    """Length of the binders, which a ClientHello's binder does not cover: RFC 8446 section 4.2.11.2."""
    return 2 + sum(1 + len(binder) for binder in psks.binders)


def server_hello(random: bytes, suite: int, share: tuple[int, bytes], *, psk: bool) -> bytes:
    """RFC 8446 section 4.1.3; an empty legacy_session_id, as in QUIC."""
    extensions = extension(tls.ExtensionType.SUPPORTED_VERSIONS, b"\x03\x04")
    extensions += extension(tls.ExtensionType.KEY_SHARE, share[0].to_bytes(2, "big") + opaque(2, share[1]))
    if psk:
        extensions += extension(tls.ExtensionType.PRE_SHARED_KEY, b"\0\0")
    body = TLS_1_2 + random + b"\0" + suite.to_bytes(2, "big") + b"\0" + opaque(2, extensions)
    return message(tls.HandshakeType.SERVER_HELLO, body)


def encrypted_extensions(alpn: str, others: Iterable[tuple[int, bytes]]) -> bytes:
    """RFC 8446 section 4.3.1."""
    extensions = extension(tls.ExtensionType.ALPN, opaque(2, opaque(1, alpn.encode("ascii"))))
    extensions += b"".join(extension(kind, value) for kind, value in others)
    return message(tls.HandshakeType.ENCRYPTED_EXTENSIONS, opaque(2, extensions))


def certificate_request(algorithms: Iterable[int]) -> bytes:
    """RFC 8446 section 4.3.2, with an empty context."""
    listed = b"".join(algorithm.to_bytes(2, "big") for algorithm in algorithms)
    extensions = extension(tls.ExtensionType.SIGNATURE_ALGORITHMS, opaque(2, listed))
    return message(tls.HandshakeType.CERTIFICATE_REQUEST, b"\0" + opaque(2, extensions))


def certificate(chain_der: Iterable[bytes]) -> bytes:
    """RFC 8446 section 4.4.2, with an empty context: leaf first."""
    entries = b"".join(opaque(3, der) + b"\0\0" for der in chain_der)
    return message(tls.HandshakeType.CERTIFICATE, b"\0" + opaque(3, entries))


def parse_certificate(data: bytes) -> list[bytes]:
    """The chain of a Certificate message, leaf first; may be empty."""
    reader = body_of(data)
    if reader.opaque(1):
        raise tls.AlertIllegalParameter("a Certificate with a request context in the handshake")
    entries = Reader(reader.opaque(3))
    reader.end()
    chain = []
    while not entries.done:
        chain.append(entries.opaque(3))
        entries.opaque(2)
    return chain


def certificate_verify(algorithm: int, signature: bytes) -> bytes:
    """RFC 8446 section 4.4.3."""
    return message(tls.HandshakeType.CERTIFICATE_VERIFY, algorithm.to_bytes(2, "big") + opaque(2, signature))


def finished(verify_data: bytes) -> bytes:
    """RFC 8446 section 4.4.4."""
    return message(tls.HandshakeType.FINISHED, verify_data)


def new_session_ticket(lifetime: int, age_add: int, ticket: bytes, *, early: bool) -> bytes:
    """RFC 8446 section 4.6.1; the nonce is empty: one ticket a connection."""
    permits = extension(tls.ExtensionType.EARLY_DATA, EARLY_DATA_SIZE.to_bytes(4, "big")) if early else b""
    body = struct.pack(">II", lifetime, age_add) + b"\0" + opaque(2, ticket) + opaque(2, permits)
    return message(tls.HandshakeType.NEW_SESSION_TICKET, body)

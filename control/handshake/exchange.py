"""What a node and its handshake processes say to each other: MessagePack structs in length-prefixed frames.

      node ── Setup, Keys ──────────────────────────────▶ process     first; again when they change
           ── Update(state) ────────────────────────────▶            of the peer verifier
           ── Start(params), Receive(level, data), Forget ▶            for one handshake, by its number
           ◀── Reply(number, calls) ──                                the calls on its HandshakeSink, in order

Both ends are ours, and a process is as trusted as the node. Frames are checked all the same: what does not
decode ends the process, or the node's use of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from control.handshake.credentials import Credentials, CredentialsError, PrivateKey, Trust
from control.handshake.peer import Exported, load
from control.handshake.policy import HandshakeConfig, Profile
from dataplane.handshake import PeerIdentity

LENGTH_BYTES = 4
READY = 0  # Number of the reply to Setup: handshakes may come.
MAX_FRAME_BYTES = 1 << 24  # A Setup with a peer verifier's revocations; a TLS message is 64 KiB at most.


class Setup(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A configuration, and who to become."""

    user: str | None  # As in control.privileges.drop.
    drop: bool
    key_log: bool
    chain: tuple[bytes, ...]  # DER, leaf first.
    key: bytes  # PKCS #8, DER.
    anchors: tuple[bytes, ...]
    alpns: tuple[str, ...]
    profile: str
    ciphers: tuple[str, ...]
    resumption: bool
    ticket_lifetime: float
    verifier: Exported | None = None


class Keys(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Ticket keys by their names, oldest first: what one process sealed, another opens."""

    keys: tuple[tuple[bytes, bytes], ...]


class Start(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A handshake as server."""

    number: int
    params: bytes


class Receive(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """CRYPTO bytes for it."""

    number: int
    level: int
    data: bytes


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Its connection is over."""

    number: int


class Update(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """PeerVerifier.update."""

    state: bytes


class Crypto(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """HandshakeSink.crypto."""

    level: int
    data: bytes


class Secret(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """HandshakeSink.secret."""

    level: int
    send: bool
    aead: int
    secret: bytes


class Params(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """HandshakeSink.peer_params."""

    data: bytes


class Complete(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """HandshakeSink.complete. `chain`: what the node has to confirm before it lets the peer in, leaf first."""

    alpn: str
    identity: PeerIdentity | None
    resumed: bool
    chain: tuple[bytes, ...] = ()


class Fail(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """HandshakeSink.fail."""

    code: int
    reason: str


class Logged(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """HandshakeConfig.key_log."""

    client_random: bytes
    label: str
    secret: bytes


Call = Crypto | Secret | Params | Complete | Fail | Logged
Request = Setup | Keys | Start | Receive | Forget | Update


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What one request led to; `number` is the handshake's."""

    number: int
    calls: list[Call]


class Frames:
    """Puts frames together from a stream of bytes. `kind` is what each must be. Iterating raises ValueError
    (msgspec's errors are ones) for what is none."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The frames that are whole with these bytes."""
        self._partial += data
        at, size = 0, len(self._partial)
        try:
            while size - at >= LENGTH_BYTES:
                length = int.from_bytes(self._partial[at : at + LENGTH_BYTES], "little")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                if size - at - LENGTH_BYTES < length:
                    break
                begin = at + LENGTH_BYTES
                at = begin + length
                yield self._decoder.decode(bytes(self._partial[begin:at]))
        finally:
            del self._partial[:at]


_encoder = msgspec.msgpack.Encoder()


def frame(value: Request | Reply) -> bytes:
    """A frame to send."""
    data = _encoder.encode(value)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def setup(config: HandshakeConfig, *, user: str | None, drop: bool) -> Setup:
    """A server's configuration as it is sent. Raises CredentialsError: a server needs a certificate."""
    credentials = config.credentials
    if credentials is None:
        raise CredentialsError("handshake processes need a certificate and its key")
    certificates = (credentials.certificate, *credentials.chain)
    return Setup(
        user=user,
        drop=drop,
        key_log=config.key_log is not None,
        chain=tuple(c.public_bytes(Encoding.DER) for c in certificates),
        key=credentials.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        anchors=tuple(c.public_bytes(Encoding.DER) for c in (config.trust.anchors if config.trust else ())),
        alpns=config.alpns,
        profile=config.profile.value,
        ciphers=config.ciphers,
        resumption=config.resumption,
        ticket_lifetime=config.ticket_lifetime,
        verifier=config.verifier.export() if config.verifier is not None else None,
    )


def config_of(sent: Setup, key_log: Any) -> HandshakeConfig:
    """The configuration that was sent."""
    leaf, *chain = (x509.load_der_x509_certificate(der) for der in sent.chain)
    key = load_der_private_key(sent.key, password=None)
    assert isinstance(key, PrivateKey)
    anchors = tuple(x509.load_der_x509_certificate(der) for der in sent.anchors)
    return HandshakeConfig(
        credentials=Credentials(leaf, tuple(chain), key),
        trust=Trust(anchors) if anchors else None,
        alpns=sent.alpns,
        profile=Profile(sent.profile),
        ciphers=sent.ciphers,
        resumption=sent.resumption,
        ticket_lifetime=sent.ticket_lifetime,
        key_log=key_log if sent.key_log else None,
        verifier=load(sent.verifier) if sent.verifier is not None else None,
    )

"""Opens a relay's capture with a peer's key log and says what is inside: the passive witness of the interop
proofs.

Written from RFC 9001 (sections 5 and 6) on the `cryptography` package, and sharing nothing with the engine
under test, so that a key update or a path validation is believed because packets really opened with the right
keys, not because an endpoint said so. The Initial packets need no key log: their keys follow from the
client's connection id.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.interop.wire import QUIC_V1, QUIC_V2, Captured, Kind, Packet, packets, read_capture, read_varint

SALTS = {
    QUIC_V1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),  # RFC 9001 section 5.2
    QUIC_V2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),  # RFC 9369 section 3.3.1
}
LABEL_PREFIX = {QUIC_V1: "quic ", QUIC_V2: "quicv2 "}
AES_128_GCM, AES_256_GCM, CHACHA20 = 0x1301, 0x1302, 0x1303  # RFC 8446 section B.4
CIPHER_NAMES = {AES_128_GCM: "aes128", AES_256_GCM: "aes256", CHACHA20: "chacha20"}
KEY_BYTES = {AES_128_GCM: 16, AES_256_GCM: 32, CHACHA20: 32}
SAMPLE_BYTES = 16
# Key updates followed in one direction; one case makes a handful, a peer at most one per 100 packets
MAX_GENERATIONS = 64

ACK, ACK_ECN, CRYPTO, NEW_TOKEN, STREAM, STREAM_LAST = 0x02, 0x03, 0x06, 0x07, 0x08, 0x0F
NEW_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE, CLOSE, APPLICATION_CLOSE = 0x18, 0x1A, 0x1B, 0x1C, 0x1D
DATAGRAM, DATAGRAM_LENGTH, ACK_FREQUENCY, IMMEDIATE_ACK = 0x30, 0x31, 0xAF, 0x1F
# Frames that are nothing but that many integers (RFC 9000 section 19).
PLAIN_FRAMES = {
    0x00: 0, 0x01: 0, 0x04: 3, 0x05: 2, 0x10: 1, 0x11: 2, 0x12: 1, 0x13: 1, 0x14: 1, 0x15: 2, 0x16: 1,
    0x17: 1, 0x19: 1, 0x1E: 0, IMMEDIATE_ACK: 0, ACK_FREQUENCY: 4,
}  # fmt: skip


def expand_label(secret: bytes, label: str, length: int, digest: str) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    full = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\x00"
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(secret, block + info + bytes([counter]), digest).digest()
        output += block
        counter += 1
    return output[:length]


class Keys:
    """One direction's packet protection at one level, with the generations that key updates make (RFC 9001
    section 6).
    """

    def __init__(self, secret: bytes, cipher: int, version: int) -> None:
        self.cipher = cipher
        self.digest = "sha384" if cipher == AES_256_GCM else "sha256"
        self.prefix = LABEL_PREFIX[version]
        self.secrets = [secret]
        self.opened: list[tuple[AESGCM | ChaCha20Poly1305, bytes]] = []
        self.header_key = self._derive(secret, "hp", KEY_BYTES[cipher])
        self.mask: Callable[[bytes], bytes] = self._chacha_mask if cipher == CHACHA20 else self._aes_mask()

    def _derive(self, secret: bytes, label: str, length: int) -> bytes:
        return expand_label(secret, self.prefix + label, length, self.digest)

    def _aes_mask(self) -> Callable[[bytes], bytes]:
        encryptor = Cipher(algorithms.AES(self.header_key), modes.ECB()).encryptor()
        return encryptor.update

    def _chacha_mask(self, sample: bytes) -> bytes:
        return Cipher(algorithms.ChaCha20(self.header_key, sample), mode=None).encryptor().update(bytes(5))

    def open(self, generation: int, number: int, header: bytes, sealed: bytes) -> bytes | None:
        """The payload, or None if this generation's key does not fit."""
        while len(self.opened) <= generation:
            if len(self.opened) == len(self.secrets):
                self.secrets.append(self._derive(self.secrets[-1], "ku", len(self.secrets[-1])))
            secret = self.secrets[len(self.opened)]
            key = self._derive(secret, "key", KEY_BYTES[self.cipher])
            aead = ChaCha20Poly1305(key) if self.cipher == CHACHA20 else AESGCM(key)
            self.opened.append((aead, self._derive(secret, "iv", 12)))
        aead, iv = self.opened[generation]
        nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
        try:
            return aead.decrypt(nonce, sealed, header)
        except InvalidTag:
            return None

    def unmask(self, data: bytes, start: int, number_at: int) -> tuple[bytes, int, int] | None:
        """The clear header, the truncated packet number and its length in bytes (RFC 9001 section 5.4)."""
        sample = data[number_at + 4 : number_at + 4 + SAMPLE_BYTES]
        if len(sample) < SAMPLE_BYTES:
            return None
        mask = self.mask(sample)
        first = data[start] ^ (mask[0] & (0x0F if data[start] & 0x80 else 0x1F))
        length = (first & 3) + 1
        number = bytes(data[number_at + i] ^ mask[1 + i] for i in range(length))
        header = bytes([first]) + data[start + 1 : number_at] + number
        return header, int.from_bytes(number, "big"), length


def full_number(truncated: int, length: int, largest: int) -> int:
    """RFC 9000 appendix A.3."""
    window = 1 << (8 * length)
    expected = largest + 1
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - window // 2 and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate


def frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Frame types with their data (for CRYPTO: offset in 8 bytes, then the bytes). Raises ValueError on what
    it cannot read.
    """
    at = 0
    while at < len(payload):
        kind, at = read_varint(payload, at)
        body = b""
        if kind in PLAIN_FRAMES:
            for _ in range(PLAIN_FRAMES[kind]):
                _, at = read_varint(payload, at)
        elif kind in (ACK, ACK_ECN):
            for _ in range(2):
                _, at = read_varint(payload, at)
            count, at = read_varint(payload, at)
            for _ in range(1 + 2 * count + (3 if kind == ACK_ECN else 0)):
                _, at = read_varint(payload, at)
        elif kind == CRYPTO:
            offset, at = read_varint(payload, at)
            length, at = read_varint(payload, at)
            body = offset.to_bytes(8, "big") + payload[at : at + length]
            at += length
        elif kind in (NEW_TOKEN, DATAGRAM_LENGTH):
            length, at = read_varint(payload, at)
            at += length
        elif STREAM <= kind <= STREAM_LAST:
            _, at = read_varint(payload, at)
            if kind & 4:
                _, at = read_varint(payload, at)
            length, at = read_varint(payload, at) if kind & 2 else (len(payload) - at, at)
            at += length
        elif kind == NEW_CONNECTION_ID:
            for _ in range(2):
                _, at = read_varint(payload, at)
            at += 1 + payload[at] + 16 if at < len(payload) else 1
        elif kind in (PATH_CHALLENGE, PATH_RESPONSE):
            body = payload[at : at + 8]
            at += 8
        elif kind in (CLOSE, APPLICATION_CLOSE):
            for _ in range(2 if kind == CLOSE else 1):
                _, at = read_varint(payload, at)
            length, at = read_varint(payload, at)
            at += length
        elif kind == DATAGRAM:
            at = len(payload)
        else:
            raise ValueError(f"frame type 0x{kind:x}")
        if at > len(payload):
            raise ValueError("truncated frame")
        yield kind, body


@dataclass
class DirectionReport:
    """1-RTT packets of one direction."""

    by_generation: Counter[int] = field(default_factory=Counter)  # packets opened with each key generation
    unopened: int = 0
    # (path, frame data) in the order seen, delivered or not
    challenges: list[tuple[int, bytes]] = field(default_factory=list)
    responses: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class Report:
    """What a capture of one connection shows."""

    ciphers: list[int] = field(default_factory=list)  # of every ServerHello, in order
    to_server: DirectionReport = field(default_factory=DirectionReport)
    to_client: DirectionReport = field(default_factory=DirectionReport)
    unreadable_frames: int = 0


def initial_secret(dcid: bytes, version: int, to_server: bool) -> bytes:
    extracted = hmac.new(SALTS[version], dcid, hashlib.sha256).digest()
    return expand_label(extracted, "client in" if to_server else "server in", 32, "sha256")


def server_hello_cipher(crypto: dict[int, bytes]) -> int | None:
    """The cipher suite of the ServerHello at offset 0, once its first fragments are there (RFC 8446 section
    4.1.3).
    """
    data = b""
    while len(data) in crypto and crypto[len(data)]:
        data += crypto[len(data)]
    if len(data) < 39 or data[0] != 2:
        return None
    at = 39 + data[38]  # type 1, length 3, legacy version 2, random 32; then the echoed session id
    return int.from_bytes(data[at : at + 2], "big") if at + 2 <= len(data) else None


def ciphers(capture: Path) -> list[int]:
    """The cipher suites the server chose, one for every connection in the capture. Needs no keys."""
    candidates: dict[tuple[bytes, int], Keys] = {}
    hellos: dict[bytes, dict[int, bytes]] = {}
    for captured in read_capture(capture):
        for packet in packets(captured.data):
            if packet.kind is not Kind.INITIAL:
                continue
            if captured.to_server:
                version, dcid = packet.version, packet.dcid
                if (dcid, version) not in candidates:
                    secret = initial_secret(dcid, version, to_server=False)
                    candidates[(dcid, version)] = Keys(secret, AES_128_GCM, version)
                continue
            for keys in candidates.values():
                payload = _open_long(keys, captured.data, packet)
                if payload is None:
                    continue
                for kind, body in frames(payload):
                    if kind == CRYPTO:
                        offset = int.from_bytes(body[:8], "big")
                        hellos.setdefault(packet.dcid, {})[offset] = body[8:]
                break
    return [cipher for hello in hellos.values() if (cipher := server_hello_cipher(hello)) is not None]


def _open_long(keys: Keys, data: bytes, packet: Packet) -> bytes | None:
    clear = keys.unmask(data, packet.start, packet.number_at)
    if clear is None:
        return None
    header, number, length = clear
    return keys.open(0, number, header, data[packet.number_at + length : packet.end])


def key_log_secrets(paths: list[Path]) -> dict[str, list[bytes]]:
    """Label to secrets, in file order and without repeats, of NSS key log files."""
    found: dict[str, list[bytes]] = {}
    for path in paths:
        for line in path.read_text(encoding="ascii").splitlines() if path.exists() else []:
            words = line.split()
            if len(words) == 3 and not line.startswith("#"):
                secret = bytes.fromhex(words[2])
                if secret not in found.setdefault(words[0], []):
                    found[words[0]].append(secret)
    return found


def inspect(capture: Path, key_logs: list[Path]) -> Report:
    """Open all 1-RTT packets of a capture that holds one connection. Raises ValueError when the key log has
    no secret for it.
    """
    report = Report(ciphers=ciphers(capture))
    secrets = key_log_secrets(key_logs)
    try:
        cipher = report.ciphers[0]
        client = secrets["CLIENT_TRAFFIC_SECRET_0"][0]
        server = secrets["SERVER_TRAFFIC_SECRET_0"][0]
    except (KeyError, IndexError) as error:
        raise ValueError(f"no ServerHello captured, or no traffic secret logged: {error!r}") from error
    seen = list(read_capture(capture))
    version = QUIC_V1
    # A short header carries the receiver's connection id, whose length long headers show
    id_bytes = {True: 0, False: 0}
    for captured in seen:
        for packet in packets(captured.data):
            if packet.kind is Kind.HANDSHAKE:
                version = packet.version
                id_bytes[not captured.to_server] = len(packet.scid)
    opener = {True: Keys(client, cipher, version), False: Keys(server, cipher, version)}
    largest = {True: -1, False: -1}
    for captured in seen:
        way = captured.to_server
        found = report.to_server if way else report.to_client
        for packet in packets(captured.data):
            if packet.kind is not Kind.SHORT:
                continue
            payload = _open_short(opener[way], captured, packet, id_bytes[way], largest, found)
            if payload is None:
                found.unopened += 1
                continue
            try:
                for kind, body in frames(payload):
                    if kind == PATH_CHALLENGE:
                        found.challenges.append((captured.path, body))
                    elif kind == PATH_RESPONSE:
                        found.responses.append((captured.path, body))
            except ValueError:
                report.unreadable_frames += 1
    return report


def _open_short(
    keys: Keys,
    captured: Captured,
    packet: Packet,
    id_bytes: int,
    largest: dict[bool, int],
    found: DirectionReport,
) -> bytes | None:
    number_at = packet.start + 1 + id_bytes
    clear = keys.unmask(captured.data, packet.start, number_at)
    if clear is None:
        return None
    header, truncated, length = clear
    number = full_number(truncated, length, largest[captured.to_server])
    phase = (header[0] >> 2) & 1
    sealed = captured.data[number_at + length : packet.end]
    newest = max(found.by_generation, default=0)
    # The generation in use, one before for stragglers, one after for an update: those with the phase bit the
    # packet shows.
    for generation in (newest, newest + 1, newest - 1):
        if generation >= 0 and generation % 2 == phase and generation < MAX_GENERATIONS:
            payload = keys.open(generation, number, header, sealed)
            if payload is not None:
                largest[captured.to_server] = max(largest[captured.to_server], number)
                found.by_generation[generation] += 1
                return payload
    return None

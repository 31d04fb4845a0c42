"""A UDP relay between a QUIC client and server that loses, delays, holds back and re-addresses datagrams.

    python -m tests.interop.relay CONFIG.json        the configuration is a `Config` below

One process, one loop, its own sockets: what the client sends to `listen` goes to `server` from an upstream
socket of that client's own, and back. Impairments are seeded, one generator a direction, drawn once a
datagram, so that the n-th datagram of a direction always meets the same fate. Events (blackhole, rebinding)
are triggered by bytes delivered towards the client, not by time. It prints {"event": "listening"} when it can
be reached and on SIGINT or SIGTERM writes its `Stats` and leaves. It does not carry ECN marks across.

What it can prove by itself is what long headers show (versions, Retry, Version Negotiation, tokens,
connection count) and byte counts; for what lies behind encryption it keeps a capture that
tests/interop/decrypt.py opens with a peer's key log.
"""

from __future__ import annotations

import heapq
import json
import random
import selectors
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from tests.interop.wire import Captured, Kind, Packet, pack_captured, packets

Address = tuple[str, int]
RECEIVE_BATCH = 64  # datagrams taken from one socket before the others get their turn
DATAGRAM_BYTES = 65536
# Deep enough for a congestion window of several MiB: the relay itself is not to be the bottleneck unless
# `rate_bps` says so.
SOCKET_BUFFER_BYTES = 4 << 20
QUEUE_BYTES = 256 << 10  # what waits for a rate-limited direction before the tail is dropped
AMPLIFICATION_LIMIT = 3  # RFC 9000 section 8.1
MAX_FLOWS = 4096


@dataclass
class Config:
    """Bytes, seconds, probabilities 0..1. `drop_to_server` counts a flow's client datagrams from 1."""

    listen: Address
    server: Address
    # Addresses to send from; the first one is used until an address rebinding takes the next
    upstream: list[str]
    stats: str
    seed: int = 0
    loss_to_server: float = 0.0
    loss_to_client: float = 0.0
    loss_burst: int = 0  # at most so many in a row are lost by probability in a direction; 0 is no limit
    corrupt_to_server: float = 0.0
    corrupt_to_client: float = 0.0
    delay_s: float = 0.0  # one way
    rate_bps: int = 0  # a direction; 0 is no limit
    drop_to_server: list[int] = field(default_factory=list)
    blackhole_after: int = 0  # bytes delivered to clients; 0 is never
    blackhole_s: float = 0.0
    rebind_after: list[int] = field(default_factory=list)  # bytes delivered to one client
    rebind_address: bool = False  # else only the port changes
    capture: str = ""  # file
    capture_all: bool = False  # else only datagrams that begin with a long header


@dataclass
class Direction:
    datagrams: int = 0
    bytes: int = 0
    lost: int = 0  # by probability or by number
    corrupted: int = 0
    blackholed: int = 0
    queue_dropped: int = 0
    delivered_datagrams: int = 0
    delivered_bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)


@dataclass
class FlowStats:
    """One client address. The amplification figures are of the time before the server could take the address
    for valid.
    """

    client: Address
    upstream: list[Address] = field(default_factory=list)
    unvalidated_to_server: int = 0  # bytes delivered
    unvalidated_from_server: int = 0  # bytes the server sent
    received_at_first_answer: int = 0  # bytes delivered to the server when its first datagram came
    amplification_excess: int = 0  # largest value of sent - 3 * received; not above 0 in a conforming server
    amplification_peak: float = 0.0  # largest sent / received
    validated: bool = False
    retry_tokens: list[str] = field(default_factory=list)  # hex
    initial_tokens: list[str] = field(default_factory=list)
    offered_by_server: list[int] = field(default_factory=list)  # Version Negotiation
    first_initial_s: float | None = None  # monotonic clock
    first_client_handshake_s: float | None = None
    path_bytes_to_server: list[int] = field(default_factory=list)  # per upstream socket
    path_bytes_to_client: list[int] = field(default_factory=list)
    abandoned_path_datagrams: int = 0  # server datagrams to a socket the flow has left; dropped


@dataclass
class Stats:
    to_server: Direction = field(default_factory=Direction)
    to_client: Direction = field(default_factory=Direction)
    flows: list[FlowStats] = field(default_factory=list)
    connections: int = 0  # distinct client addresses with source connection ids of Initial packets
    blackhole_began_s: float | None = None
    blackhole_ended_s: float | None = None
    last_delivery_s: float = 0.0
    rebindings: int = 0


class Flow:
    """A client address, the sockets it has been given towards the server, and what was seen of it."""

    def __init__(self, client: Address) -> None:
        self.client = client
        self.stats = FlowStats(client=client)
        self.sockets: list[socket.socket] = []
        self.client_datagrams = 0
        self.delivered_to_client = 0
        self.rebind_due: list[int] = []


@dataclass(order=True)
class Pending:
    due_s: float
    serial: int
    flow: Flow = field(compare=False)
    to_server: bool = field(compare=False)
    data: bytes = field(compare=False)


class Relay:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.stats = Stats()
        self.selector = selectors.DefaultSelector()
        self.flows: dict[Address, Flow] = {}
        self.rng = {True: random.Random(f"{config.seed} up"), False: random.Random(f"{config.seed} down")}
        self.lost_in_a_row = {True: 0, False: 0}
        self.pending: list[Pending] = []
        self.serial = 0
        self.line_free_s = {True: 0.0, False: 0.0}  # when the rate-limited line is next idle
        self.blackhole_until_s: float | None = None
        self.connection_ids: set[tuple[Address, bytes]] = set()
        self.capture: BinaryIO | None = open(config.capture, "wb") if config.capture else None  # noqa: SIM115  (closed in run)
        self.running = True
        self.front = self._socket(config.listen)
        self.selector.register(self.front, selectors.EVENT_READ, None)

    def _socket(self, address: Address) -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        made.bind(address)
        made.setblocking(False)
        return made

    def _open_upstream(self, flow: Flow) -> None:
        """Give the flow its next socket towards the server; earlier ones stay open, their datagrams counted
        and dropped.
        """
        number = len(flow.sockets)
        addresses = self.config.upstream
        address = addresses[number % len(addresses)] if self.config.rebind_address else addresses[0]
        made = self._socket((address, 0))
        flow.sockets.append(made)
        name = made.getsockname()
        flow.stats.upstream.append((name[0], name[1]))
        flow.stats.path_bytes_to_server.append(0)
        flow.stats.path_bytes_to_client.append(0)
        self.selector.register(made, selectors.EVENT_READ, (flow, number))

    def _flow(self, client: Address) -> Flow | None:
        flow = self.flows.get(client)
        if flow is None and len(self.flows) < MAX_FLOWS:
            flow = self.flows[client] = Flow(client)
            flow.rebind_due = sorted(self.config.rebind_after)
            self.stats.flows.append(flow.stats)
            self._open_upstream(flow)
        return flow

    def run(self) -> None:
        while self.running:
            now = time.monotonic()
            while self.pending and self.pending[0].due_s <= now:
                self._deliver(heapq.heappop(self.pending), now)
            # 0.2 s: how late a signal may be noticed, Python restarts the wait after it.
            timeout = min(0.2, self.pending[0].due_s - now) if self.pending else 0.2
            for key, _ in self.selector.select(max(0.0, timeout)):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                for _ in range(RECEIVE_BATCH):
                    try:
                        data, source = sock.recvfrom(DATAGRAM_BYTES)
                    except (BlockingIOError, ConnectionError):
                        break
                    if key.data is None:
                        flow = self._flow((source[0], source[1]))
                        if flow is not None:
                            self._take(flow, True, data, len(flow.sockets) - 1)
                    else:
                        flow, path = key.data
                        self._take(flow, False, data, path)
        if self.capture:
            self.capture.close()
        self.stats.connections = len(self.connection_ids)
        Path(self.config.stats).write_text(json.dumps(asdict(self.stats)), encoding="ascii")

    def _take(self, flow: Flow, to_server: bool, data: bytes, path: int) -> None:
        """A datagram came in: note what it shows, decide its fate, send it now or later."""
        now = time.monotonic()
        config, direction = self.config, self.stats.to_server if to_server else self.stats.to_client
        direction.datagrams += 1
        direction.bytes += len(data)
        long_header = bool(data and data[0] & 0x80)
        found = tuple(packets(data)) if long_header else ()
        self._note(flow, to_server, found, direction, now)
        if not to_server and not flow.stats.validated:
            if flow.stats.unvalidated_from_server == 0:
                flow.stats.received_at_first_answer = flow.stats.unvalidated_to_server
            flow.stats.unvalidated_from_server += len(data)
            sent, received = flow.stats.unvalidated_from_server, flow.stats.unvalidated_to_server
            flow.stats.amplification_excess = max(
                flow.stats.amplification_excess, sent - AMPLIFICATION_LIMIT * received
            )
            flow.stats.amplification_peak = max(flow.stats.amplification_peak, sent / max(1, received))

        rng = self.rng[to_server]
        lost = rng.random() < (config.loss_to_server if to_server else config.loss_to_client)
        if config.loss_burst and self.lost_in_a_row[to_server] >= config.loss_burst:
            lost = False
        self.lost_in_a_row[to_server] = self.lost_in_a_row[to_server] + 1 if lost else 0
        corrupt = rng.random() < (config.corrupt_to_server if to_server else config.corrupt_to_client)
        if to_server:
            flow.client_datagrams += 1
            lost = lost or flow.client_datagrams in config.drop_to_server
        delivered = False
        if self._in_blackhole(now):
            direction.blackholed += 1
        elif lost:
            direction.lost += 1
        elif not to_server and path != len(flow.sockets) - 1:
            flow.stats.abandoned_path_datagrams += 1
        else:
            delivered = True
        if self.capture and (config.capture_all or long_header):
            self.capture.write(pack_captured(Captured(to_server, delivered, path, now, data)))
        if not delivered:
            return
        if corrupt and data:
            spot = rng.randrange(len(data))
            data = data[:spot] + bytes([data[spot] ^ (1 << rng.randrange(8))]) + data[spot + 1 :]
            direction.corrupted += 1
        due = now + config.delay_s
        if config.rate_bps:
            begin = max(now, self.line_free_s[to_server])
            if (begin - now) * config.rate_bps / 8 > QUEUE_BYTES:
                direction.queue_dropped += 1
                return
            self.line_free_s[to_server] = begin + len(data) * 8 / config.rate_bps
            due += self.line_free_s[to_server] - now
        item = Pending(due, self.serial, flow, to_server, data)
        self.serial += 1
        if due <= now:
            self._deliver(item, now)
        else:
            heapq.heappush(self.pending, item)

    def _note(
        self, flow: Flow, to_server: bool, found: tuple[Packet, ...], direction: Direction, now: float
    ) -> None:
        stats = flow.stats
        for packet in found:
            direction.kinds[packet.kind] = direction.kinds.get(packet.kind, 0) + 1
            if packet.version and packet.version not in direction.versions:
                direction.versions.append(packet.version)
            if to_server and packet.kind is Kind.INITIAL:
                self.connection_ids.add((flow.client, packet.scid))
                if stats.first_initial_s is None:
                    stats.first_initial_s = now
                if packet.token and packet.token.hex() not in stats.initial_tokens:
                    stats.initial_tokens.append(packet.token.hex())
            elif to_server and packet.kind is Kind.HANDSHAKE and stats.first_client_handshake_s is None:
                stats.first_client_handshake_s = now
            elif not to_server and packet.kind is Kind.RETRY:
                stats.retry_tokens.append(packet.token.hex())
            elif not to_server and packet.kind is Kind.VERSION_NEGOTIATION:
                stats.offered_by_server = list(packet.versions)

    def _in_blackhole(self, now: float) -> bool:
        if self.blackhole_until_s is None:
            return False
        if now < self.blackhole_until_s:
            return True
        if self.stats.blackhole_ended_s is None:
            self.stats.blackhole_ended_s = now
        return False

    def _deliver(self, item: Pending, now: float) -> None:
        flow, size = item.flow, len(item.data)
        direction = self.stats.to_server if item.to_server else self.stats.to_client
        try:
            if item.to_server:
                # Before sending: the answer may be back before the next line runs.
                if not flow.stats.validated:
                    flow.stats.unvalidated_to_server += size
                    flow.stats.validated = validates(item.data, flow.stats.retry_tokens)
                flow.sockets[-1].sendto(item.data, self.config.server)
                flow.stats.path_bytes_to_server[-1] += size
            else:
                self.front.sendto(item.data, flow.client)
                flow.stats.path_bytes_to_client[-1] += size
                flow.delivered_to_client += size
        except OSError:
            direction.queue_dropped += 1  # a full send buffer or an end that has gone; to QUIC it is loss
            return
        direction.delivered_datagrams += 1
        direction.delivered_bytes += size
        self.stats.last_delivery_s = now
        if item.to_server:
            return
        if (
            self.config.blackhole_after
            and self.blackhole_until_s is None
            and direction.delivered_bytes >= self.config.blackhole_after
        ):
            self.blackhole_until_s = now + self.config.blackhole_s
            self.stats.blackhole_began_s = now
        if flow.rebind_due and flow.delivered_to_client >= flow.rebind_due[0]:
            flow.rebind_due.pop(0)
            self.stats.rebindings += 1
            self._open_upstream(flow)


def validates(data: bytes, retry_tokens: list[str]) -> bool:
    """Whether this client datagram validates its address: a Handshake packet, or a Retry token (RFC 9000
    section 8.1).
    """
    for packet in packets(data):
        if packet.kind is Kind.HANDSHAKE:
            return True
        if packet.kind is Kind.INITIAL and packet.token and packet.token.hex() in retry_tokens:
            return True
    return False


def main() -> int:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="ascii"))
    for name in ("listen", "server"):
        values[name] = tuple(values[name])
    relay = Relay(Config(**values))

    def stop(number: int, frame: FrameType | None) -> None:
        relay.running = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    name = relay.front.getsockname()
    print(json.dumps({"event": "listening", "address": name[0], "port": name[1]}), flush=True)
    relay.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

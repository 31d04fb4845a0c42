"""Requests and answers of the control socket: one JSON object a line, typed.

A request names itself in `request`, an answer in `answer`. A client may ask several times on a connection.
`capture` is answered by `capture`, and from then on the node sends the binary records of `stream.py` until
the client says `stop` (or anything else), closes, or the node ends.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from dataplane.errors import ConfigError, StoqError
from dataplane.guard import MAX_BLOCKS, SNAP_BYTES, parse_prefix
from dataplane.tables import Verdict

MAX_REQUEST_BYTES = 65536
MAX_ANSWER_BYTES = 128 * MAX_BLOCKS  # The largest is `blocks`, with under 100 bytes each.
MAX_SECONDS = 10 * 366 * 86400.0  # Of a block: beyond ten years, say "for ever".

Count = Annotated[int, Meta(ge=0)]


class ProtocolError(StoqError):
    """The other end said something that is not in this protocol; `kind` is the error's name in it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


# ---- requests ----


class Request(Struct, tag_field="request", forbid_unknown_fields=True, frozen=True):
    """Base of all requests."""


class StatusRequest(Request, tag="status", frozen=True):
    """Everything the node knows about itself."""


class CaptureRequest(Request, tag="capture", frozen=True):
    """Switch the guard's mirror on and send what it copies. No verdict named: frames of all of them."""

    verdicts: Annotated[list[str], Meta(max_length=64)] = []
    sample: Annotated[int, Meta(ge=1, le=2**32 - 1)] = 1
    snap: Annotated[int, Meta(ge=14, le=SNAP_BYTES)] = SNAP_BYTES
    secrets: bool = False


class StopRequest(Request, tag="stop", frozen=True):
    """End a capture in good order."""


class BlockRequest(Request, tag="block", frozen=True):
    """Drop everything from a source prefix, for `seconds` or (None) until it is unblocked."""

    prefix: Annotated[str, Meta(max_length=64)]
    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None


class UnblockRequest(Request, tag="unblock", frozen=True):
    """Take a prefix off the blocklist."""

    prefix: Annotated[str, Meta(max_length=64)]


class BlocksRequest(Request, tag="blocks", frozen=True):
    """The blocklist."""


REQUESTS: dict[str, type[Request]] = {
    "status": StatusRequest,
    "capture": CaptureRequest,
    "stop": StopRequest,
    "block": BlockRequest,
    "unblock": UnblockRequest,
    "blocks": BlocksRequest,
}

# ---- answers ----


class Answer(Struct, tag_field="answer"):
    """Base of all answers."""


class ErrorAnswer(Answer, tag="error"):
    """The request was not done. `kind`: bad_request, unknown_request, too_long, too_many_clients, timeout,
    no_guard, no_secrets, not_blocked, busy, failed."""

    kind: str
    text: str


class WorkerStatus(Struct):
    """One worker; `core` -1: not pinned. Drops that are zero are left out."""

    worker: int
    core: int
    backend: str
    counters: dict[str, int]
    drops: dict[str, int]


class QueueStatus(Struct):
    """One AF_XDP queue (struct io_queue_stats). `why` is the backend's account of what it got and why.

    `frames` says for each owner how many UMEM frames it has; their sum is `frames_total` when nothing is
    under way. `rings` are entries in each ring now. `kernel` is XDP_STATISTICS. A batch's size is datagrams
    of the worker over ring batches; None: no batch yet.
    """

    worker: int
    queue: int
    interface: str
    native: bool
    zero_copy: bool
    why: str
    need_wakeup: bool
    busy_poll: bool
    multi_buffer: bool
    tx_checksum: bool
    frames_total: int
    frame_bytes: int
    frames: dict[str, int]
    rings: dict[str, int]
    wakeups_rx: int
    wakeups_tx: int
    rx_batches: int
    tx_batches: int
    rx_batch_size: float | None
    tx_batch_size: float | None
    rx_socket: int
    tx_socket: int
    routes: int
    neighbours: int
    kernel: dict[str, int]


class VerdictStatus(Struct):
    """What one verdict of the guard was given to; whole frames."""

    packets: int
    bytes: int


class GuardStatus(Struct):
    """The XDP program; `verdicts` by their names in csrc/tables.h."""

    interface: str
    mode: str
    notes: str
    program_id: int
    instructions: int
    verdicts: dict[str, VerdictStatus]
    policy: dict[str, int | bool]
    blocked_prefixes: int


class StatusAnswer(Answer, tag="status"):
    """A node, now. Times in seconds; counts since it started."""

    version: str
    pid: int
    command: str
    uptime: float
    address: str
    crypto: str
    secrets_allowed: bool
    capturing: bool
    connections: int
    handshakes: dict[str, int]
    workers: list[WorkerStatus]
    counters: dict[str, int]
    drops: dict[str, int]
    io: dict[str, int]
    pools: dict[str, int]
    trains_sent: dict[str, int]
    trains_received: dict[str, int]
    queues: list[QueueStatus]
    guard: GuardStatus | None


class CaptureAnswer(Answer, tag="capture"):
    """The mirror is on. A frame's wall-clock time is its time plus `clock_offset_ns`, taken now."""

    interface: str
    clock_offset_ns: int
    snap: int
    sample: int
    verdicts: list[str]
    secrets: bool


class BlockAnswer(Answer, tag="block"):
    """Done, for this prefix in its canonical form; of `block` with its duration, None: for ever."""

    prefix: str
    seconds: float | None = None


class Blocked(Struct):
    """One entry of the blocklist; `seconds` left, None: for ever."""

    prefix: str
    seconds: float | None


class BlocksAnswer(Answer, tag="blocks"):
    """The blocklist."""

    blocks: list[Blocked]


A = TypeVar("A", bound=Answer)


class _Head(Struct):
    request: str


def decode_request(line: bytes) -> Request:
    """A request from its line. Raises ProtocolError."""
    try:
        name = msgspec.json.decode(line, type=_Head).request
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            "bad_request", f'not a request ({error}): one is a JSON object as {{"request": "status"}}'
        ) from None
    kind = REQUESTS.get(name)
    if kind is None:
        raise ProtocolError(
            "unknown_request", f"unknown request {name[:64]!r}: there are {', '.join(REQUESTS)}"
        )
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_request", f"{name}: {error}") from None


def encode(message: Request | Answer) -> bytes:
    """A message's line."""
    return msgspec.json.encode(message) + b"\n"


def decode_answer(line: bytes, kind: type[A]) -> A:
    """An answer of this kind. Raises ProtocolError, also when the answer is an error."""
    decoder: Any = msgspec.json.Decoder(kind | ErrorAnswer)
    try:
        answer = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_answer", f"the node's answer is not understood ({error})") from None
    if isinstance(answer, ErrorAnswer):
        raise ProtocolError(answer.kind, answer.text)
    assert isinstance(answer, kind)
    return answer


def canonical_prefix(text: str) -> str:
    """A source prefix in its canonical form; without a length it is one address. Raises ConfigError."""
    if "%" in text:
        raise ConfigError(f"{text!r} names an interface: the guard's blocklist knows addresses only")
    return str(parse_prefix(text.strip()))


def parse_verdicts(names: list[str] | tuple[str, ...]) -> list[Verdict]:
    """Verdicts by name; `drop` and `pass` are all of that kind; no name: every verdict. Raises
    ProtocolError."""
    if not names:
        return list(Verdict)
    found: dict[Verdict, None] = {}
    for name in names:
        key = name.strip().lower()
        matching = [v for v in Verdict if v.key == key or v.key.partition("_")[0] == key]
        if not matching:
            raise ProtocolError(
                "bad_request",
                f"unknown verdict {name[:64]!r}: there are drop, pass, " + ", ".join(v.key for v in Verdict),
            )
        found.update(dict.fromkeys(matching))
    return sorted(found)

"""The XDP guard of an open datapath: its verdicts, what it allows, whom it blocks, and copies of frames.

Names and bounds are those of csrc/bpf/layout.h and csrc/guard/guard.h.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dataplane.errors import ConfigError, DatapathError
from dataplane.port import ffi, lib
from dataplane.tables import Verdict

MAX_BLOCKS = 65536
SNAP_BYTES = 2048
_BY_NUMBER = {int(verdict): verdict for verdict in Verdict}
MODES = ("auto", "native", "generic")


@dataclass(frozen=True, slots=True)
class GuardReport:
    """How the program runs: asked for and got, in words, in `notes`."""

    ifindex: int
    mode: str  # "native" or "generic"
    instructions: int  # Processed by the verifier.
    program_id: int
    notes: str


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """struct stoq_guard_policy: rates are a second; 0 means what csrc/bpf/layout.h says there."""

    initial_interval_ns: int
    initial_burst: int
    retry_above: int
    retry_limit: int
    unknown_limit: int
    version_limit: int
    replay_filter: bool
    retry_always: bool


@dataclass(frozen=True, slots=True)
class Block:
    """A blocked source prefix; `seconds` left, None: for ever."""

    prefix: ipaddress.IPv6Network
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A copied frame. `time_ns` is CLOCK_MONOTONIC; `data` may be shorter than the frame."""

    time_ns: int
    frame_bytes: int
    queue: int
    verdict: Verdict
    data: bytes


def parse_prefix(text: str) -> ipaddress.IPv6Network:
    """`text` as an IPv6 prefix (a bare address is a /128). Raises ConfigError."""
    try:
        network = ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not an IPv6 prefix: {error}") from None
    if isinstance(network, ipaddress.IPv4Network):
        raise ConfigError(f"{text!r} is IPv4: STOQ is IPv6-only, and the guard drops IPv4 on its port anyway")
    if network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        raise ConfigError(f"{text!r} is IPv4-mapped: STOQ is IPv6-only")
    return network


class Guard:
    """What `Datapath.guard` gives. `handle` answers the open C datapath or raises DatapathError."""

    def __init__(self, handle: Callable[[], Any]) -> None:
        self._handle = handle

    @property
    def report(self) -> GuardReport:
        """How it was attached."""
        out = ffi.new("struct stoq_guard_report *")
        if not lib.stoq_guard(self._handle(), out):
            raise DatapathError("this datapath has no XDP guard")
        return GuardReport(
            out.ifindex,
            MODES[out.mode] if out.mode < len(MODES) else str(out.mode),
            out.instructions,
            out.program_id,
            ffi.string(out.notes).decode("utf-8", "replace"),
        )

    def counts(self) -> dict[Verdict, tuple[int, int]]:
        """Frames and their bytes, by verdict, since it was attached."""
        packets, sizes = ffi.new("uint64_t[]", len(Verdict)), ffi.new("uint64_t[]", len(Verdict))
        lib.stoq_guard_counts(self._handle(), packets, sizes, len(Verdict))
        return {verdict: (packets[int(verdict)], sizes[int(verdict)]) for verdict in Verdict}

    @property
    def policy(self) -> GuardPolicy:
        """What is in force."""
        out = ffi.new("struct stoq_guard_policy *")
        lib.stoq_guard_get_policy(self._handle(), out)
        return GuardPolicy(*(getattr(out, name) for name in GuardPolicy.__dataclass_fields__))

    def set_policy(self, policy: GuardPolicy) -> None:
        """Put `policy` in force. Raises ConfigError for a value that does not fit, DatapathError."""
        c = ffi.new("struct stoq_guard_policy *")
        try:
            for name in GuardPolicy.__dataclass_fields__:
                setattr(c, name, getattr(policy, name))
        except OverflowError as error:
            raise ConfigError(f"guard policy: {name} is out of range: {error}") from None
        self._call(lib.stoq_guard_set_policy, c)

    def _call(self, function: Any, *arguments: Any) -> None:
        error = ffi.new("struct stoq_error *")
        if not function(self._handle(), *arguments, error):
            raise DatapathError(ffi.string(error.text).decode("utf-8", "replace"), error.code)

    def address(self, packed: bytes, present: bool) -> None:
        """One of the host's addresses comes or goes. Raises DatapathError when the table is full."""
        self._call(lib.stoq_guard_address, packed, present)

    def block(self, prefix: str, seconds: float | None = None) -> None:
        """Drop what comes from `prefix`, for `seconds` or until unblocked. Raises ConfigError or
        DatapathError."""
        network = parse_prefix(prefix)
        if seconds is not None and seconds <= 0:
            raise ConfigError(f"a block for {seconds:g} s is none: name a time above zero")
        c = ffi.new("struct stoq_block *")
        ffi.memmove(c.ip, network.network_address.packed, 16)
        c.bits = network.prefixlen
        c.expires_ns = 0 if seconds is None else time.monotonic_ns() + round(seconds * 1e9)
        self._call(lib.stoq_guard_block, c)

    def unblock(self, prefix: str) -> bool:
        """True if exactly this prefix was blocked."""
        network = parse_prefix(prefix)
        return bool(lib.stoq_guard_unblock(self._handle(), network.network_address.packed, network.prefixlen))

    def blocks(self) -> list[Block]:
        """All that are in force."""
        out = ffi.new("struct stoq_block[]", MAX_BLOCKS)
        count = lib.stoq_guard_blocks(self._handle(), out, MAX_BLOCKS)
        now = time.monotonic_ns()
        return [
            Block(
                ipaddress.IPv6Network((bytes(ffi.buffer(block.ip, 16)), block.bits)),
                None if block.expires_ns == 0 else max(0.0, (block.expires_ns - now) / 1e9),
            )
            for block in out[0:count]
        ]

    def mirror(self, verdicts: Iterable[Verdict], sample: int, snap: int = SNAP_BYTES) -> None:
        """Copy every `sample`-th frame (0: none any more) of these verdicts, up to `snap` bytes of each."""
        mask = sum(1 << int(verdict) for verdict in set(verdicts))
        if sample < 0 or not 0 < snap <= SNAP_BYTES:
            raise ConfigError(f"sample {sample} must not be negative, snap {snap} be 1 to {SNAP_BYTES}")
        self._call(lib.stoq_guard_mirror, mask, sample, snap)

    @property
    def mirror_fd(self) -> int:
        """Readable when copies wait."""
        return int(lib.stoq_guard_mirror_fd(self._handle()))

    @property
    def mirror_dropped(self) -> int:
        """Copies lost because nobody read, since the guard was attached."""
        return int(lib.stoq_guard_mirror_dropped(self._handle()))

    def read_mirror(self, limit: int) -> list[Mirrored]:
        """Up to `limit` copies that wait."""
        head, data = ffi.new("struct stoq_mirrored *"), ffi.new("uint8_t[]", SNAP_BYTES)
        frames: list[Mirrored] = []
        while len(frames) < limit and lib.stoq_guard_mirror_read(self._handle(), head, data, SNAP_BYTES):
            frames.append(
                Mirrored(
                    head.time_ns,
                    head.frame_bytes,
                    head.queue,
                    _BY_NUMBER[head.verdict],
                    bytes(ffi.buffer(data, head.snapped_bytes)),
                )
            )
        return frames

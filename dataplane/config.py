"""A datapath's configuration, in Python's types, and its way into ``struct stoq_config``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataplane import _stoq
from dataplane.address import Address, check_bind
from dataplane.errors import ConfigError
from dataplane.guard import MODES
from dataplane.tables import CongestionController

BACKENDS = ("io_uring", "afxdp", "socket")
XSK_MODES = ("auto", "copy", "zero-copy")
CRYPTO_PROVIDERS = ("auto", "ipsec-mb", "openssl")


@dataclass(frozen=True, slots=True)
class Config:
    """What a datapath is opened with. Zero (or None) means the engine's default, named in csrc/quic/quic.h.

    Times are in seconds, sizes in bytes.
    """

    server: bool = False
    bind: Address = field(default_factory=lambda: Address("::", 0))
    cores: tuple[int, ...] = (-1,)  # One worker each; -1: not pinned.
    max_workers: int = 0  # As many may run at a time, after Datapath.add_worker; 0: as many as cores says.
    backend: str = "io_uring"
    crypto: str = "auto"
    ifindex: int = 0  # Serve this interface only; afxdp and the guard need one.
    guard: bool = False  # Attach the XDP guard to it; afxdp always does.
    xdp_mode: str = "auto"  # Of the guard: native or generic; auto: the better one there is.
    xsk_mode: str = "auto"  # afxdp: copy or zero-copy; auto: the better one there is.
    first_queue: int = 0  # afxdp: worker i takes queue first_queue + i.
    busy_budget: int = 0  # afxdp: packets a busy-poll call may handle; 0: no preferred busy polling.
    sqpoll: bool = False  # io_uring: a kernel thread submits; wants a core of its own.
    zero_copy_bytes: int = 0  # io_uring: trains of so many bytes go by zero copy; 0: none.
    napi_us: int = 0  # io_uring: a sleeping worker polls the device's queue so long first.
    guard_cids: int = 0
    retry_always: bool = False
    test_profile: bool = False  # `perf` may be served in C.
    busy_poll: bool = False
    no_gso: bool = False
    no_gro: bool = False
    no_pacing: bool = False
    no_ecn: bool = False
    no_ack_frequency: bool = False  # Neither offer nor use draft-ietf-quic-ack-frequency.
    no_sandbox: bool = False  # Workers without their seccomp filter: for sanitizers and debuggers.
    uid: int = 0  # Workers become this user and group once open; 0: they stay who they are.
    gid: int = 0
    congestion: CongestionController = CongestionController.CUBIC
    max_datagram: int = 0
    max_datagram_frame: int = 65535  # RFC 9221; 0: datagrams are refused.
    max_connections: int = 0
    initial_window_packets: int = 0
    io_buffers: int = 0
    socket_bytes: int = 0
    initial_rtt: float = 0.0
    idle_timeout: float = 0.0
    handshake_timeout: float = 0.0
    max_data: int = 0
    max_stream_data: int = 0
    max_data_limit: int = 0
    max_stream_data_limit: int = 0
    max_streams_bidi: int = 0
    max_streams_uni: int = 0
    max_ack_delay: float = 0.0
    key_update_packets: int = 0
    metadata_bytes: int = 0
    receive_bytes: int = 0
    send_bytes: int = 0
    stream_send_bytes: int = (
        16 << 20
    )  # Most bytes of one stream that may be written and not yet acknowledged.

    def __post_init__(self) -> None:
        check_bind(self.bind)
        if not 1 <= len(self.cores) <= _stoq.lib.STOQ_MAX_WORKERS:
            raise ConfigError(
                f"cores names {len(self.cores)} workers: 1 to {_stoq.lib.STOQ_MAX_WORKERS} are possible"
            )
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend {self.backend!r} is unknown: use one of {', '.join(BACKENDS)}")
        if self.xdp_mode not in MODES:
            raise ConfigError(f"xdp_mode {self.xdp_mode!r} is unknown: use one of {', '.join(MODES)}")
        if self.xsk_mode not in XSK_MODES:
            raise ConfigError(f"xsk_mode {self.xsk_mode!r} is unknown: use one of {', '.join(XSK_MODES)}")
        if (self.backend == "afxdp" or self.guard) and not self.ifindex:
            raise ConfigError("afxdp and the XDP guard work on one interface: name it (ifindex, --interface)")
        if self.crypto not in CRYPTO_PROVIDERS:
            raise ConfigError(f"crypto {self.crypto!r} is unknown: use one of {', '.join(CRYPTO_PROVIDERS)}")
        for name in ("initial_rtt", "idle_timeout", "handshake_timeout", "max_ack_delay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is negative")
        if self.max_datagram and not 1200 <= self.max_datagram <= 65527:
            raise ConfigError(
                f"max_datagram {self.max_datagram} is outside 1200 to 65527 (RFC 9000 section 14.1)"
            )
        if self.stream_send_bytes < _stoq.lib.STOQ_LARGE_CHUNK_BYTES:
            raise ConfigError(f"stream_send_bytes must be at least {_stoq.lib.STOQ_LARGE_CHUNK_BYTES}")


_SAME = (
    "max_workers", "ifindex", "guard", "first_queue", "busy_budget", "guard_cids",
    "sqpoll", "zero_copy_bytes", "napi_us",
    "server", "retry_always", "test_profile", "busy_poll", "no_gso", "no_gro", "no_pacing",
    "no_ecn", "no_ack_frequency", "no_sandbox", "uid", "gid", "max_datagram", "max_datagram_frame",
    "max_connections",
    "initial_window_packets",
    "io_buffers", "socket_bytes", "max_data", "max_stream_data", "max_data_limit", "max_stream_data_limit",
    "max_streams_bidi", "max_streams_uni", "key_update_packets", "metadata_bytes", "receive_bytes",
    "send_bytes",
)  # fmt: skip
_SECONDS = ("initial_rtt", "idle_timeout", "handshake_timeout", "max_ack_delay")


def set_address(target: Any, address: Address) -> None:
    """Write `address` into a ``struct stoq_address``."""
    _stoq.ffi.memmove(target.ip, address.packed, 16)
    target.port = address.port
    target.scope_id = address.scope_id


def get_address(source: Any) -> Address:
    """Read a ``struct stoq_address``."""
    return Address.from_packed(bytes(_stoq.ffi.buffer(source.ip, 16)), source.port, source.scope_id)


def to_c(config: Config) -> tuple[Any, list[Any]]:
    """A ``struct stoq_config`` and what must stay alive beside it. Raises ConfigError when a value does not
    fit."""
    ffi = _stoq.ffi
    c = ffi.new("struct stoq_config *")
    keep = [ffi.new("char[]", config.backend.encode()), ffi.new("char[]", config.crypto.encode())]
    c.workers = len(config.cores)
    for index, core in enumerate(config.cores):
        c.cores[index] = core
    c.backend, c.crypto = keep
    set_address(c.bind, config.bind)
    c.congestion = int(config.congestion)
    c.xdp_mode = MODES.index(config.xdp_mode)
    c.xsk_mode = XSK_MODES.index(config.xsk_mode)
    try:
        for name in _SAME:
            setattr(c, name, getattr(config, name))
        for name in _SECONDS:
            setattr(c, f"{name}_ns", round(getattr(config, name) * 1e9))
    except OverflowError as error:
        raise ConfigError(f"{name} is out of range: {error}") from None
    return c, keep

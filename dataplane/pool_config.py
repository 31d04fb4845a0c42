"""A connection pool's bounds, and what it says about itself; `pool.py` is the pool."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dataplane.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """The pool's bounds; times in seconds. Raises ConfigError for a value that cannot work."""

    max_peers: int = 1024
    max_connections: int = 4  # To each peer; those being given up do not count, but are at most as many.
    max_streams: int = 100  # At a time on each connection; the peer's own limit holds as well.
    max_waiting: int = 1024  # Callers of each peer without a stream; one more is refused with PoolFull.
    min_connections: int = 0  # To each peer in use: dialled again when lost, though nobody waits.
    idle_seconds: float = 120.0  # A connection unused for so long is closed, beyond min_connections.
    probe_seconds: float = 10.0  # A connection that was silent for so long is asked whether it is alive,
    probe_timeout: float = 3.0  # and gets no more streams when it has not answered in this time.
    dial_attempts: int = 3  # So many failures in a row, and all who wait are told.
    backoff_first: float = 0.1
    backoff_most: float = 15.0
    drain_seconds: float = 5.0  # Streams may go on for so long when the pool is closed.

    def __post_init__(self) -> None:
        least = {"max_peers": 1, "max_connections": 1, "max_streams": 1, "dial_attempts": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if value < least.get(field.name, 0):
                raise ConfigError(f"{field.name} is {value}: at least {least.get(field.name, 0)} is needed")
        for name in ("probe_seconds", "probe_timeout", "backoff_first"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0")
        if self.min_connections > self.max_connections:
            raise ConfigError("min_connections is above max_connections")
        if self.backoff_most < self.backoff_first:
            raise ConfigError("backoff_most is below backoff_first")


@dataclass(slots=True)
class PoolCounters:
    """What has happened since the pool was made."""

    streams_opened: int = 0
    connections_made: int = 0
    connections_lost: int = 0  # Ended by the peer, the network or a timeout, not by the pool.
    connections_idle: int = 0  # Closed by the pool because nobody used them.
    dial_failures: int = 0
    probes: int = 0
    probes_unanswered: int = 0
    refused: int = 0  # Callers told PoolFull or PeerUnavailable.


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One peer, now."""

    peer: str
    connections: int  # That take streams.
    draining: int
    dialling: int
    streams: int  # Held by callers.
    waiting: int
    failures: int  # Dials that failed, in a row.
    error: str  # Why the last one failed; empty when nothing is wrong.


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool, now: sums over its peers, what has happened so far, and each peer."""

    connections: int
    draining: int
    dialling: int
    streams: int
    waiting: int
    counters: dict[str, int]
    peers: list[PeerStats]

"""What a node says about a connection and about its datapath, for JSON and for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dataplane import Connection, Datapath
from dataplane.handshake import Aead

TRAIN_BUCKETS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64")


def datapath_report(datapath: Datapath) -> dict[str, Any]:
    """Backend, cores, counters, drops, batch sizes."""
    sent, received = datapath.train_histogram()
    return {
        "backend": datapath.describe(),
        "crypto": datapath.crypto_name,
        "cores": datapath.cores,
        "counters": datapath.counters(),
        "drops": {name: count for name, count in datapath.drops().items() if count},
        "io": datapath.io_stats(),
        "pools": datapath.pool_stats(),
        "trains_sent": dict(zip(TRAIN_BUCKETS, sent, strict=True)),
        "trains_received": dict(zip(TRAIN_BUCKETS, received, strict=True)),
    }


async def connection_report(connection: Connection) -> dict[str, Any]:
    """One connection's figures now."""
    stats = await connection.stats()
    sent = max(stats.packets_sent, 1)
    return {
        "peer": str(connection.peer),
        "identity": str(connection.identity) if connection.identity else None,
        "alpn": connection.alpn,
        "handshake_seconds": connection.handshake_seconds,
        "loss": (stats.packets_lost - stats.packets_lost_spurious) / sent,
        **asdict(stats),
        "aead": Aead(stats.aead).name,
    }


def trains_text(trains: dict[str, int]) -> str:
    """A histogram of batch sizes in one line: share of trains by datagrams in them."""
    total = sum(trains.values())
    if not total:
        return "none"
    return ", ".join(f"{name}: {count / total:.0%}" for name, count in trains.items() if count)

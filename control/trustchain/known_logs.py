"""The Certificate Transparency logs whose SCTs count here."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from control.ctlog.structs import LogKey, key_id
from dataplane.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KnownLog:
    """One log. Its SCTs count when they were given from `begins` until before `ends` (None: no end; a log that retires
    keeps what it gave before), and for certificates that end within its temporal shard
    [`not_after_start`, `not_after_limit`)."""

    name: str
    key: LogKey
    begins: datetime.datetime
    ends: datetime.datetime | None = None
    not_after_start: datetime.datetime | None = None
    not_after_limit: datetime.datetime | None = None
    log_id: bytes = field(init=False)  # RFC 6962 section 3.2.

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_id", key_id(self.key))

    def gave(self, timestamp: datetime.datetime) -> bool:
        """Were SCTs of this moment accepted?"""
        return self.begins <= timestamp and (self.ends is None or timestamp < self.ends)

    def takes(self, not_after: datetime.datetime) -> bool:
        """Does a certificate that ends then belong into this shard?"""
        late_enough = self.not_after_start is None or not_after >= self.not_after_start
        return late_enough and (self.not_after_limit is None or not_after < self.not_after_limit)


KnownLogs = Mapping[bytes, KnownLog]
NO_LOGS: KnownLogs = MappingProxyType({})


def known_logs(logs: Iterable[KnownLog]) -> KnownLogs:
    """By log ID. Raises ConfigError when two have one key."""
    table: dict[bytes, KnownLog] = {}
    for log in logs:
        if log.log_id in table:
            raise ConfigError(f"the logs {table[log.log_id].name!r} and {log.name!r} have the same key")
        table[log.log_id] = log
    return MappingProxyType(table)


def load_log_key(der: bytes, name: str) -> LogKey:
    """A log's SubjectPublicKeyInfo. Raises ConfigError."""
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the key of log {name!r} cannot be parsed: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ConfigError(f"the key of log {name!r} is neither ECDSA nor RSA (RFC 6962 section 2.1.4)")
    return key

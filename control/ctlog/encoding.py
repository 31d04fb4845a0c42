"""The presentation language of TLS (RFC 8446 section 3), as RFC 6962 and static-ct-api use it: big-endian integers
and opaque vectors behind their length. Every length is checked before it is used."""

from __future__ import annotations

from control.ctlog.errors import Malformed


def uint(value: int, size: int) -> bytes:
    """An unsigned integer of `size` bytes."""
    return value.to_bytes(size, "big")


def vector(data: bytes, length_bytes: int) -> bytes:
    """`data` behind its length in `length_bytes` bytes. Raises Malformed when it does not fit."""
    if len(data) >> (8 * length_bytes):
        raise Malformed(f"{len(data)} bytes do not fit behind a length of {length_bytes} bytes")
    return len(data).to_bytes(length_bytes, "big") + data


class Reader:
    """Reads a structure from front to back; Malformed says what was cut short."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self._at + count
        if end > len(self._data):
            raise Malformed(
                f"{self._what} is cut short: {count} bytes are missing at byte {self._at} of {len(self._data)}"
            )
        data = self._data[self._at : end]
        self._at = end
        return data

    def uint(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        """An opaque vector behind a length of `length_bytes` bytes."""
        return self.take(self.uint(length_bytes))

    def end(self) -> None:
        """There must be nothing more."""
        if self.left:
            raise Malformed(f"{self._what} has {self.left} bytes too many")

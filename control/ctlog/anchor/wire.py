"""Values as the execution API's JSON has them, checked before they are used (its specification: QUANTITY and DATA)."""

from __future__ import annotations

from control.ctlog.anchor.interface import AnchorUnavailable

MAX_TEXT = 200  # Of a node's own words in our errors.


def quantity(value: object, bits: int = 256) -> int:
    """A QUANTITY of the execution API: 0x and hexadecimal digits. Raises AnchorUnavailable."""
    if isinstance(value, str) and value.startswith("0x") and 3 <= len(value) <= 2 + bits // 4:
        try:
            return int(value[2:], 16)
        except ValueError:
            pass
    raise AnchorUnavailable(f"the chain's node sends {str(value)[:MAX_TEXT]!r} where a number belongs")


def data(value: object, length: int | None = None) -> bytes:
    """DATA of the execution API: 0x and pairs of hexadecimal digits, of `length` bytes. Raises AnchorUnavailable."""
    if isinstance(value, str) and value.startswith("0x") and " " not in value:
        try:
            found = bytes.fromhex(value[2:])
        except ValueError:
            pass
        else:
            if length is None or len(found) == length:
                return found
    raise AnchorUnavailable(
        f"the chain's node sends {str(value)[:MAX_TEXT]!r} where "
        + ("bytes belong" if length is None else f"{length} bytes belong")
    )


def fields(value: object, what: str) -> dict[str, object]:
    """An object. Raises AnchorUnavailable."""
    if not isinstance(value, dict):
        raise AnchorUnavailable(f"the chain's node sends {str(value)[:MAX_TEXT]!r} where {what} belongs")
    return value

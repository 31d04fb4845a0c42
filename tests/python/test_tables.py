"""The tables of csrc/tables.h in Python: same names, same numbers, nothing forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane import _stoq
from dataplane._generate import read_tables, render
from dataplane.tables import Counter, DropReason, Event, TransportError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_generated_file_is_up_to_date() -> None:
    header = (ROOT / "csrc/tables.h").read_text()
    assert (ROOT / "dataplane/tables.py").read_text() == render(read_tables(header))


def test_numbers_are_those_of_the_compiled_library() -> None:
    assert len(Counter) == _stoq.lib.stoq_counter_count()
    assert len(DropReason) == _stoq.lib.stoq_drop_count()
    assert [int(member) for member in Counter] == list(range(len(Counter)))
    assert [int(member) for member in DropReason] == list(range(len(DropReason)))


def test_entries_carry_their_text() -> None:
    assert int(TransportError.PROTOCOL_VIOLATION) == 0x0A
    assert DropReason.AEAD.text == "authentication failed"
    assert Counter.PACKETS_LOST.key == "packets_lost"
    assert Event.CLOSED.key == "closed"


@pytest.mark.parametrize(
    "broken",
    [
        '#define STOQ_UNKNOWN(X) \\\n    X(A, 1, "a")\n',
        '#define STOQ_EVENTS(X) \\\n    X(A, 1, "a") \\\n    Y(B)\n',
        "",
    ],
)
def test_what_cannot_be_understood_is_an_error(broken: str) -> None:
    with pytest.raises(ValueError, match=r"csrc/tables\.h"):
        read_tables(broken)

"""Generates ``dataplane/tables.py`` from the X(...) tables of ``csrc/tables.h``.

The C header is the one place where transport errors, drop reasons, counters, commands, events and congestion
controllers are named. Python gets the same names as ``IntEnum`` classes whose members carry the text for
people. Run by the Makefile and by ``setup.py``; the output is not committed. Uses nothing outside the
standard library, so that it can run before anything is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Macro in tables.h -> class in tables.py. An entry of another table is an error, so that none is forgotten.
CLASSES = {
    "STOQ_TRANSPORT_ERRORS": "TransportError",
    "STOQ_DROP_REASONS": "DropReason",
    "STOQ_COUNTERS": "Counter",
    "STOQ_VERDICTS": "Verdict",
    "STOQ_COMMANDS": "Command",
    "STOQ_EVENTS": "Event",
    "STOQ_CONGESTION_CONTROLLERS": "CongestionController",
}

# These tables number their entries by position, and their second field is the name used in output and
# metrics.
BY_POSITION = {"STOQ_COUNTERS"}

HEAD = '''"""Generated from csrc/tables.h by dataplane/_generate.py: do not edit."""

from __future__ import annotations

from enum import IntEnum


class Entry(IntEnum):
    """A member is its number; ``key`` is its name in output and metrics, ``text`` says it to people."""

    key: str
    text: str

    def __new__(cls, number: int, key: str, text: str) -> Entry:
        member = int.__new__(cls, number)
        member._value_ = number
        member.key = key
        member.text = text
        return member
'''

_TABLE = re.compile(r"^#define\s+(STOQ_\w+)\(X\)((?:[^\n]*\\\n)+[^\n]*)", re.MULTILINE)
_ENTRY = re.compile(r'X\(\s*(\w+)\s*,\s*(\w+)\s*,\s*"((?:[^"\\]|\\.)*)"\s*\)')


def read_tables(header: str) -> dict[str, list[tuple[str, str, str]]]:
    """The entries (name, second field, text) of each table in the header's text.

    Raises ValueError for what does not parse and for a table that is missing or that this generator does not
    know.
    """
    tables: dict[str, list[tuple[str, str, str]]] = {}
    for match in _TABLE.finditer(header):
        name, body = match[1], match[2].replace("\\\n", " ")
        if name not in CLASSES:
            raise ValueError(f"csrc/tables.h: table {name} has no class in dataplane/_generate.py")
        tables[name] = [(entry[1], entry[2], entry[3]) for entry in _ENTRY.finditer(body)]
        rest = _ENTRY.sub("", body).strip()
        if rest:
            raise ValueError(f'csrc/tables.h: {name}: not an entry X(NAME, value, "text"): {rest[:60]}')
    missing = [name for name in CLASSES if not tables.get(name)]
    if missing:
        raise ValueError(f"csrc/tables.h: no entries found for {', '.join(missing)}")
    return tables


def render(tables: dict[str, list[tuple[str, str, str]]]) -> str:
    """The text of ``tables.py``."""
    parts = [HEAD]
    for macro, class_name in CLASSES.items():
        lines = [f'\n\nclass {class_name}(Entry):\n    """{macro} of csrc/tables.h."""\n']
        for position, (name, second, text) in enumerate(tables[macro]):
            by_position = macro in BY_POSITION
            value = position if by_position else int(second, 0)
            key = second if by_position else name.lower()
            shown = hex(value) if second.startswith("0x") and not by_position else str(value)
            entry = f'    {name} = {shown}, "{key}", "{text}"'
            if len(entry) > 110:
                entry = f'    {name} = (\n        {shown},\n        "{key}",\n        "{text}",\n    )'
            lines.append(entry)
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def generate(root: Path) -> Path:
    """Write ``dataplane/tables.py`` under the project's root when its content changed; returns its path."""
    out = root / "dataplane" / "tables.py"
    text = render(read_tables((root / "csrc" / "tables.h").read_text(encoding="utf-8")))
    if not out.exists() or out.read_text(encoding="utf-8") != text:
        out.write_text(text, encoding="utf-8")
    return out


if __name__ == "__main__":
    sys.stdout.write(f"{generate(Path(__file__).resolve().parent.parent)}\n")

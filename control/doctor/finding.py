"""What a probe says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(Enum):
    """How it stands."""

    GOOD = "good"  # Nothing to gain here.
    OK = "ok"  # STOQ runs, and the advice says what would be better.
    MISSING = "missing"  # STOQ does not run without it.


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: `text` says what is, `advice` what would be better and how to get there ("" for nothing),
    `values` the same for programs."""

    name: str
    verdict: Verdict
    text: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "text": self.text,
            "advice": self.advice,
            **({"values": self.values} if self.values else {}),
        }


def good(name: str, text: str, **values: Any) -> Finding:
    """Nothing to gain."""
    return Finding(name, Verdict.GOOD, text, "", values)


def ok(name: str, text: str, advice: str = "", **values: Any) -> Finding:
    """It works; `advice` would make it better."""
    return Finding(name, Verdict.OK, text, advice, values)


def missing(name: str, text: str, advice: str, **values: Any) -> Finding:
    """It does not work; `advice` would make it."""
    return Finding(name, Verdict.MISSING, text, advice, values)

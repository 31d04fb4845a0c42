"""From trials to figures, and the words around them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console


def median(values: Iterable[float]) -> float:
    """The median; 0 without values."""
    found = list(values)
    return statistics.median(found) if found else 0.0


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of the values lie; nearest rank, 0 without values."""
    found = sorted(values)
    return found[min(int(part * len(found)), len(found) - 1)] if found else 0.0


def ratio(ours: float, theirs: float) -> float:
    """Ours over theirs; 0 when theirs is."""
    return ours / theirs if theirs > 0 else 0.0


def pairwise(trials: Sequence[dict[str, Any]], ours: str, theirs: str, key: str) -> float:
    """The ratio we report: the median over trials of ours / theirs within the trial."""
    return median(ratio(trial[ours][key], trial[theirs][key]) for trial in trials)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest … highest)`."""
    if not values:
        return "-"
    low, mid, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return mid if len(values) == 1 else f"{mid} ({low} … {high})"


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats in a nest of dictionaries and lists, rounded for reading."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {name: rounded(inner, digits) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    return value


class Steps:
    """Progress on standard error: a line for each finished step, and on a terminal what is running now."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._trial = 0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("starting")

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def trial(self, number: int) -> None:
        """Trial `number`, from 0, begins."""
        self._trial = number + 1

    def begin(self, what: str) -> None:
        """`what` runs now."""
        self._status.update(f"trial {self._trial}/{self._trials}: {what}")

    def done(self, what: str, figure: str) -> None:
        """`what` has its figure."""
        self._console.print(f"trial {self._trial}/{self._trials}: {what}: {figure}", markup=False)

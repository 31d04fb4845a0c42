"""A clock that tests set."""

from __future__ import annotations

import time


class Clock:
    """Unix seconds; stands still."""

    def __init__(self, now: float | None = None) -> None:
        self.now = float(int(time.time() if now is None else now))

    def __call__(self) -> float:
        return self.now

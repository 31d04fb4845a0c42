"""What the probes read of the machine: files of /proc and /sys, and the rights of this process.

Files are the kernel's own interface (proc(5), sysfs(5)), one value a file. `root` is another directory in
tests.
"""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass, field
from pathlib import Path

from control.privileges import Capability


@dataclass(frozen=True, slots=True)
class System:
    """The machine."""

    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    cpus: frozenset[int] = field(default_factory=lambda: frozenset(os.sched_getaffinity(0)))
    memory_lock_bytes: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])

    def text(self, path: str) -> str | None:
        """A file's content; None when it is not there or not ours to read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file's content as a number."""
        text = self.text(path)
        try:
            return None if text is None else int(text.split()[0])
        except (ValueError, IndexError):
            return None

    def field(self, path: str, name: str) -> str | None:
        """The value in a line ``name: value`` of a file; its first one."""
        for line in (self.text(path) or "").splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() == name:
                return value.strip()
        return None

    def exists(self, path: str) -> bool:
        """Is there such a file?"""
        return (self.root / path).exists()

    @property
    def kernel(self) -> tuple[int, int]:
        """Version and patch level of the kernel; zeros when its name is an odd one."""
        numbers = self.release.split("-")[0].split(".")
        try:
            return int(numbers[0]), int(numbers[1])
        except (ValueError, IndexError):
            return 0, 0

    def has(self, *wanted: int) -> bool:
        """Does this process have all these capabilities?"""
        effective = int(self.field("proc/self/status", "CapEff") or "0", 16)
        return all(effective >> capability & 1 for capability in wanted)

    @property
    def may_bypass(self) -> bool:
        """Can we open AF_XDP sockets and attach the guard?"""
        return self.has(Capability.NET_ADMIN, Capability.NET_RAW, Capability.BPF)


def cpu_list(text: str | None) -> set[int]:
    """The kernel's lists of CPUs: "0-3,8". Parts that are not numbers are skipped."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        try:
            found.update(range(int(first), int(last or first) + 1))
        except ValueError:
            continue
    return found

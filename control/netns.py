"""Two network namespaces joined by a veth pair, for `stoq run` and by hand.

      namespace stoq-PID-a                      namespace stoq-PID-b
      veth "stoq0", fd00::1/64  ◀────veth────▶  veth "stoq0", fd00::2/64

Needs root, iproute2 and util-linux. Names carry the owner's process id, so that what a killed process left
behind is recognised and removed by the next run. Deleting a namespace deletes its end of the veth pair, and
so the other.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dataplane.errors import StoqError

RUN_NETNS = Path("/run/netns")
INTERFACE = "stoq0"
_NAME = re.compile(r"^stoq-(\d+)-[ab]$")


class NetnsError(StoqError):
    """A namespace could not be made; the text names the command and its complaint."""


def can_make_namespaces() -> str | None:
    """None if namespaces can be made here, else why not."""
    if os.geteuid() != 0:
        return "not root: network namespaces cannot be made"
    try:
        subprocess.run(["ip", "-V"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "iproute2 is missing: apt-get install iproute2"
    return None


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetnsError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")


def remove_stale() -> None:
    """Remove namespaces whose process is gone."""
    if not RUN_NETNS.is_dir():
        return
    for path in RUN_NETNS.iterdir():
        match = _NAME.match(path.name)
        if match and not Path("/proc", match[1]).exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One end: its namespace's name and its address."""

    name: str
    address: str
    link_address: str

    def wrap(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` in this namespace. (`ip netns exec` would hide /sys and
        bpffs.)"""
        return ["nsenter", f"--net={RUN_NETNS / self.name}", "--", *argv]


class Pair:
    """``with Pair(mtu=1500) as pair``: `pair.a` and `pair.b` exist inside the block, and nothing
    afterwards."""

    def __init__(self, mtu: int = 1500) -> None:
        self.mtu = mtu
        self.a = Namespace(f"stoq-{os.getpid()}-a", "fd00::1", "02:00:00:00:00:01")
        self.b = Namespace(f"stoq-{os.getpid()}-b", "fd00::2", "02:00:00:00:00:02")

    def create(self) -> None:
        """Make both ends. Raises NetnsError, leaving nothing behind."""
        remove_stale()
        try:
            for end in (self.a, self.b):
                _ip("netns", "add", end.name)
            _ip(
                *("link", "add", INTERFACE, "netns", self.a.name, "address", self.a.link_address),
                *("mtu", str(self.mtu), "type", "veth"),
                *("peer", "name", INTERFACE, "netns", self.b.name, "address", self.b.link_address),
                *("mtu", str(self.mtu)),
            )
            for end, other in ((self.a, self.b), (self.b, self.a)):
                # nodad: usable at once, without waiting for duplicate address detection.
                _ip("-n", end.name, "address", "add", f"{end.address}/64", "dev", INTERFACE, "nodad")
                _ip("-n", end.name, "link", "set", "lo", "up")
                _ip("-n", end.name, "link", "set", INTERFACE, "up")
                # A new link loses the first neighbour solicitation, and the next comes a second later: a
                # handshake would be measured a second too long.
                _ip(
                    *("-n", end.name, "neighbour", "replace", other.address, "lladdr", other.link_address),
                    *("dev", INTERFACE, "nud", "permanent"),
                )
        except BaseException:
            self.delete()
            raise

    def delete(self) -> None:
        """Remove both ends. Never raises; what is not there is fine."""
        for end in (self.a, self.b):
            if (RUN_NETNS / end.name).exists():
                subprocess.run(["ip", "netns", "delete", end.name], capture_output=True, check=False)

    def __enter__(self) -> Pair:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

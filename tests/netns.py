"""Throw-away network namespaces joined by veth pairs, for tests and for use by hand.

A `Network` is a handful of namespaces and the links between them. Every namespace of a running test is called
`stoq-<pid>-<serial>-<label>`; leaving the context manager, the interpreter's exit and SIGINT all remove it,
and `remove_stale()` removes what a killed process has left. Networks made by hand (`python -m tests.netns up
NAME`) are called `stoq-hand-NAME-<label>` and stay until `down NAME`.

Link number i (from 0) between A and B is the prefix fd00:<i+1>::/64, A having ::1 and B having ::2 on an
interface called `eth<k>`, k counting the links of that namespace. Addresses are usable at once (nodad). IPv6
only.

Commands enter with nsenter(1), not `ip netns exec`, which remounts /sys and so hides bpffs.

    with Network(("client", "server"), (Link("client", "server", mtu=1500),)) as net:
        net["client"].run(["traceroute6", net.address("server", 0)])

Needs root, iproute2 and util-linux. Errors: `NetnsError` with the command and what it said.
"""

from __future__ import annotations

import argparse
import array
import atexit
import ctypes
import fcntl
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

RUN_NETNS = Path("/run/netns")
STALE_NAME = re.compile(r"^stoq-(\d+)-")
CLONE_NEWNET = 0x40000000  # linux/sched.h
SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_GET = {"gso": 0x23, "gro": 0x2B, "tso": 0x1E}  # linux/ethtool.h: ETHTOOL_GGSO, GGRO, GTSO

_serial = itertools.count()
_T = TypeVar("_T")


class NetnsError(RuntimeError):
    """A namespace could not be made or entered; the text names the command and its complaint."""


@dataclass(frozen=True)
class Link:
    """A veth pair between two labelled namespaces. `extra` more addresses per end follow ::1 and ::2, as
    ::1:1.. and ::2:1.. Both ends have `queues` receive and transmit queues.
    """

    a: str
    b: str
    mtu: int = 1500
    extra: int = 0
    queues: int = 1


def _ip(batch: Sequence[str], namespace: str | None = None) -> None:
    """Run iproute2 commands in one process, in the caller's namespace or in the named one."""
    argv = ["ip"] + (["-n", namespace] if namespace else []) + ["-batch", "-"]
    done = subprocess.run(argv, input="\n".join(batch) + "\n", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetnsError(f"{' '.join(argv)} failed: {done.stderr.strip()} (input: {'; '.join(batch)})")


@dataclass(frozen=True)
class Namespace:
    """One namespace, by its name under /run/netns."""

    name: str

    @property
    def path(self) -> Path:
        return RUN_NETNS / self.name

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside. nsenter executes in place: the pid and its signals are
        the command's.
        """
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        return subprocess.run(self.wrap(argv), **options)

    def call(self, function: Callable[[], _T]) -> _T:
        """Run a function of this process in a thread that has entered the namespace. Sockets it opens stay
        inside.
        """
        outcome: list[_T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                        raise NetnsError(f"setns {self.path}: {os.strerror(ctypes.get_errno())}")
                finally:
                    os.close(fd)
                outcome.append(function())
            except BaseException as error:  # handed to the calling thread below
                failure.append(error)

        thread = threading.Thread(target=enter, name=f"setns-{self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def offloads(self, device: str) -> dict[str, bool]:
        """Which of gso, gro and tso are on for a device (ethtool ioctls, include/uapi/linux/ethtool.h)."""

        def ask() -> dict[str, bool]:
            found: dict[str, bool] = {}
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                for name, command in ETHTOOL_GET.items():
                    value = array.array("I", [command, 0])
                    address, _ = value.buffer_info()
                    request = struct.pack("16sP16x", device.encode(), address)
                    fcntl.ioctl(sock.fileno(), SIOCETHTOOL, request)
                    found[name] = bool(value[1])
            return found

        return self.call(ask)

    def remove(self) -> None:
        if self.path.exists():
            _ip([f"netns del {self.name}"])


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """This thread, and the threads it starts meanwhile, are in the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise NetnsError(f"setns {namespace.path}: {os.strerror(ctypes.get_errno())}")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


class Network:
    """Namespaces and links with one life: made on entering, removed on leaving. See the module's text for the
    addresses.
    """

    def __init__(self, labels: Sequence[str], links: Sequence[Link], *, name: str | None = None) -> None:
        for link in links:
            for end in (link.a, link.b):
                if end not in labels:
                    raise ValueError(f"link end {end!r} is not one of the namespaces {list(labels)}")
        prefix = f"stoq-hand-{name}" if name else f"stoq-{os.getpid()}-{next(_serial)}"
        self.namespaces = {label: Namespace(f"{prefix}-{label}") for label in labels}
        self.links = tuple(links)

    def __getitem__(self, label: str) -> Namespace:
        return self.namespaces[label]

    def _end(self, label: str, link: int) -> int:
        ends = (self.links[link].a, self.links[link].b)
        if label not in ends:
            raise ValueError(f"{label!r} is not an end of link {link}")
        return ends.index(label) + 1

    def address(self, label: str, link: int = 0, number: int = 0) -> str:
        """The label's address on a link; number 1.. picks one of the `extra` ones."""
        end = self._end(label, link)
        return f"fd00:{link + 1:x}::{end}" + (f":{number:x}" if number else "")

    def device(self, label: str, link: int = 0) -> str:
        """The name of the label's interface on a link."""
        self._end(label, link)
        return f"eth{sum(label in (other.a, other.b) for other in self.links[:link])}"

    def up(self) -> None:
        """Make everything; on failure nothing is left behind. Raises NetnsError."""
        if os.geteuid() != 0:
            raise NetnsError("network namespaces need root: run this as root")
        atexit.register(self.down)
        try:
            _ip([f"netns add {namespace.name}" for namespace in self.namespaces.values()])
            per_namespace: dict[str, list[str]] = {label: ["link set lo up"] for label in self.namespaces}
            pairs: list[str] = []
            for index, link in enumerate(self.links):
                a, b = self.namespaces[link.a], self.namespaces[link.b]
                both = f"mtu {link.mtu} numtxqueues {link.queues} numrxqueues {link.queues}"
                pairs.append(
                    f"link add name {self.device(link.a, index)} netns {a.name} {both} type veth "
                    f"peer name {self.device(link.b, index)} netns {b.name} {both}"
                )
                for label in (link.a, link.b):
                    device = self.device(label, index)
                    commands = per_namespace[label]
                    # No link-local addresses: they would go through duplicate address detection and chatter
                    # on the wire.
                    commands.append(f"link set {device} addrgenmode none")
                    commands.append(f"link set {device} up")
                    for number in range(link.extra + 1):
                        address = self.address(label, index, number)
                        # Deprecated: good to bind to, never chosen as a source by itself.
                        lifetime = " preferred_lft 0" if number else ""
                        commands.append(f"addr add {address}/64 dev {device} nodad{lifetime}")
            if pairs:
                _ip(pairs)
            for label, commands in per_namespace.items():
                _ip(commands, self.namespaces[label].name)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove everything that is there; may be called twice."""
        for namespace in self.namespaces.values():
            namespace.remove()
        atexit.unregister(self.down)

    def __enter__(self) -> Network:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def remove_stale() -> list[str]:
    """Remove the namespaces of processes that are gone and return their names. Those made by hand are left
    alone.
    """
    removed: list[str] = []
    for entry in sorted(RUN_NETNS.iterdir()) if RUN_NETNS.is_dir() else []:
        match = STALE_NAME.match(entry.name)
        if match and not Path(f"/proc/{match.group(1)}").exists():
            Namespace(entry.name).remove()
            removed.append(entry.name)
    return removed


def exit_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit so that context managers and atexit run. Call from the main thread of a
    command.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tests.netns up|down|exec|stale`: a network of two namespaces, `a` and `b`, joined by one
    veth pair.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.netns", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make namespaces stoq-hand-NAME-a and -b")
    up.add_argument("name")
    up.add_argument("--mtu", type=int, default=1500, help="bytes (default 1500)")
    up.add_argument("--extra", type=int, default=0, help="further addresses at each end")
    down = commands.add_parser("down", help="remove them")
    down.add_argument("name")
    run = commands.add_parser("exec", help="run a command in one of them")
    run.add_argument("name")
    run.add_argument("label", choices=("a", "b"))
    run.add_argument("argv", nargs=argparse.REMAINDER)
    commands.add_parser("stale", help="remove what killed test runs left behind")
    options = parser.parse_args(arguments)
    if options.command == "stale":
        print("\n".join(remove_stale()))
        return 0
    if not re.fullmatch(r"[a-z0-9]{1,16}", options.name):
        parser.error("NAME is 1 to 16 of a-z and 0-9")
    link = Link("a", "b", mtu=getattr(options, "mtu", 1500), extra=getattr(options, "extra", 0))
    network = Network(("a", "b"), (link,), name=options.name)
    try:
        if options.command == "up":
            network.up()
            atexit.unregister(network.down)  # made by hand: it stays
            for label in ("a", "b"):
                print(f"{network[label].name} {network.device(label)} {network.address(label)}")
        elif options.command == "down":
            network.down()
        else:
            argv = network[options.label].wrap(options.argv or [os.environ.get("SHELL", "/bin/sh")])
            os.execvp(argv[0], argv)
    except NetnsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where control sockets lie and who may use them.

A node's socket is `<pid>.sock` in a directory only its user may enter (0700): /run/stoq for root,
/run/stoq-<uid> for a node that starts as root and becomes somebody else (who must be able to remove it), else
$XDG_RUNTIME_DIR/stoq, else stoq-<uid> under the temporary directory. $STOQ_RUNTIME_DIR names another one
(several installations on a machine, tests). The socket itself is 0600, and both ends ask the kernel who the
other is (SO_PEERCRED, unix(7)).

A socket gets its final name by rename(2) when it listens already, so one that refuses a connection belongs
to a process that is gone and may be removed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataplane.errors import StoqError

ENVIRONMENT = "STOQ_RUNTIME_DIR"
BACKLOG = 16
PROBE_SECONDS = 1.0  # A connect(2) to a local socket is answered by the kernel; only a full backlog waits.
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid.


class PlaceError(StoqError):
    """A socket cannot be where it should be; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a socket and its directory are: the user the node runs as, or will when it has given up root."""

    uid: int
    gid: int


def owner(uid: int = 0, gid: int = 0) -> Owner:
    """The user a node will become; uid 0: it stays who it is."""
    return Owner(uid, gid) if uid else Owner(os.geteuid(), os.getegid())


def peer_of(connection: socket.socket) -> Peer:
    """The credentials the other end had when it connected (or listened)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def directories(uid: int) -> list[Path]:
    """Where sockets of a user's nodes may lie, best first; root asks for the user a node will become, too."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return [Path(named)]
    fallback = Path(tempfile.gettempdir()) / f"stoq-{uid}"
    if uid == 0:
        return [Path("/run/stoq"), fallback]
    system = Path(f"/run/stoq-{uid}")  # Only root can make it.
    if os.geteuid() == 0:
        return [system]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return [*([Path(runtime) / "stoq"] if runtime else []), *([system] if system.is_dir() else []), fallback]


def _search() -> Iterator[Path]:
    """Where to look for nodes: root also finds those of other users."""
    own = directories(os.geteuid())
    yield from own
    if os.geteuid() == 0 and not os.environ.get(ENVIRONMENT):
        yield from sorted(Path("/run").glob("stoq-[0-9]*"))
        yield from sorted(Path("/run/user").glob("*/stoq"))
        yield from sorted(set(Path(tempfile.gettempdir()).glob("stoq-[0-9]*")) - set(own))


def _private(directory: Path, owner: Owner) -> None:
    """Make it, or see that what is there is the owner's directory that nobody else can enter. Raises
    PlaceError."""
    try:
        directory.mkdir(mode=0o700)
        if owner.uid != os.geteuid():
            os.chown(directory, owner.uid, owner.gid, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise PlaceError(f"{directory} cannot be made: {error.strerror}") from None
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner.uid:
        raise PlaceError(f"{directory} is not a directory of user {owner.uid}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PlaceError(f"{directory} is open to other users: chmod 700 {directory}")


def _is_dead(path: Path) -> bool:
    """Nobody listens at this socket any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False


def _alive(name: str) -> bool:
    """Does the process exist whose number `name` begins with?"""
    number = name.partition(".")[0]
    return number.isdigit() and Path("/proc", number).exists()


def remove_stale(directory: Path) -> None:
    """Remove the sockets of processes that are gone; what cannot be removed stays."""
    for path in directory.glob("*.sock*"):
        # Between bind and rename a living process's socket refuses, too.
        unfinished = path.suffix == ".new" and _alive(path.name)
        if path.is_socket() and not unfinished and _is_dead(path):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass


def default_path(owner: Owner) -> Path:
    """Where this process's socket belongs; its directory exists then and is clean. Raises PlaceError."""
    reasons = []
    for directory in directories(owner.uid):
        try:
            _private(directory, owner)
        except PlaceError as error:
            reasons.append(str(error))
            continue
        remove_stale(directory)
        path = directory / f"{os.getpid()}.sock"
        path.unlink(missing_ok=True)  # Of an earlier process with our number.
        return path
    raise PlaceError("; ".join(reasons))


@contextmanager
def listening(path: Path, owner: Owner) -> Iterator[socket.socket]:
    """A socket that listens at `path`, which is gone afterwards. Raises PlaceError."""
    if path.is_socket() and _is_dead(path):
        path.unlink(missing_ok=True)
    if path.exists():
        raise PlaceError(f"{path} exists: another node's control socket or a file; name another path")
    # The process's number comes first, so that remove_stale knows whose it is.
    hidden = path.with_name(f"{os.getpid()}.{path.name}.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            hidden.unlink(missing_ok=True)
            # Linux takes the file's mode from the socket: at no time is it wider.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(hidden))
            if owner.uid != os.geteuid():
                os.chown(hidden, owner.uid, owner.gid, follow_symlinks=False)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            inode = hidden.lstat().st_ino
            hidden.rename(path)
        except OSError as error:
            hidden.unlink(missing_ok=True)
            raise PlaceError(f"no control socket at {path}: {error.strerror or error}") from None
        try:
            yield listener
        finally:
            try:
                if path.lstat().st_ino == inode:
                    path.unlink()
            except OSError:
                pass  # Removed by somebody, or we have given up the right to: the next node's start does it.


def running() -> list[Path]:
    """The sockets of all nodes that run here and that we may reach."""
    found = []
    for directory in _search():
        try:
            entries = sorted(directory.glob("*.sock"), key=lambda path: (len(path.name), path.name))
            found += [path for path in entries if path.is_socket() and not _is_dead(path)]
        except OSError:
            continue
    return found


def find(node: str) -> Path:
    """The socket of a node named by its process number or its socket's path. Raises PlaceError."""
    if not node.isdigit():
        path = Path(node)
        if not path.is_socket():
            raise PlaceError(f"{path} is no control socket")
        return path
    for directory in _search():
        path = directory / f"{node}.sock"
        try:
            if path.is_socket():
                return path
        except OSError:
            continue
    raise PlaceError(f"no node with process number {node} runs here (or --control named another place)")

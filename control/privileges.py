"""Giving up root: what a node does once its sockets, rings, guard and files are open.

A node starts as root because AF_XDP sockets, XDP programs and ports below 1024 need capabilities. None of
what it does afterwards does (docs/decisions/0004-privileges.md has what was measured), so it becomes an
ordinary user, or stays root in name and loses every capability:

    who = identity(user)                        # before: names are looked up, mistakes are told
    Datapath(Config(uid=who.uid, gid=who.gid))  # workers drop for themselves, behind their seccomp filter
    drop(user)                                  # after: every other thread; final

The C part is csrc/worker/privileges.h.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Set
from dataclasses import dataclass
from enum import IntEnum

from dataplane import _stoq
from dataplane.errors import ConfigError, DatapathError

DEFAULT_USER = "stoq"


class Capability(IntEnum):
    """Those of capabilities(7) that a node may have a reason to keep."""

    NET_BIND_SERVICE = 10  # Ports below 1024.
    NET_ADMIN = 12  # Attach programs, SO_RCVBUFFORCE, SO_PREFER_BUSY_POLL.
    NET_RAW = 13  # New AF_XDP sockets: workers that are added later.
    BPF = 39  # New maps and, with NET_ADMIN, programs.


@dataclass(frozen=True, slots=True)
class Identity:
    """A user to become; groups beside `gid` are not taken along."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """What became of the process."""

    user: str
    kept: tuple[Capability, ...]

    def __str__(self) -> str:
        kept = ", ".join(f"CAP_{capability.name}" for capability in self.kept) or "no capabilities"
        return f"runs as {self.user} with {kept}"


def identity(user: str | None = None) -> Identity | None:
    """The user to become: `user`, or when root starts without naming one, `stoq` where there is such a user.

    None: stay who we are. Raises ConfigError when there is no such user, or only root could become it.
    """
    root = os.geteuid() == 0
    if user is None and not root:
        return None
    try:
        entry = pwd.getpwnam(user or DEFAULT_USER)
    except KeyError:
        if user is None:
            return None
        raise ConfigError(f"there is no user {user!r}: make one with `useradd --system {user}`") from None
    if entry.pw_uid == os.geteuid():
        return None
    if not root:
        raise ConfigError(f"only root can become user {user!r}: start as root, or as that user")
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)


def drop(user: str | None = None, keep: Set[Capability] = frozenset()) -> Dropped:
    """Give up everything but `keep`, in every thread, for good: user, groups, capabilities, and the hope of
    getting any back by starting a program (PR_SET_NO_NEW_PRIVS).

    Raises ConfigError as identity() does, and DatapathError when the kernel refuses or a thread could not be
    brought along: the process must then end, for it may be half way.
    """
    who = identity(user)
    mask = sum(1 << capability for capability in keep)
    error = _stoq.ffi.new("struct stoq_error *")
    uid, gid = (who.uid, who.gid) if who else (0, 0)
    if not _stoq.lib.stoq_drop_privileges(uid, gid, mask, error):
        text = _stoq.ffi.string(error.text).decode("utf-8", "replace")
        raise DatapathError(f"cannot give up privileges: {text}", error.code)
    return Dropped(_user_name(), tuple(sorted(keep)))


def _user_name() -> str:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return f"{os.geteuid()}:{os.getegid()}"
    return f"{name}:{group}"

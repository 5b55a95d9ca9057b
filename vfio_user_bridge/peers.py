# SPDX-License-Identifier: BSD-3-Clause
"""Who is at the other end of a UNIX socket, as the kernel knows it, and who may be."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from struct import Struct

from .errors import UsageError

#: pid, uid, gid: struct ucred
_UCRED = Struct("=iII")
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MAX_GROUPS = 256  # as many as Python's getsockopt() has room for


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was then."""

    pid: int
    uid: int
    gids: frozenset[int]

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"

    def shares_one_cpu(self) -> bool:
        """Whether it and this process have one CPU between them: who looks for the other there
        only keeps it from running.
        """
        cpus = os.sched_getaffinity(0)
        with contextlib.suppress(OSError):  # it is gone, or the host doesn't tell
            cpus |= os.sched_getaffinity(self.pid)
        return len(cpus) == 1


def peer(sock: socket.socket) -> Peer:
    """SO_PEERCRED and SO_PEERGROUPS of a connected socket."""
    ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(ucred)
    groups = array("I")
    with contextlib.suppress(OSError):  # another number there, or more groups
        groups.frombytes(
            sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * groups.itemsize)
        )
    return Peer(pid, uid, frozenset((gid, *groups)))


@dataclass(frozen=True, slots=True)
class Allowed:
    """Whom the operator lets in, of those who may open the socket's file.

    One of the users, or a member of one of the groups; anyone if none is named. Root isn't let in
    for being root.
    """

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def admits(self, who: Peer) -> bool:
        nobody_named = not self.uids and not self.gids
        return nobody_named or who.uid in self.uids or bool(who.gids & self.gids)


def allowed(users: Iterable[str], groups: Iterable[str]) -> Allowed:
    """Read names and numbers.

    :raise UsageError: there is no user or group of such a name
    """
    uids = (
        _number(text, "uid", "passwd", lambda name: pwd.getpwnam(name).pw_uid) for text in users
    )
    gids = (
        _number(text, "gid", "group", lambda name: grp.getgrnam(name).gr_gid) for text in groups
    )
    return Allowed(frozenset(uids), frozenset(gids))


def _number(text: str, kind: str, database: str, find: Callable[[str], int]) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return find(text)
    except KeyError:
        raise UsageError(
            f"--allow-{kind}: there is no {text!r}; getent {database} lists them"
        ) from None

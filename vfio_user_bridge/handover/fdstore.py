# SPDX-License-Identifier: BSD-3-Clause
"""The file descriptor store of a service manager: what a bridge gave it to keep for the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
from bisect import bisect_left
from collections.abc import Iterator

from vfio_user_bridge.kernel.processes import compare_files

#: of a descriptor that was given without a name, or with one that can't be (fdname_is_valid())
NAMELESS = "stored"
_LONGEST_NAME = 255


class FdStore:
    """Open files by name, of which several may have the same.

    :param most: how many it has room for
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[str, int]] = []
        self._sorted: list[int] = []  # the same, as `compare_files` has them

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, name: str, fd: int) -> bool:
        """Keep a duplicate of *fd*; whether there was room.

        An open file that is here already stays under the name that it has.
        """
        try:
            place = bisect_left(self._sorted, 0, key=lambda kept: compare_files(kept, fd))
            here = not all(compare_files(kept, fd) for kept in self._sorted[place : place + 1])
        except OSError:
            place = 0
            here = any(kept_name == name and _alike(kept, fd) for kept_name, kept in self._kept)
        if here:
            return True
        if len(self._kept) < self._most:
            with contextlib.suppress(OSError):  # out of descriptors
                kept = os.dup(fd)
                self._kept.append((name, kept))
                self._sorted.insert(place, kept)
                return True
        return False

    def remove(self, name: str) -> None:
        """Close all that is called so."""
        for kept_name, fd in self._kept:
            if kept_name == name:
                os.close(fd)
                self._sorted.remove(fd)
        self._kept = [kept for kept in self._kept if kept[0] != name]


def valid(name: str) -> str:
    """*name*, or what stands for one that LISTEN_FDNAMES can't have."""
    plain = name.isascii() and name.isprintable() and ":" not in name
    return name if plain and 0 < len(name) <= _LONGEST_NAME else NAMELESS


def _alike(fd: int, other: int) -> bool:
    """Whether two descriptors may be one open file, as far as can be seen without comparing them.

    Eventfds, for one, all have the same inode, so their names must tell.
    """
    flags, others = (fcntl.fcntl(each, fcntl.F_GETFL) for each in (fd, other))
    return os.path.sameopenfile(fd, other) and flags == others

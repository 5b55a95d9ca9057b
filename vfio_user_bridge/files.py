# SPDX-License-Identifier: BSD-3-Clause
"""The files that a client's DMA maps lie in: a descriptor of each, for a successor to map anew."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from .ancillary import close_all
from .handover.names import FILE, FOREIGN
from .limits import DEFAULTS
from .protocol import refuse


class Files:
    """Numbered from 1; a number is free again when no map uses it.

    :param limit: how many there may be; 0: none is kept
    """

    def __init__(self, limit: int = DEFAULTS.files) -> None:
        self._limit = limit
        self._numbers: dict[str, int] = {}
        self._entries: dict[int, list[int]] = {}  # by number: descriptor, how many maps use it
        self.changed = False  # since somebody took note

    def add(self, fd: int | None) -> int:
        """The number of the file that a map comes with; 0 for none.

        :raise OSError: ENFILE beyond the limit, EMFILE beyond this process's
        """
        if fd is None or not self._limit:
            return 0
        name = file_name(fd)
        number = self._numbers.get(name)
        if number is None:
            if len(self._entries) >= self._limit:
                raise refuse(
                    errno.ENFILE,
                    f"its DMA maps would lie in more than {self._limit} files:"
                    " serve --limit files=N",
                )
            number = next(n for n in range(1, len(self._entries) + 2) if n not in self._entries)
            self.put(number, name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        self._entries[number][1] += 1
        return number

    def put(self, number: int, name: str, fd: int) -> None:
        """As a predecessor had it; *fd* is ours from now on."""
        self._numbers[name] = number
        self._entries[number] = [fd, 0]
        self.changed = True

    def use(self, number: int) -> int | None:
        """A predecessor's map lies in it; gives the descriptor."""
        if not number:
            return None
        entry = self._entries[number]
        entry[1] += 1
        return entry[0]

    def drop(self, number: int) -> None:
        """Undo `add`."""
        if not number:
            return
        entry = self._entries[number]
        entry[1] -= 1
        if not entry[1]:
            self._forget(number)

    def drop_unused(self) -> None:
        """A predecessor had them for maps that it was yet to make."""
        for number in [number for number, (_, uses) in self._entries.items() if not uses]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        fd, _ = self._entries.pop(number)
        self._numbers = {name: n for name, n in self._numbers.items() if n != number}
        close_all([fd])
        self.changed = True

    def named(self) -> list[tuple[int, str, int]]:
        """Number, name and descriptor of each."""
        return [(n, name, self._entries[n][0]) for name, n in self._numbers.items()]

    def close(self) -> None:
        close_all([fd for fd, _ in self._entries.values()])
        self._entries.clear()
        self._numbers.clear()


def file_name(fd: int) -> str:
    """What tells the file, and how it was opened, from others."""
    status = os.fstat(fd)
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    prefix = FILE if stat.S_ISCHR(status.st_mode) or _is_memory(fd) else FOREIGN
    return f"{prefix}{status.st_dev:x}-{status.st_ino:x}-{'rw' if writable else 'r'}"


def _is_memory(fd: int) -> bool:
    """Whether it is the kernel's own: a memfd, or on tmpfs or hugetlbfs (memfd_file_seals_ptr)."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True

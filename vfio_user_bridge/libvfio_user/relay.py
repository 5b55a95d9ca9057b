# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that stand for a client's: a device signals them, and the client hears of it elsewhere.

For an engine that keeps the client's own eventfds to itself.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from vfio_user_bridge import eventfd


class Relay:
    """One eventfd for each interrupt in use.

    :param fire: called with the subindex of an interrupt that was signalled
    """

    def __init__(self, fire: Callable[[int], None]) -> None:
        self._fire = fire
        self._poll = select.epoll()
        self._fds: dict[tuple[int, int], int] = {}  # by interrupt type and subindex
        self._subindexes: dict[int, int] = {}  # by eventfd

    def fileno(self) -> int:
        """Readable when there is something to pass on."""
        return self._poll.fileno()

    def eventfds(self, index: int, start: int, count: int) -> list[int]:
        """The eventfds of these interrupts, the same each time: what is under way isn't lost."""
        return [self._eventfd(index, subindex) for subindex in range(start, start + count)]

    def _eventfd(self, index: int, subindex: int) -> int:
        fd = self._fds.get((index, subindex))
        if fd is None:
            fd = self._fds[index, subindex] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._subindexes[fd] = subindex
            self._poll.register(fd, select.EPOLLIN)
        return fd

    def pass_on(self) -> None:
        """Fire what was signalled, at once, if anything was."""
        for fd, _ in self._poll.poll(0):
            if eventfd.take(fd):
                self._fire(self._subindexes[fd])

    def drop(self, index: int) -> None:
        """This type of interrupt is off."""
        for key in [key for key in self._fds if key[0] == index]:
            fd = self._fds.pop(key)
            del self._subindexes[fd]
            self._poll.unregister(fd)  # closing alone doesn't do it while a device holds it too
            os.close(fd)

    def close(self) -> None:
        for index, _ in list(self._fds):
            self.drop(index)
        self._poll.close()

# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that stand for a client's: a device signals them, and the client hears of it elsewhere.

For an engine that keeps the client's own eventfds to itself.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import ExitStack

from vfio_user_bridge import eventfd
from vfio_user_bridge.eventfd import Kept
from vfio_user_bridge.messages import IrqSet
from vfio_user_bridge.requests import Handler
from vfio_user_bridge.state import Relayed
from vfio_user_bridge.transport import Message


class Relay:
    """One eventfd for each interrupt in use.

    :param fire: called with the subindex of an interrupt that was signalled
    :param relayed: those that a predecessor had; kept up to date, for a successor
    """

    def __init__(self, fire: Callable[[int], None], relayed: Relayed) -> None:
        self._fire = fire
        self._relayed = relayed
        self._poll = select.epoll()
        self._subindexes: dict[int, int] = {}  # by eventfd of ours
        for (_index, subindex), (ours, _theirs) in relayed.items():
            self._watch(ours.fd, subindex)

    def fileno(self) -> int:
        """Readable when there is something to pass on."""
        return self._poll.fileno()

    def stand_in(self, request: IrqSet, message: Message, handler: Handler) -> None:
        """Have *handler* do *message*, with our eventfds in place of the client's, none or some.

        Ours are the same each time, so that what is under way isn't lost.

        :raise OSError: it refuses, or it isn't eventfds that the client gave; all is as before
        """
        index, start = request.index, request.start
        theirs: list[Kept] = []
        with ExitStack() as undo:
            for fd in message.fds:  # nothing else may be written to as if it were one
                theirs.append(Kept(eventfd.duplicate(fd)))
                undo.callback(theirs[-1].close)
            fds = [self._eventfd(index, start + number) for number in range(len(theirs))]
            handler(Message(message.id, message.command, message.flags, message.payload, fds))
            undo.pop_all()  # from here on nothing fails
        for number in range(request.count):
            which = index, start + number
            if which in self._relayed:
                ours, before = self._relayed[which]
                before.close()
                self._relayed[which] = ours, theirs[number] if theirs else Kept()

    def _eventfd(self, index: int, subindex: int) -> int:
        if (index, subindex) not in self._relayed:
            ours = Kept(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._relayed[index, subindex] = ours, Kept()
            self._watch(ours.fd, subindex)
        return self._relayed[index, subindex][0].fd

    def _watch(self, fd: int, subindex: int) -> None:
        self._subindexes[fd] = subindex
        self._poll.register(fd, select.EPOLLIN)

    def pass_on(self) -> None:
        """Fire what was signalled, at once, if anything was.

        It is taken afterwards, so that it isn't lost should this process be killed. If it was
        signalled more than once, that may have been in between.
        """
        for fd, _ in self._poll.poll(0):
            self._fire(self._subindexes[fd])
            if eventfd.take(fd) > 1:
                self._fire(self._subindexes[fd])

    def drop(self, index: int) -> None:
        """This type of interrupt is off."""
        for key in [key for key in self._relayed if key[0] == index]:
            ours, theirs = self._relayed.pop(key)
            del self._subindexes[ours.fd]
            self._poll.unregister(ours.fd)  # closing doesn't do it while a device holds it too
            ours.close()
            theirs.close()

    def close(self) -> None:
        for index, _ in list(self._relayed):
            self.drop(index)
        self._poll.close()

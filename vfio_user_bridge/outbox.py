# SPDX-License-Identifier: BSD-3-Clause
"""How replies leave: at once, or together with others.

Where a successor must know what has left should this process be killed, they leave by way of
`Books`, which keeps them in a file of its own: sendfile() moves that file's position as it sends.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from .ancillary import send_all, send_rest
from .protocol import Buffer

#: bytes of replies that wait for others, at most
_MOST = 4096
#: bytes that are asked for in the books at a time, at least
_ROOM = 1 << 16
#: bytes of replies in books that the peer may leave unread, about; a host's own may be more
_UNREAD = 1 << 18


class Books(Protocol):
    """Where it is written down what became of the messages in a socket's queue.

    *handled* are bytes from the head of the queue. They count from when it was last `consumed`.
    """

    def take(self) -> None:
        """The next message leaves the queue before it is answered."""

    def begin(self, handled: int) -> None:
        """The message behind these is about to have its effect."""

    def place(self, reply: Buffer, handled: int) -> None:
        """They are done with, once *reply* has left; there `has_room` for it."""

    def skip(self, handled: int) -> None:
        """They are done with; no reply waits for that."""

    def consumed(self) -> None:
        """What was done with has left the queue."""

    def has_room(self, size: int) -> bool:
        """Whether replies of *size* bytes can be placed, now that none waits; or are too many."""

    def unsent(self) -> int:
        """How many bytes of replies wait to be sent."""

    def send(self, sock: int, size: int) -> None:
        """Send the next *size* bytes of replies.

        :raise OSError: as send(2)
        """


class Outbox:
    """Replies of which nobody keeps books. All that sends here raises OSError as send(2) does."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        #: bytes that wait for others
        self.waiting = 0
        self._replies = bytearray()

    def put(self, reply: Buffer, _handled: int, hold: bool) -> None:
        """Send it, or *hold* it until others are ready: not too many.

        :param _handled: what is done with then, as in `Books`
        """
        if hold or self.waiting:
            self._replies += reply
            self.waiting += len(reply)
            if not hold or self.waiting >= _MOST:
                self.flush()
        else:
            sent = self._socket.send(reply)
            if sent < len(reply):
                send_rest(self._socket, reply, sent)

    def put_files(self, reply: Buffer, fds: Sequence[int], _handled: int) -> None:
        """Send it by itself, for descriptors belong to what a segment begins with."""
        self.flush()
        send_all(self._socket, reply, fds)

    def flush(self) -> None:
        """Send those that wait."""
        if self.waiting:
            self.waiting, replies, self._replies = 0, self._replies, bytearray()
            send_rest(self._socket, replies, 0)


class BookedOutbox(Outbox):
    """Replies that leave by way of *books*."""

    def __init__(self, sock: socket.socket, books: Books) -> None:
        super().__init__(sock)
        # Twice that is what getsockopt() says, and twice that again the most that was ever unread.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 2 * _UNREAD:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
        self._books = books
        self._fd = sock.fileno()
        self._room = 0  # bytes that can be placed

    def put(self, reply: Buffer, handled: int, hold: bool) -> None:
        size = len(reply)
        if size > self._room:
            self.flush()
            self._room = max(size, _ROOM)
            if not self._books.has_room(self._room):
                self._room = 0
                self.put_files(reply, (), handled)
                return
        self._room -= size
        self._books.place(reply, handled)
        waiting = self.waiting + size
        if hold and waiting < _MOST:
            self.waiting = waiting
        else:
            self.waiting = 0
            self._books.send(self._fd, waiting)

    def put_files(self, reply: Buffer, fds: Sequence[int], handled: int) -> None:
        super().put_files(reply, fds, handled)
        self._books.skip(handled)

    def flush(self) -> None:
        waiting = self.waiting
        if waiting:
            self.waiting = 0
            self._books.send(self._fd, waiting)

# SPDX-License-Identifier: BSD-3-Clause
"""One connection: whole messages, with the file descriptors that belong to them, in and out.

A message is looked at (MSG_PEEK) and stays in the socket until its reply has left, so that whoever
has the socket next finds what was not answered. The socket's queue and the buffer run in parallel::

    queue                 head ── done with ── in hand ── looked at ── not looked at
    buffer   0 .. _head .. _at .. _next .. _end

What is done with is consumed as soon as nothing else that was looked at is a whole message.

Descriptors are a segment's (`ancillary`), and belong to the message in which it begins. A look has
no room for them, so it neither takes nor duplicates any. What may bring some, which is all but the
trapped accesses, is looked at once more; what comes with an access goes when that is consumed.

A message that doesn't come whole, or is longer than a look, is taken out of the socket before it is
answered. Replies to messages that came together leave together, but for the first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ancillary import NOWHERE, close_all, descriptors, room
from .limits import DEFAULTS, Limits
from .outbox import BookedOutbox, Books, Outbox
from .protocol import HEADER, Buffer, Command, ProtocolError
from .timeval import timeval

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# As numbers: to combine the flags of socket, which are enumerations, takes a microsecond.
_DONTWAIT = int(socket.MSG_DONTWAIT)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CTRUNC = int(socket.MSG_CTRUNC)
_PEEK = int(socket.MSG_PEEK)

#: asm-generic/socket.h; what is peeked from is moved by peeking and reading, and can be asked for
SO_PEEK_OFF = 42
#: bytes that are looked at, at most
_LOOK = 1 << 16
#: they bring no descriptors, and are many
_ACCESSES = frozenset((int(Command.REGION_READ), int(Command.REGION_WRITE)))
_NO_TIMEOUT = timeval(0)
_LONG = 1 << 62
_looking = threading.Lock()


class PeerGoneError(Exception):
    """The peer is gone, in good order (between messages) or not; the text says which."""


@dataclass(slots=True)
class Message:
    """One whole message; a connection uses the same one for the next.

    Its *payload* lies in the connection's buffer. *fds* came with it and are closed after it;
    *reply_fds* go out with the reply and stay open.
    """

    id: int
    command: int
    flags: int
    payload: memoryview
    fds: list[int]
    reply_fds: Sequence[int] = ()

    def close_fds(self) -> None:
        """Close what the message brought and nobody claimed."""
        close_all(self.fds)


class Connection:
    """A connected UNIX stream socket, on which the peer keeps to *limits*.

    First `start`. For each message: `receive`; `begin`; do it; `send` or `skip`; `done`.

    :param patience: how long to look for the next message before sleeping until it comes, in
        seconds, if the one before came as soon
    :param books: where it is written down how far that has come, if a successor must know. Then
        SO_PEEK_OFF is above 0 as long as what they say is handled is still in the queue, and else 0
    """

    def __init__(
        self,
        sock: socket.socket,
        limits: Limits = DEFAULTS,
        patience: float = 0.0,
        books: Books | None = None,
    ) -> None:
        self.socket = sock
        #: bytes that a message may have, header included; small until the peer is known
        self.max_size = limits.version
        #: something was begun that may not have been answered, or still be in the socket
        self.owes = False
        #: the message in hand, or a part of it, is in the socket no more
        self.taken = False
        self._taking = threading.Lock()  # held to begin to take a message
        self._books = books
        self._outbox = BookedOutbox(sock, books) if books else Outbox(sock)
        self._max_fds = limits.fds
        self._control = room(limits.fds)
        stall = self._stall = limits.stall
        self._timeval = timeval(stall)
        self._buffer = bytearray(_LOOK)
        self._view = memoryview(self._buffer)
        # Where in the buffer there is:
        self._head = 0  # the head of the socket's queue
        self._at = 0  # the message in hand
        self._next = 0  # what comes behind it
        self._end = 0  # the end of what was looked at
        self._fds: list[int] = []  # came with the message that is being received
        self._fds_lost = False  # there were more than there was room for
        self._answered = False  # one of those that came together has its reply
        self._message = Message(0, 0, 0, self._view, [])
        #: what the clock (time.perf_counter_ns) said last: when a message came, or was done with
        self.now = time.perf_counter_ns()
        self._patience = int(patience * 1e9)
        self._waited = _LONG  # for the last message, in ns; so, too, if it brought files
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        self._poll = poller.poll
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, self._timeval)

    def start(self) -> None:
        """Once, before all else: nobody looks at the socket any more but this one.

        Until a predecessor has gone, its thread may see a message come, which counts as peeked.
        """
        self._peeked(0 if self._books else -1)  # -1: nobody asks

    def hurry(self, on: bool) -> None:
        """From now on a read that waits longer than the stall time fails; or no longer does."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, self._timeval if on else _NO_TIMEOUT
        )

    # ---- Messages in ------------------------------------------------------------------------

    def receive(self) -> Message:
        """Wait for the next whole message. Replies that wait are sent before.

        :raise PeerGoneError: the peer is gone, or took too long over half a message
        :raise ProtocolError: what came is no message, or its descriptors did not all arrive
        """
        at = self._next
        have = self._end - at
        if have < HEADER.size:
            at, have = 0, self._look()
        id_, command, size, flags, _error = HEADER.unpack_from(self._buffer, at)
        if size > self.max_size:
            raise ProtocolError(f"a message of {size} bytes; {self.max_size} are allowed")
        if size > have:
            self._take(size)
            at = 0
        elif size < HEADER.size:
            raise ProtocolError(f"a message of {size} bytes; its header alone has {HEADER.size}")
        elif command not in _ACCESSES and not self.taken:
            self._look_for_fds(at, size)
            at = 0
        self._at, self._next = at, at + size
        message = self._message
        message.id, message.command, message.flags = id_, command, flags
        message.payload = self._view[at + HEADER.size : at + size]
        message.fds, message.reply_fds = [], ()
        if self._fds:
            message.fds, self._fds = self._fds, message.fds
            self._waited = _LONG
        return message

    def _look(self) -> int:
        """Wait for messages and look at them. Gives how many bytes there are: at least a header."""
        if self._end:
            self.settle()
        self._answered = False
        # Silence is the peer's right, but not in mid-message.
        begun = self.now
        if self._waited < self._patience:
            self._look_until(begun + self._patience)
        try:
            have = self._end = self.socket.recv_into(self._buffer, _LOOK, _PEEK)
        except BlockingIOError:
            raise PeerGoneError("it has nothing to say") from None
        except OSError as error:
            raise PeerGoneError(error.strerror) from None
        self.now = time.perf_counter_ns()
        self._waited = self.now - begun
        if have < HEADER.size:
            self._take(HEADER.size)
            have = HEADER.size
        return have

    def _look_until(self, deadline: int) -> None:
        """Look for input all the time, until *deadline*.

        To be woken takes longer than to answer. One thread at a time does it, for only one can run
        in an interpreter; and whoever else wants its CPU comes first.
        """
        if _looking.acquire(blocking=False):
            try:
                while not self._poll(0) and time.perf_counter_ns() < deadline:
                    os.sched_yield()
            finally:
                _looking.release()

    def _look_for_fds(self, at: int, size: int) -> None:
        """Look again, at the message that begins at *at*, with room for descriptors.

        What is behind is forgotten: the descriptors may be there until this message is consumed.
        """
        self._next = at
        self.settle()
        self._end = size
        if self._read((self._view[:size], NOWHERE), _PEEK | _DONTWAIT) < size:
            # A segment has more than this message. If there are descriptors, be it in that one or
            # behind it, only a read that takes them tells whose.
            if self._books:
                self._peeked(0)
            self._read((self._view[:size],), _PEEK | _DONTWAIT)
            if self._fds or self._fds_lost:
                close_all(self._fds)
                self._take(size)
        self._check_fds()

    def _take(self, size: int) -> None:
        """Read until the buffer begins with *size* bytes of a message, but not forever."""
        if not self.taken:
            self.settle()
            with self._taking:
                self.taken = True
                if self._books:
                    self._books.take()
        if size > len(self._buffer):
            self._grow(size)
        with contextlib.suppress(BlockingIOError):  # the rest is mostly there already
            self._take_some(size, _DONTWAIT)
        if self._end < size:
            late = PeerGoneError("it took too long to send a whole message")
            deadline = time.monotonic() + self._stall
            self.hurry(True)
            while self._end < size:
                try:
                    self._take_some(size, 0)
                except BlockingIOError:
                    raise late from None
                if time.monotonic() > deadline:
                    raise late
            self.hurry(False)
        self._head = size

    def _take_some(self, size: int, flags: int) -> None:
        count = self._read((self._view[self._end : size],), flags)
        if not count:
            raise PeerGoneError("it hung up" + (" in mid-message" if self._end else ""))
        self._end += count
        self._check_fds()

    def _read(self, free: Iterable[WriteableBuffer], flags: int) -> int:
        """One read, with room for descriptors. Gives how many bytes came.

        :raise BlockingIOError: there is nothing, and it must not wait (any longer)
        """
        try:
            count, control, flags, _address = self.socket.recvmsg_into(
                free, self._control, _CLOEXEC | flags
            )
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EFAULT:
                return 0  # there was more than room
            raise PeerGoneError(error.strerror) from None
        if control:
            self._fds += descriptors(control)
        self._fds_lost = bool(flags & _CTRUNC)
        return count

    def _check_fds(self) -> None:
        # The kernel counts those of one segment; a message can come in many.
        if self._fds_lost or len(self._fds) > self._max_fds:
            raise ProtocolError(
                "more file descriptors in one message than were agreed on, or than this process can"
                " have (ulimit -n)"
            )

    def _grow(self, size: int) -> None:
        grown = bytearray(size)
        grown[: self._end] = self._view[: self._end]
        self._buffer, self._view = grown, memoryview(grown)

    # ---- What was answered ------------------------------------------------------------------

    def begin(self) -> None:
        """The message in hand is about to have its effect."""
        self.owes = True
        if self._books:
            self._books.begin(0 if self.taken else self._at - self._head)

    def skip(self) -> None:
        """The message in hand is done with, and gets no reply."""
        if self._books:
            self._books.skip(self._next - self._head)

    def done(self) -> None:
        """The message in hand was answered. If it was the last one, they are over.

        :raise PeerGoneError: as `send`
        """
        if self._next == self._end:
            self.settle()

    def settle(self) -> None:
        """What was answered is over. All else of this connection is in the socket.

        :raise PeerGoneError: as `send`
        """
        if self._outbox.waiting:
            self.flush()
        self._consume(self._next)
        if self.taken and self._books:
            self._books.consumed()
        self._head = self._at = self._next = self._end = 0
        self.owes = self.taken = False

    def pause(self) -> None:
        """What was answered before the message in hand is over; that one stays, not begun.

        :raise PeerGoneError: as `send`
        """
        if not self.taken:
            self.flush()
            self._consume(self._at)
            if self._books:
                self._peeked(self._end - self._head)
        self.owes = False

    def _consume(self, upto: int) -> None:
        """Take what was done with out of the socket. Nothing then counts as peeked."""
        done_with = upto - self._head
        if self._books and upto < self._end:
            self._peeked(done_with)
        if done_with:
            try:
                # They are there, and what they overwrite are themselves or what came before them.
                self.socket.recv_into(self._buffer, done_with, _DONTWAIT)
            except OSError as error:
                raise PeerGoneError(error.strerror) from None
            self._head = upto
            if self._books:
                self._books.consumed()

    def _peeked(self, count: int) -> None:
        """So many bytes of the queue count as peeked."""
        self.socket.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, count)

    # ---- Replies out ------------------------------------------------------------------------

    def send(self, data: Buffer, fds: Sequence[int] = ()) -> None:
        """Send the reply to the message in hand, or hold it back until others are ready.

        Of the replies to messages that came together the first leaves at once, which wakes the peer
        while we go on; the others together, before the next one that has *fds*, or by `flush`.

        :raise PeerGoneError: the peer is gone, or has not taken its replies for the stall time
        """
        handled = self._next - self._head
        try:
            if fds:
                self._outbox.put_files(data, fds, handled)
            else:
                self._outbox.put(data, handled, self._answered and self._next < self._end)
                self._answered = True
        except OSError as error:
            if error.errno == errno.EBADF and fds:
                raise  # ours, not the socket's: a device gave a descriptor that isn't open
            raise _unsendable(error) from None

    def flush(self) -> None:
        """Send the replies that wait for others.

        :raise PeerGoneError: as `send`
        """
        if self._outbox.waiting:
            try:
                self._outbox.flush()
            except OSError as error:
                raise _unsendable(error) from None

    def send_placed(self) -> None:
        """What a predecessor has placed in the books and not sent leaves first.

        :raise PeerGoneError: as `send`
        """
        if self._books:
            try:
                self._books.send(self.socket.fileno(), self._books.unsent())
            except OSError as error:
                raise _unsendable(error) from None

    # ---- The end ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def settled(self) -> Iterator[bool]:
        """Whether all of it is in the socket; meanwhile nothing is taken from there, while who has
        the connection waits to `begin`.
        """
        with self._taking:
            yield not (self.owes or self.taken)

    def hung_up(self) -> bool:
        """Whether the peer, or we, have hung up; what it sent before may still be unread."""
        descriptor = self.socket.fileno()
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shut_down(self) -> None:
        """End the conversation from another thread: `receive` and `send` fail from now on."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up; descriptors that no message claimed are closed."""
        close_all(self._fds)
        if looked := self._end - self._head:
            with contextlib.suppress(OSError):  # else the peer is told ECONNRESET
                self.socket.recv_into(self._buffer, looked, _DONTWAIT)
        self.socket.close()


def _unsendable(error: OSError) -> PeerGoneError:
    late = isinstance(error, BlockingIOError)
    return PeerGoneError("it doesn't read its replies" if late else error.strerror)

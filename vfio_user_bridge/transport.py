# SPDX-License-Identifier: BSD-3-Clause
"""One connection: whole messages, with the file descriptors that belong to them, in and out.

Nothing else in the package touches a socket's ancillary data.

The kernel hands descriptors out with the first byte of the segment (skb) that they were sent with,
and ends a read after such a segment (unix_stream_read_generic). So whoever reads on past a message
must know whose descriptors came with the bytes. Here a read never takes more than 36 bytes beyond
the start of a message whose size isn't known yet:

- no message that can own descriptors is shorter than that (SET_IRQS has 36 bytes, DMA_MAP 48), so
  such a read holds the start of one possible owner only, and that one is the last in the buffer;
- the trapped accesses, a REGION_READ (32) or a REGION_WRITE of up to 4 bytes (36), take exactly
  one system call each.

Where more waits in the socket, it is looked at first (MSG_PEEK), and taken all at once if no
descriptors came with it. Replies to messages that came together leave together, but for the first.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .limits import DEFAULTS, Limits
from .protocol import HEADER, Buffer, ProtocolError

# As numbers: to combine the flags of socket, which are enumerations, takes a microsecond.
_DONTWAIT = int(socket.MSG_DONTWAIT)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CTRUNC = int(socket.MSG_CTRUNC)
_LOOK = int(socket.MSG_PEEK) | _DONTWAIT

_FIRST_READ = 36
#: bytes of replies that wait for others, at most
_UNSENT = 4096
_FD_SIZE = array.array("i").itemsize
#: room for as many descriptors as the kernel lets anyone send at once (SCM_MAX_FD)
_ALL_FDS = socket.CMSG_SPACE(253 * _FD_SIZE)
_TIMEVAL = struct.Struct("@ll")
_NO_TIMEOUT = _TIMEVAL.pack(0, 0)
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
        _close(self.fds)


class Connection:
    """A connected UNIX stream socket, on which the peer keeps to *limits*.

    :param patience: how long to look for the next message before sleeping until it comes, in
        seconds, if the one before came as soon
    """

    def __init__(
        self, sock: socket.socket, limits: Limits = DEFAULTS, patience: float = 0.0
    ) -> None:
        self.socket = sock
        #: bytes that a message may have, header included; small until the peer is known
        self.max_size = limits.version
        #: whether to take more than a message at a time; not if another reader shares the socket
        self.reads_ahead = True
        self._max_fds = limits.fds
        self._control = socket.CMSG_SPACE(limits.fds * _FD_SIZE)
        stall = self._stall = limits.stall
        self._timeval = _TIMEVAL.pack(int(stall), int(stall % 1 * 1_000_000))
        self._buffer = bytearray(self.max_size)
        self._view = memoryview(self._buffer)
        self._first = (self._view[:_FIRST_READ],)
        self._begin = 0  # the buffer holds unread bytes from here ...
        self._end = 0  # ... to here
        self._fds: list[int] = []  # came with the last message that began in the buffer
        self._unsent = bytearray()  # replies that wait for others
        self._answered = False  # one of those that came together has its reply
        self._message = Message(0, 0, 0, self._view, [])
        #: what the clock (time.perf_counter_ns) said last: when a message came, or was done with
        self.now = time.perf_counter_ns()
        self._patience = int(patience * 1e9)
        self._waited = _LONG  # for the last message, in ns; so, too, if it brought files
        self._filled = False  # the last first read had all it could take: there may be more
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        self._poll = poller.poll
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, self._timeval)

    def hurry(self, on: bool) -> None:
        """From now on a read that waits longer than the stall time fails; or no longer does."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, self._timeval if on else _NO_TIMEOUT
        )

    def receive(self) -> Message:
        """Wait for the next whole message. Replies that wait are sent before.

        :raise PeerGoneError: the peer is gone, or took too long over half a message
        :raise ProtocolError: what came is no message, or its descriptors did not all arrive
        """
        have = self._end - self._begin
        if have < HEADER.size:
            have = self._first_read()
        begin = self._begin
        id_, command, size, flags, _error = HEADER.unpack_from(self._buffer, begin)
        if size > have:
            if size > self.max_size:
                raise ProtocolError(f"a message of {size} bytes; {self.max_size} are allowed")
            if begin:
                self._make_way()
                begin = 0
            if size > len(self._buffer):
                self._grow(size)
            have = self._finish(size)
        elif size < HEADER.size:
            raise ProtocolError(f"a message of {size} bytes; its header alone has {HEADER.size}")
        message, end = self._message, begin + size
        message.id, message.command, message.flags = id_, command, flags
        message.payload = self._view[begin + HEADER.size : end]
        message.fds, message.reply_fds = [], ()
        if have > size:
            self._begin = end
        else:
            self._begin = self._end = 0
            if self._fds:
                message.fds, self._fds = self._fds, message.fds
        return message

    def _make_way(self) -> None:
        """Before a read: replies leave; what is unread, less than a message, goes to the front."""
        self.flush()
        have = self._end - self._begin
        self._view[:have] = self._view[self._begin : self._end]
        self._begin, self._end = 0, have

    def _first_read(self) -> int:
        """Read at least a header, whose beginning may be there. Gives how many bytes are there."""
        if self._begin or self._unsent:
            self._make_way()
        self._answered = False
        have = self._end
        more = have or (self._filled and self._poll(0))
        if more and self.reads_ahead and not self._fds:
            have = self._take_all()
        if have < HEADER.size:
            # Silence is the peer's right, but not in mid-message.
            begun = self.now
            if self._waited < self._patience:
                self._look_until(begun + self._patience)
            try:
                if have:
                    have = self._read((self._view[have:_FIRST_READ],), _DONTWAIT)
                else:
                    have = self._read(self._first, 0)
            except BlockingIOError:
                if not have:
                    raise PeerGoneError("it has nothing to say") from None
            self.now = time.perf_counter_ns()
            self._waited = _LONG if self._fds else self.now - begun
            self._filled = have == _FIRST_READ and not self._fds
            if have < HEADER.size:
                have = self._finish(HEADER.size)
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

    def _take_all(self) -> int:
        """Read all that waits, if no descriptors came with it. Gives how many bytes are there.

        A look takes none away, and without room for them only says that there are some.
        """
        free = self._view[self._end :]
        with contextlib.suppress(OSError):  # what is wrong with the socket is found by `_read`
            waiting, _, flags, _ = self.socket.recvmsg_into((free,), 0, _LOOK)
            if waiting and not flags & _CTRUNC:
                self._end += self.socket.recv_into(free, waiting, _DONTWAIT)
        return self._end

    def _finish(self, size: int) -> int:
        """Read until the buffer holds *size* bytes, but not forever."""
        with contextlib.suppress(BlockingIOError):  # the rest is mostly there already
            self._read((self._view[self._end : size],), _DONTWAIT)
        if self._end < size:
            late = PeerGoneError("it took too long to send a whole message")
            deadline = time.monotonic() + self._stall
            self.hurry(True)
            while self._end < size:
                try:
                    self._read((self._view[self._end : size],), 0)
                except BlockingIOError:
                    raise late from None
                if time.monotonic() > deadline:
                    raise late
            self.hurry(False)
        return self._end

    def _read(self, free: tuple[memoryview], flags: int) -> int:
        """One read into the buffer's *free* part. Gives how many bytes there are.

        :raise BlockingIOError: there is nothing, and it must not wait (any longer)
        """
        try:
            count, control, flags, _address = self.socket.recvmsg_into(
                free, self._control, _CLOEXEC | flags
            )
        except BlockingIOError:
            raise
        except OSError as error:
            raise PeerGoneError(error.strerror) from None
        if control or flags & _CTRUNC:
            self._take_fds(control, flags)
        if not count:
            raise PeerGoneError("it hung up" + (" in mid-message" if self._end else ""))
        self._end += count
        return self._end

    def _take_fds(self, control: Sequence[tuple[int, int, bytes]], flags: int) -> None:
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) // _FD_SIZE * _FD_SIZE
                self._fds.extend(array.array("i", data[:whole]))
        # The kernel counts those of one segment; a message can come in many.
        if flags & _CTRUNC or len(self._fds) > self._max_fds:
            raise ProtocolError(
                "more file descriptors in one message than were agreed on, or than this process can"
                " have (ulimit -n)"
            )

    def _grow(self, size: int) -> None:
        grown = bytearray(size)
        grown[: self._end] = self._view[: self._end]
        self._buffer, self._view = grown, memoryview(grown)
        self._first = (self._view[:_FIRST_READ],)

    def send(self, data: Buffer, fds: Sequence[int] = ()) -> None:
        """Send one whole message, or hold it back until others are ready.

        Of the replies to messages that came together the first leaves at once, which wakes the peer
        while we go on; the others together, before the next one that has *fds*, or by `flush`.

        :raise PeerGoneError: the peer is gone, or has not taken its replies for the stall time
        """
        if fds:
            self.flush()  # by itself: descriptors belong to what a segment begins with
            self._send(data, fds)
        elif self._answered:
            self._unsent += data
            if not self._begin or len(self._unsent) >= _UNSENT:
                self.flush()
        else:
            self._send(data)
            self._answered = True

    def flush(self) -> None:
        """Send the replies that wait for others.

        :raise PeerGoneError: as `send`
        """
        if self._unsent:
            data, self._unsent = self._unsent, bytearray()
            self._send(data)

    def _send(self, data: Buffer, fds: Sequence[int] = ()) -> None:
        try:
            sent = _send_files(self.socket, data, fds) if fds else self.socket.send(data)
            while sent < len(data):
                sent += self.socket.send(memoryview(data)[sent:])
        except BlockingIOError:
            raise PeerGoneError("it doesn't read its replies") from None
        except OSError as error:
            if error.errno == errno.EBADF and fds:
                raise  # ours, not the socket's: a device gave a descriptor that isn't open
            raise PeerGoneError(error.strerror) from None

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
        _close(self._fds)
        self.socket.close()


def _close(fds: list[int]) -> None:
    """Close a client's descriptors. What it has on a file system of its own, such as FUSE, may
    answer with any error; the descriptor is closed all the same.
    """
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())


def receive_waiting(sock: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """What waits in *sock*, up to *size* bytes, and the files that came with it; no whole message.

    With MSG_PEEK in *flags* it stays there, and the descriptors are duplicates. (socket.recv_fds()
    forgets the flags it is given.)

    :raise BlockingIOError: nothing does
    """
    data, control, _, _ = sock.recvmsg(
        size, _ALL_FDS, flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // _FD_SIZE * _FD_SIZE])
    return data, list(fds)


def send_all(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send *data* with the files *fds*, none or some."""
    sent = _send_files(sock, data, fds)
    sock.sendall(data[sent:])


def _send_files(sock: socket.socket, data: Buffer, fds: Sequence[int]) -> int:
    """Gives how many bytes went; all of the files did, with the first."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg((data,), (rights,) if fds else ())

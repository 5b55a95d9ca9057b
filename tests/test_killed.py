# SPDX-License-Identifier: BSD-3-Clause
"""A connection that is killed between any two of its steps, and what a successor makes of that.

The steps are its system calls, and what it writes into its books. A successor has the socket and
the books; all else is lost.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

import pytest

from vfio_user_bridge.handover.journal import LARGEST_REPLY, RING, Journal
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.transport import Connection, Message, PeerGoneError

from .descriptors import inodes, memory_files, open_descriptors
from .wire import dma_map, message, region

RESET, DMA_MAP, READ, WRITE = 13, 2, 9, 10
NO_REPLY = 0x10
CALLS = ("recv_into", "recvmsg_into", "send", "sendmsg", "setsockopt")
ENTRIES = ("take", "begin", "place", "skip", "consumed", "has_room", "send")


#: which messages are answered, and which bring the file
Answers = tuple[list[int], list[int]]


class Killed(BaseException):
    pass


class Fuse:
    """Counts steps. What would be the one after *most* steps isn't taken."""

    def __init__(self, most: int) -> None:
        self.left = most

    def guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if not self.left:
                raise Killed
            self.left -= 1
            return call(*arguments)

        return step


class Doomed:
    """*whole*, but that its *calls* are steps."""

    def __init__(self, whole: object, fuse: Fuse, calls: tuple[str, ...]) -> None:
        self._whole = whole
        for name in calls:
            setattr(self, name, fuse.guard(getattr(whole, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def waits(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def in_queue(sock: socket.socket) -> int:
    """Bytes that wait, of whole messages each in a segment."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


class Server:
    """Does all that waits as a session does it; *done* are the messages that had their effect."""

    def __init__(self, sock: socket.socket, books: Journal, *, paused: bool = False) -> None:
        self.sock, self.books, self.paused = sock, books, paused
        self.done: list[int] = []
        self.files: dict[int, list[int]] = {}

    def serve(self, fuse: Fuse) -> None:
        sock: Any = Doomed(self.sock, fuse, CALLS)
        books: Any = Doomed(self.books, fuse, ENTRIES)
        connection = Connection(sock, Limits(fds=4, stall=5), books=books)
        connection.start()
        while waits(self.sock):
            self._answer(connection, connection.receive())

    def _answer(self, connection: Connection, received: Message) -> None:
        try:
            if self.paused:
                connection.pause()
                assert not connection.owes
            connection.begin()
            self.done.append(received.id)
            self.files[received.id] = inodes(received.fds)
            if received.flags & NO_REPLY:
                connection.skip()
            else:
                connection.send(reply(received.id))
            connection.done()
        finally:
            received.close_fds()

    def succeed(self) -> None:
        """A successor has found socket and books, but nobody's memory."""
        self.books.recover(self.sock)
        self.books.send(self.sock.fileno(), self.books.unsent())


def reply(number: int) -> bytes:
    return message(READ, b"%05d" % number * 8, number=number, flags=1)


@contextmanager
def a_server(*, paused: bool = False) -> Iterator[tuple[Server, socket.socket]]:
    ours, peer = socket.socketpair()
    peer.settimeout(0)
    books = Journal.create(1)
    with ours, peer:
        yield Server(ours, books, paused=paused), peer
    books.close()


def accesses(peer: socket.socket, _file: int) -> Answers:
    for number in range(5):
        peer.sendall(message(READ, region(0, 7, 4), number=number))
    return list(range(5)), []


def one_segment(peer: socket.socket, _file: int) -> Answers:
    peer.sendall(b"".join(message(READ, region(0, 7, 4), number=number) for number in range(5)))
    return list(range(5)), []


def some_without_reply(peer: socket.socket, _file: int) -> Answers:
    for number in range(6):
        flags = NO_REPLY if number in (0, 3, 5) else 0
        peer.sendall(message(WRITE, region(0, 7, b"data"), number=number, flags=flags))
    return [1, 2, 4], []


def with_files(peer: socket.socket, file: int) -> Answers:
    for number in range(8):
        if number % 2:
            socket.send_fds(peer, [message(DMA_MAP, dma_map(0, 4096), number=number)], [file])
        else:
            peer.sendall(message(READ, region(0, 7, 4), number=number))
    return list(range(8)), [1, 3, 5, 7]


def of_all_kinds(peer: socket.socket, file: int) -> Answers:
    for number, command in enumerate((READ, RESET, WRITE, RESET, RESET, READ)):
        peer.sendall(message(command, region(0, 7, b"data"), number=number))
    socket.send_fds(peer, [message(DMA_MAP, dma_map(0, 4096), number=6)], [file])
    return list(range(7)), [6]


def several_in_a_segment(peer: socket.socket, _file: int) -> Answers:
    for pair in ((0, 1), (2, 3)):
        peer.sendall(b"".join(message(RESET, bytes(20), number=number) for number in pair))
    data = message(RESET, number=4) + message(RESET, number=5)
    peer.sendall(data[:10])
    peer.sendall(data[10:])
    return list(range(6)), []


Story = Callable[[socket.socket, int], Answers]
STORIES = (
    accesses,
    one_segment,
    some_without_reply,
    with_files,
    of_all_kinds,
    several_in_a_segment,
)


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("story", STORIES)
def test_whenever_it_is_killed_all_is_answered_once_and_in_order(
    story: Story, paused: bool
) -> None:
    before = open_descriptors()
    for steps in count():
        with memory_files(1) as (file,), a_server(paused=paused) as (server, peer):
            answered, owners = story(peer, file)
            killed = False
            try:
                server.serve(Fuse(steps))
            except Killed:
                killed = True
                busy = server.books.begun
                server.succeed()
                server.serve(Fuse(10_000))
            assert peer.recv(1 << 16) == b"".join(map(reply, answered)), steps
            assert not waits(peer)
            again = [number for number in set(server.done) if server.done.count(number) > 1]
            assert sorted(set(server.done)) == list(range(max(server.done) + 1))
            assert len(again) <= (killed and busy), steps
            for number, files in server.files.items():
                assert files == (inodes([file]) if number in owners else []), steps
        if not killed:
            break
    assert steps > 15
    assert open_descriptors() == before


# ---- Replies --------------------------------------------------------------------------------


@contextmanager
def a_connection(stall: float = 10) -> Iterator[tuple[Connection, Journal, socket.socket]]:
    ours, peer = socket.socketpair()
    books = Journal.create(1)
    connection = Connection(ours, Limits(stall=stall), books=books)
    connection.start()
    with peer:
        yield connection, books, peer
    connection.close()
    books.close()


def ask(connection: Connection, peer: socket.socket, command: int = READ) -> None:
    peer.sendall(message(command, region(0, 7, 4)))
    assert connection.receive().command == command
    connection.begin()


def test_replies_are_what_they_were_however_late_they_are_read() -> None:
    """The kernel has no copy of them: the ring comes round three times behind a slow reader."""
    sent, read = bytearray(), bytearray()
    with a_connection() as (connection, books, peer):
        while len(sent) < 3 * RING:
            ask(connection, peer)
            connection.send(data := os.urandom(5000))
            connection.done()
            sent += data
            if len(sent) - len(read) > 100_000:
                read += peer.recv(50_000)
        assert books.unsent() == 0
        while len(read) < len(sent):
            read += peer.recv(1 << 16)
    assert read == sent


def test_what_may_be_unread_is_less_than_the_ring_whatever_the_host_allows() -> None:
    """It may begin anew with a MiB left; up to twice SO_SNDBUF is unread (test_kernel_sockets)."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RING)  # net.core.wmem_max bounds it
    with peer, closing(Journal.create(1)) as books, closing(Connection(ours, books=books)):
        limit = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert 2 * limit < RING - LARGEST_REPLY


def test_a_reply_that_is_too_large_for_the_ring_goes_past_it() -> None:
    with a_connection() as (connection, books, peer), ThreadPoolExecutor() as pool:
        for size in (10, LARGEST_REPLY + 1, 20):
            ask(connection, peer)
            read = pool.submit(peer.recv, size, socket.MSG_WAITALL)
            connection.send(data := os.urandom(size))
            assert not books.begun
            connection.done()
            assert read.result() == data


def test_replies_with_files_keep_their_place() -> None:
    with memory_files(1) as files, a_connection() as (connection, books, peer):
        peer.sendall(message(READ, region(0, 7, 4)) * 3)
        for fds in ([], [], files):
            connection.receive()
            connection.begin()
            connection.send(b"reply", fds)
            assert not books.begun
        assert books.unsent() == 0
        assert peer.recv(10, socket.MSG_WAITALL) == b"reply" * 2
        data, fds, _, _ = socket.recv_fds(peer, 10, 1)
        assert (data, inodes(fds)) == (b"reply", inodes(files))
        os.close(fds[0])


def test_a_peer_that_never_reads_is_gone() -> None:
    def flood(connection: Connection, peer: socket.socket) -> None:
        for _ in range(10_000):
            ask(connection, peer)
            connection.send(bytes(1000))
            connection.done()

    with (
        a_connection(stall=0.05) as (connection, _books, peer),
        pytest.raises(PeerGoneError, match="doesn't read"),
    ):
        flood(connection, peer)


# ---- Between messages -----------------------------------------------------------------------


def test_what_a_predecessor_sees_before_it_goes_is_its_successors() -> None:
    with a_connection() as (connection, books, peer):
        successor = Connection(connection.socket.dup(), Limits(stall=0.05), books=books)
        peer.sendall(message(READ, region(0, 7, 4), number=1))
        assert connection.receive().id == 1
        connection.pause()
        successor.start()
        successor.hurry(True)
        assert successor.receive().id == 1
        successor.socket.close()


@pytest.mark.parametrize("kept", [False, True], ids=["without books", "with books"])
def test_what_is_not_answered_stays_in_the_socket(kept: bool) -> None:
    ours, peer = socket.socketpair()
    books = Journal.create(1)
    connection = Connection(ours, books=books if kept else None)
    connection.start()
    with peer, memory_files(1) as files:
        for number in range(3):
            peer.sendall(message(READ, region(0, 7, 4), number=number))
        socket.send_fds(peer, [message(DMA_MAP, dma_map(0, 4096), number=3)], files)
        before = open_descriptors()
        for number in range(2):
            assert connection.receive().id == number
            connection.begin()
            connection.send(reply(number))
            assert connection.owes
        assert connection.receive().id == 2
        connection.pause()
        assert not connection.owes
        assert peer.recv(1000) == reply(0) + reply(1)
        assert in_queue(ours) == 32 + 48
        connection.begin()
        connection.send(reply(2))
        received = connection.receive()
        assert received.id == 3
        assert inodes(received.fds) == inodes(files)
        connection.pause()
        assert peer.recv(1000) == reply(2)
        assert in_queue(ours) == 48
        connection.begin()
        connection.send(reply(3))
        received.close_fds()
        connection.done()
        assert open_descriptors() == before
        assert peer.recv(1000) == reply(3)
        assert in_queue(ours) == 0
    connection.close()
    books.close()


def test_half_a_message_is_taken() -> None:
    with a_connection() as (connection, books, peer):
        data = message(READ, region(0, 7, 4))
        peer.sendall(data * 2 + data[:20])
        rest = threading.Timer(0.02, peer.sendall, (data[20:] + data,))
        rest.start()
        for taken in (False, False, True, False):
            connection.receive()
            assert connection.taken == taken
            connection.begin()
            assert books.lost == taken
            connection.send(b"reply")
            connection.done()
            assert not books.lost
        rest.join()
        assert peer.recv(100) == b"reply" * 4
        assert not waits(connection.socket)

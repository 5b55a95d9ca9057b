# SPDX-License-Identifier: BSD-3-Clause
"""The journal: what one process writes, another finds, wherever the first was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.handover.journal import DOCUMENT_SIZE, LARGEST_REPLY, RING, Journal
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.protocol import Command
from vfio_user_bridge.transport import SO_PEEK_OFF


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.create(1000)
    yield made
    for each in (made, *_successors):
        each.close()
    _successors.clear()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    with ours, theirs:
        yield ours, theirs


_successors: list[Journal] = []


def successor(journal: Journal) -> Journal:
    _successors.append(Journal(os.dup(journal.fd)))
    return _successors[-1]


def test_its_size_is_sealed(journal: Journal) -> None:
    size = os.fstat(journal.fd).st_size
    for other in (size - 4096, size + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(journal.fd, other)
    assert fcntl.fcntl(journal.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL


@pytest.mark.parametrize("content", [b"", b"\x02" + bytes(1 << 24)], ids=["empty", "newer"])
def test_another_format_is_refused(content: bytes) -> None:
    fd = os.memfd_create("other")
    os.write(fd, content)
    with pytest.raises(BridgeError):
        Journal(fd)
    os.close(fd)


def test_documents_replace_each_other(journal: Journal) -> None:
    assert successor(journal).document == b""
    for document in (b"first", b"x" * DOCUMENT_SIZE, b"", b"last"):
        journal.document = document
        assert successor(journal).document == document


def test_half_a_document_is_none(journal: Journal) -> None:
    journal.document = b"old"
    before = os.pread(journal.fd, 4096, 0)
    journal.document = b"new"
    os.pwrite(journal.fd, before, 0)  # all of the new one is there, but for the word that says so
    assert successor(journal).document == b"old"


def test_maps_are_found(journal: Journal) -> None:
    maps = [DmaMap(3, n << 20, n << 12, 1 << 12) for n in range(1000)]
    for entry in maps:
        journal.add_map(entry, entry.address >> 12 & 3)
    for entry in maps[::3]:
        journal.remove_map(entry)
    later = successor(journal)
    again = DmaMap(1, 7, 1 << 40, 1 << 12)
    later.add_map(again, 9)  # into a slot that was freed
    left = [entry for entry in maps if entry not in maps[::3]]
    assert sorted(successor(later).maps(), key=lambda found: found[0].address) == [
        *((entry, entry.address >> 12 & 3) for entry in left),
        (again, 9),
    ]
    later.forget_client()
    assert successor(later).maps() == []


def test_counts_are_found(journal: Journal) -> None:
    journal.rows()[Command.REGION_READ][100] += 3
    one, two = journal.cells(1), journal.cells(2)
    one[0], two[1] = 5, 1 << 63
    later = successor(journal)
    assert later.rows()[Command.REGION_READ][100] == 3
    assert (list(later.cells(1)), list(later.cells(2))) == ([5], [0, 1 << 63])
    journal.forget_client()
    assert later.rows()[Command.REGION_READ][100] == 0
    assert one[0] == 5


class TestReplies:
    """Stopped between any two steps, it is known what the client has been told."""

    def test_not_begun(self, journal: Journal, pair: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = pair
        theirs.send(b"request")
        ours.recv(100, socket.MSG_PEEK)
        later = successor(journal)
        later.recover(ours)
        assert not later.begun
        assert not later.unsent()
        ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        assert ours.recv(100) == b"request"

    @pytest.mark.parametrize("sent", [0, 3, 5])
    def test_begun_placed_sent_consumed(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket], sent: int
    ) -> None:
        ours, theirs = pair
        theirs.send(b"request")
        ours.recv(100, socket.MSG_PEEK)
        journal.begin(0)
        assert successor(journal).begun
        journal.place(b"reply", 7)
        if sent:
            journal.send(ours.fileno(), sent)
        later = successor(journal)
        later.recover(ours)
        assert not later.begun
        assert later.unsent() == 5 - sent
        later.send(ours.fileno(), later.unsent())
        assert theirs.recv(100) == b"reply"
        assert _empty(ours)

    def test_consumed_and_the_next_is_there(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        theirs.send(b"request")
        ours.recv(100, socket.MSG_PEEK)
        journal.begin(0)
        journal.place(b"reply", 7)
        journal.send(ours.fileno(), 5)
        ours.recv(7)
        theirs.send(b"another")  # and nobody has written down that the first is gone
        later = successor(journal)
        later.recover(ours)
        assert ours.recv(100) == b"another"

    def test_unread_replies_stay(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """As many as the socket takes, over and over, so that the ring begins anew."""
        ours, theirs = pair
        ours.setblocking(False)
        placed = read = 0  # replies of 1024 bytes, each full of its number
        while placed < 3 * RING // 1024:
            with contextlib.suppress(BlockingIOError):
                while True:
                    assert journal.has_room(1024)
                    journal.place(_numbered(placed), 0)
                    placed += 1
                    journal.send(ours.fileno(), 1024)
            while read < placed:
                reply = b""
                while len(reply) < 1024:
                    reply += theirs.recv(1024 - len(reply))
                    journal.send(ours.fileno(), journal.unsent())
                assert reply == _numbered(read)
                read += 1

    def test_the_ring_begins_anew(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        for number in range(3 * RING // 65536):
            reply = number.to_bytes(4, "little") * (65536 // 4)
            assert journal.has_room(len(reply))
            journal.place(reply, 0)
            journal.send(ours.fileno(), len(reply))
            later = successor(journal)
            later.recover(ours)
            assert not later.unsent()
            assert theirs.recv(len(reply), socket.MSG_WAITALL) == reply

    def test_stopped_as_the_ring_begins_anew(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        while journal.has_room(65536) and os.lseek(journal.fd, 0, os.SEEK_CUR) < RING:
            journal.place(b"x" * 65536, 0)
            journal.send(ours.fileno(), 65536)
            theirs.recv(65536, socket.MSG_WAITALL)
        at = os.lseek(journal.fd, 0, os.SEEK_CUR)
        journal.has_room(1 << 20)
        os.lseek(journal.fd, at, os.SEEK_SET)  # the last step wasn't done
        later = successor(journal)
        later.recover(ours)
        assert not later.unsent()
        later.place(b"reply", 0)
        later.send(ours.fileno(), later.unsent())
        assert theirs.recv(100) == b"reply"

    def test_what_a_former_client_has_not_read_stays_its_own(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        journal.place(b"its own", 0)
        journal.send(ours.fileno(), 7)
        ours.close()
        journal.forget_client()
        journal.place(b"another", 0)
        assert theirs.recv(100) == b"its own"

    def test_too_large(self, journal: Journal) -> None:
        assert journal.has_room(LARGEST_REPLY)
        assert not journal.has_room(LARGEST_REPLY + 1)

    def test_the_peer_is_gone(
        self, journal: Journal, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        theirs.close()
        journal.place(b"reply", 0)
        with pytest.raises(BrokenPipeError):
            journal.send(ours.fileno(), 5)


def _numbered(number: int) -> bytes:
    return number.to_bytes(8, "little") * 128


def _empty(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False

# SPDX-License-Identifier: BSD-3-Clause
"""Each file descriptor reaches the message that it was sent with, and as few system calls do it.

Files are known by their inodes: a descriptor's number changes on its way through a socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user_bridge.limits import Limits
from vfio_user_bridge.protocol import ProtocolError
from vfio_user_bridge.transport import Connection, PeerGoneError

from .descriptors import inodes, memory_files, open_descriptors
from .wire import dma_map, message, region, set_irqs

RESET, DMA_MAP, SET_IRQS, READ, WRITE = 13, 2, 8, 9, 10
MAX_FDS = 16


class CountingSocket(socket.socket):
    """Counts the system calls that read from it."""

    reads = 0

    def recvmsg_into(self, *arguments):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().recvmsg_into(*arguments)

    def recv_into(self, *arguments):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().recv_into(*arguments)


@dataclass
class Wire:
    connection: Connection
    reader: CountingSocket
    peer: socket.socket

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        assert socket.send_fds(self.peer, [data], fds or []) == len(data)

    def receive(self) -> tuple[int, bytes, list[int]]:
        """Command, payload, and the files that came along, which are closed."""
        got = self.connection.receive()
        files = inodes(got.fds)
        got.close_fds()
        received = got.command, bytes(got.payload), files
        self.connection.done()
        return received


@contextlib.contextmanager
def a_wire(stall: float = 5.0) -> Iterator[Wire]:
    ours, theirs = socket.socketpair()
    reader = CountingSocket(fileno=ours.detach())
    connection = Connection(reader, Limits(fds=MAX_FDS, stall=stall))
    try:
        yield Wire(connection, reader, theirs)
    finally:
        theirs.close()
        connection.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with a_wire() as wire:
        yield wire


# ---- Whose they are -------------------------------------------------------------------------


def test_thirty_pipelined_maps_each_get_their_own_file(wire: Wire) -> None:
    payloads = [dma_map(number * 4096, 4096) for number in range(30)]
    with memory_files(30) as files:
        for payload, file in zip(payloads, files, strict=True):
            wire.send(message(DMA_MAP, payload), [file])
        for payload, file in zip(payloads, files, strict=True):
            assert wire.receive() == (DMA_MAP, payload, inodes([file]))
    assert wire.reader.reads == 90  # a look, one with room for files, and the bytes are consumed


@pytest.mark.parametrize("size", [0, 1, 3, 4, 16, 19, 20, 21, 24, 32])
def test_a_message_before_does_not_take_them(wire: Wire, size: int) -> None:
    with memory_files(3) as files:
        for before in (1, 2, 3):
            for _ in range(before):
                wire.send(message(RESET, bytes(size)))
            wire.send(message(SET_IRQS, set_irqs(0x24, 2, 0, 3)), files)
        for before in (1, 2, 3):
            for _ in range(before):
                assert wire.receive() == (RESET, bytes(size), [])
            assert wire.receive()[2] == inodes(files)


@pytest.mark.parametrize("payload", [set_irqs(0x24, 1, 0, 1), dma_map(0, 4096)])
def test_a_message_behind_does_not_take_them(wire: Wire, payload: bytes) -> None:
    with memory_files(1) as files:
        wire.send(message(DMA_MAP, payload) + message(RESET) * 3, files)
        assert wire.receive() == (DMA_MAP, payload, inodes(files))
    for _ in range(3):
        assert wire.receive() == (RESET, b"", [])


def test_all_that_are_allowed_arrive_in_order(wire: Wire) -> None:
    with memory_files(MAX_FDS) as files:
        wire.send(message(SET_IRQS, set_irqs(0x24, 2, 0, MAX_FDS)), files)
        assert wire.receive()[2] == inodes(files)


def test_descriptors_are_not_for_programs_that_are_started(wire: Wire) -> None:
    with memory_files(1) as files:
        wire.send(message(DMA_MAP, dma_map(0, 4096)), files)
        got = wire.connection.receive()
        assert not os.get_inheritable(got.fds[0])
        got.close_fds()


@dataclass(frozen=True)
class Sending:
    """A message of *size* bytes with *files* files, cut into pieces after each of *cuts* bytes."""

    size: int
    files: int
    cuts: frozenset[int]


bare = st.builds(
    Sending,
    st.sampled_from([16, 17, 20, 32, 36, 40, 48, 300]),
    st.just(0),
    st.frozensets(st.integers(1, 50), max_size=4),
)
with_files = st.builds(
    Sending,
    st.sampled_from([36, 37, 48, 300]),
    st.integers(1, 3),
    st.frozensets(st.integers(1, 50), max_size=4),
)


def pieces(sendings: list[Sending], joined: bool) -> Iterator[tuple[bytes, int, int]]:
    """What to send at once: bytes, how many files with it, how many messages are whole after it.

    With *joined*, a piece without files goes along with the one before.
    """
    waiting, files, whole = b"", 0, 0
    for number, sending in enumerate(sendings):
        data = message(number, bytes([number]) * (sending.size - 16))
        cuts = [0, *sorted(cut for cut in sending.cuts if cut < sending.size), sending.size]
        for start, end in pairwise(cuts):
            fresh = start == 0 and sending.files
            if waiting and (fresh or not joined):
                yield waiting, files, whole
                waiting, files = b"", 0
            waiting += data[start:end]
            files += sending.files if fresh else 0
            whole += end == sending.size
    yield waiting, files, whole


@settings(max_examples=500)
@given(st.lists(bare | with_files, min_size=1, max_size=8), st.booleans(), st.booleans())
def test_however_messages_are_cut_and_joined_they_keep_their_files(
    sendings: list[Sending], joined: bool, eager: bool
) -> None:
    """*eager*: each message is received as soon as it is whole, not when all have been sent."""
    with a_wire() as wire, memory_files(24) as files:
        unsent, received = iter(files), list[tuple[int, bytes, list[int]]]()
        for data, count, whole in pieces(sendings, joined):
            wire.send(data, [next(unsent) for _ in range(count)])
            while eager and len(received) < whole:
                received.append(wire.receive())
        while len(received) < len(sendings):
            received.append(wire.receive())
        unseen = iter(inodes(files))
        assert received == [
            (number, bytes([number]) * (s.size - 16), [next(unseen) for _ in range(s.files)])
            for number, s in enumerate(sendings)
        ]


# ---- None is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [message(RESET), message(DMA_MAP, dma_map(0, 4096)), b"half"])
def test_more_than_are_allowed_break_the_protocol(data: bytes) -> None:
    with memory_files(MAX_FDS + 1) as files:
        before = open_descriptors()
        with a_wire() as wire:
            wire.send(data, files)
            with pytest.raises(ProtocolError, match="more file descriptors"):
                wire.receive()
        assert open_descriptors() == before


def test_more_than_are_allowed_in_several_pieces_break_it_too() -> None:
    data = message(WRITE, region(0, 0, bytes(64)))
    with memory_files(MAX_FDS) as files:
        before = open_descriptors()
        with a_wire() as wire:
            for start in range(0, len(data), 24):
                wire.send(data[start : start + 24], files)
            with pytest.raises(ProtocolError, match="more file descriptors"):
                wire.receive()
        assert open_descriptors() == before


def test_what_no_message_claims_is_closed() -> None:
    with memory_files(3) as files:
        before = open_descriptors()
        for data in (b"", message(RESET)):
            with a_wire() as wire:
                wire.send(data + message(DMA_MAP, dma_map(0, 4096))[:20], files)
                wire.peer.close()
                with contextlib.suppress(PeerGoneError):
                    while True:
                        wire.receive()
            assert open_descriptors() == before


def test_what_waits_in_the_socket_is_closed() -> None:
    with memory_files(3) as files:
        before = open_descriptors()
        with a_wire() as wire:
            for _ in range(5):
                wire.send(message(DMA_MAP, dma_map(0, 4096)), files)
            wire.receive()
        assert open_descriptors() == before


def test_a_file_that_fails_to_close_does_not_keep_the_others(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a file system of the client's may, which answers for it (fuse(4), FUSE_FLUSH)."""
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOSPC, "no space left on device")

    with memory_files(3) as files:
        before = open_descriptors()
        wire.send(message(SET_IRQS, set_irqs(0x24, 1, 0, 3)), files)
        received = wire.connection.receive()
        with monkeypatch.context() as hostile:
            hostile.setattr(os, "close", fail)
            received.close_fds()
        assert open_descriptors() == before


# ---- System calls ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reads"),
    [
        (message(READ, region(0, 7, 4)), 2),
        (message(WRITE, region(0, 7, b"8 bytes.")), 2),
        (message(RESET), 3),
        (message(DMA_MAP, dma_map(0, 4096)), 3),
        (message(WRITE, region(0, 7, bytes(10_000))), 2),
    ],
)
def test_a_message_takes_no_more_reads_than_this_alone_or_in_a_queue(
    wire: Wire, data: bytes, reads: int
) -> None:
    wire.send(data)
    wire.receive()
    assert wire.reader.reads == reads
    for _ in range(10):
        wire.send(data)
    for _ in range(10):
        wire.receive()
    assert wire.reader.reads <= 11 * reads

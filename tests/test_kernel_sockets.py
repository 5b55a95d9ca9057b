# SPDX-License-Identifier: BSD-3-Clause
"""What taking a conversation over rests on: trials of UNIX stream sockets, of the kernel alone.

docs/developers/handover.md says what each is for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections.abc import Callable, Iterator

import pytest

from .descriptors import inodes, memory_files

SO_PEEK_OFF = 42  # asm-generic/socket.h
NOW = socket.MSG_DONTWAIT
PEEK = socket.MSG_PEEK | NOW
MESSAGE = b"0123456789"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Who writes, and who reads with a peek offset of 0."""
    writer, reader = socket.socketpair()
    with writer, reader:
        writer.setblocking(False)
        reader.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        yield writer, reader


@pytest.fixture
def memory() -> Iterator[int]:
    with memory_files(1, 64 << 20) as (fd,):
        yield fd


Pair = tuple[socket.socket, socket.socket]


def offset(reader: socket.socket) -> int:
    return reader.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)


def receive(reader: socket.socket, size: int, flags: int = NOW) -> tuple[bytes, list[int]]:
    """Bytes, and the inodes of the files that came with them (socket.recv_fds loses its flags)."""
    data, ancillary, _, _ = reader.recvmsg(size, socket.CMSG_SPACE(16), flags)
    fds = array("i", b"".join(message for _, _, message in ancillary)).tolist()
    try:
        return data, inodes(fds)
    finally:
        for fd in fds:
            os.close(fd)


def elsewhere(action: Callable[[], object]) -> None:
    """Do it in another process, which then is gone."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


# ---- SO_PEEK_OFF ------------------------------------------------------------------------------


def test_the_offset_counts_peeks_up_and_reads_down(pair: Pair) -> None:
    writer, reader = pair
    writer.send(MESSAGE)
    seen = []
    for size, flags in ((4, PEEK), (3, PEEK), (4, NOW), (3, NOW), (3, NOW)):
        seen.append((reader.recv(size, flags), offset(reader)))
    assert seen == [(b"0123", 4), (b"456", 7), (b"0123", 3), (b"456", 0), (b"789", 0)]


def test_what_was_never_peeked_takes_it_to_0_and_no_further(pair: Pair) -> None:
    writer, reader = pair
    writer.send(MESSAGE)
    reader.recv(4, PEEK)
    assert reader.recv(len(MESSAGE), NOW) == MESSAGE
    assert offset(reader) == 0


def test_it_outlives_who_peeked_and_who_read(pair: Pair) -> None:
    writer, reader = pair
    writer.send(MESSAGE)
    elsewhere(lambda: reader.recv(6, PEEK))
    assert offset(reader) == 6
    elsewhere(lambda: reader.recv(4, NOW))
    assert offset(reader) == 2


def test_set_to_0_all_is_seen_again(pair: Pair) -> None:
    writer, reader = pair
    writer.send(MESSAGE)
    reader.recv(6, PEEK)
    reader.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    assert reader.recv(len(MESSAGE), PEEK) == MESSAGE


def test_a_peek_beyond_what_is_there_waits(pair: Pair) -> None:
    """Though poll() says that there is something to read."""
    writer, reader = pair
    writer.send(MESSAGE)
    reader.recv(len(MESSAGE), PEEK)
    with pytest.raises(BlockingIOError):
        reader.recv(1, PEEK)


# ---- Descriptors ------------------------------------------------------------------------------


def test_each_peek_duplicates_descriptors_and_leaves_them_to_the_reader(pair: Pair) -> None:
    writer, reader = pair
    with memory_files(2) as files:
        socket.send_fds(writer, [MESSAGE], files)
        sent = inodes(files)
    assert receive(reader, 4, PEEK) == (MESSAGE[:4], sent)
    assert receive(reader, 6, PEEK) == (MESSAGE[4:], sent)
    assert receive(reader, 4) == (MESSAGE[:4], sent)
    assert receive(reader, 6) == (MESSAGE[4:], [])


def test_a_peek_sees_no_further_than_a_message_with_descriptors(pair: Pair) -> None:
    writer, reader = pair
    with memory_files(2) as files:
        first, second = inodes(files)
        for fd in files:
            socket.send_fds(writer, [MESSAGE], [fd])
    assert receive(reader, 100, PEEK) == (MESSAGE, [first])
    assert receive(reader, 100, PEEK) == (MESSAGE, [second])


# ---- sendfile() from a memfd ------------------------------------------------------------------


def fill(writer: socket.socket, memory: int, size: int) -> int:
    """Send as many replies of *size* bytes as can lie unread; gives how many."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while os.sendfile(writer.fileno(), memory, None, size) == size:
            count += 1
    return count


def position(memory: int) -> int:
    return os.lseek(memory, 0, os.SEEK_CUR)


def test_the_position_is_what_went_for_every_process(pair: Pair, memory: int) -> None:
    writer, reader = pair
    elsewhere(lambda: fill(writer, memory, 100_000))
    sent = position(memory)
    assert sent > 0
    got = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            got += len(reader.recv(1 << 20, NOW))
    assert got == sent


def test_what_is_unread_are_the_files_own_pages(pair: Pair, memory: int) -> None:
    """So they must stay as they are until they have been read."""
    writer, reader = pair
    os.pwrite(memory, b"before", 0)
    os.sendfile(writer.fileno(), memory, None, 6)
    os.pwrite(memory, b"after!", 0)
    assert reader.recv(6) == b"after!"


@pytest.mark.parametrize("size", [16, 36, 64, 1024, 4096, 65536, 1 << 20])
def test_no_more_than_this_is_ever_unread(pair: Pair, memory: int, size: int) -> None:
    """Twice SO_SNDBUF: the last message may begin while one byte is free (sock_alloc_send_pskb).

    Small replies are fewer still, since each counts for what its sk_buff takes as well.
    """
    writer, _ = pair
    count = fill(writer, memory, size)
    limit = writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert 0 < position(memory) <= 2 * limit
    assert count < limit // 512

# SPDX-License-Identifier: BSD-3-Clause
"""Target: `transport.Connection`, reading from a peer that sends any bytes in any pieces.

Property: what comes out are the messages of which the stream consists, as their headers say, until
one is cut short (PeerGoneError) or can't be (ProtocolError). The descriptors that come with the
start of a message are that message's, or nobody's if it is a trapped access; none is left open.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from integration.fuzz import fed
from integration.fuzz.files import opened
from integration.fuzz.leaks import Leaks
from integration.fuzz.pieces import Piece, unpack
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.protocol import HEADER, Command, Header, ProtocolError
from vfio_user_bridge.transport import Message, PeerGoneError

#: As in a session, where a message may be larger than the first, for which there is a buffer.
LIMITS = Limits(version=1 << 10)
LARGEST = 1 << 12
ACCESSES = (Command.REGION_READ, Command.REGION_WRITE)
#: bytes of the shortest message that can bring descriptors: SET_IRQS
SHORTEST_OWNER = 36
#: pieces that fit into a socket's buffer, each with the kernel's overhead
MOST_AT_ONCE = 16


@contextmanager
def target() -> Iterator[Callable[[bytes], None]]:
    leaks = Leaks()
    with opened() as files:

        def run(data: bytes) -> None:
            with leaks.none():
                converse(unpack(data), files)

        yield run


def converse(pieces: Sequence[Piece], files: Sequence[int]) -> None:
    stream = b"".join(piece.data for piece in pieces)
    sizes, broken = layout(stream)
    owned = owners(pieces, sizes)
    received = 0
    with fed.connection(partial(peer, pieces, files), LIMITS) as connection:
        connection.max_size = LARGEST
        end: Exception
        try:
            for at, size in sizes.items():
                message = connection.receive()
                try:
                    check(message, stream[at : at + size])
                    if owned is not None:
                        sent = [files[number % len(files)] for number in owned.get(at, ())]
                        lost = message.command in ACCESSES and not message.fds
                        assert lost or same_files(message.fds, sent), (
                            f"{message.fds} instead of {sent}"
                        )
                finally:
                    message.close_fds()
                received += 1
            message = connection.receive()
            message.close_fds()
            raise AssertionError("a message that nobody sent")
        except (PeerGoneError, ProtocolError) as error:
            end = error
    if owned is not None:
        assert received == len(sizes), end
        assert isinstance(end, ProtocolError) == broken, end


def layout(stream: bytes) -> tuple[dict[int, int], bool]:
    """Where whole messages begin, and their sizes; whether what follows can't be one."""
    sizes: dict[int, int] = {}
    at = 0
    while at + HEADER.size <= len(stream):
        size = Header.unpack(stream[at : at + HEADER.size]).size
        if not HEADER.size <= size <= LARGEST:
            return sizes, True
        if at + size > len(stream):
            break
        sizes[at] = size
        at += size
    return sizes, False


def owners(pieces: Sequence[Piece], sizes: Mapping[int, int]) -> dict[int, tuple[int, ...]] | None:
    """Whose the files are, if each comes with the start of a message that may have so many."""
    found: dict[int, tuple[int, ...]] = {}
    at = 0
    for piece in pieces:
        if piece.data and piece.files:
            if sizes.get(at, 0) < SHORTEST_OWNER or len(piece.files) > LIMITS.fds:
                return None
            found[at] = piece.files
        at += len(piece.data)
    return found


def peer(pieces: Sequence[Piece], files: Sequence[int], sock: socket.socket) -> Iterator[bool]:
    """Sends piece after piece, each when the last was read, unless it says AT_ONCE."""
    waiting = 0
    for piece in pieces:
        fed.send(sock, piece, files)
        waiting += 1
        if not piece.at_once or waiting == MOST_AT_ONCE:
            yield bool(piece.data)
            waiting = 0


def check(message: Message, data: bytes) -> None:
    """It is what was sent."""
    header = Header.unpack(data)
    assert (message.id, message.command, message.flags) == (header.id, header.command, header.flags)
    assert message.payload == data[HEADER.size :]


def same_files(received: Sequence[int], sent: Sequence[int]) -> bool:
    """A descriptor's number changes on its way through a socket; the file behind it doesn't."""
    return [os.fstat(fd) for fd in received] == [os.fstat(fd) for fd in sent]

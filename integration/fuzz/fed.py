# SPDX-License-Identifier: BSD-3-Clause
"""A connection to a peer that says the next thing when it is waited for: no thread, no time."""

from __future__ import annotations

import array
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from integration.fuzz.pieces import Piece
from vfio_user_bridge.limits import Limits
from vfio_user_bridge.transport import Connection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")


class FedSocket(socket.socket):
    """Calls *feed* whenever there is nothing to read; that sends something, or says that not."""

    def __init__(self, sock: socket.socket, feed: Callable[[], bool]) -> None:
        super().__init__(fileno=sock.detach())
        self._feed = feed

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        return self._fed(partial(super().recvmsg_into, buffers, ancbufsize), flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        return self._fed(partial(super().recv_into, buffer, nbytes), flags)

    def _fed(self, read: Callable[[int], T], flags: int) -> T:
        while True:
            try:
                return read(flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._feed() and flags & socket.MSG_DONTWAIT:
                    raise


@contextmanager
def connection(
    story: Callable[[socket.socket], Iterator[bool]], limits: Limits
) -> Iterator[Connection]:
    """A connection whose peer is *story*: at its end it hangs up for writing.

    :param story: does the next thing with its socket, and gives whether it has sent anything
    """
    ours, theirs = socket.socketpair()
    with theirs:
        told = story(theirs)

        def feed() -> bool:
            try:
                sent = next(told, None)
            except OSError as error:
                # The reader would take it for one of its own socket.
                raise AssertionError(f"the peer can't go on: {error}") from error
            if sent is None:
                theirs.shutdown(socket.SHUT_WR)
            return sent is None or sent

        fed = Connection(FedSocket(ours, feed), limits)
        try:
            yield fed
        finally:
            fed.close()


def send(sock: socket.socket, piece: Piece, files: Sequence[int]) -> None:
    """Send *piece*, which must fit into the socket's buffer; without bytes there are no files."""
    chosen = array.array("i", (files[number % len(files)] for number in piece.files))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, chosen)] if chosen else []
    if piece.data:
        sent = sock.sendmsg([piece.data], rights, socket.MSG_DONTWAIT)
        assert sent == len(piece.data)

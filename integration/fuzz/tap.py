# SPDX-License-Identifier: BSD-3-Clause
"""A socket for QEMU that leads to the bridge's, and keeps what QEMU says on it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from integration.fuzz.files import EVENTFD, RAM
from integration.fuzz.pieces import Piece

HEADER_SIZE = 16
SIZE = slice(4, 8)  # of the message, in its header
MOST_FDS = 16


@contextmanager
def tap(path: Path, bridge: Path) -> Iterator[list[Piece]]:
    """Stand at *path* for the socket *bridge*, for one client; gives its messages as they come.

    They are all there when the block ends, in which the client must have come and gone.
    """
    messages: list[Piece] = []
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as theirs,
    ):
        theirs.connect(str(bridge))
        listener.bind(str(path))
        listener.listen()
        relay = Thread(target=_relay, args=(listener, theirs, messages), daemon=True)
        relay.start()
        yield messages
        relay.join()


def _relay(listener: socket.socket, bridge: socket.socket, messages: list[Piece]) -> None:
    client, _ = listener.accept()
    with client:
        back = Thread(target=_answers, args=(bridge, client), daemon=True)
        back.start()
        # Both ends go without notice: a QEMU under qtest is killed.
        with suppress(EOFError, ConnectionError):
            while True:
                data, fds = _message(client)
                messages.append(Piece(data, tuple(_kind(fd) for fd in fds)))
                _pass_on(bridge, data, fds)
        bridge.shutdown(socket.SHUT_WR)
        back.join()


def _answers(bridge: socket.socket, client: socket.socket) -> None:
    with suppress(ConnectionError):
        while True:
            data, fds, _, _ = socket.recv_fds(bridge, 1 << 16, MOST_FDS)
            if not data:
                break
            _pass_on(client, data, fds)


def _message(client: socket.socket) -> tuple[bytes, list[int]]:
    """A whole message and its files, which come with its first byte.

    :raise EOFError: there is none any more
    """
    head, fds, _, _ = socket.recv_fds(client, HEADER_SIZE, MOST_FDS)
    data = head + _exactly(client, HEADER_SIZE - len(head))
    size = int.from_bytes(data[SIZE], sys.byteorder)
    return data + _exactly(client, size - HEADER_SIZE), fds


def _exactly(client: socket.socket, count: int) -> bytes:
    data = client.recv(count, socket.MSG_WAITALL) if count else b""
    if len(data) < count:
        raise EOFError
    return data


def _pass_on(to: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    try:
        sent = socket.send_fds(to, [data], fds)
        to.sendall(data[sent:])
    finally:
        for fd in fds:
            os.close(fd)


def _kind(fd: int) -> int:
    return EVENTFD if "eventfd" in str(Path(f"/proc/self/fd/{fd}").readlink()) else RAM

# SPDX-License-Identifier: BSD-3-Clause
"""Open files on their way through a UNIX socket (unix(7), SCM_RIGHTS).

The kernel hands descriptors out with the first byte of the segment (skb) that they were sent with,
and ends a read after such a segment (unix_stream_read_generic). Peeking also ends there, and not
before it, not even where there is no room for more bytes: so it finds descriptors that came behind
what was asked for. But it ends where a byte can't be written, which is what `NOWHERE` is for.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Sequence

from .protocol import Buffer

_FD_SIZE = array.array("i").itemsize

#: room for a byte that can't be written: no process has anything at its lowest addresses
NOWHERE = ctypes.c_char.from_address(1)

#: what recvmsg gives beside the bytes
Control = Iterable[tuple[int, int, bytes]]


def room(count: int) -> int:
    """The bytes that recvmsg needs for so many descriptors."""
    return socket.CMSG_SPACE(count * _FD_SIZE)


#: room for as many as the kernel lets anyone send at once (SCM_MAX_FD)
_ALL = room(253)


def descriptors(control: Control) -> list[int]:
    found = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) // _FD_SIZE * _FD_SIZE])
    return list(found)


def close_all(fds: list[int]) -> None:
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
        size, _ALL, flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    return data, descriptors(control)


def send_all(sock: socket.socket, data: Buffer, fds: Sequence[int]) -> None:
    """Send *data* with the files *fds*, none or some; all of them go with the first byte.

    :raise OSError: as sendmsg(2); EAGAIN if that took as long as SO_SNDTIMEO allows
    """
    sent = sock.sendmsg((data,), _rights(fds))
    send_rest(sock, data, sent)


def send_rest(sock: socket.socket, data: Buffer, sent: int) -> None:
    """Send *data* from byte *sent* on. (socket.sendall() looks at Python's timeout, not ours.)"""
    while sent < len(data):
        sent += sock.send(memoryview(data)[sent:])


def send_to(sock: socket.socket, address: bytes, data: bytes, fds: Sequence[int]) -> None:
    """Send a datagram to *address*, with the files *fds*, none or some."""
    sock.sendmsg((data,), _rights(fds), 0, address)


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []

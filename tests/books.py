# SPDX-License-Identifier: BSD-3-Clause
"""The books of a connection as simple as they can be: a word and a ring of replies, in a memfd."""

from __future__ import annotations

import mmap
import os
import socket

from vfio_user_bridge.protocol import Buffer
from vfio_user_bridge.transport import SO_PEEK_OFF

PAGE = 4096
BUSY = 1 << 63


class RingBooks:
    """What a predecessor has kept in *fd*, if that is given, is there.

    The word has: busy (1 bit), handled (31), the end of the replies in the ring (32).
    """

    def __init__(self, ring: int = 1 << 20, fd: int = -1) -> None:
        self.fd = fd
        if fd < 0:
            self.fd = os.memfd_create("books")
            os.ftruncate(self.fd, PAGE + ring)
            os.lseek(self.fd, PAGE, os.SEEK_SET)
        self._memory = mmap.mmap(self.fd, 0)
        self._view = memoryview(self._memory)
        self._word = self._view[:8].cast("Q")
        self._ring = self._view[PAGE:]
        self._end = self._word[0] & 0xFFFF_FFFF

    def begin(self, handled: int) -> None:
        self._word[0] = BUSY | handled << 32 | self._end

    def place(self, reply: Buffer, handled: int) -> None:
        start = self._end
        end = self._end = start + len(reply)
        self._ring[start:end] = reply
        self._word[0] = handled << 32 | end

    def skip(self, handled: int) -> None:
        self._word[0] = handled << 32 | self._end

    def consumed(self) -> None:
        self._word[0] = self._end

    def has_room(self, size: int) -> bool:
        if self._end + size > len(self._ring):
            self._end = 0
            self._word[0] &= ~0xFFFF_FFFF
            os.lseek(self.fd, PAGE, os.SEEK_SET)
        return size <= len(self._ring) // 2

    def send(self, sock: int, size: int) -> None:
        while size:
            size -= os.sendfile(sock, self.fd, None, size)

    def close(self) -> None:
        for view in (self._word, self._ring, self._view):
            view.release()
        self._memory.close()
        os.close(self.fd)

    # ---- For a successor ---------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._word[0] & BUSY)

    @property
    def unsent(self) -> int:
        return max(0, self._end - (os.lseek(self.fd, 0, os.SEEK_CUR) - PAGE))

    def handled(self, sock: socket.socket) -> int:
        """Bytes at the head of the queue that are done with, and still there."""
        there = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) > 0
        return (self._word[0] & ~BUSY) >> 32 if there else 0

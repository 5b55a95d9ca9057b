# SPDX-License-Identifier: BSD-3-Clause
"""What a device's client and its bridge are at, in memory that outlives the bridge.

One memfd for each device, of a sealed size. All of it is written so that the bridge may be killed
between any two stores: what isn't valid yet is written first, and one store of 8 bytes makes it so.

::

    words      FORMAT, COMMIT, DOCUMENT, AGAIN: one page
    cells      counts that devices keep (`cells`): one page
    rows       counters.Counters.rows
    documents  two copies, of which DOCUMENT names the valid one
    replies    a ring; the file's own position says how far they were sent
    maps       DMA maps, a slot each; a slot without flags is free

COMMIT is what becomes of messages: where the last reply ends, how many bytes at the head of the
socket's queue have been answered, and whether the message behind those was begun, or taken away.

Replies leave by sendfile(), for which the kernel moves the file's position: a successor knows to
the byte what was sent. The kernel passes the pages by reference, so a reply must stay as it is
until the client has read it: SO_SNDBUF bounds what it may leave unread (`BookedOutbox` sees to it
that it does), and the ring is larger.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from struct import Struct

from vfio_user_bridge.counters import BUCKETS, Rows
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.protocol import Buffer, Command
from vfio_user_bridge.transport import SO_PEEK_OFF

#: of all that this file lays down; with another, a successor can't read it
FORMAT = 1
_FORMAT, _COMMIT, _DOCUMENT, _AGAIN = range(4)

_PAGE = 4096
_WORD = 8
_CELLS = _PAGE
_ROWS = 2 * _PAGE
_ROW = BUCKETS * _WORD
_MOST_COMMANDS = 32
_DOCUMENTS = _ROWS + -(-_MOST_COMMANDS * _ROW // _PAGE) * _PAGE
#: what a document may take, in bytes
DOCUMENT_SIZE = 1 << 19
_REPLIES = _DOCUMENTS + 2 * DOCUMENT_SIZE
#: what the ring takes, in bytes; clients may leave 1 MiB unread at most
RING = 1 << 22
#: a reply of more bytes isn't placed in it
LARGEST_REPLY = 1 << 20
_MAPS = _REPLIES + RING
#: flags, number of the file (from 1; 0: none), offset, address, size
_MAP = Struct("=IIQQQ")
_FLAGS = Struct("=I")

_TAIL_BITS = 32
_TAIL = (1 << _TAIL_BITS) - 1
_HANDLED = (1 << 30) - 1
_BUSY = 1 << 62
_TAKEN = 1 << 63


class Journal:
    """In the memfd *fd*, which is this one's to close.

    :raise BridgeError: another version of the bridge has written it
    """

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size < _MAPS + _MAP.size:
            raise BridgeError("it left no journal that makes sense")
        self.fd = fd
        self._memory = mmap.mmap(fd, size)
        self._view = memoryview(self._memory)
        self._words = self._view[:_PAGE].cast("Q")
        if self._words[_FORMAT] != FORMAT:
            raise BridgeError(
                f"its journal has format {self._words[_FORMAT]}, this bridge knows {FORMAT}"
            )
        self._cells = self._view[_CELLS:_ROWS].cast("Q")
        self._cells_used = 0
        self._ring = self._view[_REPLIES:_MAPS]
        self._slots = (size - _MAPS) // _MAP.size
        self._begin()

    @classmethod
    def create(cls, maps: int) -> Journal:
        """An empty one, with room for so many DMA maps.

        :raise OSError: there can't be one
        """
        fd = os.memfd_create("vfio-user-bridge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, -(-(_MAPS + maps * _MAP.size) // _PAGE) * _PAGE)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        os.pwrite(fd, FORMAT.to_bytes(_WORD, sys.byteorder), _FORMAT * _WORD)
        os.lseek(fd, _REPLIES, os.SEEK_SET)
        return cls(fd)

    def _begin(self) -> None:
        self._tail = self._words[_COMMIT] & _TAIL
        self._slot_of = {entry.address: slot for slot, entry, _ in self._used_slots()}
        self._next = max(self._slot_of.values(), default=-1) + 1
        used = set(self._slot_of.values())
        self._free = [slot for slot in range(self._next) if slot not in used]

    def close(self) -> None:
        os.close(self.fd)
        for view in (self._words, self._cells, self._ring, self._view):
            view.release()
        with contextlib.suppress(BufferError):  # somebody still counts in it
            self._memory.close()

    # ---- A client comes, and goes --------------------------------------------------------------

    def forget_client(self) -> None:
        """There is none: nothing to answer, no maps, no counts. The document comes first.

        What it has left unread are pages of the ring: they stay its own, and the next has others.
        """
        words = self._words
        words[_COMMIT] = words[_AGAIN] = 0
        for slot in self._slot_of.values():
            _FLAGS.pack_into(self._view, _MAPS + slot * _MAP.size, 0)
        self._view[_ROWS:_DOCUMENTS] = bytes(_DOCUMENTS - _ROWS)
        self._memory.madvise(mmap.MADV_REMOVE, _REPLIES, RING)
        os.lseek(self.fd, _REPLIES, os.SEEK_SET)
        self._begin()

    # ---- Messages, as `outbox.Books`: nothing here that need not be ----------------------------

    def take(self) -> None:
        self._words[_COMMIT] = _TAKEN | self._tail

    def begin(self, handled: int) -> None:
        words = self._words
        if handled:  # then it hasn't been taken
            words[_COMMIT] = _BUSY | handled << _TAIL_BITS | self._tail
        else:
            words[_COMMIT] |= _BUSY

    def place(self, reply: Buffer, handled: int) -> None:
        start = self._tail
        end = self._tail = start + len(reply)
        self._ring[start:end] = reply
        self._words[_COMMIT] = handled << _TAIL_BITS | end

    def skip(self, handled: int) -> None:
        self._words[_COMMIT] = handled << _TAIL_BITS | self._tail

    def consumed(self) -> None:
        self._words[_COMMIT] = self._tail

    def has_room(self, size: int) -> bool:
        if self._tail + size > RING:
            # In this order: a position behind the last reply means that none waits to be sent.
            self._tail = 0
            self._words[_COMMIT] &= ~_TAIL
            os.lseek(self.fd, _REPLIES, os.SEEK_SET)
        return size <= LARGEST_REPLY

    def send(self, sock: int, size: int) -> None:
        while size:
            size -= os.sendfile(sock, self.fd, None, size)

    # ---- What a predecessor left ---------------------------------------------------------------

    def recover(self, sock: socket.socket) -> None:
        """Take out of the client's socket what was answered already.

        While that is there SO_PEEK_OFF says so: the kernel adds to it what is peeked, and subtracts
        what is read.
        """
        commit = self._words[_COMMIT]
        handled = commit >> _TAIL_BITS & _HANDLED
        if handled and sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) >= handled:
            # What is behind may have been peeked, too: then not even reading would make that less.
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, handled)
            sock.recv(handled, socket.MSG_DONTWAIT)
        self._words[_COMMIT] = commit & (_TAKEN | _BUSY | _TAIL)
        if not commit & _BUSY:
            self._words[_AGAIN] = 0
        if not self.unsent():
            os.lseek(self.fd, _REPLIES + self._tail, os.SEEK_SET)

    def unsent(self) -> int:
        """How many bytes of replies wait to be sent."""
        return max(0, self._tail - (os.lseek(self.fd, 0, os.SEEK_CUR) - _REPLIES))

    @property
    def begun(self) -> bool:
        """Whether the message at the head of the queue was begun and not done with."""
        return bool(self._words[_COMMIT] & _BUSY)

    @property
    def lost(self) -> bool:
        """Whether a message that isn't done with, or a part of it, has left the queue."""
        return bool(self._words[_COMMIT] & _TAKEN)

    def again(self) -> int:
        """That message is tried once more: how often that was so before."""
        before = self._words[_AGAIN]
        self._words[_AGAIN] = before + 1
        return before

    def answered(self) -> None:
        """That message is done with: what comes next is another."""
        self._words[_AGAIN] = 0

    # ---- The document --------------------------------------------------------------------------

    @property
    def document(self) -> bytes:
        """The latest; empty if there was none."""
        which, size = self._words[_DOCUMENT] & 1, self._words[_DOCUMENT] >> 1
        start = _DOCUMENTS + which * DOCUMENT_SIZE
        return bytes(self._view[start : start + size])

    @document.setter
    def document(self, document: bytes) -> None:
        which = self._words[_DOCUMENT] & 1 ^ 1
        start = _DOCUMENTS + which * DOCUMENT_SIZE
        self._view[start : start + len(document)] = document
        self._words[_DOCUMENT] = len(document) << 1 | which

    # ---- Counts --------------------------------------------------------------------------------

    def cells(self, count: int) -> memoryview:
        """So many 8-byte integers; those who ask in the same order find what was left there."""
        start = self._cells_used
        self._cells_used += count
        if self._cells_used > len(self._cells):
            raise BridgeError(f"a policy has more than {len(self._cells)} rules: shorten it")
        return self._cells[start : start + count]

    def rows(self) -> Rows:
        """What `Counters` counts in, by command."""
        rows = self._view[_ROWS:_DOCUMENTS]
        return {
            command: rows[command * _ROW : (command + 1) * _ROW].cast("Q") for command in Command
        }

    # ---- DMA maps ------------------------------------------------------------------------------

    def add_map(self, entry: DmaMap, file: int) -> None:
        """:param file: the number of its file in the document, from 1; 0 if it has none"""
        slot = self._free.pop() if self._free else self._next
        self._next = max(self._next, slot + 1)
        assert slot < self._slots  # a client may have no more maps
        at = _MAPS + slot * _MAP.size
        _MAP.pack_into(self._view, at, 0, file, entry.offset, entry.address, entry.size)
        _FLAGS.pack_into(self._view, at, entry.flags)
        self._slot_of[entry.address] = slot

    def remove_map(self, entry: DmaMap) -> None:
        slot = self._slot_of.pop(entry.address)
        _FLAGS.pack_into(self._view, _MAPS + slot * _MAP.size, 0)
        self._free.append(slot)

    def maps(self) -> list[tuple[DmaMap, int]]:
        """Those that there are, with the numbers of their files."""
        return [(entry, file) for _, entry, file in self._used_slots()]

    def _used_slots(self) -> Iterator[tuple[int, DmaMap, int]]:
        # What was never written is zeros: looking ends where a page has nothing.
        slots = _PAGE // _MAP.size
        for first in range(0, self._slots, slots):
            at = _MAPS + first * _MAP.size
            chunk = self._view[at : at + slots * _MAP.size]
            if not any(chunk):
                return
            for number in range(len(chunk) // _MAP.size):
                flags, file, offset, address, size = _MAP.unpack_from(chunk, number * _MAP.size)
                if flags:
                    yield first + number, DmaMap(flags, offset, address, size), file

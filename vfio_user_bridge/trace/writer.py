# SPDX-License-Identifier: BSD-3-Clause
"""Writes a trace: into a mapping of its file, so that a record costs no system call.

What is written is the kernel's at once, and outlives this process however that ends. A record's
first byte is written last, and isn't 0: a reader takes a record that is there for whole.

The file is allocated ahead, so that a full disk is an `OSError` where there is one to take it, not
a SIGBUS at a store into the mapping. Whoever cuts the file meanwhile still makes it one, and ends
the process: it is its owner's to leave alone.

A successor process can go on writing: where, it is told by two numbers that are current after
each record. A record that its predecessor had begun there is overwritten.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from array import array
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from vfio_user_bridge.protocol import Buffer

from .packing import BIN32, FIXARRAY, INT16, UINT8, UINT32, UINT64, Packable, packed
from .records import Kind

#: allocated and mapped at a time, in bytes
_CHUNK = 1 << 20
#: what the last record takes at most, in bytes: there is always room for it
_END = 64

#: a READ or WRITE up to its data: all but the first byte, each field behind its marker
_ACCESS = Struct(">xBBQBQBhBBBQBIBI")
_ACCESS_FIRST = FIXARRAY | 8

now = time.monotonic_ns

if TYPE_CHECKING:
    #: the end of what is written, in bytes, and how many records that is, where it may outlive us
    Progress = memoryview | array[int]


def unkept() -> Progress:
    return array("Q", (0, 0))


class Writer:
    """A trace in the file *fd*, which is this one's to close.

    :param header: its first object, to which the time is added, and the file is empty; None to go
        on where a predecessor, or *progress*, has ended
    :param limit: the file's size at most, in bytes
    :param ended: called once if no more can be written, with the END's reason and why; the one
        that is called closes the writer
    :param progress: two numbers that are this one's from now on
    :param epoch: what times are counted from, of `now`
    :raise OSError: it can't be written, or isn't a file
    """

    def __init__(
        self,
        fd: int,
        header: dict[str, Packable] | None,
        limit: int,
        ended: Callable[[str, str], None],
        progress: Progress | None = None,
        epoch: int | None = None,
    ) -> None:
        self.fd = fd
        self.limit = limit
        self.epoch = now() if epoch is None else epoch
        self._ended = ended
        self.progress = unkept() if progress is None else progress
        self._base = 0  # where in the file the mapping begins
        self._at = 0  # where in the mapping the next record begins
        self._edge = 0  # how far into the mapping records may reach
        if header is None:
            self._clear()
            self._map(0)
            return
        self.progress[0] = self.progress[1] = 0
        first = packed({**header, "time": time.time_ns()})
        if len(first) + _END > limit:
            raise OSError(errno.EFBIG, f"{limit:,} bytes are too few")
        self._map(len(first))
        self._place(first)

    def _clear(self) -> None:
        """What a predecessor had begun goes: to a reader, zeros are the end.

        It may have the file mapped yet, so that isn't cut.
        """
        allocated = os.fstat(self.fd).st_size
        for start in range(self.size, allocated, _CHUNK):
            os.pwrite(self.fd, bytes(min(_CHUNK, allocated - start)), start)

    @property
    def size(self) -> int:
        """Of what is written so far, in bytes."""
        return self.progress[0]

    @property
    def records(self) -> int:
        return self.progress[1]

    def access(
        self,
        kind: int,
        since: int,
        latency: int,
        error: int,
        region: int,
        offset: int,
        count: int,
        data: Buffer,
    ) -> None:
        """A READ or WRITE that began at *since* (`now`): nothing here that need not be."""
        at = self._at
        size = len(data)
        start = at + _ACCESS.size
        end = start + size
        if end > self._edge:
            if self._has_room(end - at):
                self.access(kind, since, latency, error, region, offset, count, data)
            return
        window = self._window
        # fmt: off
        _ACCESS.pack_into(
            window, at,
            kind, UINT64, since - self.epoch, UINT64, latency, INT16, error,
            UINT8, region, UINT64, offset, UINT32, count, BIN32, size,
        )
        # fmt: on
        window[start:end] = data
        window[at] = _ACCESS_FIRST
        self._at = end
        progress = self.progress
        progress[0] = self._base + end
        progress[1] += 1

    def put(self, kind: Kind, since: int, latency: int, error: int, *values: Packable) -> None:
        """Any record."""
        record = packed([int(kind), since - self.epoch, latency, error, *values])
        if self._at + len(record) <= self._edge or self._has_room(len(record)):
            self._place(record)
            self.progress[1] += 1

    def close(self, reason: str) -> None:
        """Write END and let go of the file.

        :raise OSError: the room allocated ahead is still behind the end, as zeros
        """
        self._place(packed([int(Kind.END), now() - self.epoch, 0, 0, reason]))
        self._window.close()
        try:
            os.ftruncate(self.fd, self.size)
        finally:
            os.close(self.fd)

    def _place(self, record: bytes) -> None:
        at, end = self._at, self._at + len(record)
        self._window[at + 1 : end] = record[1:]
        self._window[at] = record[0]
        self._at = end
        self.progress[0] = self._base + end

    def _has_room(self, size: int) -> bool:
        """Make room for *size* bytes, or end the recording."""
        if self.size + size + _END > self.limit:
            self._ended("limit", f"it has reached its limit of {self.limit:,} bytes")
            return False
        before = self._window
        try:
            self._map(size)
        except OSError as error:
            self._ended("full", f"the file can't grow: {error.strerror}")
            return False
        before.close()
        return True

    def _map(self, size: int) -> None:
        """Map the file from the page on where the next record begins, allocated ahead.

        :raise OSError: that can't be had, and all is as it was
        """
        position = self.size
        at = position % mmap.ALLOCATIONGRANULARITY
        base = position - at
        length = min(max(_CHUNK, at + size + _END), self.limit - base)
        os.posix_fallocate(self.fd, base, length)
        self._window = mmap.mmap(self.fd, length, offset=base)
        self._base, self._at, self._edge = base, at, length - _END

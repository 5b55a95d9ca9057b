# SPDX-License-Identifier: BSD-3-Clause
"""What a model reaches by DMA: the client's memory, found by IOVA.

An access is what it is on a bus behind an IOMMU: each part of it goes where a map of the client
leads, and what no map allows is blocked, without a word to the device. Blocked reads give zeros,
as QEMU's unassigned memory does.
"""

from __future__ import annotations

import errno
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from vfio_user_bridge import memory
from vfio_user_bridge.messages import DmaFlags, DmaMap
from vfio_user_bridge.protocol import Buffer, refuse


@dataclass(frozen=True, slots=True, order=True)
class _Map:
    """IOVAs from *start* to *end*, at *address* in this process; None where no file came along."""

    start: int
    end: int
    flags: int = field(compare=False)
    address: int | None = field(compare=False)


class ClientMemory:
    """All DMA maps of one client.

    :param limit: bytes that they may have
    """

    def __init__(self, limit: int) -> None:
        self._files = memory.ClientFiles(limit)
        self._maps: list[_Map] = []  # by start; they don't overlap

    def map(self, request: DmaMap, fd: int | None) -> None:
        """:raise OSError: the file can't be mapped like this"""
        address = None
        if fd is not None:
            address = self._files.map(fd, request.offset, request.size, writable=request.writable)
        end = request.address + request.size
        insort(self._maps, _Map(request.address, end, request.flags, address))

    def unmap(self, request: DmaMap) -> None:
        """:raise OSError: ENOENT if there is no such map"""
        index = bisect_right(self._maps, request.address, key=_start) - 1
        if index < 0 or self._maps[index].start != request.address:
            raise refuse(errno.ENOENT, f"no DMA map starts at {request.address:#x}")
        gone = self._maps.pop(index)
        if gone.address is not None:
            self._files.unmap(gone.address, request.size)

    def read(self, iova: int, count: int) -> tuple[bytes, str]:
        """*count* bytes at *iova*, and what blocked some of them, "" if nothing did."""
        data, blocked = bytearray(), ""
        for address, size, why in self._pieces(iova, count, DmaFlags.READ):
            piece = bytes(size)
            if address is not None:
                try:
                    piece = memory.read(address, size)
                except OSError as error:
                    why = str(error)
            data += piece
            blocked = blocked or why
        return bytes(data), blocked

    def write(self, iova: int, data: Buffer) -> str:
        """Put *data* at *iova*. Gives what blocked some of it, "" if nothing did."""
        done, blocked = 0, ""
        for address, size, why in self._pieces(iova, len(data), DmaFlags.WRITE):
            if address is not None:
                try:
                    memory.write(address, data[done : done + size])
                except OSError as error:
                    why = str(error)
            done += size
            blocked = blocked or why
        return blocked

    def close(self) -> None:
        self._maps.clear()
        self._files.close()

    def _pieces(
        self, iova: int, count: int, access: DmaFlags
    ) -> Iterator[tuple[int | None, int, str]]:
        """Split an access at the edges of maps: (address or None, size, why it is blocked)."""
        end = iova + count
        index = max(bisect_right(self._maps, iova, key=_start) - 1, 0)
        while iova < end:
            while index < len(self._maps) and self._maps[index].end <= iova:
                index += 1
            found = self._maps[index] if index < len(self._maps) else None
            if found is None or iova < found.start:
                size = min(end, found.start if found else end) - iova
                yield None, size, f"nothing is mapped at {iova:#x}"
            else:
                size = min(end, found.end) - iova
                if found.address is None:
                    yield None, size, f"the map at {iova:#x} came without a file"
                elif not found.flags & access:
                    yield None, size, f"the map at {iova:#x} doesn't allow it"
                else:
                    yield found.address + iova - found.start, size, ""
            iova += size


def _start(found: _Map) -> int:
    return found.start

# SPDX-License-Identifier: BSD-3-Clause
"""Which client memory is mapped where: IOVA ranges that don't overlap, in order."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from .messages import DmaFlags, DmaMap
from .protocol import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_OR_WRITE = int(DmaFlags.READ | DmaFlags.WRITE)
#: maps of a block that was halved; a client's 65,535 make some hundred blocks
_BLOCK = 512


def check(request: DmaMap, page: int) -> None:
    """Refuse a map that no IOMMU could make; *page* is the smallest page, in bytes.

    :raise OSError: EINVAL, as type1 says it (vfio_dma_do_map), EOVERFLOW past the last IOVA
    """
    if not request.size or (request.address | request.size | request.offset) & (page - 1):
        raise refuse(
            errno.EINVAL,
            f"map of {request.size:#x} bytes at {request.address:#x}, file offset"
            f" {request.offset:#x}: not whole pages of {page} bytes",
        )
    if request.address + request.size > 1 << 64 or request.offset + request.size > 1 << 63:
        raise refuse(errno.EOVERFLOW, f"{request.size:#x} bytes at {request.address:#x} wrap")
    if not 0 < request.flags <= _READ_OR_WRITE:
        raise refuse(errno.EINVAL, f"map flags {request.flags:#x}")


class DmaTable:
    """The maps of one client, or of all that share a container.

    Their IOVAs are kept in order, in blocks, so that one more doesn't move all the others.
    """

    def __init__(self) -> None:
        self._maps: dict[int, DmaMap] = {}  # by IOVA
        self._blocks: list[list[int]] = []  # none is empty
        self._firsts: list[int] = []  # of each block

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[DmaMap]:
        """As they are now, oldest first; other threads may ask."""
        return iter(list(self._maps.values()))

    def overlapping(self, address: int, size: int) -> list[DmaMap]:
        """The maps that have a byte in this range, in order of IOVA."""
        found: list[DmaMap] = []
        number = self._block(address)
        for block in self._blocks[number : bisect_left(self._firsts, address + size)]:
            # Of those that start before the range, only the last can reach into it.
            low = max(bisect_right(block, address) - 1, 0)
            for start in block[low : bisect_left(block, address + size)]:
                entry = self._maps[start]
                if start + entry.size > address:
                    found.append(entry)
        return found

    def _block(self, address: int) -> int:
        """The number of the block that an IOVA is in, or would be."""
        return max(bisect_right(self._firsts, address) - 1, 0)

    def within(self, address: int, size: int) -> list[DmaMap]:
        """The maps that lie in this range, in order of IOVA.

        :raise OSError: EINVAL if the range cuts one, which type1v2 doesn't do either
        """
        found = self.overlapping(address, size)
        for edge in found[:1] + found[-1:]:
            if edge.address < address or edge.address + edge.size > address + size:
                raise refuse(
                    errno.EINVAL,
                    f"{size:#x} bytes at {address:#x} cut the map of {edge.size:#x} bytes"
                    f" at {edge.address:#x}",
                )
        return found

    def add(self, entry: DmaMap) -> None:
        """The caller has seen that nothing overlaps."""
        address, number = entry.address, self._block(entry.address)
        self._maps[address] = entry
        if not self._blocks:
            self._blocks.append([])
            self._firsts.append(address)
        block = self._blocks[number]
        insort(block, address)
        self._firsts[number] = block[0]
        if len(block) > 2 * _BLOCK:
            self._blocks.insert(number + 1, block[_BLOCK:])
            self._firsts.insert(number + 1, block[_BLOCK])
            del block[_BLOCK:]

    def remove(self, entry: DmaMap) -> None:
        del self._maps[entry.address]
        number = self._block(entry.address)
        block = self._blocks[number]
        del block[bisect_left(block, entry.address)]
        if block:
            self._firsts[number] = block[0]
        else:
            del self._blocks[number], self._firsts[number]

# SPDX-License-Identifier: BSD-3-Clause
"""Which client memory is mapped where: IOVA ranges that don't overlap, in order."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from operator import attrgetter
from typing import TYPE_CHECKING

from .messages import DmaFlags, DmaMap
from .protocol import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

_address = attrgetter("address")


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
    if not 0 < request.flags <= DmaFlags.READ | DmaFlags.WRITE:
        raise refuse(errno.EINVAL, f"map flags {request.flags:#x}")


class DmaTable:
    """The maps of one client, or of all that share a container."""

    def __init__(self) -> None:
        self._maps: list[DmaMap] = []

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[DmaMap]:
        return iter(self._maps)

    def overlapping(self, address: int, size: int) -> list[DmaMap]:
        """The maps that have a byte in this range, in order of IOVA."""
        first = bisect_right(self._maps, address, key=_address)
        if first and self._maps[first - 1].address + self._maps[first - 1].size > address:
            first -= 1
        return self._maps[first : bisect_left(self._maps, address + size, first, key=_address)]

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
        insort(self._maps, entry, key=_address)

    def remove(self, entry: DmaMap) -> None:
        del self._maps[bisect_left(self._maps, entry.address, key=_address)]

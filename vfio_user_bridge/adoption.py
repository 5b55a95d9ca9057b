# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps that a predecessor made in the kernel, made this process's own.

A map outlives the process that made it, pinned pages and all. But its pages are counted as that
process's locked memory, and its address is one of that process: so the kernel lets a new one be
given (VFIO_UPDATE_VADDR). First the old address is declared gone, then whoever tells the new one
has the pages counted as its own (vfio_change_dma_owner). The device's access goes on all the time.
"""

from __future__ import annotations

import errno
import logging

from .kernel import vfio
from .messages import DmaMap

log = logging.getLogger(__name__)


class Adoption:
    """Of the maps in *container*, that of IOMMU group *group*, while it makes no new ones."""

    def __init__(self, container: int, group: int) -> None:
        self._container = container
        self._group = group
        self._possible = vfio.container_check_extension(container, vfio.VFIO_UPDATE_VADDR)
        self._failed = False
        if not self._possible:
            self._fail("this kernel has no VFIO_UPDATE_VADDR")
        self._all_gone = self._possible and self._gone(0, 0, vfio.VFIO_DMA_UNMAP_FLAG_ALL)

    def _gone(self, iova: int, size: int, flags: int = 0) -> bool:
        """Declare addresses gone; False if one is already, by a predecessor that was killed too."""
        try:
            vfio.dma_unmap(self._container, iova, size, vfio.VFIO_DMA_UNMAP_FLAG_VADDR | flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def take(self, request: DmaMap, vaddr: int) -> bool:
        """Have the kernel's map of *request* be at *vaddr* of this process.

        Gives whether the kernel has it: of one that is just being taken back it may know no more.
        """
        if not self._possible:
            return True
        iova, size = request.address, request.size
        try:
            if not self._all_gone:
                self._gone(iova, size)
            vfio.dma_map(self._container, vfio.VFIO_DMA_MAP_FLAG_VADDR, vaddr, iova, size)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return False
            self._fail(
                f"{error.strerror}; RLIMIT_MEMLOCK may be too small (LimitMEMLOCK= in a unit)"
            )
        return True

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning(
                "IOMMU group %d: guest memory that is locked already isn't counted as this"
                " process's: %s",
                self._group,
                why,
            )

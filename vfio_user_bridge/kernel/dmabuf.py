# SPDX-License-Identifier: BSD-3-Clause
"""A region as a file of its own, a dma-buf: ``VFIO_DEVICE_FEATURE_DMA_BUF``, since Linux 6.19.

Unlike the device's descriptor it is good for nothing but that region, and the kernel revokes it as
the device is closed (vfio_pci_dma_buf_cleanup). Whether it can be mapped is for the kernel to say:
7.3 exports for other devices only.
"""

from __future__ import annotations

import mmap
import os
from fcntl import ioctl
from struct import Struct

from .vfio import VFIO_DEVICE_FEATURE

VFIO_DEVICE_FEATURE_GET = 1 << 16
VFIO_DEVICE_FEATURE_DMA_BUF = 11

#: argsz, flags: struct vfio_device_feature
_FEATURE = Struct("=II")
#: region_index, open_flags, flags, nr_ranges: struct vfio_device_feature_dma_buf
_DMA_BUF = Struct("=IIII")
#: offset, length: struct vfio_region_dma_range
_RANGE = Struct("=QQ")


def export(device: int, region: int, size: int) -> int:
    """A new descriptor of all *size* bytes of a region.

    :raise OSError: ENOTTY if the kernel has no such feature, EOPNOTSUPP if the device hasn't
    """
    argsz = _FEATURE.size + _DMA_BUF.size + _RANGE.size
    request = bytearray(
        _FEATURE.pack(argsz, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
        + _DMA_BUF.pack(region, os.O_RDWR | os.O_CLOEXEC, 0, 1)
        + _RANGE.pack(0, size)
    )
    fd: int = ioctl(device, VFIO_DEVICE_FEATURE, request)
    return fd


def mappable(device: int, region: int, size: int) -> bool:
    """Whether a client could map the region by an `export` of it."""
    try:
        fd = export(device, region, size)
    except OSError:
        return False
    try:
        mmap.mmap(fd, mmap.PAGESIZE).close()
    except (OSError, ValueError):
        return False
    finally:
        os.close(fd)
    return True

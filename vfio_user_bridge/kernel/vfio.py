# SPDX-License-Identifier: BSD-3-Clause
"""``linux/vfio.h`` in Python: a function for each ioctl, raising `OSError` with the kernel's errno.

Where the vfio-user specification took over a structure of the kernel's (device, region and irq
info, irq sets, features), these functions give and take its bytes as they are: the wire's `unpack`
reads them. Sizes are in bytes. tests/test_kernel_constants.py checks every VFIO_ name here against
the real header.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fcntl import ioctl
from struct import Struct, pack_into, unpack_from

VFIO_API_VERSION = 0
VFIO_TYPE1_IOMMU = 1
VFIO_TYPE1v2_IOMMU = 3
VFIO_UPDATE_VADDR = 10

VFIO_TYPE = ord(";")
VFIO_BASE = 100

# _IO(VFIO_TYPE, VFIO_BASE + n)
VFIO_GET_API_VERSION = VFIO_TYPE << 8 | VFIO_BASE + 0
VFIO_CHECK_EXTENSION = VFIO_TYPE << 8 | VFIO_BASE + 1
VFIO_SET_IOMMU = VFIO_TYPE << 8 | VFIO_BASE + 2
VFIO_GROUP_GET_STATUS = VFIO_TYPE << 8 | VFIO_BASE + 3
VFIO_GROUP_SET_CONTAINER = VFIO_TYPE << 8 | VFIO_BASE + 4
VFIO_GROUP_UNSET_CONTAINER = VFIO_TYPE << 8 | VFIO_BASE + 5
VFIO_GROUP_GET_DEVICE_FD = VFIO_TYPE << 8 | VFIO_BASE + 6
VFIO_DEVICE_GET_INFO = VFIO_TYPE << 8 | VFIO_BASE + 7
VFIO_DEVICE_GET_REGION_INFO = VFIO_TYPE << 8 | VFIO_BASE + 8
VFIO_DEVICE_GET_IRQ_INFO = VFIO_TYPE << 8 | VFIO_BASE + 9
VFIO_DEVICE_SET_IRQS = VFIO_TYPE << 8 | VFIO_BASE + 10
VFIO_DEVICE_RESET = VFIO_TYPE << 8 | VFIO_BASE + 11
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = VFIO_TYPE << 8 | VFIO_BASE + 12
VFIO_DEVICE_PCI_HOT_RESET = VFIO_TYPE << 8 | VFIO_BASE + 13
VFIO_IOMMU_GET_INFO = VFIO_TYPE << 8 | VFIO_BASE + 12
VFIO_IOMMU_MAP_DMA = VFIO_TYPE << 8 | VFIO_BASE + 13
VFIO_IOMMU_UNMAP_DMA = VFIO_TYPE << 8 | VFIO_BASE + 14
VFIO_DEVICE_FEATURE = VFIO_TYPE << 8 | VFIO_BASE + 17

VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1

VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3

VFIO_DMA_MAP_FLAG_VADDR = 1 << 2
VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1
VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2

VFIO_IOMMU_INFO_CAPS = 1 << 1
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3

VFIO_DEVICE_FEATURE_MIGRATION = 1
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2

#: argsz, flags: struct vfio_group_status
GROUP_STATUS = Struct("=II")
#: argsz, flags, num_regions, num_irqs, cap_offset, pad: struct vfio_device_info
DEVICE_INFO = Struct("=IIIIII")
#: argsz, flags, index, cap_offset, size, offset: struct vfio_region_info
REGION_INFO = Struct("=IIIIQQ")
#: argsz, flags, index, count: struct vfio_irq_info
IRQ_INFO = Struct("=IIII")
#: argsz, flags, count: struct vfio_pci_hot_reset_info
HOT_RESET_INFO = Struct("=III")
#: group_id, segment, bus, devfn: struct vfio_pci_dependent_device
DEPENDENT_DEVICE = Struct("=IHBB")
#: argsz, flags, count: struct vfio_pci_hot_reset
HOT_RESET = Struct("=III")
#: argsz, flags, iova_pgsizes, cap_offset: struct vfio_iommu_type1_info
IOMMU_INFO = Struct("=IIQI")
#: id, version, next: struct vfio_info_cap_header
CAP_HEADER = Struct("=HHI")
#: argsz, flags, vaddr, iova, size: struct vfio_iommu_type1_dma_map
DMA_MAP = Struct("=IIQQQ")
#: argsz, flags, iova, size: struct vfio_iommu_type1_dma_unmap
DMA_UNMAP = Struct("=IIQQ")


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


# ---- Container --------------------------------------------------------------------------------


def container_open() -> int:
    return _open("/dev/vfio/vfio")


def container_api_version(container: int) -> int:
    return ioctl(container, VFIO_GET_API_VERSION)


def container_check_extension(container: int, extension: int) -> bool:
    return ioctl(container, VFIO_CHECK_EXTENSION, extension) > 0


def container_set_iommu(container: int, kind: int) -> None:
    ioctl(container, VFIO_SET_IOMMU, kind)


@dataclass(frozen=True, slots=True)
class IommuInfo:
    """What a type1 IOMMU can map: page sizes or'ed together, (first, last) IOVAs, maps left."""

    pgsizes: int
    iova_ranges: tuple[tuple[int, int], ...]
    dma_avail: int


def iommu_info(container: int) -> IommuInfo:
    data = bytearray(IOMMU_INFO.pack(IOMMU_INFO.size, 0, 0, 0))
    ioctl(container, VFIO_IOMMU_GET_INFO, data)
    (needed,) = unpack_from("=I", data)
    if needed > len(data):
        data = bytearray(needed)
        pack_into("=I", data, 0, needed)
        ioctl(container, VFIO_IOMMU_GET_INFO, data)
    _argsz, flags, pgsizes, at = IOMMU_INFO.unpack_from(data)
    ranges: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)  # a kernel that doesn't say
    avail = 65535  # dma_entry_limit, the module's default
    while flags & VFIO_IOMMU_INFO_CAPS and at:
        kind, _version, following = CAP_HEADER.unpack_from(data, at)
        if kind == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            (count,) = unpack_from("=I", data, at + 8)
            bounds = unpack_from(f"={2 * count}Q", data, at + 16)
            ranges = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        elif kind == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            (avail,) = unpack_from("=I", data, at + 8)
        at = following
    return IommuInfo(pgsizes, ranges, avail)


def dma_map(container: int, flags: int, vaddr: int, iova: int, size: int) -> None:
    ioctl(container, VFIO_IOMMU_MAP_DMA, DMA_MAP.pack(DMA_MAP.size, flags, vaddr, iova, size))


def dma_unmap(container: int, iova: int, size: int, flags: int = 0) -> int:
    """Gives the number of bytes unmapped, or with FLAG_VADDR of those whose address is gone."""
    data = bytearray(DMA_UNMAP.pack(DMA_UNMAP.size, flags, iova, size))
    ioctl(container, VFIO_IOMMU_UNMAP_DMA, data)
    unmapped: int = DMA_UNMAP.unpack(data)[3]
    return unmapped


# ---- Group ------------------------------------------------------------------------------------


def group_open(number: int) -> int:
    """:raise OSError: EBUSY if another process has it open, ENOENT if it isn't under vfio-pci"""
    return _open(f"/dev/vfio/{number}")


def group_flags(group: int) -> int:
    """VFIO_GROUP_FLAGS_ or'ed together; a group with a container counts as viable."""
    data = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    ioctl(group, VFIO_GROUP_GET_STATUS, data)
    flags: int = GROUP_STATUS.unpack(data)[1]
    return flags


def group_set_container(group: int, container: int) -> None:
    ioctl(group, VFIO_GROUP_SET_CONTAINER, Struct("=i").pack(container))


def group_unset_container(group: int) -> None:
    """:raise OSError: EBUSY while someone has a device of it open"""
    ioctl(group, VFIO_GROUP_UNSET_CONTAINER)


def group_get_device(group: int, name: str) -> int:
    # A bytearray, since ioctl() of bytes gives the bytes back and loses the descriptor.
    device: int = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
    return device


# ---- Device -----------------------------------------------------------------------------------


def device_info(device: int) -> bytes:
    """``struct vfio_device_info``."""
    data = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0, 0, 0))
    ioctl(device, VFIO_DEVICE_GET_INFO, data)
    return bytes(data)


def region_info(device: int, index: int) -> bytes:
    """``struct vfio_region_info`` with its whole capability chain.

    :raise OSError: EINVAL where there is no such region
    """
    data = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
    ioctl(device, VFIO_DEVICE_GET_REGION_INFO, data)
    (needed,) = unpack_from("=I", data)
    if needed > len(data):
        data = bytearray(needed)
        REGION_INFO.pack_into(data, 0, needed, 0, index, 0, 0, 0)
        ioctl(device, VFIO_DEVICE_GET_REGION_INFO, data)
    return bytes(data)


def irq_info(device: int, index: int) -> bytes:
    """``struct vfio_irq_info``.

    :raise OSError: EINVAL where there is no such interrupt type
    """
    data = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
    ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, data)
    return bytes(data)


def set_irqs(device: int, request: bytes) -> int:
    """*request* is a ``struct vfio_irq_set`` with its data.

    Gives 0, or where the platform has too few vectors the number that it has: nothing is set then.
    """
    vectors: int = ioctl(device, VFIO_DEVICE_SET_IRQS, bytearray(request))
    return vectors


def device_reset(device: int) -> None:
    ioctl(device, VFIO_DEVICE_RESET)


def hot_reset_info(device: int) -> list[tuple[int, str]]:
    """IOMMU group and BDF of every function that resetting the slot or bus would reset.

    :raise OSError: ENODEV if neither can be reset
    """
    data = bytearray(HOT_RESET_INFO.pack(HOT_RESET_INFO.size, 0, 0))
    try:
        ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, data)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # which says how many there are
            raise
    count = HOT_RESET_INFO.unpack(data)[2]
    size = HOT_RESET_INFO.size + count * DEPENDENT_DEVICE.size
    data = bytearray(size)
    HOT_RESET_INFO.pack_into(data, 0, size, 0, 0)
    ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, data)
    return [
        (group, f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}")
        for group, segment, bus, devfn in DEPENDENT_DEVICE.iter_unpack(data[HOT_RESET_INFO.size :])
    ]


def hot_reset(device: int, groups: Sequence[int]) -> None:
    """Reset the slot or bus of *device*; *groups* are descriptors of all groups concerned."""
    fds = Struct(f"={len(groups)}i").pack(*groups)
    size = HOT_RESET.size + len(fds)
    ioctl(device, VFIO_DEVICE_PCI_HOT_RESET, HOT_RESET.pack(size, 0, len(groups)) + fds)


def device_feature(device: int, request: bytes) -> bytes:
    """*request* is a ``struct vfio_device_feature`` with room for the answer."""
    data = bytearray(request)
    ioctl(device, VFIO_DEVICE_FEATURE, data)
    return bytes(data)

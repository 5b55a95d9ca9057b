# SPDX-License-Identifier: BSD-3-Clause
"""A process that sets up kernel VFIO, hands its descriptors over, and dies when it is told to.

What outlives it is driven by the one that got the descriptors: by pread() and pwrite() of the
device's, without a bridge.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle  # nosec B403 - from our own child
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from integration import devices
from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.kernel import pci, vfio
from vfio_user_bridge.messages import IrqSet, RegionInfo

BDF = devices.EDU_ALONE
READ_WRITE = 3  # VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE


def group() -> int:
    number = pci.find(BDF).iommu_group
    assert number is not None
    return number


class Setup:
    """A container with the edu device's group, and the device: three descriptors."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds
        self.container, self.group, self.device = fds

    @classmethod
    def open(cls) -> Setup:
        container, node = vfio.container_open(), vfio.group_open(group())
        vfio.group_set_container(node, container)
        vfio.container_set_iommu(container, vfio.VFIO_TYPE1v2_IOMMU)
        return cls([container, node, vfio.group_get_device(node, BDF)])

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def map(self, ram: int, iova: int, size: int) -> int:
        """Map all of a file at *iova*; gives where it is in this process."""
        vaddr = address(ram, size)
        vfio.dma_map(self.container, READ_WRITE, vaddr, iova, size)
        return vaddr

    def read(self, index: int, offset: int, size: int) -> int:
        return int.from_bytes(os.pread(self.device, size, self._at(index) + offset), "little")

    def write(self, index: int, offset: int, size: int, value: int) -> None:
        data = value.to_bytes(size, "little")
        assert os.pwrite(self.device, data, self._at(index) + offset) == size

    def enable(self) -> None:
        """Let it answer to memory accesses, and be a bus master."""
        self.write(PciRegion.CONFIG, 4, 2, 0x6)

    def bar(self) -> mmap.mmap:
        info = RegionInfo.unpack(vfio.region_info(self.device, PciRegion.BAR0))
        return mmap.mmap(self.device, info.size, offset=info.offset)

    def set_irqs(self, flags: int, index: int, *fds: int) -> None:
        data = struct.pack(f"={len(fds)}i", *fds)
        vfio.set_irqs(self.device, IrqSet(flags, index, 0, len(fds), data).pack())

    def _at(self, index: int) -> int:
        return RegionInfo.unpack(vfio.region_info(self.device, index)).offset


_views: list[mmap.mmap] = []  # never unmapped: the kernel has their addresses


def address(fd: int, size: int) -> int:
    """Map a file here for good; gives where."""
    _views.append(mmap.mmap(fd, size))
    return ctypes.addressof(ctypes.c_char.from_buffer(_views[-1]))


class Maker:
    """The other process: does *make*, hands over what that opened, and stays until `die`."""

    def __init__(self, make: Callable[[], Setup]) -> None:
        here, there = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            try:
                with there:
                    socket.send_fds(there, [b"!"], make().fds)
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        there.close()
        with here:
            _, fds, _, _ = socket.recv_fds(here, 1, 8)
        self.left = Setup(fds)

    def die(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def close(self) -> None:
        self.die()
        self.left.close()


def elsewhere(action: Callable[[], Any]) -> Any:
    """Do something in a process of its own; gives what it returned or raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            try:
                result = action()
            except OSError as error:
                result = error
            os.write(writer, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(told)  # nosec B301

# SPDX-License-Identifier: BSD-3-Clause
"""A Device that is a PCI device under kernel VFIO.

What the kernel says of regions and interrupts goes to the client as it is. BARs go by descriptor,
eventfds straight into VFIO_DEVICE_SET_IRQS, memory into the group's container: what is left here
are the trapped accesses, one pread() or pwrite() each.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

from .device import Device, DeviceFlags, PciRegion, RegionFlags
from .errors import DeviceError
from .iommu import Iommu
from .kernel import pci, vfio
from .messages import (
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    FeatureFlags,
    IrqInfo,
    IrqSet,
    IrqSetFlags,
    RegionInfo,
)
from .protocol import Buffer, refuse

log = logging.getLogger(__name__)

_PCI_COMMAND = 4
_PCI_COMMAND_MASTER = 1 << 2
#: what only matters to one who maps the region
_MAPPING_CAPABILITIES = (
    vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
)
#: device_state, data_fd: struct vfio_device_feature_mig_state
_MIG_STATE = struct.Struct("=Ii")
_FEATURES = (vfio.VFIO_DEVICE_FEATURE_MIGRATION, vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE)


class HostDevice(Device):
    """The PCI device at *bdf*.

    :param bar_mmap: whether clients may map BARs; else every access is trapped
    :raise DeviceError: it can't be had, and why
    """

    def __init__(self, bdf: str, iommu: Iommu, *, bar_mmap: bool = True) -> None:
        device = pci.find(bdf)
        obstacle = pci.obstacle(device)
        if obstacle:
            raise DeviceError(obstacle.line)
        group = device.iommu_group
        assert group is not None  # or it were an obstacle
        self.name = bdf
        self._iommu = iommu
        self._bar_mmap = bar_mmap
        self._armed: set[int] = set()  # the interrupt types that have eventfds
        self._mapped: set[int] = set()  # the IOVAs of maps that the container has from us
        self._migration = -1
        self._fd = -1
        self._container = iommu.acquire(group)
        self.pgsizes = self._container.pgsizes & ~0xFFF  # the wire's smallest page is 4 KiB
        self.max_dma_maps = min(self._container.max_maps, Device.max_dma_maps)
        try:
            self._open()
        except BaseException:
            iommu.release(self._container)
            raise

    def _open(self) -> None:
        self._fd = self._container.device(self.name)
        info = DeviceInfo.unpack(vfio.device_info(self._fd))
        known = DeviceFlags.RESET | DeviceFlags.PCI
        self._info = replace(info, flags=info.flags & known)
        self._regions = [self._region(index) for index in range(info.num_regions)]
        self._irqs = [self._irq(index) for index in range(info.num_irqs)]
        self._offsets = [region.offset for region in self._regions]

    def _region(self, index: int) -> RegionInfo:
        try:
            info = RegionInfo.unpack(vfio.region_info(self._fd, index))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return RegionInfo(index)  # no VGA on this device
        if self._bar_mmap:
            return info
        kept = tuple(c for c in info.capabilities if c.id not in _MAPPING_CAPABILITIES)
        flags = info.flags & ~(RegionFlags.MMAP | (0 if kept else RegionFlags.CAPS))
        return replace(info, flags=flags, capabilities=kept)

    def _irq(self, index: int) -> IrqInfo:
        try:
            return IrqInfo.unpack(vfio.irq_info(self._fd, index))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return IrqInfo(index)  # no error reporting on this device

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def region_info(self, index: int) -> RegionInfo:
        return self._regions[index]

    def region_fd(self, index: int) -> int:  # noqa: ARG002 - one file has them all, by offset
        return self._fd

    def irq_info(self, index: int) -> IrqInfo:
        return self._irqs[index]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, self._offsets[index] + offset)

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        os.pwrite(self._fd, data, self._offsets[index] + offset)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        if request.flags & IrqSetFlags.DATA_EVENTFD:
            # -1 takes an interrupt's eventfd away, which the wire says by sending none.
            fds = eventfds or [-1] * request.count
            request = replace(request, data=struct.pack(f"={request.count}i", *fds))
        possible = vfio.set_irqs(self._fd, request.pack())
        if possible > 0:
            raise refuse(
                errno.ENOSPC, f"the host has {possible} vectors left of {request.count} wanted"
            )
        if not request.count:
            self._armed.discard(request.index)
        elif request.flags & IrqSetFlags.ACTION_TRIGGER and eventfds:
            self._armed.add(request.index)

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        if fd is not None:
            self._container.map(request, fd)
            self._mapped.add(request.address)

    def dma_unmap(self, request: DmaMap) -> None:
        if request.address in self._mapped:
            self._container.unmap(request)
            self._mapped.remove(request.address)

    def reset(self) -> None:
        vfio.device_reset(self._fd)

    # ---- Migration: for devices whose host driver does it -----------------------------------

    def feature(self, request: DeviceFeature) -> bytes:
        number = request.flags & FeatureFlags.MASK
        if number not in _FEATURES:
            # Others hold pointers or descriptors, or are about the host.
            raise refuse(errno.ENOTTY, f"no device feature {number}")
        if request.flags & FeatureFlags.PROBE:
            data = b""
        elif request.flags & FeatureFlags.SET:
            data = _MIG_STATE.pack(*_MIG_STATE.unpack(request.data))
        else:
            data = bytes(8)
        answer = vfio.device_feature(
            self._fd,
            replace(request, argsz=DeviceFeature.FORMAT.size + len(data), data=data).pack(),
        )[DeviceFeature.FORMAT.size :]
        if number == vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE and answer:
            state, stream = _MIG_STATE.unpack(answer)
            if request.flags & FeatureFlags.SET:
                self._close_migration()
                self._migration = stream
            return _MIG_STATE.pack(state, -1)  # the stream travels in messages
        return answer

    def migration_read(self, size: int) -> bytes:
        return os.read(self._stream(), size)

    def migration_write(self, data: bytes) -> None:
        stream = self._stream()
        while data:
            data = data[os.write(stream, data) :]

    def _stream(self) -> int:
        if self._migration < 0:
            raise refuse(errno.EINVAL, "the device is neither saving nor resuming")
        return self._migration

    def _close_migration(self) -> None:
        if self._migration >= 0:
            os.close(self._migration)
            self._migration = -1

    # ---- The end of a client, and the end ---------------------------------------------------

    def quiesce(self, *, reset: bool) -> None:
        self._close_migration()
        for index in sorted(self._armed):
            off = IrqSet(IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER, index, 0, 0)
            self._try("switching interrupts off", self.set_irqs, off, ())
        self._try("switching bus mastering off", self._stop_bus_master)
        if reset:
            if self._info.flags & DeviceFlags.RESET:
                self._try("reset", self.reset)
            # The last close puts config space and power state back, and resets what only a bus
            # reset can (vfio_pci_core_disable), just as when QEMU has the device and ends.
            os.close(self._fd)
            self._fd = -1
            self._armed.clear()
            self._try("opening it again", self._open)

    def _stop_bus_master(self) -> None:
        command = self.region_read(PciRegion.CONFIG, _PCI_COMMAND, 2)
        value = int.from_bytes(command, "little") & ~_PCI_COMMAND_MASTER
        self.region_write(PciRegion.CONFIG, _PCI_COMMAND, value.to_bytes(2, "little"))

    def _try(self, what: str, do: Callable[..., object], *args: object) -> None:
        try:
            do(*args)
        except (OSError, DeviceError) as error:
            log.error("%s: %s: %s", self.name, what, error)

    def close(self) -> None:
        self._close_migration()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._iommu.release(self._container)

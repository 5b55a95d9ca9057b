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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .device import Device, DeviceFlags, Keep, PciRegion, RegionFlags, Take
from .errors import BridgeError, DeviceError
from .iommu import Iommu
from .irqs import Interrupts
from .kernel import dmabuf, pci, vfio
from .messages import DeviceFeature, DeviceInfo, DmaMap, IrqInfo, IrqSet, RegionInfo
from .migration import Migration
from .protocol import Buffer
from .sparse import with_areas

log = logging.getLogger(__name__)

_PCI_COMMAND = 4
_PCI_COMMAND_MASTER = 1 << 2


class HostDevice(Device):
    """The PCI device at *bdf*.

    :param bar_mmap: whether clients may map BARs; else every access is trapped
    :param saved: what a predecessor's `save` gave, to go on with what it has opened; with *take*
    :raise BridgeError: it can't be had, and why
    """

    def __init__(
        self,
        bdf: str,
        iommu: Iommu,
        *,
        bar_mmap: bool = True,
        saved: Mapping[str, Any] | None = None,
        take: Take | None = None,
    ) -> None:
        device = pci.find(bdf)
        obstacle = None if saved else pci.obstacle(device)
        if obstacle:
            raise DeviceError(obstacle.line)
        group = device.iommu_group
        assert group is not None  # or it were an obstacle
        self.name = bdf
        self._changed: Callable[[], None] = lambda: None
        self._iommu = iommu
        self._bar_mmap = bar_mmap
        self._exported: dict[int, int] = {}  # regions as dma-bufs, -1 until a client asks
        self._mapped: dict[int, DmaMap] = {}  # by IOVA: what the container has from us
        self._migration = Migration()
        self._interrupts = Interrupts(())
        self._only_by_power = device.reset_methods[:1] == ("pm",)
        self._wanted_back = False
        self._warned_of_reset = False
        self._fd = -1
        self._container = iommu.acquire(group, saved and saved["iommu"], take)
        self.pgsizes = self._container.pgsizes & ~0xFFF  # the wire's smallest page is 4 KiB
        self.max_dma_maps = min(self._container.max_maps, Device.max_dma_maps)
        try:
            if saved and take:
                self._take_over(device, saved, take)
            else:
                self._fd = self._container.device(bdf)
                self._describe()
                self._interrupts.attach(self._fd)
        except BaseException:
            self.close()
            raise
        iommu.hot_reset.functions[bdf] = self

    def _take_over(self, device: pci.PciDevice, saved: Mapping[str, Any], take: Take) -> None:
        self._wanted_back = saved["wanted back"]
        self._migration.restore(saved["migration"], take)
        opened = saved["device"] is not None
        self._fd = take(saved["device"]) if opened else self._container.device(self.name)
        try:
            self._describe()
            found = self.region_read(PciRegion.CONFIG, 0, 4)
        except OSError:
            found = b""
        # One that has lost its link reads as all ones; its client has found out itself.
        if found not in (struct.pack("<HH", device.vendor, device.device), b"\xff\xff\xff\xff"):
            raise DeviceError(
                f"{self.name}: what a predecessor left isn't this device: start anew, without what"
                " is in the file descriptor store"
            )
        if opened:
            self._interrupts.restore(self._fd, saved["interrupts"], take)
        else:
            self._interrupts.attach(self._fd)

    def _describe(self) -> None:
        """Ask the kernel what the device is; that doesn't change while vfio-pci has it."""
        info = DeviceInfo.unpack(vfio.device_info(self._fd))
        known = DeviceFlags.RESET | DeviceFlags.PCI
        self._info = replace(info, flags=info.flags & known)
        regions = [self._region(index) for index in range(info.num_regions)]
        self._offsets = [region.offset for region in regions]
        self._regions = [self._offered(region) for region in regions]
        self._irqs = [self._irq(index) for index in range(info.num_irqs)]
        self._interrupts = Interrupts(self._irqs)

    def _region(self, index: int) -> RegionInfo:
        try:
            info = RegionInfo.unpack(vfio.region_info(self._fd, index))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return RegionInfo(index)  # no VGA on this device
        return info if self._bar_mmap else with_areas(info, [])

    def _offered(self, region: RegionInfo) -> RegionInfo:
        """As the client has it: in a file of its own where the kernel can give that away."""
        bar = region.flags & RegionFlags.MMAP and region.index <= PciRegion.BAR5
        if not bar or not dmabuf.mappable(self._fd, region.index, region.size):
            return region
        self._exported[region.index] = -1
        return replace(region, offset=0)

    def _irq(self, index: int) -> IrqInfo:
        try:
            return IrqInfo.unpack(vfio.irq_info(self._fd, index))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return IrqInfo(index)  # no error reporting on this device

    @property
    def info(self) -> DeviceInfo:
        if self._info.flags & DeviceFlags.RESET or self._iommu.hot_reset.possible(self._fd):
            return replace(self._info, flags=self._info.flags | DeviceFlags.RESET)
        if not self._warned_of_reset:
            self._warned_of_reset = True
            log.warning(
                "%s: there is no way to reset it: what one client leaves in it, the next finds;"
                " keep it to one guest",
                self.name,
            )
        return self._info

    def region_info(self, index: int) -> RegionInfo:
        return self._regions[index]

    def region_fd(self, index: int) -> int:
        fd = self._exported.get(index)
        if fd is None:
            return self._fd  # it has all regions, by offset
        if fd < 0:
            fd = dmabuf.export(self._fd, index, self._regions[index].size)
            self._exported[index] = fd
        return fd

    def _forget_exported(self) -> None:
        for index, fd in self._exported.items():
            if fd >= 0:
                os.close(fd)
                self._exported[index] = -1

    def irq_info(self, index: int) -> IrqInfo:
        return self._irqs[index]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, self._offsets[index] + offset)

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        os.pwrite(self._fd, data, self._offsets[index] + offset)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        self._interrupts.set(request, eventfds)

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        if fd is not None:
            self._container.maps.map(request, fd)
            self._mapped[request.address] = request

    def dma_unmap(self, request: DmaMap) -> None:
        if request.address in self._mapped:
            self._container.maps.unmap(request)
            del self._mapped[request.address]

    def adopt(self, request: DmaMap, fd: int | None) -> None:
        if fd is not None and self._container.maps.adopt(request, fd):
            self._mapped[request.address] = request

    def reclaim(self) -> None:
        self._container.maps.reclaim()

    def reset(self) -> None:
        """By its own reset, or the bus's. As QEMU does it (vfio_pci_reset), the bus's comes before
        a change of power state, in which a device may keep what it likes.
        """
        own = bool(self._info.flags & DeviceFlags.RESET)
        if not own or self._only_by_power:
            try:
                self._iommu.hot_reset.perform(self.name, self._fd)
            except OSError:
                if not own:
                    raise
            else:
                return
        vfio.device_reset(self._fd)

    def at_rest(self) -> bool:
        """Whether bus mastering is off: no DMA, no message-signalled interrupts."""
        return self._fd < 0 or not self._command() & _PCI_COMMAND_MASTER

    def feature(self, request: DeviceFeature) -> bytes:
        return self._migration.feature(self._fd, request)

    def migration_read(self, size: int) -> bytes:
        return self._migration.read(size)

    def migration_write(self, data: bytes) -> None:
        self._migration.write(data)

    # ---- A successor process ----------------------------------------------------------------

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def save(self, keep: Keep) -> dict[str, Any]:
        name = f"device-{self.name.replace(':', '.')}"
        return {
            "device": keep(name, self._fd) if self._fd >= 0 else None,
            "iommu": self._container.save(keep),
            "interrupts": self._interrupts.save(keep),
            "migration": self._migration.save(keep, self.name),
            "wanted back": self._wanted_back,
        }

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:
        """It has been made of that."""

    # ---- The end of a client, and the end ---------------------------------------------------

    @property
    def host_request(self) -> int | None:
        return self._interrupts.request if self._interrupts.request >= 0 else None

    def heed_host_request(self) -> None:
        self._wanted_back = True
        self._interrupts.forward_request()

    def prepare(self) -> None:
        for request in list(self._mapped.values()):
            self.dma_unmap(request)
        if self._fd < 0:
            self._reopen()

    def quiesce(self, *, reset: bool) -> None:
        self._migration.close()
        for index in self._interrupts.enabled:
            self._try("switch interrupts off", self._interrupts.off, index)
        self._interrupts.forget_client()
        self._try("switch bus mastering off", self._stop_bus_master)
        if not reset:
            return
        if self.info.flags & DeviceFlags.RESET:
            try:
                self.reset()
            except OSError as error:
                # EBUSY: the last function at work there will have the bus reset.
                level = logging.INFO if error.errno == errno.EBUSY else logging.ERROR
                log.log(level, "%s: can't reset it: %s", self.name, error)
        self._forget_exported()
        with self._iommu.hot_reset.lock:
            # The last close puts config space and power state back (vfio_pci_core_disable), so the
            # next client finds what it would find after QEMU has had the device and ended.
            self._close()
            if not self._wanted_back:
                self._try("open it again", self._reopen)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._changed()
            os.close(fd)

    def _reopen(self) -> None:
        fd = self._container.device(self.name)
        try:
            self._interrupts.attach(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _command(self) -> int:
        return int.from_bytes(self.region_read(PciRegion.CONFIG, _PCI_COMMAND, 2), "little")

    def _stop_bus_master(self) -> None:
        command = self._command() & ~_PCI_COMMAND_MASTER
        self.region_write(PciRegion.CONFIG, _PCI_COMMAND, command.to_bytes(2, "little"))

    def _try(self, what: str, do: Callable[..., object], *args: object) -> None:
        try:
            do(*args)
        except (OSError, BridgeError) as error:
            log.error("%s: can't %s: %s", self.name, what, error)

    def close(self) -> None:
        self._migration.close()
        self._forget_exported()
        with self._iommu.hot_reset.lock:
            self._iommu.hot_reset.functions.pop(self.name, None)
            self._close()
        self._interrupts.close()
        self._iommu.release(self._container)

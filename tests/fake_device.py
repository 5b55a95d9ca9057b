# SPDX-License-Identifier: BSD-3-Clause
"""A Device that writes down what is asked of it, and fails where a test wants it to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from vfio_user_bridge.device import Device, DeviceFlags, PciIrq, PciRegion, RegionFlags
from vfio_user_bridge.messages import (
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    IrqInfo,
    IrqSet,
    RegionCapability,
    RegionInfo,
)
from vfio_user_bridge.protocol import Buffer

from .descriptors import inodes

READ_WRITE = RegionFlags.READ | RegionFlags.WRITE
MSIX_MAPPABLE = RegionCapability(3, 1, b"")

#: a BAR to map, a BAR to map with capabilities, a read-only ROM, config space; the rest is absent
REGIONS = {
    PciRegion.BAR0: RegionInfo(0, READ_WRITE | RegionFlags.MMAP, 0x4000, 0x10000),
    PciRegion.BAR2: RegionInfo(
        2, READ_WRITE | RegionFlags.MMAP, 4 << 20, 0x20000, (MSIX_MAPPABLE,)
    ),
    PciRegion.ROM: RegionInfo(6, RegionFlags.READ, 0x800),
    PciRegion.CONFIG: RegionInfo(7, READ_WRITE, 256),
}
#: how many interrupts there are of each type, and their flags
IRQS = {PciIrq.INTX: (1, 7), PciIrq.MSI: (4, 9), PciIrq.MSIX: (33, 9)}


class FakeDevice(Device):
    """Its regions read as 0xa5; *calls* has every verb that was asked for with its arguments.

    Put an exception into *failures* under a verb's name, and that verb raises it.
    """

    name = "fake"

    def __init__(self, *, max_dma_maps: int = 65535) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, Exception] = {}
        self.max_dma_maps = max_dma_maps
        self.bar = os.memfd_create("bar")

    def asked(self, *verbs: str) -> list[tuple[Any, ...]]:
        """The calls of these verbs, in order."""
        return [call for call in self.calls if call[0] in verbs]

    def _record(self, verb: str, *arguments: object) -> None:
        self.calls.append((verb, *arguments))
        if verb in self.failures:
            raise self.failures[verb]

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, len(PciRegion), len(PciIrq))

    def region_info(self, index: int) -> RegionInfo:
        return REGIONS.get(PciRegion(index), RegionInfo(index))

    def region_fd(self, index: int) -> int:
        self._record("region_fd", index)
        return self.bar

    def irq_info(self, index: int) -> IrqInfo:
        count, flags = IRQS.get(PciIrq(index), (0, 0))
        return IrqInfo(index, flags, count)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self._record("region_read", index, offset, count)
        return b"\xa5" * count

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        self._record("region_write", index, offset, bytes(data))

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        self._record("set_irqs", request, inodes(list(eventfds)))

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        self._record("dma_map", request, None if fd is None else os.fstat(fd).st_ino)

    def dma_unmap(self, request: DmaMap) -> None:
        self._record("dma_unmap", request)

    def reset(self) -> None:
        self._record("reset")

    def feature(self, request: DeviceFeature) -> bytes:
        self._record("feature", request)
        return b"8 bytes."

    def migration_read(self, size: int) -> bytes:
        self._record("migration_read", size)
        return b"state"[:size]

    def migration_write(self, data: bytes) -> None:
        self._record("migration_write", data)

    def prepare(self) -> None:
        if "prepare" in self.failures:
            raise self.failures["prepare"]

    def quiesce(self, *, reset: bool) -> None:
        self._record("quiesce", reset)

    def close(self) -> None:
        self._record("close")
        os.close(self.bar)

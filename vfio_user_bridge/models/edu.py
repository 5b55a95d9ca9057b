# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's educational device, register for register as docs/specs/edu.rst and hw/misc/edu.c have it.

It differs where only a clock can tell: a factorial and a DMA are done when the write that starts
them returns, where QEMU takes a thread and 100 ms of virtual time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from math import factorial
from typing import Any

from vfio_user_bridge.device import (
    Device,
    DeviceFlags,
    Keep,
    PciIrq,
    PciRegion,
    RegionFlags,
    Take,
)
from vfio_user_bridge.limits import DEFAULTS, Limits
from vfio_user_bridge.messages import DeviceInfo, DmaMap, IrqInfo, IrqSet, RegionInfo
from vfio_user_bridge.protocol import Buffer

from .config import CONFIG_SIZE, ConfigSpace
from .interrupts import Interrupts
from .memory import ClientMemory

logger = logging.getLogger(__name__)

BAR_SIZE = 1 << 20
IDENTIFICATION = 0x010000ED


class Register(IntEnum):
    """Offsets in BAR 0. Registers below DMA_SOURCE have 4 bytes, the others 4 or 8."""

    IDENTIFICATION = 0x00
    LIVENESS = 0x04
    FACTORIAL = 0x08
    STATUS = 0x20
    IRQ_STATUS = 0x24
    IRQ_RAISE = 0x60
    IRQ_ACKNOWLEDGE = 0x64
    DMA_SOURCE = 0x80
    DMA_DESTINATION = 0x88
    DMA_COUNT = 0x90
    DMA_COMMAND = 0x98


STATUS_IRQ_FACTORIAL = 0x80

DMA_RUN = 0x1
DMA_TO_MEMORY = 0x2
DMA_RAISE_IRQ = 0x4

#: where the buffer lies in the device's own address space, as DMA sees it
BUFFER = 0x40000
BUFFER_SIZE = 4096
#: the device drives 28 address lines
DMA_MASK = (1 << 28) - 1

# What the interrupt status register tells.
IRQ_FACTORIAL = 0x1
IRQ_DMA = 0x100

#: from here on, factorials are multiples of 2**32
ZERO_FACTORIAL = 34

ALL_ONES = (1 << 64) - 1
U32 = (1 << 32) - 1


class Edu(Device):
    """The device of one client after another."""

    name = "edu"
    volatile = True

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self._config = ConfigSpace(
            (0x1234, 0x11E8),
            revision=0x10,
            class_code=0x00FF00,
            subsystem_id=(0x1AF4, 0x1100),
            bars={0: BAR_SIZE},
        )
        self._interrupts = Interrupts()
        self._memory = ClientMemory(limits.mapped)
        self._told_of_dma = False
        self._power_on()

    def _power_on(self) -> None:
        self._registers: dict[int, int] = {
            Register.IDENTIFICATION: IDENTIFICATION,
            Register.LIVENESS: 0,
            Register.FACTORIAL: 0,
            Register.STATUS: 0,
            Register.IRQ_STATUS: 0,
            Register.DMA_SOURCE: 0,
            Register.DMA_DESTINATION: 0,
            Register.DMA_COUNT: 0,
            Register.DMA_COMMAND: 0,
        }
        self._buffer = bytearray(BUFFER_SIZE)
        self._intx = False

    # ---- What a VFIO PCI device has -----------------------------------------------------------

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, len(PciRegion), len(PciIrq))

    def region_info(self, index: int) -> RegionInfo:
        size = {PciRegion.BAR0: BAR_SIZE, PciRegion.CONFIG: CONFIG_SIZE}.get(PciRegion(index), 0)
        return RegionInfo(index, RegionFlags.READ | RegionFlags.WRITE if size else 0, size)

    def irq_info(self, index: int) -> IrqInfo:
        return self._interrupts.info(index)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if index == PciRegion.CONFIG:
            return self._config.read(offset, count)
        if count == 4 and not offset % 4:  # as drivers do it
            return self._read(offset, 4)
        return b"".join(self._read(at, size) for at, size in _accesses(offset, count))

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        if index == PciRegion.CONFIG:
            self._config.write(offset, data)
            self._update_intx()
        elif len(data) == 4 and not offset % 4:
            self._write(offset, 4, int.from_bytes(data, "little"))
        else:
            for at, size in _accesses(offset, len(data)):
                value = int.from_bytes(data[at - offset : at - offset + size], "little")
                self._write(at, size, value)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        self._interrupts.set_irqs(request, eventfds)
        if request.index == PciIrq.MSI:
            # Who uses VFIO needn't write the enable bit: the kernel does as it sets up vectors.
            self._config.msi_enabled = self._interrupts.msi.enabled
            self._update_intx()

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        self._memory.map(request, fd)

    def dma_unmap(self, request: DmaMap) -> None:
        self._memory.unmap(request)

    def reset(self) -> None:
        """Back to power-on, but for interrupts: those belong to the client, as in the kernel."""
        self._power_on()
        self._config.reset()
        self._config.msi_enabled = self._interrupts.msi.enabled
        self._update_intx()

    def quiesce(self, *, reset: bool) -> None:
        self._interrupts.disable()
        self._config.bus_master = False
        self._config.msi_enabled = False
        self._told_of_dma = False
        if reset:
            self.reset()

    def save(self, keep: Keep) -> dict[str, Any]:
        return {
            "config": self._config.save(),
            "registers": list(self._registers.values()),
            "buffer": bytes(self._buffer),
            "intx": self._intx,
            "told of DMA": self._told_of_dma,
            "interrupts": self._interrupts.save(keep),
        }

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:
        self._config.restore(saved["config"])
        self._registers.update(zip(self._registers, saved["registers"], strict=True))
        self._buffer[:] = saved["buffer"]
        self._intx, self._told_of_dma = saved["intx"], saved["told of DMA"]
        self._interrupts.restore(saved["interrupts"], take)

    def go_on(self) -> None:
        self._interrupts.go_on()

    def close(self) -> None:
        self._interrupts.close()
        self._memory.close()

    # ---- Registers ----------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> bytes:
        if size < 4:
            return bytes(size)  # QEMU's memory core refuses these before the device sees them
        value = ALL_ONES
        if size == 4 or offset >= Register.DMA_SOURCE:
            value = self._registers.get(offset, ALL_ONES)
        return value.to_bytes(8, "little")[:size]

    def _write(self, offset: int, size: int, value: int) -> None:
        if size < 4 or (size > 4 and offset < Register.DMA_SOURCE):
            return
        match offset:
            case Register.LIVENESS:
                self._registers[offset] = ~value & U32
            case Register.FACTORIAL:
                self._registers[offset] = factorial(value) & U32 if value < ZERO_FACTORIAL else 0
                if self._registers[Register.STATUS] & STATUS_IRQ_FACTORIAL:
                    self._raise(IRQ_FACTORIAL)
            case Register.STATUS:
                self._registers[offset] = value & STATUS_IRQ_FACTORIAL
            case Register.IRQ_RAISE:
                self._raise(value)
            case Register.IRQ_ACKNOWLEDGE:
                self._acknowledge(value)
            case Register.DMA_SOURCE | Register.DMA_DESTINATION | Register.DMA_COUNT:
                self._registers[offset] = value
            case Register.DMA_COMMAND if value & DMA_RUN:
                self._registers[offset] = value & ~DMA_RUN
                self._transfer(to_memory=bool(value & DMA_TO_MEMORY))
                if value & DMA_RAISE_IRQ:
                    self._raise(IRQ_DMA)

    # ---- Interrupts ---------------------------------------------------------------------------

    def _raise(self, reasons: int) -> None:
        self._registers[Register.IRQ_STATUS] |= reasons
        if not self._registers[Register.IRQ_STATUS]:
            return
        if self._config.msi_enabled:
            self._interrupts.msi.notify()
        else:
            self._intx = True
            self._update_intx()

    def _acknowledge(self, reasons: int) -> None:
        self._registers[Register.IRQ_STATUS] &= ~reasons
        if not self._registers[Register.IRQ_STATUS]:
            self._intx = False
            self._update_intx()

    def _update_intx(self) -> None:
        """Make the line, and what config space says of it, follow the device and its settings."""
        if self._config.msi_enabled:
            self._intx = False  # and it stays so when MSI is disabled again, until the next raise
        self._config.interrupt_status = self._intx
        self._interrupts.intx.hold(self._intx and not self._config.intx_disabled)

    # ---- DMA ----------------------------------------------------------------------------------

    def _transfer(self, *, to_memory: bool) -> None:
        source, destination, count = (
            self._registers[register]
            for register in (Register.DMA_SOURCE, Register.DMA_DESTINATION, Register.DMA_COUNT)
        )
        inside, outside = (source, destination) if to_memory else (destination, source)
        start, iova = inside - BUFFER, outside & DMA_MASK
        if start < 0 or start + count > BUFFER_SIZE:
            self._tell(f"{count} bytes at {inside:#x} aren't in the device's buffer")
            return
        if not self._config.bus_master:
            blocked = "the device isn't bus master"
            if not to_memory:
                self._buffer[start : start + count] = bytes(count)
        elif to_memory:
            blocked = self._memory.write(iova, self._buffer[start : start + count])
        else:
            self._buffer[start : start + count], blocked = self._memory.read(iova, count)
        if blocked:
            self._tell(blocked)

    def _tell(self, problem: str) -> None:
        """Log what became of a DMA; only once for each client, for a guest can go on for ever."""
        logger.log(logging.DEBUG if self._told_of_dma else logging.WARNING, "DMA: %s", problem)
        self._told_of_dma = True


def _accesses(offset: int, count: int) -> Iterator[tuple[int, int]]:
    """Split a transfer into naturally aligned (offset, size) of 8 bytes or less, as VFIO does."""
    end = offset + count
    while offset < end:
        size = next(size for size in (8, 4, 2, 1) if offset % size == 0 and offset + size <= end)
        yield offset, size
        offset += size

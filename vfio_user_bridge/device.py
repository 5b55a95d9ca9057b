# SPDX-License-Identifier: BSD-3-Clause
"""What a device is: regions, interrupts, DMA, reset.

A session checks every request before a device sees it: indexes exist, ranges lie inside, flags make
sense, maps don't overlap. What is left to say no to, a device says with an `OSError`, whose errno
goes to the client, and changes nothing. A new device needs the verbs marked abstract.

One client at a time, one thread at a time. File descriptors that come with a request belong to the
caller and are closed after it: a device that keeps one duplicates it.

A successor process can go on with a device: what `save` gave, a device of the same kind there gets
by `restore`, and each map that the client has by `adopt`.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Any

from .errors import BridgeError
from .messages import DeviceFeature, DeviceInfo, DmaMap, IrqInfo, IrqSet, RegionInfo
from .protocol import DEFAULT_DMA_MAPS, DEFAULT_PGSIZES, Buffer, refuse


class DeviceFlags(IntFlag):
    """``VFIO_DEVICE_FLAGS_*`` that vfio-user has."""

    RESET = 1
    PCI = 2


class RegionFlags(IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlags(IntFlag):
    """``VFIO_IRQ_INFO_*``."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class PciRegion(IntEnum):
    """Region indexes of every VFIO PCI device (``VFIO_PCI_*_REGION_INDEX``)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8

    @property
    def label(self) -> str:
        """What people call it: ``bar0``, ``config``."""
        return self.name.lower()


#: by what people call them
REGIONS = {region.label: region for region in PciRegion}


class PciIrq(IntEnum):
    """Interrupt indexes of every VFIO PCI device (``VFIO_PCI_*_IRQ_INDEX``)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


#: ``keep(name, fd)``: a successor needs this open file, by this name, which is given back
Keep = Callable[[str, int], str]
#: ``take(name)``: a descriptor of what was kept, the caller's to close; or BridgeError
Take = Callable[[str], int]
#: ``make(count)``: so many unsigned integers of 8 bytes ("Q") that outlive this process: what a
#: predecessor left there, else 0. The same order of calls gives the same ones
Cells = Callable[[int], memoryview]


class Device(ABC):
    """One device, as its client may use it."""

    #: what the operator calls it, in logs and for its socket: ``0000:01:10.1``, ``edu``
    name: str
    #: the page sizes that DMA maps may have, or'ed together, in bytes
    pgsizes: int = DEFAULT_PGSIZES
    #: how many DMA maps may be valid at a time
    max_dma_maps: int = DEFAULT_DMA_MAPS
    #: whether any request but a read may change what `save` gives; else set_irqs and feature do
    volatile: bool = False

    @property
    @abstractmethod
    def info(self) -> DeviceInfo:
        """How many regions and interrupt types there are, and `DeviceFlags`."""

    @abstractmethod
    def region_info(self, index: int) -> RegionInfo:
        """Region *index*; size 0 where there is none. Fixed while a client is connected."""

    def region_fd(self, index: int) -> int:
        """The file that a client maps region *index* from, if its flags have MMAP."""
        raise refuse(errno.ENOTSUP, f"region {index} can't be mapped")

    @abstractmethod
    def irq_info(self, index: int) -> IrqInfo:
        """Interrupt type *index*; count 0 where there is none."""

    @abstractmethod
    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """*count* bytes at *offset* of region *index*; fewer where the device gives fewer."""

    @abstractmethod
    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        """Write *data* at *offset* of region *index*."""

    @abstractmethod
    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        """``VFIO_DEVICE_SET_IRQS``; with DATA_EVENTFD, *eventfds* holds *count* of them or none."""

    @abstractmethod
    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        """Let the device reach this memory; *fd* is the file, None where the client shares none."""

    @abstractmethod
    def dma_unmap(self, request: DmaMap) -> None:
        """Take back exactly this map. Once it returns, the device doesn't touch the memory."""

    def reset(self) -> None:
        """``VFIO_DEVICE_RESET``."""
        raise refuse(errno.ENOTTY, "this device has no reset")

    def feature(self, request: DeviceFeature) -> bytes:
        """``VFIO_DEVICE_FEATURE``: the data for the reply.

        :raise OSError: ENOTTY if there is no such feature, as the kernel says it
        """
        raise refuse(errno.ENOTTY, f"no device feature {request.flags & 0xFFFF}")

    def migration_read(self, size: int) -> bytes:
        """Up to *size* bytes of the device's state; fewer at the end of the stream."""
        raise refuse(errno.ENOTTY, f"no migration: {size} bytes of state asked for")

    def migration_write(self, data: bytes) -> None:
        """Take the next piece of a device's state."""
        raise refuse(errno.ENOTTY, f"no migration: {len(data)} bytes of state offered")

    def prepare(self) -> None:
        """A client has come: do now what `quiesce` failed to do for it.

        :raise OSError, DeviceError: it can't be done; the client is let go
        """
        return

    @abstractmethod
    def quiesce(self, *, reset: bool) -> None:
        """The client is gone: interrupts off, no more DMA, and reset if there is one and *reset*.

        The session takes the DMA maps back afterwards. Must not raise: what fails is logged.
        """

    @property
    def hits(self) -> Sequence[tuple[int, str, int]]:
        """Of each rule of the operator's: number, note, and how many accesses it was about."""
        return ()

    @property
    def host_request(self) -> int | None:
        """A descriptor that is readable once the host wants the device back, if it ever may."""
        return None

    def heed_host_request(self) -> None:
        """`host_request` was readable: tell the client. When that has gone, the device is closed.

        Called from another thread than the rest.
        """
        return

    # ---- For a successor process ------------------------------------------------------------

    def cells(self, make: Cells) -> None:  # noqa: ARG002 - most don't count
        """Count from now on where a successor finds it even after SIGKILL. Before `restore`."""
        return

    def on_change(self, changed: Callable[[], None]) -> None:  # noqa: ARG002 - most don't change
        """Have *changed* called when what `save` gives is different and no request was the cause.

        It comes before a file that was kept is closed, and when it returns nobody else may have
        that open: the kernel puts a device back when it is closed for the last time. Whoever has
        the device's turn calls it, within a request too.
        """
        return

    def save(self, keep: Keep) -> dict[str, Any]:  # noqa: ARG002 - there is nothing to keep
        """All that a successor needs but the DMA maps: values that MessagePack has.

        It changes nothing. Between two requests only.

        :raise BridgeError: no successor can go on with this device
        """
        raise BridgeError(f"{self.name} can't be handed over: stop its client, and start it anew")

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:  # noqa: ARG002 - it can't
        """Be as *saved* has it. The device is new, and no client has used it.

        The predecessor may run, and go on: what it has too isn't changed before `succeed`.

        :raise BridgeError: it can't; the device is good for nothing but `close`
        """
        raise BridgeError(f"{self.name} can't be taken over: stop its client, and start it anew")

    def save_layers(self, keep: Keep) -> dict[str, Any]:  # noqa: ARG002 - it has none
        """What those around a device have to go on with (`layers`), which no client's end ends."""
        return {}

    def restore_layers(self, saved: Mapping[str, Any], take: Take) -> None:  # noqa: ARG002 - likewise
        """Go on as *saved* has it.

        :raise BridgeError: an open file is missing
        """
        return

    def adopt(self, request: DmaMap, fd: int | None) -> None:
        """A predecessor's `dma_map` of this was done: go on with it.

        All devices of an IOMMU group adopt before any of them is asked for something else.
        """
        self.dma_map(request, fd)

    def succeed(self) -> None:
        """After `restore`: the predecessor is gone, and what it had is this process's alone."""
        return

    def reclaim(self) -> None:
        """A successor may have adopted maps, and goes: this process goes on with them."""
        return

    def go_on(self) -> None:
        """Its client, whom a predecessor had, is served again: there may be threads from now on."""
        return

    def close(self) -> None:
        """Give everything back. The device is not used afterwards."""
        return

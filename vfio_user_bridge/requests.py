# SPDX-License-Identifier: BSD-3-Clause
"""What a client may ask once its version is agreed on: each request checked, then done.

Everything that a request can get wrong without knowing the device is refused here, so that a device
sees only what it could do. Each handler takes a message and gives the payload of its reply, or
raises the `OSError` whose errno is the reply.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from dataclasses import replace

from . import dma
from .device import Device, PciIrq, PciRegion, RegionFlags
from .messages import (
    DMA_UNMAP_FLAG_ALL,
    REGION_ACCESS,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    FeatureFlags,
    IrqInfo,
    IrqSet,
    IrqSetFlags,
    MigData,
    RegionInfo,
    RegionIoFds,
    RegionWriteMulti,
)
from .protocol import Command, fields, refuse
from .state import State
from .transport import Message

log = logging.getLogger(__name__)

#: without a file, a writable map of this many bytes is taken for guest RAM
RAM_SIZE = 1 << 20

_DATA = IrqSetFlags.DATA_NONE | IrqSetFlags.DATA_BOOL | IrqSetFlags.DATA_EVENTFD
_ACTION = IrqSetFlags.ACTION_MASK | IrqSetFlags.ACTION_UNMASK | IrqSetFlags.ACTION_TRIGGER

#: what of commands that come after VERSION may be done once more
_REPEATABLE = frozenset(
    (
        *(Command.DMA_MAP, Command.DMA_UNMAP, Command.DEVICE_GET_INFO),
        *(Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_REGION_IO_FDS),
        *(Command.DEVICE_GET_IRQ_INFO, Command.DEVICE_SET_IRQS, Command.DEVICE_RESET),
    )
)

Handler = Callable[[Message], bytes]


class Requests:
    """The requests of one client to *device*."""

    def __init__(self, device: Device, state: State) -> None:
        self._device = device
        self._state = state
        self._info = device.info
        regions = [device.region_info(index) for index in range(self._info.num_regions)]
        self._readable = [r.size if r.flags & RegionFlags.READ else 0 for r in regions]
        self._writable = [r.size if r.flags & RegionFlags.WRITE else 0 for r in regions]
        self._page = device.pgsizes & -device.pgsizes
        self._max_transfer = state.capabilities.max_data_xfer_size
        self.handlers: dict[int, Handler] = {
            Command.VERSION: self._version_again,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_get_info,
            Command.DEVICE_GET_REGION_INFO: self._device_get_region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._device_get_region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._device_get_irq_info,
            Command.DEVICE_SET_IRQS: self._device_set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._device_reset,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_FEATURE: self._device_feature,
            Command.MIG_DATA_READ: self._mig_data_read,
            Command.MIG_DATA_WRITE: self._mig_data_write,
        }

    def repeatable(self, message: Message) -> bool:
        """Whether *message* may be done once more, when nobody knows how far it got.

        What asks may; what sets something to a value, and takes nothing away by being read, too: so
        it is in config space. A register of the device's own may do something at each access.
        """
        if message.command in (Command.REGION_READ, Command.REGION_WRITE):
            _offset, region, _count = fields(REGION_ACCESS, message.payload)
            return region in (PciRegion.CONFIG, PciRegion.ROM)
        if message.command == Command.DEVICE_FEATURE:
            return not DeviceFeature.unpack(message.payload).flags & FeatureFlags.SET
        return message.command in _REPEATABLE

    def again(self, message: Message) -> bytes:
        """Do *message*, of which a predecessor may have done some or all: as its handler."""
        if message.command == Command.DMA_MAP:
            request = DmaMap.unpack(message.payload)
            for entry in self._state.maps.overlapping(request.address, request.size):
                if entry == request:
                    self._device.dma_unmap(entry)
                    self._state.remove_map(entry)
        if message.command == Command.DEVICE_SET_IRQS:
            return self._device_set_irqs(message, again=True)
        return self.handlers[message.command](message)

    def _version_again(self, _message: Message) -> bytes:
        raise refuse(errno.EINVAL, "VERSION comes once")

    # ---- Trapped accesses: nothing here that need not be ------------------------------------

    def _region_read(self, message: Message) -> bytes:
        offset, region, count = fields(REGION_ACCESS, message.payload)
        readable = self._readable
        if region >= len(readable) or offset + count > readable[region]:
            raise refuse(errno.EINVAL, f"no {count} bytes at {offset:#x} of region {region}")
        if count > self._max_transfer:
            raise refuse(errno.EINVAL, f"{count} bytes at once; {self._max_transfer} are allowed")
        data = self._device.region_read(region, offset, count)
        return REGION_ACCESS.pack(offset, region, len(data)) + data

    def _region_write(self, message: Message) -> bytes:
        payload = message.payload
        offset, region, count = fields(REGION_ACCESS, payload)
        if len(payload) != REGION_ACCESS.size + count:
            raise refuse(errno.EINVAL, f"{len(payload)} bytes of payload for {count} of data")
        self._check_write(region, offset, count)
        self._device.region_write(region, offset, payload[REGION_ACCESS.size :])
        return REGION_ACCESS.pack(offset, region, count)

    def _check_write(self, region: int, offset: int, count: int) -> None:
        writable = self._writable
        if region >= len(writable) or offset + count > writable[region]:
            raise refuse(errno.EINVAL, f"no {count} bytes at {offset:#x} of region {region}")
        if count > self._max_transfer:
            raise refuse(errno.EINVAL, f"{count} bytes at once; {self._max_transfer} are allowed")

    def _region_write_multi(self, message: Message) -> bytes:
        if not self._state.capabilities.write_multiple:
            raise refuse(errno.EINVAL, "write_multiple was not agreed on")
        request = RegionWriteMulti.unpack(message.payload)
        for region, offset, data in request.writes:
            self._check_write(region, offset, len(data))
        for region, offset, data in request.writes:
            self._device.region_write(region, offset, data)
        return RegionWriteMulti.FORMAT.pack(len(request.writes))

    # ---- DMA --------------------------------------------------------------------------------

    def _dma_map(self, message: Message) -> bytes:
        request = DmaMap.unpack(message.payload)
        if len(message.fds) > 1:
            raise refuse(errno.EINVAL, f"{len(message.fds)} files for one map")
        dma.check(request, self._page)
        state = self._state
        if state.maps.overlapping(request.address, request.size):
            raise refuse(
                errno.EEXIST, f"{request.size:#x} bytes at {request.address:#x} are mapped already"
            )
        if len(state.maps) >= state.capabilities.max_dma_maps:
            raise refuse(errno.ENOSPC, f"{len(state.maps)} maps are all there can be")
        fd = message.fds[0] if message.fds else None
        file = state.add_file(fd)
        try:
            self._device.dma_map(request, fd)
        except BaseException:
            state.drop_file(file)
            raise
        state.add_map(request, file)
        if fd is None and request.writable and request.size >= RAM_SIZE:
            self._suspect_private_ram()
        return b""

    def _suspect_private_ram(self) -> None:
        # ROMs and other devices' BARs come without a file, and that is fine; but RAM comes first.
        state = self._state
        if not state.shared_memory and not state.warned_of_private_ram:
            state.warned_of_private_ram = True
            log.warning(
                "%s: the guest's RAM isn't shared, so the device can't reach it: start QEMU with"
                " -object memory-backend-memfd,id=mem,size=SIZE,share=on"
                " -machine memory-backend=mem",
                self._device.name,
            )

    def _dma_unmap(self, message: Message) -> bytes:
        """As VFIO_IOMMU_UNMAP_DMA does it: whole maps in a range, none of them is no error."""
        request = DmaUnmap.unpack(message.payload)
        maps = self._state.maps
        if request.flags == DMA_UNMAP_FLAG_ALL:
            if request.address or request.size:
                raise refuse(errno.EINVAL, "all maps are to go, and a range is given too")
            gone = list(maps)
        elif request.flags:
            raise refuse(errno.EINVAL, f"unmap flags {request.flags:#x}")
        elif not request.size or request.address + request.size > 1 << 64:
            raise refuse(errno.EINVAL, f"{request.size:#x} bytes at {request.address:#x}")
        else:
            gone = maps.within(request.address, request.size)
        for entry in gone:
            self._device.dma_unmap(entry)
            self._state.remove_map(entry)
        return request.pack()

    # ---- Device, regions, interrupts --------------------------------------------------------

    def _device_get_info(self, message: Message) -> bytes:
        _check_argsz(message, DeviceInfo.FORMAT.size)
        return self._info.pack()

    def _device_get_region_info(self, message: Message) -> bytes:
        argsz = _check_argsz(message, RegionInfo.FORMAT.size)
        _argsz, _flags, index, *_ = fields(RegionInfo.FORMAT, message.payload)
        self._check_region(index)
        info = self._device.region_info(index)
        if not self._state.capabilities.max_msg_fds:
            info = replace(info, flags=info.flags & ~RegionFlags.MMAP)
        # Where the capabilities don't fit, the file waits with them for the client's next try.
        reply = info.pack(argsz)
        if info.flags & RegionFlags.MMAP and len(reply) == len(info.pack()):
            message.reply_fds = (self._device.region_fd(index),)
        return reply

    def _device_get_region_io_fds(self, message: Message) -> bytes:
        _check_argsz(message, RegionIoFds.FORMAT.size)
        request = RegionIoFds.unpack(message.payload)
        self._check_region(request.index)
        if request.flags or request.count:
            raise refuse(errno.EINVAL, "flags and count must be 0")
        return request.pack()

    def _device_get_irq_info(self, message: Message) -> bytes:
        _check_argsz(message, IrqInfo.FORMAT.size)
        request = IrqInfo.unpack(message.payload)
        self._check_irq(request.index)
        info = self._device.irq_info(request.index)
        if not info.count and request.index > PciIrq.MSIX:
            # So vfio_pci_ioctl_get_irq_info says it of a conventional device's error interrupt;
            # at a count of 0 QEMU would warn.
            raise refuse(errno.EINVAL, f"the device has no interrupt of type {request.index}")
        return info.pack()

    def _device_set_irqs(self, message: Message, *, again: bool = False) -> bytes:
        """The checks of vfio_set_irqs_validate_and_prepare, and that the eventfds are all there."""
        request = IrqSet.unpack(message.payload)
        data, action = request.flags & _DATA, request.flags & _ACTION
        if request.flags != data | action or data.bit_count() != 1 or action.bit_count() != 1:
            raise refuse(errno.EINVAL, f"irq set flags {request.flags:#x}")
        self._check_irq(request.index)
        start, count = request.start, request.count
        available = self._device.irq_info(request.index).count
        if start >= available or start + count > available:
            raise refuse(errno.EINVAL, f"interrupts {start} to {start + count} of {available}")
        if not count and (start, data, action) != (
            0,
            IrqSetFlags.DATA_NONE,
            IrqSetFlags.ACTION_TRIGGER,
        ):
            raise refuse(errno.EINVAL, "a count of 0 can only switch all off")
        wanted = count if data == IrqSetFlags.DATA_BOOL else 0
        if len(request.data) != wanted:
            raise refuse(errno.EINVAL, f"{len(request.data)} bytes of data, {wanted} needed")
        eventfds = len(message.fds)
        if eventfds and (data != IrqSetFlags.DATA_EVENTFD or eventfds != count):
            raise refuse(errno.EINVAL, f"{eventfds} eventfds for {count} interrupts")
        try:
            self._device.set_irqs(request, message.fds)
        except OSError as error:
            # What is off already can't be switched off, says the kernel.
            if count or not again or error.errno != errno.EINVAL:
                raise
        self._state.note_irqs(request, eventfds)
        return b""

    def _device_reset(self, _message: Message) -> bytes:
        self._device.reset()
        return b""

    # ---- Features and migration -------------------------------------------------------------

    def _device_feature(self, message: Message) -> bytes:
        _check_argsz(message, DeviceFeature.FORMAT.size)
        request = DeviceFeature.unpack(message.payload)
        get, set_, probe = (
            bool(request.flags & flag)
            for flag in (FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE)
        )
        unknown = request.flags >> FeatureFlags.PROBE.bit_length()
        if unknown or not (get or set_ or probe) or (get and set_ and not probe):
            raise refuse(errno.EINVAL, f"feature flags {request.flags:#x}")
        data = self._device.feature(request)
        self._state.changed |= set_
        if probe or set_:
            return bytes(message.payload)
        reply = replace(request, argsz=DeviceFeature.FORMAT.size + len(data), data=data).pack()
        if len(reply) > request.argsz:
            raise refuse(errno.EINVAL, f"the reply has {len(reply)} bytes, argsz {request.argsz}")
        return reply

    def _mig_data_read(self, message: Message) -> bytes:
        argsz = _check_argsz(message, MigData.FORMAT.size)
        request = MigData.unpack(message.payload)
        if request.size > min(self._max_transfer, argsz - MigData.FORMAT.size):
            raise refuse(errno.EINVAL, f"{request.size} bytes of state at once")
        data = self._device.migration_read(request.size)
        return MigData(len(data), data).pack()

    def _mig_data_write(self, message: Message) -> bytes:
        request = MigData.unpack(message.payload)
        if len(request.data) != request.size or request.size > self._max_transfer:
            raise refuse(errno.EINVAL, f"{len(request.data)} bytes of state, not {request.size}")
        self._device.migration_write(request.data)
        return b""

    def _check_region(self, index: int) -> None:
        if index >= self._info.num_regions:
            raise refuse(errno.EINVAL, f"no region {index}")

    def _check_irq(self, index: int) -> None:
        if index >= self._info.num_irqs:
            raise refuse(errno.EINVAL, f"no interrupt type {index}")


def _check_argsz(message: Message, least: int) -> int:
    """The room that the client has for the reply's payload, in bytes ("Message sizes")."""
    if len(message.payload) < least:
        raise refuse(errno.EINVAL, f"payload of {len(message.payload)} bytes, {least} needed")
    argsz = int.from_bytes(message.payload[:4], sys.byteorder)
    if argsz < least:
        raise refuse(errno.EINVAL, f"argsz {argsz}, at least {least} needed")
    return argsz

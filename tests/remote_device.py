# SPDX-License-Identifier: BSD-3-Clause
"""A Device at the far end of a socket: what a client makes of the replies that it gets.

The contract of Devices (device_contract.py) must hold for it as it does for the device that is
served, whichever engine serves it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from vfio_user_bridge.device import Device, PciIrq
from vfio_user_bridge.messages import DeviceInfo, DmaMap, IrqInfo, IrqSet, RegionInfo
from vfio_user_bridge.protocol import Buffer

from . import client as c
from .engines import Talk
from .wire import dma_map, dma_unmap, region, u32, u64

_ROOM = 4096


class RemoteDevice(Device):
    """*device*, served by *engine*, through one client after another."""

    name = "remote"

    def __init__(self, engine: str, device: Device) -> None:
        self._engine = engine
        self._device = device
        self._region_fds: dict[int, int] = {}
        self._maps: set[DmaMap] = set()
        self._connect()

    def _connect(self) -> None:
        self._talk = Talk(self._engine, self._device)
        self._talk.client.negotiate()

    def _call(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> c.Reply:
        reply = self._talk.client.call(command, payload, list(fds))
        if reply.flags & c.ERROR:
            raise OSError(reply.error, f"refused: {os.strerror(reply.error)}")
        return reply

    def _ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        reply = self._call(command, payload, fds)
        assert reply.fds == []
        return reply.payload

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo.unpack(self._ask(c.GET_INFO, u32(16, 0, 0, 0)))

    def region_info(self, index: int) -> RegionInfo:
        reply = self._call(c.GET_REGION_INFO, u32(_ROOM, 0, index, 0) + u64(0, 0))
        for fd in (self._region_fds.pop(index, -1), *reply.fds[1:]):
            if fd >= 0:
                os.close(fd)
        if reply.fds:
            self._region_fds[index] = reply.fds[0]
        return RegionInfo.unpack(reply.payload)

    def region_fd(self, index: int) -> int:
        return self._region_fds[index]

    def irq_info(self, index: int) -> IrqInfo:
        try:
            return IrqInfo.unpack(self._ask(c.GET_IRQ_INFO, u32(16, 0, index, 0)))
        except OSError as error:
            if error.errno != errno.EINVAL or index <= PciIrq.MSIX:
                raise
            return IrqInfo(index)  # as the kernel says that there is none

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        return self._ask(c.REGION_READ, region(offset, index, count))[16:]

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        self._ask(c.REGION_WRITE, region(offset, index, bytes(data)))

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        self._ask(c.SET_IRQS, request.pack(), eventfds)

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        payload = dma_map(request.address, request.size, offset=request.offset, flags=request.flags)
        self._ask(c.DMA_MAP, payload, [] if fd is None else [fd])
        self._maps.add(request)

    def dma_unmap(self, request: DmaMap) -> None:
        if request in self._maps:  # else it went with its client
            self._ask(c.DMA_UNMAP, dma_unmap(request.address, request.size))
            self._maps.remove(request)

    def reset(self) -> None:
        self._ask(c.RESET)

    def quiesce(self, *, reset: bool) -> None:  # noqa: ARG002 - that is the session's choice
        """The client goes, and another comes."""
        self.close()
        self._maps.clear()
        self._connect()

    def close(self) -> None:
        while self._region_fds:
            os.close(self._region_fds.popitem()[1])
        self._talk.end()

# SPDX-License-Identifier: BSD-3-Clause
"""A Device that is another one, for those who change or watch some of what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .device import Cells, Device, Keep, Take
from .messages import DeviceFeature, DeviceInfo, DmaMap, IrqInfo, IrqSet, RegionInfo
from .protocol import Buffer


class Wrapped(Device):
    """All of *inner*, which is this one's to close."""

    def __init__(self, inner: Device) -> None:
        self.inner = inner
        self.name = inner.name
        self.pgsizes = inner.pgsizes
        self.max_dma_maps = inner.max_dma_maps
        self.volatile = inner.volatile

    @property
    def info(self) -> DeviceInfo:
        return self.inner.info

    def region_info(self, index: int) -> RegionInfo:
        return self.inner.region_info(index)

    def region_fd(self, index: int) -> int:
        return self.inner.region_fd(index)

    def irq_info(self, index: int) -> IrqInfo:
        return self.inner.irq_info(index)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        return self.inner.region_read(index, offset, count)

    def region_write(self, index: int, offset: int, data: Buffer) -> None:
        self.inner.region_write(index, offset, data)

    def set_irqs(self, request: IrqSet, eventfds: Sequence[int]) -> None:
        self.inner.set_irqs(request, eventfds)

    def dma_map(self, request: DmaMap, fd: int | None) -> None:
        self.inner.dma_map(request, fd)

    def dma_unmap(self, request: DmaMap) -> None:
        self.inner.dma_unmap(request)

    def reset(self) -> None:
        self.inner.reset()

    def feature(self, request: DeviceFeature) -> bytes:
        return self.inner.feature(request)

    def migration_read(self, size: int) -> bytes:
        return self.inner.migration_read(size)

    def migration_write(self, data: bytes) -> None:
        self.inner.migration_write(data)

    def prepare(self) -> None:
        self.inner.prepare()

    def quiesce(self, *, reset: bool) -> None:
        self.inner.quiesce(reset=reset)

    @property
    def hits(self) -> Sequence[tuple[int, str, int]]:
        return self.inner.hits

    @property
    def host_request(self) -> int | None:
        return self.inner.host_request

    def heed_host_request(self) -> None:
        self.inner.heed_host_request()

    def cells(self, make: Cells) -> None:
        self.inner.cells(make)

    def on_change(self, changed: Callable[[], None]) -> None:
        self.inner.on_change(changed)

    def save(self, keep: Keep) -> dict[str, Any]:
        return self.inner.save(keep)

    def restore(self, saved: Mapping[str, Any], take: Take) -> None:
        self.inner.restore(saved, take)

    def save_layers(self, keep: Keep) -> dict[str, Any]:
        return self.inner.save_layers(keep)

    def restore_layers(self, saved: Mapping[str, Any], take: Take) -> None:
        self.inner.restore_layers(saved, take)

    def adopt(self, request: DmaMap, fd: int | None) -> None:
        self.inner.adopt(request, fd)

    def succeed(self) -> None:
        self.inner.succeed()

    def reclaim(self) -> None:
        self.inner.reclaim()

    def go_on(self) -> None:
        self.inner.go_on()

    def close(self) -> None:
        self.inner.close()

# SPDX-License-Identifier: BSD-3-Clause
"""A driver for QEMU's edu device behind a bridge (docs/specs/edu.rst of QEMU)."""

from __future__ import annotations

import os
import time
from typing import Protocol

from tests.descriptors import memory_files

from .bridge import CONFIG, RemoteDevice

IDS = 0x11E81234

BAR = 0
RAISE, ACKNOWLEDGE = 0x60, 0x64
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000
TO_MEMORY = 2
RUN = 1


class Registers(Protocol):
    """Of a device, wherever that is."""

    def read(self, index: int, offset: int, size: int) -> int: ...

    def write(self, index: int, offset: int, size: int, value: int) -> None: ...


def dma(device: Registers, source: int, target: int, count: int, direction: int = 0) -> None:
    """Have the device copy *count* bytes between memory and its buffer, and wait for it."""
    device.write(BAR, DMA_SOURCE, 8, source)
    device.write(BAR, DMA_TARGET, 8, target)
    device.write(BAR, DMA_COUNT, 8, count)
    device.write(BAR, DMA_COMMAND, 8, direction | RUN)
    deadline = time.monotonic() + 30
    while device.read(BAR, DMA_COMMAND, 8) & RUN:
        assert time.monotonic() < deadline, "the device doesn't finish its DMA"
        time.sleep(0.01)


def copy(device: Registers, source: int, target: int, count: int) -> None:
    """Copy memory to memory through the device's buffer."""
    dma(device, source, BUFFER, count)
    dma(device, BUFFER, target, count, TO_MEMORY)


def works(device: RemoteDevice) -> None:
    """It is there, and reaches the client's memory."""
    assert device.read(CONFIG, 0, 4) == IDS
    device.enable()
    iova, page, text = 1 << 24, 4096, os.urandom(4096)
    with memory_files(1, 2 * page) as (ram,):
        os.pwrite(ram, text, 0)
        device.dma_map(ram, iova, 2 * page)
        copy(device, iova, iova + page, page)
        assert os.pread(ram, page, page) == text
        device.dma_unmap(iova, 2 * page)

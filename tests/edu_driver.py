# SPDX-License-Identifier: BSD-3-Clause
"""What a driver of edu does, for the tests: its registers, and transfers."""

from __future__ import annotations

from vfio_user_bridge.device import PciRegion
from vfio_user_bridge.models.edu import Edu, Register

# Of config space.
COMMAND, STATUS, MSI_FLAGS = 0x04, 0x06, 0x42
MASTER, INTX_DISABLE, INTX_STATUS = 0x4, 0x400, 0x8


def get(edu: Edu, offset: int, size: int = 4) -> int:
    return int.from_bytes(edu.region_read(PciRegion.BAR0, offset, size), "little")


def put(edu: Edu, offset: int, value: int, size: int = 4) -> None:
    edu.region_write(PciRegion.BAR0, offset, value.to_bytes(size, "little"))


def transfer(edu: Edu, source: int, destination: int, count: int, command: int) -> None:
    for register, value in (
        (Register.DMA_SOURCE, source),
        (Register.DMA_DESTINATION, destination),
        (Register.DMA_COUNT, count),
        (Register.DMA_COMMAND, command),
    ):
        put(edu, register, value, 8)

# SPDX-License-Identifier: BSD-3-Clause
"""Regions reach the client as the kernel has them: by descriptor, mapped and trapped."""

from __future__ import annotations

import pytest

from integration import devices
from vfio_user_bridge.device import PciRegion, RegionFlags
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import RegionInfo

from .bridge import Bridge

WITH_MEMORY = (devices.EDU, devices.E1000E)
EDU_ID = 0x010000ED
FACTORIAL, STATUS = 0x08, 0x20


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_info_is_the_kernels(bridge: Bridge, name: str) -> None:
    """Byte for byte: the descriptor that comes with a BAR is asked for the same."""
    with bridge.client(name) as device:
        regions, irqs = device.counts()
        assert (regions, irqs) == (9, 5)
        _, fd = device.region_bytes(PciRegion.BAR0)
        assert fd is not None
        for index in range(PciRegion.VGA):
            ours, _ = device.region_bytes(index)
            assert ours == vfio.region_info(fd, index), index
        for index in range(3):
            assert device.irq(index).pack() == vfio.irq_info(fd, index), index


def test_region_without_a_kernel_region_is_empty(bridge: Bridge) -> None:
    with bridge.client(devices.EDU) as device:
        payload, fd = device.region_bytes(PciRegion.VGA)
        assert RegionInfo.unpack(payload) == RegionInfo(PciRegion.VGA)
        assert fd is None


def test_mapped_and_trapped_accesses_meet_the_same_registers(bridge: Bridge) -> None:
    with bridge.client(devices.EDU) as device:
        device.enable()
        with device.map(PciRegion.BAR0) as bar, memoryview(bar).cast("I") as registers:
            assert registers[0] == device.read(PciRegion.BAR0, 0, 4) == EDU_ID
            registers[FACTORIAL // 4] = 10
            while device.read(PciRegion.BAR0, STATUS, 4) & 1:
                pass
            assert device.read(PciRegion.BAR0, FACTORIAL, 4) == 3628800


def test_io_ports_and_memory_show_the_same_card(bridge: Bridge) -> None:
    """rtl8139 has its registers twice: its address is in the first six bytes of both BARs."""
    with bridge.client(devices.RTL8139) as device:
        device.enable()
        ports = [device.read(PciRegion.BAR0, at, 1) for at in range(6)]
        memory = [device.read(PciRegion.BAR1, at, 1) for at in range(6)]
        assert ports == memory
        assert ports[:3] == [0x52, 0x54, 0x00]  # QEMU's


def test_rom_is_readable(bridge: Bridge) -> None:
    with bridge.client(devices.E1000E) as device:
        size = RegionInfo.unpack(device.region_bytes(PciRegion.ROM)[0]).size
        assert size
        assert device.read(PciRegion.ROM, 0, 2) == 0xAA55


def test_bar_mmap_off_traps_everything(igb: str) -> None:
    with (
        Bridge(igb, options=("--bar-mmap", "off")) as trapping,
        trapping.client(igb) as device,
    ):
        device.enable()
        for index in range(PciRegion.VGA):
            payload, fd = device.region_bytes(index)
            info = RegionInfo.unpack(payload)
            assert fd is None
            assert not info.flags & (RegionFlags.MMAP | RegionFlags.CAPS)
        assert device.read(PciRegion.BAR0, 0x8, 4) not in (0, 0xFFFFFFFF)  # STATUS

# SPDX-License-Identifier: BSD-3-Clause
"""BARs by a descriptor each, where the kernel maps dma-bufs of them.

The test machine's kernel doesn't, nor does any that we know. So a memory file plays the dma-buf:
what is shown is what goes to the client, and when it is taken back.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from integration import devices
from vfio_user_bridge.device import PciRegion, RegionFlags
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.iommu import Iommu
from vfio_user_bridge.kernel import dmabuf

from .bridge import bind

EDU_ID = b"\xed\x00\x00\x01"


@pytest.fixture(autouse=True)
def _bound() -> None:
    bind(devices.EDU_ALONE)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were given out, as new files of the region's size."""
    given: list[int] = []

    def export(_device: int, region: int, size: int) -> int:
        assert region == PciRegion.BAR0
        given.append(os.memfd_create("dma-buf"))
        os.truncate(given[-1], size)
        return given[-1]

    monkeypatch.setattr(dmabuf, "export", export)
    return given


def is_open(fd: int) -> bool:
    """Whether it is still the file that was exported, and not closed or another by now."""
    path = Path("/proc/self/fd", str(fd))
    return path.exists() and "dma-buf" in str(path.readlink())


def test_a_region_is_a_file_of_its_own_for_one_client(exported: list[int]) -> None:
    with closing(HostDevice(devices.EDU_ALONE, Iommu())) as device:
        assert not is_open(exported.pop())  # that was to see whether it can be mapped
        info = device.region_info(PciRegion.BAR0)
        assert (info.offset, bool(info.flags & RegionFlags.MMAP)) == (0, True)
        first = device.region_fd(PciRegion.BAR0)
        assert [first] == exported
        assert device.region_fd(PciRegion.BAR0) == first
        device.region_write(PciRegion.CONFIG, 4, b"\x02\x00")  # answers to memory accesses
        assert device.region_read(PciRegion.BAR0, 0, 4) == EDU_ID  # the device's own
        assert device.region_fd(PciRegion.CONFIG) not in exported
        device.quiesce(reset=True)
        assert not is_open(first)
        device.region_fd(PciRegion.BAR0)
        assert len(exported) == 2
    assert not is_open(exported[1])


def test_else_the_device_s_descriptor_has_them_all() -> None:
    with closing(HostDevice(devices.EDU_ALONE, Iommu())) as device:
        assert device.region_fd(PciRegion.BAR0) == device.region_fd(PciRegion.CONFIG)
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            dmabuf.export(device.region_fd(PciRegion.BAR0), PciRegion.BAR0, 1 << 20)

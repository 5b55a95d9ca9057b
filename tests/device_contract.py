# SPDX-License-Identifier: BSD-3-Clause
"""What every Device does, whatever it is: a client must not have to care which it has.

Each function of `CONTRACT` is one clause, checked on a device that no client uses. It leaves the
device quiesced. Run it over a kind of device with::

    @pytest.mark.parametrize("clause", CONTRACT)
    def test_contract(clause, device):
        clause(device)
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vfio_user_bridge.device import Device, DeviceFlags, IrqFlags, PciIrq, PciRegion, RegionFlags
from vfio_user_bridge.messages import DmaFlags, DmaMap, IrqSet, IrqSetFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = 0x04
COMMAND_MEMORY = 0x2
COMMAND_MASTER = 0x4
STATUS_CAP_LIST = 0x10
HEADER_TYPE = 0x0E
BASE_ADDRESS_0 = 0x10
CAPABILITY_LIST = 0x34
INTERRUPT_PIN = 0x3D
CAP_ID_MSI = 0x05
CAP_ID_MSIX = 0x11
HEADER_SIZE = 64

TRIGGER = IrqSetFlags.ACTION_TRIGGER
ENABLE = TRIGGER | IrqSetFlags.DATA_EVENTFD
ACT = TRIGGER | IrqSetFlags.DATA_NONE  # with a count of 0: disable

IOVA = 0x100000
SIZE = 0x10000


def read_config(device: Device, offset: int, size: int) -> int:
    return int.from_bytes(device.region_read(PciRegion.CONFIG, offset, size), "little")


def write_config(device: Device, offset: int, size: int, value: int) -> None:
    device.region_write(PciRegion.CONFIG, offset, value.to_bytes(size, "little"))


def capabilities(device: Device) -> dict[int, int]:
    found: dict[int, int] = {}
    if read_config(device, COMMAND, 4) >> 16 & STATUS_CAP_LIST:
        offset = read_config(device, CAPABILITY_LIST, 1)
        while offset:
            assert offset not in found.values(), "the list of capabilities is a circle"
            assert HEADER_SIZE <= offset < 256
            assert offset % 4 == 0
            found[read_config(device, offset, 1)] = offset
            offset = read_config(device, offset + 1, 1)
    return found


def fired(fd: int) -> bool:
    """Take what was signalled on an eventfd, which may still be on its way."""
    if select.select([fd], [], [], 1.0)[0]:
        os.eventfd_read(fd)
        return True
    return False


@contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def memory(size: int = SIZE) -> Iterator[int]:
    fd = os.memfd_create("contract")
    try:
        os.truncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- The clauses ----------------------------------------------------------------------------


def describes_regions(device: Device) -> None:
    info = device.info
    assert info.flags & DeviceFlags.PCI
    assert info.num_regions >= len(PciRegion)
    for index in range(info.num_regions):
        region = device.region_info(index)
        assert region.index == index
        assert device.region_info(index) == region, "asking twice gives two answers"
        if not region.size:
            assert not region.flags & (RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP)
        if index < PciRegion.ROM:
            assert region.size & (region.size - 1) == 0, "BARs are powers of 2"
        if region.flags & RegionFlags.MMAP:
            os.fstat(device.region_fd(index))
        assert bool(region.flags & RegionFlags.CAPS) == bool(region.capabilities)
    assert device.region_info(PciRegion.CONFIG).size in (256, 4096)


def has_a_config_header(device: Device) -> None:
    assert read_config(device, 0, 4) not in (0, 0xFFFFFFFF)
    assert read_config(device, HEADER_TYPE, 1) & 0x7F == 0, "not an endpoint"
    whole = device.region_read(PciRegion.CONFIG, 0, HEADER_SIZE)
    narrow = b"".join(device.region_read(PciRegion.CONFIG, at, 1) for at in range(HEADER_SIZE))
    assert whole == narrow
    capabilities(device)


def reading_changes_nothing(device: Device) -> None:
    before = [device.region_info(index) for index in range(device.info.num_regions)]
    config = device.region_read(PciRegion.CONFIG, 0, 256)
    assert len(config) == 256
    assert device.region_read(PciRegion.CONFIG, 0, 256) == config
    write_config(device, COMMAND, 2, COMMAND_MEMORY)
    for region in before[: PciRegion.ROM]:
        if region.flags & RegionFlags.READ and not _is_io(device, region.index):
            assert len(device.region_read(region.index, 0, 4)) == 4
            assert len(device.region_read(region.index, region.size - 4, 4)) == 4
    assert [device.region_info(index) for index in range(device.info.num_regions)] == before
    device.quiesce(reset=True)


def _is_io(device: Device, bar: int) -> bool:
    return bool(read_config(device, BASE_ADDRESS_0 + 4 * bar, 4) & 1)


def sizes_bars(device: Device) -> None:
    """Writing all ones to a BAR tells the size that the region has."""
    upper_half = False
    for number in range(PciRegion.ROM):
        offset = BASE_ADDRESS_0 + 4 * number
        size = device.region_info(number).size
        before = read_config(device, offset, 4)
        write_config(device, offset, 4, 0xFFFFFFFF)
        answer = read_config(device, offset, 4)
        write_config(device, offset, 4, before)
        assert read_config(device, offset, 4) == before
        if upper_half:
            upper_half = False
            assert size == 0, "half a BAR has no region"
            continue
        low = 0x3 if answer & 1 else 0xF
        assert answer & low == before & low, "what kind of BAR it is was changed"
        upper_half = not answer & 1 and answer & 0x6 == 0x4
        if size and size < 1 << 32:
            mask = 0xFFFC if answer & 1 else 0xFFFFFFF0  # upper bits of I/O BARs may be 0
            assert answer & mask == -size & mask
        elif not size:
            assert answer == 0


def describes_interrupts(device: Device) -> None:
    assert device.info.num_irqs >= PciIrq.MSIX + 1
    infos = [device.irq_info(index) for index in range(device.info.num_irqs)]
    assert [info.index for info in infos] == list(range(len(infos)))
    assert all(info.flags & IrqFlags.EVENTFD for info in infos if info.count)
    intx, msi, msix = infos[: PciIrq.MSIX + 1]
    assert intx.count == (read_config(device, INTERRUPT_PIN, 1) != 0)
    if intx.count:
        assert intx.flags & IrqFlags.AUTOMASKED
        assert intx.flags & IrqFlags.MASKABLE
    found = capabilities(device)
    if CAP_ID_MSI in found:
        assert msi.count == 1 << (read_config(device, found[CAP_ID_MSI] + 2, 2) >> 1 & 0x7)
    else:
        assert msi.count == 0
    if CAP_ID_MSIX in found:
        assert msix.count == (read_config(device, found[CAP_ID_MSIX] + 2, 2) & 0x7FF) + 1
    else:
        assert msix.count == 0


def _kinds(device: Device) -> list[PciIrq]:
    kinds = (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX)
    return [kind for kind in kinds if device.irq_info(kind).count]


def enables_and_disables_interrupts(device: Device) -> None:
    """Each kind, twice: an eventfd that can be tried (DATA_NONE), then silence."""
    for kind in _kinds(device) * 2:
        with eventfd() as fd:
            with pytest.raises(OSError, match=r".") as refused:
                device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert refused.value.errno == errno.EINVAL
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [fd])
            device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert fired(fd)
            device.set_irqs(IrqSet(TRIGGER | IrqSetFlags.DATA_BOOL, kind, 0, 1, b"\0"), [])
            device.set_irqs(IrqSet(ACT, kind, 0, 0), [])
            assert select.select([fd], [], [], 0)[0] == []
    device.quiesce(reset=True)


def uses_one_kind_of_interrupt(device: Device) -> None:
    """INTx, MSI and MSI-X exclude each other; the one in use stays."""
    for kind in _kinds(device):
        with eventfd() as fd, eventfd() as other_fd:
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [fd])
            for other in _kinds(device):
                if other != kind:
                    with pytest.raises(OSError, match=r".") as refused:
                        device.set_irqs(IrqSet(ENABLE, other, 0, 1), [other_fd])
                    assert refused.value.errno == errno.EINVAL
            device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert fired(fd)
            device.set_irqs(IrqSet(ACT, kind, 0, 0), [])
    device.quiesce(reset=True)


def replaces_and_takes_back_eventfds(device: Device) -> None:
    for kind in _kinds(device):
        with eventfd() as first, eventfd() as second:
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [first])
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [second])
            device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert fired(second)
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [])  # none: de-assigned, still enabled
            device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert select.select([first, second], [], [], 0)[0] == []
            device.set_irqs(IrqSet(ACT, kind, 0, 0), [])
    device.quiesce(reset=True)


def takes_only_eventfds(device: Device) -> None:
    """What isn't one is refused, and not written to."""
    for kind in _kinds(device):
        with memory(size=8) as fd:
            with pytest.raises(OSError, match=r".") as refused:
                device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [fd])
            assert refused.value.errno == errno.EINVAL
            assert os.pread(fd, 9, 0) == bytes(8)
    device.quiesce(reset=True)


def maps_memory(device: Device) -> None:
    """Again after it was unmapped; read-only; and without a file, as QEMU shares its ROMs."""
    both = DmaFlags.READ | DmaFlags.WRITE
    with memory() as fd:
        for flags in (both, DmaFlags.READ, both):
            first = DmaMap(flags, 0, IOVA, SIZE // 2)
            second = DmaMap(flags, SIZE // 2, IOVA + SIZE, SIZE // 2)
            device.dma_map(first, fd)
            device.dma_map(second, fd)
            device.dma_unmap(first)
            device.dma_unmap(second)
        private = DmaMap(DmaFlags.READ, 0, IOVA, SIZE)
        device.dma_map(private, None)
        device.dma_unmap(private)
    device.quiesce(reset=True)


def resets(device: Device) -> None:
    """If it says so. Identity and layout stay."""
    if not device.info.flags & DeviceFlags.RESET:
        with pytest.raises(OSError, match=r".") as refused:
            device.reset()
        assert refused.value.errno in (errno.ENOTTY, errno.EINVAL)
        return
    identity = device.region_read(PciRegion.CONFIG, 0, 4)
    regions = [device.region_info(index) for index in range(device.info.num_regions)]
    device.reset()
    assert device.region_read(PciRegion.CONFIG, 0, 4) == identity
    assert [device.region_info(index) for index in range(device.info.num_regions)] == regions


def keeps_interrupts_over_a_reset(device: Device) -> None:
    if device.info.flags & DeviceFlags.RESET:
        for kind in _kinds(device):
            with eventfd() as fd:
                device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [fd])
                device.reset()
                device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
                assert fired(fd)
                device.set_irqs(IrqSet(ACT, kind, 0, 0), [])
    device.quiesce(reset=True)


def is_quiet_when_its_client_is_gone(device: Device) -> None:
    """No interrupt, no bus mastering, no file of the client's; and ready for the next client."""
    for kind in _kinds(device) * 2:
        with eventfd() as fd, memory() as ram:
            before = open_files()
            region = DmaMap(DmaFlags.READ | DmaFlags.WRITE, 0, IOVA, SIZE)
            device.dma_map(region, ram)
            device.set_irqs(IrqSet(ENABLE, kind, 0, 1), [fd])
            write_config(device, COMMAND, 2, COMMAND_MEMORY | COMMAND_MASTER)
            assert read_config(device, COMMAND, 2) & COMMAND_MASTER
            device.quiesce(reset=True)
            device.dma_unmap(region)
            assert not read_config(device, COMMAND, 2) & COMMAND_MASTER
            with pytest.raises(OSError, match=r".") as refused:
                device.set_irqs(IrqSet(ACT, kind, 0, 1), [])
            assert refused.value.errno == errno.EINVAL
            assert select.select([fd], [], [], 0)[0] == []
            assert open_files() == before


CONTRACT: tuple[Callable[[Device], None], ...] = (
    describes_regions,
    has_a_config_header,
    reading_changes_nothing,
    sizes_bars,
    describes_interrupts,
    enables_and_disables_interrupts,
    uses_one_kind_of_interrupt,
    replaces_and_takes_back_eventfds,
    takes_only_eventfds,
    maps_memory,
    resets,
    keeps_interrupts_over_a_reset,
    is_quiet_when_its_client_is_gone,
)

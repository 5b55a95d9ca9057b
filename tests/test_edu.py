# SPDX-License-Identifier: BSD-3-Clause
"""The model of edu: its registers, and DMA to a client's memory.

That it is QEMU's, value for value, is shown by integration/host/test_edu_qtest.py; here is what a
guest can't reach, and what goes wrong. Interrupts are in test_edu_interrupts.py.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.device_contract import ENABLE, eventfd, memory, write_config
from tests.edu_driver import COMMAND, MASTER, get, put, transfer
from vfio_user_bridge.device import PciIrq, PciRegion
from vfio_user_bridge.messages import DmaFlags, DmaMap, IrqSet
from vfio_user_bridge.models.edu import BUFFER, Edu, Register

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_WRITE = DmaFlags.READ | DmaFlags.WRITE
IOVA = 0x100000
PAGE = 4096
RUN, RUN_TO_MEMORY, RUN_WITH_IRQ = 1, 3, 5


@pytest.fixture
def fresh() -> Iterator[Edu]:
    with closing(Edu()) as device:
        yield device


@pytest.fixture
def edu() -> Iterator[Edu]:
    with closing(Edu()) as device:
        write_config(device, COMMAND, 2, MASTER)
        yield device


def buffer(edu: Edu, count: int = PAGE) -> bytes:
    """The device's buffer as a transfer to client memory shows it."""
    probe = DmaMap(READ_WRITE, 0, 0x8000000, PAGE)
    with memory(PAGE) as fd:
        edu.dma_map(probe, fd)
        transfer(edu, BUFFER, probe.address, PAGE, RUN_TO_MEMORY)
        edu.dma_unmap(probe)
        return os.pread(fd, count, 0)


# ---- Registers ------------------------------------------------------------------------------


def test_registers(fresh: Edu) -> None:
    edu = fresh
    assert get(edu, Register.IDENTIFICATION) == 0x010000ED
    put(edu, Register.LIVENESS, 0x12345678)
    assert get(edu, Register.LIVENESS) == 0xEDCBA987
    put(edu, Register.STATUS, 0xFFFFFFFF)
    assert get(edu, Register.STATUS) == 0x80
    put(edu, Register.DMA_COMMAND, 0x6)  # doesn't run: not taken
    assert get(edu, Register.DMA_COMMAND) == 0


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (0x00, 1, 0),
        (0x00, 2, 0),
        (0x00, 8, 0xFFFFFFFFFFFFFFFF),
        (0x0C, 4, 0xFFFFFFFF),
        (0x80, 4, 0x89ABCDEF),
        (0x80, 8, 0x0123456789ABCDEF),
        (0x84, 4, 0xFFFFFFFF),
        (0x82, 2, 0),
    ],
)
def test_access_sizes(edu: Edu, offset: int, size: int, value: int) -> None:
    put(edu, Register.DMA_SOURCE, 0x0123456789ABCDEF, 8)
    assert get(edu, offset, size) == value


def test_long_and_odd_accesses_are_split_as_vfio_splits_them(edu: Edu) -> None:
    put(edu, Register.DMA_SOURCE, 0x1111111111111111, 8)
    whole = edu.region_read(PciRegion.BAR0, 0x7D, 14)
    assert whole == bytes(3) + b"\x11" * 8 + bytes(3)
    edu.region_write(PciRegion.BAR0, Register.LIVENESS, bytes(4) + (5).to_bytes(4, "little"))
    assert (get(edu, Register.LIVENESS), get(edu, Register.FACTORIAL)) == (0xFFFFFFFF, 120)


def test_factorials(edu: Edu) -> None:
    product = 1
    for number in range(40):
        product = product * max(number, 1) & 0xFFFFFFFF
        put(edu, Register.FACTORIAL, number)
        assert get(edu, Register.FACTORIAL) == product


def test_no_factorial_takes_long(edu: Edu) -> None:
    start = time.monotonic()
    put(edu, Register.FACTORIAL, 0xFFFFFFFF)
    assert get(edu, Register.FACTORIAL) == 0
    assert time.monotonic() - start < 0.1


@pytest.mark.parametrize("register", [Register.STATUS, Register.IRQ_RAISE])
def test_long_writes_to_short_registers_are_lost(edu: Edu, register: Register) -> None:
    put(edu, register, 0x80, 8)
    assert (get(edu, Register.STATUS), get(edu, Register.IRQ_STATUS)) == (0, 0)


def test_config_write_masks(edu: Edu, fresh: Edu) -> None:
    """As QEMU's `-device edu` answers under qtest, bytes written one by one."""
    header = (
        "3412e811 07051000 1000ff00 ff000000 0000f0ff" + "00000000" * 6 + "f41a0011"
        "00000000 40000000 00000000 ff010000"
    )
    msi = "05008100 fcffffff ffffffff ffff"
    memory = "ff" * (256 - 0x4E)
    for offset in range(256):
        write_config(edu, offset, 1, 0xFF)
    assert edu.region_read(PciRegion.CONFIG, 0, 256).hex() == (header + msi + memory).replace(
        " ", ""
    )
    for offset in range(256):
        write_config(edu, offset, 1, 0)
    assert edu.region_read(PciRegion.CONFIG, 0, 256) == fresh.region_read(PciRegion.CONFIG, 0, 256)


# ---- DMA ------------------------------------------------------------------------------------


def test_dma_both_ways(edu: Edu) -> None:
    with memory(2 * PAGE) as fd, eventfd() as irq:
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA, 2 * PAGE), fd)
        edu.set_irqs(IrqSet(ENABLE, PciIrq.MSI, 0, 1), [irq])
        os.pwrite(fd, b"from the client", 10)
        transfer(edu, IOVA + 10, BUFFER + 100, 15, RUN_WITH_IRQ)
        assert os.eventfd_read(irq) == 1
        assert get(edu, Register.IRQ_STATUS) == 0x100
        assert get(edu, Register.DMA_COMMAND) == 0x4
        transfer(edu, BUFFER + 100, IOVA + PAGE, 15, RUN_TO_MEMORY)
        assert os.pread(fd, 17, PAGE) == b"from the client\0\0"


def test_dma_spans_adjacent_maps(edu: Edu) -> None:
    """They are adjacent in IOVA, not in the file."""
    with memory(2 * PAGE) as fd:
        edu.dma_map(DmaMap(READ_WRITE, PAGE, IOVA, PAGE), fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA + PAGE, PAGE), fd)
        os.pwrite(fd, b"right", 0)
        os.pwrite(fd, b"left ", 2 * PAGE - 5)
        transfer(edu, IOVA + PAGE - 5, BUFFER, 10, RUN)
        assert buffer(edu, 10) == b"left right"
        os.pwrite(fd, bytes(5), 0)
        transfer(edu, BUFFER, IOVA + PAGE - 5, 10, RUN_TO_MEMORY)
        assert os.pread(fd, 5, 0) == b"right"


def fill(edu: Edu, fd: int) -> None:
    """Put 0xAA all over the device's buffer, through the memory file *fd*."""
    full = DmaMap(READ_WRITE, 0, 0x4000000, PAGE)
    os.pwrite(fd, b"\xaa" * PAGE, 0)
    edu.dma_map(full, fd)
    transfer(edu, full.address, BUFFER, PAGE, RUN)
    edu.dma_unmap(full)


@pytest.mark.parametrize("case", ["no map", "no file", "not readable", "shrunk", "no master"])
def test_blocked_reads(edu: Edu, case: str, caplog: pytest.LogCaptureFixture) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        flags = DmaFlags.WRITE if case == "not readable" else READ_WRITE
        if case != "no map":
            edu.dma_map(DmaMap(flags, 0, IOVA, PAGE), None if case == "no file" else fd)
        if case == "shrunk":
            os.ftruncate(fd, 0)
        if case == "no master":
            write_config(edu, COMMAND, 2, 0)
        transfer(edu, IOVA, BUFFER, 16, RUN_WITH_IRQ)
        write_config(edu, COMMAND, 2, MASTER)
        assert buffer(edu, 20) == bytes(16) + b"\xaa" * 4
        assert get(edu, Register.IRQ_STATUS) == 0x100, "the device is not told"
        assert len(caplog.records) == 1
        assert caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize("case", ["no map", "no file", "read-only", "shrunk", "no master"])
def test_blocked_writes(edu: Edu, case: str, caplog: pytest.LogCaptureFixture) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        os.pwrite(fd, bytes(PAGE), 0)
        flags = DmaFlags.READ if case == "read-only" else READ_WRITE
        if case != "no map":
            edu.dma_map(DmaMap(flags, 0, IOVA, PAGE), None if case == "no file" else fd)
        if case == "shrunk":
            os.ftruncate(fd, 0)
        if case == "no master":
            write_config(edu, COMMAND, 2, 0)
        transfer(edu, BUFFER, IOVA, 16, RUN_TO_MEMORY | RUN_WITH_IRQ)
        os.ftruncate(fd, PAGE)
        assert os.pread(fd, PAGE, 0) == bytes(PAGE)
        assert get(edu, Register.IRQ_STATUS) == 0x100
        assert len(caplog.records) == 1


def test_a_dma_that_is_blocked_in_part(edu: Edu) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA, PAGE), fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA + 2 * PAGE, PAGE), fd)
        transfer(edu, IOVA - 4, BUFFER, 8, RUN)
        assert buffer(edu, 9) == bytes(4) + b"\xaa" * 5
        transfer(edu, IOVA + PAGE - 4, BUFFER, 8, RUN)
        assert buffer(edu, 9) == b"\xaa" * 4 + bytes(4) + b"\xaa"


def test_unmapped_memory_is_left_alone(edu: Edu) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        request = DmaMap(READ_WRITE, 0, IOVA, PAGE)
        edu.dma_map(request, fd)
        edu.dma_unmap(request)
        os.pwrite(fd, bytes(16), 0)
        transfer(edu, BUFFER, IOVA, 16, RUN_TO_MEMORY)
        assert os.pread(fd, 16, 0) == bytes(16)
        with pytest.raises(OSError, match="no DMA map"):
            edu.dma_unmap(request)
    assert "memfd:contract" not in Path("/proc/self/maps").read_text()


def test_a_guest_cant_flood_the_log(edu: Edu, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        transfer(edu, IOVA, BUFFER, 1, RUN)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("inside", "count"),
    [(BUFFER - 1, 2), (BUFFER + 1, PAGE), (BUFFER + PAGE, 1), (BUFFER, 1 << 63), (0, 1)],
)
def test_dma_stays_in_the_buffer(edu: Edu, inside: int, count: int) -> None:
    with memory(2 * PAGE) as fd:
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA, 2 * PAGE), fd)
        fill(edu, fd)
        os.pwrite(fd, b"\xff" * 2 * PAGE, 0)
        transfer(edu, IOVA, inside, count, RUN)
        transfer(edu, inside, IOVA, count, RUN_TO_MEMORY)
        assert os.pread(fd, 2 * PAGE, 0) == b"\xff" * 2 * PAGE
        assert buffer(edu) == b"\xaa" * PAGE


# ---- From one client to the next ------------------------------------------------------------


def test_reset_puts_everything_back(edu: Edu, fresh: Edu) -> None:
    initial = [fresh.region_read(PciRegion.CONFIG, 0, 256), fresh.region_read(0, 0, 0x100)]
    for register in Register:
        put(edu, register, 0xA5A5A5A4)
    with memory(PAGE) as fd:
        fill(edu, fd)
    edu.region_write(PciRegion.CONFIG, 0, b"\xa5" * 256)
    changed = [edu.region_read(PciRegion.CONFIG, 0, 256), edu.region_read(0, 0, 0x100)]
    assert changed[0] != initial[0]
    assert changed[1] != initial[1]
    edu.reset()
    assert [edu.region_read(PciRegion.CONFIG, 0, 256), edu.region_read(0, 0, 0x100)] == initial
    write_config(edu, COMMAND, 2, MASTER)
    assert buffer(edu) == bytes(PAGE)

# SPDX-License-Identifier: BSD-3-Clause
"""The model of edu: registers, interrupts by eventfd, DMA to a client's memory.

That it is QEMU's, value for value, is shown by integration/host/test_edu_qtest.py; here is what a
guest can't reach, and what goes wrong.
"""

from __future__ import annotations

import errno
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.device_contract import eventfd, fired, memory, open_files, read_config, write_config
from vfio_user_bridge.device import PciIrq, PciRegion
from vfio_user_bridge.messages import DmaFlags, DmaMap, IrqSet, IrqSetFlags
from vfio_user_bridge.models.edu import BUFFER, Edu, Register

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND, STATUS, MSI_FLAGS = 0x04, 0x06, 0x42
MASTER, INTX_DISABLE, INTX_STATUS = 0x4, 0x400, 0x8
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
TRIGGER = IrqSetFlags.ACTION_TRIGGER
MASK, UNMASK = IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK

READ_WRITE = DmaFlags.READ | DmaFlags.WRITE
IOVA = 0x100000
PAGE = 4096
FULL = (1 << 64) - 2  # the most that write() puts into an eventfd
RUN, RUN_TO_MEMORY, RUN_WITH_IRQ = 1, 3, 5


@pytest.fixture
def edu() -> Iterator[Edu]:
    device = Edu()
    write_config(device, COMMAND, 2, MASTER)
    yield device
    device.close()


def get(edu: Edu, offset: int, size: int = 4) -> int:
    return int.from_bytes(edu.region_read(PciRegion.BAR0, offset, size), "little")


def put(edu: Edu, offset: int, value: int, size: int = 4) -> None:
    edu.region_write(PciRegion.BAR0, offset, value.to_bytes(size, "little"))


def set_irqs(edu: Edu, kind: PciIrq, flags: int, *fds: int, data: bytes = b"") -> None:
    edu.set_irqs(IrqSet(flags, kind, 0, 1, data), fds)


def disable(edu: Edu, kind: PciIrq) -> None:
    edu.set_irqs(IrqSet(TRIGGER | NONE, kind, 0, 0), [])


def silent(*fds: int) -> bool:
    return not select.select(fds, [], [], 0)[0]


def dma(edu: Edu, source: int, destination: int, count: int, command: int) -> None:
    for register, value in (
        (Register.DMA_SOURCE, source),
        (Register.DMA_DESTINATION, destination),
        (Register.DMA_COUNT, count),
        (Register.DMA_COMMAND, command),
    ):
        put(edu, register, value, 8)


def buffer(edu: Edu, count: int = PAGE) -> bytes:
    """The device's buffer as a transfer to client memory shows it."""
    probe = DmaMap(READ_WRITE, 0, 0x8000000, PAGE)
    with memory(PAGE) as fd:
        edu.dma_map(probe, fd)
        dma(edu, BUFFER, probe.address, PAGE, RUN_TO_MEMORY)
        edu.dma_unmap(probe)
        return os.pread(fd, count, 0)


# ---- Registers ------------------------------------------------------------------------------


def test_registers() -> None:
    edu = Edu()
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


def test_config_write_masks() -> None:
    """As QEMU's `-device edu` answers under qtest, bytes written one by one."""
    edu = Edu()
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
    assert edu.region_read(PciRegion.CONFIG, 0, 256) == Edu().region_read(PciRegion.CONFIG, 0, 256)


# ---- INTx -----------------------------------------------------------------------------------


def test_intx_fires_once_until_it_is_unmasked(edu: Edu) -> None:
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        put(edu, Register.IRQ_RAISE, 0x1)
        assert os.eventfd_read(fd) == 1
        put(edu, Register.IRQ_RAISE, 0x2)
        assert silent(fd)
        assert get(edu, Register.IRQ_STATUS) == 0x3
        assert read_config(edu, STATUS, 2) & INTX_STATUS
        set_irqs(edu, PciIrq.INTX, UNMASK | NONE)
        assert os.eventfd_read(fd) == 1  # it is still raised
        put(edu, Register.IRQ_ACKNOWLEDGE, 0x1)
        set_irqs(edu, PciIrq.INTX, UNMASK | BOOL, data=b"\0")
        assert silent(fd)
        set_irqs(edu, PciIrq.INTX, UNMASK | BOOL, data=b"\1")
        assert os.eventfd_read(fd) == 1
        put(edu, Register.IRQ_ACKNOWLEDGE, 0x2)
        assert not read_config(edu, STATUS, 2) & INTX_STATUS
        set_irqs(edu, PciIrq.INTX, UNMASK | NONE)
        assert silent(fd)
        put(edu, Register.IRQ_RAISE, 0x4)
        assert os.eventfd_read(fd) == 1


def test_intx_masked_by_the_client(edu: Edu) -> None:
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        set_irqs(edu, PciIrq.INTX, MASK | NONE)
        put(edu, Register.IRQ_RAISE, 0x1)
        assert silent(fd)
        set_irqs(edu, PciIrq.INTX, UNMASK | NONE)
        assert os.eventfd_read(fd) == 1


def test_intx_disabled_in_the_command_register(edu: Edu) -> None:
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        write_config(edu, COMMAND, 2, INTX_DISABLE)
        put(edu, Register.IRQ_RAISE, 0x1)
        assert silent(fd)
        assert read_config(edu, STATUS, 2) & INTX_STATUS
        write_config(edu, COMMAND, 2, 0)
        assert os.eventfd_read(fd) == 1


def test_intx_raised_before_the_client_listens(edu: Edu) -> None:
    put(edu, Register.IRQ_RAISE, 0x1)
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        assert os.eventfd_read(fd) == 1
        disable(edu, PciIrq.INTX)
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)  # a new start: not masked
        assert os.eventfd_read(fd) == 1


def test_intx_unmasked_by_eventfd(edu: Edu) -> None:
    files = open_files()
    with eventfd() as fd, eventfd() as unmask:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        set_irqs(edu, PciIrq.INTX, UNMASK | EVENTFD, unmask)
        put(edu, Register.IRQ_RAISE, 0x1)
        for _ in range(3):
            assert fired(fd)
            assert silent(fd)
            os.eventfd_write(unmask, 1)
        assert fired(fd)
        assert silent(unmask), "the device takes what it is told"
        set_irqs(edu, PciIrq.INTX, UNMASK | EVENTFD)  # de-assigned
        os.eventfd_write(unmask, 1)
        assert not select.select([fd], [], [], 0.02)[0]
        set_irqs(edu, PciIrq.INTX, UNMASK | EVENTFD, unmask)  # already signalled: counts
        assert fired(fd)
        disable(edu, PciIrq.INTX)
    assert open_files() == files


@pytest.mark.parametrize(
    ("kind", "flags", "code"),
    [
        (PciIrq.INTX, MASK | NONE, errno.EINVAL),  # not enabled
        (PciIrq.INTX, UNMASK | NONE, errno.EINVAL),
        (PciIrq.INTX, MASK | EVENTFD, errno.EINVAL),
        (PciIrq.MSI, MASK | NONE, errno.ENOTTY),
        (PciIrq.MSI, UNMASK | NONE, errno.ENOTTY),
        (PciIrq.REQ, TRIGGER | NONE, errno.EINVAL),
        (PciIrq.MSIX, TRIGGER | EVENTFD, errno.EINVAL),
        (PciIrq.ERR, TRIGGER | EVENTFD, errno.EINVAL),
    ],
)
def test_what_vfio_refuses(edu: Edu, kind: PciIrq, flags: int, code: int) -> None:
    with pytest.raises(OSError, match=r".") as refused:
        set_irqs(edu, kind, flags)
    assert refused.value.errno == code


def test_intx_cant_be_masked_by_eventfd(edu: Edu) -> None:
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        with pytest.raises(OSError, match=r".") as refused:
            set_irqs(edu, PciIrq.INTX, MASK | EVENTFD, fd)
        assert refused.value.errno == errno.ENOTTY


# ---- MSI, and eventfds ----------------------------------------------------------------------


def test_every_raise_is_an_msi(edu: Edu) -> None:
    put(edu, Register.IRQ_RAISE, 0x1)
    with eventfd() as fd:
        set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD, fd)
        assert read_config(edu, MSI_FLAGS, 2) & 1, "the client needn't write config space"
        assert not read_config(edu, STATUS, 2) & INTX_STATUS
        assert silent(fd)
        for _ in range(3):
            put(edu, Register.IRQ_RAISE, 0x1)
        assert os.eventfd_read(fd) == 3
        put(edu, Register.STATUS, 0x80)
        put(edu, Register.FACTORIAL, 3)
        assert os.eventfd_read(fd) == 1
        set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD)  # de-assigned: lost
        put(edu, Register.IRQ_RAISE, 0x1)
        assert silent(fd)
        disable(edu, PciIrq.MSI)
        assert not read_config(edu, MSI_FLAGS, 2) & 1


def test_msi_survives_a_reset(edu: Edu) -> None:
    """It is the client's: the kernel, too, restores it after resetting a function."""
    with eventfd() as fd:
        set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD, fd)
        edu.reset()
        put(edu, Register.IRQ_RAISE, 0x1)
        assert os.eventfd_read(fd) == 1


def test_the_request_to_go_is_never_made(edu: Edu) -> None:
    with eventfd() as fd:
        set_irqs(edu, PciIrq.REQ, TRIGGER | EVENTFD, fd)
        put(edu, Register.IRQ_RAISE, 0x1)
        edu.reset()
        assert silent(fd)


def test_a_full_eventfd_doesnt_block(edu: Edu) -> None:
    """A write() to it would, for ever."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(fd, FULL)
    set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD, fd)
    put(edu, Register.IRQ_RAISE, 0x1)
    put(edu, Register.IRQ_RAISE, 0x1)
    assert get(edu, Register.IRQ_STATUS) == 0x1
    assert os.eventfd_read(fd) > FULL
    os.close(fd)


def test_a_refused_eventfd_changes_nothing(edu: Edu) -> None:
    read_end, write_end = os.pipe()
    files = open_files()
    with eventfd() as fd:
        set_irqs(edu, PciIrq.INTX, TRIGGER | EVENTFD, fd)
        for flags in (TRIGGER | EVENTFD, UNMASK | EVENTFD):
            with pytest.raises(OSError, match="isn't an eventfd"):
                set_irqs(edu, PciIrq.INTX, flags, write_end)
        put(edu, Register.IRQ_RAISE, 0x1)
        assert os.eventfd_read(fd) == 1
        disable(edu, PciIrq.INTX)
    assert silent(read_end)
    assert open_files() == files
    os.close(read_end)
    os.close(write_end)


# ---- DMA ------------------------------------------------------------------------------------


def test_dma_both_ways(edu: Edu) -> None:
    with memory(2 * PAGE) as fd, eventfd() as irq:
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA, 2 * PAGE), fd)
        set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD, irq)
        os.pwrite(fd, b"from the client", 10)
        dma(edu, IOVA + 10, BUFFER + 100, 15, RUN_WITH_IRQ)
        assert os.eventfd_read(irq) == 1
        assert get(edu, Register.IRQ_STATUS) == 0x100
        assert get(edu, Register.DMA_COMMAND) == 0x4
        dma(edu, BUFFER + 100, IOVA + PAGE, 15, RUN_TO_MEMORY)
        assert os.pread(fd, 17, PAGE) == b"from the client\0\0"


def test_dma_spans_adjacent_maps(edu: Edu) -> None:
    """They are adjacent in IOVA, not in the file."""
    with memory(2 * PAGE) as fd:
        edu.dma_map(DmaMap(READ_WRITE, PAGE, IOVA, PAGE), fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA + PAGE, PAGE), fd)
        os.pwrite(fd, b"right", 0)
        os.pwrite(fd, b"left ", 2 * PAGE - 5)
        dma(edu, IOVA + PAGE - 5, BUFFER, 10, RUN)
        assert buffer(edu, 10) == b"left right"
        os.pwrite(fd, bytes(5), 0)
        dma(edu, BUFFER, IOVA + PAGE - 5, 10, RUN_TO_MEMORY)
        assert os.pread(fd, 5, 0) == b"right"


def fill(edu: Edu, fd: int) -> None:
    """Put 0xAA all over the device's buffer, through the memory file *fd*."""
    full = DmaMap(READ_WRITE, 0, 0x4000000, PAGE)
    os.pwrite(fd, b"\xaa" * PAGE, 0)
    edu.dma_map(full, fd)
    dma(edu, full.address, BUFFER, PAGE, RUN)
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
        dma(edu, IOVA, BUFFER, 16, RUN_WITH_IRQ)
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
        dma(edu, BUFFER, IOVA, 16, RUN_TO_MEMORY | RUN_WITH_IRQ)
        os.ftruncate(fd, PAGE)
        assert os.pread(fd, PAGE, 0) == bytes(PAGE)
        assert get(edu, Register.IRQ_STATUS) == 0x100
        assert len(caplog.records) == 1


def test_a_dma_that_is_blocked_in_part(edu: Edu) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA, PAGE), fd)
        edu.dma_map(DmaMap(READ_WRITE, 0, IOVA + 2 * PAGE, PAGE), fd)
        dma(edu, IOVA - 4, BUFFER, 8, RUN)
        assert buffer(edu, 9) == bytes(4) + b"\xaa" * 5
        dma(edu, IOVA + PAGE - 4, BUFFER, 8, RUN)
        assert buffer(edu, 9) == b"\xaa" * 4 + bytes(4) + b"\xaa"


def test_unmapped_memory_is_left_alone(edu: Edu) -> None:
    with memory(PAGE) as fd:
        fill(edu, fd)
        request = DmaMap(READ_WRITE, 0, IOVA, PAGE)
        edu.dma_map(request, fd)
        edu.dma_unmap(request)
        os.pwrite(fd, bytes(16), 0)
        dma(edu, BUFFER, IOVA, 16, RUN_TO_MEMORY)
        assert os.pread(fd, 16, 0) == bytes(16)
        with pytest.raises(OSError, match="no DMA map"):
            edu.dma_unmap(request)
    assert "memfd:contract" not in Path("/proc/self/maps").read_text()


def test_a_guest_cant_flood_the_log(edu: Edu, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        dma(edu, IOVA, BUFFER, 1, RUN)
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
        dma(edu, IOVA, inside, count, RUN)
        dma(edu, inside, IOVA, count, RUN_TO_MEMORY)
        assert os.pread(fd, 2 * PAGE, 0) == b"\xff" * 2 * PAGE
        assert buffer(edu) == b"\xaa" * PAGE


# ---- From one client to the next ------------------------------------------------------------


def test_reset_puts_everything_back(edu: Edu) -> None:
    fresh = Edu()
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


@pytest.mark.parametrize("reset", [True, False])
def test_quiesce(edu: Edu, reset: bool) -> None:
    put(edu, Register.LIVENESS, 0)
    with eventfd() as fd:
        set_irqs(edu, PciIrq.MSI, TRIGGER | EVENTFD, fd)
        edu.quiesce(reset=reset)
        put(edu, Register.IRQ_RAISE, 0x1)
        assert silent(fd)
        assert read_config(edu, MSI_FLAGS, 2) & 1 == 0
        assert read_config(edu, COMMAND, 2) & MASTER == 0
        assert get(edu, Register.LIVENESS) == (0 if reset else 0xFFFFFFFF)

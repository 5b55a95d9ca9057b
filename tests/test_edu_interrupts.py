# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts of the model of edu: real eventfds, under the rules of VFIO_DEVICE_SET_IRQS."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.device_contract import eventfd, fired, open_files, read_config, write_config
from tests.edu_driver import COMMAND, INTX_DISABLE, INTX_STATUS, MASTER, MSI_FLAGS, STATUS, get, put
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.eventfd import take
from vfio_user_bridge.messages import IrqSet, IrqSetFlags
from vfio_user_bridge.models.edu import Edu, Register

if TYPE_CHECKING:
    from collections.abc import Iterator

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
TRIGGER = IrqSetFlags.ACTION_TRIGGER
MASK, UNMASK = IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK
FULL = (1 << 64) - 2  # the most that write() puts into an eventfd


@pytest.fixture
def edu() -> Iterator[Edu]:
    device = Edu()
    write_config(device, COMMAND, 2, MASTER)
    yield device
    device.close()


def set_irqs(edu: Edu, kind: PciIrq, flags: int, *fds: int, data: bytes = b"") -> None:
    edu.set_irqs(IrqSet(flags, kind, 0, 1, data), fds)


def disable(edu: Edu, kind: PciIrq) -> None:
    edu.set_irqs(IrqSet(TRIGGER | NONE, kind, 0, 0), [])


def silent(*fds: int) -> bool:
    return not select.select(fds, [], [], 0)[0]


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


def test_an_empty_eventfd_doesnt_block() -> None:
    """As one is when the client takes back what it signalled."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    assert not take(fd)
    os.eventfd_write(fd, 2)
    assert take(fd)
    assert not take(fd)
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

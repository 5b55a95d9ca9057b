# SPDX-License-Identifier: BSD-3-Clause
"""Message-signalled interrupts by the dozen: sets that don't fit into one message, and that change.

Which eventfd is where is seen by having the kernel signal them (DATA_NONE, DATA_BOOL).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from integration import devices
from tests import client as wire
from tests.wire import set_irqs
from vfio_user_bridge.device import PciIrq

from .bridge import Bridge, RemoteDevice, bind, command, fired
from .test_interrupts import BOOL, EVENTFD, NONE, SOON, TRIGGER, eventfds

MESSAGE = 16  # eventfds in one message: max_msg_fds
MSI_VECTORS, MSIX_VECTORS = 16, 65


@pytest.fixture(scope="module")
def serving() -> Iterator[Bridge]:
    served = (devices.XHCI_MSI, devices.NVME)
    bind(*served)
    with Bridge(*served) as running:
        yield running
    assert not command("unbind", *served).returncode


@pytest.fixture
def msi(serving: Bridge) -> Iterator[RemoteDevice]:
    with serving.client(devices.XHCI_MSI) as remote:
        assert remote.irq(PciIrq.MSI).count == MSI_VECTORS
        yield remote


@pytest.fixture
def msix(serving: Bridge) -> Iterator[RemoteDevice]:
    with serving.client(devices.NVME) as remote:
        assert remote.irq(PciIrq.MSIX).count == MSIX_VECTORS
        yield remote


def assign(device: RemoteDevice, index: int, start: int, events: Sequence[int]) -> None:
    device.set_irqs(EVENTFD | TRIGGER, index, start, len(events), events)


def release(device: RemoteDevice, index: int, start: int, count: int) -> None:
    device.set_irqs(EVENTFD | TRIGGER, index, start, count)


def signalled(device: RemoteDevice, index: int, vector: int, events: Sequence[int]) -> list[int]:
    """Have the kernel signal one vector; gives which of *events* were."""
    only = bytes(vector) + b"\1"
    device.wire.ask(wire.SET_IRQS, set_irqs(BOOL | TRIGGER, index, 0, len(only), only))
    return [at for at, event in enumerate(events) if fired(event, 0)]  # before the ioctl returned


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_msi_set_in_pieces(msi: RemoteDevice, pieces: int) -> None:
    """The kernel can't add vectors to MSI that is enabled; a client of 8 descriptors must."""
    size = MSI_VECTORS // pieces
    with eventfds(MSI_VECTORS) as events:
        for start in range(0, MSI_VECTORS, size):
            assign(msi, PciIrq.MSI, start, events[start : start + size])
        for vector in (0, 1, 7, 8, 15):
            assert signalled(msi, PciIrq.MSI, vector, events) == [vector]
        msi.set_irqs(NONE | TRIGGER, PciIrq.MSI, 0, 0)


def test_msix_set_in_pieces(msix: RemoteDevice) -> None:
    with eventfds(MSIX_VECTORS) as events:
        for start in range(0, MSIX_VECTORS, MESSAGE):
            assign(msix, PciIrq.MSIX, start, events[start : start + MESSAGE])
        for vector in (0, 15, 16, 47, 48, 64):
            assert signalled(msix, PciIrq.MSIX, vector, events) == [vector]
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 0)


def test_msix_added_released_and_used_again(msix: RemoteDevice) -> None:
    with eventfds(4) as events:
        for vector, event in enumerate(events[:3]):
            assign(msix, PciIrq.MSIX, vector, [event])
        assert signalled(msix, PciIrq.MSIX, 2, events) == [2]
        release(msix, PciIrq.MSIX, 1, 1)
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 3)
        assert [fired(event, SOON) for event in events] == [True, False, True, False]
        assign(msix, PciIrq.MSIX, 1, events[3:])
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 3)
        assert [fired(event, SOON) for event in events] == [True, False, True, True]
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 0)
        assign(msix, PciIrq.MSIX, 0, events[1:2])  # all off, and another begins
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 1)
        assert [fired(event, SOON) for event in events] == [False, True, False, False]
        msix.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 0)

# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts go from the device to the client's eventfd, and do what VFIO says they do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import pytest

from integration import devices
from tests import client as wire
from tests.wire import set_irqs
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.messages import IrqSetFlags

from . import edu
from .bridge import Bridge, RemoteDevice, fired

TRIGGER = IrqSetFlags.ACTION_TRIGGER
UNMASK = IrqSetFlags.ACTION_UNMASK
MASK = IrqSetFlags.ACTION_MASK
NONE = IrqSetFlags.DATA_NONE
BOOL = IrqSetFlags.DATA_BOOL
EVENTFD = IrqSetFlags.DATA_EVENTFD

SOON = 0.3  # seconds in which nothing must happen


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
    try:
        yield events
    finally:
        for event in events:
            os.close(event)


@pytest.fixture
def device(bridge: Bridge) -> Iterator[RemoteDevice]:
    with bridge.client(devices.EDU) as remote:
        remote.enable()
        yield remote
        remote.write(edu.BAR, edu.ACKNOWLEDGE, 4, 0xFFFFFFFF)


def test_msi(device: RemoteDevice) -> None:
    with eventfds(1) as (event,):
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, [event])
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert fired(event)
        device.write(edu.BAR, edu.RAISE, 4, 1)  # an edge each
        assert fired(event)
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1)  # no eventfd: de-assigned
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert not fired(event, SOON)
        device.set_irqs(NONE | TRIGGER, PciIrq.MSI, 0, 0)


def test_intx_masks_itself_and_fires_again_while_the_line_is_high(device: RemoteDevice) -> None:
    with eventfds(1) as (event,):
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.INTX, 0, 1, [event])
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert fired(event)
        assert not fired(event, SOON)
        device.set_irqs(NONE | UNMASK, PciIrq.INTX, 0, 1)
        assert fired(event)
        device.write(edu.BAR, edu.ACKNOWLEDGE, 4, 1)
        device.set_irqs(NONE | UNMASK, PciIrq.INTX, 0, 1)
        assert not fired(event, SOON)
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert fired(event)


def test_intx_masked_by_the_client_waits(device: RemoteDevice) -> None:
    with eventfds(1) as (event,):
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.INTX, 0, 1, [event])
        device.set_irqs(NONE | MASK, PciIrq.INTX, 0, 1)
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert not fired(event, SOON)
        device.set_irqs(NONE | UNMASK, PciIrq.INTX, 0, 1)
        assert fired(event)


def test_intx_is_unmasked_by_an_eventfd_without_us(device: RemoteDevice) -> None:
    """What KVM's resampler does: the second eventfd goes from its writer into the kernel."""
    with eventfds(2) as (event, unmask):
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.INTX, 0, 1, [event])
        device.set_irqs(EVENTFD | UNMASK, PciIrq.INTX, 0, 1, [unmask])
        device.write(edu.BAR, edu.RAISE, 4, 1)
        assert fired(event)
        assert not fired(event, SOON)
        os.eventfd_write(unmask, 1)
        assert fired(event)


def test_msix_vectors_one_by_one(bridge: Bridge) -> None:
    """DATA_NONE and DATA_BOOL have the kernel fire the eventfds, which shows who is where."""
    with bridge.client(devices.E1000E) as device, eventfds(3) as events:
        assert device.irq(PciIrq.MSIX).count > 3
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSIX, 0, 2, events[:2])
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSIX, 2, 1, events[2:])
        device.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 0, 3)
        assert [fired(event) for event in events] == [True, True, True]
        device.wire.ask(wire.SET_IRQS, set_irqs(BOOL | TRIGGER, PciIrq.MSIX, 0, 3, b"\0\1\0"))
        assert fired(events[1])
        assert not fired(events[0], SOON)
        assert not fired(events[2], SOON)
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSIX, 1, 1)
        device.set_irqs(NONE | TRIGGER, PciIrq.MSIX, 1, 1)
        assert not fired(events[1], SOON)


def test_what_is_no_eventfd_is_refused(device: RemoteDevice) -> None:
    reader, writer = os.pipe()
    try:
        request = set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1)
        assert device.wire.refused(wire.SET_IRQS, request, [writer]) == errno.EINVAL
    finally:
        os.close(reader)
        os.close(writer)

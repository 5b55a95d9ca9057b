# SPDX-License-Identifier: BSD-3-Clause
"""A device with 16 MSI vectors on a host that has one for it, as without interrupt remapping.

The number that VFIO_DEVICE_SET_IRQS gives then reaches the client, and QEMU makes do with it.
"""

from __future__ import annotations

from integration import devices
from integration.inside.bridge import Bridge, bind, fired
from integration.inside.comparison import compare
from integration.inside.test_fidelity_interrupts import BY_NAME, msi
from integration.inside.test_interrupts import EVENTFD, NONE, TRIGGER, eventfds
from tests import client as wire
from tests.wire import set_irqs
from vfio_user_bridge.device import PciIrq

VECTORS = 16
ONLY_ONE = -1 & 0xFFFF_FFFF  # which QEMU negates


def test_the_client_hears_how_many_there_are() -> None:
    bind(devices.XHCI_MSI)
    with (
        Bridge(devices.XHCI_MSI) as serving,
        serving.client(devices.XHCI_MSI) as device,
        eventfds(VECTORS) as events,
    ):
        assert device.irq(PciIrq.MSI).count == VECTORS
        all_of_them = set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, VECTORS)
        assert device.wire.refused(wire.SET_IRQS, all_of_them, events) == ONLY_ONE
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, events[:1])
        one_more = set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 1, 1)
        assert device.wire.refused(wire.SET_IRQS, one_more, events[1:2]) == ONLY_ONE
        device.set_irqs(NONE | TRIGGER, PciIrq.MSI, 0, 1)
        assert fired(events[0])  # the one that there is has stayed


def test_qemu_makes_do_with_one() -> None:
    direct, bridged = compare(BY_NAME["xhci msi"], [msi])["msi"]
    assert bridged == direct

# SPDX-License-Identifier: BSD-3-Clause
"""A PCIe error reaches the client's eventfd (VFIO_PCI_ERR_IRQ_INDEX)."""

from __future__ import annotations

from integration import devices
from vfio_user_bridge.device import PciIrq

from .bridge import Bridge, fired
from .hardware import Hardware
from .test_interrupts import EVENTFD, TRIGGER, eventfds


def test_an_uncorrectable_error_is_reported(bridge: Bridge, hardware: Hardware) -> None:
    """On the port above the device: the kernel tells all below (pcie_do_recovery)."""
    with bridge.client(devices.E1000E) as device, eventfds(1) as (event,):
        assert device.irq(PciIrq.ERR).count == 1
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.ERR, 0, 1, [event])
        assert not fired(event, 0.2)
        injected = hardware.human("pcie_aer_inject_error port1 COMP_TIME")
        assert injected.startswith("OK"), injected
        assert fired(event, 20)

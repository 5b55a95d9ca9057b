# SPDX-License-Identifier: BSD-3-Clause
"""The host can have a device back under a running client (VFIO_PCI_REQ_IRQ_INDEX)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from integration import devices
from vfio_user_bridge.device import PciIrq

from .bridge import Bridge, bind, fired, lines
from .test_interrupts import EVENTFD, NONE, TRIGGER, eventfds


def unbind(bdf: str) -> subprocess.Popen[bytes]:
    """What an administrator writes to sysfs; it waits in the kernel until the device is free."""
    return subprocess.Popen(("sh", "-c", f"echo {bdf} >/sys/bus/pci/drivers/vfio-pci/unbind"))


def driver(bdf: str) -> Path:
    return Path(f"/sys/bus/pci/devices/{bdf}/driver")


def test_the_client_is_told_and_the_unbind_completes_when_it_goes(igb: str) -> None:
    with Bridge(igb) as serving, eventfds(1) as (event,):
        with serving.client(igb) as device:
            device.set_irqs(EVENTFD | TRIGGER, PciIrq.REQ, 0, 1, [event])
            with unbind(igb) as administrator:
                assert fired(event)
                assert administrator.poll() is None
                device.wire.close()  # as QEMU does after unplugging it from the guest
                assert administrator.wait(20) == 0
        assert serving.process.wait(20) == 0  # it was the last device
        assert lines(serving.log(), "WARNING .*the host wants it back; its client has 30 s")
        assert not serving.socket(igb).exists()
    assert not driver(igb).exists()


def test_without_a_client_it_goes_at_once_and_others_stay(igb: str) -> None:
    bind(devices.EDU_ALONE)
    with Bridge(igb, devices.EDU_ALONE) as serving:
        with unbind(igb) as administrator:
            assert administrator.wait(20) == 0
        assert serving.process.poll() is None
        assert not serving.socket(igb).exists()
        with serving.client(devices.EDU_ALONE) as device:
            assert device.read(7, 0, 4) == 0x11E81234


def test_a_client_can_try_its_eventfd_without_giving_the_device_away(igb: str) -> None:
    with Bridge(igb) as serving, eventfds(1) as (event,), serving.client(igb) as device:
        device.set_irqs(EVENTFD | TRIGGER, PciIrq.REQ, 0, 1, [event])
        device.set_irqs(NONE | TRIGGER, PciIrq.REQ, 0, 1)
        assert fired(event)
        assert not lines(serving.log(), "wants it back")
        device.set_irqs(NONE | TRIGGER, PciIrq.REQ, 0, 0)
        device.set_irqs(NONE | TRIGGER, PciIrq.REQ, 0, 1)
        assert not fired(event, 0.2)
    assert driver(igb).exists()

# SPDX-License-Identifier: BSD-3-Clause
"""Clients come and go, however they go; the next finds the device as new, and it goes home last."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from integration import devices
from vfio_user_bridge.device import PciIrq, PciRegion

from . import edu
from .bridge import CONFIG, Bridge, command
from .test_dma import IOVA, PAGE, TEXT, memory
from .test_interrupts import EVENTFD, TRIGGER, eventfds

MASTER = 4
RAL0 = 0x5400  # igb: the card's own address, low half; a reset brings it back
MARK = 0x1234


def test_a_killed_client_leaves_a_quiet_device(bridge: Bridge) -> None:
    with memory(2 * PAGE) as fd, eventfds(1) as (event,):
        child = os.fork()
        if not child:
            device = bridge.client(devices.EDU)
            device.enable()
            device.dma_map(fd, IOVA, 2 * PAGE)
            device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, [event])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        with bridge.client(devices.EDU) as device:
            assert not device.read(CONFIG, 4, 2) & MASTER
            device.enable()
            os.pwrite(fd, TEXT, 0)
            edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))  # the old map is gone
            assert os.pread(fd, len(TEXT), PAGE) == bytes(len(TEXT))
            device.dma_map(fd, IOVA, 2 * PAGE)  # and its place is free
            edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT


def test_reset_on_request_and_between_clients(igb: str) -> None:
    with Bridge(igb) as serving:
        with serving.client(igb) as device:
            device.enable()
            address = device.read(PciRegion.BAR0, RAL0, 4)
            device.write(PciRegion.BAR0, RAL0, 4, MARK)
            assert device.read(PciRegion.BAR0, RAL0, 4) == MARK != address
            device.reset()
            device.enable()
            assert device.read(PciRegion.BAR0, RAL0, 4) == address
            device.write(PciRegion.BAR0, RAL0, 4, MARK)
        with serving.client(igb) as device:
            device.enable()
            assert device.read(PciRegion.BAR0, RAL0, 4) == address


def test_on_disconnect_keep_resets_nothing(igb: str) -> None:
    with Bridge(igb, options=("--on-disconnect", "keep")) as keeping:
        with keeping.client(igb) as device:
            device.enable()
            device.write(PciRegion.BAR0, RAL0, 4, MARK)
        with keeping.client(igb) as device:
            assert not device.read(CONFIG, 4, 2) & MASTER
            assert device.read(PciRegion.BAR0, RAL0, 4) == MARK


def test_served_bound_and_back_home(igb: str) -> None:
    """The host's driver has the disk before and after, and the bridge in between."""
    driver = Path(f"/sys/bus/pci/devices/{igb}/driver")
    command("unbind", igb)
    subprocess.run(("modprobe", "igb"), check=True)
    assert driver.readlink().name == "igb"
    assert command("bind", igb).returncode == 0
    assert driver.readlink().name == "vfio-pci"
    with Bridge(igb) as serving:
        with serving.client(igb) as device:
            assert device.read(CONFIG, 0, 4) == 0x10C98086
        busy = command("unbind", igb)
        assert busy.returncode == 1
        assert len(busy.stderr.splitlines()) == 1
        assert serving.stop() == 0
    home = command("unbind", igb)
    assert home.returncode == 0, home.stderr
    assert driver.readlink().name == "igb"

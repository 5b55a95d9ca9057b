# SPDX-License-Identifier: BSD-3-Clause
"""QEMU or its bridge is killed in the midst of DMA: nobody's memory is touched afterwards, nothing
is kept, and the device works for the next.

The machine has no guest: under qtest we are the driver of an NVMe controller, and have it write all
the time. A guest that is killed while it writes to its disk is in test_fidelity_life; systemd's
part, when a bridge is killed, is in system/test_systemd.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from integration import devices
from integration.pci import COMMAND, PciDevice, PciHost
from integration.qtest import Qtest, QtestError
from tests.holdings import await_holdings, holdings
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.qemu import device

from . import edu
from .bridge import Bridge, bind, command, fired
from .nvme import PAGE, SERIAL, Nvme
from .test_fidelity_memory import LOW, NAME
from .test_interrupts import EVENTFD, TRIGGER, eventfds
from .trouble import iommu_faults, trouble

KILLS = 50
LATER = 0.01  # seconds, each than the one before: what the device does then is chance
INTX_DISABLE, MASTER = 0x400, 0x4  # of the command register
ABSENT = 0xFFFFFFFF


@pytest.fixture(autouse=True)
def _nothing_blocked() -> Iterator[None]:
    """The IOMMU has nothing to block: DMA ends before the maps do."""
    bind(devices.NVME)
    before = iommu_faults()
    yield
    assert iommu_faults() == before


@contextmanager
def driven(serving: Bridge) -> Iterator[tuple[Qtest, PciDevice, Nvme]]:
    """The controller, enabled in a QEMU of its own; it has said who it is."""
    described = json.dumps({**device(serving.socket(devices.NVME)), "addr": "4.0"})
    with Qtest("-device", described) as qtest:
        pci = PciHost(qtest).device(4)
        pci.enable()
        # Without INTx: while that is pending, QEMU has every access to a BAR trapped.
        pci.write_config(COMMAND, 2, pci.read_config(COMMAND, 2) | INTX_DISABLE)
        nvme = Nvme(qtest, pci)
        nvme.start(LOW, LOW + PAGE)
        assert writes(qtest, nvme)
        yield qtest, pci, nvme


def writes(qtest: Qtest, nvme: Nvme) -> bool:
    """Whether the controller executes a command, and writes what it shall."""
    qtest.memset(LOW + 2 * PAGE, PAGE, 0)
    return nvme.identify(LOW + 2 * PAGE) == 0 and qtest.read(LOW + 2 * PAGE, PAGE)[SERIAL] == NAME


def is_master(bdf: str) -> bool:
    """Whether the device may do DMA, as the host sees it."""
    config = Path(f"/sys/bus/pci/devices/{bdf}/config").read_bytes()
    return bool(config[COMMAND] & MASTER)


def test_qemu_killed_in_the_midst_of_dma() -> None:
    with Bridge(devices.NVME) as serving:
        before = holdings(serving.process.pid)
        for number in range(KILLS):
            with driven(serving) as (qtest, _, nvme):
                killer = threading.Timer(number * LATER, qtest.kill)
                killer.start()
                with suppress(QtestError):
                    while True:
                        nvme.flood(LOW + 2 * PAGE)
                killer.join()
            await_holdings(serving.process.pid, before)
            assert not is_master(devices.NVME)
        assert serving.stop() == 0
        assert not trouble(serving.log())


def test_bridge_killed_under_qemu_that_has_mapped_bars() -> None:
    """They are QEMU's as long as it lives: the device goes on working in its guest's memory, but
    all that the bridge had to do is refused. Nobody else can have the device meanwhile.
    """
    with Bridge(devices.NVME) as serving:
        with driven(serving) as (qtest, pci, nvme):
            serving.process.kill()
            serving.process.wait()
            assert writes(qtest, nvme)
            assert pci.read_config(0, 4) == ABSENT
            socket = str(serving.folder / "second")
            refused = command("serve", devices.NVME, "--socket-path", socket)
            assert refused.returncode == 1
            assert "is in use by another process" in refused.stderr
            assert is_master(devices.NVME)
        assert not is_master(devices.NVME)
    serve_again()


def test_bridge_killed_interrupts_go_on() -> None:
    """They are between the kernel and whoever has the device and the eventfd."""
    bind(devices.EDU_ALONE)
    with (
        Bridge(devices.EDU_ALONE) as serving,
        serving.client(devices.EDU_ALONE) as client,
        eventfds(1) as (event,),
    ):
        client.enable()
        client.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, [event])
        with client.map(edu.BAR) as bar, memoryview(bar).cast("I") as registers:
            serving.process.kill()
            serving.process.wait()
            registers[edu.RAISE // 4] = 1
            assert fired(event)
            registers[edu.ACKNOWLEDGE // 4] = 1


def test_bridge_killed_under_qemu_without_mapped_bars() -> None:
    """The device is quiet at once, and serves the next while the first QEMU still runs."""
    with (
        Bridge(devices.NVME, options=("--bar-mmap", "off")) as serving,
        driven(serving) as (_, pci, _),
    ):
        serving.process.kill()
        serving.process.wait()
        assert not is_master(devices.NVME)
        assert pci.load(0, 0, 4) == ABSENT
        assert pci.read_config(0, 4) == ABSENT
        serve_again()


def serve_again() -> None:
    with Bridge(devices.NVME) as successor, driven(successor):
        assert is_master(devices.NVME)

# SPDX-License-Identifier: BSD-3-Clause
"""A device is unplugged from a running QEMU and plugged in again, and is as it was at first.

Under qtest; the test is the guest's driver of the slot (PCI Express Base Specification, 6.7).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import devices
from integration.pci import PciHost
from integration.qtest import Qtest
from vfio_user_bridge.qemu import arguments

from .bridge import Bridge, command
from .qmp import Qmp
from .trouble import trouble

SLOT, BUS = 4, 1  # of the root port, and behind it
PORT = (
    *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),  # the slot does it itself
    *("-device", f"pcie-root-port,id=port1,chassis=1,addr={SLOT}.0"),
)
CAP_ID_EXPRESS = 0x10
SLOT_CONTROL = 0x18
POWERED, UNPOWERED = 0x100, 0x700  # with the power indicator on and off
NOTHING = b"\xff" * 256

#: QEMU 11.1.3 frees the MSI-X PBA's MemoryRegion with its owner's children, and takes it out of
#: the BAR after that (vfio_user_instance_finalize): an assertion ends it. Any server meets this.
MSIX = pytest.mark.xfail(raises=EOFError, strict=True, reason="QEMU dies as MSI-X is torn down")

Device = Mapping[str, object]


@contextmanager
def direct(bdf: str) -> Iterator[Device]:
    yield {"driver": "vfio-pci", "host": bdf}


@contextmanager
def bridged(bdf: str) -> Iterator[Device]:
    with Bridge(bdf) as serving:
        yield json.loads(arguments([serving.socket(bdf)])[-1])
        assert serving.stop() == 0
        assert not trouble(serving.log())


def unplug_and_plug(device: Device, folder: Path) -> list[bytes]:
    """Config space with the device, without it, and with it again."""
    device = {**device, "id": "plugged", "bus": "port1"}
    with Qmp(folder) as qmp, Qtest(*PORT, "-device", json.dumps(device), *qmp.arguments) as qtest:
        qmp.open()
        host = PciHost(qtest)
        host.open_port(SLOT, BUS)
        port, function = host.device(SLOT), host.device(0, bus=BUS)
        slot_control = port.capabilities()[CAP_ID_EXPRESS] + SLOT_CONTROL
        seen = [function.config_space()]
        function.enable()
        qmp.command("device_del", id="plugged")
        port.write_config(slot_control, 2, UNPOWERED)
        qmp.deleted("plugged")
        seen.append(function.config_space())
        qmp.command("device_add", **device)
        port.write_config(slot_control, 2, POWERED)
        return [*seen, function.config_space()]


@pytest.mark.parametrize(
    "bdf",
    [
        pytest.param(bdf, marks=[pytest.mark.fidelity(bdf, "hot-plug"), *marks])
        for bdf, marks in {
            devices.EDU_ALONE: (),
            devices.E1000: (),
            devices.NVME_PORT: (MSIX,),
        }.items()
    ],
)
def test_unplugged_and_plugged(bdf: str, tmp_path: Path) -> None:
    bound = command("bind", bdf)
    assert not bound.returncode, bound.stderr
    try:
        with direct(bdf) as device:
            expected = unplug_and_plug(device, tmp_path)
        assert expected[1] == NOTHING
        assert expected[2] == expected[0] != NOTHING
        with bridged(bdf) as device:
            assert unplug_and_plug(device, tmp_path) == expected
    finally:
        command("unbind", bdf)

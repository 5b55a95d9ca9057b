# SPDX-License-Identifier: BSD-3-Clause
"""A confined bridge with a real device: what it gave up, and that it wants for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration import devices
from tests.processes import status
from vfio_user_bridge.device import PciIrq

from . import edu
from .bridge import CHECKOUT, Bridge, bind, fired, lines
from .test_dma import IOVA, PAGE, TEXT, memory
from .test_interrupts import EVENTFD, TRIGGER, eventfds

RAM = 64 << 20  # bytes; a process may lock 8 MiB unless told otherwise
IPC_LOCK = 1 << 14
NODES = ("/dev/vfio/vfio", "/dev/vfio/%d", "/sys/bus/pci/drivers/vfio-pci/unbind")

#: Has the device open, is confined, and then tries to open what serving had needed before.
SCRIPT = """
import os, sys
from pathlib import Path
from vfio_user_bridge.confinement import confine
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.iommu import Iommu
from vfio_user_bridge.kernel import pci
group = pci.find(sys.argv[1]).iommu_group
iommu = Iommu()
device = HostDevice(sys.argv[1], iommu)
print(confine(None, []), file=sys.stderr)
for node in sys.argv[2:]:
    try:
        os.open(node.replace("%d", str(group)), os.O_WRONLY if "sys" in node else os.O_RDWR)
        print("can", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
device.quiesce(reset=True)  # opens the device again, by the group's descriptor
device.region_read(7, 0, 4)
device.close()
"""


def test_it_cannot_open_vfio_again() -> None:
    bind(devices.EDU_ALONE)
    command = (sys.executable, "-c", SCRIPT, devices.EDU_ALONE, *NODES)
    tried = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert not tried.returncode, tried.stderr
    assert "Landlock (ABI" in tried.stderr
    assert "seccomp (" in tried.stderr
    refusals = {"Permission denied", "Operation not permitted"}
    assert set(tried.stdout.splitlines()) <= refusals, tried.stdout
    assert len(tried.stdout.splitlines()) == len(NODES)


@pytest.mark.parametrize(
    ("prefix", "capabilities"),
    [
        ((), 0),
        # As in a container that was given this capability: it can't raise the limit.
        (("setpriv", "--bounding-set", "-sys_resource", "prlimit", "--memlock=1048576:1048576"),
         IPC_LOCK),
    ],
    ids=["root", "cap_ipc_lock alone"],
)  # fmt: skip
def test_nobody_locks_all_the_memory_that_a_guest_has(
    prefix: Sequence[str], capabilities: int
) -> None:
    """What later maps need is a capability or a limit, and as root there is the limit."""
    bind(devices.EDU_ALONE)
    options = ("--user", "nobody", "--confine", "all")
    with Bridge(devices.EDU_ALONE, options=options, prefix=prefix) as bridge, memory(RAM) as ram:
        seen = status(bridge.process.pid)
        assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == capabilities
        assert seen["NoNewPrivs"] == "1"
        for _ in range(2):
            with bridge.client(devices.EDU_ALONE) as device, eventfds(1) as (event,):
                device.enable()
                device.dma_map(ram, 0, RAM)
                device.set_irqs(EVENTFD | TRIGGER, PciIrq.MSI, 0, 1, [event])
                edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
                device.write(edu.BAR, edu.RAISE, 4, 1)
                assert fired(event)
        assert bridge.stop() == 0
        assert not lines(bridge.log(), "ERROR|Traceback")
    assert not list(Path(bridge.folder).glob("*.sock"))

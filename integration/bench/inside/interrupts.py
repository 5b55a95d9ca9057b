# SPDX-License-Identifier: BSD-3-Clause
"""From a device's interrupt to the reader of the eventfd, bridged and by VFIO alone.

It is one device: an IOMMU group is one process's, so each round starts a bridge and ends it, then
opens the device here. The reader is the same C program, with BAR and eventfd from whoever has them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from integration.devices import EDU
from integration.inside.bridge import CONFIG, Bridge, bind
from integration.inside.edu import BAR
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import IrqSetFlags, RegionInfo

from ..figures import Goal, Line, Ratio, compare
from ..setting import Setting
from ..timed import microseconds
from .direct import opened

MSI = 1  # VFIO_PCI_MSI_IRQ_INDEX
TO_EVENTFD = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
COMMAND, MEMORY_AND_MASTER = 4, 0x6
CPU = "0"
LOW, HIGH = 0.9, 1.1

#: makes a device interrupt an eventfd, and gives its BAR: a file, and where it starts in there
Interrupting = Callable[[int], AbstractContextManager[tuple[int, int]]]


@contextlib.contextmanager
def _bridged(eventfd: int) -> Iterator[tuple[int, int]]:
    with Bridge(EDU) as bridge, bridge.client(EDU) as device:
        device.write(CONFIG, COMMAND, 2, MEMORY_AND_MASTER)
        device.set_irqs(TO_EVENTFD, MSI, 0, 1, [eventfd])
        payload, bar = device.region_bytes(BAR)
        assert bar is not None
        yield bar, RegionInfo.unpack(payload).offset


@contextlib.contextmanager
def _direct(eventfd: int) -> Iterator[tuple[int, int]]:
    with opened(EDU) as direct:
        device = direct.device

        def region(index: int) -> int:
            return RegionInfo.unpack(vfio.region_info(device, index)).offset

        os.pwrite(device, struct.pack("=H", MEMORY_AND_MASTER), region(CONFIG) + COMMAND)
        request = struct.Struct("=IIIIIi")  # struct vfio_irq_set, and its data
        vfio.set_irqs(device, request.pack(request.size, TO_EVENTFD, MSI, 0, 1, eventfd))
        yield device, region(BAR)


def _latencies(setting: Setting, interrupting: Interrupting) -> list[float]:
    """Microseconds of one round."""
    eventfd = os.eventfd(0)
    try:
        with interrupting(eventfd) as (bar, offset):
            # Reader and interrupt on one CPU: which one the kernel gives to a vector is by chance.
            (number,) = Path(f"/sys/bus/pci/devices/{EDU}/msi_irqs").iterdir()
            Path(f"/proc/irq/{number.name}/smp_affinity_list").write_text(CPU)
            numbers = map(str, (setting.effort.interrupts, bar, offset, eventfd))
            done = subprocess.run(
                ["taskset", "--cpu-list", CPU, setting.folder / "interrupts", *numbers],
                stdout=subprocess.PIPE,
                pass_fds=(bar, eventfd),
                check=True,
            )
            return microseconds(done.stdout)
    finally:
        os.close(eventfd)


def measure(setting: Setting) -> Iterator[Line]:
    bind(EDU)
    us, direct = [], []
    for _ in range(setting.effort.rounds):
        us.append(_latencies(setting, _bridged))
        direct.append(_latencies(setting, _direct))
    ratio = Ratio.of(us, direct)
    equal = ratio is not None and (ratio.low <= 1 <= ratio.high or LOW <= ratio.median <= HIGH)
    goal = Goal(f"equal: 1 is within the spread, or the ratio is {LOW} to {HIGH}", equal)
    yield compare(
        "interrupts", "edu's MSI to its eventfd's reader", "µs", "VFIO alone", us, direct, goal
    )

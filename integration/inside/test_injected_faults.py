# SPDX-License-Identifier: BSD-3-Clause
"""System calls of a bridge that serves real devices fail: see integration/host/test_faults.py."""

from __future__ import annotations

import time
from contextlib import closing, suppress

import pytest

from integration import devices
from integration.injection import Survivor, faults
from tests.client import GONE, connect
from tests.visit import Visit

from .bridge import Bridge, bind
from .trouble import iommu_faults

PATIENCE = 60.0


#: those that the model's server doesn't make, or for other ends
CALLS = ("ioctl", "pread64", "pwrite64", "fcntl")


@pytest.mark.parametrize("bdf", [devices.EDU_ALONE, devices.NVME_PORT, devices.XHCI_MSI])
def test_every_call_may_fail(bdf: str) -> None:
    """Among the three: DMA to look at, a reset, MSI sets that are made anew."""
    bind(bdf)
    blocked = iommu_faults()
    with Bridge(bdf) as serving:

        def strict() -> None:
            with closing(connect(serving.socket(bdf), PATIENCE)) as client:
                Visit(client).pay(edu=bdf == devices.EDU_ALONE)

        def forgiving() -> None:
            with suppress(*GONE), closing(connect(serving.socket(bdf), PATIENCE)) as client:
                Visit(client, forgiving=True).pay(edu=False)

        survivor = Survivor(serving.process.pid, serving.log, forgiving, strict)
        counts = {call: count for call, count in survivor.calls().items() if call in CALLS}
        begun = time.monotonic()
        happened = [
            fault for fault in faults(counts, most=3, errnos=("ENOMEM",)) if survivor.suffer(fault)
        ]
        assert serving.stop() == 0
    print(f"{bdf}: {time.monotonic() - begun:.0f} s, {counts}")
    print(f"{len(happened)} faults of {len({fault.call for fault in happened})} system calls")
    assert {"ioctl", "pread64", "pwrite64"} <= {fault.call for fault in happened}
    assert iommu_faults() == blocked

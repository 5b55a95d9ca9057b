# SPDX-License-Identifier: BSD-3-Clause
"""Hardware behind the other engine: the contract over the wire, and a Linux guest's disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from integration import devices, passthrough
from tests.device_contract import CONTRACT
from tests.engines import ENGINES, LIBRARY, need
from tests.remote_device import RemoteDevice
from tests.test_engines import BROKEN
from vfio_user_bridge.device import Device
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.iommu import Iommu

DISK_SCRIPT = """
say() { echo "demo: $*"; }

until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
say begin
dd if=/dev/urandom of=/made bs=1M count=4 2>/dev/null
dd if=/made of=/dev/nvme0n1 bs=64k conv=fsync
echo 3 >/proc/sys/vm/drop_caches
say made $(sha256sum </made)
say read_back $(dd if=/dev/nvme0n1 bs=64k count=64 | sha256sum)
say interrupts $(awk '/nvme/ {sum += $2} END {print sum}' /proc/interrupts)
say end
"""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    need(request.param)
    name: str = request.param
    return name


@pytest.fixture
def device(engine: str, igb: str) -> Iterator[Device]:
    host = HostDevice(igb, Iommu())
    with closing(host), closing(RemoteDevice(engine, host)) as remote:
        yield remote


@pytest.mark.parametrize("clause", CONTRACT)
def test_contract(
    clause: Callable[[Device], None], device: Device, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == LIBRARY and clause.__name__ in BROKEN:
        why = f"{BROKEN[clause.__name__]}, in docs/engines.md"
        failures = (AssertionError, pytest.fail.Exception)
        request.applymarker(pytest.mark.xfail(reason=why, raises=failures))
    clause(device)


def test_a_guest_uses_a_disk() -> None:
    need(LIBRARY)
    outcome = passthrough.run(devices.NVME, DISK_SCRIPT, passthrough.NVME_MODULES, engine=LIBRARY)
    assert outcome.guest["made"] == outcome.guest["read_back"]
    assert int(outcome.guest["interrupts"]) > 0

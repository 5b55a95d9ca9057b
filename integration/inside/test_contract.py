# SPDX-License-Identifier: BSD-3-Clause
"""A physical device keeps the contract that every Device keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.device_contract import CONTRACT
from vfio_user_bridge.device import Device
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.iommu import Iommu


@pytest.fixture(params=[True, False], ids=["mmap", "trap"])
def device(igb: str, request: pytest.FixtureRequest) -> Iterator[Device]:
    host = HostDevice(igb, Iommu(), bar_mmap=request.param)
    yield host
    host.close()


@pytest.mark.parametrize("clause", CONTRACT)
def test_contract(clause: Callable[[Device], None], device: Device) -> None:
    clause(device)

# SPDX-License-Identifier: BSD-3-Clause
"""The contract of Devices holds over the wire, whichever engine serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from vfio_user_bridge import models
from vfio_user_bridge.device import Device

from .device_contract import CONTRACT
from .engines import ENGINES, LIBRARY, need
from .remote_device import RemoteDevice

#: clauses that libvfio-user doesn't keep, and what that is called in docs/engines.md
BROKEN = {
    "describes_interrupts": "irq-flags",
    "enables_and_disables_interrupts": "lenient-signals",
    "is_quiet_when_its_client_is_gone": "lenient-signals",
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    need(request.param)
    name: str = request.param
    return name


@pytest.fixture
def device(engine: str) -> Iterator[Device]:
    with closing(models.create("edu")) as edu, closing(RemoteDevice(engine, edu)) as remote:
        yield remote


@pytest.mark.parametrize("clause", CONTRACT)
def test_contract(
    clause: Callable[[Device], None], device: Device, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == LIBRARY and clause.__name__ in BROKEN:
        why = f"{BROKEN[clause.__name__]}, in docs/engines.md"
        request.applymarker(
            pytest.mark.xfail(reason=why, raises=(AssertionError, pytest.fail.Exception))
        )
    clause(device)

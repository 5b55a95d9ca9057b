# SPDX-License-Identifier: BSD-3-Clause
"""One bridge that serves all devices to a file's tests, one client after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration import devices

from .bridge import Bridge, bind
from .hardware import Hardware
from .table import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401 - hooks

SERVED = (devices.EDU, *devices.EDU_PAIR, devices.E1000E, devices.RTL8139)


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    bind(*SERVED)
    with Bridge(*SERVED) as running:
        yield running
        assert running.stop() == 0
        assert not list(running.folder.glob("*.sock"))


@pytest.fixture
def igb() -> str:
    """A device that the bridge for all doesn't have: for those who need one of their own."""
    bind(devices.IGB)
    return devices.IGB


@pytest.fixture(scope="session")
def hardware() -> Iterator[Hardware]:
    monitor = Hardware()
    yield monitor
    monitor.close()

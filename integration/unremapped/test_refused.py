# SPDX-License-Identifier: BSD-3-Clause
"""Where interrupts aren't remapped, the kernel gives a device away only if the host insists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import devices
from integration.inside.bridge import bind, command

ALLOW = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


@pytest.fixture
def strict() -> Iterator[None]:
    bind(devices.XHCI_MSI)
    assert ALLOW.read_text() == "Y\n"
    ALLOW.write_text("N")
    yield
    ALLOW.write_text("Y")


@pytest.mark.usefixtures("strict")
def test_the_operator_hears_why(tmp_path: Path) -> None:
    refused = command("serve", devices.XHCI_MSI, "--socket-path", str(tmp_path / "socket"))
    assert refused.returncode == 1
    assert "interrupts aren't remapped" in refused.stderr
    assert refused.stderr.count("\n") == 1

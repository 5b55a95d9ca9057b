# SPDX-License-Identifier: BSD-3-Clause
"""`doctor` on a host whose IOMMU doesn't remap interrupts."""

from __future__ import annotations

from pathlib import Path

from integration import devices
from integration.inside.bridge import bind, command
from integration.inside.test_doctor import Doctor, do

UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
SERVE = ("serve", devices.EDU_ALONE, "--socket-path", "/run/unremapped.sock")


def test_vfio_must_be_told_to_do_without() -> None:
    bind(devices.EDU_ALONE)
    assert Doctor().one("interrupt-remapping")["level"] == "warning"
    UNSAFE.write_text("N")
    try:
        assert command(*SERVE).returncode == 1
        doctor = Doctor()
        found = doctor.one("interrupt-remapping")
        assert (doctor.status, found["level"]) == (1, "problem")
        do(found)
        assert Doctor().one("interrupt-remapping")["level"] == "warning"
    finally:
        UNSAFE.write_text("Y")

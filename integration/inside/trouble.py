# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge's log, and the kernel's, must not have."""

from __future__ import annotations

import subprocess

from .bridge import lines

NO_RESET = "there is no way to reset it"  # so it is with some devices, for vfio-pci as well


def trouble(log: str) -> list[str]:
    """The lines of a log that warn or complain, but for what is true of the device itself."""
    found = lines(log, " (WARNING|ERROR|CRITICAL) |^Traceback")
    return [line for line in found if NO_RESET not in line]


def iommu_faults() -> list[str]:
    """What the IOMMU has blocked since the machine booted, as the kernel's log has it."""
    kernel = subprocess.run(("dmesg",), capture_output=True, text=True, check=True).stdout
    return lines(kernel, "DMAR: .*fault addr")

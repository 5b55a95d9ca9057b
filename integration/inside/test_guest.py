# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest uses a disk through the bridge; the host has the disk before and after."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration import devices
from integration.passthrough import NVME_MODULES, NVME_SCRIPT, run

KNOWN = os.urandom(1 << 20)


@contextmanager
def mounted_disk(folder: Path) -> Iterator[None]:
    """The NVMe controller's disk, by the host's own driver."""
    (disk,) = Path(f"/sys/bus/pci/devices/{devices.NVME}/nvme").glob("nvme*/nvme*n1")
    subprocess.run(("mount", "-t", "ext4", f"/dev/{disk.name}", folder), check=True)
    try:
        yield
    finally:
        subprocess.run(("umount", folder), check=True)


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_guest_reads_and_writes_a_disk(tmp_path: Path) -> None:
    subprocess.run(("modprobe", "-a", "nvme", "ext4"), check=True)
    subprocess.run(("mke2fs", "-q", "-t", "ext4", "/dev/nvme0n1"), check=True)
    with mounted_disk(tmp_path):
        (tmp_path / "known").write_bytes(KNOWN)
    outcome = run(devices.NVME, NVME_SCRIPT, NVME_MODULES)
    said = outcome.guest
    assert said["known"] == sum_of(KNOWN)
    assert said["made"] == said["read_back"]
    with mounted_disk(tmp_path):
        assert sum_of((tmp_path / "made").read_bytes()) == said["made"]
    # What moved the data was the device: the bridge had fewer messages than there were pages.
    pages = (int(said["bytes_read"]) + int(said["bytes_written"])) // 4096
    assert sum(outcome.messages.values()) < pages / 2
    assert int(said["interrupts"]) > 0

# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is kept in place: what a process has locked, what this machine has pinned."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests import processes


def locked(pid: int = 0) -> int:
    """What counts against a process's RLIMIT_MEMLOCK, this one's if none is named, in bytes."""
    return processes.number(processes.status(pid or os.getpid())["VmLck"]) << 10


def pinned() -> int:
    """How many pages are pinned for DMA; not those that a file system, as 9p, pins for a moment."""
    counts = []
    for _ in range(5):
        counts.append(_pinned_now())
        time.sleep(0.01)
    return min(counts)


def _pinned_now() -> int:
    Path("/proc/sys/vm/stat_refresh").read_bytes()  # each CPU counts for itself
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])

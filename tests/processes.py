# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel says of processes."""

from __future__ import annotations

import time
from pathlib import Path

PATIENCE = 20.0


def fields(pid: int, file: str) -> dict[str, str]:
    """What stands in a *file* of /proc/PID that has a name, a colon and a value in each line."""
    text = Path(f"/proc/{pid}", file).read_text()
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, by field."""
    return fields(pid, "status")


def await_state(pid: int, state: str) -> None:
    """Wait until that is the letter of its State: "T" is stopped, "Z" ended and not waited for."""
    deadline = time.monotonic() + PATIENCE
    while not (now := status(pid)["State"]).startswith(state):
        assert time.monotonic() < deadline, f"pid {pid} is {now}"
        time.sleep(0.001)


def number(field: str) -> int:
    """The number that a field begins with; sizes are in KiB."""
    return int(field.split()[0])

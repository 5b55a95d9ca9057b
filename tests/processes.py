# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel says of processes."""

from __future__ import annotations

from pathlib import Path


def fields(pid: int, file: str) -> dict[str, str]:
    """What stands in a *file* of /proc/PID that has a name, a colon and a value in each line."""
    text = Path(f"/proc/{pid}", file).read_text()
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, by field."""
    return fields(pid, "status")


def number(field: str) -> int:
    """The number that a field begins with; sizes are in KiB."""
    return int(field.split()[0])

# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel says of processes."""

from __future__ import annotations

from pathlib import Path


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, by field."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in fields}

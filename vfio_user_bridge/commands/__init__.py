# SPDX-License-Identifier: BSD-3-Clause
"""The commands, a file each: `NAME` and `SUMMARY`, what it can be told (`add_to`), and `run`.

All of them are read whenever the program starts, so what a command needs is imported in its `run`.
"""

from __future__ import annotations

import sys

PROGRAM = "vfio-user-bridge"


def complain(line: str) -> None:
    """Say on stderr what is wrong."""
    sys.stderr.write(f"{PROGRAM}: {line}\n")

# SPDX-License-Identifier: BSD-3-Clause
"""Two ways for a bridge to make way for another: an upgrade, and SIGKILL under a supervisor.

A bridge is told by its control socket.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vfio_user_bridge.management.control import ask

PATIENCE = 20.0


def pid(control: Path) -> int:
    """The process ID of the bridge of the moment."""
    return int(ask(control, "status")["pid"])


def upgrade(control: Path) -> None:
    """Returns once there is another.

    :raise CalledProcessError: there isn't; the command has said why
    """
    command = (sys.executable, "-m", "vfio_user_bridge", "upgrade", "--control", str(control))
    subprocess.run(command, check=True)


def kill(control: Path) -> None:
    """Returns once it is gone; another is yet to come."""
    killed = pid(control)
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{killed}").exists():
        assert time.monotonic() < deadline, "it doesn't die"
        time.sleep(0.001)

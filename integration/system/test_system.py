# SPDX-License-Identifier: BSD-3-Clause
"""The system that the other tests here run on is whole."""

from __future__ import annotations

import subprocess

from vfio_user_bridge import __version__


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_that_every_unit_runs() -> None:
    assert said("systemctl", "list-units", "--failed", "--no-legend") == ""


def test_that_the_wheel_is_installed() -> None:
    assert said("/usr/bin/vfio-user-bridge", "--version") == f"vfio-user-bridge {__version__}\n"

# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge unbind`: a device goes back to the driver that it had."""

from __future__ import annotations

import argparse

from .devices import add_devices, chosen, print_change

NAME = "unbind"
SUMMARY = "give devices back to the drivers that had them"
DESCRIPTION = """\
Give devices back to the drivers that had them. A device that is being served is
refused.
"""

add_to = add_devices


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.kernel import drivers

    for device in chosen(options):
        before = device.driver
        print_change(device, before, drivers.unbind(device))

# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge bind`: a device goes from its driver to vfio-pci."""

from __future__ import annotations

import argparse

from vfio_user_bridge.errors import DeviceError

from . import complain
from .devices import add_devices, chosen, print_change

NAME = "bind"
SUMMARY = "give devices to vfio-pci, remembering their drivers"
DESCRIPTION = """\
Give devices to the kernel's driver vfio-pci. The driver that had a device is
remembered in /run/vfio-user-bridge, for unbind.
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if a file system on the device is mounted; what isn't saved is lost",
    )


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.kernel import drivers, pci
    from vfio_user_bridge.kernel.inuse import uses

    devices, used = chosen(options), uses()
    vital = [f"{d.bdf}: {use.text}" for d in devices for use in used.get(d.bdf, ()) if use.vital]
    if vital and not options.force:
        raise DeviceError(
            f"{vital[0]}: unmount it first, or bind --force and lose what isn't saved"
        )
    for device in devices:
        before = drivers.bind(device)
        print_change(device, before, device.driver)
    for line in {why.line: None for device in devices if (why := pci.obstacle(device))}:
        complain(f"not ready to be served: {line}")

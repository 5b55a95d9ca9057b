# SPDX-License-Identifier: BSD-3-Clause
"""What `bind` and `unbind` have in common: which devices, and telling what became of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user_bridge.kernel.pci import PciDevice


def add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", metavar="BDF", nargs="+", help="PCI address: 0000:01:10.1")
    parser.add_argument(
        "--group", action="store_true", help="with all others of its IOMMU group, but for bridges"
    )


def print_change(device: PciDevice, before: str | None, after: str | None) -> None:
    change = f"{before or 'no driver'} -> {after or 'no driver'}"
    if before == after:
        change = f"{after or 'no driver'}, as before"
    print(f"{device.bdf}: {change}", flush=True)


def chosen(options: argparse.Namespace) -> list[PciDevice]:
    """The devices named; with ``--group`` also the other endpoints of their groups."""
    from vfio_user_bridge.kernel import pci

    named = [pci.find(pci.parse_bdf(text)) for text in options.devices]
    chosen = {device.bdf: device for device in named}
    for device in named if options.group else ():
        if device.iommu_group is not None:
            chosen |= {member.bdf: member for member in pci.group_endpoints(device.iommu_group)}
    return list(chosen.values())

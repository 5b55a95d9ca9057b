# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge list`: the host's PCI devices."""

from __future__ import annotations

import argparse

from vfio_user_bridge.errors import DeviceError

NAME = "list"
SUMMARY = "show PCI devices, and which can be served"
DESCRIPTION = """\
Show the PCI devices of the host, their IOMMU groups and drivers, and in the
column SERVE what is missing, if anything, before serve takes one:

  yes           nothing
  bind          a host driver has it, or none: bind it to vfio-pci
  bind --group  so have others in its IOMMU group: bind all of them
  group         its IOMMU group holds a bridge that the host needs
  no IOMMU      the IOMMU is off or missing
  bridge        bridges stay with the host
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", metavar="BDF", nargs="*", help="only these PCI addresses")
    parser.add_argument("--group", type=int, metavar="N", help="only those of IOMMU group N")
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")


def run(options: argparse.Namespace) -> None:
    from vfio_user_bridge.inventory import as_json, entry, parts
    from vfio_user_bridge.kernel import pci
    from vfio_user_bridge.kernel.inuse import uses
    from vfio_user_bridge.pci_ids import PciIds
    from vfio_user_bridge.terminal import show

    if options.devices:
        devices = [pci.find(pci.parse_bdf(text)) for text in options.devices]
    else:
        devices = pci.all_devices()
    if options.group is not None:
        devices = [device for device in devices if device.iommu_group == options.group]
        if not devices:
            raise DeviceError(
                f"IOMMU group {options.group} has no such device: see them all without --group"
            )
    names, used = PciIds.load(), uses()
    entries = [entry(device, names, used.get(device.bdf, ())) for device in devices]
    if options.json:
        print(as_json(entries))
    else:
        show(parts(entries))

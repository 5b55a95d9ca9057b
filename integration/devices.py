# SPDX-License-Identifier: BSD-3-Clause
"""The emulated devices that the test machine offers for assignment, at fixed addresses.

Each is in an IOMMU group of its own, but for the pair, two functions of one slot. Between them
they have every kind of reset (none, FLR, PM, bus), of interrupt (INTx, MSI, MSI-X) and of BAR
(memory, I/O, 32 and 64 bits, smaller than a page), and one that makes others: igb has SR-IOV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NVME = "0000:00:10.0"  # FLR, MSI-X
EDU = "0000:00:11.0"  # no reset, MSI and INTx
EDU_PAIR = ("0000:00:12.0", "0000:00:12.1")  # one IOMMU group
EDU_ALONE = "0000:00:13.0"  # for tests that need one which nobody else uses
RTL8139 = "0000:00:15.0"  # no reset, I/O BAR, INTx only
E1000E = "0000:01:00.0"  # behind a root port: PM and bus reset
IGB = "0000:02:00.0"  # behind a root port: FLR; 7 VFs


def standard(nvme_disk: Path) -> list[str]:
    """Return QEMU's arguments for all of the above, the NVMe controller's disk as given.

    The network cards are ports of one hub, where QEMU's own DHCP server answers and nobody else.
    """
    devices = [
        "nvme,serial=bridge,drive=nvme,addr=10.0",
        "edu,addr=11.0",
        "edu,addr=12.0,multifunction=on",
        "edu,addr=12.1",
        "edu,addr=13.0",
        "rtl8139,netdev=rtl8139,addr=15.0",
        # The firmware numbers buses in the order of the ports' addresses.
        "pcie-root-port,id=port1,chassis=1,addr=18.0",
        "e1000e,netdev=e1000e,bus=port1",
        "pcie-root-port,id=port2,chassis=2,addr=19.0",
        "igb,netdev=igb,bus=port2",
    ]
    arguments = ["-drive", f"if=none,id=nvme,format=raw,file={nvme_disk}"]
    arguments += ["-netdev", "user,id=user,restrict=on"]
    arguments += ["-netdev", "hubport,hubid=0,id=uplink,netdev=user"]
    for card in ("rtl8139", "e1000e", "igb"):
        arguments += ["-netdev", f"hubport,hubid=0,id={card}"]
    for device in devices:
        arguments += ["-device", device]
    return arguments

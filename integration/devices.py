# SPDX-License-Identifier: BSD-3-Clause
"""The emulated devices that the test machine offers for assignment, at fixed addresses.

Between them they have every kind of reset (none, FLR, PM, bus), of interrupt (INTx, MSI with one
and with many vectors, MSI-X) and of BAR (memory, I/O, 32 and 64 bits, smaller than a page, the
MSI-X table in one of its own), and those that make others: igb has SR-IOV. Each is in an IOMMU
group of its own, but for the pairs, two functions of one slot.
"""

from __future__ import annotations

import time
from pathlib import Path

NVME = "0000:00:10.0"  # FLR, MSI-X
EDU = "0000:00:11.0"  # no reset, MSI and INTx
EDU_PAIR = ("0000:00:12.0", "0000:00:12.1")  # one IOMMU group
EDU_ALONE = "0000:00:13.0"  # for tests that need one which nobody else uses
E1000 = "0000:00:14.0"  # no reset, INTx only, I/O BAR
RTL8139 = "0000:00:15.0"  # no reset, INTx only, I/O BAR, 256 bytes of memory
VIRTIO_BLK = "0000:00:16.0"  # no reset, MSI-X in a BAR of its own, vendor capabilities
XHCI = "0000:00:17.0"  # no reset, MSI-X; a USB disk behind it
XHCI_MSI = "0000:00:1c.0"  # no reset, 16 MSI vectors
E1000E = "0000:01:00.0"  # behind a root port: PM and bus reset; MSI-X, ROM, AER
IGB = "0000:02:00.0"  # behind a root port: FLR, SR-IOV
NVME_PORT = "0000:03:00.0"  # behind a root port: 4096 bytes of config space
IGB_HOST = "0000:04:00.0"  # stays with the machine's own driver, which virtual functions need
IGB_VF = "0000:04:10.0"  # the first of its 7, once sriov_numvfs says so
EDU_PORT_PAIR = ("0000:05:00.0", "0000:05:00.1")  # behind one root port: only the bus resets them
E1000_PORT_PAIR = ("0000:06:00.0", "0000:06:00.1")  # the same, with registers that a reset clears

DISK_SIZE = 64 << 20


def standard(disks: Path) -> list[str]:
    """Return QEMU's arguments for all of the above.

    The network cards are ports of one hub, where QEMU's own DHCP server answers and nobody else.

    :param disks: a folder of disk images: `nvme`, `nvme-port`, `virtio-blk` and `usb`; those that
        aren't there are made, empty, of 64 MiB.
    """
    devices = [
        "nvme,serial=bridge,drive=nvme,addr=10.0",
        "edu,addr=11.0",
        "edu,addr=12.0,multifunction=on",
        "edu,addr=12.1",
        "edu,addr=13.0",
        "e1000,netdev=e1000,addr=14.0",
        "rtl8139,netdev=rtl8139,addr=15.0",
        "virtio-blk-pci,drive=virtio-blk,iommu_platform=on,disable-legacy=on,addr=16.0",
        "qemu-xhci,id=xhci,addr=17.0",
        "usb-storage,bus=xhci.0,drive=usb",
        "nec-usb-xhci,id=xhci-msi,msi=on,msix=off,addr=1c.0",
        # The firmware numbers buses in the order of the ports' addresses.
        "pcie-root-port,id=port1,chassis=1,addr=18.0",
        "e1000e,id=e1000e,netdev=e1000e,bus=port1",
        "pcie-root-port,id=port2,chassis=2,addr=19.0",
        "igb,netdev=igb,bus=port2",
        "pcie-root-port,id=port3,chassis=3,addr=1a.0",
        "nvme,serial=port,drive=nvme-port,bus=port3",
        "pcie-root-port,id=port4,chassis=4,addr=1b.0",
        "igb,netdev=igb-host,bus=port4",
        "pcie-root-port,id=port5,chassis=5,addr=1d.0",
        "edu,bus=port5,addr=0.0,multifunction=on",
        "edu,bus=port5,addr=0.1",
        "pcie-root-port,id=port6,chassis=6,addr=1e.0",
        "e1000,netdev=pair0,bus=port6,addr=0.0,multifunction=on",
        "e1000,netdev=pair1,bus=port6,addr=0.1",
    ]
    arguments = ["-netdev", "user,id=user,restrict=on"]
    arguments += ["-netdev", "hubport,hubid=0,id=uplink,netdev=user"]
    for card in ("e1000", "rtl8139", "e1000e", "igb", "pair0", "pair1", "igb-host"):
        arguments += ["-netdev", f"hubport,hubid=0,id={card}"]
    for name in ("nvme", "nvme-port", "virtio-blk", "usb"):
        image = disks / name
        if not image.exists():
            image.touch()
            image.open("r+b").truncate(DISK_SIZE)
        arguments += ["-drive", f"if=none,id={name},format=raw,file={image}"]
    for device in devices:
        arguments += ["-device", device]
    return arguments


def disk(bdf: str) -> Path:
    """Return the disk behind this controller, once the machine's own driver has found it.

    :raise TimeoutError: it finds none in a minute.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for block in Path("/sys/block").iterdir():
            node = Path("/dev", block.name)
            if f"/{bdf}/" in str(block.readlink()) and node.is_block_device():
                return node
        time.sleep(0.05)
    raise TimeoutError(f"the machine's driver finds no disk of {bdf}")

# SPDX-License-Identifier: BSD-3-Clause
"""The guests' kernel: Debian's Linux, with what the guests of our tests use built in, and no more.

A guest in the test machine is emulated by a QEMU that is emulated itself. There, Debian's kernel
takes two minutes to boot, and half a second to start a program; this one takes a third of that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from integration import cache
from integration.debian import KEYRING, SUITE, host_packages, mirror
from integration.progress import StepError

if TYPE_CHECKING:
    from integration.progress import LoggedStep

SOURCE = "linux-source-6.12"

HOST_TOOLS = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "mmdebstrap": "mmdebstrap",
    "xz": "xz-utils",
    "libelf.h": "libelf-dev",  # no command, so it is asked for each time
    "stdlib.h": "libc6-dev",
}

#: all that is on; everything else is off
OPTIONS = (
    # the kernel itself: one processor, and a tick of 100 Hz
    *("64BIT", "EXPERT", "MULTIUSER", "PRINTK", "BUG", "CC_OPTIMIZE_FOR_PERFORMANCE"),
    *("CPU_MITIGATIONS", "HZ_100", "NO_HZ_IDLE", "HIGH_RES_TIMERS", "POSIX_TIMERS"),
    *("BINFMT_ELF", "BINFMT_SCRIPT", "BLK_DEV_INITRD", "MODULES"),
    *("FUTEX", "EPOLL", "EVENTFD", "SIGNALFD", "TIMERFD", "SHMEM", "AIO"),
    *("TTY", "SERIAL_8250", "SERIAL_8250_CONSOLE"),
    *("DEVTMPFS", "DEVMEM", "PROC_FS", "PROC_SYSCTL", "SYSFS", "TMPFS"),
    # a PC, entered by PVH
    *("HYPERVISOR_GUEST", "PARAVIRT", "PVH", "ACPI", "X86_LOCAL_APIC", "X86_IO_APIC"),
    *("PCI", "PCI_QUIRKS", "PCI_MSI", "PCI_MMCONFIG", "PCIEPORTBUS", "PCIEASPM", "PCIEAER"),
    *("HOTPLUG_PCI", "HOTPLUG_PCI_PCIE", "HOTPLUG_PCI_ACPI"),
    *("IOMMU_SUPPORT", "INTEL_IOMMU"),
    # network cards
    *("NET", "UNIX", "INET", "PACKET", "NETDEVICES", "ETHERNET"),
    *("NET_VENDOR_INTEL", "E1000", "E1000E", "IGB", "IGBVF"),
    *("NET_VENDOR_REALTEK", "8139CP"),
    # disks
    *("BLOCK", "BLK_DEV", "BLK_DEV_NVME", "EXT4_FS", "CRYPTO_CRC32C"),
    *("VIRTIO_MENU", "VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_CONSOLE"),
    *("SCSI", "BLK_DEV_SD", "USB_SUPPORT", "USB", "USB_PCI", "USB_XHCI_HCD", "USB_STORAGE"),
)

CARRIED = Path("/results/vmlinux")  # in the test machine

EDITION = 1  # part of the fingerprint: raise it when code below changes what is built


def carry(results: Path) -> None:
    """Put the kernel into the results, where the machine has it as `CARRIED`.

    :raise StepError: as of `path`.
    """
    shutil.copyfile(path(), results / CARRIED.name)


def path() -> Path:
    """Return the kernel in the cache, an uncompressed vmlinux, built first unless it is there.

    :raise StepError: the host lacks what building takes, or building failed.
    """
    recipe = (SUITE, SOURCE, OPTIONS, EDITION)
    return cache.artefact("kernel", "building the guests' kernel", recipe, _build)


def _build(part: Path, step: LoggedStep) -> None:
    host_packages(step, HOST_TOOLS)
    with tempfile.TemporaryDirectory(dir=cache.root()) as scratch:
        folder = _source(Path(scratch), step)
        wanted = [f"CONFIG_{option}=y" for option in OPTIONS]
        only = Path(scratch, "config")
        only.write_text("\n".join(wanted))
        make = ("make", f"--directory={folder}", f"--jobs={os.cpu_count()}")
        step.run(*make, f"KCONFIG_ALLCONFIG={only}", "allnoconfig")
        # What depends on an option that isn't on is dropped without a word.
        dropped = set(wanted).difference((folder / ".config").read_text().splitlines())
        if dropped:
            raise StepError(f"{step.what}: Kconfig takes no {', '.join(sorted(dropped))}")
        step.run(*make, "vmlinux")
        shutil.copyfile(folder / "vmlinux", part)


def _source(scratch: Path, step: LoggedStep) -> Path:
    """Unpack the kernel's source below `scratch`; return its folder."""
    package = scratch / "package"
    step.run(
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        "--format=directory",
        f"--include={SOURCE}",
        SUITE,
        package,
        f"deb [signed-by={KEYRING}] {mirror(step)} {SUITE} main",
    )
    step.run("tar", "-xf", package / f"usr/src/{SOURCE}.tar.xz", "-C", scratch)
    return scratch / SOURCE

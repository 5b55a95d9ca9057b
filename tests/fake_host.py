# SPDX-License-Identifier: BSD-3-Clause
"""A host of plain files that can serve, for `doctor`: an Intel machine with Debian."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge.doctor import examine
from vfio_user_bridge.doctor.findings import Finding
from vfio_user_bridge.doctor.host import Host

NIC, TWIN, PORT = "0000:01:10.1", "0000:01:10.2", "0000:00:01.0"
KERNEL = "6.12.1-amd64"
MODULES = f"lib/modules/{KERNEL}"
GIB = 1 << 30
NOBODY = 65534

MEMORY = """\
MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:    8388608 kB
"""
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max processes             96000                96000                processes
Max locked memory         {}              8388608              bytes
"""
FILES = {
    "proc/sys/kernel/osrelease": f"{KERNEL}\n",
    "proc/cmdline": "root=/dev/vda intel_iommu=on quiet\n",
    "proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme vmx\n",
    "proc/interrupts": "  1:  9  IR-IO-APIC  1-edge\n 24:  0  IR-PCI-MSI-0000:01:10.1  0-edge\n",
    "proc/meminfo": MEMORY,
    "proc/swaps": "Filename Type Size Used Priority\n",
    "proc/self/mountinfo": "",
    "proc/self/status": "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n",
    "proc/self/uid_map": "         0          0 4294967295\n",
    "proc/self/limits": LIMITS.format("unlimited"),
    "sys/firmware/acpi/tables/DMAR": "",
    "sys/class/iommu/dmar0": "",
    "sys/class/iommu/dmar1": "",
    "sys/class/misc/vfio": "",
    "sys/module/vfio_pci/parameters/ids": "\n",
    "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N\n",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always advise [never] deny\n",
    f"{MODULES}/modules.dep": (
        "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n"
        "kernel/drivers/vfio/vfio_iommu_type1.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n"
    ),
    "etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n',
    "etc/debian_version": "13.1\n",
    "usr/sbin/update-grub": "",
    "dev/vfio/vfio": "",
    "dev/vfio/12": "",
}


class FakeHost:
    """NIC is bound to vfio-pci, in a group with the port above it."""

    def __init__(self, root: Path) -> None:
        self.sysfs = FakeSysfs(root / "sys")
        self.host = Host(root, path=str(root / "bin"))
        for name, text in FILES.items():
            self.write(name, text)
        for node in ("dev/vfio/vfio", "dev/vfio/12"):
            self.path(node).chmod(0o666)
        self.qemu("qemu-system-x86_64")
        self.sysfs.device(PORT, driver="pcieport", group=12, class_code=0x060400, header_type=1)
        self.sysfs.device(NIC, driver="vfio-pci", group=12, reset_method="flr bus")

    def path(self, name: str) -> Path:
        return self.host.root / name

    def write(self, name: str, text: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)

    def remove(self, *names: str) -> None:
        """Files, and folders with what is in them."""
        for name in names:
            path = self.path(name)
            if path.is_dir() and not path.is_symlink():
                self.remove(*(f"{name}/{inside.name}" for inside in path.iterdir()))
                path.rmdir()
            else:
                path.unlink()

    def iommu_off(self, cmdline: str = "quiet", *tables: str, cpu: str = "GenuineIntel") -> None:
        """As after a boot with *cmdline*, of firmware that has these ACPI tables besides others."""
        self.remove("sys/kernel/iommu_groups", "sys/class/iommu", "sys/firmware")
        self.path("sys/kernel/iommu_groups").mkdir()
        for table in ("FACP", *tables):
            self.write(f"sys/firmware/acpi/tables/{table}", "")
        self.write("proc/cmdline", f"{cmdline}\n")
        self.write("proc/cpuinfo", f"vendor_id\t: {cpu}\nflags\t\t: fpu vmx\n")

    def qemu(self, name: str, version: str = "10.1.2", device: str = "vfio-user-pci") -> None:
        """A program that says what a QEMU says."""
        self.write(
            f"bin/{name}",
            f"#!/bin/sh\n[ $1 = --version ] && echo 'QEMU emulator version {version} (Debian)' ||\n"
            f"""echo 'name "{device}", bus PCI'\n""",
        )
        self.path(f"bin/{name}").chmod(0o755)

    def pool(self, page: int, pages: int, free: int) -> None:
        """Hugepages of *page* KiB."""
        folder = f"sys/kernel/mm/hugepages/hugepages-{page}kB"
        self.write(f"{folder}/nr_hugepages", f"{pages}\n")
        self.write(f"{folder}/free_hugepages", f"{free}\n")

    def asked(self, *, memory: int | None = None, socket_dir: Path | None = None) -> None:
        """What the command line says."""
        self.host = replace(self.host, memory=memory, socket_dir=socket_dir)

    def findings(self, check: str, *bdfs: str) -> list[Finding]:
        # For the others, there is no QEMU to be run.
        host = self.host if check == "qemu" else replace(self.host, path="")
        return [finding for finding in examine(host, bdfs) if finding.check == check]


Change = Callable[[FakeHost], object]


def nothing(fake: FakeHost) -> None:
    """All is as it should be."""


def has(name: str, text: str = "") -> Change:
    return lambda fake: fake.write(name, text)


def lacks(*names: str) -> Change:
    return lambda fake: fake.remove(*names)


def each(*changes: Change) -> Change:
    return lambda fake: [change(fake) for change in changes]


def found(fake: FakeHost, check: str, change: Change) -> list[Finding]:
    """What a user that isn't root finds after *change*."""
    change(fake)
    with as_nobody():
        return fake.findings(check, NIC)


def says(findings: list[Finding], level: str, seen: str, mend: str) -> bool:
    """Whether one of them has that level and those words; without *mend*, nothing is to be done."""
    return any(
        finding.level == level
        and seen in finding.text
        and mend in f"{finding.advice}\n{finding.command}"
        and bool(mend) == bool(finding.advice or finding.command)
        for finding in findings
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Who is root isn't for a while: root may open anything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)

# SPDX-License-Identifier: BSD-3-Clause
"""Whether the IOMMU is on, and confines interrupts too; how it is turned on here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .bootloader import adding, place
from .findings import Finding, ok, problem, warning
from .host import Host

GROUPS = "sys/kernel/iommu_groups"
TABLES = "sys/firmware/acpi/tables"
ALLOW_UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"

#: what keeps any IOMMU off, on the kernel's command line
_OFF = ("intel_iommu=off", "amd_iommu=off", "iommu=off")


@dataclass(frozen=True, slots=True)
class _Kind:
    """*table* is the ACPI table by which firmware says that it has one; *option* turns it on."""

    name: str
    unit: str  # what its members of /sys/class/iommu begin with
    table: str
    cpu: str  # in /proc/cpuinfo
    firmware: str  # what to enable there
    option: str = ""


_KINDS = (
    _Kind(
        *("Intel VT-d", "dmar", "DMAR", "GenuineIntel"),
        firmware="VT-d (Intel Virtualization Technology for Directed I/O)",
        option="intel_iommu=on",
    ),
    _Kind(*("AMD-Vi", "ivhd", "IVRS", r"AuthenticAMD|HygonGenuine"), firmware="IOMMU, and SVM"),
    _Kind(*("Arm SMMU", "smmu", "IORT", "CPU implementer"), firmware="SMMU"),
)


def groups(host: Host) -> Iterator[Finding]:
    """There are IOMMU groups."""
    if not host.has(GROUPS):
        yield problem(
            "this kernel knows no IOMMU groups: it is built without CONFIG_IOMMU_API",
            "boot a kernel of your distribution",
        )
        return
    # vfio-noiommu makes groups that protect nothing.
    real = [
        number
        for number in host.names(GROUPS)
        if host.text(f"{GROUPS}/{number}/name").strip() != "vfio-noiommu"
    ]
    if real:
        units = host.names("sys/class/iommu")
        by = {_kind_of(unit): None for unit in units}
        yield ok(", ".join([f"{len(real)} IOMMU groups", *by]))
    else:
        yield _off(host)


def _kind_of(unit: str) -> str:
    return next((kind.name for kind in _KINDS if unit.startswith(kind.unit)), unit)


def _off(host: Host) -> Finding:
    """Why there are none: an option, the firmware, or the kernel."""
    words = host.text("proc/cmdline").split()
    tables, cpu = host.names(TABLES), host.text("proc/cpuinfo")
    for word in words:
        if word in _OFF:
            return problem(
                f"there is no IOMMU group: this kernel was booted with {word}",
                f"take {word} off the kernel's command line, {place(host)}, and reboot",
            )
    # A virtual machine's needn't be of its CPU's maker.
    offered = [kind for kind in _KINDS if kind.table in tables]
    kind = next(iter(offered or (kind for kind in _KINDS if re.search(kind.cpu, cpu))), None)
    if kind is None:
        return problem(
            "there is no IOMMU group, and it isn't known what IOMMU this machine could have",
            "enable the IOMMU in the firmware",
        )
    if not offered and tables:
        if re.search(r"^flags\b.*\bhypervisor\b", cpu, re.MULTILINE):
            return problem(
                "there is no IOMMU group: this is a virtual machine without an IOMMU",
                "give it one; for QEMU that is -machine q35,kernel-irqchip=split"
                " -device intel-iommu,intremap=on,caching-mode=on, and intel_iommu=on inside",
            )
        then = f", and boot with {kind.option}" if kind.option else ""
        return problem(
            f"there is no IOMMU group: {kind.name} is off in the firmware"
            f" (it has no ACPI table {kind.table})",
            f"enable {kind.firmware} in the firmware{then}",
        )
    if kind.option and not any(word.startswith(kind.option) for word in words):
        advice, command = adding(host, kind.option)
        if not offered:  # containers don't see the tables
            advice = f"enable {kind.firmware} in the firmware, and {advice}"
        return problem(f"there is no IOMMU group: {kind.name} is off", advice, command)
    return problem(
        f"there is no IOMMU group, though {kind.name} isn't turned off",
        f"enable {kind.firmware} in the firmware; the kernel's log may have the reason",
        "dmesg | grep -i -e DMAR -e AMD-Vi -e iommu -e smmu",
    )


def remapping(host: Host) -> Iterator[Finding]:
    """Interrupts are remapped, or a device could raise any. On x86; elsewhere it goes unseen."""
    interrupts = host.text("proc/interrupts")
    if not host.names(GROUPS) or "IO-APIC" not in interrupts:
        return
    # The irq chips' names begin so where an IOMMU is between (arch/x86: msi.c, io_apic.c).
    if re.search(r"\bIR-(IO-APIC|PCI-MSI)", interrupts):
        yield ok("the IOMMU remaps interrupts")
        return
    advice = "enable interrupt remapping (VT-d's, x2APIC) in the firmware"
    if host.text(ALLOW_UNSAFE).strip() == "Y":
        yield warning(
            "interrupts aren't remapped, and VFIO is told to do without"
            " (allow_unsafe_interrupts): a guest could raise any interrupt of the host",
            advice,
        )
        return
    # vfio_iommu_type1_attach_group(): EPERM
    yield problem(
        "interrupts aren't remapped, so VFIO gives no device away",
        f"{advice}, or, where guests are trusted, let VFIO do without",
        f"modprobe vfio_iommu_type1 && echo Y >/{ALLOW_UNSAFE}",
    )

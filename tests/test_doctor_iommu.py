# SPDX-License-Identifier: BSD-3-Clause
"""What `doctor` says of the IOMMU, and how it is turned on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fake_host import Change, FakeHost, each, found, has, lacks, nothing, says

AMD, VIRTUAL = "AuthenticAMD", "GenuineIntel\nflags : fpu hypervisor"
UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
UNMAPPED = has("proc/interrupts", "  1:  9  IO-APIC  1-edge\n 24:  0  PCI-MSIX-0000:01:10.1\n")


@pytest.fixture
def fake(public_folder: Path) -> FakeHost:
    return FakeHost(public_folder)


def off(*arguments: str, cpu: str = "GenuineIntel") -> Change:
    return lambda fake: fake.iommu_off(*arguments, cpu=cpu)


#: what intel_iommu=on would mend
INTEL = off("quiet", "DMAR")
CMDLINE = each(INTEL, lacks("etc/default/grub"), has("etc/kernel/cmdline", "quiet\n"))


@pytest.mark.parametrize(
    ("change", "level", "seen", "mend"),
    [
        (nothing, "ok", "1 IOMMU groups, Intel VT-d", ""),
        (INTEL, "problem", "Intel VT-d is off", "intel_iommu=on on the kernel's command line"),
        (off("iommu=off", "DMAR"), "problem", "booted with iommu=off", "take iommu=off"),
        (off("intel_iommu=on,sm_on", "DMAR"), "problem", "though Intel VT-d", "dmesg | grep"),
        (off("quiet"), "problem", "no ACPI table DMAR", "and boot with intel_iommu=on"),
        (off("quiet", cpu=AMD), "problem", "no ACPI table IVRS", "enable IOMMU, and SVM"),
        (off("quiet", "IVRS", cpu=AMD), "problem", "though AMD-Vi isn't", "dmesg | grep"),
        # a virtual machine of QEMU's, whose IOMMU is Intel's on any CPU
        (off("quiet", "DMAR", cpu=AMD), "problem", "Intel VT-d is off", "intel_iommu=on"),
        (off("quiet", cpu=VIRTUAL), "problem", "virtual machine without", "-device intel-iommu"),
        (each(off(), has("proc/cpuinfo", "CPU implementer : 0x41\n")), "problem", "Arm", "SMMU"),
        (off(cpu="Other"), "problem", "isn't known what IOMMU", "in the firmware"),
        # a container, which doesn't see what the firmware says
        (
            each(off(), lacks("sys/firmware")),
            *("problem", "Intel VT-d is off", "in the firmware, and boot with intel_iommu=on"),
        ),
        (
            has("sys/kernel/iommu_groups/12/name", "vfio-noiommu\n"),
            *("problem", "no IOMMU group, though", "dmesg | grep"),
        ),
        (lacks("sys/kernel/iommu_groups"), "problem", "CONFIG_IOMMU_API", "a kernel of your"),
    ],
)
def test_groups(fake: FakeHost, change: Change, level: str, seen: str, mend: str) -> None:
    findings = found(fake, "iommu", change)
    assert says(findings, level, seen, mend), findings


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        (INTEL, "GRUB_CMDLINE_LINUX"),
        (INTEL, "/etc/default/grub && update-grub && reboot"),
        (each(INTEL, lacks("usr/sbin/update-grub"), has("usr/sbin/grub2-mkconfig")), "/boot/grub2"),
        (each(INTEL, has("usr/sbin/grubby")), "grubby --update-kernel=ALL --args=intel_iommu=on"),
        (each(INTEL, lacks("usr/sbin/update-grub")), "in /etc/default/grub"),
        (CMDLINE, "in /etc/kernel/cmdline"),
        (each(CMDLINE, has("usr/sbin/proxmox-boot-tool")), "&& proxmox-boot-tool refresh"),
        (each(INTEL, lacks("etc/default/grub")), "in the boot loader's configuration"),
        (off("iommu=off", "DMAR"), "in /etc/default/grub"),
    ],
)
def test_boot_loaders(fake: FakeHost, change: Change, mend: str) -> None:
    findings = found(fake, "iommu", change)
    assert says(findings, "problem", "there is no IOMMU group", mend), findings


@pytest.mark.parametrize("before", ['""', '"quiet"'])
def test_the_command_edits_grubs_options(fake: FakeHost, before: str) -> None:
    """Without what makes the menu anew and reboots."""
    grub = fake.path("etc/default/grub")
    grub.write_text(f'GRUB_CMDLINE_LINUX_DEFAULT="x"\nGRUB_CMDLINE_LINUX={before}\n')
    (finding,) = found(fake, "iommu", INTEL)
    edit = finding.command.removesuffix(" && update-grub && reboot")
    subprocess.run(["sh", "-c", edit.replace("/etc/default/grub", str(grub))], check=True)
    shell = f'. {grub}; echo "$GRUB_CMDLINE_LINUX_DEFAULT:$GRUB_CMDLINE_LINUX"'
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["x:intel_iommu=on", *before.strip('"').split()]


@pytest.mark.parametrize(
    ("change", "level", "seen", "mend"),
    [
        (nothing, "ok", "remaps interrupts", ""),
        (UNMAPPED, "problem", "VFIO gives no device away", f"echo Y >/{UNSAFE}"),
        (each(UNMAPPED, has(UNSAFE, "Y\n")), "warning", "told to do without", "x2APIC"),
    ],
)
def test_remapping(fake: FakeHost, change: Change, level: str, seen: str, mend: str) -> None:
    findings = found(fake, "interrupt-remapping", change)
    assert says(findings, level, seen, mend), findings


@pytest.mark.parametrize("change", [INTEL, has("proc/interrupts", "1: GICv3 27 Level\n")])
def test_remapping_is_for_an_iommu_of_x86(fake: FakeHost, change: Change) -> None:
    assert not found(fake, "interrupt-remapping", change)

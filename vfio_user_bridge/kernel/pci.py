# SPDX-License-Identifier: BSD-3-Clause
"""PCI devices and their IOMMU groups as sysfs shows them. Looks only; drivers.py changes things.

*sysfs* is where sysfs is mounted: tests have a tree of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceError, UsageError

SYSFS = Path("/sys")

#: Drivers besides VFIO's that manage their own DMA (``driver_managed_dma``, pci_dma_configure() in
#: drivers/pci/pci-driver.c): the kernel gives a group away while these hold devices of it.
HARMLESS_DRIVERS = frozenset({"pci-stub", "pcieport"})

_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])")


def parse_bdf(text: str) -> str:
    """The PCI address *text* as sysfs spells it; its domain may be left out.

    :raise UsageError: it isn't a PCI address
    """
    match = _BDF.fullmatch(text.lower())
    if not match:
        raise UsageError(f"{text!r} is not a PCI address: write it as 0000:01:10.1 or 01:10.1")
    return f"{match[1] or '0000'}:{match[2]}"


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function. Its attributes are read when asked for, so they are never out of date.

    They raise DeviceError once it is gone.
    """

    bdf: str
    sysfs: Path = SYSFS

    @property
    def path(self) -> Path:
        return self.sysfs / "bus/pci/devices" / self.bdf

    @property
    def vendor(self) -> int:
        return self._number("vendor")

    @property
    def device(self) -> int:
        return self._number("device")

    @property
    def subsystem(self) -> tuple[int, int]:
        """Vendor and device."""
        return self._number("subsystem_vendor"), self._number("subsystem_device")

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self._number("class")

    @property
    def numa_node(self) -> int | None:
        node = int(self._optional("numa_node") or -1)
        return node if node >= 0 else None

    @property
    def driver(self) -> str | None:
        return self._link("driver")

    @property
    def driver_override(self) -> str | None:
        text = self._read("driver_override").decode().strip()
        return None if text in ("(null)", "") else text

    @property
    def iommu_group(self) -> int | None:
        """Its number, or None without an IOMMU: a group of vfio-noiommu's protects nothing."""
        number = self._link("iommu_group")
        if number is None or self._optional("iommu_group/name") == "vfio-noiommu":
            return None
        return int(number)

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """How the kernel resets it, first choice first: ``flr``, ``pm``, ``bus``. Linux 5.15."""
        return tuple(self._optional("reset_method").split())

    @property
    def under_vfio(self) -> bool:
        """Whether a VFIO driver has it: vfio-pci, or a variant of it made for this device."""
        # vfio-dev is there since Linux 6.1.
        return self.driver == "vfio-pci" or (self.path / "vfio-dev").exists()

    @property
    def power_state(self) -> str:
        """``D0`` to ``D3cold``; nothing if the kernel doesn't tell. Linux 5.11."""
        return self._optional("power_state")

    @property
    def answers(self) -> bool:
        """Whether it has a config space: one that has lost its power or link reads as all ones."""
        # The IDs alone don't tell, for a virtual function's are all ones (SR-IOV, 3.4.1.1).
        return self._read("config", 64).strip(b"\xff") != b""

    @property
    def is_endpoint(self) -> bool:
        """Header type 0, all that vfio-pci takes (vfio_pci_core_register_device)."""
        return self._read("config", 64)[0x0E] & 0x7F == 0

    @property
    def is_bridge(self) -> bool:
        """Whether its class is that of a bridge to PCI, the CPU or ISA: part of the host itself.

        Not "other bridge" (PCI_CLASS_BRIDGE_OTHER): an NVSwitch is one, and is given to guests.
        """
        return self.class_code >> 16 == 0x06 and self.class_code >> 8 != 0x0680

    def _read(self, name: str, count: int = 4096) -> bytes:
        try:
            with (self.path / name).open("rb", buffering=0) as file:
                return file.read(count)
        except OSError as error:
            if not self.path.exists():
                raise gone(self.bdf) from None
            raise DeviceError(
                f"{self.bdf}: can't read {name}: {error.strerror}; dmesg may have the reason"
            ) from None

    def _number(self, name: str) -> int:
        return int(self._read(name), 16)

    def _optional(self, name: str) -> str:
        """The text of a file that not every kernel and device has, else nothing."""
        path = self.path / name
        return path.read_text().strip() if path.exists() else ""

    def _link(self, name: str) -> str | None:
        try:
            return (self.path / name).readlink().name
        except FileNotFoundError:
            if not self.path.exists():
                raise gone(self.bdf) from None
            return None


def gone(bdf: str) -> DeviceError:
    return DeviceError(f"{bdf}: there is no such PCI device: vfio-user-bridge list shows them all")


def find(bdf: str, sysfs: Path = SYSFS) -> PciDevice:
    """:raise DeviceError: there is no such device"""
    device = PciDevice(bdf, sysfs)
    if not device.path.exists():
        raise gone(bdf)
    return device


def all_devices(sysfs: Path = SYSFS) -> list[PciDevice]:
    """In the order of their addresses."""
    return _devices(sysfs / "bus/pci/devices", sysfs)


def group_devices(group: int, sysfs: Path = SYSFS) -> list[PciDevice]:
    """Every PCI device of IOMMU group *group*, bridges too, in the order of their addresses."""
    return _devices(sysfs / "kernel/iommu_groups" / str(group) / "devices", sysfs)


def _devices(folder: Path, sysfs: Path) -> list[PciDevice]:
    # A group may also hold devices of other buses, which have other names.
    names = (path.name for path in folder.iterdir()) if folder.exists() else ()
    bdfs = sorted((name for name in names if _BDF.fullmatch(name)), key=lambda n: (len(n), n))
    return [PciDevice(bdf, sysfs) for bdf in bdfs]


def group_endpoints(group: int, sysfs: Path = SYSFS) -> list[PciDevice]:
    """What a guest can be given of a group: its bridges stay the host's."""
    return [d for d in group_devices(group, sysfs) if d.is_endpoint and not d.is_bridge]


def offenders(group: int, sysfs: Path = SYSFS) -> list[PciDevice]:
    """The devices whose drivers keep the kernel from giving the group to user space.

    As iommu_device_use_default_domain() sees it: a device counts unless it has no driver, or one
    that manages its own DMA. Before Linux 5.19 PCI bridges never counted (vfio_dev_viable), so for
    those kernels this names too much where another driver than pcieport has one.
    """
    return [
        device
        for device in group_devices(group, sysfs)
        if device.driver not in (None, *HARMLESS_DRIVERS) and not device.under_vfio
    ]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a device can't be served as things are.

    *word* is one or two, *seen* is a line; *advice* is what to do, if anything can be done, and
    *command* what does it, if that is one of ours.
    """

    word: str
    seen: str
    advice: str = ""
    command: str = ""

    @property
    def line(self) -> str:
        mend = ": ".join(part for part in (self.advice, self.command) if part)
        return "; ".join(part for part in (self.seen, mend) if part)


def obstacle(device: PciDevice) -> Obstacle | None:
    """What keeps *device* from being served; None if nothing does.

    :raise DeviceError: it is gone
    """
    bdf, group = device.bdf, device.iommu_group
    # The kernel would give away a host or ISA bridge, to who insists by binding it.
    if not device.is_endpoint or (device.is_bridge and not device.under_vfio):
        return Obstacle("bridge", f"{bdf} is a bridge, which the host keeps")
    if group is None:
        return Obstacle(
            "no IOMMU",
            f"{bdf} has no IOMMU group",
            "enable the IOMMU (VT-d, AMD-Vi) in the firmware, and boot with intel_iommu=on if it is"
            " Intel's",
        )
    others = [other for other in offenders(group, device.sysfs) if other.bdf != bdf]
    for other in others:
        if other.is_bridge:
            return Obstacle(
                "group",
                f"IOMMU group {group} is not viable: it holds {other.bdf}, a bridge that"
                f" {other.driver} drives",
                f"put {bdf} into another slot",
            )
    named = ", ".join(f"{other.bdf} is bound to {other.driver}" for other in others)
    if not device.under_vfio:
        state = f"is bound to {device.driver}" if device.driver else "has no driver"
        option = f"--group {bdf}" if others else bdf
        also = f" and in its IOMMU group {group} {named}" if others else ""
        return Obstacle(
            "bind --group" if others else "bind",
            f"{bdf} {state}{also}",
            "bind to vfio-pci",
            f"vfio-user-bridge bind {option}",
        )
    if others:
        return Obstacle(
            "bind --group",
            f"IOMMU group {group} is not viable: {named}",
            "bind to vfio-pci too",
            f"vfio-user-bridge bind --group {bdf}",
        )
    return None

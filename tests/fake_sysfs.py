# SPDX-License-Identifier: BSD-3-Clause
"""A sysfs of plain files, and a kernel that reacts to what is written into it.

Only what kernel/pci.py and kernel/drivers.py look at is there, laid out as the kernel does it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NO_OVERRIDE = "(null)\n"


class FakeSysfs:
    """PCI devices in a folder; `write` stands in for drivers.write and does the kernel's part."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: every write, as (path below the root, text)
        self.writes: list[tuple[str, str]] = []
        #: what the kernel says to a write, by path below the root
        self.errors: dict[str, OSError] = {}
        #: drivers whose probe fails
        self.broken: set[str] = set()
        #: what the bus finds for a device that has no driver_override
        self.natural: dict[str, str] = {}
        for folder in ("bus/pci/devices", "bus/pci/drivers", "kernel/iommu_groups"):
            (root / folder).mkdir(parents=True)
        for folder in ("class/block", "class/net"):
            (root / folder).mkdir(parents=True)

    def device(
        self,
        bdf: str,
        *,
        driver: str | None = None,
        group: int | None = None,
        ids: tuple[int, int] = (0x8086, 0x10CA),
        class_code: int = 0x020000,
        header_type: int = 0,
        reset_method: str | None = None,
        parent: str = "pci0000:00",
    ) -> Path:
        """Plug one in; *driver* has it, and would find it again."""
        path = self.root / "devices" / parent / bdf
        path.mkdir(parents=True)
        self._link(self.root / "bus/pci/devices" / bdf, path)
        for name, value in (
            ("vendor", f"0x{ids[0]:04x}"),
            ("device", f"0x{ids[1]:04x}"),
            ("subsystem_vendor", "0x1af4"),
            ("subsystem_device", "0x1100"),
            ("class", f"0x{class_code:06x}"),
            ("numa_node", "-1"),
        ):
            (path / name).write_text(f"{value}\n")
        (path / "driver_override").write_text(NO_OVERRIDE)
        (path / "config").write_bytes(bytes(0x0E) + bytes([header_type]) + bytes(0x31))
        if reset_method:
            (path / "reset_method").write_text(f"{reset_method}\n")
        if group is not None:
            folder = self.root / "kernel/iommu_groups" / str(group)
            (folder / "devices").mkdir(parents=True, exist_ok=True)
            self._link(path / "iommu_group", folder)
            self._link(folder / "devices" / bdf, path)
        if driver:
            self.natural[bdf] = driver
            self.attach(bdf, driver)
        return path

    def driver(self, name: str) -> Path:
        """Load it."""
        path = self.root / "bus/pci/drivers" / name
        path.mkdir(exist_ok=True)
        return path

    def attach(self, bdf: str, driver: str) -> None:
        path = self.root / "bus/pci/devices" / bdf
        self._link(path / "driver", self.driver(driver))
        if driver == "vfio-pci" or driver.endswith("vfio_pci"):
            (path / "vfio-dev/vfio0").mkdir(parents=True)

    def detach(self, bdf: str) -> None:
        path = self.root / "bus/pci/devices" / bdf
        (path / "driver").unlink()
        if (path / "vfio-dev").exists():
            (path / "vfio-dev/vfio0").rmdir()
            (path / "vfio-dev").rmdir()

    def write(self, path: Path, text: str) -> None:
        """What the kernel makes of a write, for the files that drivers.py writes."""
        below = str(path.relative_to(self.root)).removeprefix("bus/pci/")
        self.writes.append((below, text))
        if below in self.errors:
            raise self.errors[below]
        if path.name == "driver_override":
            path.write_text(NO_OVERRIDE if text == "\n" else f"{text}\n")
        elif path.name == "unbind":
            assert (path.parent / "..").exists()
            self.detach(text)
        elif path.name == "drivers_probe":
            self._probe(text)
        else:
            raise AssertionError(f"nothing may write {below}")

    def _probe(self, bdf: str) -> None:
        override = (self.root / "bus/pci/devices" / bdf / "driver_override").read_text()
        driver = self.natural.get(bdf) if override == NO_OVERRIDE else override.strip()
        if driver is None or not (self.root / "bus/pci/drivers" / driver).exists():
            return
        if driver in self.broken:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.attach(bdf, driver)

    def disk(self, name: str, number: str, owner: str, *, holder: str | None = None) -> None:
        """A block device below PCI device *owner*, used by the block device *holder*."""
        self._class("block", name, owner)
        folder = self.root / "class/block" / name
        (folder / "dev").write_text(f"{number}\n")
        (folder / "holders").mkdir()
        if holder:
            (folder / "holders" / holder).mkdir()

    def link(self, name: str, owner: str, state: str) -> None:
        """A network interface below PCI device *owner*."""
        self._class("net", name, owner)
        (self.root / "class/net" / name / "operstate").write_text(f"{state}\n")

    def _class(self, kind: str, name: str, owner: str) -> None:
        path = (self.root / "bus/pci/devices" / owner).resolve() if owner else None
        folder = (path or self.root / "devices/virtual") / kind / name
        folder.mkdir(parents=True)
        self._link(self.root / "class" / kind / name, folder)

    @staticmethod
    def _link(link: Path, target: Path) -> None:
        # Relative, as sysfs has them.
        link.symlink_to(os.path.relpath(target, link.parent.resolve()))

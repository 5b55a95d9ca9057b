# SPDX-License-Identifier: BSD-3-Clause
"""What `vfio-user-bridge list` shows: the machine's PCI devices, and which can be served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .kernel.inuse import Use
from .kernel.pci import Obstacle, PciDevice, obstacle
from .pci_ids import PciIds
from .terminal import Part, Styled, Table, Text

HEADINGS = ("ADDRESS", "GROUP", "DRIVER", "SERVE", "DEVICE")


@dataclass(frozen=True, slots=True)
class Entry:
    """One device. The fields are those of ``list --json``: add to them, don't rename any.

    Numbers are hexadecimal, as pci.ids has them; what isn't known or isn't there is None.
    *assignable* means that ``serve`` takes the device as things are; if not, *todo* says in a word
    and *reason* in a line what to do.
    """

    bdf: str
    class_code: str
    class_name: str | None
    vendor: str
    vendor_name: str | None
    device: str
    device_name: str | None
    subsystem_vendor: str
    subsystem_device: str
    iommu_group: int | None
    numa_node: int | None
    driver: str | None
    reset_methods: tuple[str, ...]
    assignable: bool
    todo: str | None
    reason: str | None
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        kind = self.class_name or f"class {self.class_code[:4]}"
        if self.device_name:
            return f"{kind}: {self.vendor_name} {self.device_name}"
        numbers = f"{self.vendor}:{self.device}"
        return f"{kind}: {self.vendor_name} {numbers}" if self.vendor_name else f"{kind}: {numbers}"


def entry(device: PciDevice, names: PciIds, uses: Iterable[Use] = ()) -> Entry:
    """Everything about *device* as it is now.

    :raise DeviceError: it is gone
    """
    vendor, number, class_code = device.vendor, device.device, device.class_code
    subsystem_vendor, subsystem_device = device.subsystem
    why: Obstacle | None = obstacle(device)
    return Entry(
        bdf=device.bdf,
        class_code=f"{class_code:06x}",
        class_name=names.class_name(class_code),
        vendor=f"{vendor:04x}",
        vendor_name=names.vendor(vendor),
        device=f"{number:04x}",
        device_name=names.device(vendor, number),
        subsystem_vendor=f"{subsystem_vendor:04x}",
        subsystem_device=f"{subsystem_device:04x}",
        iommu_group=device.iommu_group,
        numa_node=device.numa_node,
        driver=device.driver,
        reset_methods=device.reset_methods,
        assignable=why is None,
        todo=why.word if why else None,
        reason=why.line if why else None,
        warnings=tuple(f"{device.bdf}: {use.text}" for use in uses),
    )


def as_json(entries: Iterable[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False)


def parts(entries: Sequence[Entry]) -> list[Part]:
    """A table and, below it, what doesn't fit into one."""
    table = Table(HEADINGS, [_row(entry) for entry in entries], right=("GROUP",))
    return [table, *_notes(entries)]


def _row(entry: Entry) -> tuple[Text, ...]:
    group = "-" if entry.iommu_group is None else str(entry.iommu_group)
    serve = Styled("yes", "green") if entry.todo is None else Styled(entry.todo, "yellow")
    return entry.bdf, group, entry.driver or "-", serve, entry.title


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Lines under the table: one example of each thing to do, and every warning."""
    reasons = {entry.todo: entry.reason for entry in reversed(entries) if entry.reason}
    reasons.pop("bridge", None)
    warnings = [f"in use: {warning}" for entry in entries for warning in entry.warnings]
    notes = [f"{todo}: {reason}" for todo, reason in sorted(reasons.items(), key=str)]
    return ["", *notes, *warnings] if notes or warnings else []

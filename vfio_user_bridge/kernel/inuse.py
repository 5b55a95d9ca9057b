# SPDX-License-Identifier: BSD-3-Clause
"""What the host itself uses of a PCI device: mounted disks, swap, network links that are up.

A hint and no promise: what takes a disk without mounting it (ZFS, a database) isn't seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .pci import SYSFS

PROC = Path("/proc")

_BDF_IN_PATH = re.compile(r"/([0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])(?=/)")
# One path to a namespace of a shared NVMe subsystem; its disk is the one without the c.
_NVME_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)")


@dataclass(frozen=True, slots=True)
class Use:
    """*text* as in ``vda is mounted on /``; *vital* if taking the device away loses data."""

    text: str
    vital: bool


def uses(sysfs: Path = SYSFS, proc: Path = PROC) -> dict[str, list[Use]]:
    """By PCI address, all of them in one go."""
    found: dict[str, list[Use]] = defaultdict(list)
    mounts = _mounts(proc)
    for bdf, disk in _belongings(sysfs / "class/block"):
        name = _NVME_PATH.sub(r"\1\2", disk)
        if how := _disk_use(sysfs / "class/block" / name, mounts):
            found[bdf].append(Use(f"{name} is {how}", vital=True))
    for bdf, link in _belongings(sysfs / "class/net"):
        state = sysfs / "class/net" / link / "operstate"
        if state.exists() and state.read_text().strip() == "up":
            found[bdf].append(Use(f"{link} is up", vital=False))
    return dict(found)


def _belongings(folder: Path) -> Iterator[tuple[str, str]]:
    """The members of a device class that sit on a PCI device: its address, their names."""
    for link in sorted(folder.iterdir()) if folder.exists() else ():
        # The last address is the device's own, those before it are of the bridges on the way.
        if link.is_symlink() and (bdfs := _BDF_IN_PATH.findall(str(link.readlink()))):
            yield bdfs[-1], link.name


def _mounts(proc: Path) -> dict[str, str]:
    """How each block device is used, by major:minor and by name."""
    found: dict[str, str] = {}
    for line in (proc / "self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        number, _root, place = head.split()[2:5]
        found.setdefault(number, f"mounted on {place}")
        source = tail.split()[1]
        # btrfs shows a number of its own: there the name must do.
        if source.startswith("/dev/"):
            found.setdefault(Path(source).resolve().name, f"mounted on {place}")
    for line in (proc / "swaps").read_text().splitlines()[1:]:
        found[Path(line.split()[0]).resolve().name] = "swap space"
    return found


def _disk_use(disk: Path, mounts: dict[str, str]) -> str | None:
    """How *disk*, or what LVM, RAID or encryption made of it, is used."""
    number = disk / "dev"
    if not number.exists():
        return None
    if how := mounts.get(number.read_text().strip()) or mounts.get(disk.name):
        return how
    holders = disk / "holders"
    for holder in sorted(holders.iterdir()) if holders.exists() else ():
        if how := _disk_use(disk.parent / holder.name, mounts):
            return how
    return None

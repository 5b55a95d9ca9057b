# SPDX-License-Identifier: BSD-3-Clause
"""Open nodes of IOMMU groups, which someone else opened and passed to this process."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import BridgeError, UsageError
from .pci import SYSFS


def by_group(fds: Iterable[int], sysfs: Path = SYSFS) -> dict[int, int]:
    """The descriptors *fds* of /dev/vfio/GROUP by the group's number; none is inherited further.

    :raise BridgeError: one of them is something else, or two are of one group
    """
    found: dict[int, int] = {}
    for fd in fds:
        group = group_of(fd, sysfs)
        if group in found:
            raise UsageError(
                f"file descriptors {found[group]} and {fd} are both IOMMU group {group}:"
                " pass each group once"
            )
        os.set_inheritable(fd, False)
        found[group] = fd
    return found


def group_of(fd: int, sysfs: Path = SYSFS) -> int:
    """The number of the IOMMU group whose node *fd* is. It isn't the device's minor number.

    :raise BridgeError: it is no such node
    """
    try:
        status = os.fstat(fd)
    except (OSError, OverflowError):
        raise BridgeError(
            f"file descriptor {fd} is not open: pass an open /dev/vfio/GROUP"
        ) from None
    if stat.S_ISCHR(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        device = (sysfs / "dev/char" / number).resolve()
        # vfio_create_group() names it after the group, or noiommu-N where there is no IOMMU.
        if (device / "subsystem").resolve().name == "vfio" and device.name.isdecimal():
            return int(device.name)
    raise BridgeError(f"file descriptor {fd} is no IOMMU group: pass an open /dev/vfio/GROUP")

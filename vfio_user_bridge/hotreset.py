# SPDX-License-Identifier: BSD-3-Clause
"""Reset of a whole slot or bus, for functions that have no reset of their own.

It hits every function there, so it is done only where this process has all their IOMMU groups, and
at a moment when no other function is at work. When a guest reboots, QEMU switches one function off
after the other and asks for the reset of each: the last of them finds the others at rest.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from typing import Protocol

from .kernel import vfio
from .protocol import refuse


class Group(Protocol):
    """An IOMMU group that this process has."""

    @property
    def group(self) -> int:
        """Its file descriptor."""


class Function(Protocol):
    """A function that this process serves."""

    def at_rest(self) -> bool:
        """Whether it neither does DMA nor sends interrupts."""


class HotReset:
    """``VFIO_DEVICE_PCI_HOT_RESET`` among the functions of this process.

    :param groups: the IOMMU groups that this process has, by number
    """

    def __init__(self, groups: Mapping[int, Group]) -> None:
        self._groups = groups
        #: the functions served, by BDF
        self.functions: dict[str, Function] = {}
        #: hold it while a function is opened or closed: they are looked at from other threads
        self.lock = threading.Lock()

    def possible(self, device: int) -> bool:
        """Whether the slot or bus of *device*, a descriptor, can be reset, and is all ours."""
        try:
            return all(group in self._groups for group, _ in vfio.hot_reset_info(device))
        except OSError:
            return False

    def perform(self, bdf: str, device: int) -> None:
        """Reset *bdf* and all beside it.

        :raise OSError: EBUSY if another is at work, EPERM if one isn't ours, ENODEV if there is no
            such reset
        """
        with self.lock:
            groups = set()
            for number, other in vfio.hot_reset_info(device):
                if number not in self._groups:
                    raise refuse(errno.EPERM, f"{other} would be reset too, and isn't ours")
                function = self.functions.get(other)
                if other != bdf and function and not function.at_rest():
                    raise refuse(errno.EBUSY, f"{other} would be reset too, and is at work")
                groups.add(self._groups[number].group)
            vfio.hot_reset(device, sorted(groups))

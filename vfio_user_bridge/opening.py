# SPDX-License-Identifier: BSD-3-Clause
"""The Device that DEVICE of the command line names: of the host, by its address, or a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .device import Device
from .errors import UsageError
from .limits import Limits

if TYPE_CHECKING:
    from .handover.inherited import Left
    from .iommu import Iommu

MODEL = "model:"


def device_name(text: str) -> str:
    """What the device *text* of the command line is called, in logs and as its socket's name.

    :raise UsageError: it is neither a model nor a PCI address
    """
    if text.startswith(MODEL):
        return text.removeprefix(MODEL)
    from .kernel.pci import parse_bdf

    try:
        return parse_bdf(text)
    except UsageError:
        raise UsageError(
            f"{text!r} is not a device: give a PCI address like 0000:01:10.1, or model:edu"
        ) from None


class Devices:
    """Opens devices; those of the host share an `Iommu`.

    :param groups: open nodes of IOMMU groups that were passed in
    :param undo: closes those that no device asked for
    :raise BridgeError: one of them is no such node
    """

    def __init__(
        self, limits: Limits, groups: Sequence[int], undo: ExitStack, *, bar_mmap: bool
    ) -> None:
        self._limits = limits
        self._bar_mmap = bar_mmap
        self._iommu: Iommu | None = None
        if groups:
            from .iommu import Iommu
            from .kernel.groupfd import by_group

            self._iommu = Iommu(limits, by_group(groups))
            undo.callback(self._iommu.close)

    def open(self, text: str, name: str, left: Left | None = None) -> Device:
        """The device *text* of the command line; as a predecessor *left* it, if one did.

        :raise BridgeError: it can't be had, and why
        """
        if text.startswith(MODEL):
            from .models import create

            return create(name, self._limits)
        from .hostdev import HostDevice
        from .iommu import Iommu

        if self._iommu is None:
            self._iommu = Iommu(self._limits)
        saved = left.document["device"] if left else None
        take = left.take if left else None
        return HostDevice(name, self._iommu, bar_mmap=self._bar_mmap, saved=saved, take=take)

    def check_groups(self) -> None:
        """:raise UsageError: a group was passed in, and none of the devices opened is in it"""
        for group, fd in self._iommu.passed.items() if self._iommu else ():
            raise UsageError(
                f"file descriptor {fd} is IOMMU group {group}, and none of the devices is in it"
            )

# SPDX-License-Identifier: BSD-3-Clause
"""The containers of this process, one for each IOMMU group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .container import Container
from .device import Take
from .hotreset import HotReset
from .limits import DEFAULTS, Limits


class Iommu:
    """The containers of this process, one for each IOMMU group in use.

    :param limits: what clients may have; of memory, in each
    :param passed: open nodes of groups by the group's number, for use instead of /dev/vfio/GROUP
    """

    def __init__(self, limits: Limits = DEFAULTS, passed: Mapping[int, int] | None = None) -> None:
        self._limits = limits
        #: those that no device has asked for yet
        self.passed = dict(passed or {})
        self._containers: dict[int, Container] = {}
        self.hot_reset = HotReset(self._containers)

    def acquire(
        self, group: int, saved: Mapping[str, Any] | None = None, take: Take | None = None
    ) -> Container:
        """The container of *group*, as a predecessor left it if it is *saved*.

        :raise BridgeError: the group can't be had, and why
        """
        container = self._containers.get(group)
        if container is None:
            node = self.passed.pop(group, None)
            if saved is None or take is None:
                container = Container(group, self._limits, node)
            else:
                if node is not None:
                    os.close(node)
                container = Container.restore(group, self._limits, saved, take)
            self._containers[group] = container
        container.users += 1
        return container

    def release(self, container: Container) -> None:
        container.users -= 1
        if not container.users:
            del self._containers[container.number]
            container.close()
            container.maps.close()

    def close(self) -> None:
        """Close the nodes that were passed for nothing."""
        while self.passed:
            os.close(self.passed.popitem()[1])

# SPDX-License-Identifier: BSD-3-Clause
"""A device without a bridge between: VFIO's ioctls in this process, as QEMU's own vfio-pci does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.kernel.pci import find


@dataclass(frozen=True)
class Direct:
    """File descriptors."""

    container: int
    device: int


@contextlib.contextmanager
def opened(bdf: str) -> Iterator[Direct]:
    """A device that vfio-pci has, in a container of its own.

    :raise OSError: EBUSY while another process has its group
    """
    with contextlib.ExitStack() as stack:

        def closed_at_the_end(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        number = find(bdf).iommu_group
        assert number is not None
        container = closed_at_the_end(vfio.container_open())
        group = closed_at_the_end(vfio.group_open(number))
        vfio.group_set_container(group, container)
        vfio.container_set_iommu(container, vfio.VFIO_TYPE1v2_IOMMU)
        device = closed_at_the_end(vfio.group_get_device(group, bdf))
        yield Direct(container, device)

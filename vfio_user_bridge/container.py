# SPDX-License-Identifier: BSD-3-Clause
"""One IOMMU group in a container of VFIO's."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from .device import Keep, Take
from .errors import DeviceError
from .kernel import groupfd, vfio
from .limits import Limits
from .shared_maps import SharedMaps


class Container:
    """IOMMU group *number* in a container of its own, type1v2.

    :param group: the group's open node, which is the container's to close; else it is opened here
    :param container: as a predecessor has left it with *group*; else a new one is opened
    :raise DeviceError: the group can't be had, and why
    """

    def __init__(
        self, number: int, limits: Limits, group: int | None = None, container: int | None = None
    ) -> None:
        self.number = number
        self.users = 0
        taken_over = container is not None
        self._container = -1 if container is None else container
        self._group = -1 if group is None else group
        try:
            info = self._info() if taken_over else self._open()
        except BaseException:
            self.close()
            raise
        self.pgsizes = info.pgsizes
        self.max_maps = info.dma_avail
        self.maps = SharedMaps(
            self._container, number, info.iova_ranges, limits.mapped, taken_over=taken_over
        )

    @classmethod
    def restore(
        cls, number: int, limits: Limits, saved: Mapping[str, Any], take: Take
    ) -> Container:
        """That of which a predecessor's `save` gave *saved*.

        :raise BridgeError: it isn't there, or isn't this group's
        """
        group = take(saved["group"])
        try:
            container = take(saved["container"])
        except BaseException:
            os.close(group)
            raise
        made = cls(number, limits, group, container)
        made.max_maps = saved["max_maps"]
        return made

    def save(self, keep: Keep) -> dict[str, Any]:
        return {
            "group": keep(f"group-{self.number}", self._group),
            "container": keep(f"container-{self.number}", self._container),
            "max_maps": self.max_maps,
        }

    def _info(self) -> vfio.IommuInfo:
        """Of what was taken over."""
        try:
            own = groupfd.group_of(self._group) == self.number
            if own and vfio.group_flags(self._group) & vfio.VFIO_GROUP_FLAGS_CONTAINER_SET:
                return vfio.iommu_info(self._container)
        except OSError:  # what was taken for the container is something else
            pass
        raise DeviceError(
            f"IOMMU group {self.number}: what a predecessor left isn't this group in its container:"
            " start anew, without what is in the file descriptor store"
        )

    def _open(self) -> vfio.IommuInfo:
        node = "/dev/vfio/vfio"
        try:
            self._container = vfio.container_open()
            if vfio.container_api_version(self._container) != vfio.VFIO_API_VERSION:
                raise DeviceError(
                    "this kernel's VFIO has another API than version 0: look for a newer bridge"
                )
            if not vfio.container_check_extension(self._container, vfio.VFIO_TYPE1v2_IOMMU):
                raise DeviceError(
                    "this kernel's VFIO has no type1v2 IOMMU: modprobe vfio_iommu_type1"
                )
            node = f"/dev/vfio/{self.number}"
            if self._group < 0:
                self._group = vfio.group_open(self.number)
            elif vfio.group_flags(self._group) & vfio.VFIO_GROUP_FLAGS_CONTAINER_SET:
                # It has outlived a process that was killed, whose container still hangs on it.
                vfio.group_unset_container(self._group)
            if not vfio.group_flags(self._group) & vfio.VFIO_GROUP_FLAGS_VIABLE:
                raise DeviceError(
                    f"IOMMU group {self.number} is not viable: a host driver has a device of it;"
                    " vfio-user-bridge list shows which"
                )
            vfio.group_set_container(self._group, self._container)
            self._set_iommu()
            return vfio.iommu_info(self._container)
        except OSError as error:
            raise DeviceError(_explain_open(node, self.number, error)) from None

    def _set_iommu(self) -> None:
        try:
            vfio.container_set_iommu(self._container, vfio.VFIO_TYPE1v2_IOMMU)
        except PermissionError:  # so vfio_iommu_type1_attach_group says it
            raise DeviceError(
                f"IOMMU group {self.number}: interrupts aren't remapped, so its devices could send"
                " the host any: turn that on in the firmware, or accept it by"
                " vfio_iommu_type1.allow_unsafe_interrupts=1"
            ) from None

    @property
    def group(self) -> int:
        """The group's file descriptor."""
        return self._group

    def device(self, bdf: str) -> int:
        """A file descriptor of the group's device *bdf*.

        :raise DeviceError: the kernel doesn't give it
        """
        try:
            return vfio.group_get_device(self._group, bdf)
        except OSError as error:
            raise DeviceError(
                f"{bdf}: its VFIO driver can't open it: {error.strerror}; dmesg may have the reason"
            ) from None

    def close(self) -> None:
        """Close group and container; the kernel takes every map away with the container."""
        for fd in (self._group, self._container):
            if fd >= 0:
                os.close(fd)
        self._group = self._container = -1


def _explain_open(node: str, group: int, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV if node == "/dev/vfio/vfio":
            return "this kernel has no VFIO, or its module isn't loaded: modprobe vfio-pci"
        case errno.ENOENT:
            return f"IOMMU group {group} has no {node}: bind its devices to vfio-pci first"
        case errno.EBUSY:
            return (
                f"IOMMU group {group} is in use by another process; one process must serve all"
                " devices of a group: vfio-user-bridge serve DEVICE DEVICE --socket-dir DIR"
            )
        case errno.EACCES | errno.EPERM:
            return f"no permission to use {node}: run as root, or give its group to this user"
    return (
        f"can't set up IOMMU group {group} through {node}: {error.strerror};"
        " dmesg may have the reason"
    )

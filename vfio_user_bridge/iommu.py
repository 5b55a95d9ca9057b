# SPDX-License-Identifier: BSD-3-Clause
"""Containers and their DMA maps, shared by the functions of one IOMMU group.

The functions of a group can reach each other's memory, so their clients must be one VM: a map that
several of them make alike is made once and counted, and one that contradicts is refused.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .dma import DmaTable
from .errors import DeviceError
from .hotreset import HotReset
from .kernel import vfio
from .kernel.credentials import CAP_IPC_LOCK
from .limits import DEFAULTS, Limits
from .memory import ClientFiles
from .messages import DmaMap
from .protocol import refuse

log = logging.getLogger(__name__)

#: how long a map waits for one that contradicts it to go, in seconds; QEMU waits 5 for the reply
PATIENCE = 2.0


@dataclass(slots=True)
class _Entry:
    """One map in the kernel."""

    file: tuple[int, int]  # device and inode
    address: int  # where it is in this process
    clients: int = 1


class Container:
    """One IOMMU group in a container of its own, type1v2, and what is mapped there.

    :param group: the group's open node, which is the container's to close; else it is opened here
    :raise DeviceError: the group can't be had, and why
    """

    def __init__(self, number: int, limits: Limits, group: int | None = None) -> None:
        self.number = number
        self._changed = threading.Condition()  # the group's functions have a thread each
        self._files = ClientFiles(limits.mapped)
        self._maps = DmaTable()
        self._entries: dict[int, _Entry] = {}  # by IOVA
        self.users = 0
        self._container = -1
        self._group = -1 if group is None else group
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        info = vfio.iommu_info(self._container)
        self.pgsizes = info.pgsizes
        self.max_maps = info.dma_avail
        self._ranges = info.iova_ranges

    def _open(self) -> None:
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

    def map(self, request: DmaMap, fd: int) -> None:
        """Let the group's devices reach *request.size* bytes of the file *fd*.

        :raise OSError: EBUSY if it contradicts another client's map, EINVAL outside of what the
            IOMMU can do, ENOMEM beyond RLIMIT_MEMLOCK, or what the kernel says
        """
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        with self._changed:
            if self._is_shared(request, file):
                return
            self._check_range(request)
            vaddr = self._files.map(fd, request.offset, request.size, writable=request.writable)
            try:
                vfio.dma_map(self._container, request.flags, vaddr, request.address, request.size)
            except OSError as error:
                self._files.unmap(vaddr, request.size)
                raise self._refused(
                    error.errno or errno.EIO, _explain_map(request, error)
                ) from None
            self._entries[request.address] = _Entry(file, vaddr)
            self._maps.add(request)

    def unmap(self, request: DmaMap) -> None:
        """Undo one `map`; the kernel's map goes with the last client's."""
        with self._changed:
            entry = self._entries[request.address]
            if entry.clients == 1:
                vfio.dma_unmap(self._container, request.address, request.size)
                self._maps.remove(request)
                del self._entries[request.address]
                self._files.unmap(entry.address, request.size)
                self._changed.notify_all()
            entry.clients -= 1

    def _is_shared(self, request: DmaMap, file: tuple[int, int]) -> bool:
        """Whether another client has made just this map; then it is counted.

        When a guest's memory changes, QEMU takes all old maps back before it makes new ones, but
        each function hears of it on a connection of its own: a contradiction may be old news.

        :raise OSError: EBUSY if it stays
        """
        deadline = time.monotonic() + PATIENCE
        while overlapping := self._maps.overlapping(request.address, request.size):
            other = overlapping[0]
            entry = self._entries[other.address]
            if other == request and entry.file == file:
                entry.clients += 1
                return True
            if not self._changed.wait(deadline - time.monotonic()):
                raise self._refused(errno.EBUSY, _contradiction(request, file, other, entry))
        return False

    def _check_range(self, request: DmaMap) -> None:
        last = request.address + request.size - 1
        if not any(low <= request.address and last <= high for low, high in self._ranges):
            possible = ", ".join(f"{low:#x}-{high:#x}" for low, high in self._ranges)
            raise self._refused(
                errno.EINVAL,
                f"IOVA {request.address:#x}-{last:#x} isn't within what the IOMMU can map:"
                f" {possible}; give the guest less memory, or keep it out of there",
            )

    def _refused(self, code: int, why: str) -> OSError:
        log.error("IOMMU group %d: %s", self.number, why)
        return refuse(code, why)

    def close(self) -> None:
        """Close group and container; the kernel takes every map away with the container."""
        for fd in (self._group, self._container):
            if fd >= 0:
                os.close(fd)
        self._group = self._container = -1
        self._files.close()


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

    def acquire(self, group: int) -> Container:
        """:raise DeviceError: the group can't be had, and why"""
        container = self._containers.get(group)
        if container is None:
            node = self.passed.pop(group, None)
            container = self._containers[group] = Container(group, self._limits, node)
        container.users += 1
        return container

    def release(self, container: Container) -> None:
        container.users -= 1
        if not container.users:
            del self._containers[container.number]
            container.close()

    def close(self) -> None:
        """Close the nodes that were passed for nothing."""
        while self.passed:
            os.close(self.passed.popitem()[1])


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


def _contradiction(request: DmaMap, file: tuple[int, int], other: DmaMap, entry: _Entry) -> str:
    def told(which: tuple[int, int], map_: DmaMap) -> str:
        return (
            f"{map_.size:#x} bytes at {map_.address:#x} (inode {which[1]} of device {which[0]:#x},"
            f" offset {map_.offset:#x}, flags {map_.flags})"
        )

    return (
        f"the clients of its functions must be one VM: {told(file, request)} contradicts another's"
        f" {told(entry.file, other)}"
    )


def _explain_map(request: DmaMap, error: OSError) -> str:
    what = f"can't map {request.size:#x} bytes at {request.address:#x}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        return what + "; the module's limit is reached: vfio_iommu_type1.dma_entry_limit"
    if error.errno == errno.EFAULT:
        return what + (
            "; its file was cut short, or is on a file system whose pages the kernel doesn't pin:"
            " guest RAM must be a memfd, or a file on tmpfs or hugetlbfs"
        )
    if error.errno != errno.ENOMEM:
        return what
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    locked = int(status["VmLck"].split()[0]) << 10
    unlimited = limit == resource.RLIM_INFINITY or int(status["CapEff"], 16) >> CAP_IPC_LOCK & 1
    if unlimited or locked + request.size <= limit:
        return what + "; the host has too little free memory to pin it"
    return what + (
        f"; it must be locked in memory: RLIMIT_MEMLOCK is {limit} bytes, {locked} are locked"
        f" already, {locked + request.size} are needed (LimitMEMLOCK= in a unit, or ulimit -l)"
    )

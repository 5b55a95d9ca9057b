# SPDX-License-Identifier: BSD-3-Clause
"""The DMA maps of a container, shared by the functions of its IOMMU group.

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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .adoption import Adoption
from .dma import DmaTable
from .kernel import vfio
from .kernel.credentials import CAP_IPC_LOCK
from .memory import ClientFiles, leave
from .messages import DmaMap
from .protocol import refuse

log = logging.getLogger(__name__)

#: how long a map waits for one that contradicts it to go, in seconds; QEMU waits 5 for the reply
PATIENCE = 2.0


@dataclass(slots=True)
class _Entry:
    """One map in the kernel."""

    file: tuple[int, int]  # device and inode
    address: int  # where it is in this process; 0 where it isn't
    clients: int = 1


class SharedMaps:
    """All of *container*, that of IOMMU group *group*.

    :param ranges: first and last IOVAs of what it can map
    :param limit: bytes that clients may have mapped
    :param taken_over: whether a predecessor has left some
    """

    def __init__(
        self,
        container: int,
        group: int,
        ranges: Sequence[tuple[int, int]],
        limit: int,
        *,
        taken_over: bool,
    ) -> None:
        self._container = container
        self._group = group
        self._ranges = ranges
        self._changed = threading.Condition()  # the group's functions have a thread each
        self._files = ClientFiles(limit)
        self._maps = DmaTable()
        self._entries: dict[int, _Entry] = {}  # by IOVA
        self._taken_over = taken_over
        self._adoption: Adoption | None = None

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
                self._to_kernel(request, vaddr)
            except OSError as error:
                self._files.unmap(vaddr, request.size)
                raise self._refused(
                    error.errno or errno.EIO, _explain_map(request, error)
                ) from None
            leave(vaddr, request.size)
            self._entries[request.address] = _Entry(file, vaddr)
            self._maps.add(request)

    def _to_kernel(self, request: DmaMap, vaddr: int) -> None:
        what = vaddr, request.address, request.size
        try:
            vfio.dma_map(self._container, request.flags, *what)
        except FileExistsError:
            if not self._taken_over:
                raise
            # We don't know of it: a predecessor was killed just after it had mapped this.
            vfio.dma_unmap(self._container, request.address, request.size)
            vfio.dma_map(self._container, request.flags, *what)

    def adopt(self, request: DmaMap, fd: int) -> bool:
        """Go on with a predecessor's `map`; whether there is something to be unmapped one day.

        There isn't where it was killed between the kernel's unmap and its own.
        """
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        with self._changed:
            if others := self._maps.overlapping(request.address, request.size):
                entry = self._entries[others[0].address]
                shared = others[0] == request and entry.file == file
                entry.clients += shared
                return shared
            if not self._adoption:
                self._adoption = Adoption(self._container, self._group)
            vaddr = 0
            try:
                vaddr = self._files.map(fd, request.offset, request.size, writable=request.writable)
            except OSError as error:  # its client has cut the file
                log.warning(
                    "IOMMU group %d: a map goes on without its file: %s",
                    self._group,
                    error.strerror,
                )
            if vaddr and not self._adoption.take(request, vaddr):
                self._files.unmap(vaddr, request.size)
                return False
            self._entries[request.address] = _Entry(file, vaddr)
            self._maps.add(request)
            return True

    def reclaim(self) -> None:
        """A successor has adopted them, and goes: they are this process's again."""
        with self._changed:
            adoption = Adoption(self._container, self._group) if self._entries else None
            for entry in self._maps:
                if adoption and (address := self._entries[entry.address].address):
                    adoption.take(entry, address)

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
            if self._taken_over and not self._entries:
                self._taken_over = False
                # What a predecessor was killed over, and nobody asked for again.
                with suppress(OSError):  # before Linux 5.12
                    vfio.dma_unmap(self._container, 0, 0, vfio.VFIO_DMA_UNMAP_FLAG_ALL)

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
                raise self._refused(errno.EBUSY, _contradiction(request, file, other, entry.file))
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
        log.error("IOMMU group %d: %s", self._group, why)
        return refuse(code, why)

    def close(self) -> None:
        """The kernel's maps go with the container."""
        self._files.close()


def _contradiction(
    request: DmaMap, file: tuple[int, int], other: DmaMap, others_file: tuple[int, int]
) -> str:
    def told(which: tuple[int, int], map_: DmaMap) -> str:
        return (
            f"{map_.size:#x} bytes at {map_.address:#x} (inode {which[1]} of device {which[0]:#x},"
            f" offset {map_.offset:#x}, flags {map_.flags})"
        )

    return (
        f"the clients of its functions must be one VM: {told(file, request)} contradicts another's"
        f" {told(others_file, other)}"
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

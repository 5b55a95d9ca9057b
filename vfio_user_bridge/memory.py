# SPDX-License-Identifier: BSD-3-Clause
"""Client memory, mapped into this process by the file that came with DMA_MAP.

A client's file is mapped once, whole, however many DMA maps lie in it. So 65,535 maps don't run
into vm.max_map_count, a map costs no mmap() of its own, and any page of a hugetlbfs file can be
reached though the file itself can be mapped at multiples of its huge page only.

The client keeps its file and may shrink it at any moment: touching such a page would be SIGBUS.
`read` and `write` let the kernel do the touching, which answers EFAULT.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .protocol import Buffer, refuse

if TYPE_CHECKING:
    from collections.abc import Callable


class _Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
for _copy in (_libc.process_vm_readv, _libc.process_vm_writev):
    _copy.restype = ctypes.c_ssize_t
    _copy.argtypes = (
        *(ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong),
        *(ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.c_ulong),
    )
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(slots=True)
class _Mapping:
    file: tuple[int, int, bool]  # device, inode, and whether it may be written through
    address: int
    size: int
    users: int = 0


class ClientFiles:
    """The files that clients have shared, each mapped as long as a DMA map of it lives.

    :param limit: bytes that may be mapped: of DMA maps, and of whole files
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0  # of all DMA maps
        self._mappings: list[_Mapping] = []  # a handful: one for each block of guest RAM

    def map(self, fd: int, offset: int, size: int, *, writable: bool) -> int:
        """The address at which *size* bytes at *offset* of the file *fd* are mapped.

        :raise OSError: EINVAL if the file ends before that, EACCES if it wasn't opened for this,
            ENOMEM beyond the limit, what mmap() says otherwise
        """
        status = os.fstat(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode != os.O_RDWR and (writable or mode != os.O_RDONLY):
            need = "writing" if writable else "reading"
            raise refuse(errno.EACCES, f"the client's memory file isn't open for {need}")
        end = offset + size
        # A device's memory (/dev/dax0.0) has no size in its inode; mmap() knows its end.
        extent = status.st_size if stat.S_ISREG(status.st_mode) else status.st_size or end
        if end > extent:
            raise refuse(
                errno.EINVAL, f"the client's memory file has {extent} bytes; {end} are needed"
            )
        self._check_limit(self._size + size, "DMA maps")
        file = (status.st_dev, status.st_ino, writable)
        for mapping in self._mappings:
            if mapping.file == file and end <= mapping.size:
                break
        else:
            unit = max(status.st_blksize, mmap.PAGESIZE)  # hugetlbfs: its huge page
            whole = -(-extent // unit) * unit
            self._check_limit(whole + sum(mapping.size for mapping in self._mappings), "files")
            mapping = _Mapping(file, *_mmap(fd, whole, writable=writable))
            self._mappings.append(mapping)
        mapping.users += 1
        self._size += size
        return mapping.address + offset

    def _check_limit(self, size: int, what: str) -> None:
        if size > self._limit:
            raise refuse(
                errno.ENOMEM,
                f"its {what} would have {size} bytes, and {self._limit} are allowed:"
                " serve --limit mapped=SIZE",
            )

    def unmap(self, address: int, size: int) -> None:
        """Give back what `map` gave, once for each time."""
        for mapping in self._mappings:
            if mapping.address <= address < mapping.address + mapping.size:
                self._size -= size
                mapping.users -= 1
                if not mapping.users:
                    self._mappings.remove(mapping)
                    _libc.munmap(mapping.address, mapping.size)
                return

    def close(self) -> None:
        for mapping in self._mappings:
            _libc.munmap(mapping.address, mapping.size)
        self._mappings.clear()
        self._size = 0


def _mmap(fd: int, size: int, *, writable: bool) -> tuple[int, int]:
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size, prot, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise refuse(code, f"can't map {size} bytes of the client's file: {os.strerror(code)}")
    return address, size


def leave(address: int, size: int) -> None:
    """Nobody here touches this part of a mapped file any more, if ever: so forget its pages.

    They stay mapped, and the file's; what goes is this process's page table (zap_pte_range), which
    pinning has filled, and which else it takes a process with much of it so long to end.
    """
    # Where it can't be, as for huge pages before Linux 5.18, they are there for longer.
    _libc.madvise(address, size, mmap.MADV_DONTNEED)


def read(address: int, count: int) -> bytes:
    """*count* bytes at *address* of a mapped file.

    :raise OSError: EFAULT where the client has cut its file
    """
    data = ctypes.create_string_buffer(count)
    _transfer(_libc.process_vm_readv, ctypes.addressof(data), address, count)
    return data.raw


def write(address: int, data: Buffer) -> None:
    """Put *data* at *address* of a mapped file.

    :raise OSError: EFAULT where the client has cut its file or the map is read-only
    """
    source = ctypes.create_string_buffer(bytes(data), len(data))
    _transfer(_libc.process_vm_writev, ctypes.addressof(source), address, len(data))


def _transfer(copy: Callable[..., int], local: int, remote: int, count: int) -> None:
    here, there = _Iovec(local, count), _Iovec(remote, count)
    done = copy(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if done != count:
        code = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise refuse(code, f"client memory can't be reached: {os.strerror(code)}")

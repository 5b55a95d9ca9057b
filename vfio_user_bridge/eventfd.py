# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that a client handed in: keep, signal and take, and never block on one.

The client shares the open file: it can clear O_NONBLOCK or fill the counter at any moment, and
write() would then wait for a reader that never comes. The kernel's own eventfd_signal(), which
VFIO uses, adds 1 without ever waiting. Programs get at it through asynchronous I/O, which calls it
for the eventfd of a finished request (IOCB_FLAG_RESFD in linux/aio_abi.h). The request here is to
read no bytes from the eventfd, which finishes at once, with EINVAL; nobody looks at the result.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user_bridge.protocol import refuse

if TYPE_CHECKING:
    from vfio_user_bridge.device import Keep, Take

#: __NR_io_setup, io_submit, io_getevents: x86-64 has its own numbers, later machines share theirs
_SETUP, _SUBMIT, _GETEVENTS = (206, 209, 208) if os.uname().machine == "x86_64" else (0, 2, 4)

_REQUESTS = 16
_EVENT_SIZE = 32  # struct io_event


class _Request(ctypes.Structure):
    """``struct iocb`` of a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),  # 0 is IOCB_CMD_PREAD
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


_FLAG_RESFD = 1


def duplicate(fd: int) -> int:
    """A duplicate of *fd* to keep; the caller closes it.

    :raise OSError: EINVAL if it isn't an eventfd
    """
    if str(Path(f"/proc/self/fd/{fd}").readlink()) != "anon_inode:[eventfd]":
        raise refuse(errno.EINVAL, "a file that isn't an eventfd was given for an interrupt")
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


class Kept:
    """An eventfd that is ours to close; -1 stands for none."""

    __slots__ = ("_name", "fd")

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        self._name = ""

    def save(self, keep: Keep) -> str | None:
        """Its name for a successor. The kernel's number for it is in it: one file, one name."""
        if self.fd < 0:
            return None
        if not self._name:
            number = _field(self.fd, b"eventfd-id")
            self._name = f"eventfd-{number.decode()}"
        return keep(self._name, self.fd)

    @classmethod
    def restore(cls, name: str | None, take: Take) -> Kept:
        return cls() if name is None else cls(take(name))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self._name = -1, ""


def _field(fd: int, name: bytes) -> bytes:
    """What /proc/self/fdinfo has of *fd*; not by Path, which takes five times as long."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, _, rest = os.read(info, 4096).partition(name + b":")
    finally:
        os.close(info)
    return rest.split(b"\n", 1)[0].strip()


def signal(fd: int) -> None:
    """Add 1 to the eventfd, or leave it at its maximum, at once.

    :raise OSError: the kernel has no asynchronous I/O to spare (fs.aio-max-nr)
    """
    context = _context()
    request = _Request(fd=fd, flags=_FLAG_RESFD, eventfd=fd)
    requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(request))
    _syscall(_SUBMIT, context, ctypes.c_long(1), requests)
    # Only to make room for the next.
    events = ctypes.create_string_buffer(_EVENT_SIZE * _REQUESTS)
    _syscall(_GETEVENTS, context, ctypes.c_long(0), ctypes.c_long(_REQUESTS), events, None)


def take(fd: int) -> int:
    """Empty the eventfd; what there was in it. At once, whatever its O_NONBLOCK."""
    count = bytearray(8)
    with suppress(BlockingIOError):
        os.preadv(fd, [count], -1, os.RWF_NOWAIT)
    return int.from_bytes(count, sys.byteorder)


@cache
def _context() -> ctypes.c_ulong:
    """Where requests go, one for this process."""
    context = ctypes.c_ulong(0)
    _syscall(_SETUP, ctypes.c_long(_REQUESTS), ctypes.byref(context))
    return context


def _syscall(number: int, *arguments: object) -> None:
    if _libc.syscall(ctypes.c_long(number), *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"can't signal an eventfd: {os.strerror(code)}")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

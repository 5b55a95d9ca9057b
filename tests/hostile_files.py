# SPDX-License-Identifier: BSD-3-Clause
"""Files of every kind that a client could send, few of which are good for anything."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

SIZE = 8 * 4096

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None)


def _memory() -> int:
    fd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.truncate(fd, SIZE)
    return fd


def _opened(flags: int) -> int:
    """The memory again, but opened in another way."""
    fd = _memory()
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    finally:
        os.close(fd)


def _sealed(seals: int) -> int:
    fd = _memory()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _shrunk() -> int:
    fd = _memory()
    os.truncate(fd, 1)
    return fd


def _punched() -> int:
    """Its pages were there, and then taken out of it."""
    fd = _memory()
    os.pwrite(fd, b"x" * SIZE, 0)
    hole = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    assert not _libc.fallocate(fd, hole, ctypes.c_long(0), ctypes.c_long(SIZE))
    return fd


def _disk_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        return os.dup(file.fileno())


def _pipe(which: int) -> int:
    ends = os.pipe()
    os.close(ends[1 - which])
    return ends[which]


def _socket(kind: int) -> int:
    return socket.socket(socket.AF_UNIX, kind).detach()


def _epoll() -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


KINDS: Mapping[str, Callable[[], int]] = {
    "memory": _memory,
    "eventfd": lambda: os.eventfd(0),
    "semaphore": lambda: os.eventfd(0, os.EFD_SEMAPHORE),
    "read-only": lambda: _opened(os.O_RDONLY),
    "write-only": lambda: _opened(os.O_WRONLY),
    "path": lambda: _opened(os.O_PATH),
    "sealed against writing": lambda: _sealed(fcntl.F_SEAL_WRITE),
    "sealed against changing size": lambda: _sealed(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
    "shrunk": _shrunk,
    "punched": _punched,
    "on a disk": _disk_file,
    "folder": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "/dev/null": lambda: os.open("/dev/null", os.O_RDWR),
    "/dev/zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "/dev/full": lambda: os.open("/dev/full", os.O_RDWR),
    "our memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "reading end": lambda: _pipe(0),
    "writing end": lambda: _pipe(1),
    "stream": lambda: _socket(socket.SOCK_STREAM),
    "datagrams": lambda: _socket(socket.SOCK_DGRAM),
    "epoll": _epoll,
    "process": lambda: os.pidfd_open(os.getpid()),
}


@contextmanager
def hostile_files() -> Iterator[dict[str, int]]:
    """One of each kind."""
    with ExitStack() as stack:
        files = {}
        for name, make in KINDS.items():
            files[name] = make()
            stack.callback(os.close, files[name])
        yield files

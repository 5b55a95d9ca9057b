# SPDX-License-Identifier: BSD-3-Clause
"""File descriptors: which are open, which file each is, and some to send."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def open_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it leads to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found[int(entry.name)] = str(entry.readlink())
    return found


def inodes(descriptors: list[int]) -> list[int]:
    """The file behind each: a descriptor's number changes on its way through a socket."""
    return [os.fstat(fd).st_ino for fd in descriptors]


@contextlib.contextmanager
def memory_files(count: int, size: int = 4096) -> Iterator[list[int]]:
    """*count* files of *size* bytes, as a client shares its guest's RAM."""
    files = [os.memfd_create(f"ram{number}") for number in range(count)]
    try:
        for fd in files:
            os.truncate(fd, size)
        yield files
    finally:
        for fd in files:
            os.close(fd)


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    events = [os.eventfd(0) for _ in range(count)]
    try:
        yield events
    finally:
        for fd in events:
            os.close(fd)

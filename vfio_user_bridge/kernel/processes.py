# SPDX-License-Identifier: BSD-3-Clause
"""Processes: who descends from whom, and whether two descriptors are one open file."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
#: __NR_kcmp: x86-64 has its own number, later machines share theirs
_KCMP = 312 if os.uname().machine == "x86_64" else 272
_KCMP_FILE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def adopt_orphans() -> None:
    """Be the parent, from now on, of each descendant whose own parent ends."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def raise_descriptor_limit() -> None:
    """As many descriptors as this process, and those that it starts, may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def compare_files(fd: int, other: int) -> int:
    """0 if two descriptors of this process are one open file, else which comes first: -1 or 1.

    The order means nothing, but stays the same (kcmp(2)).

    :raise OSError: EPERM or ENOSYS where a sandbox forbids to ask, as Docker's does
    """
    me = os.getpid()
    words = (ctypes.c_long(word) for word in (_KCMP, me, me, _KCMP_FILE, fd, other))
    return (0, -1, 1)[_checked(_libc.syscall(*words))]


def descends(pid: int, ancestor: int) -> bool:
    """Whether *pid* is *ancestor*, or a child of it, or of one of its children, and so on."""
    while pid not in (0, ancestor):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return False  # it is no more
        pid = int(stat.rpartition(")")[2].split()[1])  # ppid, of proc_pid_stat(5)
    return pid == ancestor


def user(pid: int) -> int:
    """Whose *pid* is (the effective user).

    :raise OSError: there is no such process
    """
    _, _, rest = Path(f"/proc/{pid}/status").read_text(errors="replace").partition("\nUid:")
    return int(rest.split()[1])


def process_namespace() -> int:
    """Which numbers of processes are ours: another container's mean other processes."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

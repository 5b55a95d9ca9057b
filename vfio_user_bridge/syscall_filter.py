# SPDX-License-Identifier: BSD-3-Clause
"""The system calls that serving takes; a seccomp filter answers all others with EPERM.

What each is for stands beside it. Whatever our tests serve, they serve under this filter.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import os
import signal
import socket
import termios
from typing import Any

from .kernel.vfio import VFIO_TYPE

#: calls that may come with any arguments
_CALLS = (
    # descriptors, the device's among them
    *("read", "readv", "write", "writev", "pread64", "pwrite64", "lseek", "close"),
    "preadv2",  # an eventfd, without waiting: eventfd.take
    *("dup", "dup3", "fcntl", "eventfd2", "fstat", "newfstatat", "fstatat64", "statx"),
    # Python's modules, as they are first used; a socket's file, at the end
    *("stat", "lstat", "access", "faccessat", "faccessat2", "readlink", "readlinkat"),
    *("getdents64", "getcwd", "unlink", "unlinkat"),
    # clients
    *("accept", "accept4", "recvmsg", "recvfrom", "sendmsg", "sendto", "shutdown"),
    "sendfile",  # replies, where a successor must know how far they were sent: outbox.py
    *("getsockopt", "setsockopt", "getsockname", "getpeername"),
    # waiting
    *("poll", "ppoll", "select", "pselect6"),
    *("futex", "nanosleep", "clock_nanosleep", "restart_syscall", "sched_yield"),
    *("clock_gettime", "clock_getres", "gettimeofday", "time"),
    # eventfds that the models signal without being blocked: eventfd.py
    *("io_setup", "io_submit", "io_getevents", "io_destroy"),
    # a recording, and what stands in for fallocate where a file system has none
    *("fallocate", "fstatfs", "ftruncate"),
    # memory
    *("brk", "munmap", "mremap", "madvise"),
    # to hear when the service manager has closed what it kept
    "pipe2",
    # threads, and the end
    *("set_robust_list", "rseq", "gettid", "getpid", "sched_getaffinity", "getrandom"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "exit", "exit_group"),
    # what errors are explained with
    *("uname", "sysinfo", "getuid", "geteuid", "getgid", "getegid"),
)

_CLONE_THREAD = 0x10000
_PR_SET_NAME = 15  # Python names its threads
#: what Python asks of descriptors: whether it is a terminal, not to block, not to be inherited
_TTY_REQUESTS = (termios.TCGETS, termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX)
_LOW = 0xFFFF_FFFF  # the kernel looks at these bits of an int


def binding() -> Any:
    """A Python binding of libseccomp: its own (Debian's python3-seccomp) or pyseccomp; else None.

    Importing the latter runs ldconfig, so ask before running programs is given up.
    """
    for name in ("seccomp", "pyseccomp"):
        with contextlib.suppress(ImportError, RuntimeError):  # RuntimeError: no libseccomp.so
            return importlib.import_module(name)
    return None


def load(seccomp: Any) -> int:
    """Forbid, for this thread and those it starts, what serving doesn't take.

    :param seccomp: the binding
    :raise OSError: the kernel has no seccomp, or a sandbox around us forbids it

    Gives the number of system calls that are left.
    """
    rules = _rules(seccomp)
    filter_ = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for name, *arguments in rules:
        filter_.add_rule(seccomp.ALLOW, name, *arguments)
    # glibc starts threads by it if it can, and falls back to clone(), whose flags can be looked at.
    filter_.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    try:
        filter_.load()
    except RuntimeError as error:  # how libseccomp's own binding says it
        raise OSError(errno.EPERM, str(error)) from None
    return len({name for name, *_ in rules})


def _rules(seccomp: Any) -> list[tuple[Any, ...]]:
    """Names of calls, with what their arguments must be."""

    def equal(index: int, value: int) -> Any:
        return seccomp.Arg(index, seccomp.EQ, value)

    def masked(index: int, mask: int, value: int) -> Any:
        return seccomp.Arg(index, seccomp.MASKED_EQ, mask, value)

    writing = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
    me = os.getpid()
    return [
        *((name,) for name in _CALLS),
        # Landlock says which files.
        ("open", masked(1, writing, os.O_RDONLY)),
        ("openat", masked(2, writing, os.O_RDONLY)),
        ("ioctl", masked(1, _LOW & ~0xFF, VFIO_TYPE << 8)),
        *(("ioctl", masked(1, _LOW, request)) for request in _TTY_REQUESTS),
        # Nothing that is written is run.
        ("mmap", masked(2, mmap.PROT_EXEC, 0)),
        ("mmap", masked(2, mmap.PROT_EXEC | mmap.PROT_WRITE, mmap.PROT_EXEC)),
        ("mprotect", masked(2, mmap.PROT_EXEC, 0)),
        # a client's memory, by the models; our own addresses only
        ("process_vm_readv", equal(0, me)),
        ("process_vm_writev", equal(0, me)),
        # the service manager
        ("socket", equal(0, socket.AF_UNIX)),
        ("clone", masked(0, _CLONE_THREAD, _CLONE_THREAD)),
        ("prctl", equal(0, _PR_SET_NAME)),
        ("prlimit64", equal(0, 0), equal(2, 0)),  # to read limits
        ("tgkill", equal(0, me), equal(2, signal.SIGABRT)),
    ]

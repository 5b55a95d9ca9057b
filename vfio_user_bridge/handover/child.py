# SPDX-License-Identifier: BSD-3-Clause
"""A process started as a service manager starts one: with descriptors from 3 on (sd_listen_fds(3)).

LISTEN_PID is the child's own number, which only the child knows before its program runs; so it
forks, which only a process of one thread can do safely, and `subprocess` is of no use.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from vfio_user_bridge.activation import LISTEN_FDS_START

#: what this process, and the program in the child, have open beside them
_OWN = 64
#: what a shell gives for a program that can't be run
CANNOT_RUN = 126


def room(passed: int) -> int:
    """How many descriptors can be kept for a child, and given to it beside those *passed* to us.

    It has each twice for a moment, see `_run`.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, (limit - _OWN) // 2 - passed)


def start(
    command: list[str],
    descriptors: Sequence[tuple[str, int]],
    environment: Mapping[str, str],
) -> int:
    """Run *command*, and give its process.

    :param descriptors: what is passed to it, with names
    :param environment: its own, to which LISTEN_* and WATCHDOG_PID are added
    :raise OSError: no process can be had
    """
    # A signal must not meet this program's handlers in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _run(command, descriptors, dict(environment), before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _run(
    command: list[str],
    descriptors: Sequence[tuple[str, int]],
    environment: dict[str, str],
    mask: set[signal.Signals | int],
) -> NoReturn:
    try:
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        me, count = str(os.getpid()), len(descriptors)
        environment["WATCHDOG_PID"] = me
        if count:
            names = ":".join(name for name, _ in descriptors)
            environment |= {"LISTEN_PID": me, "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
        # First out of the way of each other, then where they belong.
        free = LISTEN_FDS_START + count
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for _, fd in descriptors]
        for place, fd in enumerate(moved, LISTEN_FDS_START):
            os.dup2(fd, place)
        os.execve(command[0], command, environment)  # nosec B606
    except OSError as error:
        os.write(2, f"can't run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_RUN)

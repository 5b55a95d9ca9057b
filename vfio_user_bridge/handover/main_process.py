# SPDX-License-Identifier: BSD-3-Clause
"""The main process of a service: a child, or one that took over from it (MAINPID=)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from vfio_user_bridge.kernel.processes import descends, user

from .notification import Notification


class MainProcess:
    """:param pidfd: what stands for it if it may be no child of this process"""

    def __init__(self, pid: int, pidfd: int | None = None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.since = time.monotonic()
        self.is_stopping = False  # it says
        self.has_no_successor = False  # the one that it named was gone
        #: when it must have given the next sign of life
        self.deadline: float | None = None

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, as we will hear
            if self.pidfd is None:
                os.kill(self.pid, number)  # a child's number is its own until it is waited for
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def is_gone(self) -> bool:
        """Whether its pidfd says so."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))


def named(told: Notification) -> MainProcess:
    """The process that MAINPID= names.

    It descends from this one, or it is the sender's own user's, who could signal it as well.

    :raise ProcessLookupError: there is no such process (FileNotFoundError: any more)
    :raise OSError: it is another user's, or none that can be
    """
    number = told.variables["MAINPID"]
    try:
        pid = int(number)
        pidfd = os.pidfd_open(pid)  # from now on the number can't come to mean another
    except (ValueError, OverflowError):
        raise OSError(errno.EINVAL, "it is no number of one") from None
    try:
        if pid == os.getpid():
            raise OSError(errno.EINVAL, "it is the supervisor")
        if not _is_ours(pid) and user(pid) != told.uid:
            raise OSError(errno.EPERM, "it is another user's")
    except BaseException:
        os.close(pidfd)
        raise
    return MainProcess(pid, pidfd)


def _is_ours(pid: int) -> bool:
    """Whether it descends from this process; process 1 of a container adopts all others in it."""
    me = os.getpid()
    return pid > 0 and (me == 1 or descends(pid, me))

# SPDX-License-Identifier: BSD-3-Clause
"""A program that is nobody's child, and so that of whoever adopts it: the service manager.

systemd kills a main process that isn't its child without waiting for what that does on SIGTERM
(main_pid_alien, unit_kill_context()): it couldn't tell when it ends.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence


class Orphan:
    """Runs *command*, with our standard error and *fd*. Call it where there is one thread.

    :raise OSError: it can't be run
    """

    def __init__(
        self, command: Sequence[str], *, directory: str, environment: Mapping[str, str], fd: int
    ) -> None:
        told, tell = os.pipe()

        def be_orphaned() -> None:
            if os.fork():
                os._exit(0)
            os.write(tell, str(os.getpid()).encode())

        try:
            subprocess.run(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[fd],
                env=environment,
                start_new_session=True,
                preexec_fn=be_orphaned,
                check=False,
            )
            self.pid = int(os.read(told, 32))
        except subprocess.SubprocessError:  # of `be_orphaned`: fork() failed
            raise OSError(errno.EAGAIN, "no process can be had") from None
        finally:
            os.close(told)
            os.close(tell)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._pidfd = -1

    def has_ended(self) -> bool:
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], 0)[0])

    def kill(self) -> None:
        """It has ended when this returns."""
        if not self.has_ended():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], [], [])

    def close(self) -> None:
        """Look after it no more."""
        if self._pidfd >= 0:
            os.close(self._pidfd)

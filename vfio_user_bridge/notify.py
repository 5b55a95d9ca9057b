# SPDX-License-Identifier: BSD-3-Clause
"""What the service manager is told (sd_notify(3)): ready, status, alive, stopping; what it keeps.

Nothing depends on it: without a manager, or with one that is deaf, the server serves all the same.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import MutableMapping, Sequence

from .ancillary import send_to
from .timeval import timeval

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds, until it takes what it is told; and then until it answers
_AGAIN = 1.0  # seconds, until it is given a sign of life that it didn't take


class Manager:
    """The service manager that started this process, if one did.

    :param environment: where it says how to be told; taken from there, as children aren't concerned
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        names = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE")
        self._address, process, self._period, most = (environment.pop(name, "") for name in names)
        period = self._period
        #: how many descriptors it keeps for us (FileDescriptorStoreMax=)
        self.keeps = int(most) if most.isdecimal() and self._address else 0
        self._status = ""
        self._deaf = False  # it couldn't be told, last time
        self._barrier = -1  # whose other end it closes once it has heard us
        self._settling = threading.Lock()
        ours = process in ("", str(os.getpid()))
        #: seconds between signs of life, half of what the manager waits (sd_watchdog_enabled(3))
        self._interval = int(period) / 2e6 if ours and period.isdecimal() else 0.0
        self._due = time.monotonic()

    @property
    def patience(self) -> float | None:
        """How long until the next sign of life is due, in seconds; None if none ever is."""
        return max(0.0, self._due - time.monotonic()) if self._interval else None

    def ready(self) -> None:
        self._send("READY=1")

    def report(self, status: str) -> None:
        """Tell *status*, one line, if it is news; and that we live, if that is due."""
        news = []
        if status != self._status:
            self._status = status
            news.append(f"STATUS={status}")
        if self._interval and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            news.append("WATCHDOG=1")
        if news and not self._send(*news):
            self._due = min(self._due, time.monotonic() + _AGAIN)

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def keep(self, name: str, fd: int) -> bool:
        """Keep the descriptor, whatever becomes of its peer, and pass it to our successor.

        False if there is a manager who can't be told.
        """
        return self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=(fd,))

    def release(self, name: str) -> bool:
        """Close what it keeps by that name. False as above."""
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def settle(self) -> None:
        """Wait until it has heard all that it was told so far (sd_notify_barrier(3)).

        One that didn't answer in time isn't waited for again before it has.
        """
        if not self._address:
            return
        with self._settling:
            if not self._has_answered(0):
                return
            try:
                self._barrier, ours = os.pipe2(os.O_CLOEXEC)
            except OSError as error:
                log.warning("can't wait for the service manager: %s", error.strerror)
                return
            try:
                self._send("BARRIER=1", fds=(ours,))
            finally:
                os.close(ours)
            if not self._has_answered(_PATIENCE):
                log.warning("the service manager doesn't answer: going on without it")

    def _has_answered(self, patience: float) -> bool:
        """Or does within so many seconds."""
        if self._barrier >= 0:
            poll = select.poll()
            poll.register(self._barrier, 0)
            if not poll.poll(patience * 1000):
                return False
            os.close(self._barrier)
            self._barrier = -1
        return True

    def succeeded_by(self, process: int) -> bool:
        """The service is *process* from now on. False if there is a manager who can't be told."""
        return self._send(f"MAINPID={process}")

    def environment(self) -> dict[str, str]:
        """What a successor must find in its environment to be told all this in our place."""
        if not self._address:
            return {}
        return {
            "NOTIFY_SOCKET": self._address,
            "WATCHDOG_USEC": self._period if self._interval else "",
            "FDSTORE": str(self.keeps),
        }

    def _send(self, *variables: str, fds: Sequence[int] = ()) -> bool:
        if not self._address:
            return True
        address = self._address.encode()
        if address.startswith(b"@"):  # in the abstract namespace
            address = b"\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # Guests wait meanwhile: one that was deaf is asked no longer than it takes.
                if self._deaf:
                    sock.setblocking(False)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(_PATIENCE))
                send_to(sock, address, "\n".join(variables).encode(), fds)
            self._deaf = False
        except OSError as error:
            if not self._deaf:
                why = error.strerror
                log.warning(
                    "can't tell the service manager at %s: %s; serving all the same",
                    self._address,
                    why,
                )
            self._deaf = True  # not for ever: without a sign of life it would end us
        return not self._deaf

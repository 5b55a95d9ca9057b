# SPDX-License-Identifier: BSD-3-Clause
"""What the service manager is told (sd_notify(3)): ready, status, alive, stopping.

Nothing depends on it: without a manager, or with one that is deaf, the server serves all the same.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Manager:
    """The service manager that started this process, if one did.

    :param environment: where it says how to be told; taken from there, as children aren't concerned
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._address, process, period = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
        )
        self._status = ""
        self._deaf = False  # it couldn't be told, last time
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
        if news:
            self._send(*news)

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, *variables: str) -> None:
        if not self._address:
            return
        address = self._address.encode()
        if address.startswith(b"@"):  # in the abstract namespace
            address = b"\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto("\n".join(variables).encode(), address)
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

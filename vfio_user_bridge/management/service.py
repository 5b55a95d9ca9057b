# SPDX-License-Identifier: BSD-3-Clause
"""What operators look at the server by: a thread that answers who comes, one after the other."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from abc import ABC, abstractmethod

from vfio_user_bridge.listener import Listener

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds, for the thread's end
_PAUSE_AFTER_FAILURE = 1.0


class Service(ABC):
    """Answers who comes to *listener*, which is its to close."""

    what: str  #: as the log calls it
    pause = 0.0  #: seconds between one visitor and the next

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._thread = threading.Thread(target=self._run, name=self.what, daemon=True)
        self._closing = threading.Event()
        self._visitor: socket.socket | None = None

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        for sock in (self.listener.socket, self._visitor):
            if sock:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        if self._thread.ident:
            self._thread.join(_PATIENCE)
        self.listener.close()

    def _run(self) -> None:
        while not self._closing.wait(self.pause):
            try:
                self._visitor, _ = self.listener.socket.accept()
                with self._visitor:
                    self._converse(self._visitor)
            except (OSError, MemoryError) as error:
                if not self._closing.is_set():
                    why = str(error) or "no memory"
                    log.error("%s: the host fails us: %s; trying again", self.what, why)
                    self._closing.wait(_PAUSE_AFTER_FAILURE)
            except Exception:
                log.exception("%s: a defect of the bridge, please report it", self.what)

    @abstractmethod
    def _converse(self, visitor: socket.socket) -> None:
        """Do what they ask for, in bounded time, and whatever they do."""

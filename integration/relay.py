# SPDX-License-Identifier: BSD-3-Clause
"""An upgrade whose two bridges have us between them: it begins once we are ready for it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.running_server import PATIENCE
from vfio_user_bridge.ancillary import close_all, receive_waiting, send_all
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.handover.names import LINK_VARIABLE
from vfio_user_bridge.management.control import ask


class Relay:
    """Has a successor of the bridge at *control*, which has started and knows nothing yet."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        self._near, far = socket.socketpair()
        self._ours, self._theirs = socket.socketpair()
        told = ask(control, "command-line")
        with far:
            self.successor = subprocess.Popen(
                (sys.executable, "-m", "vfio_user_bridge", "serve", *told["arguments"]),
                cwd=told["directory"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=[far.fileno()],
                env={**os.environ, LINK_VARIABLE: str(far.fileno())},
            )
        self._old, self._new = map(os.pidfd_open, (told["pid"], self.successor.pid))
        assert select.select([self._near], [], [], PATIENCE)[0], "it doesn't say hello"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for sock in (self._near, self._ours, self._theirs):
            sock.close()
        for pidfd in (self._old, self._new):
            os.close(pidfd)
        self._log.close()

    def upgrade(self) -> bool:
        """Whether it takes over, and the other has ended; else it has ended itself."""
        asking = threading.Thread(target=self._ask)
        asking.start()
        self._pass_on()
        asking.join()
        ended, _, _ = select.select([self._old, self._new], [], [], PATIENCE)
        assert ended, "both are there"
        return self._new not in ended

    def log(self) -> str:
        """What the successor said before it took over."""
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text()

    def _ask(self) -> None:
        with contextlib.suppress(BridgeError):  # it ends, or says why not
            ask(self._control, "hand-over", files=[self._theirs.detach()], hand=True)

    def _pass_on(self) -> None:
        """What they say to each other, until neither has more to say."""
        other = {self._near: self._ours, self._ours: self._near}
        while other:
            ready, _, _ = select.select(list(other), [], [], PATIENCE)
            assert ready, "they are silent"
            for sock in ready:
                if not _pass(sock, other[sock]):
                    with contextlib.suppress(OSError):
                        other[sock].shutdown(socket.SHUT_WR)
                    del other[sock]


def _pass(source: socket.socket, target: socket.socket) -> bool:
    """What waits in the one is for the other. Whether there was something, and it could be sent."""
    files: list[int] = []
    try:
        data, files = receive_waiting(source, 1 << 16)
        # What comes in one piece is what was without files, and a byte with them.
        alone = len(data) - bool(files)
        if alone:
            send_all(target, data[:alone], ())
        if files:
            send_all(target, data[alone:], files)
        return bool(data)
    except ConnectionError:
        return False
    finally:
        close_all(files)

# SPDX-License-Identifier: BSD-3-Clause
"""``serve model:edu`` as a process that others succeed: by an upgrade, or once it was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.management.control import ask

from .client import Client
from .running_server import PATIENCE, SERVE, RunningServer, server
from .supervised import SUPERVISE

#: under a supervisor that starts the next one without a pause
SUPERVISED = [sys.executable, "-c", SUPERVISE, repr({"most": 64, "longest_pause": 0.0}), *SERVE]


class ReplaceableServer:
    """The first of them is *running*, or supervised by that."""

    def __init__(self, running: RunningServer, control: Path) -> None:
        self.running = running
        self.path = running.path
        self.control = control
        self.pid: int = self._status()["pid"]

    def client(self) -> contextlib.AbstractContextManager[Client]:
        return self.running.client()

    def log(self) -> str:
        return self.running.log()

    def status(self) -> Any:
        """Of the one device."""
        (device,) = self._status()["devices"]
        return device

    def _status(self) -> Any:
        return ask(self.control, "status")

    def upgrade(self, status: int = 0) -> str:
        """Gives what the command says; its exit status must be this."""
        command = (sys.executable, "-m", "vfio_user_bridge", "upgrade", "--control", self.control)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == status, (done.stdout, done.stderr)
        before, self.pid = self.pid, self._status()["pid"]
        assert (self.pid == before) is (status != 0)
        return done.stderr if status else done.stdout

    def kill(self) -> None:
        """Returns once there is another."""
        self.signal(signal.SIGKILL)
        self.await_another()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def await_another(self) -> None:
        deadline = time.monotonic() + PATIENCE
        before = self.pid
        while self.pid == before:
            assert time.monotonic() < deadline, self.log()
            with contextlib.suppress(BridgeError):  # nobody is there
                self.pid = self._status()["pid"]

    def await_no_client(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.status()["client"]:
            assert time.monotonic() < deadline, self.log()

    def stop(self) -> None:
        """What a bridge gives back is given back, whoever of them has made it."""
        self.signal(signal.SIGTERM)
        self.await_end()
        assert not self.path.exists()
        assert not self.control.exists()

    @property
    def lives(self) -> bool:
        return _lives(self.pid)

    def await_end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.lives:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.001)


@contextlib.contextmanager
def replaceable(
    folder: Path,
    *options: str,
    command: Sequence[str] = SERVE,
    pass_fds: Sequence[int] = (),
) -> Iterator[ReplaceableServer]:
    """:param options: beside its control socket; without any, it gets a socket in *folder*, too"""
    path, control = folder / "socket", folder / "control"
    socket = () if "--fd" in options else ("--socket-path", str(path))
    with server(
        path,
        *(*socket, "--control", str(control), *options),
        command=command,
        pass_fds=pass_fds,
    ) as running:
        serving = ReplaceableServer(running, control)
        try:
            yield serving
        finally:
            running.process.terminate()
            with contextlib.suppress(ProcessLookupError):
                serving.signal(signal.SIGTERM)
            running.process.wait(PATIENCE)
            serving.await_end()


def _lives(pid: int) -> bool:
    """And is no process that only waits to be asked for its status."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False

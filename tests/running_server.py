# SPDX-License-Identifier: BSD-3-Clause
"""``vfio-user-bridge serve model:edu`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from .client import Client, connect
from .logged import Logged

PATIENCE = 20.0
SERVE = [sys.executable, "-m", "vfio_user_bridge", "serve", "model:edu"]


class RunningServer(Logged):
    """A server that was started, its ready line read; *path* is where clients connect."""

    def __init__(self, process: subprocess.Popen[str], path: Path, log: IO[str]) -> None:
        self.process = process
        self.path = path
        super().__init__(log)
        assert process.stdout
        self.ready_line = process.stdout.readline()
        assert self.ready_line, f"not ready: {self.log()}"

    def connect(self) -> Client:
        return connect(self.path, PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A client that has agreed on a version."""
        with contextlib.closing(self.connect()) as client:
            client.negotiate()
            yield client

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Ask it to end, which must succeed; gives what it wrote to stdout after the ready line."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, self.log()
        return rest


@contextlib.contextmanager
def server(
    path: Path,
    *options: str,
    command: Sequence[str] = SERVE,
    pass_fds: Sequence[int] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Start *command* with *options*; whatever is left of it at the end is killed."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=pass_fds,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        try:
            yield RunningServer(process, path, log)
        finally:
            process.kill()

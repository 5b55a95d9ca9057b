# SPDX-License-Identifier: BSD-3-Clause
"""Other servers: whoever is given, else our other engine, else one that does nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.running_server import server

#: starts a server on a socket, for as long as the context lasts, and gives its process ID
Start = Callable[[Path], AbstractContextManager[int]]


@dataclass(frozen=True)
class Peer:
    name: str
    serving: Start
    is_floor: bool = False  # no server can be faster


@contextlib.contextmanager
def ours(path: Path, *options: str) -> Iterator[int]:
    """model:edu, served by the command."""
    with server(path, "--socket-path", str(path), *options) as running:
        yield running.process.pid


@contextlib.contextmanager
def _library(path: Path) -> Iterator[int]:
    with ours(path, "--engine", "libvfio-user") as pid:
        yield pid


def _command(words: Sequence[str]) -> Start:
    """A command that says nothing when it is ready: clients wait until it listens."""

    @contextlib.contextmanager
    def serving(path: Path) -> Iterator[int]:
        command = [word.replace("{socket}", str(path)) for word in words]
        with (
            tempfile.TemporaryFile() as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            try:
                yield process.pid
            finally:
                process.kill()
                path.unlink(missing_ok=True)

    return serving


def floor(folder: Path) -> Peer:
    """The server that does nothing; *folder* has the compiled programs."""
    serving = _command([str(folder / "floor"), "{socket}"])
    return Peer("floor (a server that does nothing)", serving, is_floor=True)


def choose(command: str | None, folder: Path) -> Peer:
    """The peer of rows that compare servers.

    :param command: what starts it, with {socket} where its socket's path goes
    :param folder: where the compiled programs are
    """
    if command:
        words = shlex.split(command)
        return Peer(Path(words[0]).name, _command(words))
    if os.environ.get("LIBVFIO_USER"):
        return Peer("engine libvfio-user", _library)
    return floor(folder)

# SPDX-License-Identifier: BSD-3-Clause
"""The CPU time that a server takes while its client says nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.client import VERSION, Client, connect, version_data
from tests.wire import u16

from .figures import Goal, Line, compare
from .peers import ours
from .setting import Setting

PATIENCE = 10.0
#: until the last reply is behind a server, in seconds
SETTLING = 0.1


def cpu(pid: int) -> float:
    """Seconds of CPU that all threads of a process have taken, to the nanosecond.

    The clock's ID is what clock_getcpuclockid(3) makes of a process.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _silent(path: Path) -> Client:
    """A client that agrees on a version, of a server that may not listen yet, and says no more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client = connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
    client.ask(VERSION, u16(0, 0) + version_data({}))
    return client


def measure(setting: Setting) -> Iterator[Line]:
    mine, its = setting.folder / "ours.sock", setting.folder / "peer.sock"
    taken: tuple[list[list[float]], list[list[float]]] = ([], [])
    with (
        ours(mine) as us,
        setting.peer.serving(its) as them,
        closing(_silent(mine)),
        closing(_silent(its)),
    ):
        time.sleep(SETTLING)
        for _ in range(setting.effort.rounds):
            before = cpu(us), cpu(them)
            time.sleep(setting.effort.seconds)
            for then, pid, rounds in zip(before, (us, them), taken, strict=True):
                rounds.append([(cpu(pid) - then) * 1e6 / setting.effort.seconds])
    none = not any(sample for (sample,) in taken[0])
    what = "CPU time of a second in which the client is silent"
    yield compare("idle", what, "µs", setting.peer.name, *taken, Goal("none", none))

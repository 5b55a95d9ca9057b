# SPDX-License-Identifier: BSD-3-Clause
"""How soon a server is there: from exec to its ready line, and from connect to the first reply."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tests.running_server import SERVE

from .figures import Figures, Goal, Line, compare
from .peers import ours
from .setting import Setting
from .timed import timed

NOTHING = (sys.executable, "-c", "pass")
#: how much later than the bare interpreter, in milliseconds
LATEST = 100


def first_line(command: Sequence[str]) -> float:
    """Milliseconds from exec until a command has written a line, or ended without."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        process.stdout.readline()
        took = time.perf_counter() - begun
        process.kill()
    return took * 1000


def measure(setting: Setting) -> Iterator[Line]:
    effort, mine, its = setting.effort, setting.folder / "ours.sock", setting.folder / "peer.sock"
    serve = (*SERVE, "--socket-path", str(mine))
    for command in (serve, NOTHING):
        first_line(command)  # their files are read, and compiled
    us: list[list[float]] = []
    bare: list[list[float]] = []
    for _ in range(effort.rounds):
        us.append([first_line(serve) for _ in range(effort.starts)])
        bare.append([first_line(NOTHING) for _ in range(effort.starts)])
    later = Figures.of(us).median - Figures.of(bare).median
    goal = Goal(f"at most {LATEST} ms later than the peer", later <= LATEST)
    what = "exec to ready line; the peer: to its end"
    yield compare("start", what, "ms", "python3 -c pass", us, bare, goal)

    with ours(mine), setting.peer.serving(its):
        us, them = timed(setting, "hello", 1, effort.starts * 10, mine, its)
    yield compare("start", "connect to first reply", "µs", setting.peer.name, us, them)

# SPDX-License-Identifier: BSD-3-Clause
"""For how long nobody answers a client, when its bridge is replaced, and when it is killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from integration.away import Away
from integration.replace import kill, pid, upgrade
from tests.running_server import SERVE, server

from .figures import Goal, Line, compare
from .setting import Setting
from .start import first_line

SUPERVISE = (sys.executable, "-m", "vfio_user_bridge", "supervise", "serve", "model:edu")
PEER = "exec to ready line of another bridge"
#: what nobody notices, in milliseconds
LONGEST = 300
#: seconds; a bridge that is killed sooner is started again after a pause
LIFE = 1.0


def measure(setting: Setting) -> Iterator[Line]:
    effort, path, control = setting.effort, setting.folder / "ours.sock", setting.folder / "control"
    options = ("--socket-path", str(path), "--control", str(control))
    other = (*SERVE, "--socket-path", str(setting.folder / "other.sock"))
    with server(path, *options, command=SUPERVISE) as running, running.client() as client:
        away = Away(client)
        for replace in (upgrade, kill):
            us: list[list[float]] = []
            started: list[list[float]] = []
            for _ in range(effort.rounds):
                us.append([])
                for _ in range(effort.starts):
                    time.sleep(LIFE)
                    before = pid(control)
                    away.longest()
                    replace(control)
                    us[-1].append(away.longest() * 1e3)
                    assert pid(control) != before
                started.append([first_line(other) for _ in range(effort.starts)])
            goal = Goal(f"each below {LONGEST} ms", max(map(max, us)) < LONGEST)
            what = f"{replace.__name__}: the longest time between two answers"
            yield compare("handover", what, "ms", PEER, us, started, goal)
        away.close()
        running.stop()  # with who serves then, which isn't our child

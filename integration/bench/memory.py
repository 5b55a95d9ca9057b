# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a server that is ready, by its devices. Clients aren't there yet.

RSS and PSS are those of /proc/PID/smaps_rollup. RSS counts all that is in memory, PSS a page that
several processes map only in part; goals are held against RSS, which is never the smaller.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from tests.processes import fields, number

from .figures import Figures, Goal, Line, compare
from .many import serving
from .peers import ours
from .setting import Setting
from .started import started

BARE = "python3, idle"
IDLE = (sys.executable, "-c", "print(flush=True); input()")
SERVE = "serve model:edu"
ONE, EACH_MORE = 20, 1  # MiB
#: until threads sleep, after the ready line
SETTLING = 0.1

Process = Callable[[], AbstractContextManager[int]]


def resident(pid: int) -> dict[str, float]:
    """RSS and PSS of a process, in MiB."""
    sizes = fields(pid, "smaps_rollup")
    return {"RSS": number(sizes["Rss"]) / 1024, "PSS": number(sizes["Pss"]) / 1024}


def _of(process: Process) -> dict[str, float]:
    with process() as pid:
        time.sleep(SETTLING)
        return resident(pid)


def _by_server(count: int) -> str:
    return f"{count} of model:edu by Server.add"


def measure(setting: Setting) -> Iterator[Line]:
    counts, folder = setting.effort.devices, setting.folder
    processes: dict[str, Process] = {
        BARE: partial(started, IDLE),
        SERVE: partial(ours, folder / "ours.sock"),
    }
    processes |= {_by_server(count): partial(serving, folder, count) for count in counts}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for _ in range(setting.effort.rounds):
        for name, process in processes.items():
            taken[name].append(_of(process))

    def rounds(name: str, kind: str) -> list[list[float]]:
        return [[sizes[kind]] for sizes in taken[name]]

    for kind in ("RSS", "PSS"):
        for name in list(processes)[1:]:
            goal, us = None, rounds(name, kind)
            if (name, kind) == (SERVE, "RSS"):
                goal = Goal(f"at most {ONE} MiB", Figures.of(us).median <= ONE)
            yield compare("memory", f"{kind}, {name}", "MiB", BARE, us, rounds(BARE, kind), goal)

    few, many = counts[0], counts[-1]
    one, all_ = rounds(_by_server(few), "RSS"), rounds(_by_server(many), "RSS")
    more = [[(much - little) / (many - few)] for (little,), (much,) in zip(one, all_, strict=True)]
    goal = Goal(f"under {EACH_MORE} MiB", Figures.of(more).median < EACH_MORE)
    what, peer = f"RSS, each more, from {few} to {many}", _by_server(few)
    yield compare("memory", what, "MiB", peer, more, one, goal)

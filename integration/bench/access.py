# SPDX-License-Identifier: BSD-3-Clause
"""Trapped accesses of 4 bytes over the real socket, one at a time and 32 on their way at once.

Where client and server run decides what a message costs: on one CPU they take turns, on a CPU each
they must wake each other. So both are measured, and what the scheduler makes of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from .figures import Figures, Goal, Line, Ratio, Rounds, compare
from .peers import ours
from .setting import Setting
from .timed import timed

PIPELINED = 32
P99 = 1.2


def measure(setting: Setting) -> Iterator[Line]:
    mine, its = setting.folder / "ours.sock", setting.folder / "peer.sock"
    for place, servers, clients in places():
        with started_on(servers), ours(mine), setting.peer.serving(its), started_on(clients):
            yield from compared(setting, "access", place, mine, its)


def places() -> Iterator[tuple[str, Collection[int], Collection[int]]]:
    """Where servers and clients run: in words, and the CPUs of either."""
    everywhere = os.sched_getaffinity(0)
    one, *others = sorted(everywhere)
    yield "wherever", everywhere, everywhere
    yield "on one CPU", [one], [one]
    if others:
        yield "on a CPU each", [one], others[:1]


@contextlib.contextmanager
def started_on(cpus: Collection[int]) -> Iterator[None]:
    """Processes that are started meanwhile run on these CPUs alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compared(setting: Setting, row: str, where: str, mine: Path, its: Path) -> Iterator[Line]:
    """The lines of *row* for our server on socket *mine* and the peer's on *its*."""
    for kind in ("read", "write"):
        for batch in (1, PIPELINED):
            us, them = timed(setting, kind, batch, setting.effort.accesses // batch, mine, its)
            how = "one at a time" if batch == 1 else f"{batch} pipelined, each"
            what = f"REGION_{kind.upper()} {where}, {how}"
            goal = None if setting.peer.is_floor else as_fast(us, them)
            yield compare(row, what, "µs", setting.peer.name, us, them, goal)


def as_fast(us: Rounds, them: Rounds) -> Goal:
    """Whether we are as fast as the peer, and hardly more ragged."""
    ratio, mine, its = Ratio.of(us, them), Figures.of(us), Figures.of(them)
    met = ratio is not None and ratio.median <= 1
    if mine.p99 is not None and its.p99 is not None:
        met = met and mine.p99 <= P99 * its.p99
    return Goal(f"median at most the peer's, p99 at most {P99} times its", met)

# SPDX-License-Identifier: BSD-3-Clause
"""What every row is given: how much to measure, where, and against whom."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from .peers import Peer

SOURCES = Path(__file__).parent / "c"
PROGRAMS = ("timed", "flood", "floor", "interrupts", "maps", "disk", "gateway", "bringup")


@dataclass(frozen=True)
class Effort:
    """How much is measured. A round asks us, then the peer."""

    rounds: int
    accesses: int  # a round
    starts: int  # processes, connections: a round
    devices: tuple[int, ...]
    seconds: float  # of silence, or of load: a round
    interrupts: int  # a round
    maps: tuple[int, ...]  # that are there
    turns: int  # maps made, and as many taken away: a round
    operations: int  # of a guest's disk or card: a round
    boots: int  # of guests: rounds of their own, for they take long


FULL = Effort(
    rounds=9,
    accesses=2000,
    starts=3,
    devices=(1, 8, 64),
    seconds=1.0,
    interrupts=5000,
    maps=(1, 256, 65535),
    turns=128,
    operations=50,
    boots=3,
)
QUICK = Effort(
    rounds=2,
    accesses=20,
    starts=1,
    devices=(1, 3),
    seconds=0.1,
    interrupts=10,
    maps=(1, 300),
    turns=10,
    operations=3,
    boots=1,
)


@dataclass(frozen=True)
class Setting:
    effort: Effort
    folder: Path  # for sockets; the programs are there too
    peer: Peer


def compile_programs(folder: Path) -> None:
    """Put the C programs into *folder*.

    :raise CalledProcessError: gcc has said why
    """
    for name in PROGRAMS:
        source, program = SOURCES / f"{name}.c", folder / name
        # Static, so that they run in the test machine as well, whatever its libraries are.
        subprocess.run(["gcc", "-std=c99", "-O2", "-static", "-o", program, source], check=True)

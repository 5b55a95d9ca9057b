# SPDX-License-Identifier: BSD-3-Clause
"""The statistics: all that is said of numbers measured by turns, in rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: so many samples make a p99 more than a maximum
ENOUGH_FOR_P99 = 100

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Figures:
    """Of all rounds together; *p99* is None where too few samples were taken."""

    median: float
    p99: float | None

    @classmethod
    def of(cls, rounds: Rounds) -> Figures:
        samples = sorted(sample for samples in rounds for sample in samples)
        p99 = samples[math.ceil(len(samples) * 0.99) - 1]
        return cls(statistics.median(samples), p99 if len(samples) >= ENOUGH_FOR_P99 else None)


@dataclass(frozen=True)
class Ratio:
    """Ours to the peer's, by the medians of each round: their median, and how far they spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Rounds, theirs: Rounds) -> Ratio | None:
        """There is none to a peer that took nothing at all."""
        mine, its = (list(map(statistics.median, rounds)) for rounds in (ours, theirs))
        if not all(its):
            return None
        ratios = [us / them for us, them in zip(mine, its, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Goal:
    """What was aimed at, in words, and whether it was met: a miss stays in the table."""

    text: str
    met: bool


def at_most(limit: float, ours: Rounds, theirs: Rounds, text: str = "the peer") -> Goal:
    """That we take so many times what *text* takes, or less."""
    ratio = Ratio.of(ours, theirs)
    return Goal(f"at most {limit} times {text}", ratio is not None and ratio.median <= limit)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    row: str
    what: str
    unit: str
    peer: str
    ours: Figures
    theirs: Figures
    ratio: Ratio | None
    rounds: int
    goal: Goal | None = None


def compare(
    row: str,
    what: str,
    unit: str,
    peer: str,
    ours: Rounds,
    theirs: Rounds,
    goal: Goal | None = None,
) -> Line:
    """The line for what was measured of us and of *peer*, round by round."""
    mine, its = Figures.of(ours), Figures.of(theirs)
    return Line(row, what, unit, peer, mine, its, Ratio.of(ours, theirs), len(ours), goal)

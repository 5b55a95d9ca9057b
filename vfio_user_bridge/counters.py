# SPDX-License-Identifier: BSD-3-Clause
"""How many messages of each command there were, and how long each took.

Times are counted in buckets, eight to a power of two: a percentile is at most an eighth too long.
Counting is on the path of trapped accesses, so a session does it itself, in a line.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = 8  # buckets to a power of two
#: the shortest time that is told from shorter ones, in ns
SHORTEST = 16
#: in a row
BUCKETS = (64 + 1) * _STEPS

#: by command: how many messages took as long as `bucket` says
Rows = dict[int, list[int] | memoryview]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong last, and when (seconds since the epoch)."""

    time: float
    text: str


class Counters:
    """What came of messages."""

    def __init__(self, rows: Rows | None = None) -> None:
        #: by command: how many took as long as `bucket` says
        self.rows = no_rows() if rows is None else rows
        self.refused = 0
        self.trouble: Trouble | None = None

    def refuse(self, what: str) -> None:
        self.refused += 1
        self.blame(what)

    def blame(self, what: str) -> None:
        self.trouble = Trouble(time.time(), what)

    def messages(self) -> dict[int, int]:
        """How many there were, by command; most first."""
        counts = {c: count for c, row in list(self.rows.items()) if (count := sum(row))}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def __add__(self, later: Counters) -> Counters:
        both = Counters()
        for one in (self, later):
            for command, row in list(one.rows.items()):
                if any(row):
                    sums = (a + b for a, b in zip(both.rows[command], row, strict=True))
                    both.rows[command] = list(sums)
        both.refused = self.refused + later.refused
        both.trouble = later.trouble or self.trouble
        return both


def no_rows() -> Rows:
    return defaultdict(lambda: [0] * BUCKETS)


def bucket(duration: int) -> int:
    """Where *duration* (ns, at least `SHORTEST`) is counted."""
    bits = duration.bit_length()
    return (bits << 3) + (duration >> bits - 4)


def upper_end(index: int) -> int:
    """All that is counted at *index* took less than this; in ns."""
    bits, step = divmod(index, _STEPS)
    return (step + _STEPS + 1 << bits - 1) >> 4


def percentile(row: Sequence[int], share: float) -> float:
    """How long *share* (0 to 1) of what *row* counts took at most, in seconds; NaN of nothing."""
    wanted = share * sum(row)
    seen = 0
    for index, count in enumerate(row):
        seen += count
        if count and seen >= wanted:
            return upper_end(index) / 1e9
    return math.nan

# SPDX-License-Identifier: BSD-3-Clause
"""How long things took, however many they are, in little memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Self

_BITS = 8  # that are kept of a number but for bars: 1 % is the most that is lost
#: between bars, in nanoseconds: steps of 1, 2, 5, 10, up to three hours
_EDGES = [0, *(digit * 10**power for power in range(13) for digit in (1, 2, 5)), 10**13]


class Histogram:
    """Counts times, in nanoseconds."""

    def __init__(self) -> None:
        self.count = 0
        self.highest = 0
        self._buckets: Counter[int] = Counter()  # by the least that is in each
        self._bars: Counter[int] = Counter()  # by the number of the edge above

    def add(self, time: int) -> None:
        self.count += 1
        if time > self.highest:
            self.highest = time
        rest = time.bit_length() - _BITS
        self._buckets[time >> rest << rest if rest > 0 else time] += 1
        self._bars[bisect_right(_EDGES, time, hi=len(_EDGES) - 1)] += 1

    def __iadd__(self, other: Histogram) -> Self:
        """Add all that *other* counted."""
        self.count += other.count
        self.highest = max(self.highest, other.highest)
        self._buckets += other._buckets
        self._bars += other._bars
        return self

    def percentile(self, percent: float) -> int:
        """As many took this or less; up to 1 % too low. 0 if there is nothing."""
        wanted = self.count * percent / 100
        seen = 0
        for time, count in self.counts():
            seen += count
            if seen >= wanted:
                return time
        return 0

    def counts(self) -> list[tuple[int, int]]:
        """Times, up to 1 % too low, and how many took each."""
        return sorted(self._buckets.items())

    def bars(self) -> Iterator[tuple[int, int, int]]:
        """From, to, how many, from the first that has some to the last; that has all beyond."""
        if self._bars:
            for above in range(min(self._bars), max(self._bars) + 1):
                yield _EDGES[above - 1], _EDGES[above], self._bars[above]

# SPDX-License-Identifier: BSD-3-Clause
"""Where a picture of a trace has what: a row for each kind of event, then one for each register.

A region with many offsets gets no more room than for as many labels as can be read.
"""

from __future__ import annotations

from .marks import Mark, Marks
from .names import Names, region_name
from .records import Kind

#: those that have a row each, from the top
_EVENTS = (Kind.CLIENT, Kind.RESET, Kind.IRQS, Kind.MAP, Kind.UNMAP)
_MOST_LABELS = 32  # of a region


class Rows:
    """Places are counted from the top; 1 is as much as a label takes."""

    def __init__(self, marks: Marks, names: Names) -> None:
        self.labels: dict[float, str] = {}
        #: from one row to the next in each region, 1 or less; -1 is the events
        self.spacing: dict[int, float] = {-1: 1}
        self.bottom = 0.0
        self._events: dict[Kind, float] = {}
        self._offsets: dict[tuple[int, int], float] = {}
        there = {mark.kind for mark in marks.marks}
        for kind in _EVENTS:
            if kind in there:
                self.labels[self.bottom] = kind.name.lower()
                self._events[kind] = self.bottom
                self.bottom += 1
        for region, offsets in marks.places.items():
            self.bottom += 1 if self.labels else 0  # apart from what is above
            self._add(region, offsets, marks.grain(region), names)

    def _add(self, region: int, offsets: list[int], grain: int, names: Names) -> None:
        step = -(-len(offsets) // _MOST_LABELS)
        spacing = self.spacing[region] = min(1, _MOST_LABELS / len(offsets))
        for number, offset in enumerate(offsets):
            if number % step == 0:
                several = f"{region_name(region)} {offset:#x}-{offset + grain - 1:#x}"
                label = several if grain > 1 else names.where(region, offset, 1)
                self.labels[self.bottom] = label
            self._offsets[region, offset] = self.bottom
            self.bottom += spacing
        self.bottom += 1 - spacing

    def of(self, mark: Mark) -> float:
        """The middle of its row."""
        if mark.kind in self._events:
            return self._events[mark.kind]
        return self._offsets[mark.region, mark.offset]

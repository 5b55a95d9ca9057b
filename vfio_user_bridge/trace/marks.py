# SPDX-License-Identifier: BSD-3-Clause
"""What a picture of a trace shows: a mark for each record, or for all that would lie on each other.

Time is divided into columns, and each region into grains of 1 byte at first. Where there are more
of either than a picture can show, each two become one, as often as it takes: so any trace fits into
memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .histogram import Histogram
from .records import KINDS, Access, Client, End, Kind, Record

_COLUMNS = 1 << 12  # more than a picture has pixels
_PLACES = 1 << 9


class Mark(NamedTuple):
    """*came* is of a client alone; *region* and *offset* are of an access alone, else -1."""

    column: int
    kind: Kind
    region: int
    offset: int
    failed: bool
    came: bool


class Marks:
    """Of those records that were added, in so many *columns*, and at so many *places*, at most."""

    def __init__(self, columns: int = _COLUMNS, places: int = _PLACES) -> None:
        self._most_columns, self._most_places = columns, places
        self.marks: set[Mark] = set()
        self.records = 0
        self.latency = {Kind.READ: Histogram(), Kind.WRITE: Histogram()}
        self._start: int | None = None
        self._column = 10  # powers of 2, nanoseconds and bytes
        self._grains: dict[int, int] = defaultdict(int)
        self._places: set[tuple[int, int]] = set()

    @property
    def width(self) -> int:
        """Of a column, in nanoseconds."""
        return 1 << self._column

    def grain(self, region: int) -> int:
        """In bytes."""
        return 1 << self._grains[region]

    @property
    def places(self) -> list[tuple[int, int]]:
        """The regions and offsets that have marks, in order."""
        return sorted(self._places)

    def seconds(self, mark: Mark) -> float:
        """When it was."""
        return ((self._start or 0) + mark.column * self.width) / 1e9

    def add_all(self, records: Iterable[Record]) -> None:
        for record in records:
            if type(record) is not End:
                self.add(record)

    def add(self, record: Record) -> None:
        self.records += 1
        if self._start is None:
            self._start = record.t
        kind, region, offset = KINDS[type(record)], -1, -1
        if isinstance(record, Access):
            self.latency[kind].add(record.latency)
            region, offset = record.region, self._rounded(record.region, record.offset)
            self._places.add((region, offset))
        column = (record.t - self._start) >> self._column
        came = isinstance(record, Client) and record.came
        self.marks.add(Mark(column, kind, region, offset, record.errno != 0, came))
        while column >= self._most_columns:
            column >>= 1
            self._column += 1
            self.marks = {mark._replace(column=mark.column >> 1) for mark in self.marks}
        while len(self._places) > self._most_places and self._coarsen():
            pass

    def _coarsen(self) -> bool:
        """Make the grains of the region that has the most of them twice as large, if it can be."""
        most, count = Counter(region for region, _ in self._places).most_common(1)[0]
        if count == 1:
            return False  # as no device has it
        self._grains[most] += 1
        self._places = {(region, self._rounded(region, at)) for region, at in self._places}
        self.marks = {
            mark._replace(offset=self._rounded(most, mark.offset)) if mark.region == most else mark
            for mark in self.marks
        }
        return True

    def _rounded(self, region: int, offset: int) -> int:
        grain = self._grains[region]
        return offset >> grain << grain

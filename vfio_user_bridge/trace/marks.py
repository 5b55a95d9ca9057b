# SPDX-License-Identifier: BSD-3-Clause
"""What a picture of a trace shows: a mark for each record, or for all that would lie on each other.

Time is divided into columns, and each region into grains of 1 byte at first. Where there are more
of either than a picture can show, each two become one, as often as it takes: so any trace fits into
memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .histogram import Histogram
from .records import KINDS, Access, Client, End, Kind, Record

_COLUMNS = 1 << 12  # more than a picture has pixels
_PLACES = 1 << 8  # in each region


class Mark(NamedTuple):
    """*came* is of a client alone; *region* and *offset* are of an access alone, else -1."""

    column: int
    kind: Kind
    region: int
    offset: int
    failed: bool
    came: bool


class Marks:
    """Of those records that were added: in *columns*, and at *places* of each region, at most."""

    def __init__(self, columns: int = _COLUMNS, places: int = _PLACES) -> None:
        self._most_columns, self._most_places = columns, places
        self.marks: set[Mark] = set()
        self.records = 0
        self.latency = {Kind.READ: Histogram(), Kind.WRITE: Histogram()}
        self._start: int | None = None
        self._column = 10  # powers of 2, nanoseconds and bytes
        self._grains: dict[int, int] = defaultdict(int)
        self._places: dict[int, set[int]] = defaultdict(set)

    @property
    def width(self) -> int:
        """Of a column, in nanoseconds."""
        return 1 << self._column

    def grain(self, region: int) -> int:
        """In bytes."""
        return 1 << self._grains[region]

    @property
    def places(self) -> dict[int, list[int]]:
        """The offsets that have marks, in order, by region."""
        return {region: sorted(offsets) for region, offsets in sorted(self._places.items())}

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
            self._places[region].add(offset)
        column = (record.t - self._start) >> self._column
        came = isinstance(record, Client) and record.came
        self.marks.add(Mark(column, kind, region, offset, record.errno != 0, came))
        while column >= self._most_columns:
            column >>= 1
            self._column += 1
            self.marks = {mark._replace(column=mark.column >> 1) for mark in self.marks}
        while region >= 0 and len(self._places[region]) > self._most_places:
            self._coarsen(region)

    def _coarsen(self, region: int) -> None:
        """Make its grains twice as large."""
        self._grains[region] += 1
        self._places[region] = {self._rounded(region, at) for at in self._places[region]}
        self.marks = {
            mark._replace(offset=self._rounded(region, mark.offset))
            if mark.region == region
            else mark
            for mark in self.marks
        }

    def _rounded(self, region: int, offset: int) -> int:
        grain = self._grains[region]
        return offset >> grain << grain

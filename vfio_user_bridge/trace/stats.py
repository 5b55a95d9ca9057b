# SPDX-License-Identifier: BSD-3-Clause
"""What a trace comes to: how many of which kind, where, how fast, and how long each took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from .histogram import Histogram
from .records import KINDS, Access, Client, End, Irqs, Kind, Map, Read, Record, Unmap
from .text import irqs

#: the span in which accesses are counted for the highest rate, in nanoseconds
SPAN = 100_000_000
# Beyond so many different offsets and values, or words on interrupts, new ones aren't told apart:
# a large trace may have more than fit into memory.
_MOST_VALUES = 1 << 20
_MOST_WORDS = 1 << 10


@dataclass(slots=True)
class Tally:
    count: int = 0
    bytes: int = 0
    errors: int = 0


@dataclass(slots=True)
class Place:
    """Accesses at one offset, and hashes of the values that were seen there."""

    reads: int = 0
    writes: int = 0
    widest: int = 0  # access, in bytes
    values: set[int] = field(default_factory=set)


class Stats:
    """Of those records that were added; times are in nanoseconds."""

    def __init__(self) -> None:
        #: by kind and, of accesses, region
        self.tallies: dict[tuple[Kind, int | None], Tally] = defaultdict(Tally)
        #: by region and offset
        self.places: dict[tuple[int, int], Place] = {}
        #: whether there were more places, or values in them, than are told apart
        self.overflowed = False
        self.latency: dict[Kind, Histogram] = defaultdict(Histogram)
        self.irqs: Counter[str] = Counter()
        self.most_mapped = 0  # bytes, at a time
        self.busiest = 0  # accesses in a `SPAN`
        self.first: int | None = None
        self.last = 0
        self._values_left = _MOST_VALUES
        self._span = self._in_span = self._mapped = 0

    def add_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        if type(record) is End:
            return
        kind = KINDS[type(record)]
        if self.first is None:
            self.first = record.t
        done = record.t + record.latency
        if done > self.last:
            self.last = done
        if isinstance(record, Access):
            tally = self.tallies[kind, record.region]
            tally.bytes += len(record.data)
            self._access(record)
        else:
            tally = self.tallies[kind, None]
            self._other(record)
        tally.count += 1
        tally.errors += record.errno != 0
        if not isinstance(record, Client):
            self.latency[kind].add(record.latency)

    @property
    def accesses(self) -> Histogram:
        """How long reads and writes took."""
        both = Histogram()
        for kind in (Kind.READ, Kind.WRITE):
            if kind in self.latency:
                both += self.latency[kind]
        return both

    @property
    def duration(self) -> int:
        """From when the first came to when the last was done."""
        return self.last - (self.first or 0)

    def rate(self) -> float:
        """Accesses a second, on average."""
        return self.accesses.count / (self.duration / 1e9) if self.duration else 0.0

    def hottest(self, count: int) -> list[tuple[tuple[int, int], Place]]:
        """Those *count* places that were accessed most, by region and offset."""
        places = sorted(
            self.places.items(), key=lambda item: (-item[1].reads - item[1].writes, item[0])
        )
        return places[:count]

    def _other(self, record: Record) -> None:
        if isinstance(record, Irqs):
            self._irqs(record)
        elif not record.errno and isinstance(record, Map | Unmap):
            self._mapped += record.size if isinstance(record, Map) else -record.size
            self.most_mapped = max(self.most_mapped, self._mapped)

    def _access(self, record: Access) -> None:
        span = record.t // SPAN
        if span != self._span:
            self._span, self._in_span = span, 0
        self._in_span += 1
        if self._in_span > self.busiest:
            self.busiest = self._in_span
        where = record.region, record.offset
        place = self.places.get(where)
        if place is None:
            if not self._may_grow():
                return
            place = self.places[where] = Place()
        if isinstance(record, Read):
            place.reads += 1
        else:
            place.writes += 1
        if record.count > place.widest:
            place.widest = record.count
        value = hash(record.data)
        if not record.errno and value not in place.values and self._may_grow():
            place.values.add(value)

    def _may_grow(self) -> bool:
        self._values_left -= 1
        self.overflowed = self.overflowed or self._values_left < 0
        return self._values_left >= 0

    def _irqs(self, record: Irqs) -> None:
        words = irqs(record) + (" (refused)" if record.errno else "")
        if words not in self.irqs and len(self.irqs) >= _MOST_WORDS:
            words = "others"
        self.irqs[words] += 1

# SPDX-License-Identifier: BSD-3-Clause
"""Where two recordings part: what was asked and answered, in order, whenever that was.

Each is read once and kept as numbers, so that millions of records can be compared. Where they part,
it is by their answers, if the same questions follow in both; else they go on at the nearest place
from which on they agree for a while. That isn't the least difference that there is, but takes time
in proportion to their length, while drivers that poll a register make `difflib` take its square.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from operator import attrgetter

from .records import KINDS, End, Read, Record, Write

#: so many records alike are no coincidence
_RUN = 4
#: how far ahead, in both together, a place where they agree again is looked for
_FAR = 200
#: how far ahead each record counts, even if it is as the one before it
_NEAR = 8
#: records shown before and after a difference
CONTEXT = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One of the recordings: of each record its number in `Comparison`, and its time."""

    numbers: array[int] = field(default_factory=lambda: array("Q"))
    times: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class Stretch:
    """What differs: the one's records from *start* to before *end*, and the other's likewise."""

    start: int
    end: int
    other_start: int
    other_end: int


class Comparison:
    """Of two recordings, each given as its records.

    :param data: whether what was read and written is compared
    """

    def __init__(
        self, one: Iterable[Record], other: Iterable[Record], *, data: bool = True
    ) -> None:
        self._data = data
        others = ("t", "latency") if data else ("t", "latency", "data")
        self._compared = {
            kind: attrgetter(*(field.name for field in fields(kind) if field.name not in others))
            for kind in KINDS
        }
        self._numbers: dict[object, int] = {}
        self._records: list[Record] = []  # the first of each number
        self._questions: list[object] = []  # likewise: what is asked there
        self.one, self.other = self._side(one), self._side(other)

    def _side(self, records: Iterable[Record]) -> Side:
        side = Side()
        for record in records:
            if not isinstance(record, End):  # that is the recorder's word
                side.numbers.append(self._number(record))
                side.times.append(record.t)
        return side

    def _number(self, record: Record) -> int:
        """Equal for records that are, but for their times."""
        kind = type(record)
        what = kind, self._compared[kind](record)
        number = self._numbers.setdefault(what, len(self._records))
        if number == len(self._records):
            if isinstance(record, Read | Write) and not self._data:
                record = replace(record, data=b"")
            self._records.append(record)
            self._questions.append(_question(record))
        return number

    def record(self, side: Side, at: int) -> Record:
        """The record there, or one that is equal but for its times."""
        return self._records[side.numbers[at]]

    def stretches(self) -> Iterator[Stretch]:
        """What differs, in order."""
        one, other = self.one.numbers, self.other.numbers
        i = j = 0
        while i < len(one) or j < len(other):
            if one[i : i + 1] == other[j : j + 1]:
                i, j = i + 1, j + 1
                continue
            start, other_start = i, j
            while one[i : i + 1] != other[j : j + 1]:
                i, j = self._next(i, j)
            yield Stretch(start, i, other_start, j)

    def _next(self, i: int, j: int) -> tuple[int, int]:
        """From where they part to where they may be the same again."""
        one, other = self.one.numbers, self.other.numbers
        if self._asked(one, i) == self._asked(other, j):
            return i + 1, j + 1
        coming, other_coming = _places(one, i), _places(other, j)
        places: list[int] = []
        other_places: list[int] = []
        for far in range(_FAR):
            places += islice(coming, 1)
            other_places += islice(other_coming, 1)
            for ahead in range(max(0, far + 1 - len(other_places)), min(far + 1, len(places))):
                at, other_at = places[ahead], other_places[far - ahead]
                if one[at : at + _RUN] == other[other_at : other_at + _RUN]:
                    return at, other_at
        return places[-1], other_places[-1]

    def _asked(self, numbers: array[int], at: int) -> list[object]:
        return [self._questions[number] for number in numbers[at : at + _RUN]]


def _places(numbers: array[int], start: int) -> Iterator[int]:
    """Where it may go on: *start*, the end, and all between, but for more of the same."""
    yield start
    for at in range(start + 1, len(numbers) + 1):
        if at < start + _NEAR or numbers[at - 1 : at] != numbers[at : at + 1]:
            yield at


def _question(record: Record) -> object:
    """What is asked by it: equal where only values and errnos differ."""
    if isinstance(record, Read | Write):
        return type(record), record.region, record.offset, record.count
    return type(record)


def hunks(stretches: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """Those together between which there is no more than what is shown around them."""
    hunk: list[Stretch] = []
    for stretch in stretches:
        if hunk and stretch.start - hunk[-1].end > 2 * CONTEXT:
            yield hunk
            hunk = []
        hunk.append(stretch)
    if hunk:
        yield hunk

# SPDX-License-Identifier: BSD-3-Clause
"""Differences in words: as a unified diff, with what is known of registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vfio_user_bridge.terminal import Styled, Text

from .diff import CONTEXT, Comparison, Side, Stretch, hunks
from .names import Names
from .records import Record
from .text import asked

_STYLES = {"-": "red", "+": "green"}


def replayed(differences: Iterable[tuple[Record, Record]], names: Names) -> Iterator[Text]:
    """A line for what was, with its time, and one for what is."""
    for then, now in differences:
        yield Styled(f"-{then.t / 1e9:12.6f}  {asked(then, names)}", _STYLES["-"])
        yield Styled(f"+{'':12}  {asked(now, names)}", _STYLES["+"])


def unified(comparison: Comparison, names: Names) -> Iterator[Text]:
    """The hunks, each below what records it has: numbers, from 1 on, and the time of the first."""
    one, other = comparison.one, comparison.other

    def lines(sign: str, side: Side, start: int, end: int) -> Iterator[Text]:
        for at in range(max(0, start), min(end, len(side.numbers))):
            line = f"{sign}{asked(comparison.record(side, at), names)}"
            yield Styled(line, _STYLES[sign]) if sign in _STYLES else line

    for hunk in hunks(comparison.stretches()):
        yield _heading(hunk, one, other)
        at = hunk[0].start - CONTEXT
        for stretch in hunk:
            yield from lines(" ", one, at, stretch.start)
            yield from lines("-", one, stretch.start, stretch.end)
            yield from lines("+", other, stretch.other_start, stretch.other_end)
            at = stretch.end
        yield from lines(" ", one, at, at + CONTEXT)


def _heading(hunk: list[Stretch], one: Side, other: Side) -> Text:
    first, last = hunk[0], hunk[-1]
    before = min(CONTEXT, first.start)
    around = before + min(CONTEXT, len(one.numbers) - last.end)
    ranges = (
        f"{sign}{start - before + 1},{end - start + around}"
        for sign, start, end in (
            ("-", first.start, last.end),
            ("+", first.other_start, last.other_end),
        )
    )
    times = (
        f"{side.times[start] / 1e9:.6f} s" if start < len(side.times) else "the end"
        for side, start in ((one, first.start), (other, first.other_start))
    )
    return Styled(f"@@ {' '.join(ranges)} @@ {', '.join(times)}", "cyan")

# SPDX-License-Identifier: BSD-3-Clause
"""Text and tables: coloured on a terminal, if rich is installed; aligned and plain elsewhere."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_GAP = "  "
#: the narrowest that the last column gets, in characters; a narrower terminal wraps
_LEAST = 20
#: to a terminal's upper left, and nothing is there any more (ECMA-48: CUP, ED)
_HOME = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Styled:
    """Text in a style of rich's, such as ``bold red``."""

    text: str
    style: str

    def __str__(self) -> str:
        return self.text


Text = str | Styled


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as there are headings; the columns named in *right* are numbers."""

    headings: Sequence[str]
    rows: list[Sequence[Text]] = field(default_factory=list)
    right: Collection[str] = ()

    def __str__(self) -> str:
        return self.aligned()

    def aligned(self, width: int | None = None) -> str:
        """Columns side by side, without a blank at any line's end.

        :param width: of lines, in characters; what the last column has too much for it is cut
        """
        rows = [[str(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = self.widths()
        if width is not None:
            taken = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
            widths[-1] = min(widths[-1], max(width - taken, _LEAST))
        return "\n".join(self._line(row, widths) for row in rows)

    def widths(self) -> list[int]:
        """Of the columns, in characters."""
        columns = zip(self.headings, *self.rows, strict=True)
        return [max(len(str(cell)) for cell in column) for column in columns]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = []
        for heading, cell, width in zip(self.headings, row, widths, strict=True):
            shown = cell if len(cell) <= width else f"{cell[: width - 1]}…"
            cells.append(shown.rjust(width) if heading in self.right else shown.ljust(width))
        return _GAP.join(cells).rstrip()


Part = Text | Table


def show(parts: Iterable[Part]) -> None:
    """Print each part on lines of its own."""
    if console := _console():
        for part in parts:
            console.print(rendered(part), soft_wrap=True)  # lines are the terminal's to wrap
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for part in parts:
        print(part.aligned(width) if isinstance(part, Table) else part)


def watch(look: Callable[[], Sequence[Part]], interval: float) -> None:
    """Show what *look* gives every *interval* seconds, in place on a terminal, until Ctrl-C."""
    console = _console()
    if console is None:
        before = _HOME if sys.stdout.isatty() else ""
        while True:
            parts = look()
            sys.stdout.write(before)
            show(parts)
            sys.stdout.flush()
            time.sleep(interval)
    live, group = (importlib.import_module(f"rich.{name}") for name in ("live", "console"))
    with live.Live(console=console, auto_refresh=False, screen=True) as screen:
        while True:
            screen.update(group.Group(*map(rendered, look())), refresh=True)
            time.sleep(interval)


def rendered(part: Part) -> Any:
    """*part* as rich has it."""
    if isinstance(part, Table):
        table = importlib.import_module("rich.table").Table(box=None, pad_edge=False)
        *widths, last = part.widths()
        for heading, width in zip(part.headings, (*widths, min(last, _LEAST)), strict=True):
            justify = "right" if heading in part.right else "left"
            table.add_column(
                heading, justify=justify, min_width=width, no_wrap=True, overflow="ellipsis"
            )
        for row in part.rows:
            table.add_row(*(_text(cell, overflow="ellipsis") for cell in row))
        return table
    return _text(part)


def _text(text: Text, **options: str) -> Any:
    style = text.style if isinstance(text, Styled) else ""
    return importlib.import_module("rich.text").Text(str(text), style, **options)


def _console() -> Any:
    """rich's, for a terminal; None without either."""
    if not sys.stdout.isatty():
        return None
    try:
        return importlib.import_module("rich.console").Console(highlight=False)
    except ImportError:
        return None

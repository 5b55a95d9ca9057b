# SPDX-License-Identifier: BSD-3-Clause
"""Text and tables: coloured on a terminal, if rich is installed; aligned and plain elsewhere."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_GAP = "  "


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
        """Aligned, without a blank at any line's end."""
        rows = [[str(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(self._line(row, widths) for row in rows)

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = (
            cell.rjust(width) if heading in self.right else cell.ljust(width)
            for heading, cell, width in zip(self.headings, row, widths, strict=True)
        )
        return _GAP.join(cells).rstrip()


Part = Text | Table


def show(parts: Iterable[Part]) -> None:
    """Print each part on lines of its own."""
    if (console := _console()) is None:
        for part in parts:
            print(part)
        return
    for part in parts:
        console.print(rendered(part), soft_wrap=not isinstance(part, Table))


def watch(look: Callable[[], Sequence[Part]], interval: float) -> None:
    """Show what *look* gives every *interval* seconds, in place on a terminal, until Ctrl-C."""
    console = _console()
    if console is None:
        while True:
            show(look())
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
        for heading in part.headings:
            table.add_column(heading, justify="right" if heading in part.right else "left")
        for row in part.rows:
            table.add_row(*(rendered(cell) for cell in row))
        return table
    style = part.style if isinstance(part, Styled) else ""
    return importlib.import_module("rich.text").Text(str(part), style)


def _console() -> Any:
    """rich's, for a terminal; None without either."""
    if not sys.stdout.isatty():
        return None
    try:
        return importlib.import_module("rich.console").Console(highlight=False)
    except ImportError:
        return None

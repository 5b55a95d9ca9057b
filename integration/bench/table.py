# SPDX-License-Identifier: BSD-3-Clause
"""Lines as a table of Markdown, and where they were measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

from .figures import Figures, Line

HEAD = """\
| row | what | peer | ours: median, p99 | peer: median, p99 | ratio (lowest to highest) | goal |
|---|---|---|---|---|---|---|"""


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _both(figures: Figures, unit: str) -> str:
    p99 = "-" if figures.p99 is None else number(figures.p99)
    return f"{number(figures.median)}, {p99} {unit}"


def row(line: Line) -> str:
    ratio, goal = line.ratio, line.goal
    cells = (
        line.row,
        line.what,
        line.peer,
        _both(line.ours, line.unit),
        _both(line.theirs, line.unit),
        f"{number(ratio.median)} ({number(ratio.low)} to {number(ratio.high)})" if ratio else "-",
        f"{goal.text}: {'met' if goal.met else 'MISSED'}" if goal else "",
    )
    return f"| {' | '.join(cells)} |"


def circumstances() -> dict[str, str]:
    """What figures depend on, and what else the machine has to do."""
    load, *_ = os.getloadavg()
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load": f"{load:.1f} in the last minute",
    }


def sentences(told: dict[str, str]) -> Iterator[str]:
    for name, value in told.items():
        yield f"{name}: {value}"

# SPDX-License-Identifier: BSD-3-Clause
"""A picture of a trace: what was accessed when, other events above that, latencies below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.extras import load

from .histogram import Histogram
from .marks import Mark, Marks
from .names import Names, region_name
from .records import Header, Kind
from .text import duration, title

#: what a picture can be, by the file's suffix
FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which the colour-blind tell apart; shapes and places differ, too.
_BLUE, _ORANGE, _GREEN, _PURPLE, _BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
#: colour, marker, and how far above its row's middle
_STYLES: dict[Kind, tuple[str, str, float]] = {
    Kind.READ: (_BLUE, "|", -0.22),
    Kind.WRITE: (_ORANGE, "|", 0.22),
    Kind.IRQS: (_GREEN, "^", 0),
    Kind.MAP: (_PURPLE, "s", 0),
    Kind.UNMAP: (_PURPLE, "_", 0),
    Kind.RESET: (_BLACK, "D", 0),
    Kind.CLIENT: (_BLACK, ">", 0),
}
#: those that have a row each, from the top
_EVENTS = (Kind.CLIENT, Kind.RESET, Kind.IRQS, Kind.MAP, Kind.UNMAP)
_MOST_LABELS = 48
_MANY = 5_000  # marks: as lines, an SVG of more is slow to draw
_BINS = 4  # bars an octave of latencies


def draw(header: Header, marks: Marks, names: Names, path: Path) -> None:
    """:raise BridgeError: matplotlib isn't there, or *path* can't be written"""
    figures = load("matplotlib.figure", "drawing a trace")
    ticker = load("matplotlib.ticker", "drawing a trace")
    rows = _rows(marks)
    labels = dict(_labels(rows, marks, names))
    height = 2.6 + 0.2 * len(labels)
    figure = figures.Figure(figsize=(12, height), layout="constrained")
    when, took = figure.subplots(2, height_ratios=(height - 2.2, 1.4))
    figure.suptitle(_title(header, marks), x=0.01, ha="left", fontsize="medium")
    margin = 0.7 * _label_step(marks)
    _draw_marks(when, marks, rows, row_height=72 * 0.2 / _label_step(marks))
    when.set_yticks(list(labels), list(labels.values()), fontsize="small")
    when.set_ylim(max(rows.values(), default=0) + margin, -margin)
    when.grid(axis="y", color="0.93")
    when.set_axisbelow(True)
    when.set_xlabel("seconds since the recording began")
    _draw_latencies(took, marks.latency)
    took.xaxis.set_major_formatter(ticker.EngFormatter("s"))
    took.xaxis.set_minor_formatter(ticker.NullFormatter())
    for axes in (when, took):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BridgeError(f"can't write {path}: {error.strerror}") from None


_Row = Kind | tuple[int, int]


def _rows(marks: Marks) -> dict[_Row, float]:
    """Where each row is: events first, then regions, apart from each other as labels are."""
    rows: dict[_Row, float] = {}
    there = {mark.kind for mark in marks.marks}
    gap = _label_step(marks)
    for kind in _EVENTS:
        if kind in there:
            rows[kind] = len(rows) * gap
    at, before = (len(rows) - 1) * gap, -1
    for place in marks.places:
        at += 1 if place[0] == before else 2 * gap
        rows[place] = at
        before = place[0]
    return rows


def _label_step(marks: Marks) -> int:
    """How many rows have one label."""
    return max(-(-len(marks.places) // _MOST_LABELS), 1)


def _labels(rows: dict[_Row, float], marks: Marks, names: Names) -> Iterator[tuple[float, str]]:
    """All that have room."""
    step, seen = _label_step(marks), Counter[int]()
    for name, at in rows.items():
        if isinstance(name, Kind):
            yield at, name.name.lower()
            continue
        region, offset = name
        if seen[region] % step == 0:
            grain = marks.grain(region)
            several = f"{region_name(region)} {offset:#x}-{offset + grain - 1:#x}"
            yield at, several if grain > 1 else names.where(region, offset, 1)
        seen[region] += 1


def _title(header: Header, marks: Marks) -> str:
    said = f"{title(header)}\n{marks.records:,} requests"
    if len(marks.marks) == marks.records:
        return said
    grains = [
        f"{marks.grain(region):,} bytes of {region_name(region)}"
        for region in sorted({region for region, _ in marks.places})
        if marks.grain(region) > 1
    ]
    within = " and ".join([duration(marks.width), *grains])
    return f"{said}; {len(marks.marks):,} marks: one for all alike within {within}"


def _draw_marks(axes: Any, marks: Marks, rows: dict[_Row, float], row_height: float) -> None:
    """*row_height* is in points."""
    size = min(max(row_height * 0.4, 2), 8)
    for kind, (colour, shape, shift) in _STYLES.items():
        for came in (False, True):
            chosen = [mark for mark in marks.marks if (mark.kind, mark.came) == (kind, came)]
            if not chosen:
                continue
            access = kind in marks.latency
            times, heights = _places(marks, chosen, rows, -shift)
            axes.plot(
                times,
                heights,
                linestyle="",
                marker="<" if kind is Kind.CLIENT and not came else shape,
                markersize=size if access else 6,
                markerfacecolor="none" if kind is Kind.CLIENT and not came else colour,
                markeredgecolor=colour,
                markeredgewidth=1.3,
                label=f"{kind.name.lower()}s" if access else None,
                rasterized=len(chosen) > _MANY,
            )
            if kind in (Kind.RESET, Kind.CLIENT):
                for time in times:
                    axes.axvline(time, color="0.8", linewidth=0.8, zorder=0)
    failed = [mark for mark in marks.marks if mark.failed]
    if failed:
        times, heights = _places(marks, failed, rows)
        axes.plot(times, heights, linestyle="", marker="x", color=_BLACK, label="refused")
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small"
        )
        for handle in legend.legend_handles:
            handle.set_markersize(8)


def _places(
    marks: Marks, chosen: Iterable[Mark], rows: dict[_Row, float], shift: float = 0
) -> tuple[Sequence[float], Sequence[float]]:
    times, heights = [], []
    for mark in chosen:
        row: _Row = (mark.region, mark.offset) if mark.kind in marks.latency else mark.kind
        times.append(marks.seconds(mark))
        heights.append(rows[row] + shift)
    return times, heights


def _draw_latencies(axes: Any, latency: dict[Kind, Histogram]) -> None:
    shown = {kind: histogram for kind, histogram in latency.items() if histogram.count}
    edges = _edges(shown.values())
    for kind, histogram in shown.items():
        times = [max(time, 1) / 1e9 for time, _ in histogram.counts()]
        read = kind is Kind.READ
        middle, most = (duration(histogram.percentile(percent)) for percent in (50, 99))
        axes.hist(
            times,
            edges,
            weights=[count for _, count in histogram.counts()],
            histtype="stepfilled" if read else "step",
            color=_STYLES[kind][0],
            alpha=0.5 if read else 1,
            linewidth=1.3,
            label=f"{kind.name.lower()}s: half within {middle}, 99 % within {most}",
        )
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("latency")
    axes.set_ylabel("accesses")
    if shown:
        axes.legend(frameon=False, fontsize="small")


def _edges(histograms: Iterable[Histogram]) -> list[float]:
    """Of the bars, in seconds: from below all times to above them."""
    times = [max(time, 1) for histogram in histograms for time, _ in histogram.counts()]
    low, high = min(times, default=1), max(times, default=1)
    steps = range(_BINS * (low.bit_length() - 1), _BINS * (high.bit_length() + 1))
    return [2 ** (step / _BINS) / 1e9 for step in steps]

# SPDX-License-Identifier: BSD-3-Clause
"""A picture of a trace: what was accessed when, other events above that, latencies below."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.extras import load

from .histogram import Histogram
from .marks import Mark, Marks
from .names import Names, region_name
from .records import Header, Kind
from .rows import Rows
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
_ROW = 0.2  # inches
_ACCESS, _EVENT = 6, 6  # sizes of marks, in points
_MANY = 5_000  # marks: as lines, an SVG of more is slow to draw
_BINS = 4  # bars an octave of latencies


def draw(header: Header, marks: Marks, names: Names, path: Path) -> None:
    """:raise BridgeError: matplotlib isn't there, or *path* can't be written"""
    figures = load("matplotlib.figure", "drawing a trace")
    ticker = load("matplotlib.ticker", "drawing a trace")
    rows = Rows(marks, names)
    height = 2.6 + _ROW * rows.bottom
    figure = figures.Figure(figsize=(12, height), layout="constrained")
    when, took = figure.subplots(2, height_ratios=(height - 2.2, 1.4))
    plain = {"parse_math": False}  # names are no formulas, whatever is in them
    figure.suptitle(_title(header, marks), x=0.01, ha="left", fontsize="medium", **plain)
    _draw_marks(when, marks, rows)
    when.set_yticks(list(rows.labels), list(rows.labels.values()), fontsize="small", **plain)
    when.set_ylim(max(rows.bottom, 1) - 0.3, -0.7)
    when.grid(axis="y", color="0.93")
    when.set_axisbelow(True)
    when.set_xlabel("seconds since the recording began")
    _draw_latencies(took, marks.latency)
    took.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    took.xaxis.set_major_formatter(ticker.EngFormatter("s"))
    took.xaxis.set_minor_formatter(ticker.NullFormatter())
    for axes in (when, took):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BridgeError(f"can't write {path}: {error.strerror}") from None


def _title(header: Header, marks: Marks) -> str:
    said = f"{title(header)}\n{marks.records:,} requests"
    if len(marks.marks) == marks.records:
        return said
    grains = [
        f"{marks.grain(region):,} bytes of {region_name(region)}"
        for region in marks.places
        if marks.grain(region) > 1
    ]
    within = " and ".join([duration(marks.width), *grains])
    return f"{said}; {len(marks.marks):,} marks: one for all alike within {within}"


def _draw_marks(axes: Any, marks: Marks, rows: Rows) -> None:
    alike: dict[tuple[Kind, bool, int], list[Mark]] = defaultdict(list)
    for mark in marks.marks:
        alike[mark.kind, mark.came, mark.region].append(mark)
    for (kind, came, region), chosen in sorted(alike.items()):
        colour, shape, shift = _STYLES[kind]
        spacing = rows.spacing[region]
        access, went = kind in marks.latency, kind is Kind.CLIENT and not came
        times = [marks.seconds(mark) for mark in chosen]
        axes.plot(
            times,
            [rows.of(mark) - shift * spacing for mark in chosen],
            linestyle="",
            marker="<" if went else shape,
            markersize=max(spacing * _ACCESS, 2) if access else _EVENT,
            markerfacecolor="none" if went else colour,
            markeredgecolor=colour,
            markeredgewidth=1.3,
            label=f"{kind.name.lower()}s" if access else None,
            rasterized=len(chosen) > _MANY,
        )
        for time in times if kind in (Kind.RESET, Kind.CLIENT) else ():
            axes.axvline(time, color="0.8", linewidth=0.8, zorder=0)
    failed = [mark for mark in marks.marks if mark.failed]
    if failed:
        axes.plot(
            [marks.seconds(mark) for mark in failed],
            [rows.of(mark) for mark in failed],
            linestyle="",
            marker="x",
            color=_BLACK,
            label="refused",
        )
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        once = dict(zip(labels, handles, strict=True))
        legend = axes.legend(
            once.values(),
            once,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=3,
            frameon=False,
            fontsize="small",
        )
        for handle in legend.legend_handles:
            handle.set_markersize(_EVENT)


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

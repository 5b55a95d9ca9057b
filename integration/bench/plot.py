# SPDX-License-Identifier: BSD-3-Clause
"""The ratios as a picture; takes the extra `plot`, and nothing else here does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .figures import Line


def plot(lines: Sequence[Line], path: Path) -> None:
    """Ours to the peer's, with the spread over rounds; lines without a ratio are left out."""
    # Nor has 0 a place on a logarithmic axis.
    shown = [(line, line.ratio) for line in lines if line.ratio and line.ratio.low > 0]
    figure = Figure(figsize=(10, 1 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    middle = [ratio.median for _, ratio in shown]
    spread = [
        [ratio.median - ratio.low for _, ratio in shown],
        [ratio.high - ratio.median for _, ratio in shown],
    ]
    axes.errorbar(middle, range(len(shown)), xerr=spread, fmt="o", capsize=3)
    axes.axvline(1, color="grey", linewidth=1)
    labels = [f"{line.row}: {line.what} ({line.unit}), against {line.peer}" for line, _ in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ours / peer's, lowest to highest round")
    figure.savefig(path)

# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runs; what it measures in so short a time means nothing, and isn't looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.bench.__main__ import ROWS
from integration.bench.figures import Figures, Ratio
from integration.bench.idle import cpu

BENCH = [sys.executable, "-m", "integration.bench", "--quick"]


def test_every_row(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    subprocess.run([*BENCH, "--json", written], check=True)
    lines = json.loads(written.read_text())["lines"]
    assert {line["row"] for line in lines} == set(ROWS)
    for line in lines:
        ratio = line["ratio"]
        assert ratio is None or ratio["low"] <= ratio["median"] <= ratio["high"], line


def test_a_peer_that_is_given() -> None:
    """Any server's command will do, such as our own."""
    peer = f"{sys.executable} -m vfio_user_bridge serve model:edu --socket-path {{socket}}"
    done = subprocess.run(
        [*BENCH, "access", "--peer", peer], check=True, capture_output=True, text=True
    )
    assert f"| {Path(sys.executable).name} |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["tempo"], "no row tempo"), (["--peer", "true"], "by {socket}")],
)
def test_what_it_is_told_wrong(arguments: list[str], complaint: str) -> None:
    done = subprocess.run([*BENCH, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_figures() -> None:
    assert Figures.of([[3, 1], [2]]) == Figures(2, None)
    assert Figures.of([range(1, 101), range(101, 201)]) == Figures(100.5, 198)


def test_a_ratio_is_that_of_rounds() -> None:
    """A round in which the machine was slow counts like any other, for it was slow to both."""
    assert Ratio.of([[2, 2, 9], [40], [3]], [[1], [20], [2]]) == Ratio(2, 1.5, 2)


def test_the_clock_of_a_process() -> None:
    before, mine = time.process_time(), cpu(os.getpid())
    assert before <= mine <= time.process_time()


def test_no_ratio_to_nothing() -> None:
    assert Ratio.of([[1]], [[0]]) is None


def test_a_plot(tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    subprocess.run([*BENCH, "idle", "access", "--plot", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")

# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runs; what it measures in so short a time means nothing, and isn't looked at."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from integration import tree
from integration.bench import machine
from integration.bench.figures import Figures, Goal, Line, Ratio
from integration.bench.idle import cpu
from integration.bench.report import Report
from integration.bench.rows import HERE
from integration.bench.setting import compile_programs
from integration.machine import MachineError

BENCH = [sys.executable, "-m", "integration.bench", "--quick"]
BENCH_THERE = ["python3", "-B", "-m", "integration.bench"]


def test_every_row_here(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    subprocess.run([*BENCH, "here", "--json", written], check=True)
    lines = json.loads(written.read_text())["lines"]
    assert {line["row"] for line in lines} == set(HERE)
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
    [(["tempo", "here"], "no row tempo"), (["--peer", "true"], "by {socket}")],
)
def test_what_it_is_told_wrong(arguments: list[str], complaint: str) -> None:
    done = subprocess.run([*BENCH, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert complaint in done.stderr


LINE = Line("pots", "boiled", "1/s", "kettle", Figures(1, None), Figures(2, 3), None, 1)
REPORT = Report(
    {"load": "heavy"}, [LINE, replace(LINE, ratio=Ratio(1, 0, 2), goal=Goal("x", True))]
)


def test_a_report_is_what_was_saved(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "report")
    assert Report.load(tmp_path / "report") == REPORT


def test_what_the_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is to run this program, with C programs and a peer that it finds there."""

    def run(command: list[str], results: Path, **_: object) -> int:
        assert command[:6] == [*BENCH_THERE, "pots", "--quick"]
        here = [word.replace("/results", str(results)) for word in command[6:]]
        options = dict(zip(here[::2], here[1::2], strict=True))
        assert os.access(Path(options["--inside"], "floor"), os.X_OK)
        assert os.access(shlex.split(options["--peer"])[0], os.X_OK)
        REPORT.save(Path(options["--json"]))
        return 0

    compile_programs(tmp_path)
    monkeypatch.setattr("integration.machine.run", run)
    monkeypatch.setattr(tree, "path", lambda: tmp_path)
    assert machine.measure(["pots"], ["--quick"], "echo {socket}", tmp_path) == REPORT


def test_a_peer_with_all_that_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "path", lambda: tmp_path)  # which has none of it
    folder = tmp_path / "its folder"
    command = machine.carried("ls --width=0 {socket}", folder, folder)
    words = shlex.split(command.replace("{socket}", "loaded"))
    said = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert set(said.split()) >= {"ls", "libc.so.6"}


def test_a_peer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no program kettle"):
        machine.carried("kettle {socket}", tmp_path, tmp_path)


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

# SPDX-License-Identifier: BSD-3-Clause
"""What `trace stats` counts, against the same by other means."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.cli import main
from vfio_user_bridge.trace import stats as stats_
from vfio_user_bridge.trace.histogram import Histogram
from vfio_user_bridge.trace.records import Irqs, Read
from vfio_user_bridge.trace.stats import Stats

from .trace_files import HEADER, config_space, write

Output = pytest.CaptureFixture[str]
MS = 1_000_000

#: 4 writes of FACTORIAL, 10 reads of it that take 1 to 10 µs, then what comes but once
RECORDS: list[list[Any]] = [
    [6, 0, 50, 0, True],
    *([1, n * MS, 500, 0, 0, 8, 4, bytes([n, 0, 0, 0])] for n in range(1, 5)),
    *([0, (100 + n) * MS, n * 1000, 0, 0, 8, 4, b"same"] for n in range(1, 11)),
    [0, 150 * MS, 2000, 22, 7, 0x40, 2, b""],
    [2, 160 * MS, 9000, 0, 1, 36, 0, 1, 1, b""],
    [2, 161 * MS, 9000, 22, 0, 36, 0, 1, 1, b""],
    [3, 170 * MS, 1000, 0, 0, 4096, 3, True],
    [3, 171 * MS, 1000, 0, 8192, 8192, 3, True],
    [3, 172 * MS, 1000, 17, 0, 4096, 3, True],
    [4, 173 * MS, 1000, 0, 0, 4096],
    [3, 174 * MS, 1000, 0, 0, 1024, 3, True],
    [5, 200 * MS, 10 * MS, 0],
    [7, 900 * MS, 0, 0, "stopped"],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = config_space((0, 4, 0x11E81234))
    return write(tmp_path / "edu.trace", *RECORDS, header={**HEADER, "config": config})


def as_json(capsys: Output, *words: object) -> Any:
    assert main(["trace", "stats", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_json(path: Path, capsys: Output) -> None:
    found = as_json(capsys, path)
    counts = {
        (entry["kind"], entry["region"]): (entry["count"], entry["bytes"], entry["errors"])
        for entry in found.pop("counts")
    }
    assert counts == {
        ("client", None): (1, 0, 0),
        ("write", "bar0"): (4, 16, 0),
        ("read", "bar0"): (10, 40, 0),
        ("read", "config"): (1, 0, 1),
        ("irqs", None): (2, 0, 1),
        ("map", None): (4, 0, 1),
        ("unmap", None): (1, 0, 0),
        ("reset", None): (1, 0, 0),
    }
    latency = found.pop("latency")
    assert set(latency) == {"write", "read", "irqs", "map", "unmap", "reset"}
    assert latency["write"] == {"p50": 500, "p90": 500, "p99": 500, "max": 500}
    assert latency["read"]["max"] == 10_000
    assert latency["reset"]["max"] == 10 * MS
    assert found == {
        "device": "edu",
        "time": HEADER["time"],
        "duration": 210 * MS,
        "rate": 71.4,  # 15 in 0.21 s
        "busiest": {"span": 100 * MS, "accesses": 11},  # in the second 100 ms
        "places": [
            {
                "region": "bar0",
                "offset": 8,
                "register": "FACTORIAL",
                "reads": 10,
                "writes": 4,
                "values": 5,
            },
            {
                "region": "config",
                "offset": 64,
                "register": None,
                "reads": 1,
                "writes": 0,
                "values": 0,
            },
        ],
        "places_complete": True,
        "irqs": {"MSI: vector 0 gets an eventfd": 1, "INTx: vector 0 gets an eventfd (refused)": 1},
        "most_mapped": 4096 + 8192,
    }


def test_text(path: Path, capsys: Output) -> None:
    assert main(["trace", "stats", str(path), "--top", "1"]) == 0
    text = capsys.readouterr().out
    for line in (
        "24 requests in 210 ms\n",
        "15 accesses, 71 a second; in the busiest 100 ms 11\n",
        "KIND    REGION  COUNT  BYTES  ERRORS\n",
        "read    bar0       10     40       0\n",
        "map                 4              1\n",
        "REGION  OFFSET  REGISTER   READS  WRITES  VALUES\n",
        "bar0       0x8  FACTORIAL     10       4       5\n\n",
        "reset     10 ms   10 ms   10 ms   10 ms\n",
        "  500 ns to  1.0 µs            4  ████████████████████████████████\n",
        "  5.0 µs to   10 µs            5  ████████████████████████████████████████\n",
        "       1  MSI: vector 0 gets an eventfd\n",
        "memory mapped for DMA, at most at a time: 12,288 bytes\n",
    ):
        assert line in text


def test_part_of_it(path: Path, capsys: Output) -> None:
    found = as_json(capsys, path, "--command", "read", "--region", "bar0", "--since", "0.106")
    assert [entry["count"] for entry in found["counts"]] == [5]
    assert found["duration"] == 4 * MS + 10_000


def test_nothing_of_it(path: Path, capsys: Output) -> None:
    assert main(["trace", "stats", str(path), "--since", "77"]) == 0
    assert capsys.readouterr().out.endswith("\nno requests\n")
    assert as_json(capsys, path, "--since", "77")["rate"] == 0


def test_mistakes(path: Path, capsys: Output) -> None:
    assert main(["trace", "stats", str(path), "--top", "-1"]) == 2
    assert "'-1' is not a number of offsets" in capsys.readouterr().err


def test_more_than_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of many offsets, values and words takes no more memory, and says so."""
    monkeypatch.setattr(stats_, "_MOST_VALUES", 10)
    monkeypatch.setattr(stats_, "_MOST_WORDS", 3)
    stats = Stats()
    stats.add_all(Read(0, 1, 0, 0, offset, 4, b"same") for offset in range(5))
    stats.add_all(Read(0, 1, 0, 0, offset, 4, b"other") for offset in range(20))
    assert stats.overflowed
    assert len(stats.places) == 5
    assert stats.accesses.count == 25
    stats.add_all(Irqs(0, 1, 0, 2, 36, vector, 1, 1, b"") for vector in range(9))
    assert len(stats.irqs) == 4
    assert stats.irqs["others"] == 6


@given(st.lists(st.integers(0, 1 << 64), min_size=1, max_size=200), st.integers(1, 100))
def test_percentiles(times: list[int], percent: int) -> None:
    """By the nearest rank, up to 1/128 too low."""
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    exact = sorted(times)[math.ceil(len(times) * percent / 100) - 1]
    assert exact * 127 / 128 <= histogram.percentile(percent) <= exact
    assert histogram.highest == max(times)


@given(st.lists(st.integers(0, 10**10), max_size=50))
def test_bars(times: list[int]) -> None:
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    bars = list(histogram.bars())
    assert sum(count for *_, count in bars) == len(times)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(bars))
    assert not bars or (bars[0][2] and bars[-1][2])

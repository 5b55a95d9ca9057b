# SPDX-License-Identifier: BSD-3-Clause
"""The picture that `trace plot` draws, and that a mark in it stands for each record."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.figure import Figure

from vfio_user_bridge.cli import main
from vfio_user_bridge.trace.marks import Marks
from vfio_user_bridge.trace.records import Kind, Read, Write

from . import command_line
from .trace_files import HEADER, config_space, write

Output = pytest.CaptureFixture[str]
MS = 1_000_000
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

RECORDS: list[list[Any]] = [
    [6, 0, 50, 0, True],
    [3, 1 * MS, 1000, 0, 0, 4096, 3, True],
    [2, 2 * MS, 9000, 0, 1, 36, 0, 1, 1, b""],
    *([1, n * MS, 1500, 0, 0, 8, 4, bytes(4)] for n in range(3, 30)),
    *([0, n * MS, 700, 0, 0, 0x20, 4, bytes(4)] for n in range(3, 30)),
    [0, 31 * MS, 0, 22, 0, 0x5000, 4, b""],
    [5, 32 * MS, 100_000, 0],
    [4, 33 * MS, 1000, 0, 0, 4096],
    [6, 34 * MS, 50, 0, False],
    [7, 35 * MS, 0, 0, "stopped"],
]


@pytest.fixture(autouse=True, scope="module")
def fonts() -> None:
    """matplotlib keeps the files of those that it has used open."""
    figure = Figure()
    figure.text(0, 0, "µ")
    figure.savefig(io.BytesIO())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = config_space((0, 4, 0x11E81234))
    return write(tmp_path / "edu.trace", *RECORDS, header={**HEADER, "config": config})


def plot(path: Path, picture: Path, *options: str) -> None:
    assert main(["trace", "plot", str(path), "--output", str(picture), *options]) == 0


def pixels(picture: Path, colour: tuple[int, int, int]) -> int:
    """How many have it."""
    every: Any = (image.imread(picture)[:, :, :3] * 255).round()
    return int((every == colour).all(axis=2).sum())


def test_png(path: Path, tmp_path: Path) -> None:
    """What is left out isn't in it: here, reads."""
    everything, writes = tmp_path / "all.png", tmp_path / "writes.png"
    plot(path, everything)
    plot(path, writes, "--command", "write,irqs")
    assert pixels(everything, BLUE) > 100
    assert pixels(everything, ORANGE) > 100
    assert pixels(writes, BLUE) == 0
    assert pixels(writes, ORANGE) > 100


def test_svg(path: Path, tmp_path: Path) -> None:
    """matplotlib draws letters, and says in comments which words they are."""
    plot(path, tmp_path / "edu.svg")
    text = (tmp_path / "edu.svg").read_text()
    for words in (
        "edu, recorded 2020-01-02 03:04:05 UTC by vfio-user-bridge 9.8.7",
        *("client", "reset", "irqs", "map", "unmap"),
        *("bar0 FACTORIAL", "bar0 STATUS", "bar0 0x5000"),
        *("reads", "writes", "refused", "seconds since the recording began", "latency"),
        "writes: half within 1.5 µs, 99 % within 1.5 µs",
    ):
        assert f"<!-- {words} -->" in text, words


def test_a_large_trace_says_what_a_mark_is(tmp_path: Path) -> None:
    """Of 2,000 accesses within 2 ms, and as many offsets, not all have marks of their own."""
    path = write(
        tmp_path / "wide.trace",
        *([1, n * 1000, 700, 0, 1, n * 64, 4, bytes(4)] for n in range(2000)),
        [1, 10_000 * MS, 700, 0, 7, 4, 2, bytes(2)],
        RECORDS[-1],
    )
    plot(path, tmp_path / "wide.svg")
    text = (tmp_path / "wide.svg").read_text()
    # 2**22 ns: 10 s in 4096 columns. 250 grains are as many as fit.
    assert (
        "2,001 requests; 251 marks: one for all alike within 4.2 ms and 512 bytes of bar1" in text
    )
    assert "<!-- bar1 0x0-0x1ff -->" in text
    assert "<!-- config COMMAND -->" in text


def test_nothing_to_draw(path: Path, tmp_path: Path) -> None:
    plot(path, tmp_path / "none.png", "--since", "99")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("picture", "status", "says"),
    [
        ("edu.txt", 2, "--output: edu.txt must end in one of .png, .svg, .pdf"),
        ("/none/edu.png", 1, "can't write /none/edu.png: No such file or directory"),
    ],
)
def test_mistakes(path: Path, capsys: Output, picture: str, status: int, says: str) -> None:
    assert main(["trace", "plot", str(path), "--output", picture]) == status
    assert capsys.readouterr().err == f"vfio-user-bridge: {says}\n"


def test_without_matplotlib(path: Path) -> None:
    words = ("trace", "plot", str(path), "--output", "/none/a.png")
    assert command_line.without("matplotlib", *words) == (
        1,
        "vfio-user-bridge: drawing a trace takes matplotlib: install python3-matplotlib,"
        " or by pip matplotlib\n",
    )


ACCESSES = st.lists(
    st.tuples(
        st.sampled_from((Read, Write)),
        st.one_of(st.integers(0, 10**7), st.integers(0, 1 << 63)),
        st.integers(0, 3),
        st.one_of(st.integers(0, 1 << 16), st.integers(0, (1 << 64) - 1)),
    ),
    max_size=60,
)


@given(ACCESSES)
def test_each_access_has_its_mark(accesses: list[tuple[Any, int, int, int]]) -> None:
    """Within a column and a grain of where it is; and of neither there are too many."""
    marks = Marks(columns=16, places=8)
    accesses.sort(key=lambda access: access[1])
    marks.add_all(kind(t, 1, 0, region, at, 4, b"") for kind, t, region, at in accesses)
    assert marks.records == len(accesses)
    assert all(len(offsets) <= 8 for offsets in marks.places.values())
    there = {(mark.kind, mark.column, mark.region, mark.offset) for mark in marks.marks}
    start = min((t for _, t, *_ in accesses), default=0)
    assert all(column < 16 for _, column, *_ in there)
    for kind, t, region, at in accesses:
        column, grain = (t - start) // marks.width, marks.grain(region)
        name = Kind.READ if kind is Read else Kind.WRITE
        assert (name, column, region, at // grain * grain) in there


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """matplotlib would read them as such, and fail."""
    trace = write(tmp_path / "odd.trace", *RECORDS, header={**HEADER, "device": r"$\bad{$"})
    registers = tmp_path / "registers.toml"
    registers.write_text("[bar0]\n'$\\bad{$' = {offset = 8}\n")
    plot(trace, tmp_path / "odd.svg", "--registers", str(registers))

# SPDX-License-Identifier: BSD-3-Clause
"""Which records of two recordings differ, and how that is shown."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.cli import main
from vfio_user_bridge.trace.diff import Comparison
from vfio_user_bridge.trace.records import Client, End, Read, Record, Reset, Write

from .trace_files import END, write

Output = pytest.CaptureFixture[str]

STATUS, FACTORIAL = 0x20, 0x08


def read(offset: int, value: int, t: int = 0) -> Read:
    return Read(t, 5, 0, 0, offset, 4, value.to_bytes(4, "little"))


def store(offset: int, value: int, t: int = 0) -> Write:
    return Write(t, 5, 0, 0, offset, 4, value.to_bytes(4, "little"))


def stretches(
    one: Iterable[Record], other: Iterable[Record], *, data: bool = True
) -> list[tuple[int, int, int, int]]:
    comparison = Comparison(one, other, data=data)
    return [(s.start, s.end, s.other_start, s.other_end) for s in comparison.stretches()]


def polled(busy: int) -> list[Record]:
    """A driver waits until the device isn't busy, then goes on."""
    return [store(FACTORIAL, 5), *[read(STATUS, 1)] * busy, read(STATUS, 0), *SOME[::-1]]


SOME: list[Record] = [store(n % 7, n) if n % 3 else read(n % 5, n) for n in range(30)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], []),
        (SOME, SOME, []),
        (SOME, [], [(0, 30, 0, 0)]),
        ([], SOME, [(0, 0, 0, 30)]),
        (SOME, SOME[:20], [(20, 30, 20, 20)]),
        (SOME, [*SOME[:5], *SOME[7:]], [(5, 7, 5, 5)]),
        (SOME, [*SOME[:5], Reset(0, 0, 0), *SOME[5:]], [(5, 5, 5, 6)]),
        (SOME, [*SOME[:5], Reset(0, 0, 0), *SOME[6:]], [(5, 6, 5, 6)]),
        (polled(10), polled(3), [(4, 11, 4, 4)]),
        (polled(0), polled(300), [(1, 1, 1, 301)]),
        ([Client(0, 0, 0, came=True)], [Client(0, 0, 0, came=False)], [(0, 1, 0, 1)]),
        # every second answer is another
        (
            [read(n % 2, n % 2 * n) for n in range(20)],
            [read(n % 2, n % 2) for n in range(20)],
            [(n, n + 1, n, n + 1) for n in range(3, 20, 2)],
        ),
        # how long it took, and how the recording ended, is no difference
        ([read(0, 1, t=7), End(9, 0, 0, "limit")], [read(0, 1, t=8), End(9, 0, 0, "closed")], []),
        ([Write(0, 0, 0, 0, 0, 1, b"a")], [Write(0, 9, 5, 0, 0, 1, b"a")], [(0, 1, 0, 1)]),
    ],
)
def test_stretches(
    one: Sequence[Record], other: Sequence[Record], expected: list[tuple[int, int, int, int]]
) -> None:
    assert stretches(one, other) == expected


def test_without_data() -> None:
    assert stretches([read(0, 1), store(4, 1)], [read(0, 2), store(4, 2)], data=False) == []
    assert stretches([read(0, 1)], [read(4, 1)], data=False) == [(0, 1, 0, 1)]


TRACES = st.lists(st.builds(read, st.integers(0, 2), st.integers(0, 1)), max_size=40)


@given(TRACES, TRACES)
def test_what_is_between_stretches_is_alike(one: list[Record], other: list[Record]) -> None:
    at = other_at = 0
    for start, end, other_start, other_end in [
        *stretches(one, other),
        (len(one), len(one), len(other), len(other)),
    ]:
        assert one[at:start] == other[other_at:other_start]
        at, other_at = end, other_end


def test_hundred_thousand_records_take_seconds() -> None:
    chance = random.Random(1)
    one, unlike = (
        [read(chance.randrange(99), chance.randrange(9)) for _ in range(100_000)] for _ in range(2)
    )
    fewer = [record for record in one if chance.random() < 0.99]
    before = time.monotonic()
    assert sum(end - start for start, end, *_ in stretches(one, fewer)) < 2 * (100_000 - len(fewer))
    stretches(one[:30_000], unlike)
    assert time.monotonic() - before < 60


# ---- The command ----------------------------------------------------------------------------

#: as the format has them: reads of STATUS, a write of FACTORIAL
BUSY, DONE = ([0, 2_000_000, 90, 0, 0, STATUS, 4, data] for data in (b"\1\0\0\0", bytes(4)))
STORE = [1, 1_000_000, 90, 0, 0, FACTORIAL, 4, b"\5\0\0\0"]


def compare(tmp_path: Path, *options: str) -> int:
    one = write(tmp_path / "one", *[STORE] * 5, BUSY, DONE, *[STORE] * 9, DONE, END)
    other = write(tmp_path / "other", *[STORE] * 5, DONE, *[STORE] * 9, BUSY, END)
    return main(["trace", "diff", str(one), str(other), *options])


def test_the_command(tmp_path: Path, capsys: Output) -> None:
    assert compare(tmp_path) == 1
    title = "edu, recorded 2020-01-02 03:04:05 UTC by vfio-user-bridge 9.8.7"
    store, done = " write   bar0 0x8 = 0x00000005", "read    bar0 0x20 = 0x00000000"
    busy = "read    bar0 0x20 = 0x00000001"
    assert capsys.readouterr().out.splitlines() == [
        f"--- {title}",
        f"+++ {title}",
        "@@ -3,7 +3,6 @@ 0.002000 s, 0.002000 s",
        *[store] * 3,
        f"-{busy}",
        f" {done}",
        *[store] * 2,
        "@@ -14,4 +13,4 @@ 0.002000 s, 0.002000 s",
        *[store] * 3,
        f"-{done}",
        f"+{busy}",
    ]


@pytest.mark.parametrize("options", [("--command", "write"), ("--offset", "0-0xf")])
def test_a_part_of_them(tmp_path: Path, capsys: Output, options: tuple[str, ...]) -> None:
    assert compare(tmp_path, *options) == 0
    assert capsys.readouterr().out == ""


def test_the_command_without_data(tmp_path: Path, capsys: Output) -> None:
    assert compare(tmp_path, "--no-data") == 1
    out = capsys.readouterr().out
    assert "@@ -4,7 +4,6 @@" in out
    assert "\n-read    bar0 0x20 (4 bytes)\n" in out
    assert "=" not in out


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_what_is_no_recording_is_no_difference(
    tmp_path: Path, capsys: Output, content: bytes
) -> None:
    one, other = write(tmp_path / "one", END), tmp_path / "other"
    other.write_bytes(content)
    assert main(["trace", "diff", str(one), str(other)]) == 2
    assert main(["trace", "diff", str(one), str(tmp_path / "missing")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"{other}: it is no trace" in first
    assert "missing: No such file" in second

# SPDX-License-Identifier: BSD-3-Clause
"""What is read of a trace, be it whole, cut off, or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.messages import IrqInfo, RegionInfo
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import (
    Client,
    End,
    Header,
    Irqs,
    Map,
    Read,
    Record,
    Reset,
    Unmap,
    Write,
)

from .descriptors import open_descriptors
from .trace_files import END, HEADER, TIME, packed, write

#: each kind as the format has it, and as it is read
KINDS: list[tuple[list[Any], Record]] = [
    ([0, 1, 2, 0, 3, 4, 5, b"ab"], Read(1, 2, 0, 3, 4, 5, b"ab")),
    ([1, 1, 2, 22, 3, 4, 2, b"ab"], Write(1, 2, 22, 3, 4, 2, b"ab")),
    ([2, 1, 2, 0, 3, 4, 5, 6, 7, b"ab"], Irqs(1, 2, 0, 3, 4, 5, 6, 7, b"ab")),
    ([3, 1, 2, 0, 3, 4, 5, True], Map(1, 2, 0, 3, 4, 5, True)),
    ([4, 1, 2, 0, 3, 4], Unmap(1, 2, 0, 3, 4)),
    ([5, 1, 2, 0], Reset(1, 2, 0)),
    ([6, 1, 2, 0, False], Client(1, 2, 0, False)),
]
RECORDS = [as_written for as_written, _ in KINDS]
LAST = End(9_000_000, 0, 0, "stopped")
EXPECTED = [as_read for _, as_read in KINDS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.trace"


def read(path: Path) -> tuple[list[Record], bool]:
    """The records, and whether the end is missing."""
    with Trace(path) as trace:
        return list(trace), trace.truncated


def test_header(path: Path) -> None:
    with Trace(write(path, header={**HEADER, "config": b"\x34\x12", "later": [1]})) as trace:
        assert trace.header == Header(
            "edu",
            "9.8.7",
            TIME,
            (RegionInfo(0, 3, 1 << 20), RegionInfo(7, 3, 256)),
            (IrqInfo(0, 7, 1), IrqInfo(1, 9, 1)),
            b"\x34\x12",
        )


def test_every_kind(path: Path) -> None:
    assert read(write(path, *RECORDS, END)) == ([*EXPECTED, LAST], False)


def test_what_comes_after_the_end_is_not_read(path: Path) -> None:
    assert read(write(path, END, *RECORDS, tail=b"\xc1")) == ([LAST], False)


def test_unknown_kinds_are_passed_over(path: Path) -> None:
    write(path, [8, 1, 2, 0], RECORDS[0], [99, 1, 2, 0, {"more": [1]}, None], END)
    assert read(path) == ([EXPECTED[0], LAST], False)


@pytest.mark.parametrize("tail", [b"", bytes(1), bytes(70_000)], ids=["none", "zero", "zeros"])
def test_without_an_end(path: Path, tail: bytes) -> None:
    assert read(write(path, *RECORDS, tail=tail)) == (EXPECTED, True)


def test_cut_off_anywhere(path: Path) -> None:
    """Whole records are there, whether the file ends in the middle of one or goes on as zeros."""
    header, whole = packed(HEADER), packed(*RECORDS)
    for length in range(len(whole)):
        there = next(n for n in range(8) if len(packed(*RECORDS[: n + 1])) > length)
        path.write_bytes(header + whole[:length])
        assert read(path) == (EXPECTED[:there], True)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        7,
        None,
        "text",
        [0],
        [0, 1, 2, 0],
        [0, 1, 2, 0, 3, 4, 5, "no bytes"],
        [0, 1, 2, 0, 3, 4, 5, b"ab", 1],
        [3, 1, 2, 0, 3, 4, 5, 1],
        [5, None, 2, 0],
        [7, 1, 0, 0, "\x1b[2J"],
        [5, 1 << 63, 2, 0],
        ["0", 1, 2, 0],
        [8, 1],
    ],
    ids=str,
)
def test_what_is_no_record(path: Path, wrong: Any) -> None:
    write(path, RECORDS[0], wrong, END)
    with Trace(path) as trace:
        records = iter(trace)
        assert next(records) == EXPECTED[0]
        with pytest.raises(BridgeError) as error:
            next(records)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is no trace: serve --record makes them"),
        (bytes(5000), "it is no trace"),
        (b"\x7fELF" * 100, "it is no trace"),
        (b"\xdf\xff\xff\xff\xff" + bytes(100), "it is no trace"),
        (b"\x81" * 5000, "it is no trace"),
        (b"\xc6\xff\xff\xff\xff" + bytes(100), "it is no trace"),
        (packed({**HEADER, "format": "tar"}), "it is no trace"),
        (packed({**HEADER, "version": 2}), "the trace is of version 2, and this program reads 1: "),
        (packed({**HEADER, "version": "1"}), "it is no trace"),
        (packed({**HEADER, "device": 7}), "the trace's header is damaged"),
        (packed({**HEADER, "device": "\x1b]0;\a"}), "the trace's header is damaged"),
        (packed({**HEADER, "regions": [[0, 3]]}), "the trace's header is damaged"),
        (packed({**HEADER, "irqs": [7]}), "the trace's header is damaged"),
        (packed({"format": HEADER["format"], "version": 1}), "the trace's header is damaged"),
    ],
)
def test_what_is_no_trace(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    before = open_descriptors()
    with pytest.raises(BridgeError) as error:
        Trace(path)
    assert str(error.value).startswith(f"{path}: {says}")
    assert open_descriptors() == before


def test_what_cant_be_read(path: Path, tmp_path: Path) -> None:
    for wrong, says in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(BridgeError) as error:
            Trace(wrong)
        assert str(error.value) == f"can't read {wrong}: {says}"


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, 250), st.binary(min_size=1, max_size=4)).map(
            lambda where: damaged(*where)
        ),
    )
)
def test_rubbish_is_records_or_a_bridge_error(content: bytes) -> None:
    fd = os.memfd_create("rubbish")
    said = ""
    try:
        os.write(fd, content)
        with Trace(Path(f"/proc/self/fd/{fd}")) as trace:
            assert all(isinstance(record, Record) for record in trace)
    except BridgeError as error:
        said = str(error)
    finally:
        os.close(fd)
    assert "\n" not in said


def damaged(at: int, piece: bytes) -> bytes:
    whole = packed(HEADER, *RECORDS, END)
    return whole[:at] + piece + whole[at + len(piece) :]

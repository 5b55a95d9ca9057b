# SPDX-License-Identifier: BSD-3-Clause
"""Records in words and as JSON; and those of a client of a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user_bridge.cli import main
from vfio_user_bridge.trace.names import Names
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
from vfio_user_bridge.trace.text import duration, line, title, words

from . import client as c
from . import command_line
from .descriptors import eventfds, memory_files
from .running_server import server
from .trace_files import END, HEADER, TIME, config_space, write
from .wire import dma_map, region, set_irqs, u16, u32

Output = pytest.CaptureFixture[str]

EDU = Header("edu", "9.8.7", TIME, (), (), config_space((0, 4, 0x11E81234)))
RECORDS = [[0, 5, 7, 0, 0, 0, 4, b"\xed\0\0\1"], [2, 6, 1, 22, 1, 36, 0, 1, 1, b""], END]
NONE, EVENTFD, BOOL = 1, 4, 2
MASK, UNMASK, TRIGGER = 8, 16, 32


def irqs(index: int, flags: int, start: int, count: int, files: int = 0, data: bytes = b"") -> Irqs:
    return Irqs(0, 0, 0, index, flags, start, count, files, data)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Read(0, 0, 0, 0, 0x08, 4, b"\x18\0\0\0"), "bar0 FACTORIAL = 0x00000018"),
        (
            Write(0, 0, 0, 0, 0x98, 8, b"\x07" + bytes(7)),
            "bar0 DMA_COMMAND = 0x0000000000000007 START=1 DIRECTION=to RAM RAISE_IRQ=1",
        ),
        (Read(0, 0, 0, 7, 0x06, 2, b"\x10\0"), "config STATUS = 0x0010 CAP_LIST=1"),
        (Read(0, 0, 0, 1, 0x40, 3, b"abc"), "bar1 0x40 = 61 62 63"),
        (Read(0, 0, 0, 6, 0, 64, bytes(64)), "rom 0x0 = " + "00 " * 31 + "00… (64 bytes)"),
        (Read(0, 0, 0, 6, 0, 64, b"U\xaa"), "rom 0x0 = 0xaa55 (64 bytes asked for)"),
        (Read(0, 0, 22, 0, 0x08, 4, b""), "bar0 FACTORIAL (4 bytes)"),
        (irqs(2, EVENTFD | TRIGGER, 0, 4, 4), "MSI-X: vectors 0-3 get eventfds"),
        (irqs(1, EVENTFD | TRIGGER, 0, 1, 1), "MSI: vector 0 gets an eventfd"),
        (irqs(2, EVENTFD | TRIGGER, 2, 1), "MSI-X: vector 2 loses its eventfd"),
        (irqs(2, EVENTFD | TRIGGER, 2, 2), "MSI-X: vectors 2-3 lose their eventfds"),
        (irqs(0, NONE | TRIGGER, 0, 0), "INTx: off"),
        (irqs(0, NONE | MASK, 0, 1), "INTx: vector 0 masked"),
        (irqs(0, EVENTFD | UNMASK, 0, 1, 1), "INTx: vector 0 unmasked by an eventfd"),
        (irqs(2, BOOL | TRIGGER, 0, 2, 0, b"\0\1"), "MSI-X: vectors 0-1 triggered, where 00 01"),
        (irqs(4, EVENTFD | TRIGGER, 0, 1, 1), "device request: vector 0 gets an eventfd"),
        (irqs(9, 0, 0, 1), "interrupt 9: vector 0 flags 0x0"),
        (Map(0, 0, 0, 0, 0xA0000, 3, True), "0x0-0x9ffff rw, guest memory"),
        (Map(0, 0, 0, 1 << 32, 4096, 1, False), "0x100000000-0x100000fff r-, no memory with it"),
        (Unmap(0, 0, 0, 0x1000, 0x1000), "0x1000-0x1fff"),
        (Reset(0, 0, 0), ""),
        (Client(0, 0, 0, True), "came"),
        (Client(0, 0, 0, False), "went"),
        (End(0, 0, 0, "limit"), "limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(record: Record, expected: str) -> None:
    assert words(record, Names(EDU)) == expected


def test_lines() -> None:
    names = Names(EDU)
    assert title(EDU) == "edu, recorded 2020-01-02 03:04:05 UTC by vfio-user-bridge 9.8.7"
    assert line(Write(1_234_567_891, 4_250, 0, 0, 0x04, 4, bytes(4)), names) == (
        "    1.234568   4.2 µs  write   bar0 LIVENESS = 0x00000000"
    )
    assert line(Map(0, 12, 17, 0, 4096, 3, True), names) == (
        "    0.000000    12 ns  map     0x0-0xfff rw, guest memory  EEXIST"
    )
    assert line(Reset(10**12, 10**9, 4000), names) == (" 1000.000000    1.0 s  reset   errno 4000")


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.0 µs"),
        (9_960, "10 µs"),
        (12_345, "12 µs"),
        (2_500_000, "2.5 ms"),
    ],
)
def test_durations(nanoseconds: int, expected: str) -> None:
    assert duration(nanoseconds) == expected


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edu.trace"


def shown(capsys: Output, *words: object) -> tuple[list[str], str]:
    """The lines that `trace show` prints, and what it complains of."""
    assert main(["trace", "show", *map(str, words)]) == 0
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err


def test_a_session_with_a_server(path: Path, tmp_path: Path, capsys: Output) -> None:
    """Of what a client does, every line is there, and says it."""
    socket = tmp_path / "edu.sock"
    options = ("--socket-path", str(socket), "--record", str(path))
    with server(socket, *options) as running, memory_files(1, 8192) as files, eventfds(1) as events:
        with running.client() as client:
            client.ask(c.REGION_READ, region(0, 7, 4))
            client.ask(c.REGION_WRITE, region(4, 7, u16(6)))
            client.ask(c.DMA_MAP, dma_map(0x1000, 8192), files)
            client.ask(c.SET_IRQS, set_irqs(EVENTFD | TRIGGER, 1, 0, 1), events)
            client.ask(c.REGION_WRITE, region(8, 0, u32(4)))
            client.ask(c.REGION_READ, region(8, 0, 4))
            assert client.refused(c.SET_IRQS, set_irqs(EVENTFD | TRIGGER, 0, 0, 1), events) == 22
            client.ask(c.RESET)
        running.stop()
    (first, *lines), complaints = shown(capsys, path)
    assert first.startswith("edu, recorded 20")
    assert [text[23:] for text in lines] == [
        "client  came",
        "read    config VENDOR_ID/DEVICE_ID = 0x11e81234",
        "write   config COMMAND = 0x0006 MEMORY=1 MASTER=1",
        "map     0x1000-0x2fff rw, guest memory",
        "irqs    MSI: vector 0 gets an eventfd",
        "write   bar0 FACTORIAL = 0x00000004",
        "read    bar0 FACTORIAL = 0x00000018",
        "irqs    INTx: vector 0 gets an eventfd  EINVAL",
        "reset",
        "client  went",
        "unmap   0x1000-0x2fff",
        "end     closed",
    ]
    times = [float(text[:12]) for text in lines]
    assert times == sorted(times)
    assert not complaints


def test_part_of_it(path: Path, capsys: Output) -> None:
    records = [[kind, 1, 1, 0, 0, offset, 4, bytes(4)] for kind in (0, 1) for offset in (0, 4)]
    write(path, *records, END)
    lines, _ = shown(capsys, path, "--command", "write", "--offset", "0x4", "--region", "bar0")
    assert [text[23:] for text in lines[1:]] == ["write   bar0 0x4 = 0x00000000"]


def test_names_of_ones_own(path: Path, tmp_path: Path, capsys: Output) -> None:
    registers = tmp_path / "mine.toml"
    registers.write_text("[bar0]\nMINE = {offset = 0}\n")
    write(path, [0, 1, 1, 0, 0, 0, 4, bytes(4)], END)
    lines, _ = shown(capsys, path, "--registers", registers)
    assert lines[1].endswith("bar0 MINE = 0x00000000")


def test_json(path: Path, capsys: Output) -> None:
    header = {**HEADER, "config": EDU.config}
    write(path, *RECORDS, header=header)
    lines, _ = shown(capsys, path, "--json")
    first, read, irq, end = map(json.loads, lines)
    assert first["kind"] == "header"
    assert first["time"] == TIME
    assert first["regions"][0] == {"region": "bar0", "flags": 3, "size": 1 << 20}
    assert first["irqs"][1] == {"irq": "MSI", "flags": 9, "count": 1}
    assert read == {
        "kind": "read",
        "t": 5,
        "latency": 7,
        "errno": 0,
        "region": "bar0",
        "offset": 0,
        "count": 4,
        "data": "ed000001",
        "register": "IDENTIFICATION",
        "fields": {"MAJOR": 1, "MINOR": 0},
    }
    assert (irq["irq"], irq["error"], irq["eventfds"], irq["data"]) == ("MSI", "EINVAL", 1, "")
    assert (end["kind"], end["reason"]) == ("end", "stopped")


def test_a_trace_without_its_end_is_told(path: Path, capsys: Output) -> None:
    write(path, *RECORDS[:2], tail=bytes(4096))
    lines, complaints = shown(capsys, path)
    assert len(lines) == 3
    assert complaints == (
        f"vfio-user-bridge: {path}: the end is missing: the recording goes on, or it was cut off\n"
    )


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--region", "bar7"], 2, "--region: there is no 'bar7'"),
        (["--registers", "/none"], 1, "can't read /none: No such file or directory"),
    ],
)
def test_mistakes(path: Path, capsys: Output, options: list[str], status: int, says: str) -> None:
    write(path, END)
    assert main(["trace", "show", str(path), *options]) == status
    assert capsys.readouterr().err.startswith(f"vfio-user-bridge: {says}")


def test_rubbish_after_good_records(path: Path, capsys: Output) -> None:
    """Those are shown."""
    write(path, *RECORDS[:2], tail=b"\xc1")
    assert main(["trace", "show", str(path)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert printed.err.startswith(f"vfio-user-bridge: {path}: there is no record at byte ")


def test_without_msgpack(path: Path) -> None:
    assert command_line.without("msgpack", "trace", "show", str(path)) == (
        1,
        "vfio-user-bridge: reading a trace takes msgpack: install python3-msgpack,"
        " or by pip msgpack\n",
    )


def test_a_reader_that_has_seen_enough(path: Path) -> None:
    write(path, *([0, n, 1, 0, 0, 0, 4, bytes(4)] for n in range(10_000)), END)
    command = [sys.executable, "-m", "vfio_user_bridge", "trace", "show", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1

# SPDX-License-Identifier: BSD-3-Clause
"""What is asked of a device is in its trace, whatever becomes of the server or the disk."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.cli import main
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.messages import DmaMap, IrqSet
from vfio_user_bridge.models.edu import Edu
from vfio_user_bridge.recording import RecordedDevice, new_file
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import (
    Client,
    End,
    Irqs,
    Kind,
    Map,
    Read,
    Record,
    Reset,
    Unmap,
    Write,
)
from vfio_user_bridge.trace.writer import Writer, now

from . import client as c
from .descriptors import eventfds, memory_files
from .engines import ENGINES, need, talk
from .fake_device import FakeDevice
from .running_server import SERVE, RunningServer, server
from .wire import dma_map, dma_unmap, region, set_irqs

LIMIT = 64 << 20
ENABLE = 0x24  # VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
DATA = st.one_of(st.binary(max_size=16), st.sampled_from((1000, 1 << 20, 3 << 20)).map(bytes))
#: any record of each kind, but for its time
RECORDS = st.one_of(
    *(
        st.tuples(st.just(int(kind)), U32, st.integers(-65, 255), *fields)
        for kind, *fields in (
            (Kind.READ, st.integers(0, 255), U64, U32, DATA),
            (Kind.WRITE, st.integers(0, 255), U64, U32, DATA),
            (Kind.IRQS, U32, U32, U32, U32, U32, st.binary(max_size=300)),
            (Kind.MAP, U64, U64, U32, st.booleans()),
            (Kind.UNMAP, U64, U64),
            (Kind.RESET,),
            (Kind.CLIENT, st.booleans()),
        )
    )
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edu.trace"


@pytest.fixture
def edu() -> Iterator[RecordedDevice]:
    with closing(RecordedDevice(Edu())) as device:
        yield device


def records(path: Path) -> list[Record]:
    with Trace(path) as trace:
        return list(trace)


def verbs(path: Path) -> list[tuple[Any, ...]]:
    """All records but when they were and how long they took."""
    found = records(path)
    times = [record.t for record in found]
    assert times == sorted(times)
    return [
        (type(record), *(getattr(record, name) for name in record.__slots__[2:]))
        for record in found
    ]


# ---- The format -----------------------------------------------------------------------------


@given(st.lists(RECORDS, max_size=20))
def test_what_is_written_is_what_msgpack_reads(written: list[tuple[Any, ...]]) -> None:
    fd = os.memfd_create("trace")
    try:
        writer = Writer(os.dup(fd), {"name": "x" * 300, "list": [[-1, True]] * 20}, LIMIT, refuse)
        since = now()
        for kind, latency, error, *rest in written:
            if kind in (Kind.READ, Kind.WRITE):
                writer.access(kind, since, latency, error, *rest)
            else:
                writer.put(Kind(kind), since, latency, error, *rest)
        writer.close("stopped")
        header, *found, end = msgpack.Unpacker(os.fdopen(os.dup(fd), "rb"), max_buffer_size=LIMIT)
    finally:
        os.close(fd)
    assert header.pop("time") > 1 << 60
    assert header == {"name": "x" * 300, "list": [[-1, True]] * 20}
    assert [(kind, *rest) for kind, _t, *rest in found] == written
    assert (end[0], *end[2:]) == (7, 0, 0, "stopped")


def refuse(reason: str, why: str) -> None:
    raise AssertionError(f"{reason}: {why}")


def test_the_header_is_the_devices(edu: RecordedDevice, path: Path) -> None:
    config = edu.region_read(7, 0, 256)
    edu.start(new_file(path), LIMIT)
    edu.stop()
    assert path.stat().st_mode & 0o777 == 0o600
    with Trace(path) as trace:
        header = trace.header
    assert (header.device, header.config) == ("edu", config)
    assert [(found.index, found.flags, found.size) for found in header.regions] == [
        (0, 3, 1 << 20),
        (7, 3, 256),
    ]
    assert [(found.index, found.count) for found in header.irqs] == [
        (PciIrq.INTX, 1),
        (PciIrq.MSI, 1),
        (PciIrq.REQ, 1),
    ]


# ---- What is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_conversation(engine: str, edu: RecordedDevice, path: Path) -> None:
    need(engine)
    edu.start(new_file(path), LIMIT)
    with talk(engine, edu) as talked, memory_files(1) as files, eventfds(1) as events:
        client = talked.client
        client.ask(c.REGION_READ, region(0, 0, 4))
        client.ask(c.REGION_WRITE, region(4, 0, b"\x01\x02\x03\x04"))
        client.ask(c.SET_IRQS, set_irqs(ENABLE, PciIrq.MSI, 0, 1), events)
        client.ask(c.DMA_MAP, dma_map(0x10000, 4096), files)
        client.ask(c.DMA_UNMAP, dma_unmap(0x10000, 4096))
        client.ask(c.DMA_MAP, dma_map(0x20000, 4096, flags=1), files)
        client.ask(c.RESET)
    edu.stop()
    assert verbs(path) == [
        (Client, 0, True),
        (Read, 0, 0, 0, 4, b"\xed\0\0\x01"),
        (Write, 0, 0, 4, 4, b"\x01\x02\x03\x04"),
        (Irqs, 0, PciIrq.MSI, ENABLE, 0, 1, 1, b""),
        (Map, 0, 0x10000, 4096, 3, True),
        (Unmap, 0, 0x10000, 4096),
        (Map, 0, 0x20000, 4096, 1, True),
        (Reset, 0),
        (Client, 0, False),
        (Unmap, 0, 0x20000, 4096),
        (End, 0, "stopped"),
    ]


def test_refusals_have_their_errno(path: Path) -> None:
    fake = FakeDevice()
    failing = ("region_read", "region_write", "set_irqs", "dma_map", "dma_unmap", "reset")
    fake.failures = {verb: OSError(errno.EBUSY, "busy") for verb in failing}
    with closing(RecordedDevice(fake)) as device:
        device.start(new_file(path), LIMIT)
        one = DmaMap(3, 0, 0, 4096)
        for ask in (
            lambda: device.region_read(0, 8, 4),
            lambda: device.region_write(0, 8, b"1234"),
            lambda: device.set_irqs(IrqSet(0x22, 2, 1, 2, b"\1\0"), ()),
            lambda: device.dma_map(one, None),
            lambda: device.dma_unmap(one),
            device.reset,
        ):
            with pytest.raises(OSError, match="busy"):
                ask()
        fake.failures["region_read"] = OSError("without a number")
        with pytest.raises(OSError, match="number"):
            device.region_read(0, 8, 4)
    assert verbs(path) == [
        (Read, errno.EBUSY, 0, 8, 4, b""),
        (Write, errno.EBUSY, 0, 8, 4, b"1234"),
        (Irqs, errno.EBUSY, 2, 0x22, 1, 2, 0, b"\1\0"),
        (Map, errno.EBUSY, 0, 4096, 3, False),
        (Unmap, errno.EBUSY, 0, 4096),
        (Reset, errno.EBUSY),
        (Read, errno.EIO, 0, 8, 4, b""),
        (End, 0, "closed"),
    ]
    with Trace(path) as trace:
        assert trace.header.config == b""  # it can't be read either


def test_from_start_to_stop_while_a_client_is_there(edu: RecordedDevice, tmp_path: Path) -> None:
    with talk("native", edu) as talked:
        for number in range(3):
            talked.client.ask(c.REGION_READ, region(0, 0, 4))
            assert not edu.progress
            edu.start(new_file(tmp_path / str(number)), LIMIT)
            talked.client.ask(c.REGION_READ, region(number, 0, 4))
            progress = edu.progress
            assert progress is not None
            assert (progress.records, progress.limit) == (1, LIMIT)
            with pytest.raises(BridgeError, match="already"):
                edu.start(new_file(tmp_path / "another"), LIMIT)
            edu.stop()
    for number in range(3):
        read, _end = records(tmp_path / str(number))
        assert isinstance(read, Read)
        assert read.offset == number


def test_what_is_not_recorded_is_the_devices_own(path: Path) -> None:
    inner = Edu()
    with closing(RecordedDevice(inner)) as device:
        assert device.region_read == inner.region_read
        device.start(new_file(path), LIMIT)
        assert device.region_read != inner.region_read
        device.stop()
        assert device.region_write == inner.region_write


# ---- Its bounds -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1 << 16, (1 << 20) + 1234, 5 << 19])
@pytest.mark.parametrize("count", [4, 1000])
def test_the_limit_ends_the_recording_and_nothing_else(
    edu: RecordedDevice, path: Path, limit: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    edu.start(new_file(path), limit)
    asked = 0
    while edu.progress:
        assert len(edu.region_read(0, 0, count)) == count
        asked += 1
    edu.reset()
    *reads, end = records(path)
    assert isinstance(end, End)
    assert end.reason == "limit"
    assert [type(record) for record in reads] == [Read] * (asked - 1)
    assert limit - count - 200 < path.stat().st_size <= limit
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"edu is no longer recorded: it has reached its limit of {limit:,} bytes"
    ]


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    folder, path = tmp_path / "disk", tmp_path / "edu.sock"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=3M none {folder} && exec "$@"'
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    alone = ("unshare", *user, "--mount", "sh", "-c", mount, "sh")
    options = ("--socket-path", str(path), "--record", str(folder / "trace"), "--confine", "all")
    with server(path, *options, command=(*alone, *SERVE)) as running, running.client() as client:
        for _ in range(1000):
            client.ask(c.REGION_WRITE, region(0x1000, 0, bytes(4096)))
        there = Path(f"/proc/{running.process.pid}/root{folder}/trace")
        client_came, *written, end = records(there)
        assert (client_came.errno, type(client_came)) == (0, Client)
        assert {type(record) for record in written} == {Write}
        assert 1 << 20 < there.stat().st_size <= 3 << 20
        assert isinstance(end, End)
        assert end.reason == "full"
        ended = "edu is no longer recorded: the file can't grow: No space left on device"
        assert running.log().count(ended) == 1


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("something", "it is there already"),
        ("folder", "it is there already"),
        ("missing/file", "No such file"),
        ("fifo", "it is there already"),
        ("link", "it is there already"),
    ],
)
def test_what_is_there_is_not_replaced(
    tmp_path: Path, what: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    sock = str(tmp_path / "edu.sock")
    words = ("serve", "model:edu", "--socket-path", sock, "--record", str(tmp_path / what))
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert complaint in line
    assert what in line
    assert (tmp_path / "something").read_bytes() == b"precious"


def test_files_that_cant_be_written(edu: RecordedDevice, path: Path) -> None:
    path.touch()
    for fd, limit in ((os.open(path, os.O_RDONLY), LIMIT), (os.open(path, os.O_RDWR), 100)):
        with pytest.raises(BridgeError, match="can't record edu: "):
            edu.start(fd, limit)
        assert edu.progress is None
        assert edu.region_read(0, 0, 4) == b"\xed\0\0\x01"


@pytest.mark.parametrize("size", ["", "63K", "1.5G", "-1", "256m b", "8192P"])
def test_a_limit_that_is_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "model:edu", "--socket-path", "x", f"--record-limit={size}"]) == 2
    assert f"{size!r} is not a size from 64K on" in capsys.readouterr().err


# ---- A server that records ------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path, path: Path) -> Iterator[RunningServer]:
    sock = tmp_path / "edu.sock"
    options = ("--socket-path", str(sock), "--record", str(path), "--confine", "all")
    with server(sock, *options) as running:
        yield running


def test_a_confined_server_records_until_it_ends(recording: RunningServer, path: Path) -> None:
    for _ in range(2):
        with recording.client() as client:
            client.ask(c.REGION_READ, region(0, 0, 4))
    recording.stop()
    assert [type(record) for record in records(path)] == [*[Client, Read, Client] * 2, End]


def test_what_was_answered_is_recorded_even_if_the_server_is_killed(
    recording: RunningServer, path: Path
) -> None:
    answered = 0
    with recording.client() as client, suppress(EOFError, ConnectionError):
        while True:
            client.ask(c.REGION_WRITE, region(4, 0, answered.to_bytes(4, "little")))
            answered += 1
            if answered == 30_000:  # past one allocation
                recording.process.send_signal(signal.SIGKILL)
    with Trace(path) as trace:
        came, *written = trace
        assert trace.truncated
    assert isinstance(came, Client)
    values = [int.from_bytes(record.data, "little") for record in written if type(record) is Write]
    assert len(values) == len(written)
    assert values == list(range(len(values)))
    assert answered <= len(values) <= answered + 1

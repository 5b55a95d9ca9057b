# SPDX-License-Identifier: BSD-3-Clause
"""A recording asked again: of devices that answer as the recorded one did, and of others."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user_bridge.cli import main
from vfio_user_bridge.device import Device, PciIrq, PciRegion
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.models.edu import Edu, Register
from vfio_user_bridge.recording import RecordedDevice, new_file
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import Client, Irqs, Map, Read, Record, Reset, Unmap, Write
from vfio_user_bridge.trace.replay import Replay

from . import client as c
from .descriptors import eventfds, memory_files
from .engines import NATIVE, talk
from .fake_device import FakeDevice
from .wire import dma_map, dma_unmap, region, set_irqs, u32

Output = pytest.CaptureFixture[str]

LIMIT = 1 << 20
MSI_BY_EVENTFD, MSI_OFF = (0x24, PciIrq.MSI, 0, 1), (0x21, PciIrq.MSI, 0, 0)
COMMAND, MASTER = 4, b"\x04\0"
IOVA = 0x100000
RUN_WITH_IRQ = 5


class OtherEdu(Edu):
    """Its factorials are one too many."""

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        data = super().region_read(index, offset, count)
        if (index, offset) == (PciRegion.BAR0, Register.FACTORIAL):
            data = (int.from_bytes(data, "little") + 1).to_bytes(count, "little")
        return data


def drive(client: c.Client) -> None:
    """All that a driver of edu does."""

    def put(register: int, value: int, size: int = 4) -> None:
        client.ask(c.REGION_WRITE, region(register, 0, value.to_bytes(size, "little")))

    def get(register: int) -> bytes:
        return client.ask(c.REGION_READ, region(register, 0, 4))[16:]

    client.ask(c.REGION_READ, region(0, PciRegion.CONFIG, 64))
    client.ask(c.REGION_WRITE, region(COMMAND, PciRegion.CONFIG, MASTER))
    assert get(Register.IDENTIFICATION) == u32(0x010000ED)
    put(Register.FACTORIAL, 5)
    assert get(Register.FACTORIAL) == u32(120)
    with memory_files(2, 8192) as (low, high), eventfds(1) as events:
        client.ask(c.SET_IRQS, set_irqs(*MSI_BY_EVENTFD), events)
        client.ask(c.DMA_MAP, dma_map(IOVA, 8192), [low])
        client.ask(c.DMA_MAP, dma_map(2 * IOVA, 4096, offset=4096, flags=1), [high])
        client.ask(c.DMA_MAP, dma_map(3 * IOVA, 4096))
        for register, value in (
            (Register.DMA_SOURCE, IOVA),
            (Register.DMA_DESTINATION, 0x40000),
            (Register.DMA_COUNT, 4096),
            (Register.DMA_COMMAND, RUN_WITH_IRQ),
        ):
            put(register, value, 8)
        assert get(Register.IRQ_STATUS) == u32(0x100)
        put(Register.IRQ_ACKNOWLEDGE, 0x100)
        client.ask(c.DMA_UNMAP, dma_unmap(IOVA, 8192))
        client.ask(c.SET_IRQS, set_irqs(*MSI_OFF))
        client.refused(c.SET_IRQS, set_irqs(0x11, PciIrq.MSI, 0, 1))  # the device's own refusal
    put(Register.LIVENESS, 7)
    client.ask(c.RESET)
    assert get(Register.LIVENESS) == u32(0)


@pytest.fixture
def edu_trace(tmp_path: Path) -> Path:
    """Two clients' of edu, the second of which leaves its maps behind."""
    path = tmp_path / "edu.trace"
    with closing(RecordedDevice(Edu())) as edu:
        edu.start(new_file(path), LIMIT)
        for _ in range(2):
            with talk(NATIVE, edu) as talked:
                drive(talked.client)
    return path


def differences(
    path: Path, device: Device, *, dma: bool = True, paced: bool = False
) -> list[tuple[Record, Record]]:
    with closing(device), Trace(path) as trace:
        replay = Replay(device, dma=dma, paced=paced)
        found = list(replay.run(trace))
    assert replay.differing == len(found) < replay.asked
    return found


def test_the_same_device_answers_alike(edu_trace: Path) -> None:
    assert differences(edu_trace, Edu()) == []
    assert differences(edu_trace, Edu(), dma=False) == []


def test_another_names_what_it_does_otherwise(edu_trace: Path) -> None:
    found = differences(edu_trace, OtherEdu())
    assert len(found) == 2  # clients
    for then, now in found:
        assert isinstance(then, Read)
        assert isinstance(now, Read)
        assert (then.offset, then.data, now.data) == (Register.FACTORIAL, u32(120), u32(121))
        assert (then.t, then.latency, then.region) == (now.t, now.latency, now.region)


# ---- Record by record -----------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeDevice]:
    with closing(FakeDevice()) as device:
        yield device


RECORDS: list[Record] = [
    Client(0, 0, 0, came=True),
    Read(1, 0, 0, 0, 8, 4, b"\xa5" * 4),
    Write(2, 0, 0, 2, 16, 2, b"ab"),
    Irqs(3, 0, 0, PciIrq.MSIX, 0x24, 1, 2, 2, b""),
    Irqs(4, 0, 0, PciIrq.MSIX, 0x22, 0, 2, 0, b"\1\0"),
    Map(5, 0, 0, IOVA, 8192, 3, file=True),
    Map(6, 0, 0, 2 * IOVA, 4096, 1, file=False),
    Unmap(7, 0, 0, IOVA, 8192),
    Reset(8, 0, 0),
    Client(9, 0, 0, came=False),
]


def test_each_is_asked_as_it_was(fake: FakeDevice) -> None:
    assert list(Replay(fake).run(RECORDS)) == []
    verbs = [call[0] for call in fake.calls]
    left = ["quiesce", "dma_unmap"]
    assert verbs == [
        *("region_read", "region_write", "set_irqs", "set_irqs"),
        *("dma_map", "dma_map", "dma_unmap", "reset", "quiesce", *left),
    ]
    assert fake.calls[0] == ("region_read", 0, 8, 4)
    assert fake.calls[1] == ("region_write", 2, 16, b"ab")
    (_, first, events), (_, second, none) = fake.asked("set_irqs")
    assert (first.index, first.flags, first.start, first.count) == (2, 0x24, 1, 2)
    assert (len(events), second.data, none) == (2, b"\1\0", [])
    (_, map_, file), (_, bare, no_file) = fake.asked("dma_map")
    assert (map_.address, map_.size, map_.flags, file is None) == (IOVA, 8192, 3, False)
    assert (bare.address, bare.size, bare.flags, no_file) == (2 * IOVA, 4096, 1, None)
    assert fake.asked("quiesce") == [("quiesce", True)] * 2


def test_what_is_refused_now_differs_and_what_was_may_be(fake: FakeDevice) -> None:
    fake.failures["region_read"] = OSError(errno.EBUSY, "busy")
    read, write = RECORDS[1], Write(2, 0, errno.EIO, 2, 16, 2, b"ab")
    refused = Read(1, 0, errno.EBUSY, 0, 8, 4, b"")
    done = Write(2, 0, 0, 2, 16, 2, b"ab")
    assert list(Replay(fake).run([read, refused, write])) == [
        (read, refused),
        (write, done),
    ]


@pytest.mark.parametrize(
    "record",
    [
        Read(0, 0, 0, 12, 0, 4, b""),
        Read(0, 0, 0, 0, 0x3FFF, 2, b""),
        Read(0, 0, 0, 0, 0, 1 << 31, b""),
        Write(0, 0, 0, PciRegion.ROM, 0, 4, b"1234"),
        Irqs(0, 0, 0, 9, 0x24, 0, 1, 1, b""),
        Irqs(0, 0, 0, PciIrq.MSIX, 0x24, 0, 1 << 31, 1 << 31, b""),
        Map(0, 0, 0, 0, 1, 3, file=True),
    ],
)
def test_what_the_device_hasnt_is_refused(fake: FakeDevice, record: Record) -> None:
    ((then, now),) = Replay(fake).run([record])
    assert (then, now.errno != 0) == (record, True)
    assert fake.calls == [("quiesce", True)]


@pytest.mark.parametrize(
    "record",
    [
        Read(0, 0, 0, -1, 0, 4, b""),
        Write(0, 0, 0, 0, 1 << 64, 4, b"1234"),
        Map(0, 0, 0, 0, 1 << 63, 3, file=True),
        Unmap(0, 0, 0, -4096, 4096),
    ],
)
def test_what_no_client_can_say_ends_it(fake: FakeDevice, record: Record) -> None:
    with pytest.raises(BridgeError, match=r"no client can ask for what is at 0\.000000 s"):
        list(Replay(fake).run([record]))
    assert fake.calls == [("quiesce", True)]


INT = st.one_of(
    st.integers(-1, 9),
    st.sampled_from((0x20, 0x21, 0x24, 255, 256, 4096, 1 << 20, 1 << 31, 1 << 40)),
    st.sampled_from(((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))),
)
ANY = st.one_of(
    *(
        st.builds(kind, INT, INT, INT, INT, INT, INT, st.binary(max_size=9))
        for kind in (Read, Write)
    ),
    st.builds(Irqs, INT, INT, INT, INT, INT, INT, INT, INT, st.binary(max_size=9)),
    st.builds(Map, INT, INT, INT, INT, INT, INT, st.booleans()),
    st.builds(Unmap, INT, INT, INT, INT, INT),
    st.builds(Reset, INT, INT, INT),
    st.builds(Client, INT, INT, INT, st.booleans()),
)


@settings(max_examples=500)
@given(st.lists(ANY, max_size=10), st.booleans())
def test_rubbish_is_replayed_or_refused(records: list[Record], dma: bool) -> None:
    with closing(Edu()) as edu:
        with suppress(BridgeError):
            list(Replay(edu, dma=dma, memory=1 << 33).run(records))
        assert edu.region_read(PciRegion.BAR0, Register.IDENTIFICATION, 4) == u32(0x010000ED)


def test_memory_has_an_end(fake: FakeDevice) -> None:
    maps = [Map(n, 0, 0, n << 30, 1 << 30, 3, file=True) for n in range(3)]
    gone = Unmap(1, 0, 0, 0, 1 << 30)
    assert list(Replay(fake, memory=2 << 30).run([*maps[:2], gone, maps[2]])) == []
    with pytest.raises(BridgeError, match=r"the 2,048 MiB that are free here: .* --no-dma"):
        list(Replay(fake, memory=2 << 30).run(maps))
    assert list(Replay(fake, memory=0, dma=False).run([*maps, gone])) == []


def test_its_pace_is_kept_from_its_first_record_on(fake: FakeDevice) -> None:
    records = [Reset(10**15, 0, 0), Reset(10**15 + 5 * 10**7, 0, 0)]
    before = time.monotonic()
    assert list(Replay(fake, paced=True).run(records)) == []
    assert 0.05 <= time.monotonic() - before < 5
    with pytest.raises(BridgeError, match="no client"):
        list(Replay(fake, paced=True).run([*records, Reset(1 << 80, 0, 0)]))


# ---- The command ----------------------------------------------------------------------------


def test_the_command(edu_trace: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["trace", "replay", str(edu_trace), "model:edu"]) == 0
    assert capsys.readouterr().out == "50 requests, none of which edu answers otherwise\n"
    monkeypatch.setattr("vfio_user_bridge.models.edu.Edu", OtherEdu)
    assert main(["trace", "replay", str(edu_trace), "model:edu", "--no-dma"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line[0] + line[13:] for line in lines] == [
        "-  read    bar0 FACTORIAL = 0x00000078",
        "+  read    bar0 FACTORIAL = 0x00000079",
    ] * 2
    assert last == "38 requests, 2 of which edu answers otherwise"


@pytest.mark.parametrize(
    ("file", "device"), [("nothing", "model:edu"), ("rubbish", "model:edu"), ("ok", "model:none")]
)
def test_what_cant_be_told(edu_trace: Path, file: str, device: str, capsys: Output) -> None:
    edu_trace.with_name("rubbish").write_bytes(b"rubbish")
    edu_trace.rename(edu_trace.with_name("ok"))
    assert main(["trace", "replay", str(edu_trace.with_name(file)), device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vfio-user-bridge: ")

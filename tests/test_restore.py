# SPDX-License-Identifier: BSD-3-Clause
"""A successor's device goes on where its predecessor's was, be it saved then or killed later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vfio_user_bridge.device import Device, PciIrq, PciRegion
from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.messages import DmaFlags, DmaMap, IrqSet, IrqSetFlags
from vfio_user_bridge.migration import Migration
from vfio_user_bridge.models.edu import BUFFER, DMA_RUN, DMA_TO_MEMORY, Edu, Register
from vfio_user_bridge.policy.device import PolicedDevice
from vfio_user_bridge.policy.rules import Action, Rule
from vfio_user_bridge.recording import RecordedDevice, new_file
from vfio_user_bridge.trace.reader import Trace
from vfio_user_bridge.trace.records import End, Read, Record

from .device_contract import CONTRACT, eventfd, fired, memory, open_files, read_config, write_config
from .edu_driver import COMMAND, MASTER, MSI_FLAGS, get, put, transfer
from .fake_device import FakeDevice
from .kept_files import KeptFiles

NONE, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_EVENTFD
TRIGGER, UNMASK = IrqSetFlags.ACTION_TRIGGER, IrqSetFlags.ACTION_UNMASK
LIMIT = 4 << 20
IOVA = 0x100000
DENIED = Rule("the rule", 7, PciRegion.BAR0, 0x2000, 0x3000, Action.DENY)


@pytest.fixture
def kept() -> Iterator[KeptFiles]:
    with closing(KeptFiles()) as files:
        yield files


@pytest.fixture
def edu() -> Iterator[Edu]:
    with closing(Edu()) as device:
        write_config(device, COMMAND, 2, MASTER)
        yield device


def successor(edu: Device, kept: KeptFiles) -> Edu:
    """The predecessor stays as it is, but isn't used any more."""
    new = Edu()
    kept.restore(new, kept.saved(edu))
    return new


def layers(rule: Rule = DENIED) -> RecordedDevice:
    return RecordedDevice(PolicedDevice(Edu(), [rule]))


def begun(kept: KeptFiles) -> RecordedDevice:
    device = layers()
    device.cells(kept.cells)
    kept.rewind()
    return device


def killed(device: RecordedDevice) -> None:
    """It ends no recording."""
    writer, device._writer = device._writer, None  # noqa: SLF001 - there is no other way
    assert writer
    os.close(writer.fd)


@pytest.fixture(params=[Edu, layers], ids=["edu", "layers"])
def restored(request: pytest.FixtureRequest, kept: KeptFiles) -> Iterator[Device]:
    with closing(request.param()) as first, closing(request.param()) as second:
        kept.restore(second, kept.saved(first))
        yield second


@pytest.mark.parametrize("clause", CONTRACT)
def test_a_restored_device_is_a_device(clause: Callable[[Device], None], restored: Device) -> None:
    clause(restored)


def test_a_device_that_can_not_says_so(kept: KeptFiles) -> None:
    with closing(FakeDevice()) as device:
        with pytest.raises(BridgeError, match="fake can't be handed over: "):
            device.save(kept.keep)
        with pytest.raises(BridgeError, match="fake can't be taken over: "):
            device.restore({}, kept.take)


def test_a_stream_of_migration_goes_on_and_another_is_another(kept: KeptFiles) -> None:
    with memory(8) as stream:
        os.pwrite(stream, b"state", 0)
        kept.keep("migration-0000.01.00.0-3", stream)
        first, second = Migration(), Migration()
        first.restore([3, "migration-0000.01.00.0-3"], kept.take)
        assert first.read(2) == b"st"
        saved = first.save(kept.keep, "0000:01:00.0")
        assert saved == [3, "migration-0000.01.00.0-3"]
        second.restore(saved, kept.take)
        assert second.read(3) == b"ate"
        first.close()
        second.close()
        assert second.save(kept.keep, "0000:01:00.0") == [3, None]


# ---- The model ------------------------------------------------------------------------------


def test_registers_and_memory(edu: Edu, kept: KeptFiles) -> None:
    with memory() as ram, memory() as other:
        os.pwrite(ram, b"before the handover", 0)
        region = DmaMap(DmaFlags.READ | DmaFlags.WRITE, 0, IOVA, 4096)
        edu.dma_map(region, ram)
        put(edu, Register.LIVENESS, 0x12345678)
        write_config(edu, 0x10, 4, 0xFEB00000)
        transfer(edu, IOVA, BUFFER, 19, DMA_RUN)
        with closing(successor(edu, kept)) as new:
            assert get(new, Register.LIVENESS) == 0xEDCBA987
            assert new.region_read(PciRegion.CONFIG, 0, 256) == edu.region_read(7, 0, 256)
            new.adopt(region, ram)
            transfer(new, BUFFER, IOVA + 100, 19, DMA_RUN | DMA_TO_MEMORY)
            assert os.pread(ram, 19, 100) == b"before the handover"
            new.dma_unmap(region)
            new.dma_map(region, other)
            transfer(new, BUFFER, IOVA, 19, DMA_RUN | DMA_TO_MEMORY)
            assert os.pread(other, 19, 0) == b"before the handover"


def test_msi_goes_on(edu: Edu, kept: KeptFiles) -> None:
    with eventfd() as event, eventfd() as request:
        edu.set_irqs(IrqSet(TRIGGER | EVENTFD, PciIrq.MSI, 0, 1), [event])
        edu.set_irqs(IrqSet(TRIGGER | EVENTFD, PciIrq.REQ, 0, 1), [request])
        with closing(successor(edu, kept)) as new:
            assert read_config(new, MSI_FLAGS, 2) & 1
            put(new, Register.IRQ_RAISE, 1)
            assert fired(event)
            new.set_irqs(IrqSet(TRIGGER | NONE, PciIrq.REQ, 0, 1), [])
            assert fired(request)
            new.set_irqs(IrqSet(TRIGGER | NONE, PciIrq.MSI, 0, 0), [])
            put(new, Register.IRQ_RAISE, 1)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(event)


def test_a_line_that_is_held_and_masked_stays_so_until_the_client_unmasks_it(
    edu: Edu, kept: KeptFiles
) -> None:
    with eventfd() as event:
        edu.set_irqs(IrqSet(TRIGGER | EVENTFD, PciIrq.INTX, 0, 1), [event])
        put(edu, Register.IRQ_RAISE, 1)
        assert os.eventfd_read(event) == 1
        with closing(successor(edu, kept)) as new:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(event)
            new.set_irqs(IrqSet(UNMASK | NONE, PciIrq.INTX, 0, 1), [])
            assert os.eventfd_read(event) == 1
            put(new, Register.IRQ_ACKNOWLEDGE, 1)
            new.set_irqs(IrqSet(UNMASK | NONE, PciIrq.INTX, 0, 1), [])
            with pytest.raises(BlockingIOError):
                os.eventfd_read(event)


def test_an_unmask_that_came_after_all_was_saved_is_not_lost(kept: KeptFiles) -> None:
    """The predecessor takes it out of the eventfd, and is killed."""
    edu = Edu()
    with eventfd() as event, eventfd() as unmask:
        edu.set_irqs(IrqSet(TRIGGER | EVENTFD, PciIrq.INTX, 0, 1), [event])
        edu.set_irqs(IrqSet(UNMASK | EVENTFD, PciIrq.INTX, 0, 1), [unmask])
        put(edu, Register.IRQ_RAISE, 1)
        assert fired(event)
        saved = kept.saved(edu)
        edu.close()
        with closing(Edu()) as new:
            kept.restore(new, saved)
            assert fired(event)
            new.go_on()
            os.eventfd_write(unmask, 1)
            assert fired(event)
            put(new, Register.IRQ_ACKNOWLEDGE, 1)
            os.eventfd_write(unmask, 1)
            new.set_irqs(IrqSet(TRIGGER | NONE, PciIrq.INTX, 0, 0), [])


def test_all_that_was_taken_is_given_back(kept: KeptFiles) -> None:
    with eventfd() as event, eventfd() as unmask, closing(begun(kept)) as device:
        device.set_irqs(IrqSet(TRIGGER | EVENTFD, PciIrq.INTX, 0, 1), [event])
        device.set_irqs(IrqSet(UNMASK | EVENTFD, PciIrq.INTX, 0, 1), [unmask])
        device.start(os.memfd_create("trace"), LIMIT)
        saved = kept.saved(device)
        assert len(kept.fds) == 3
        before = open_files()
        for succeeds in (False, True):
            with closing(begun(kept)) as new:
                kept.restore(new, saved)
                if succeeds:
                    new.succeed()
                assert open_files() > before
                new.quiesce(reset=True)
            assert open_files() == before
        for missing in list(kept.fds):
            os.close(kept.fds.pop(missing))
            before = open_files()
            with closing(begun(kept)) as new, pytest.raises(BridgeError, match="isn't there"):
                kept.restore(new, saved)
            assert open_files() == before


# ---- Policies -------------------------------------------------------------------------------


def test_a_policy_counts_on(kept: KeptFiles) -> None:
    with closing(begun(kept)) as device, closing(begun(kept)) as new, closing(layers()) as moved:
        for _ in range(3):
            device.region_read(0, 0x2000, 4)
        saved = kept.saved(device)
        device.region_read(0, 0x2000, 4)  # and killed
        kept.restore(new, saved)
        new.succeed()
        new.region_read(0, 0x2000, 4)
        assert new.hits == [(7, "", 5)]
        kept.restore(moved, saved)  # what is counted is elsewhere
        moved.region_read(0, 0x2000, 4)
        assert moved.hits == [(7, "", 4)]


def test_another_policy_counts_anew_and_warns(
    kept: KeptFiles, caplog: pytest.LogCaptureFixture
) -> None:
    other = Rule("the rule", 7, PciRegion.BAR0, 0x3000, 0x4000, Action.DENY)
    with closing(begun(kept)) as device, closing(layers(other)) as new:
        device.region_read(0, 0x2000, 4)
        new.cells(kept.cells)
        kept.restore(new, kept.saved(device))
        new.succeed()
        assert new.hits == [(7, "", 0)]
        assert "its policy has changed" in caplog.text


# ---- Recordings -----------------------------------------------------------------------------


def records(path: Path) -> list[Record]:
    with Trace(path) as trace:
        found = list(trace)
        assert not trace.truncated
    times = [record.t for record in found]
    assert times == sorted(times)
    return found


def test_a_recording_goes_on(kept: KeptFiles, tmp_path: Path) -> None:
    path = tmp_path / "edu.trace"
    with closing(begun(kept)) as device, closing(begun(kept)) as new:
        device.start(new_file(path), LIMIT)
        device.region_read(0, 0x100, 4)
        saved = kept.saved(device)
        device.region_read(0, 0x101, 4)
        kept.restore(new, saved)
        new.succeed()
        assert device.progress == new.progress
        new.region_read(0, 0x102, 4)
        new.stop()
        *reads, end = records(path)
        assert [read.offset for read in reads if type(read) is Read] == [0x100, 0x101, 0x102]
        assert type(end) is End
        killed(device)


def test_a_recording_that_began_before_there_was_where_to_count(
    kept: KeptFiles, tmp_path: Path
) -> None:
    path = tmp_path / "edu.trace"
    with closing(layers()) as device, closing(begun(kept)) as new:
        device.start(new_file(path), LIMIT)
        device.region_read(0, 0x100, 4)
        device.cells(kept.cells)
        saved = kept.saved(device)
        device.region_read(0, 0x101, 4)
        kept.restore(new, saved)
        new.succeed()
        assert device.progress == new.progress
        killed(device)


def test_what_was_half_written_is_overwritten(kept: KeptFiles, tmp_path: Path) -> None:
    path = tmp_path / "edu.trace"
    with closing(begun(kept)) as device, closing(begun(kept)) as new:
        device.start(new_file(path), LIMIT)
        device.region_read(0, 0x100, 4)
        saved = kept.saved(device)
        assert device.progress
        with path.open("r+b") as file:
            file.seek(device.progress.bytes + 1)
            file.write(b"\xff" * 100_000)
        kept.restore(new, saved)
        new.succeed()
        with Trace(path) as trace:
            assert len(list(trace)) == 1  # as after a crash, and no rubbish
        new.reset()
        new.stop()
        assert len(records(path)) == 3
        killed(device)


def test_a_recording_that_can_not_go_on_ends(
    kept: KeptFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "edu.trace"
    with closing(begun(kept)) as device, closing(begun(kept)) as new:
        device.start(new_file(path), LIMIT)
        saved = kept.saved(device)
        (name,) = kept.fds
        os.close(kept.fds[name])
        kept.fds[name] = os.open(path, os.O_RDONLY)
        kept.restore(new, saved)
        new.succeed()
        assert new.progress is None
        assert "edu is no longer recorded: " in caplog.text


def test_a_recording_of_who_is_killed_goes_on(kept: KeptFiles, tmp_path: Path) -> None:
    """At any moment, with nothing of it saved but that it began."""
    for number in range(20):
        path = tmp_path / f"{number}.trace"
        with closing(begun(kept)) as device:
            device.start(new_file(path), 64 * LIMIT)
            saved = kept.saved(device)
            child = os.fork()
            while not child:
                device.region_read(0, 0x2000, 4)
                device.region_write(0, 0x2000, b"abcd" * 100)
            while device.hits[0][2] <= 10 * number:
                time.sleep(0)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with closing(begun(kept)) as new:
                kept.restore(new, saved)
                new.succeed()
                assert new.progress
                done = new.progress.records
                ((_, _, hits),) = new.hits
                new.region_read(0, 0x100, 4)
                new.stop()
            *found, last, _end = records(path)
            assert (type(last), getattr(last, "offset", None)) == (Read, 0x100)
            assert len(found) - done in (0, 1), "it is killed before it counts"
            assert hits - len(found) in (0, 1), "an access is counted before it is recorded"
            killed(device)
        kept.close()

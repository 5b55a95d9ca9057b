# SPDX-License-Identifier: BSD-3-Clause
"""A device behind libvfio-user: what reaches it, what of it reaches the client, and the end."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vfio_user_bridge import models
from vfio_user_bridge.messages import DmaMap, IrqSet
from vfio_user_bridge.protocol import Buffer

from . import client as c
from .descriptors import eventfds, inodes, memory_files
from .engines import LIBRARY, PATIENCE, Talk, need, talk
from .fake_device import FakeDevice
from .running_server import server
from .wire import dma_map, dma_unmap, message, region, set_irqs, u16, u32, u64

need(LIBRARY)

PAGE = 4096
BAR0, BAR2, ROM, CONFIG = 0, 2, 6, 7
INTX, MSI, MSIX = 0, 1, 2
SET, OFF, MASK, UNMASK, UNMASK_BY = 0x24, 0x21, 0x09, 0x11, 0x14


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with closing(FakeDevice()) as device:
        yield device


@pytest.fixture
def end(device: FakeDevice) -> Iterator[Talk]:
    with talk(LIBRARY, device) as end:
        device.calls.clear()
        yield end


# ---- What reaches the device ----------------------------------------------------------------


def test_accesses_reach_it_as_they_came(device: FakeDevice, end: Talk) -> None:
    assert end.client.ask(c.REGION_READ, region(4, CONFIG, 3)) == region(4, CONFIG, b"\xa5" * 3)
    data = b"NULs: \0 \0"
    assert end.client.ask(c.REGION_WRITE, region(8, BAR0, data)) == region(8, BAR0, len(data))
    expected = [("region_read", CONFIG, 4, 3), ("region_write", BAR0, 8, data)]
    assert device.calls == expected


def test_a_write_may_be_larger_than_the_socket_holds(device: FakeDevice, end: Talk) -> None:
    data = bytes(range(256)) * 4096  # what max_data_xfer_size says
    reply = end.client.ask(c.REGION_WRITE, region(0, BAR2, data))
    assert reply == region(0, BAR2, len(data))
    assert device.calls == [("region_write", BAR2, 0, data)]
    end.client.ask(c.RESET)


def test_a_read_only_region_is_not_written(device: FakeDevice, end: Talk) -> None:
    assert end.client.call(c.REGION_WRITE, region(0, ROM, b"data")).error == errno.EINVAL
    assert device.calls == []


def test_a_map_reaches_it_with_its_file(device: FakeDevice, end: Talk) -> None:
    request = DmaMap(1, PAGE, 16 * PAGE, PAGE)
    with memory_files(1, 2 * PAGE) as files:
        end.client.ask(c.DMA_MAP, dma_map(16 * PAGE, PAGE, offset=PAGE, flags=1), files)
        assert device.calls == [("dma_map", request, *inodes(files))]
        end.client.ask(c.DMA_MAP, dma_map(0, PAGE))
        assert device.calls[1:] == [("dma_map", DmaMap(3, 0, 0, PAGE), None)]
        device.calls.clear()
        end.client.ask(c.DMA_UNMAP, dma_unmap(16 * PAGE, PAGE))
        assert device.calls == [("dma_unmap", request)]
        end.client.ask(c.DMA_UNMAP, dma_unmap(0, 0, flags=2))
        assert device.calls[1:] == [("dma_unmap", DmaMap(3, 0, 0, PAGE))]


def test_a_map_that_the_library_refuses_is_taken_back(device: FakeDevice, end: Talk) -> None:
    with socket.socket(socket.AF_UNIX) as unmappable:  # about which the fake device doesn't care
        files = [unmappable.fileno()]
        assert end.client.refused(c.DMA_MAP, dma_map(0, PAGE), files) == errno.ENODEV
    end.client.ask(c.DMA_MAP, dma_map(0, PAGE))
    assert [call[0] for call in device.calls] == ["dma_map", "dma_unmap", "dma_map"]


def test_a_map_that_the_device_refuses_is_refused(device: FakeDevice, end: Talk) -> None:
    device.failures["dma_map"] = OSError(errno.EBUSY, "another client's")
    with memory_files(1) as files:
        assert end.client.refused(c.DMA_MAP, dma_map(0, PAGE), files) == errno.EBUSY
        assert end.client.refused(c.DMA_MAP, dma_map(0, PAGE)) == errno.EBUSY
        device.failures.clear()
        end.client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
    assert end.client.refused(c.DMA_MAP, dma_map(1, PAGE)) == errno.EINVAL  # no IOMMU can


def test_its_errors_reach_the_client(device: FakeDevice, end: Talk) -> None:
    device.failures = {
        "region_read": OSError(errno.EIO, "broken"),
        "reset": OSError(errno.ENOTTY, "no reset"),
        "region_write": ValueError("a defect"),
    }
    assert end.client.call(c.REGION_READ, region(0, BAR0, 4)).error == errno.EIO
    assert end.client.call(c.REGION_WRITE, region(0, BAR0, b"data")).error == errno.EIO
    assert end.client.refused(c.RESET) == errno.ENOTTY
    device.failures.clear()
    end.client.ask(c.RESET)


# ---- Interrupts -----------------------------------------------------------------------------


def test_signals_are_relayed(device: FakeDevice, end: Talk) -> None:
    """The device has eventfds of ours; what it signals there, the client hears on its own."""
    given: dict[int, int] = {}

    def remember(request: IrqSet, fds: list[int]) -> None:
        given.update(zip(range(request.start, request.start + request.count), fds, strict=True))

    device.set_irqs = remember  # type: ignore[method-assign,assignment]
    with eventfds(3) as theirs:
        end.client.ask(c.SET_IRQS, set_irqs(SET, MSIX, 0, 2), theirs[:2])
        end.client.ask(c.SET_IRQS, set_irqs(SET, MSIX, 32, 1), theirs[2:])
        assert given.keys() == {0, 1, 32}
        for subindex, fd in zip((32, 0, 1), (theirs[2], *theirs[:2]), strict=True):
            os.eventfd_write(given[subindex], 1)
            assert heard(fd) == 1
        end.client.ask(c.SET_IRQS, set_irqs(SET, MSIX, 0, 1), theirs[2:])
        os.eventfd_write(given[0], 1)
        assert heard(theirs[2]) == 1


def heard(fd: int) -> int:
    assert select.select([fd], [], [], 5)[0], "not a word"
    return os.eventfd_read(fd)


def test_the_device_knows_which_are_on(device: FakeDevice, end: Talk) -> None:
    with eventfds(2) as theirs:
        end.client.ask(c.SET_IRQS, set_irqs(SET, MSI, 1, 2), theirs)
        end.client.ask(c.SET_IRQS, set_irqs(SET, MSI, 2, 1))
        end.client.ask(c.SET_IRQS, set_irqs(OFF, MSI, 0, 0))
    asked = [(request, len(fds)) for _, request, fds in device.calls]
    assert asked == [
        (IrqSet(SET, MSI, 1, 2), 2),
        (IrqSet(SET, MSI, 2, 1), 0),
        (IrqSet(OFF, MSI, 0, 0), 0),
    ]


def test_masks_of_intx_reach_it(device: FakeDevice, end: Talk) -> None:
    for flags in (MASK, UNMASK):
        end.client.ask(c.SET_IRQS, set_irqs(flags, INTX, 0, 1))
    assert [call[1] for call in device.calls] == [
        IrqSet(MASK, INTX, 0, 1),
        IrqSet(UNMASK, INTX, 0, 1),
    ]


def test_what_is_wrong_with_interrupts_is_refused(device: FakeDevice, end: Talk) -> None:
    with eventfds(1) as theirs, memory_files(1) as files:
        for wrong in ((MSI, 4, 1), (MSI, 0, 2), (5, 0, 1), (MSIX, 1 << 31, 1)):
            assert end.client.refused(c.SET_IRQS, set_irqs(SET, *wrong), theirs) == errno.EINVAL
        wrong_file = set_irqs(SET, MSI, 0, 1)
        assert end.client.refused(c.SET_IRQS, wrong_file, files) == errno.EINVAL
        assert device.calls == []
        device.failures["set_irqs"] = OSError(-2, "2 vectors are all there are")
        assert end.client.refused(c.SET_IRQS, set_irqs(SET, MSI, 0, 1), theirs) == (1 << 32) - 2


# ---- Regions --------------------------------------------------------------------------------


def test_areas_and_offset_reach_the_client(end: Talk) -> None:
    reply = end.client.call(c.GET_REGION_INFO, u32(64, 0, BAR0, 0) + u64(0, 0))
    os.close(reply.fds[0])
    whole = u16(1, 1) + u32(0, 1, 0) + u64(0, 0x4000)
    assert reply.payload == u32(64, 0xF, BAR0, 32) + u64(0x4000, 0x10000) + whole


# ---- Beginning and end ----------------------------------------------------------------------


def test_when_the_client_goes_the_device_comes_before_its_memory(device: FakeDevice) -> None:
    with memory_files(1) as files, eventfds(1) as theirs:
        with talk(LIBRARY, device) as end:
            end.client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
            end.client.ask(c.DMA_MAP, dma_map(PAGE, PAGE), files)
            end.client.ask(c.SET_IRQS, set_irqs(SET, MSI, 0, 1), theirs)
            device.calls.clear()
        assert [call[0] for call in device.calls] == ["quiesce", "dma_unmap", "dma_unmap"]


@pytest.mark.parametrize(
    "first",
    [
        message(c.GET_INFO, u32(16, 0, 0, 0)),
        message(c.VERSION, u16(1, 0)),
        message(c.VERSION, u16(0, 0) + b"no JSON\0"),
        message(c.VERSION, u16(0, 0) + b"{} without its end"),
        message(c.VERSION, u16(0, 0), flags=c.REPLY),
        message(c.VERSION, b"0"),
    ],
)
def test_a_stranger_is_put_out(device: FakeDevice, first: bytes) -> None:
    with talk(LIBRARY, device, negotiated=False) as end:
        end.client.socket.sendall(first)
        end.client.wait_until_hung_up()
    assert device.asked("quiesce") == []


def test_messages_may_wait_in_line(device: FakeDevice, end: Talk) -> None:
    """As QEMU sends maps: many at once, each with its own file."""
    with memory_files(20) as files:
        for number, fd in enumerate(files):
            end.client.send(c.DMA_MAP, dma_map(number * PAGE, PAGE), [fd])
        assert [end.client.receive().error for _ in files] == [0] * 20
        expected = [(DmaMap(3, 0, n * PAGE, PAGE), i) for n, i in enumerate(inodes(files))]
        assert [call[1:] for call in device.calls] == expected


def test_what_waits_behind_a_message_that_we_answer_is_the_librarys() -> None:
    """A write of more than 64 KiB is ours; the connection's buffer has room for more after it."""

    class Slow(FakeDevice):
        def region_write(self, index: int, offset: int, data: Buffer) -> None:
            assert sent.wait(PATIENCE)
            super().region_write(index, offset, data)

    sent = threading.Event()
    sizes = (100_000, 70_000)
    with closing(Slow()) as device, talk(LIBRARY, device) as end:
        end.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * sum(sizes))
        for size in sizes:
            end.client.send(c.REGION_WRITE, region(0, BAR2, bytes(size)))
        end.client.send(c.REGION_READ, region(0, BAR2, 4))
        sent.set()
        for size in sizes:
            assert end.client.receive().payload == region(0, BAR2, size)
        assert end.client.receive().payload == region(0, BAR2, b"\xa5" * 4)


def test_a_reply_is_no_map(device: FakeDevice, end: Talk) -> None:
    end.client.send(c.DMA_MAP, dma_map(0, PAGE), flags=c.REPLY)
    assert end.client.receive().error == errno.EINVAL
    assert device.calls == []


@pytest.mark.parametrize("cut", [5, 16, 40])
def test_half_a_message_ends_the_conversation(device: FakeDevice, cut: int) -> None:
    whole = message(c.DMA_MAP, dma_map(0, PAGE))
    with talk(LIBRARY, device, stall=0.1) as end:
        end.client.socket.sendall(whole[:cut])
        end.client.wait_until_hung_up()
    assert device.asked("dma_map") == []


def test_serve(tmp_path: Path) -> None:
    """The command, with a socket passed in; a second client is refused, a third comes after."""
    path = tmp_path / "edu.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        fd = listening.fileno()
        with server(path, "--fd", str(fd), "--engine", LIBRARY, pass_fds=[fd]) as edu:
            with edu.client() as first, closing(edu.connect()) as second:
                second.wait_until_hung_up()
                first.ask(c.RESET)
            with edu.client() as third:
                third.ask(c.RESET)
                edu.stop()
                third.wait_until_hung_up()
            assert "it has a client already" in edu.log()
            assert edu.log().count("client gone") == 2
            assert "Traceback" not in edu.log()


def test_level_triggered_intx_of_a_model() -> None:
    raise_, acknowledge = 0x60, 0x64
    with closing(models.create("edu")) as edu, talk(LIBRARY, edu) as end, eventfds(1) as theirs:
        end.client.ask(c.SET_IRQS, set_irqs(SET, INTX, 0, 1), theirs)
        # Before the replies, for QEMU: it takes the next access for the interrupt's end.
        end.client.ask(c.REGION_WRITE, region(raise_, BAR0, u32(1)))
        assert select.select(theirs, [], [], 0)[0]
        assert heard(theirs[0]) == 1
        end.client.ask(c.SET_IRQS, set_irqs(UNMASK, INTX, 0, 1))  # it is still raised
        assert select.select(theirs, [], [], 0)[0]
        assert heard(theirs[0]) == 1
        end.client.ask(c.REGION_WRITE, region(acknowledge, BAR0, u32(1)))
        end.client.ask(c.SET_IRQS, set_irqs(UNMASK, INTX, 0, 1))
        assert not select.select(theirs, [], [], 0.05)[0]


def test_intx_unmasked_by_eventfd() -> None:
    """As KVM does it, without QEMU: QEMU's word is that this eventfd unmasks from now on."""
    with closing(models.create("edu")) as edu, talk(LIBRARY, edu) as end, eventfds(2) as theirs:
        signal, unmask = theirs
        end.client.ask(c.SET_IRQS, set_irqs(SET, INTX, 0, 1), [signal])
        end.client.ask(c.SET_IRQS, set_irqs(UNMASK_BY, INTX, 0, 1), [unmask])
        end.client.ask(c.REGION_WRITE, region(0x60, BAR0, u32(1)))
        for _ in range(3):
            assert heard(signal) == 1
            assert not select.select([signal], [], [], 0.02)[0]
            os.eventfd_write(unmask, 1)
        assert heard(signal) == 1

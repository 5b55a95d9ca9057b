# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel is told for a client's SET_IRQS, with the kernel's side played by a list."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from contextlib import closing

import msgpack
import pytest

from vfio_user_bridge.device import IrqFlags, PciIrq
from vfio_user_bridge.irqs import Interrupts
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import IrqInfo, IrqSet, IrqSetFlags

from .descriptors import eventfds, inodes
from .kept_files import KeptFiles

DEVICE = 99
SIGNAL = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
UNMASK = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_UNMASK
OFF = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
TYPES = (
    IrqInfo(PciIrq.INTX, IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED, 1),
    IrqInfo(PciIrq.MSI, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 32),
    IrqInfo(PciIrq.MSIX, IrqFlags.EVENTFD, 64),
    IrqInfo(PciIrq.ERR, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 1),
    IrqInfo(PciIrq.REQ, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 1),
)


class Kernel:
    """Answers VFIO_DEVICE_SET_IRQS as told, and keeps what it was asked: index, start, fds."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, list[int]]] = []
        self.vectors = 64
        self.refusal = 0  # errno of the next request

    def set_irqs(self, device: int, request: bytes) -> int:
        assert device == DEVICE
        _argsz, _flags, index, start, count = struct.unpack_from("=IIIII", request)
        fds = list(struct.unpack(f"={(len(request) - 20) // 4}i", request[20:]))
        self.asked.append((index, start, fds))
        if refusal := self.refusal:
            self.refusal = 0
            raise OSError(refusal, "refused")
        return self.vectors if count > self.vectors else 0

    def last(self, count: int = 1) -> list[tuple[int, int, list[int]]]:
        """What it was asked last, the descriptors as the files that they are."""
        return [
            (index, start, [fd if fd < 0 else inodes([fd])[0] for fd in fds])
            for index, start, fds in self.asked[-count:]
        ]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    stand_in = Kernel()
    monkeypatch.setattr(vfio, "set_irqs", stand_in.set_irqs)
    return stand_in


@pytest.fixture
def interrupts(kernel: Kernel) -> Iterator[Interrupts]:
    made = Interrupts(TYPES)
    made.attach(DEVICE)
    kernel.asked.clear()
    yield made
    made.close()


def test_msix_vectors_go_to_the_kernel_one_by_one(kernel: Kernel, interrupts: Interrupts) -> None:
    with eventfds(2) as (first, second):
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSIX, 0, 1), [first])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSIX, 1, 1), [second])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSIX, 0, 1), [])
        assert kernel.asked == [(2, 0, [first]), (2, 1, [second]), (2, 0, [-1])]
        assert interrupts.enabled == [PciIrq.MSIX]


def test_an_msi_set_that_grows_is_made_anew(kernel: Kernel, interrupts: Interrupts) -> None:
    with eventfds(4) as events:
        files = inodes(events)
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 2), events[:2])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 3, 1), events[3:])
        off, on = kernel.last(2)
        assert off == (1, 0, [])
        assert on == (1, 0, [files[0], files[1], -1, files[3]])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 2, 1), events[2:3])
        assert kernel.last() == [(1, 2, [files[2]])]  # it has room already


def test_what_the_client_took_away_is_not_made_anew(kernel: Kernel, interrupts: Interrupts) -> None:
    with eventfds(3) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 2), events[:2])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 1), [])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 2, 1), events[2:])
        assert kernel.last() == [(1, 0, [-1, *inodes(events[1:])])]
        interrupts.set(IrqSet(OFF, PciIrq.MSI, 0, 0), [])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 1, 1), events[1:2])
        assert kernel.last() == [(1, 1, inodes(events[1:2]))]


def test_a_set_that_can_not_grow_is_as_before(kernel: Kernel, interrupts: Interrupts) -> None:
    kernel.vectors = 2
    with eventfds(3) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 2), events[:2])
        with pytest.raises(OSError, match="2 vectors of 3") as refused:
            interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 2, 1), events[2:])
        assert refused.value.errno == -2
        assert kernel.last() == [(1, 0, inodes(events[:2]))]
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 1, 1), events[2:])
        assert kernel.last() == [(1, 1, inodes(events[2:]))]


def test_a_set_for_which_there_are_no_descriptors_is_as_before(
    kernel: Kernel, interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with eventfds(3) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 1), events[:1])
        kernel.asked.clear()
        left = [os.dup(events[1])]

        def dup(_fd: int) -> int:
            if not left:
                raise OSError(errno.EMFILE, "too many open files")
            return left.pop()

        with monkeypatch.context() as poor:
            poor.setattr(os, "dup", dup)
            with pytest.raises(OSError, match="too many"):
                interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 2), events[1:])
        assert not kernel.asked
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 1, 1), events[2:])
        assert kernel.last() == [(1, 0, inodes([events[0], events[2]]))]


def test_fewer_vectors_than_wanted(kernel: Kernel, interrupts: Interrupts) -> None:
    kernel.vectors = 1
    with eventfds(4) as events, pytest.raises(OSError, match="1 vectors of 4") as refused:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSIX, 0, 4), events)
    assert refused.value.errno == -1
    assert interrupts.enabled == []


def test_an_error_interrupt_without_an_eventfd_is_off(interrupts: Interrupts) -> None:
    """The kernel would refuse to switch it off again."""
    with eventfds(1) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.ERR, 0, 1), events)
        assert interrupts.enabled == [PciIrq.ERR]
        interrupts.set(IrqSet(SIGNAL, PciIrq.ERR, 0, 1), [])
        assert interrupts.enabled == []


def test_a_reopened_device_has_no_interrupts(kernel: Kernel, interrupts: Interrupts) -> None:
    with eventfds(2) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 1), events[:1])
        interrupts.attach(DEVICE)
        assert interrupts.enabled == []
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 1, 1), events[1:])
        assert kernel.last() == [(1, 1, inodes(events[1:]))]


def test_the_device_request_has_our_eventfd_and_tells_the_client(
    kernel: Kernel, interrupts: Interrupts
) -> None:
    interrupts.attach(DEVICE)
    assert kernel.asked == [(4, 0, [interrupts.request])]
    with eventfds(1) as (event,):
        interrupts.set(IrqSet(SIGNAL, PciIrq.REQ, 0, 1), [event])
        assert len(kernel.asked) == 1
        os.eventfd_write(interrupts.request, 1)
        interrupts.forward_request()
        assert os.eventfd_read(event) == 1
        assert not select.select([interrupts.request], [], [], 0)[0]
        interrupts.forget_client()
        os.eventfd_write(interrupts.request, 1)
        interrupts.forward_request()
        assert not select.select([event], [], [], 0)[0]


@pytest.mark.parametrize("flags", [IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK])
def test_a_device_request_can_not_be_masked(interrupts: Interrupts, flags: IrqSetFlags) -> None:
    with pytest.raises(OSError, match="can't be masked") as refused:
        interrupts.set(IrqSet(flags | IrqSetFlags.DATA_NONE, PciIrq.REQ, 0, 1), [])
    assert refused.value.errno == errno.ENOTTY


# ---- In a successor process -----------------------------------------------------------------


@pytest.fixture
def kept() -> Iterator[KeptFiles]:
    files = KeptFiles()
    yield files
    files.close()


def succeed(interrupts: Interrupts, kept: KeptFiles) -> Interrupts:
    saved = msgpack.unpackb(msgpack.packb(interrupts.save(kept.keep)))
    new = Interrupts(TYPES)
    new.restore(DEVICE, saved, kept.take)
    return new


def test_a_successor_tells_the_kernel_nothing_and_knows_all(
    kernel: Kernel, interrupts: Interrupts, kept: KeptFiles
) -> None:
    with eventfds(4) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 1), events[:1])
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 2, 1), events[2:3])
        interrupts.set(IrqSet(SIGNAL, PciIrq.REQ, 0, 1), events[3:])
        os.eventfd_write(interrupts.request, 1)  # while nobody is there
        kernel.asked.clear()
        with closing(succeed(interrupts, kept)) as new:
            assert not kernel.asked
            assert new.enabled == interrupts.enabled == [PciIrq.MSI]
            new.forward_request()
            assert os.eventfd_read(events[3]) == 1
            new.set(IrqSet(SIGNAL, PciIrq.MSI, 3, 1), events[1:2])
            first, second, third = inodes(events[:3])
            assert kernel.last() == [(1, 0, [first, -1, third, second])]


def test_one_eventfd_is_one_file_however_often_it_is_used(
    interrupts: Interrupts, kept: KeptFiles
) -> None:
    with eventfds(1) as (event,):
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 2), [event, event])
        interrupts.set(IrqSet(SIGNAL, PciIrq.REQ, 0, 1), [event])
        interrupts.save(kept.keep)
        assert len(kept.fds) == 2  # the client's, and that of the bridge's own


#: a request, the errno with which the kernel refuses it since it is done, and what it is asked then
DONE = [
    (IrqSet(OFF, PciIrq.MSI, 0, 0), errno.EINVAL, 0),
    (IrqSet(SIGNAL, PciIrq.MSI, 0, 3), errno.EINVAL, 1),  # grows: off, and on
    (IrqSet(UNMASK, PciIrq.INTX, 0, 1), errno.EBUSY, 2),  # take it away, and set it
]


@pytest.mark.parametrize(("request_", "code", "more"), DONE)
def test_what_a_predecessor_was_killed_over_can_be_asked_for_again(
    kernel: Kernel,
    interrupts: Interrupts,
    kept: KeptFiles,
    request_: IrqSet,
    code: int,
    more: int,
) -> None:
    with eventfds(3) as events:
        interrupts.set(IrqSet(SIGNAL, PciIrq.MSI, 0, 1), events[:1])
        with closing(succeed(interrupts, kept)) as new:
            kernel.asked.clear()
            kernel.refusal = code
            new.set(request_, events[: request_.count])
            assert len(kernel.asked) == 1 + more
            assert kernel.last()[0][2] == inodes(events[: request_.count])
            kernel.refusal = code  # not a second time
            if request_.count != 3:
                with pytest.raises(OSError, match="refused"):
                    new.set(request_, events[: request_.count])

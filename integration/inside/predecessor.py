# SPDX-License-Identifier: BSD-3-Clause
"""A process that has devices open, and is killed: what it leaves is taken over here."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest

from integration import devices
from tests.kept_files import KeptFiles
from vfio_user_bridge.device import Device, PciRegion
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.iommu import Iommu
from vfio_user_bridge.kernel import vfio
from vfio_user_bridge.messages import DmaMap, IrqSet

from .bridge import bind, command, fired
from .memory import locked, pinned
from .test_dma import IOVA
from .test_interrupts import BOOL, EVENTFD, NONE, TRIGGER

SERVED = (
    devices.EDU,
    *devices.EDU_PAIR,
    devices.NVME,
    devices.E1000E,
    devices.XHCI_MSI,
)
#: in bytes, as much as a map has if nothing else is said
SIZE = 16 << 20
ON, OFF = EVENTFD | TRIGGER, NONE | TRIGGER
COMMAND = 4
ENABLED = 0x7  # answers to I/O and memory accesses, and is a bus master
Saved = list[dict[str, Any]]


class Driver:
    """A device's registers, as `edu` and others here want them."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def read(self, index: int, offset: int, size: int) -> int:
        return int.from_bytes(self.device.region_read(index, offset, size), "little")

    def write(self, index: int, offset: int, size: int, value: int) -> None:
        self.device.region_write(index, offset, value.to_bytes(size, "little"))

    def enable(self) -> None:
        self.write(PciRegion.CONFIG, COMMAND, 2, self.read(PciRegion.CONFIG, COMMAND, 2) | ENABLED)


@contextmanager
def predecessor(
    bdfs: Sequence[str],
    use: Callable[[list[HostDevice]], object],
    after: Callable[[list[HostDevice]], object] = bool,
) -> Iterator[tuple[int, Saved, KeptFiles]]:
    """A process that has these devices open and in *use*, and does more *after* it has saved them.

    Gives its id, and what it saved. In the end it is killed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        try:
            iommu, kept = Iommu(), KeptFiles()
            opened = [HostDevice(bdf, iommu) for bdf in bdfs]
            use(opened)
            document = msgpack.packb([[device.save(kept.keep) for device in opened], [*kept.fds]])
            after(opened)
            socket.send_fds(theirs, [document], list(kept.fds.values()))
            signal.pause()
        finally:
            os._exit(1)
    with ours:
        theirs.close()
        document, fds, *_ = socket.recv_fds(ours, 1 << 16, 100)
    try:
        assert document, "it failed: see above"
        saved, names = msgpack.unpackb(document)
        kept = KeptFiles()
        kept.fds.update(zip(names, fds, strict=True))
        yield child, saved, kept
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def killed(
    bdfs: Sequence[str],
    use: Callable[[list[HostDevice]], object],
    after: Callable[[list[HostDevice]], object] = bool,
) -> tuple[Saved, KeptFiles]:
    """What it has left when it is dead."""
    with predecessor(bdfs, use, after) as (_pid, saved, kept):
        pass
    return saved, kept


def taken_over(bdfs: Sequence[str], saved: Saved, kept: KeptFiles) -> list[HostDevice]:
    """The same devices in this process; nothing else keeps what they have open."""
    iommu = Iommu()
    opened = [
        HostDevice(bdf, iommu, saved=each, take=kept.take)
        for bdf, each in zip(bdfs, saved, strict=True)
    ]
    for device, each in zip(opened, saved, strict=True):
        device.restore(each, kept.take)
    kept.close()
    return opened


@contextmanager
def successors(
    *bdfs: str,
    use: Callable[[list[HostDevice]], object],
    after: Callable[[list[HostDevice]], object] = bool,
) -> Iterator[list[HostDevice]]:
    opened = taken_over(bdfs, *killed(bdfs, use, after))
    try:
        yield opened
        for device in opened:
            device.quiesce(reset=True)
    finally:
        for device in opened:
            device.close()


def ram(size: int = SIZE, iova: int = IOVA, offset: int = 0) -> DmaMap:
    return DmaMap(3, offset, iova, size)


def on(index: int, start: int, count: int) -> IrqSet:
    return IrqSet(ON, index, start, count)


def signalled(device: HostDevice, index: int, vector: int, events: Sequence[int]) -> list[int]:
    """Have the kernel signal one vector; gives which of *events* were."""
    only = bytes(vector) + b"\1"
    device.set_irqs(IrqSet(BOOL | TRIGGER, index, 0, len(only), only), [])
    return [at for at, event in enumerate(events) if fired(event, 0)]


def maps_of(device: HostDevice) -> int:
    """How many DMA maps the kernel has in the container of *device*."""
    container = device._container  # noqa: SLF001 - what the kernel says of it
    return container.max_maps - vfio.iommu_info(container._container).dma_avail  # noqa: SLF001


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    bind(*SERVED)
    yield
    assert not command("unbind", devices.NVME, devices.XHCI_MSI).returncode


@pytest.fixture
def nothing_stays(bound: None) -> Iterator[None]:  # noqa: ARG001 - it is done
    """No memory is locked or pinned that wasn't."""
    before = pinned()
    assert not locked()
    yield
    assert (locked(), pinned()) == (0, before)

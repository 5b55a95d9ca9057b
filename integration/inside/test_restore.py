# SPDX-License-Identifier: BSD-3-Clause
"""A process that has devices open is killed: another goes on with them, and they notice nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from integration import devices
from tests.descriptors import open_descriptors
from tests.kept_files import KeptFiles
from vfio_user_bridge.device import PciIrq
from vfio_user_bridge.errors import DeviceError
from vfio_user_bridge.hostdev import HostDevice

from . import nvme
from .bridge import fired
from .predecessor import (  # noqa: F401 - fixtures too
    SIZE,
    Driver,
    Saved,
    bound,
    killed,
    nothing_stays,
    on,
    ram,
    signalled,
    successors,
    taken_over,
)
from .test_dma import IOVA, PAGE, memory
from .test_interrupts import eventfds

pytestmark = pytest.mark.usefixtures("nothing_stays")

FIRST = devices.EDU_PAIR[0]


def test_an_nvme_controller_works_on() -> None:
    submissions, completions, target = IOVA, IOVA + PAGE, IOVA + 2 * PAGE
    with memory(SIZE) as fd, eventfds(1) as (event,):

        def identify(device: HostDevice, number: int) -> bytes:
            at = number * nvme.COMMAND.size
            os.pwrite(fd, bytes(PAGE), target - IOVA)
            os.pwrite(fd, nvme.identify_command(target), submissions - IOVA + at)
            Driver(device).write(0, nvme.DOORBELL, 4, number + 1)
            assert fired(event, 30), "no interrupt"
            completion = os.pread(fd, 16, completions - IOVA + number * nvme.COMPLETION.size)
            *_, status = nvme.COMPLETION.unpack(completion)
            assert status == 1, "it failed, or isn't this round's"
            return os.pread(fd, PAGE, target - IOVA)[nvme.SERIAL].strip()

        def use(opened: list[HostDevice]) -> None:
            (device,) = opened
            driver = Driver(device)
            driver.enable()
            device.dma_map(ram(), fd)
            device.set_irqs(on(PciIrq.MSIX, 0, 1), [event])
            entries = nvme.QUEUE_ENTRIES - 1
            driver.write(0, nvme.QUEUE_SIZES, 4, entries << 16 | entries)
            driver.write(0, nvme.SUBMISSIONS, 8, submissions)
            driver.write(0, nvme.COMPLETIONS, 8, completions)
            driver.write(0, nvme.CONFIGURATION, 4, nvme.ENABLE)
            while driver.read(0, nvme.STATUS, 4) != nvme.READY:
                time.sleep(0.01)
            assert identify(device, 0) == b"bridge"

        with successors(devices.NVME, use=use) as (device,):
            assert identify(device, 1) == b"bridge"
            device.adopt(ram(), fd)
            assert identify(device, 2) == b"bridge"
            device.dma_unmap(ram())


@contextmanager
def left() -> Iterator[tuple[Saved, KeptFiles]]:
    saved, kept = killed((devices.EDU,), bool)
    with closing(kept):
        yield saved, kept


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("group-", "file descriptor .* is no IOMMU group"),
        ("container-", "isn't this group in its container: start anew"),
        ("device-", "isn't this device: start anew"),
    ],
)
def test_another_file_is_told_in_one_line(name: str, said: str) -> None:
    with left() as (saved, kept), Path(os.devnull).open("rb") as null:
        (whole,) = (each for each in kept.fds if each.startswith(name))
        os.dup2(null.fileno(), kept.fds[whole])
        before = len(open_descriptors())
        with pytest.raises(Exception, match=said) as refused:
            taken_over((devices.EDU,), saved, kept)
        assert str(refused.value).count("\n") == 0
        assert len(open_descriptors()) == before


def test_another_device_is_told_too() -> None:
    saved, kept = killed((FIRST, devices.E1000E), bool)
    with closing(kept):
        theirs = kept.fds[f"device-{devices.E1000E.replace(':', '.')}"]
        os.dup2(theirs, kept.fds[f"device-{FIRST.replace(':', '.')}"])
        with pytest.raises(DeviceError, match="isn't this device"):
            taken_over((FIRST,), saved[:1], kept)


def test_a_device_that_was_closed_is_opened_anew() -> None:
    """It is, between two clients."""
    with eventfds(1) as (event,):

        def use(opened: list[HostDevice]) -> None:
            opened[0].set_irqs(on(PciIrq.MSI, 0, 1), [event])

        def close(opened: list[HostDevice]) -> None:
            saved: list[Saved] = []
            kept = KeptFiles()
            opened[0].on_change(lambda: saved.append([opened[0].save(kept.keep)]))
            opened[0].quiesce(reset=True)
            assert [each[0]["device"] for each in saved] == [None]

        saved, kept = killed((devices.EDU,), use, close)
        saved[0]["device"] = None
        (device,) = taken_over((devices.EDU,), saved, kept)
        with closing(device):
            device.set_irqs(on(PciIrq.MSI, 0, 1), [event])
            assert signalled(device, PciIrq.MSI, 0, [event]) == [0]
            device.quiesce(reset=True)

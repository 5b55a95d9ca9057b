# SPDX-License-Identifier: BSD-3-Clause
"""A process that has devices open is killed: another goes on with them, and they notice nothing."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from integration import devices
from tests.descriptors import open_descriptors
from tests.kept_files import KeptFiles
from vfio_user_bridge.device import PciIrq, PciRegion
from vfio_user_bridge.errors import DeviceError
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.kernel import credentials, vfio
from vfio_user_bridge.messages import DmaMap, IrqSet

from . import edu, nvme
from .bridge import bind, command, fired
from .interrupters import E1000e
from .predecessor import Driver, Saved, killed, locked, maps_of, pinned, taken_over
from .test_dma import IOVA, PAGE, TEXT, memory
from .test_interrupts import BOOL, EVENTFD, NONE, SOON, TRIGGER, UNMASK, eventfds

FIRST, SECOND = devices.EDU_PAIR
SERVED = (devices.EDU, FIRST, SECOND, devices.NVME, devices.E1000E, devices.XHCI_MSI)
SIZE = 16 << 20
ON, OFF = EVENTFD | TRIGGER, NONE | TRIGGER


@pytest.fixture(autouse=True, scope="module")
def _bound() -> Iterator[None]:
    bind(*SERVED)
    yield
    assert not command("unbind", devices.NVME, devices.XHCI_MSI).returncode


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = pinned()
    assert not locked()
    yield
    assert (locked(), pinned()) == (0, before)


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


# ---- DMA ------------------------------------------------------------------------------------


def test_dma_goes_on_and_its_memory_is_ours_then() -> None:
    with memory(SIZE) as fd, memory(SIZE) as other:
        os.pwrite(fd, TEXT, 0)
        before = pinned()

        def use(opened: list[HostDevice]) -> None:
            Driver(opened[0]).enable()
            opened[0].dma_map(ram(), fd)
            assert locked() == SIZE

        with successors(devices.EDU, use=use) as (device,):
            assert pinned() - before == SIZE // PAGE, "the pages of who is dead are still pinned"
            driver = Driver(device)
            edu.copy(driver, IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT
            assert locked() == 0
            device.adopt(ram(), fd)
            assert (locked(), pinned() - before) == (SIZE, SIZE // PAGE)
            edu.copy(driver, IOVA, IOVA + 2 * PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), 2 * PAGE) == TEXT
            device.dma_unmap(ram())
            assert (locked(), pinned() - before) == (0, 0)
            device.dma_map(ram(), other)
            edu.dma(driver, edu.BUFFER, IOVA, len(TEXT), edu.TO_MEMORY)
            assert os.pread(other, len(TEXT), 0) == TEXT
            device.dma_unmap(ram())


def test_maps_shared_by_two_functions_are_counted_again() -> None:
    with memory(SIZE) as fd:

        def use(opened: list[HostDevice]) -> None:
            for device in opened:
                Driver(device).enable()
                device.dma_map(ram(), fd)
            opened[1].dma_map(ram(PAGE, 2 * IOVA), fd)

        with successors(FIRST, SECOND, use=use) as (first, second):
            for device in (first, second):
                device.adopt(ram(), fd)
            second.adopt(ram(PAGE, 2 * IOVA), fd)
            assert (maps_of(first), locked()) == (2, SIZE + PAGE)
            first.dma_unmap(ram())
            os.pwrite(fd, TEXT, 0)
            edu.copy(Driver(second), IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT
            second.dma_unmap(ram())
            assert (maps_of(first), locked()) == (1, PAGE)


def test_who_is_killed_while_it_adopts_is_followed_by_a_third() -> None:
    """Some addresses are declared gone already, then."""
    regions = [ram(PAGE, IOVA + 2 * PAGE * number) for number in range(4)]
    with memory(PAGE) as fd:

        def use(opened: list[HostDevice]) -> None:
            for region in regions:
                opened[0].dma_map(region, fd)

        for gone in ((0, 0, vfio.VFIO_DMA_UNMAP_FLAG_ALL), (IOVA, 2 * PAGE, 0)):
            iova, size, flags = gone

            def die(opened: list[HostDevice]) -> None:
                container = opened[0]._container._container  # noqa: SLF001
                vfio.dma_unmap(container, iova, size, flags | vfio.VFIO_DMA_UNMAP_FLAG_VADDR)  # noqa: B023

            with successors(devices.EDU, use=use, after=die) as (device,):
                for region in regions:
                    device.adopt(region, fd)
                assert locked() == len(regions) * PAGE
                for region in regions:
                    device.dma_unmap(region)


def test_where_there_is_no_room_for_it_it_stays_another_s() -> None:
    """It goes on all the same."""
    with memory(SIZE) as fd:

        def use(opened: list[HostDevice]) -> None:
            Driver(opened[0]).enable()
            opened[0].dma_map(ram(), fd)

        def go_on() -> None:
            (device,) = taken_over((devices.EDU,), saved, kept)
            device.adopt(ram(), fd)
            assert locked() == 0
            edu.copy(Driver(device), IOVA, IOVA + PAGE, len(TEXT))
            device.dma_unmap(ram())
            device.dma_map(ram(PAGE), fd)
            assert locked() == PAGE
            device.dma_unmap(ram(PAGE))
            device.close()

        saved, kept = killed((devices.EDU,), use)
        os.pwrite(fd, TEXT, 0)
        with closing(kept):
            poor = os.fork()
            if not poor:
                status = 1
                try:
                    resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, PAGE))
                    credentials.drop_capabilities(())
                    go_on()
                    status = 0
                finally:
                    os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(poor, 0)[1]) == 0
        assert os.pread(fd, len(TEXT), PAGE) == TEXT


def test_as_many_maps_as_there_can_be_are_adopted_soon() -> None:
    regions = [ram(PAGE, PAGE * number) for number in range(1, 65536)]
    regions = [region for region in regions if not 0xFEE00 <= region.address // PAGE < 0xFEF00]
    with memory(PAGE) as fd:

        def timed(verb: Callable[..., None], *arguments: int) -> float:
            began = time.monotonic()
            for region in regions:
                verb(region, *arguments)
            return time.monotonic() - began

        def use(opened: list[HostDevice]) -> None:
            print(f"{len(regions)} mapped in {timed(opened[0].dma_map, fd):.2f} s")

        with successors(devices.EDU, use=use) as (device,):
            took = timed(device.adopt, fd)
            assert locked() == len(regions) * PAGE
            print(f"adopted in {took:.2f} s, unmapped in {timed(device.dma_unmap):.2f} s")
            assert took < 60  # a second, where the processor isn't emulated


# ---- What it was killed over ----------------------------------------------------------------


def test_a_map_that_was_just_made_can_be_made_again() -> None:
    with memory(2 * PAGE) as fd:
        os.pwrite(fd, TEXT, PAGE)
        with successors(
            devices.EDU, use=bool, after=lambda opened: opened[0].dma_map(ram(PAGE), fd)
        ) as (device,):
            assert maps_of(device) == 1
            device.dma_map(ram(PAGE, offset=PAGE), fd)
            Driver(device).enable()
            edu.dma(Driver(device), IOVA, edu.BUFFER, len(TEXT))
            edu.dma(Driver(device), edu.BUFFER, IOVA + 100, len(TEXT), edu.TO_MEMORY)
            assert os.pread(fd, len(TEXT), PAGE + 100) == TEXT
            assert (maps_of(device), locked()) == (1, PAGE)
            device.dma_unmap(ram(PAGE, offset=PAGE))


def test_a_map_that_nobody_asks_for_again_goes_with_the_others() -> None:
    with memory(PAGE) as fd:

        def use(opened: list[HostDevice]) -> None:
            opened[0].dma_map(ram(PAGE), fd)

        def after(opened: list[HostDevice]) -> None:
            opened[0].dma_map(ram(PAGE, 2 * IOVA), fd)

        with successors(devices.EDU, use=use, after=after) as (device,):
            device.adopt(ram(PAGE), fd)
            assert maps_of(device) == 2
            device.dma_unmap(ram(PAGE))
            assert maps_of(device) == 0


def test_a_map_that_was_just_taken_back_can_be_taken_back_again() -> None:
    with memory(PAGE) as fd:

        def use(opened: list[HostDevice]) -> None:
            for iova in (IOVA, 2 * IOVA):
                opened[0].dma_map(ram(PAGE, iova), fd)

        with successors(
            devices.EDU, use=use, after=lambda opened: opened[0].dma_unmap(ram(PAGE))
        ) as (device,):
            for iova in (IOVA, 2 * IOVA):
                device.adopt(ram(PAGE, iova), fd)
            assert (maps_of(device), locked()) == (1, PAGE)
            device.dma_unmap(ram(PAGE))
            device.dma_map(ram(PAGE), fd)
            assert (maps_of(device), locked()) == (2, 2 * PAGE)
            for iova in (IOVA, 2 * IOVA):
                device.dma_unmap(ram(PAGE, iova))


def on(index: int, start: int, count: int) -> IrqSet:
    return IrqSet(ON, index, start, count)


def signalled(device: HostDevice, index: int, vector: int, events: Sequence[int]) -> list[int]:
    """Have the kernel signal one vector; gives which of *events* were."""
    only = bytes(vector) + b"\1"
    device.set_irqs(IrqSet(BOOL | TRIGGER, index, 0, len(only), only), [])
    return [at for at, event in enumerate(events) if fired(event, 0)]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_interrupts_that_it_was_killed_over_are_asked_for_again(*, done: bool) -> None:
    """Whether the kernel had done it or not, it comes out right, and the client sees no error."""
    with eventfds(8) as events:
        set_two = [(on(PciIrq.MSI, 0, 2), events[:2])]
        for before, again in (
            ([], (on(PciIrq.MSI, 0, 2), events[:2])),
            (set_two, (on(PciIrq.MSI, 1, 1), events[2:3])),
            (set_two, (on(PciIrq.MSI, 0, 8), events)),
            (set_two, (IrqSet(OFF, PciIrq.MSI, 0, 0), [])),
        ):

            def use(opened: list[HostDevice]) -> None:
                for request, fds in before:  # noqa: B023
                    opened[0].set_irqs(request, fds)

            def after(opened: list[HostDevice]) -> None:
                if done:
                    opened[0].set_irqs(*again)  # noqa: B023

            with successors(devices.XHCI_MSI, use=use, after=after) as (device,):
                device.set_irqs(*again)
                request, fds = again
                for vector, event in enumerate(fds, request.start):
                    assert signalled(device, PciIrq.MSI, vector, events) == [events.index(event)]
                if not fds:
                    with pytest.raises(OSError, match=r".") as refused:
                        device.set_irqs(*again)
                    assert refused.value.errno == errno.EINVAL


def test_off_and_not_on_again_is_on_again() -> None:
    """The worst moment of a set that grows."""
    with eventfds(4) as events:

        def after(opened: list[HostDevice]) -> None:
            off = IrqSet(OFF, PciIrq.MSI, 0, 0)
            vfio.set_irqs(opened[0].region_fd(PciRegion.CONFIG), off.pack())

        with successors(
            devices.XHCI_MSI,
            use=lambda opened: opened[0].set_irqs(on(PciIrq.MSI, 0, 2), events[:2]),
            after=after,
        ) as (device,):
            device.set_irqs(on(PciIrq.MSI, 2, 2), events[2:])
            for vector in range(4):
                assert signalled(device, PciIrq.MSI, vector, events) == [vector]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_intx_and_what_unmasks_it(*, done: bool) -> None:
    with eventfds(2) as (event, unmask):

        def use(opened: list[HostDevice]) -> None:
            Driver(opened[0]).enable()
            opened[0].set_irqs(on(PciIrq.INTX, 0, 1), [event])
            Driver(opened[0]).write(edu.BAR, edu.RAISE, 4, 1)
            assert fired(event)  # and is masked

        def set_unmask(opened: list[HostDevice]) -> None:
            opened[0].set_irqs(IrqSet(EVENTFD | UNMASK, PciIrq.INTX, 0, 1), [unmask])

        with successors(devices.EDU, use=use, after=set_unmask if done else bool) as opened:
            assert not fired(event, SOON)
            set_unmask(opened)
            os.eventfd_write(unmask, 1)
            assert fired(event), "the line is held"
            Driver(opened[0]).write(edu.BAR, edu.ACKNOWLEDGE, 4, 1)


# ---- Interrupts -----------------------------------------------------------------------------


def test_msix_of_a_network_card() -> None:
    with eventfds(5) as events:

        def use(opened: list[HostDevice]) -> None:
            driver = Driver(opened[0])
            driver.enable()
            opened[0].set_irqs(on(PciIrq.MSIX, 0, 4), events[:4])
            ivar = sum((E1000e.IVAR_VALID | n) << 4 * n for n in range(5))
            driver.write(0, E1000e.IVAR, 4, ivar)
            driver.write(0, E1000e.EIAC, 4, E1000e.CAUSES)

        with successors(devices.E1000E, use=use) as (device,):
            driver = Driver(device)

            def fires(vector: int) -> bool:
                cause = 1 << E1000e.FIRST_CAUSE + vector
                driver.write(0, E1000e.IMS, 4, cause)
                driver.write(0, E1000e.ICS, 4, cause)
                done = fired(events[vector])
                driver.write(0, E1000e.IMC, 4, cause)
                return done

            assert [fires(vector) for vector in range(4)] == [True] * 4
            device.set_irqs(on(PciIrq.MSIX, 4, 1), events[4:])
            assert fires(4)
            device.set_irqs(IrqSet(OFF, PciIrq.MSIX, 0, 0), [])


def test_the_host_can_still_have_it_back() -> None:
    """What it said while nobody was there is there to be heard."""
    with eventfds(1) as (event,):

        def use(opened: list[HostDevice]) -> None:
            opened[0].set_irqs(on(PciIrq.REQ, 0, 1), [event])

        def ask(opened: list[HostDevice]) -> None:
            test = IrqSet(OFF, PciIrq.REQ, 0, 1)
            vfio.set_irqs(opened[0].region_fd(PciRegion.CONFIG), test.pack())

        with successors(devices.EDU, use=use, after=ask) as (device,):
            assert not fired(event, 0)
            assert device.host_request is not None
            device.heed_host_request()
            assert fired(event, 0)


# ---- All of it, in a controller that works ---------------------------------------------------


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


# ---- What isn't as it was left ---------------------------------------------------------------


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

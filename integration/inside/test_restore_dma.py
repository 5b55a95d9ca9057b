# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps of a process that is killed: the device's access goes on, and they become another's."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from integration import devices
from vfio_user_bridge.hostdev import HostDevice
from vfio_user_bridge.kernel import credentials, vfio

from . import edu
from .memory import locked, pinned
from .predecessor import (  # noqa: F401 - fixtures too
    SIZE,
    Driver,
    bound,
    killed,
    maps_of,
    nothing_stays,
    predecessor,
    ram,
    successors,
    taken_over,
)
from .test_dma import IOVA, PAGE, TEXT, memory

pytestmark = pytest.mark.usefixtures("nothing_stays")

FIRST, SECOND = devices.EDU_PAIR


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


def test_of_a_predecessor_that_lives_the_locked_memory_moves() -> None:
    with memory(SIZE) as fd:

        def use(opened: list[HostDevice]) -> None:
            Driver(opened[0]).enable()
            opened[0].dma_map(ram(), fd)

        with predecessor((devices.EDU,), use) as (pid, saved, kept):
            (device,) = taken_over((devices.EDU,), saved, kept)
            device.adopt(ram(), fd)
            assert (locked(pid), locked()) == (0, SIZE)
        with closing(device):
            os.pwrite(fd, TEXT, 0)
            edu.copy(Driver(device), IOVA, IOVA + PAGE, len(TEXT))
            assert os.pread(fd, len(TEXT), PAGE) == TEXT
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


def test_many_maps_are_adopted() -> None:
    regions = [ram(PAGE, PAGE * number) for number in range(1, 8192)]
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

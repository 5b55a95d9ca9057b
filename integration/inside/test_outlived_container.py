# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel does once the process that made type1 maps is gone and its descriptors are not.

Trials of the kernel alone: no bridge runs. Each is a row of docs/developers/handover.md.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.descriptors import memory_files
from vfio_user_bridge.device import PciIrq, PciRegion
from vfio_user_bridge.kernel import credentials, vfio
from vfio_user_bridge.messages import IRQ_SET_EVENTFDS, IRQ_SET_OFF, IrqSet, IrqSetFlags

from . import edu
from .bridge import bind, fired
from .memory import locked, pinned
from .outlived import BDF, READ_WRITE, Maker, Setup, address, elsewhere, group

PAGE = 4096
PAGES = 64
SIZE = PAGES * PAGE
IOVA = 0x1000000  # edu reaches 28 bits
NEW = 2 * IOVA
VFIO_UNMAP_ALL = 9  # linux/vfio.h
ALL, VADDR = vfio.VFIO_DMA_UNMAP_FLAG_ALL, vfio.VFIO_DMA_UNMAP_FLAG_VADDR


def unmap(setup: Setup, iova: int = IOVA, size: int = SIZE, flags: int = 0) -> int:
    """Gives how many bytes that were."""
    return vfio.dma_unmap(setup.container, iova, size, flags)


def forget(setup: Setup) -> int:
    return unmap(setup, flags=VADDR)


def forget_all(setup: Setup) -> int:
    return unmap(setup, 0, 0, ALL | VADDR)


def own(setup: Setup, vaddr: int, iova: int = IOVA, size: int = SIZE, flags: int = 0) -> None:
    vfio.dma_map(setup.container, vfio.VFIO_DMA_MAP_FLAG_VADDR | flags, vaddr, iova, size)


def refused(action: Callable[[], object]) -> str:
    """The errno's name."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is what is asked
        action()
    return errno.errorcode[caught.value.errno or 0]


def reaches(setup: Setup, ram: int, iova: int = IOVA) -> bool:
    """Whether the device's DMA gets to that file."""
    text = os.urandom(PAGE)
    os.pwrite(ram, text + bytes(PAGE), 0)
    edu.copy(setup, iova, iova + PAGE, PAGE)
    return os.pread(ram, PAGE, PAGE) == text


def poor(limit: int, action: Callable[[], object]) -> object:
    """Do it in a process without CAP_IPC_LOCK and with that RLIMIT_MEMLOCK, in bytes."""

    def act() -> object:
        credentials.drop_capabilities()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        return action()

    return elsewhere(act)


@pytest.fixture(scope="module", autouse=True)
def bound() -> None:
    bind(BDF)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Once all is closed, no page is pinned and the group can be opened, by whomever."""
    before = pinned()
    yield
    deadline = time.monotonic() + 10
    while pinned() > before:
        assert time.monotonic() < deadline, f"{pinned() - before} pages stay pinned"
        time.sleep(0.1)
    os.close(vfio.group_open(group()))


@pytest.fixture
def files() -> Iterator[list[int]]:
    with memory_files(2, SIZE) as made:
        yield made


@pytest.fixture
def ram(files: list[int]) -> int:
    return files[0]


@pytest.fixture
def maker(ram: int) -> Iterator[Maker]:
    """It lives, and has mapped *ram* at IOVA."""

    def make() -> Setup:
        setup = Setup.open()
        setup.map(ram, IOVA, SIZE)
        setup.enable()
        return setup

    made = Maker(make)
    yield made
    made.close()


@pytest.fixture
def left(maker: Maker) -> Setup:
    """What a process had that was killed."""
    maker.die()
    return maker.left


# ---- Maps -------------------------------------------------------------------------------------


def test_dma_goes_on(left: Setup, ram: int) -> None:
    assert reaches(left, ram)


def test_pages_stay_pinned_until_they_are_unmapped(maker: Maker) -> None:
    before = pinned()
    maker.die()
    time.sleep(0.5)
    assert abs(pinned() - before) < PAGES // 4  # 9p pins a few pages for a moment
    assert unmap(maker.left) == SIZE
    assert before - pinned() > PAGES * 3 // 4


def test_nobody_is_charged_for_them(left: Setup) -> None:
    assert locked() == 0
    unmap(left)
    assert locked() == 0


def test_who_mapped_is_the_one_discharged(maker: Maker) -> None:
    assert locked(maker.pid) == SIZE
    unmap(maker.left)
    assert locked(maker.pid) == 0


@pytest.mark.parametrize(("iova", "size"), [(IOVA, SIZE), (IOVA, PAGE), (IOVA + PAGE, SIZE)])
def test_they_are_in_the_way_of_others(left: Setup, ram: int, iova: int, size: int) -> None:
    vaddr = address(ram, SIZE)
    again = refused(lambda: vfio.dma_map(left.container, READ_WRITE, vaddr, iova, size))
    assert again == "EEXIST"


def test_they_are_unmapped_whole(left: Setup) -> None:
    assert refused(lambda: unmap(left, IOVA, PAGE)) == "EINVAL"
    assert unmap(left) == SIZE
    assert unmap(left) == 0


def test_new_ones_are_charged_to_who_makes_them(left: Setup, files: list[int]) -> None:
    left.map(files[1], NEW, SIZE)
    assert locked() == SIZE
    assert reaches(left, files[1], NEW)
    unmap(left, NEW)
    assert locked() == 0


def test_old_ones_do_not_count_against_the_limit(left: Setup, files: list[int]) -> None:
    assert not isinstance(poor(SIZE, lambda: left.map(files[1], NEW, SIZE)), OSError)
    unmap(left, NEW)
    refusal = poor(SIZE - 1, lambda: left.map(files[1], NEW, SIZE))
    assert isinstance(refusal, OSError)
    assert refusal.errno == errno.ENOMEM


def killed_amid(action: Callable[[], object]) -> None:
    """Begin it in another process, which is killed some moment later."""
    begun, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(tell, b"!")
        action()
        signal.pause()
    os.read(begun, 1)
    time.sleep(random.uniform(0, 0.2))  # nosec B311 - secret from nobody
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(begun)
    os.close(tell)


@pytest.mark.parametrize("amid", ["map", "unmap"])
def test_killed_amid_it_is_all_or_nothing(left: Setup, amid: str) -> None:
    size, iova = 1 << 30, 1 << 32

    def maps() -> None:
        vfio.dma_map(left.container, READ_WRITE, vaddr, iova, size)

    with memory_files(1, size) as (ram,):
        vaddr = address(ram, size)
        none = pinned()
        for _ in range(8):
            maps()  # the first time, it gets its pages
            if amid == "map":
                assert unmap(left, iova, size) == size
                killed_amid(maps)
            else:
                killed_amid(lambda: unmap(left, iova, size))
            there = pinned() - none > size // PAGE // 2
            assert abs(pinned() - none - (size // PAGE if there else 0)) < PAGES
            assert unmap(left, iova, size) == (size if there else 0)


# ---- VFIO_UPDATE_VADDR ------------------------------------------------------------------------


def test_the_kernel_can_do_it(left: Setup) -> None:
    for extension in (VFIO_UNMAP_ALL, vfio.VFIO_UPDATE_VADDR):
        assert vfio.container_check_extension(left.container, extension)


@pytest.mark.parametrize("alive", [True, False])
def test_a_map_changes_hands_without_a_gap_in_dma(maker: Maker, ram: int, alive: bool) -> None:
    if not alive:
        maker.die()
    setup = maker.left
    assert forget(setup) == SIZE
    assert reaches(setup, ram)
    assert locked() == 0
    own(setup, address(ram, SIZE))
    assert locked() == SIZE
    if alive:
        assert locked(maker.pid) == 0
        maker.die()
    assert reaches(setup, ram)
    assert unmap(setup) == SIZE
    assert locked() == 0


def test_all_at_once(left: Setup, files: list[int]) -> None:
    left.map(files[1], NEW, SIZE)
    assert forget_all(left) == 2 * SIZE
    assert refused(lambda: forget_all(left)) == "EINVAL"
    for file, iova in zip(files, (IOVA, NEW), strict=True):
        own(left, address(file, SIZE), iova)
        assert reaches(left, file, iova)


def test_all_of_them_or_none(left: Setup, files: list[int]) -> None:
    forget(left)
    vaddr = left.map(files[1], NEW, SIZE)
    assert refused(lambda: forget_all(left)) == "EINVAL"
    assert refused(lambda: own(left, vaddr, NEW)) == "EINVAL"  # that one still has its address


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda s, at: own(s, at, size=SIZE - PAGE), "EINVAL"),
        (lambda s, at: own(s, at, size=SIZE + PAGE), "EINVAL"),
        (lambda s, at: own(s, at, IOVA + PAGE, SIZE - PAGE), "EINVAL"),
        (lambda s, at: own(s, at, NEW), "ENOENT"),
        (lambda s, at: own(s, at, flags=READ_WRITE), "EINVAL"),
        (lambda s, at: vfio.dma_map(s.container, READ_WRITE, at, IOVA, SIZE), "EEXIST"),
        (lambda s, at: forget(s), "EINVAL"),  # noqa: ARG005 - the same for all
    ],
)
def test_what_is_refused_in_between(
    left: Setup, ram: int, action: Callable[[Setup, int], object], error: str
) -> None:
    forget(left)
    vaddr = address(ram, SIZE)
    assert refused(lambda: action(left, vaddr)) == error
    own(left, vaddr)
    assert refused(lambda: own(left, vaddr)) == "EINVAL"


def test_forgetting_where_nothing_is_takes_nothing(left: Setup) -> None:
    assert unmap(left, NEW, SIZE, VADDR) == 0


def test_the_address_is_not_looked_at(left: Setup, ram: int) -> None:
    forget(left)
    own(left, PAGE)  # where no process has anything (vm.mmap_min_addr)
    assert reaches(left, ram)


def test_beyond_the_limit_it_can_be_tried_again(left: Setup, ram: int) -> None:
    vaddr = address(ram, SIZE)
    forget(left)
    refusal = poor(SIZE - 1, lambda: own(left, vaddr))
    assert isinstance(refusal, OSError)
    assert refusal.errno == errno.ENOMEM
    assert reaches(left, ram)
    assert not isinstance(poor(SIZE, lambda: own(left, vaddr)), OSError)


def test_what_has_no_address_can_be_unmapped(left: Setup) -> None:
    forget(left)
    assert unmap(left) == SIZE


# ---- Interrupts, BARs, the group --------------------------------------------------------------


@pytest.mark.parametrize("index", [PciIrq.MSI, PciIrq.INTX])
def test_interrupts_go_on_and_are_the_survivors_to_set(left: Setup, index: int) -> None:
    old, new = os.eventfd(0), os.eventfd(0)

    def raises(event: int) -> bool:
        left.write(PciRegion.BAR0, edu.RAISE, 4, 1)
        signalled = fired(event, 2)
        left.write(PciRegion.BAR0, edu.ACKNOWLEDGE, 4, 1)
        return signalled

    def unmask() -> None:
        flags = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK
        vfio.set_irqs(left.device, IrqSet(flags, PciIrq.INTX, 0, 1).pack())

    elsewhere(lambda: left.set_irqs(IRQ_SET_EVENTFDS, index, old))  # by one that is gone
    assert raises(old)
    left.set_irqs(IRQ_SET_EVENTFDS, index, new)
    if index == PciIrq.INTX:  # having fired it is masked, whoever's eventfd it has
        assert not raises(new)
        unmask()
    assert raises(new)
    assert not fired(old, 0.2)
    left.set_irqs(IRQ_SET_OFF, index)
    assert refused(lambda: left.set_irqs(IRQ_SET_OFF, index)) == "EINVAL"
    for event in (old, new):
        os.close(event)


def test_a_bar_stays_mapped_and_the_group_taken(maker: Maker) -> None:
    to_client, client = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        bar = maker.left.bar()
        maker.left.close()
        os.close(to_client[1])
        while os.read(to_client[0], 1):
            os.write(client[1], bar[:4])
        os._exit(0)

    def sees_the_device() -> bool:
        os.write(to_client[1], b"?")
        there = bool(select.select([client[0]], [], [], 5)[0])
        return there and struct.unpack("=I", os.read(client[0], 4))[0] == 0x10000ED

    assert sees_the_device()
    maker.die()
    assert sees_the_device()
    maker.left.close()
    assert sees_the_device()
    assert refused(lambda: vfio.group_open(group())) == "EBUSY"
    os.close(to_client[1])
    os.waitpid(pid, 0)
    for fd in (to_client[0], *client):
        os.close(fd)


def test_the_group_stays_as_it_was(left: Setup) -> None:
    flags = vfio.VFIO_GROUP_FLAGS_VIABLE | vfio.VFIO_GROUP_FLAGS_CONTAINER_SET
    assert vfio.group_flags(left.group) == flags
    assert refused(lambda: vfio.group_open(group())) == "EBUSY"


@pytest.mark.parametrize(
    ("kept", "stays"), [("device", True), ("group", True), ("container", False)]
)
def test_one_descriptor_keeps_the_maps(left: Setup, ram: int, kept: str, stays: bool) -> None:
    before = pinned()
    survivor = getattr(left, kept)
    left.fds.remove(survivor)
    left.close()
    left.fds.append(survivor)
    time.sleep(0.5)
    assert (before - pinned() < PAGES // 4) == stays
    if kept == "device":
        assert reaches(left, ram)


# ---- Time -------------------------------------------------------------------------------------


def test_how_long_it_takes(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, for docs/developers/handover.md: 4096 maps of 4 KiB, µs each."""
    setup, count = maker.left, 4096
    unmap(setup)

    def each(text: str, action: Callable[[], object]) -> None:
        start = time.perf_counter()
        action()
        taken = (time.perf_counter() - start) / count * 1e6
        with capsys.disabled():
            print(f"{text}: {taken:.2f} µs")

    with memory_files(1, count * PAGE) as (ram,):
        vaddr = address(ram, count * PAGE)
        places = [(vaddr + at, IOVA + 2 * at, PAGE) for at in range(0, count * PAGE, PAGE)]

        def all_of_them(flags: int) -> None:
            for place in places:
                vfio.dma_map(setup.container, flags, *place)

        each("MAP", lambda: all_of_them(READ_WRITE))
        maker.die()
        each("UNMAP, ALL | VADDR", lambda: forget_all(setup))
        each("MAP, VADDR", lambda: all_of_them(vfio.VFIO_DMA_MAP_FLAG_VADDR))
        each("UNMAP, ALL", lambda: unmap(setup, 0, 0, ALL))

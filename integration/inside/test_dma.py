# SPDX-License-Identifier: BSD-3-Clause
"""The device reaches the client's memory through the IOMMU: all that was mapped, nothing else."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import devices
from tests import client as wire
from tests.wire import dma_map

from . import edu
from .bridge import Bridge, RemoteDevice, lines
from .trouble import iommu_faults

PAGE = 4096
HUGE = 2 << 20
IOVA = 0x1000000  # edu reaches 28 bits
READ = 1
UNMAP_ALL = 2
TEXT = b"once set up, no byte passes through Python"


@contextlib.contextmanager
def memory(size: int, flags: int = 0) -> Iterator[int]:
    fd = os.memfd_create("ram", flags)
    try:
        os.truncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def device(bridge: Bridge) -> Iterator[RemoteDevice]:
    with bridge.client(devices.EDU) as remote:
        remote.enable()
        yield remote


def test_both_ways(device: RemoteDevice) -> None:
    with memory(4 * PAGE) as fd:
        os.pwrite(fd, TEXT, PAGE)
        device.dma_map(fd, IOVA, 3 * PAGE, offset=PAGE)
        edu.copy(device, IOVA, IOVA + 2 * PAGE, len(TEXT))
        assert os.pread(fd, len(TEXT), 3 * PAGE) == TEXT


def test_read_only_maps_stay_read_only(device: RemoteDevice) -> None:
    with memory(2 * PAGE) as fd:
        os.pwrite(fd, TEXT, 0)
        device.dma_map(fd, IOVA, PAGE, flags=READ)
        device.dma_map(fd, IOVA + PAGE, PAGE, offset=PAGE)
        edu.copy(device, IOVA, IOVA + PAGE, len(TEXT))
        assert os.pread(fd, len(TEXT), PAGE) == TEXT
        os.pwrite(fd, bytes(len(TEXT)), 0)
        edu.dma(device, edu.BUFFER, IOVA, len(TEXT), edu.TO_MEMORY)  # blocked by the IOMMU
        assert os.pread(fd, len(TEXT), 0) == bytes(len(TEXT))


def test_memory_is_out_of_reach_once_unmapped(device: RemoteDevice) -> None:
    with memory(2 * PAGE) as fd:
        os.pwrite(fd, TEXT, 0)
        device.dma_map(fd, IOVA, 2 * PAGE)
        edu.dma(device, IOVA, edu.BUFFER, len(TEXT))
        device.dma_unmap(IOVA, 2 * PAGE)
        edu.dma(device, edu.BUFFER, IOVA + PAGE, len(TEXT), edu.TO_MEMORY)
        assert os.pread(fd, len(TEXT), PAGE) == bytes(len(TEXT))


def test_what_is_blocked_is_in_the_kernels_log(device: RemoteDevice) -> None:
    """Where other tests look for it, and find nothing."""
    before = iommu_faults()
    edu.dma(device, edu.BUFFER, IOVA, len(TEXT), edu.TO_MEMORY)
    deadline = time.monotonic() + 20
    while iommu_faults() == before:
        assert time.monotonic() < deadline, "it isn't"
        time.sleep(0.01)


def test_a_read_only_file_gives_no_writable_map(device: RemoteDevice) -> None:
    with memory(PAGE) as fd:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            assert device.dma_map_refused(reader, IOVA, PAGE) == errno.EACCES
            device.dma_map(reader, IOVA, PAGE, flags=READ)
        finally:
            os.close(reader)


def test_a_map_without_a_file_is_remembered(device: RemoteDevice) -> None:
    device.dma_map(None, IOVA, PAGE)
    assert device.dma_map_refused(None, IOVA, PAGE) == errno.EEXIST
    device.dma_unmap(IOVA, PAGE)
    device.dma_map(None, IOVA, PAGE)


def test_hugepages_at_any_page(device: RemoteDevice) -> None:
    """A hugetlbfs file can't be mapped at such an offset; guests' RAM blocks do start there."""
    Path("/proc/sys/vm/nr_hugepages").write_text("4")
    with memory(2 * HUGE, os.MFD_HUGETLB) as fd, mmap.mmap(fd, 2 * HUGE) as view:
        start = HUGE - PAGE
        view[start : start + len(TEXT)] = TEXT
        device.dma_map(fd, IOVA, 3 * PAGE, offset=start)
        edu.copy(device, IOVA, IOVA + 2 * PAGE, len(TEXT))
        assert view[start + 2 * PAGE : start + 2 * PAGE + len(TEXT)] == TEXT


def test_as_many_maps_as_agreed_on(device: RemoteDevice) -> None:
    """65,535, which is more than vm.max_map_count lets a process have mappings."""
    most = device.capabilities["max_dma_maps"]
    assert most == 65535
    with memory(PAGE) as fd:
        os.pwrite(fd, TEXT, 0)
        window = 256  # requests in flight
        for number in range(1, most + 1):  # the last page that edu's 28 bits reach is 65535
            device.wire.send(wire.DMA_MAP, dma_map(number * PAGE, PAGE), [fd])
            if number > window:
                assert device.wire.receive().flags == wire.REPLY
        for _ in range(window):
            assert device.wire.receive().flags == wire.REPLY
        assert device.dma_map_refused(fd, (most + 1) * PAGE, PAGE) == errno.ENOSPC
        edu.dma(device, most * PAGE, edu.BUFFER, len(TEXT))
        device.dma_unmap(0, 0, flags=UNMAP_ALL)
        device.dma_map(fd, IOVA, PAGE)
        os.pwrite(fd, bytes(PAGE), 0)
        edu.dma(device, edu.BUFFER, IOVA, len(TEXT), edu.TO_MEMORY)
        assert os.pread(fd, len(TEXT), 0) == TEXT


def test_what_the_iommu_cannot_do_is_refused_with_the_range(
    bridge: Bridge, device: RemoteDevice
) -> None:
    """x86 keeps 0xfee00000 for interrupts."""
    with memory(PAGE) as fd:
        assert device.dma_map_refused(fd, 0xFEE00000, PAGE) == errno.EINVAL
    assert lines(bridge.log(), r"ERROR .*IOVA 0xfee00000-0xfee00fff isn't .*0x0-0xfedfffff")


def test_beyond_the_locked_memory_limit_says_how_much_is_needed(igb: str) -> None:
    """Without CAP_IPC_LOCK, which even root's processes lack in a container."""
    drop = ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
    limit, size = 8 << 20, 16 << 20
    with (
        Bridge(igb, prefix=("prlimit", f"--memlock={limit}", *drop)) as poor,
        poor.client(igb) as device,
        memory(size) as fd,
    ):
        assert device.dma_map_refused(fd, IOVA, size) == errno.ENOMEM
        device.dma_map(fd, IOVA, limit // 2)
        assert lines(poor.log(), rf"RLIMIT_MEMLOCK is {limit} bytes, 0 are .* {size} are needed")

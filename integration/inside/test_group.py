# SPDX-License-Identifier: BSD-3-Clause
"""Two functions of one IOMMU group share a container, and so must belong to one VM."""

from __future__ import annotations

import errno
import os
import select

from integration import devices
from tests import client as wire
from tests.wire import dma_map

from . import edu
from .bridge import Bridge, command, lines
from .test_dma import IOVA, PAGE, TEXT, memory

FIRST, SECOND = devices.EDU_PAIR


def test_identical_maps_are_counted(bridge: Bridge) -> None:
    with (
        bridge.client(FIRST) as first,
        bridge.client(SECOND) as second,
        memory(2 * PAGE) as fd,
    ):
        os.pwrite(fd, TEXT, 0)
        for device in (first, second):
            device.enable()
            device.dma_map(fd, IOVA, 2 * PAGE)
        edu.copy(first, IOVA, IOVA + PAGE, 16)
        first.dma_unmap(IOVA, 2 * PAGE)
        edu.copy(second, IOVA, IOVA + PAGE, len(TEXT))  # still there for the other
        assert os.pread(fd, len(TEXT), PAGE) == TEXT
        second.dma_unmap(IOVA, 2 * PAGE)
        second.dma_map(fd, IOVA, PAGE)  # gone with the last


def test_contradicting_maps_are_refused_and_named(bridge: Bridge) -> None:
    with (
        bridge.client(FIRST) as first,
        bridge.client(SECOND) as second,
        memory(2 * PAGE) as fd,
        memory(2 * PAGE) as other,
    ):
        first.dma_map(fd, IOVA, PAGE)
        assert second.dma_map_refused(other, IOVA, PAGE) == errno.EBUSY
        assert second.dma_map_refused(fd, IOVA, PAGE, offset=PAGE) == errno.EBUSY
        assert second.dma_map_refused(fd, IOVA, 2 * PAGE) == errno.EBUSY
        second.dma_map(other, IOVA + PAGE, PAGE)
        inode = os.fstat(other).st_ino
        assert lines(bridge.log(), rf"must be one VM: .*{IOVA:#x} \(inode {inode} .*contradicts")


def test_a_map_waits_for_its_contradiction_to_go(bridge: Bridge) -> None:
    """As when a guest's memory changes, and one function hears of it before the other."""
    with (
        bridge.client(FIRST) as first,
        bridge.client(SECOND) as second,
        memory(2 * PAGE) as fd,
    ):
        for device in (first, second):
            device.dma_map(fd, IOVA, PAGE)
        first.dma_unmap(IOVA, PAGE)
        first.wire.send(wire.DMA_MAP, dma_map(IOVA, 2 * PAGE), [fd])
        assert not select.select([first.wire.socket], [], [], 0.2)[0]
        second.dma_unmap(IOVA, PAGE)
        assert first.wire.receive().flags == wire.REPLY
        second.dma_map(fd, IOVA, 2 * PAGE)


def test_a_client_that_goes_leaves_the_others_maps(bridge: Bridge) -> None:
    with bridge.client(SECOND) as second, memory(2 * PAGE) as fd:
        os.pwrite(fd, TEXT, 0)
        second.enable()
        second.dma_map(fd, IOVA, 2 * PAGE)
        with bridge.client(FIRST) as first:
            first.dma_map(fd, IOVA, 2 * PAGE)
        with bridge.client(FIRST):  # welcome only after the first one's maps are gone
            edu.copy(second, IOVA, IOVA + PAGE, len(TEXT))
        assert os.pread(fd, len(TEXT), PAGE) == TEXT


def test_a_group_in_use_is_refused_in_one_line(bridge: Bridge) -> None:
    tried = command("serve", FIRST, "--socket-path", str(bridge.folder / "second"))
    assert tried.returncode == 1
    (line,) = tried.stderr.splitlines()
    assert "is in use by another process" in line

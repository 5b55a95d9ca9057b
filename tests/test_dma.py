# SPDX-License-Identifier: BSD-3-Clause
"""The table of DMA maps against a naive one, and what a map may be."""

from __future__ import annotations

import errno
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge import dma
from vfio_user_bridge.dma import DmaTable, check
from vfio_user_bridge.messages import DmaMap

PAGE = 4096
TOP = 1 << 64


def a_map(address: int, size: int, *, offset: int = 0, flags: int = 3) -> DmaMap:
    return DmaMap(flags, offset, address, size)


@pytest.mark.parametrize(
    "request_",
    [
        a_map(0, PAGE),
        a_map(PAGE, 3 * PAGE, offset=7 * PAGE),
        a_map(0, PAGE, flags=1),
        a_map(0, PAGE, flags=2),
        a_map(TOP - PAGE, PAGE),
        a_map(0, PAGE, offset=(1 << 63) - PAGE),
    ],
)
def test_maps_that_an_iommu_can_make(request_: DmaMap) -> None:
    check(request_, PAGE)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (a_map(0, 0), errno.EINVAL),
        (a_map(1, PAGE), errno.EINVAL),
        (a_map(0, PAGE - 1), errno.EINVAL),
        (a_map(0, PAGE + 512), errno.EINVAL),
        (a_map(0, PAGE, offset=512), errno.EINVAL),
        (a_map(0, PAGE, flags=0), errno.EINVAL),
        (a_map(0, PAGE, flags=4), errno.EINVAL),
        (a_map(0, PAGE, flags=0x80000003), errno.EINVAL),
        (a_map(TOP - PAGE, 2 * PAGE), errno.EOVERFLOW),
        (a_map(PAGE, TOP - PAGE), errno.EOVERFLOW),
        (a_map(0, PAGE, offset=1 << 63), errno.EOVERFLOW),
    ],
)
def test_maps_that_none_can_make(request_: DmaMap, code: int) -> None:
    with pytest.raises(OSError, match=r"map|wrap") as caught:
        check(request_, PAGE)
    assert caught.value.errno == code


def test_a_device_with_large_pages_takes_no_small_ones() -> None:
    large = 1 << 21
    check(a_map(large, large), large)
    with pytest.raises(OSError, match="not whole pages of 2097152 bytes"):
        check(a_map(large, PAGE), large)


# A table with a gap between the first two maps and none between the last two.
MAPS = [a_map(0x1000, 0x1000), a_map(0x4000, 0x2000), a_map(0x6000, 0x1000)]


@pytest.fixture
def table() -> DmaTable:
    table = DmaTable()
    for entry in reversed(MAPS):
        table.add(entry)
    return table


def test_maps_are_kept_in_order_of_iova(table: DmaTable) -> None:
    assert table.overlapping(0, TOP) == MAPS
    assert len(table) == 3
    table.remove(MAPS[1])
    assert table.overlapping(0, TOP) == [MAPS[0], MAPS[2]]
    assert set(table) == {MAPS[0], MAPS[2]}


@pytest.mark.parametrize(
    ("address", "size", "found"),
    [
        (0, 0x1000, []),
        (0x2000, 0x2000, []),
        (0x7000, TOP - 0x7000, []),
        (0, 0x1001, [0]),
        (0x1FFF, 1, [0]),
        (0x1800, 0x100, [0]),
        (0x5FFF, 2, [1, 2]),
        (0x1FFF, 0x2002, [0, 1]),
        (0, TOP, [0, 1, 2]),
    ],
)
def test_overlapping_finds_maps_with_a_byte_in_the_range(
    table: DmaTable, address: int, size: int, found: list[int]
) -> None:
    assert table.overlapping(address, size) == [MAPS[number] for number in found]


@pytest.mark.parametrize(
    ("address", "size", "found"),
    [
        (0x2000, 0x2000, []),
        (0x1000, 0x1000, [0]),
        (0x4000, 0x2000, [1]),
        (0x4000, 0x3000, [1, 2]),
        (0, TOP, [0, 1, 2]),
    ],
)
def test_within_finds_whole_maps(
    table: DmaTable, address: int, size: int, found: list[int]
) -> None:
    assert table.within(address, size) == [MAPS[number] for number in found]


@pytest.mark.parametrize(
    ("address", "size"),
    [(0x4000, 0x1000), (0x5000, 0x1000), (0x5000, 0x2000), (0x4800, 8), (0, 0x4001), (0x1001, TOP)],
)
def test_within_refuses_a_range_that_cuts_a_map(table: DmaTable, address: int, size: int) -> None:
    with pytest.raises(OSError, match="cut the map") as caught:
        table.within(address, size)
    assert caught.value.errno == errno.EINVAL
    assert table.overlapping(0, TOP) == MAPS


# ---- Against a naive table ------------------------------------------------------------------

ranges = st.tuples(st.integers(0, 40), st.integers(1, 12))


@patch.object(dma, "_BLOCK", 2)  # so there are several
@given(st.lists(st.tuples(st.booleans(), ranges), max_size=40), ranges)
def test_the_table_agrees_with_a_naive_one(
    steps: list[tuple[bool, tuple[int, int]]], query: tuple[int, int]
) -> None:
    table, naive = DmaTable(), dict[int, DmaMap]()  # naive: each IOVA's map

    def naive_overlapping(address: int, size: int) -> list[DmaMap]:
        found = [naive[iova] for iova in range(address, address + size) if iova in naive]
        return list(dict.fromkeys(found))

    def expect(address: int, size: int) -> None:
        found = naive_overlapping(address, size)
        assert table.overlapping(address, size) == found
        whole = all(address <= m.address and m.address + m.size <= address + size for m in found)
        if whole:
            assert table.within(address, size) == found
        else:
            with pytest.raises(OSError, match="cut"):
                table.within(address, size)

    for adding, (address, size) in steps:
        expect(address, size)
        found = naive_overlapping(address, size)
        if adding and not found:
            entry = a_map(address, size)
            table.add(entry)
            naive.update(dict.fromkeys(range(address, address + size), entry))
        elif not adding:
            for entry in found:
                table.remove(entry)
                for iova in range(entry.address, entry.address + entry.size):
                    del naive[iova]
        assert set(table) == set(naive.values())
        assert table.overlapping(0, 64) == naive_overlapping(0, 64)
    expect(*query)

# SPDX-License-Identifier: BSD-3-Clause
"""What of a region may be mapped: read, changed, and with pages taken from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.device import RegionFlags
from vfio_user_bridge.messages import RegionCapability, RegionInfo
from vfio_user_bridge.sparse import mappable_areas, with_areas, without

from .fake_device import MSIX_MAPPABLE, READ_WRITE
from .wire import u32, u64

PAGE = 4096
PAGES = 16
MAPPABLE = READ_WRITE | RegionFlags.MMAP
VENDORS = RegionCapability(2, 1, bytes(8))  # VFIO_REGION_INFO_CAP_TYPE
SPARSE = RegionCapability(1, 1, u32(2, 0) + u64(0, 0x1000, 0x3000, 0x2000))


def bar(flags: int, *capabilities: RegionCapability) -> RegionInfo:
    return RegionInfo(2, flags, 0x8000, 0x20000, capabilities)


def test_mappable_areas() -> None:
    none = RegionCapability(1, 1, u32(0, 0))
    for region, areas in (
        (bar(READ_WRITE), []),
        (bar(MAPPABLE), [(0, 0x8000)]),
        (bar(MAPPABLE, MSIX_MAPPABLE), [(0, 0x8000)]),
        (bar(MAPPABLE, MSIX_MAPPABLE, SPARSE), [(0, 0x1000), (0x3000, 0x2000)]),
        (bar(MAPPABLE, none), []),
    ):
        assert mappable_areas(region) == areas


def test_with_areas() -> None:
    """Flags by number: READ 1, WRITE 2, MMAP 4, CAPS 8."""
    one = RegionCapability(1, 1, u32(1, 0) + u64(0x1000, 0x7000))
    areas = [(0x1000, 0x7000)]
    for region, wanted, expected in (
        (bar(7), areas, bar(0xF, one)),
        (bar(0xF, MSIX_MAPPABLE, VENDORS), areas, bar(0xF, MSIX_MAPPABLE, VENDORS, one)),
        (bar(0xF, SPARSE, VENDORS), areas, bar(0xF, VENDORS, one)),
        (bar(7), [(0, 0x8000)], bar(7)),
        (bar(7), [], bar(3)),
        (bar(0xF, SPARSE, MSIX_MAPPABLE), [], bar(3)),
        (bar(0xF, SPARSE, VENDORS), [], bar(0xB, VENDORS)),
    ):
        assert with_areas(region, wanted) == expected


@given(
    st.sets(st.integers(0, PAGES - 1)),
    st.lists(st.tuples(st.integers(0, PAGES * PAGE - 1), st.integers(1, 3 * PAGE)), max_size=5),
)
def test_without(mapped: set[int], trapped: list[tuple[int, int]]) -> None:
    """Page by page: what was mapped and has no byte of a trapped range."""
    before = [(page * PAGE, PAGE) for page in sorted(mapped)]
    after = without(before, [(start, start + size) for start, size in trapped], PAGE)
    touched = {
        page
        for start, size in trapped
        for page in range(PAGES)
        if start < (page + 1) * PAGE and start + size > page * PAGE
    }
    pages = [page for at, size in after for page in range(at // PAGE, (at + size) // PAGE)]
    assert pages == sorted(mapped - touched)
    assert all(size for _, size in after)


def test_pages_that_stay_stay_together() -> None:
    """Each area is a memory slot of a KVM guest."""
    whole = [(0, 0x100000)]
    assert without(whole, [(0x3FFF, 0x4001)], PAGE) == [(0, 0x3000), (0x5000, 0xFB000)]
    assert without(whole, [(0x0, 0x1)], PAGE) == [(0x1000, 0xFF000)]
    assert without(whole, [(0xFFFFF, 0x100000)], PAGE) == [(0, 0xFF000)]
    assert without(whole, [], PAGE) == whole

# SPDX-License-Identifier: BSD-3-Clause
"""What of a region a client may map: all of it, or the areas that a capability lists.

``struct vfio_region_info_cap_sparse_mmap`` of linux/vfio.h. An area is its offset in the region and
its size, both in bytes; what no area has is trapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from struct import Struct

from .device import RegionFlags
from .kernel.vfio import VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP
from .messages import RegionCapability, RegionInfo

Areas = list[tuple[int, int]]

_VERSION = 1
_NR_AREAS = Struct("=I4x")  # then one for each area: offset, size
_AREA = Struct("=QQ")
#: what only matters to one who maps the region
_MAPPING_CAPABILITIES = (VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE)


def mappable_areas(region: RegionInfo) -> Areas:
    """What of *region* may be mapped, as it says."""
    if not region.flags & RegionFlags.MMAP:
        return []
    for capability in region.capabilities:
        if capability.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            (count,) = _NR_AREAS.unpack_from(capability.data)
            areas = capability.data[_NR_AREAS.size :][: count * _AREA.size]
            return list(_AREA.iter_unpack(areas))
    return [(0, region.size)]


def with_areas(region: RegionInfo, areas: Areas) -> RegionInfo:
    """*region* of which these may be mapped. Other capabilities stay; without an area, none of
    those that are about mapping.
    """
    if areas and areas == mappable_areas(region):
        return region
    gone = _MAPPING_CAPABILITIES[: 1 if areas else 2]
    kept = tuple(c for c in region.capabilities if c.id not in gone)
    flags = region.flags & ~(RegionFlags.MMAP | RegionFlags.CAPS)
    if areas:
        flags |= RegionFlags.MMAP
        data = _NR_AREAS.pack(len(areas)) + b"".join(_AREA.pack(*area) for area in areas)
        kept += (RegionCapability(VFIO_REGION_INFO_CAP_SPARSE_MMAP, _VERSION, data),)
    if kept:
        flags |= RegionFlags.CAPS
    return replace(region, flags=flags, capabilities=kept)


def without(areas: Areas, trapped: Iterable[tuple[int, int]], page: int) -> Areas:
    """*areas* less the pages, of *page* bytes, in which the ranges *trapped* lie: each its first
    byte and the byte after its last.
    """
    for start, end in trapped:
        first, last = start // page * page, -(-end // page) * page
        left: Areas = []
        for offset, size in areas:
            before, after = min(offset + size, first), max(offset, last)
            left += [
                (at, to - at) for at, to in ((offset, before), (after, offset + size)) if to > at
            ]
        areas = left
    return areas

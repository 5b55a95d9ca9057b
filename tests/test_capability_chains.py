# SPDX-License-Identifier: BSD-3-Clause
"""A region's capability chain, laid out as the kernel does it, and the argsz rule."""

from __future__ import annotations

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.messages import RegionCapability, RegionInfo
from vfio_user_bridge.protocol import ProtocolError

from .wire import u16, u32, u64

SPARSE_MMAP = 1
MSIX_MAPPABLE = 3
BAR = 0x4000

# struct vfio_region_info_cap_sparse_mmap of two areas, then a capability without content.
AREAS = u32(2, 0) + u64(0, 0x1000) + u64(0x3000, 0x1000)
CHAIN = (
    u32(88, 0xF, 2, 32)
    + u64(BAR, 2 << 40)
    + (u16(SPARSE_MMAP, 1) + u32(80) + AREAS)
    + (u16(MSIX_MAPPABLE, 1) + u32(0))
)
CHAINED = RegionInfo(
    2,
    0xF,
    BAR,
    2 << 40,
    (RegionCapability(SPARSE_MMAP, 1, AREAS), RegionCapability(MSIX_MAPPABLE, 1, b"")),
)


def test_a_chain_has_the_layout_of_the_kernel() -> None:
    assert len(CHAIN) == 88
    assert RegionInfo.unpack(CHAIN) == CHAINED
    assert CHAINED.pack() == CHAIN


def test_a_chain_may_start_and_go_on_with_gaps() -> None:
    data = (
        u32(72, 0xF, 2, 40)
        + u64(BAR, 0)
        + b"\xaa" * 8
        + (u16(MSIX_MAPPABLE, 1) + u32(56) + b"\xbb" * 8)
        + (u16(9, 2) + u32(0) + b"contents")
    )
    assert RegionInfo.unpack(data).capabilities == (
        RegionCapability(MSIX_MAPPABLE, 1, b"\xbb" * 8),
        RegionCapability(9, 2, b"contents"),
    )


def test_each_capability_starts_on_a_multiple_of_8() -> None:
    odd = RegionInfo(0, 1, BAR, 0, (RegionCapability(9, 1, b"odd"), RegionCapability(3, 1, b"")))
    assert odd.pack() == (
        u32(56, 9, 0, 32)
        + u64(BAR, 0)
        + (u16(9, 1) + u32(48) + b"odd\0\0\0\0\0")
        + (u16(3, 1) + u32(0))
    )


@pytest.mark.parametrize("room", [88, 89, 4096])
def test_with_room_enough_the_reply_is_whole(room: int) -> None:
    assert CHAINED.pack(room) == CHAIN


@pytest.mark.parametrize("room", [32, 40, 87])
def test_without_room_the_reply_says_how_much_is_needed(room: int) -> None:
    assert CHAINED.pack(room) == u32(88, 0x7, 2, 0) + u64(BAR, 2 << 40)


def test_a_region_without_capabilities_never_says_that_it_has_some() -> None:
    assert RegionInfo(7, 0xB, 256).pack() == u32(32, 0x3, 7, 0) + u64(256, 0)


HEAD = u64(BAR, 0)


@pytest.mark.parametrize(
    "data",
    [
        u32(40, 0xF, 0, 1) + HEAD + u16(3, 1) + u32(0),  # starts inside the fixed part
        u32(40, 0xF, 0, 31) + HEAD + u16(3, 1) + u32(0),
        u32(40, 0xF, 0, 33) + HEAD + u16(3, 1) + u32(0),  # leaves the payload
        u32(40, 0xF, 0, 0xFFFFFFFF) + HEAD + u16(3, 1) + u32(0),
        u32(40, 0xF, 0, 32) + HEAD + u16(3, 1) + u32(32),  # its own successor
        u32(48, 0xF, 0, 40) + HEAD + bytes(8) + u16(3, 1) + u32(32),  # backwards
        u32(40, 0xF, 0, 32) + HEAD + u16(3, 1) + u32(40),
    ],
)
def test_a_chain_that_leads_astray_is_refused(data: bytes) -> None:
    with pytest.raises(OSError, match="bad capability chain") as caught:
        RegionInfo.unpack(data)
    assert caught.value.errno == errno.EINVAL


u32s, u64s = st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)
capability = st.builds(
    RegionCapability,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.binary(max_size=24).map(lambda data: data.ljust(-(-len(data) // 8) * 8, b"\0")),
)


@given(
    st.builds(
        RegionInfo, u32s, st.just(0xF), u64s, u64s, st.lists(capability, min_size=1).map(tuple)
    )
)
def test_any_chain_survives_the_wire(info: RegionInfo) -> None:
    assert RegionInfo.unpack(info.pack()) == info


@given(st.integers(0, 120), u32s | st.integers(0, 120), st.binary(max_size=96))
def test_any_chain_is_read_or_refused(start: int, argsz: int, data: bytes) -> None:
    with contextlib.suppress(OSError, ProtocolError):
        RegionInfo.unpack(u32(argsz, 0xF, 0, start) + HEAD + data)

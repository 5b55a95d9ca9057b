# SPDX-License-Identifier: BSD-3-Clause
"""Every payload of the specification: bytes written by hand against values, both ways."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.messages import (
    DMA_ACCESS,
    REGION_ACCESS,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaRead,
    DmaUnmap,
    DmaWrite,
    IrqInfo,
    IrqSet,
    MigData,
    RegionInfo,
    RegionIoFds,
    RegionWriteMulti,
)
from vfio_user_bridge.protocol import ProtocolError

from .wire import u32, u64

KINDS: list[Any] = [
    *(DmaMap, DmaUnmap, DeviceInfo, RegionInfo, RegionIoFds, IrqInfo, IrqSet),
    *(RegionWriteMulti, DeviceFeature, MigData),
]

PAYLOADS: list[tuple[bytes, Any]] = [
    (u32(32, 3) + u64(0x1000, 0x80000000, 0x2000), DmaMap(3, 0x1000, 0x80000000, 0x2000)),
    (u32(24, 0) + u64(0x80000000, 0x2000), DmaUnmap(0, 0x80000000, 0x2000)),
    (u32(24, 2) + u64(0, 0), DmaUnmap(2, 0, 0)),
    (u32(16, 3, 9, 5), DeviceInfo(3, 9, 5)),
    (u32(32, 3, 7, 0) + u64(256, 7 << 40), RegionInfo(7, 3, 256, 7 << 40)),
    (u32(16, 0, 2, 0), RegionIoFds(2)),
    (u32(16, 9, 2, 33), IrqInfo(2, 9, 33)),
    (u32(20, 0x21, 1, 0, 0), IrqSet(0x21, 1, 0, 0)),
    (u32(23, 0x12, 2, 5, 3) + b"\x01\x00\x01", IrqSet(0x12, 2, 5, 3, b"\x01\x00\x01")),
    (u64(0), RegionWriteMulti(())),
    (
        u64(2)
        + (u64(0x10) + u32(0, 8) + b"01234567")
        + (u64(4) + u32(7, 2) + b"\x06\x04\0\0\0\0\0\0"),
        RegionWriteMulti(((0, 0x10, b"01234567"), (7, 4, b"\x06\x04"))),
    ),
    (u32(16, 0x10001) + u64(5), DeviceFeature(16, 0x10001, u64(5))),
    (u32(8, 0x40001), DeviceFeature(8, 0x40001)),
    (u32(12, 4) + b"data", MigData(4, b"data")),
]


@pytest.mark.parametrize(
    ("data", "value"), PAYLOADS, ids=[type(value).__name__ for _, value in PAYLOADS]
)
def test_payloads_have_the_specified_layout(data: bytes, value: Any) -> None:
    assert type(value).unpack(data) == value
    assert type(value).unpack(memoryview(data)) == value
    assert value.pack() == data


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_that_is_a_byte_short_is_refused(kind: Any) -> None:
    for size in (0, kind.FORMAT.size - 1):
        with pytest.raises(OSError, match="needed") as caught:
            kind.unpack(bytes(size))
        assert caught.value.errno == errno.EINVAL


def test_the_heads_of_transfers_have_the_specified_layout() -> None:
    assert REGION_ACCESS.unpack(u64(0x10) + u32(7, 4)) == (0x10, 7, 4)
    assert DMA_ACCESS.unpack(u64(0x1000, 512)) == (0x1000, 512)


def test_a_read_of_state_asks_without_data() -> None:
    assert MigData.unpack(u32(4096, 4000)) == MigData(4000)


# ---- DMA by messages ------------------------------------------------------------------------


def test_dma_read_asks_and_checks_the_reply() -> None:
    request = DmaRead(0x1000, 4)
    assert request.pack() == u64(0x1000, 4)
    assert request.unpack_reply(u64(0x1000, 4) + b"data") == b"data"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        u64(0x1000, 4),
        u64(0x1000, 4) + b"dat",
        u64(0x1000, 4) + b"data!",
        u64(0x2000, 4) + b"data",
        u64(0x1000, 3) + b"data",
    ],
)
def test_a_reply_to_another_dma_read_breaks_the_protocol(reply: bytes) -> None:
    with pytest.raises(ProtocolError, match="DMA_READ"):
        DmaRead(0x1000, 4).unpack_reply(reply)


def test_dma_write_carries_data_and_checks_the_reply() -> None:
    request = DmaWrite(0x1000, b"data")
    assert request.pack() == u64(0x1000, 4) + b"data"
    request.check_reply(u64(0x1000) + u32(4))  # its count has 4 bytes, only here


@pytest.mark.parametrize("reply", [b"", u64(0x1000), u64(0x1000) + u32(3), u64(0x2000) + u32(4)])
def test_a_reply_to_another_dma_write_breaks_the_protocol(reply: bytes) -> None:
    with pytest.raises(ProtocolError, match="DMA_WRITE"):
        DmaWrite(0x1000, b"data").check_reply(reply)


# ---- Interrupts: argsz says where the data ends ---------------------------------------------


@pytest.mark.parametrize("argsz", [0, 19, 25, 0xFFFFFFFF])
def test_irq_set_with_a_wrong_argsz_is_refused(argsz: int) -> None:
    with pytest.raises(OSError, match=f"argsz {argsz}") as caught:
        IrqSet.unpack(u32(argsz, 0x22, 0, 0, 4) + b"\x01" * 4)
    assert caught.value.errno == errno.EINVAL


def test_irq_set_ignores_what_is_behind_argsz() -> None:
    assert IrqSet.unpack(u32(21, 0x22, 0, 0, 1) + b"\x01rest").data == b"\x01"


# ---- Several writes at once -----------------------------------------------------------------

ONE_WRITE = u64(0) + u32(0, 4) + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        u64(1),
        u64(0) + ONE_WRITE,
        u64(2) + ONE_WRITE,
        u64(1) + ONE_WRITE[:-1],
        u64(1) + ONE_WRITE + b"\0",
        u64((1 << 64) - 1) + ONE_WRITE,
        u64(1) + u64(0) + u32(0, 9) + bytes(8),
        u64(1) + u64(0) + u32(0, 0xFFFFFFFF) + bytes(8),
    ],
)
def test_writes_that_do_not_fill_their_message_are_refused(data: bytes) -> None:
    with pytest.raises(OSError, match="write") as caught:
        RegionWriteMulti.unpack(data)
    assert caught.value.errno == errno.EINVAL


# ---- Properties -----------------------------------------------------------------------------

u32s, u64s = st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)
writes = st.lists(st.tuples(u32s, u64s, st.binary(max_size=8)), max_size=4)
values: st.SearchStrategy[Any] = st.one_of(
    st.builds(DmaMap, u32s, u64s, u64s, u64s),
    st.builds(DmaUnmap, u32s, u64s, u64s),
    st.builds(DeviceInfo, u32s, u32s, u32s),
    st.builds(RegionInfo, u32s, st.integers(0, 7), u64s, u64s),
    st.builds(RegionIoFds, u32s, u32s, u32s),
    st.builds(IrqInfo, u32s, u32s, u32s),
    st.builds(IrqSet, u32s, u32s, u32s, u32s, st.binary()),
    st.builds(RegionWriteMulti, writes.map(tuple)),
    st.builds(DeviceFeature, u32s, u32s, st.binary()),
    st.builds(MigData, u32s, st.binary()),
)


@given(values)
def test_any_value_survives_the_wire(value: Any) -> None:
    assert type(value).unpack(value.pack()) == value


@given(st.sampled_from(KINDS), st.binary(max_size=96))
def test_any_bytes_are_a_value_or_refused(kind: Any, data: bytes) -> None:
    with contextlib.suppress(OSError, ProtocolError):
        kind.unpack(data)

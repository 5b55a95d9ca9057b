# SPDX-License-Identifier: BSD-3-Clause
"""The rules of DMA_MAP and DMA_UNMAP, over a real connection."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator

import pytest

from vfio_user_bridge.limits import Limits
from vfio_user_bridge.messages import DmaMap
from vfio_user_bridge.state import State

from . import client as c
from .conversation import Conversation, conversation
from .descriptors import memory_files
from .fake_device import FakeDevice
from .wire import dma_map, dma_unmap, u32, u64

PAGE = 4096
TOP = 1 << 64
MIB = 1 << 20
ALL = 2


@pytest.fixture
def talk() -> Iterator[Conversation]:
    with conversation() as talk:
        yield talk


def unmapped(talk: Conversation) -> list[int]:
    """The addresses of the maps that the device was told to give back."""
    return [request.address for _, request in talk.device.asked("dma_unmap")]


# ---- Map ------------------------------------------------------------------------------------


def test_a_map_reaches_the_device_with_its_file(talk: Conversation) -> None:
    with memory_files(1) as files:
        payload = dma_map(0x80000000, PAGE, offset=3 * PAGE, flags=1)
        assert talk.client.ask(c.DMA_MAP, payload, files) == b""
        expected = DmaMap(1, 3 * PAGE, 0x80000000, PAGE)
        assert talk.device.calls == [("dma_map", expected, os.fstat(files[0]).st_ino)]


def test_a_map_without_a_file_is_welcome(talk: Conversation) -> None:
    assert talk.client.ask(c.DMA_MAP, dma_map(TOP - PAGE, PAGE)) == b""
    assert talk.device.calls == [("dma_map", DmaMap(3, 0, TOP - PAGE, PAGE), None)]


def test_a_map_whose_file_cannot_be_written_down_is_not_made(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_state: State) -> None:
        raise OSError(errno.ENFILE, "too many")

    with memory_files(1) as files:
        with monkeypatch.context() as patch:
            patch.setattr(State, "write_down", full)
            assert talk.client.refused(c.DMA_MAP, dma_map(0, PAGE), files) == errno.ENFILE
        assert talk.device.calls == []
        assert talk.client.ask(c.DMA_MAP, dma_map(0, PAGE), files) == b""


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (dma_map(0, 0), errno.EINVAL),
        (dma_map(1, PAGE), errno.EINVAL),
        (dma_map(0, PAGE + 1), errno.EINVAL),
        (dma_map(0, PAGE, offset=1), errno.EINVAL),
        (dma_map(0, PAGE, flags=0), errno.EINVAL),
        (dma_map(0, PAGE, flags=7), errno.EINVAL),
        (dma_map(0, PAGE, flags=1 << 31), errno.EINVAL),
        (dma_map(0, PAGE)[:-1], errno.EINVAL),
        (b"", errno.EINVAL),
        (dma_map(TOP - PAGE, 2 * PAGE), errno.EOVERFLOW),
        (dma_map(0, PAGE, offset=TOP - PAGE), errno.EOVERFLOW),
    ],
    ids=str,
)
def test_maps_that_can_not_be(talk: Conversation, payload: bytes, code: int) -> None:
    with memory_files(1) as files:
        assert talk.client.refused(c.DMA_MAP, payload, files) == code
        assert talk.client.refused(c.DMA_MAP, payload) == code
    assert talk.device.calls == []


def test_a_map_has_one_file(talk: Conversation) -> None:
    with memory_files(2) as files:
        assert talk.client.refused(c.DMA_MAP, dma_map(0, PAGE), files) == errno.EINVAL
    assert talk.device.calls == []


@pytest.mark.parametrize(("address", "size"), [(4, 4), (5, 1), (0, 5), (7, 4), (0, 64)])
def test_a_map_over_another_exists_already(talk: Conversation, address: int, size: int) -> None:
    talk.client.ask(c.DMA_MAP, dma_map(4 * PAGE, 4 * PAGE))
    again = dma_map(address * PAGE, size * PAGE)
    assert talk.client.refused(c.DMA_MAP, again) == errno.EEXIST
    assert len(talk.device.calls) == 1


def test_maps_side_by_side_are_two(talk: Conversation) -> None:
    for address in (4, 3, 5):
        assert talk.client.ask(c.DMA_MAP, dma_map(address * PAGE, PAGE)) == b""


def test_there_are_as_many_maps_as_agreed_on() -> None:
    with conversation(FakeDevice(max_dma_maps=3), negotiated=False) as talk:
        talk.client.negotiate({"max_dma_maps": 2})
        for address in (0, PAGE):
            talk.client.ask(c.DMA_MAP, dma_map(address, PAGE))
        assert talk.client.refused(c.DMA_MAP, dma_map(2 * PAGE, PAGE)) == errno.ENOSPC
        talk.client.ask(c.DMA_UNMAP, dma_unmap(0, PAGE))
        assert talk.client.ask(c.DMA_MAP, dma_map(2 * PAGE, PAGE)) == b""
        assert talk.client.refused(c.DMA_MAP, dma_map(3 * PAGE, PAGE)) == errno.ENOSPC


# ---- Unmap ----------------------------------------------------------------------------------

THREE = [0, PAGE, 4 * PAGE]


@pytest.fixture
def mapped(talk: Conversation) -> Conversation:
    """With one page mapped at each address of `THREE`."""
    for address in THREE:
        talk.client.ask(c.DMA_MAP, dma_map(address, PAGE))
    return talk


@pytest.mark.parametrize(
    ("payload", "gone"),
    [
        (dma_unmap(PAGE, PAGE), [PAGE]),
        (dma_unmap(0, 2 * PAGE), [0, PAGE]),
        (dma_unmap(0, 1 << 63), THREE),
        (dma_unmap(2 * PAGE, PAGE), []),
        (dma_unmap(0, 0, flags=ALL), THREE),
    ],
)
def test_whole_maps_in_a_range_go(mapped: Conversation, payload: bytes, gone: list[int]) -> None:
    assert mapped.client.ask(c.DMA_UNMAP, payload) == payload  # "the original DMA entry"
    assert unmapped(mapped) == gone
    for address in THREE:
        again = mapped.client.call(c.DMA_MAP, dma_map(address, PAGE))
        assert again.error == (0 if address in gone else errno.EEXIST)


@pytest.mark.parametrize(
    "payload",
    [
        dma_unmap(0, PAGE // 2),
        dma_unmap(PAGE // 2, PAGE),
        dma_unmap(0, PAGE + 1),
        dma_unmap(0, 0),
        dma_unmap(TOP - PAGE, 2 * PAGE),
        dma_unmap(0, PAGE, flags=1),
        dma_unmap(0, 0, flags=3),
        dma_unmap(0, 0, flags=1 << 31),
        dma_unmap(0, PAGE, flags=ALL),
        dma_unmap(PAGE, 0, flags=ALL),
        dma_unmap(0, PAGE)[:-1],
    ],
)
def test_an_unmap_that_can_not_be_takes_nothing(mapped: Conversation, payload: bytes) -> None:
    assert mapped.client.refused(c.DMA_UNMAP, payload) == errno.EINVAL
    assert unmapped(mapped) == []


def test_the_reply_says_how_long_it_is_whatever_room_there_was(mapped: Conversation) -> None:
    request = u32(4096, 0) + u64(0, PAGE)
    assert mapped.client.ask(c.DMA_UNMAP, request) == dma_unmap(0, PAGE)


def test_an_unmap_that_the_device_refuses_leaves_the_map(mapped: Conversation) -> None:
    mapped.device.failures["dma_unmap"] = OSError(errno.EIO, "stuck")
    assert mapped.client.refused(c.DMA_UNMAP, dma_unmap(0, PAGE)) == errno.EIO
    del mapped.device.failures["dma_unmap"]
    assert mapped.client.refused(c.DMA_MAP, dma_map(0, PAGE)) == errno.EEXIST
    assert mapped.client.ask(c.DMA_UNMAP, dma_unmap(0, PAGE))


# ---- Guest RAM without a file ---------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_private_ram_is_told_of_once(talk: Conversation, caplog: pytest.LogCaptureFixture) -> None:
    for address in (0, 16 * MIB):
        assert talk.client.ask(c.DMA_MAP, dma_map(address, 16 * MIB)) == b""
    (warning,) = warnings(caplog)
    assert "fake" in warning
    assert "memory-backend-memfd" in warning
    assert "share=on" in warning


def test_what_is_no_ram_is_not_told_of(
    talk: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    talk.client.ask(c.DMA_MAP, dma_map(0, 128 << 10))  # VGA, a small BAR
    talk.client.ask(c.DMA_MAP, dma_map(MIB, MIB, flags=1))  # a ROM
    with memory_files(1) as files:
        talk.client.ask(c.DMA_MAP, dma_map(2 * MIB, MIB), files)
    talk.client.ask(c.DMA_MAP, dma_map(4 * MIB, 4 * MIB))  # another device's BAR, after RAM
    assert warnings(caplog) == []


def test_ram_that_is_shared_is_none_that_is_private_however_many_files_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with conversation(limits=Limits(files=0)) as talk, memory_files(1) as files:
        talk.client.ask(c.DMA_MAP, dma_map(0, MIB), files)
        talk.client.ask(c.DMA_MAP, dma_map(4 * MIB, 4 * MIB))
    assert warnings(caplog) == []

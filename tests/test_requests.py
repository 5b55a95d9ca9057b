# SPDX-License-Identifier: BSD-3-Clause
"""Each request's rules: what reaches the device, what is refused and with which errno."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from vfio_user_bridge.messages import DeviceFeature, IrqSet

from . import client as c
from .conversation import Conversation, conversation
from .descriptors import eventfds, inodes
from .fake_device import FakeDevice
from .wire import region, set_irqs, u16, u32, u64

BAR0, BAR2, ABSENT, ROM, CONFIG, NONE = 0, 2, 3, 6, 7, 9
MIB = 1 << 20


@pytest.fixture
def talk() -> Iterator[Conversation]:
    with conversation() as talk:
        yield talk


# ---- Device, region and interrupt info ------------------------------------------------------


def test_device_info_says_how_many_there_are(talk: Conversation) -> None:
    assert talk.client.ask(c.GET_INFO, u32(16, 0, 0, 0)) == u32(16, 3, 9, 5)
    assert talk.client.ask(c.GET_INFO, u32(64, 0, 0, 0)) == u32(16, 3, 9, 5)


@pytest.mark.parametrize(
    ("command", "least"),
    [
        (c.GET_INFO, 16),
        (c.GET_REGION_INFO, 32),
        (c.GET_REGION_IO_FDS, 16),
        (c.GET_IRQ_INFO, 16),
        (c.MIG_DATA_READ, 8),
    ],
)
def test_a_reply_needs_room_for_its_fixed_part(
    talk: Conversation, command: int, least: int
) -> None:
    for argsz, size in [(least - 1, least), (0, least), (least, least - 1), (least, 0)]:
        payload = u32(argsz).ljust(least, b"\0")[:size]
        assert talk.client.refused(command, payload) == errno.EINVAL
    reply = talk.client.call(command, u32(least).ljust(least, b"\0"))
    for fd in reply.fds:
        os.close(fd)
    assert reply.flags == c.REPLY


@pytest.mark.parametrize(
    ("index", "reply"),
    [
        (ABSENT, u32(32, 0, ABSENT, 0) + u64(0, 0)),
        (ROM, u32(32, 1, ROM, 0) + u64(0x800, 0)),
        (CONFIG, u32(32, 3, CONFIG, 0) + u64(256, 0)),
    ],
)
def test_region_info(talk: Conversation, index: int, reply: bytes) -> None:
    assert talk.client.ask(c.GET_REGION_INFO, u32(32, 0, index, 0) + u64(0, 0)) == reply


def test_a_region_to_map_comes_with_its_file(talk: Conversation) -> None:
    reply = talk.client.call(c.GET_REGION_INFO, u32(32, 0, BAR0, 0) + u64(0, 0))
    assert reply.payload == u32(32, 7, BAR0, 0) + u64(0x4000, 0x10000)
    assert inodes(reply.fds) == inodes([talk.device.bar])
    os.close(reply.fds[0])


def test_the_file_comes_when_the_capabilities_fit(talk: Conversation) -> None:
    short = talk.client.ask(c.GET_REGION_INFO, u32(39, 0, BAR2, 0) + u64(0, 0))
    assert short == u32(40, 7, BAR2, 0) + u64(4 * MIB, 0x20000)
    reply = talk.client.call(c.GET_REGION_INFO, u32(40, 0, BAR2, 0) + u64(0, 0))
    assert reply.payload == (u32(40, 0xF, BAR2, 32) + u64(4 * MIB, 0x20000) + (u16(3, 1) + u32(0)))
    assert inodes(reply.fds) == inodes([talk.device.bar])
    os.close(reply.fds[0])


def test_who_takes_no_files_maps_no_regions() -> None:
    with conversation(negotiated=False) as talk:
        talk.client.negotiate({"max_msg_fds": 0})
        info = talk.client.ask(c.GET_REGION_INFO, u32(32, 0, BAR0, 0) + u64(0, 0))
        assert info == u32(32, 3, BAR0, 0) + u64(0x4000, 0x10000)
        assert talk.device.asked("region_fd") == []


def test_there_are_no_io_fds(talk: Conversation) -> None:
    assert talk.client.ask(c.GET_REGION_IO_FDS, u32(64, 0, BAR0, 0)) == u32(16, 0, BAR0, 0)
    for payload in (u32(64, 1, BAR0, 0), u32(64, 0, BAR0, 1), u32(64, 0, NONE, 0)):
        assert talk.client.refused(c.GET_REGION_IO_FDS, payload) == errno.EINVAL


@pytest.mark.parametrize(("index", "flags", "count"), [(0, 7, 1), (1, 9, 4), (2, 9, 33)])
def test_irq_info(talk: Conversation, index: int, flags: int, count: int) -> None:
    reply = talk.client.ask(c.GET_IRQ_INFO, u32(16, 0, index, 0))
    assert reply == u32(16, flags, index, count)


@pytest.mark.parametrize("index", [3, 4, 5, 9, 0xFFFFFFFF])
def test_what_does_not_exist_is_refused(talk: Conversation, index: int) -> None:
    """Of the types that VFIO has, error and request interrupts too, as the kernel refuses them."""
    assert talk.client.refused(c.GET_IRQ_INFO, u32(16, 0, index, 0)) == errno.EINVAL
    beyond = max(index, NONE)
    region_info = u32(32, 0, beyond, 0) + u64(0, 0)
    assert talk.client.refused(c.GET_REGION_INFO, region_info) == errno.EINVAL


# ---- Region access --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "offset", "count"), [(CONFIG, 0, 256), (CONFIG, 255, 1), (ROM, 4, 8), (BAR2, 0, MIB)]
)
def test_a_read_inside_a_region(talk: Conversation, index: int, offset: int, count: int) -> None:
    reply = talk.client.ask(c.REGION_READ, region(offset, index, count))
    assert reply == region(offset, index, b"\xa5" * count)
    assert talk.device.calls == [("region_read", index, offset, count)]


@pytest.mark.parametrize(("index", "offset"), [(CONFIG, 0), (CONFIG, 252), (BAR0, 0x3FFC)])
def test_a_write_inside_a_region(talk: Conversation, index: int, offset: int) -> None:
    reply = talk.client.ask(c.REGION_WRITE, region(offset, index, b"data"))
    assert reply == region(offset, index, 4)
    assert talk.device.calls == [("region_write", index, offset, b"data")]


OUTSIDE = [
    (CONFIG, 256, 1),
    (CONFIG, 253, 4),
    (CONFIG, (1 << 64) - 4, 4),
    (ABSENT, 0, 1),
    (NONE, 0, 4),
    (0xFFFFFFFF, 0, 4),
    (BAR2, 0, MIB + 4),  # inside, but more than max_data_xfer_size
    (BAR2, 4 * MIB - 1, 2),
]


@pytest.mark.parametrize(("index", "offset", "count"), [*OUTSIDE, (BAR2, 0, 0xFFFFFFFF)])
def test_a_read_outside_is_refused(talk: Conversation, index: int, offset: int, count: int) -> None:
    assert talk.client.refused(c.REGION_READ, region(offset, index, count)) == errno.EINVAL
    assert talk.device.calls == []


@pytest.mark.parametrize(("index", "offset", "count"), [*OUTSIDE, (ROM, 0, 4)])
def test_a_write_outside_is_refused(
    talk: Conversation, index: int, offset: int, count: int
) -> None:
    payload = region(offset, index, bytes(count))
    assert talk.client.refused(c.REGION_WRITE, payload) == errno.EINVAL
    assert talk.device.calls == []


def test_a_write_has_as_much_data_as_it_says(talk: Conversation) -> None:
    for payload in (b"", region(0, CONFIG, b"data")[:15], region(0, CONFIG, b"data")[:-1]):
        assert talk.client.refused(c.REGION_WRITE, payload) == errno.EINVAL
    assert talk.client.refused(c.REGION_WRITE, region(0, CONFIG, b"data") + b"!") == errno.EINVAL
    assert talk.client.refused(c.REGION_READ, region(0, CONFIG, 4)[:-1]) == errno.EINVAL
    assert talk.device.calls == []


def writes(*entries: tuple[int, int, bytes]) -> bytes:
    """The payload of REGION_WRITE_MULTI: count, then offset, region, count and 8 bytes each."""
    each = (u64(at) + u32(index, len(data)) + data.ljust(8, b"\0") for index, at, data in entries)
    return u64(len(entries)) + b"".join(each)


def test_several_writes_at_once(talk: Conversation) -> None:
    assert talk.client.ask(c.REGION_WRITE_MULTI, writes()) == u64(0)
    payload = writes((BAR0, 0, b"8 bytes."), (CONFIG, 4, b"\6"), (BAR0, 8, b""))
    assert talk.client.ask(c.REGION_WRITE_MULTI, payload) == u64(3)
    assert talk.device.calls == [
        ("region_write", BAR0, 0, b"8 bytes."),
        ("region_write", CONFIG, 4, b"\6"),
        ("region_write", BAR0, 8, b""),
    ]


@pytest.mark.parametrize("wrong", [(CONFIG, 256, b"x"), (ROM, 0, b"x"), (NONE, 0, b"x")])
def test_several_writes_of_which_one_is_wrong_change_nothing(
    talk: Conversation, wrong: tuple[int, int, bytes]
) -> None:
    payload = writes((BAR0, 0, b"fine"), wrong)
    assert talk.client.refused(c.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert talk.device.calls == []


@pytest.mark.parametrize("capabilities", [{}, {"write_multiple": False}])
def test_several_writes_are_refused_unless_agreed_on(capabilities: dict[str, bool]) -> None:
    with conversation(negotiated=False) as talk:
        talk.client.negotiate(capabilities)
        payload = writes((BAR0, 0, b"fine"))
        assert talk.client.refused(c.REGION_WRITE_MULTI, payload) == errno.EINVAL
        assert talk.device.calls == []


# ---- Interrupts -----------------------------------------------------------------------------

NO_DATA, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX, ERR = 0, 1, 2, 3


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (IrqSet(NO_DATA | TRIGGER, INTX, 0, 0), 0),
        (IrqSet(NO_DATA | UNMASK, INTX, 0, 1), 0),
        (IrqSet(NO_DATA | TRIGGER, MSIX, 5, 28), 0),
        (IrqSet(BOOL | MASK, MSI, 1, 3, b"\1\0\1"), 0),
        (IrqSet(EVENTFD | TRIGGER, MSI, 0, 4), 4),
        (IrqSet(EVENTFD | TRIGGER, MSIX, 32, 1), 1),
        (IrqSet(EVENTFD | UNMASK, INTX, 0, 1), 1),
        (IrqSet(EVENTFD | TRIGGER, MSIX, 0, 33), 0),  # takes their eventfds away
    ],
)
def test_interrupts_that_can_be_set(talk: Conversation, request_: IrqSet, count: int) -> None:
    r = request_
    with eventfds(count) as events:
        payload = set_irqs(r.flags, r.index, r.start, r.count, r.data)
        assert talk.client.ask(c.SET_IRQS, payload, events) == b""
        assert talk.device.calls == [("set_irqs", request_, inodes(events))]


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        # exactly one DATA flag, exactly one ACTION flag, no others
        (set_irqs(0, MSI, 0, 1), 0),
        (set_irqs(NO_DATA, MSI, 0, 1), 0),
        (set_irqs(TRIGGER, MSI, 0, 1), 0),
        (set_irqs(NO_DATA | BOOL | TRIGGER, MSI, 0, 1, b"\1"), 0),
        (set_irqs(NO_DATA | MASK | TRIGGER, MSI, 0, 1), 0),
        (set_irqs(NO_DATA | TRIGGER | 64, MSI, 0, 1), 0),
        (set_irqs(NO_DATA | TRIGGER | 1 << 31, MSI, 0, 1), 0),
        # a type that exists, interrupts that exist
        (set_irqs(NO_DATA | TRIGGER, 5, 0, 1), 0),
        (set_irqs(NO_DATA | TRIGGER, ERR, 0, 1), 0),
        (set_irqs(NO_DATA | TRIGGER, ERR, 0, 0), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 4, 1), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 3, 2), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 1, 0xFFFFFFFF), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 0xFFFFFFFF, 1), 0),
        # no interrupts at all: only to disable
        (set_irqs(NO_DATA | MASK, MSI, 0, 0), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 1, 0), 0),
        (set_irqs(EVENTFD | TRIGGER, MSI, 0, 0), 0),
        (set_irqs(BOOL | TRIGGER, MSI, 0, 0), 0),
        # data for each interrupt, and only where there is data
        (set_irqs(BOOL | TRIGGER, MSI, 0, 2, b"\1"), 0),
        (set_irqs(BOOL | TRIGGER, MSI, 0, 2), 0),
        (set_irqs(NO_DATA | TRIGGER, MSI, 0, 1, b"\1"), 0),
        (set_irqs(EVENTFD | TRIGGER, MSI, 0, 1, u32(3)), 0),
        # as many eventfds as interrupts, and only with EVENTFD
        (set_irqs(EVENTFD | TRIGGER, MSI, 0, 2), 1),
        (set_irqs(EVENTFD | TRIGGER, MSI, 0, 2), 3),
        (set_irqs(NO_DATA | TRIGGER, MSI, 0, 1), 1),
        (set_irqs(BOOL | TRIGGER, MSI, 0, 1, b"\1"), 1),
        # argsz within the payload
        (u32(19, NO_DATA | TRIGGER, MSI, 0, 1), 0),
        (u32(21, BOOL | TRIGGER, MSI, 0, 1), 0),
        (u32(20, NO_DATA | TRIGGER, MSI, 0), 0),
    ],
)
def test_interrupts_that_can_not(talk: Conversation, payload: bytes, count: int) -> None:
    with eventfds(count) as events:
        assert talk.client.refused(c.SET_IRQS, payload, events) == errno.EINVAL
    assert talk.device.calls == []


# ---- Reset, features and migration ----------------------------------------------------------

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18


def test_reset(talk: Conversation) -> None:
    assert talk.client.ask(c.RESET) == b""
    assert talk.device.calls == [("reset",)]


def test_a_feature_that_is_read_comes_with_its_data(talk: Conversation) -> None:
    assert talk.client.ask(c.FEATURE, u32(64, GET | 1)) == u32(16, GET | 1) + b"8 bytes."
    assert talk.client.ask(c.FEATURE, u32(16, GET | 1)) == u32(16, GET | 1) + b"8 bytes."
    assert talk.client.refused(c.FEATURE, u32(15, GET | 1)) == errno.EINVAL


@pytest.mark.parametrize("flags", [SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET])
def test_a_feature_that_is_set_or_probed_is_echoed(talk: Conversation, flags: int) -> None:
    payload = u32(16, flags | 2) + u32(1, 0)
    assert talk.client.ask(c.FEATURE, payload) == payload
    assert talk.device.calls == [("feature", DeviceFeature(16, flags | 2, u32(1, 0)))]


@pytest.mark.parametrize("flags", [0, GET | SET, GET | 1 << 19, SET | 1 << 31])
def test_a_feature_with_other_flags_is_refused(talk: Conversation, flags: int) -> None:
    assert talk.client.refused(c.FEATURE, u32(64, flags | 1)) == errno.EINVAL
    assert talk.device.calls == []


@pytest.mark.parametrize("flags", [GET, SET, PROBE | GET])
def test_a_feature_needs_room_for_its_fixed_part(talk: Conversation, flags: int) -> None:
    assert talk.client.refused(c.FEATURE, u32(7, flags | 1)) == errno.EINVAL
    assert talk.client.refused(c.FEATURE, u32(8)) == errno.EINVAL
    assert talk.device.calls == []


def test_an_unknown_feature_is_refused_as_the_kernel_does(talk: Conversation) -> None:
    talk.device.feature = super(FakeDevice, talk.device).feature  # type: ignore[method-assign]
    assert talk.client.refused(c.FEATURE, u32(64, GET | 1)) == errno.ENOTTY


def test_the_state_of_a_device_can_be_read_in_pieces(talk: Conversation) -> None:
    assert talk.client.ask(c.MIG_DATA_READ, u32(12, 4)) == u32(12, 4) + b"stat"
    assert talk.client.ask(c.MIG_DATA_READ, u32(64, 56)) == u32(13, 5) + b"state"


@pytest.mark.parametrize(("argsz", "size"), [(11, 4), (8, 1), (MIB + 64, MIB + 1), (64, 1 << 31)])
def test_a_piece_that_does_not_fit_is_refused(talk: Conversation, argsz: int, size: int) -> None:
    assert talk.client.refused(c.MIG_DATA_READ, u32(argsz, size)) == errno.EINVAL
    assert talk.device.calls == []


def test_the_state_of_a_device_can_be_written(talk: Conversation) -> None:
    assert talk.client.ask(c.MIG_DATA_WRITE, u32(13, 5) + b"state") == b""
    for wrong in (u32(12, 5) + b"stat", u32(13, 4) + b"state", u32(12)):
        assert talk.client.refused(c.MIG_DATA_WRITE, wrong) == errno.EINVAL
    too_much = u32(MIB + 9, MIB + 1) + bytes(MIB + 1)
    assert talk.client.refused(c.MIG_DATA_WRITE, too_much) == errno.EINVAL
    assert talk.device.calls == [("migration_write", b"state")]

# SPDX-License-Identifier: BSD-3-Clause
"""Functions without a reset of their own are reset by their bus, when nobody there is at work."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from integration import devices
from tests import client as wire
from tests.wire import u32
from vfio_user_bridge.device import DeviceFlags, PciRegion

from .bridge import CONFIG, Bridge, RemoteDevice, bind, lines

FIRST, SECOND = devices.E1000_PORT_PAIR
RAL0 = 0x5400  # e1000: the card's own address, low half; a reset brings it back
MARK = 0x1234


@pytest.fixture(scope="module")
def pair() -> Iterator[Bridge]:
    bind(FIRST, SECOND)
    with Bridge(FIRST, SECOND) as serving:
        yield serving


def mark(device: RemoteDevice) -> int:
    """Change the card's address; gives what it was."""
    device.enable()
    before = device.read(PciRegion.BAR0, RAL0, 4)
    device.write(PciRegion.BAR0, RAL0, 4, MARK)
    assert device.read(PciRegion.BAR0, RAL0, 4) == MARK != before
    return before


def has_reset(device: RemoteDevice) -> bool:
    info = device.wire.ask(wire.GET_INFO, u32(16, 0, 0, 0))
    return bool(struct.unpack("=IIII", info)[1] & DeviceFlags.RESET)


def test_the_bus_is_reset_if_the_others_are_at_rest(pair: Bridge) -> None:
    with pair.client(FIRST) as first, pair.client(SECOND) as second:
        assert has_reset(first)
        address = mark(first)
        second.write(CONFIG, 4, 2, second.read(CONFIG, 4, 2) | 4)  # at work: a bus master
        assert first.wire.refused(wire.RESET) == errno.EBUSY
        assert first.read(PciRegion.BAR0, RAL0, 4) == MARK
        second.write(CONFIG, 4, 2, second.read(CONFIG, 4, 2) & ~4)
        first.reset()
        first.enable()
        assert first.read(PciRegion.BAR0, RAL0, 4) == address


def test_the_next_client_finds_it_reset(pair: Bridge) -> None:
    with pair.client(FIRST) as first:
        address = mark(first)
    with pair.client(FIRST) as first:
        first.enable()
        assert first.read(PciRegion.BAR0, RAL0, 4) == address


def test_what_can_not_be_reset_says_so_once() -> None:
    bind(devices.EDU_ALONE)  # on the root bus, which nobody resets
    with Bridge(devices.EDU_ALONE) as serving:
        for _ in range(2):
            with serving.client(devices.EDU_ALONE) as device:
                assert not has_reset(device)
                assert device.wire.refused(wire.RESET) == errno.ENODEV
        assert len(lines(serving.log(), "WARNING .*no way to reset it")) == 1

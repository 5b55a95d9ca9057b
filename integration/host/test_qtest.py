# SPDX-License-Identifier: BSD-3-Clause
"""The qtest driver itself, against devices of QEMU's own."""

from __future__ import annotations

import pytest

from integration.pci import CAP_ID_MSI, CAP_ID_MSIX, PciHost
from integration.qtest import Qtest, QtestError

MESSAGES = 0x200000
CAP_ID_AER = 0x0001

# Registers of Intel's 82574 (e1000e).
ICS, IMS, IVAR = 0xC8, 0xD0, 0xE4
OTHER = 1 << 24
OTHER_TO_VECTOR_2 = (0x8 | 2) << 16


def test_guest_memory() -> None:
    with Qtest() as qtest:
        qtest.write(0x100000, b"some bytes")
        assert qtest.read(0x100000, 11) == b"some bytes\0"
        assert qtest.load(0x100000, 4) == int.from_bytes(b"some", "little")
        qtest.store(0x100000, 8, 0x1122334455667788)
        assert [qtest.load(0x100000, size) for size in (1, 2)] == [0x88, 0x7788]
        qtest.memset(0x100001, 3, 0xEE)
        assert qtest.read(0x100000, 5) == b"\x88\xee\xee\xee\x44"


def test_bars_of_every_kind_and_extended_config_space() -> None:
    with Qtest("-device", "e1000e,addr=4.0", "-device", "qemu-xhci,addr=5.0") as qtest:
        host = PciHost(qtest)
        card, usb = host.device(4), host.device(5)
        card.enable()
        usb.enable()
        assert {number: (bar.size, bar.is_io) for number, bar in card.bars.items()} == {
            0: (0x20000, False),
            1: (0x20000, False),
            2: (32, True),
            3: (0x4000, False),
        }
        assert {number: (bar.size, bar.flags) for number, bar in usb.bars.items()} == {
            0: (0x4000, 0x4)
        }
        assert usb.load(0, 0, 1) == 0x40  # CAPLENGTH: a BAR of 64 bits answers where it was put
        card.store(2, 0, 4, IVAR)  # IOADDR, then IODATA
        card.store(2, 4, 4, OTHER_TO_VECTOR_2)
        assert card.load(0, IVAR, 4) == OTHER_TO_VECTOR_2
        assert {CAP_ID_MSI, CAP_ID_MSIX} < card.capabilities().keys()
        assert card.read_config(0x100, 2) == CAP_ID_AER


def test_msix_arrives_in_memory() -> None:
    with Qtest("-device", "e1000e,addr=4.0") as qtest:
        card = PciHost(qtest).device(4)
        card.enable()
        card.enable_msix({0: (MESSAGES, 0x11111111), 2: (MESSAGES + 8, 0x22222222)})
        card.store(0, IVAR, 4, OTHER_TO_VECTOR_2)
        card.store(0, IMS, 4, OTHER)
        card.store(0, ICS, 4, OTHER)
        assert qtest.until(lambda: qtest.load(MESSAGES + 8, 4) == 0x22222222)
        assert qtest.load(MESSAGES, 4) == 0


def test_errors_say_what_qemu_said() -> None:
    with Qtest() as qtest, pytest.raises(QtestError, match="FAIL"):
        qtest.command("irq_intercept_in", "nothing")
    with Qtest("-device", "abacus") as qtest, pytest.raises(QtestError, match="abacus"):
        qtest.load(0, 4)

# SPDX-License-Identifier: BSD-3-Clause
"""Devices that interrupt when told to, by their registers: as much of a driver as that takes.

Registers of network cards are named as in Linux's drivers (e1000_regs.h), and do what Intel's
datasheets of the 82540, 82574 and 82576 say.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from integration.pci import PciDevice
from integration.qtest import Qtest

QUEUES = 0x1000000  # in the guest's memory: where queues and rings go


class Interrupter(ABC):
    """A device that has its BARs, and is bus master."""

    #: how many MSI-X vectors to enable, and those of them to fire
    vectors: ClassVar[int] = 0
    fired: ClassVar[Sequence[int]] = ()

    def __init__(self, qtest: Qtest, pci: PciDevice) -> None:
        self.qtest = qtest
        self.pci = pci

    def get(self, register: int, size: int = 4) -> int:
        return self.pci.load(0, register, size)

    def set(self, register: int, value: int, size: int = 4) -> None:
        self.pci.store(0, register, size, value)

    def start(self) -> None:  # noqa: B027 - most are ready as they come
        """Make it ready to fire."""

    def start_msix(self) -> None:
        """Make it ready to fire MSI-X vectors, once they are enabled."""
        self.start()

    @abstractmethod
    def fire(self, vector: int = 0) -> None:
        """Interrupt: by this MSI-X vector, or by the only line or message there is."""

    def acknowledge(self) -> None:  # noqa: B027 - only lines need it
        """Take the interrupt back: the line goes low."""


class E1000(Interrupter):
    """Link status change, which software may raise."""

    ICR, ICS, IMS, IMC = 0xC0, 0xC8, 0xD0, 0xD8
    LSC = 0x4

    def fire(self, vector: int = 0) -> None:  # noqa: ARG002 - it has one
        self.set(self.IMS, self.LSC)
        self.set(self.ICS, self.LSC)

    def acknowledge(self) -> None:
        self.set(self.IMC, 0xFFFFFFFF)
        self.get(self.ICR)  # cleared by reading


class Rtl8139(Interrupter):
    """The timer's interrupt: nothing else is raised without a packet."""

    INTR_MASK, INTR_STATUS, TIMER, TIMER_INTERVAL = 0x3C, 0x3E, 0x48, 0x54
    PCS_TIMEOUT = 0x4000

    def fire(self, vector: int = 0) -> None:  # noqa: ARG002 - it has one
        self.set(self.INTR_MASK, self.PCS_TIMEOUT, 2)
        self.set(self.TIMER_INTERVAL, 1000)  # 30 us, at 33 MHz
        self.set(self.TIMER, 0)

    def acknowledge(self) -> None:
        self.set(self.TIMER_INTERVAL, 0)
        self.set(self.INTR_STATUS, self.PCS_TIMEOUT, 2)


class E1000e(E1000):
    """MSI-X: two receive queues, two transmit queues, and all else; each a vector of its own."""

    vectors, fired = 5, range(5)
    CTRL_EXT, EIAC, IVAR = 0x18, 0xDC, 0xE4
    FIRST_CAUSE = 20  # RxQ0
    CAUSES = 0x1F << FIRST_CAUSE
    IVAR_VALID = 0x8

    def start_msix(self) -> None:
        self.set(self.IVAR, sum((self.IVAR_VALID | n) << 4 * n for n in range(self.vectors)))
        self.set(self.EIAC, self.CAUSES)  # cleared by the message itself

    def fire(self, vector: int = 0) -> None:
        if not self.get(self.IVAR):
            super().fire()
            return
        cause = 1 << self.FIRST_CAUSE + vector
        self.set(self.IMS, cause)
        self.set(self.ICS, cause)


class Igb(Interrupter):
    """Every vector by its bit."""

    vectors, fired = 10, range(10)
    GPIE, EICS, EIMS, EIAC = 0x1514, 0x1520, 0x1524, 0x152C
    MSIX_MODE = 0x10

    def start(self) -> None:
        self.set(self.GPIE, self.MSIX_MODE)
        self.set(self.EIAC, (1 << self.vectors) - 1)  # cleared by the message itself

    def fire(self, vector: int = 0) -> None:
        self.set(self.EIMS, 1 << vector)
        self.set(self.EICS, 1 << vector)


class IgbVf(Igb):
    """VTEICS, VTEIMS and VTEIAC are where the card has those without VT; there is no GPIE."""

    vectors, fired = 3, range(3)

    def start(self) -> None:
        self.set(self.EIAC, (1 << self.vectors) - 1)


class Nvme(Interrupter):
    """A queue pair for each vector; a command that there isn't completes at once, with an error.

    Registers and commands are those of the NVM Express Base Specification 1.4.
    """

    vectors = 65  # the administrative queues' and 64 others'
    fired = (0, 1, 7, 8, 15, 16, 63, 64)  # where messages of 8 or 16 eventfds begin and end
    ENTRIES = 16
    CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
    ENABLE = 0x00460001  # entries of 64 and 16 bytes
    CREATE_SQ, CREATE_CQ, UNKNOWN = 0x01, 0x05, 0x7F
    CONTIGUOUS, INTERRUPTS = 0x1, 0x2
    COMMAND = struct.Struct("<I20xQ8xII16x")  # dword 0, PRP1, dwords 10 and 11

    def start(self) -> None:
        self._tails = [0] * self.vectors
        last = self.ENTRIES - 1
        self.set(self.CC, 0)
        self.qtest.memset(QUEUES, 0x2000 * self.vectors, 0)
        self.set(self.AQA, last << 16 | last)
        for register, address in ((self.ASQ, self._sq(0)), (self.ACQ, self._cq(0))):
            self.set(register, address)
            self.set(register + 4, 0)
        self.set(self.CC, self.ENABLE)
        assert self.qtest.until(lambda: self.get(self.CSTS) == 1)
        for number in self.fired[1:]:
            size = last << 16 | number
            flags = number << 16 | self.CONTIGUOUS
            self._submit(0, self.CREATE_CQ, self._cq(number), size, flags | self.INTERRUPTS)
            self._submit(0, self.CREATE_SQ, self._sq(number), size, flags)

    def fire(self, vector: int = 0) -> None:
        self._submit(vector, self.UNKNOWN)

    def _sq(self, number: int) -> int:
        return QUEUES + 0x2000 * number

    def _cq(self, number: int) -> int:
        return QUEUES + 0x2000 * number + 0x1000

    def _submit(self, queue: int, opcode: int, address: int = 0, *dwords: int) -> None:
        """Have one command executed, and take its completion out of the queue."""
        tail = self._tails[queue]
        following = (tail + 1) % self.ENTRIES
        size, flags = dwords or (0, 0)
        self.qtest.write(
            self._sq(queue) + tail * 64, self.COMMAND.pack(opcode, address, size, flags)
        )
        completion = self._cq(queue) + tail * 16 + 12
        before = self.qtest.load(completion, 4)
        self.set(self.DOORBELLS + 8 * queue, following)
        assert self.qtest.until(lambda: self.qtest.load(completion, 4) != before)
        self.set(self.DOORBELLS + 8 * queue + 4, following)
        self._tails[queue] = following


class Xhci(Interrupter):
    """The command ring's interrupter; the others would need a USB device.

    Registers and blocks are those of the eXtensible Host Controller Interface, revision 1.1.
    """

    vectors, fired = 16, range(1)
    COMMANDS, EVENTS, SEGMENTS = QUEUES, QUEUES + 0x1000, QUEUES + 0x2000
    CONTEXTS = QUEUES + 0x3000
    USBCMD, USBSTS, CRCR, DCBAAP, CONFIG = 0x00, 0x04, 0x18, 0x30, 0x38  # operational
    IMAN, ERSTSZ, ERSTBA, ERDP = 0x20, 0x28, 0x30, 0x38  # of interrupter 0
    RUN, RESET, INTERRUPTS = 0x1, 0x2, 0x4
    PENDING, ENABLED, BUSY = 0x1, 0x2, 0x8
    NO_OP = 23 << 10

    def start(self) -> None:
        self._operational = self.get(0, 1)  # CAPLENGTH
        self._runtime = self.get(0x18) & ~0x1F  # RTSOFF
        self._doorbells = self.get(0x14) & ~0x3  # DBOFF
        self._tail = 0
        self._operate(self.USBCMD, self.RESET)
        assert self.qtest.until(lambda: not self._status(self.USBCMD) & self.RESET)
        self.qtest.memset(QUEUES, 0x4000, 0)
        self.qtest.write(self.SEGMENTS, struct.pack("<QII", self.EVENTS, 256, 0))
        for register, value in ((self.CRCR, self.COMMANDS | 1), (self.DCBAAP, self.CONTEXTS)):
            self._operate(register, value)
            self._operate(register + 4, 0)
        self.set(self._runtime + self.ERSTSZ, 1)
        for register, address in ((self.ERDP, self.EVENTS), (self.ERSTBA, self.SEGMENTS)):
            self.set(self._runtime + register, address)
            self.set(self._runtime + register + 4, 0)
        self.set(self._runtime + self.IMAN, self.PENDING | self.ENABLED)
        self._operate(self.USBCMD, self.RUN | self.INTERRUPTS)

    def fire(self, vector: int = 0) -> None:  # noqa: ARG002 - it is the first
        self.acknowledge()
        self.qtest.write(self.COMMANDS + 16 * self._tail, struct.pack("<12xI", self.NO_OP | 1))
        self._tail += 1
        self.set(self._doorbells, 0)

    def acknowledge(self) -> None:
        self.set(self._runtime + self.ERDP, self.EVENTS + 16 * self._tail | self.BUSY)
        self.set(self._runtime + self.ERDP + 4, 0)
        self.set(self._runtime + self.IMAN, self.PENDING | self.ENABLED)

    def _operate(self, register: int, value: int) -> None:
        self.set(self._operational + register, value)

    def _status(self, register: int) -> int:
        return self.get(self._operational + register)

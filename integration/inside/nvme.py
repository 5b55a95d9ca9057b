# SPDX-License-Identifier: BSD-3-Clause
"""As much of an NVMe driver as shows DMA, under qtest: the admin queue and Identify.

The controller reads a command out of memory, and writes 4096 bytes and a completion there, at any
64-bit address: edu reaches 28 bits. Offsets and bits are those of the NVM Express Base
Specification 1.4.
"""

from __future__ import annotations

import struct

from integration.pci import PciDevice
from integration.qtest import Qtest

PAGE = 4096
QUEUE_ENTRIES = 16

CONFIGURATION, STATUS = 0x14, 0x1C  # CC, CSTS
QUEUE_SIZES, SUBMISSIONS, COMPLETIONS = 0x24, 0x28, 0x30  # AQA, ASQ, ACQ
DOORBELL = 0x1000  # SQ0TDBL
COMPLETION_DOORBELL = 0x1004  # CQ0HDBL, with the smallest doorbell stride
ENABLE = 0x00460001  # EN; entries of 2**6 and 2**4 bytes
READY, FATAL = 0x1, 0x2

IDENTIFY = 0x06
CONTROLLER = 1  # CNS: which structure to return
#: opcode, flags, command id, namespace, reserved, metadata, PRP1, PRP2, CNS, the other dwords
COMMAND = struct.Struct("<BBHI8xQQQI20x")
COMPLETION = struct.Struct("<IIHHHH")
SERIAL = slice(4, 24)


class FatalError(Exception):
    """The controller gave up (CSTS.CFS): it could not read or write its queues."""


class Nvme:
    """The controller *pci*, its admin queues in memory."""

    def __init__(self, qtest: Qtest, pci: PciDevice) -> None:
        self._qtest = qtest
        self._pci = pci
        self._submissions = self._completions = self._tail = 0

    def start(self, submissions: int, completions: int) -> None:
        """Enable the controller with its admin queues, a page each, at these addresses."""
        self._set(CONFIGURATION, 0)
        self._until_status(0)
        self._submissions, self._completions, self._tail = submissions, completions, 0
        self._qtest.memset(completions, PAGE, 0)
        self._set(QUEUE_SIZES, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1))
        for register, address in ((SUBMISSIONS, submissions), (COMPLETIONS, completions)):
            self._set(register, address & 0xFFFFFFFF)
            self._set(register + 4, address >> 32)
        self._set(CONFIGURATION, ENABLE)
        self._until_status(READY)

    def identify(self, target: int) -> int:
        """Have the controller write what it is to *target*, a page; gives the status code.

        :raise FatalError: it can't reach its queues
        """
        self._qtest.write(self._submissions + self._tail * COMMAND.size, identify_command(target))
        return self.submit()

    def flood(self, target: int) -> None:
        """Have the controller write what it is to *target* as often as the queue has room for.

        :raise FatalError: it can't reach its queues
        """
        self.start(self._submissions, self._completions)
        commands = (QUEUE_ENTRIES - 1) * identify_command(target)
        self._qtest.write(self._submissions, commands)
        self._tail = QUEUE_ENTRIES - 2
        self.submit()

    def submit(self) -> int:
        """Have the controller execute the next command of the queue; gives the status code.

        :raise FatalError: it can't reach its queues
        :raise TimeoutError: it doesn't answer, or not in the memory that we see
        """
        assert self._tail < QUEUE_ENTRIES - 1, "the queues wrap, which isn't done here"
        at = self._completions + self._tail * COMPLETION.size
        self._tail += 1
        self._set(DOORBELL, self._tail)
        answered = self._qtest.until(lambda: self._phase(at) or self._fatal)
        if self._fatal:
            raise FatalError
        if not answered:
            raise TimeoutError
        self._set(COMPLETION_DOORBELL, self._tail)
        *_, status = COMPLETION.unpack(self._qtest.read(at, COMPLETION.size))
        return int(status) >> 1 & 0xFF

    def _phase(self, at: int) -> bool:
        *_, status = COMPLETION.unpack(self._qtest.read(at, COMPLETION.size))
        return bool(status & 1)

    @property
    def _fatal(self) -> bool:
        return bool(self._get(STATUS) & FATAL)

    def _until_status(self, ready: int) -> None:
        assert self._qtest.until(lambda: self._get(STATUS) & READY == ready)

    def _get(self, register: int) -> int:
        return self._pci.load(0, register, 4)

    def _set(self, register: int, value: int) -> None:
        self._pci.store(0, register, 4, value)


def identify_command(target: int) -> bytes:
    """An Identify of the controller, as it lies in the submission queue."""
    return COMMAND.pack(IDENTIFY, 0, 0, 0, 0, target, 0, CONTROLLER)

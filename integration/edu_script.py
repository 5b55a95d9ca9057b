# SPDX-License-Identifier: BSD-3-Clause
"""A script for edu under qtest, in chapters: each drives a fresh machine and returns what it saw.

Two devices that are to be the same are put through it, and all that was seen is compared.

Where QEMU's vfio stands between the guest and the device, one thing of it shows: an access to a BAR
while INTx is high tells it that the guest has handled the interrupt (vfio_pci_intx_eoi), the line
goes low, and high again a moment later if the device still holds it. `Edu.line` therefore looks
when the line is at rest.
"""

from __future__ import annotations

from collections.abc import Callable

from integration.pci import COMMAND, COMMAND_MASTER, STATUS, PciHost
from integration.qtest import Qtest

LIVENESS, FACTORIAL, EDU_STATUS, IRQ_STATUS = 0x04, 0x08, 0x20, 0x24
IRQ_RAISE, IRQ_ACKNOWLEDGE = 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
RUN, TO_MEMORY, RAISE_IRQ = 0x1, 0x2, 0x4
COMPUTING, IRQ_WHEN_DONE = 0x1, 0x80
BUFFER = 0x40000
DMA_TIME = 100_000_000  # of QEMU's edu, in virtual nanoseconds

INTX_DISABLE = 0x400
PCI_LINES = range(16, 24)  # inputs of the I/O APIC that q35 has for INTA# to INTH#
MESSAGE = 0x200000  # where MSIs go: plain memory, so that they can be seen
MEMORY = 0x300000
READABLE = (0, LIVENESS, FACTORIAL, EDU_STATUS, IRQ_STATUS, *range(DMA_SOURCE, 0xA0, 8))

#: whatever comes of a chapter; only compared, and shown when it differs
Seen = list[object]
Chapter = Callable[["Edu"], Seen]


class Edu:
    """The device in slot 4 of a machine of its own, as its driver sees it."""

    def __init__(self, qtest: Qtest) -> None:
        qtest.intercept_irqs()
        self.qtest = qtest
        self.host = PciHost(qtest)
        self.pci = self.host.device(4)

    def get(self, offset: int, size: int = 4) -> int:
        return self.pci.load(0, offset, size)

    def set(self, offset: int, value: int, size: int = 4) -> None:
        self.pci.store(0, offset, size, value)

    def registers(self) -> Seen:
        return [self.get(offset, 4 if offset < DMA_SOURCE else 8) for offset in READABLE]

    def line(self, high: bool) -> Seen:
        """Which lines are high once things have settled; `high` is what is worth waiting for."""
        qtest = self.qtest
        qtest.until(lambda: any(line in PCI_LINES for line in qtest.lines) == high)
        qtest.until(lambda: False, timeout=0.02)
        return [*sorted(qtest.lines.intersection(PCI_LINES)), self.pci.read_config(STATUS, 2)]

    def message(self, awaited: bool) -> int:
        """The last MSI, taken; 0 if there was none."""
        qtest = self.qtest
        qtest.until(lambda: qtest.load(MESSAGE, 4) != 0, timeout=5 if awaited else 0.05)
        data = qtest.load(MESSAGE, 4)
        qtest.store(MESSAGE, 4, 0)
        return data

    def compute(self, number: int) -> int:
        self.set(FACTORIAL, number)
        assert self.qtest.until(lambda: not self.get(EDU_STATUS) & COMPUTING)
        return self.get(FACTORIAL)

    def dma(self, source: int, destination: int, count: int, command: int) -> Seen:
        """Do one transfer to its end; what the DMA registers say then."""
        registers = (DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND)
        for register, value in zip(registers, (source, destination, count, command), strict=True):
            self.set(register, value, 8)
        self.qtest.clock_step(DMA_TIME)
        assert self.qtest.until(lambda: not self.get(DMA_COMMAND, 8) & RUN)  # hardware's own clock
        return [self.get(register, 8) for register in registers]


def config_space(edu: Edu) -> Seen:
    """Before and after firmware has been there, and beyond the end."""
    before = edu.pci.config_space()
    capabilities, bars = edu.pci.capabilities(), edu.pci.size_bars()
    edu.pci.enable()
    narrow = [edu.pci.read_config(offset, 1) for offset in range(256)]
    beyond = [edu.pci.read_config(offset, 4) for offset in (0x100, 0xFFC)]
    return [before, capabilities, bars, edu.pci.config_space(), narrow, beyond]


def config_write_masks(edu: Edu) -> Seen:
    """What every byte keeps of ones and of zeros, and what words do across bytes' borders."""
    seen: Seen = []
    for byte in (0xFF, 0x00, 0xA5):
        for offset in range(256):
            edu.pci.write_config(offset, 1, byte)
            seen.append((offset, byte, edu.pci.read_config(offset, 1)))
        seen.append(edu.pci.config_space())
    for size in (2, 4):
        for offset in range(0, 256, size):
            edu.pci.write_config(offset, size, 0x5AC3_9669 & (1 << 8 * size) - 1)
        seen.append(edu.pci.config_space())
    return seen


def registers(edu: Edu) -> Seen:
    """Every place that could be one, first as it is, then after writes."""
    places = [*range(0, 0x200, 4), BUFFER, BUFFER + 0x1000, 0xFFFFC]
    seen: Seen = [edu.get(offset) for offset in places]
    edu.set(EDU_STATUS, 0xFFFFFFFF)
    seen.append(edu.get(EDU_STATUS))
    edu.set(EDU_STATUS, 0x7F)
    seen.append(edu.get(EDU_STATUS))
    for offset in places:
        if offset != FACTORIAL:  # QEMU's would be at it for seconds
            edu.set(offset, 0x5A5A5A5A)
            seen.append((offset, edu.registers()))
    for offset in range(DMA_SOURCE, DMA_COMMAND, 8):
        edu.set(offset, 0x0123_4567_89AB_CDEF, 8)
        edu.set(offset + 4, 0xFFFFFFFF)
        seen.append((edu.get(offset, 4), edu.get(offset + 4, 4), edu.get(offset, 8)))
        edu.set(offset, 0x76543210)
        seen.append(edu.get(offset, 8))
    return seen


def access_sizes(edu: Edu) -> Seen:
    """Reads and writes of every size, aligned or not, allowed or not."""
    edu.set(LIVENESS, 0x12345678)
    edu.set(DMA_SOURCE, 0x0123_4567_89AB_CDEF, 8)
    places = [*range(0x10), *range(0x1C, 0x2C), *range(0x78, 0xA4), BUFFER, 0xFFFF8]
    seen: Seen = [(at, size, edu.get(at, size)) for size in (1, 2, 4, 8) for at in places]
    for size in (1, 2, 4, 8):
        # None of these gets to DMA_COMMAND, nor to FACTORIAL: QEMU's takes its time.
        first = LIVENESS if size < 8 else 0
        for at in (first, EDU_STATUS, IRQ_RAISE - 4, *range(DMA_SOURCE, DMA_COUNT + 1)):
            edu.set(at, 0x1122_3344_5566_7788 & (1 << 8 * size) - 1, size)
            seen.append((at, size, edu.registers()))
    return seen


def factorials(edu: Edu) -> Seen:
    seen: Seen = [edu.compute(number) for number in (*range(40), 100, 100_000)]
    edu.set(EDU_STATUS, IRQ_WHEN_DONE)
    seen += [edu.compute(10), edu.line(high=True), edu.registers()]
    edu.set(IRQ_ACKNOWLEDGE, 0x1)
    seen += [edu.line(high=False), edu.registers()]
    edu.set(EDU_STATUS, 0)
    seen += [edu.compute(11), edu.line(high=False), edu.registers()]
    return seen


def intx(edu: Edu) -> Seen:
    """Raised and acknowledged in parts; disabled and enabled in the command register."""
    seen: Seen = [edu.line(high=False)]
    edu.set(IRQ_RAISE, 0)
    seen += [edu.line(high=False), edu.get(IRQ_STATUS)]
    edu.set(IRQ_RAISE, 0x5)
    seen += [edu.line(high=True), edu.get(IRQ_STATUS)]
    edu.set(IRQ_RAISE, 0x80000000)
    seen += [edu.line(high=True), edu.get(IRQ_STATUS)]
    for acknowledged, high in ((0x2, True), (0x1, True), (0x80000000, True), (0x4, False)):
        edu.set(IRQ_ACKNOWLEDGE, acknowledged)
        seen += [edu.line(high), edu.get(IRQ_STATUS), edu.line(high)]
    command = edu.pci.read_config(COMMAND, 2)
    edu.pci.write_config(COMMAND, 2, command | INTX_DISABLE)
    edu.set(IRQ_RAISE, 0x1)
    seen += [edu.line(high=False), edu.get(IRQ_STATUS)]
    edu.pci.write_config(COMMAND, 2, command)
    seen += [edu.line(high=True)]
    edu.pci.write_config(COMMAND, 2, command | INTX_DISABLE)
    seen += [edu.line(high=False)]
    edu.set(IRQ_ACKNOWLEDGE, 0x1)
    seen += [edu.line(high=False)]
    edu.pci.write_config(COMMAND, 2, command)
    seen += [edu.line(high=False), edu.get(IRQ_STATUS)]
    return seen


def msi(edu: Edu) -> Seen:
    """Every raise is a message; no line moves. Off again, the line waits for the next raise."""
    edu.set(IRQ_RAISE, 0x1)
    seen: Seen = [edu.line(high=True)]
    edu.pci.enable_msi(MESSAGE, 0x1234)
    seen += [edu.line(high=False), edu.message(awaited=False)]
    for raised in (0x1, 0x1, 0x2, 0):
        edu.set(IRQ_RAISE, raised)
        seen += [edu.message(awaited=True), edu.get(IRQ_STATUS)]
    edu.set(IRQ_ACKNOWLEDGE, 0x1)
    seen += [edu.message(awaited=False), edu.get(IRQ_STATUS)]
    edu.pci.enable_msi(MESSAGE, 0xFFFF)
    edu.set(EDU_STATUS, IRQ_WHEN_DONE)
    seen += [edu.compute(5), edu.message(awaited=True), edu.get(IRQ_STATUS)]
    seen += [edu.dma(MEMORY, BUFFER, 16, RUN | RAISE_IRQ), edu.message(awaited=True)]
    edu.pci.write_config(COMMAND, 2, edu.pci.read_config(COMMAND, 2) & ~COMMAND_MASTER)
    edu.set(IRQ_RAISE, 0x10)
    seen += [edu.message(awaited=False), edu.get(IRQ_STATUS)]
    edu.pci.write_config(COMMAND, 2, edu.pci.read_config(COMMAND, 2) | COMMAND_MASTER)
    edu.pci.disable_msi()
    seen += [edu.line(high=False), edu.get(IRQ_STATUS)]
    edu.set(IRQ_RAISE, 0x20)
    seen += [edu.line(high=True), edu.message(awaited=False), edu.get(IRQ_STATUS)]
    edu.set(IRQ_ACKNOWLEDGE, 0xFFFFFFFF)
    seen += [edu.line(high=False), edu.pci.config_space()]
    return seen


def dma(edu: Edu) -> Seen:
    """Both ways, at the buffer's edges and beyond; where there is memory and where there isn't."""
    pattern = bytes(range(1, 256)) * 17
    edu.qtest.write(MEMORY, pattern)
    target = MEMORY + 0x100000
    full = (BUFFER, target, 4096, RUN | TO_MEMORY)
    transfers = [
        (MEMORY, BUFFER, 100, RUN),
        (MEMORY + 3, BUFFER + 101, 1, RUN),
        (MEMORY + 5, BUFFER + 4095, 1, RUN),
        (MEMORY, BUFFER, 0, RUN),
        (MEMORY, BUFFER, 4096, 0),  # not told to run
        (MEMORY, BUFFER, 4096, RUN),
        (BUFFER + 7, target + 4096 + 1, 13, RUN | TO_MEMORY | RAISE_IRQ),
        (MEMORY + 0x1000_0000 + 9, BUFFER + 9, 64, RUN),  # 28 bits of an address count
        (BUFFER + 64, 0xFFFF_FFFF_F000_0000 + target + 5000, 32, RUN | TO_MEMORY),
        (0x0800_0000, BUFFER + 200, 100, RUN),  # no memory there
        (0x03FF_FFE0, BUFFER + 400, 64, RUN),  # where memory ends
        (BUFFER, 0x0800_0000, 64, RUN | TO_MEMORY),
        (MEMORY, BUFFER + 4000, 97, RUN | RAISE_IRQ),  # out of the buffer
        (MEMORY, BUFFER - 1, 2, RUN),
        (MEMORY, BUFFER, 1 << 63, RUN),
        (MEMORY, (1 << 64) - 1, 1, RUN),
        (BUFFER + 4096, target, 1, RUN | TO_MEMORY),
    ]
    seen: Seen = []
    for transfer in transfers:
        seen += [edu.dma(*transfer), edu.get(IRQ_STATUS)]
        seen += [edu.dma(*full), edu.qtest.read(target, 0x2000)]
    seen += [edu.line(high=True)]
    edu.pci.write_config(COMMAND, 2, edu.pci.read_config(COMMAND, 2) & ~COMMAND_MASTER)
    seen += [edu.dma(MEMORY, BUFFER, 300, RUN), edu.dma(MEMORY, target, 300, RUN | TO_MEMORY)]
    edu.pci.write_config(COMMAND, 2, edu.pci.read_config(COMMAND, 2) | COMMAND_MASTER)
    seen += [edu.dma(*full), edu.qtest.read(target, 0x2000)]
    return seen


def machine_reset(edu: Edu) -> Seen:
    """Config space and interrupts after the guest has reset the machine, and life after that."""
    edu.pci.write_config(0x3C, 1, 11)
    edu.pci.enable_msi(MESSAGE, 0x1234)
    edu.qtest.reset()
    edu.host.map_config()
    seen: Seen = [edu.pci.config_space(), edu.line(high=False)]
    edu.pci.enable()
    edu.set(IRQ_RAISE, 0x4)
    seen += [edu.line(high=True)]
    edu.qtest.reset()
    edu.host.map_config()
    seen += [edu.line(high=False), edu.pci.config_space()]
    edu.pci.enable()
    edu.set(IRQ_ACKNOWLEDGE, 0xFFFFFFFF)
    seen += [edu.line(high=False), edu.get(IRQ_STATUS)]
    edu.pci.enable_msi(MESSAGE, 0x4321)
    edu.set(IRQ_RAISE, 0x1)
    seen += [edu.message(awaited=True), edu.get(IRQ_STATUS)]
    return seen


def scrub(edu: Edu) -> Seen:
    """No chapter: clear what earlier ones left in a device that has no reset."""
    for offset in range(0x50, 256, 4):
        edu.pci.write_config(offset, 4, 0)
    edu.pci.enable()
    for register in (EDU_STATUS, DMA_SOURCE, DMA_DESTINATION, DMA_COUNT):
        edu.set(register, 0)
    edu.set(IRQ_ACKNOWLEDGE, 0xFFFFFFFF)
    edu.set(LIVENESS, 0)
    edu.compute(0)
    edu.dma(MEMORY, BUFFER, 4096, RUN)
    return []


CONFIG_CHAPTERS: list[Chapter] = [config_space, config_write_masks]
CHAPTERS: list[Chapter] = [
    *CONFIG_CHAPTERS,
    *(registers, access_sizes, factorials),
    *(intx, msi, dma, machine_reset),
]


def see(chapter: Chapter, device: str) -> Seen:
    """Take a machine with *device*, as -device has it, through a chapter."""
    with Qtest("-device", device) as qtest:
        edu = Edu(qtest)
        if chapter in CHAPTERS and chapter not in CONFIG_CHAPTERS:
            edu.pci.enable()
        return chapter(edu)

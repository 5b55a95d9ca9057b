# SPDX-License-Identifier: BSD-3-Clause
"""PCI as firmware and drivers do it, over qtest: config space, BARs, MSI and MSI-X.

Offsets and bits are those of linux/pci_regs.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from integration.qtest import Qtest

# The q35 host bridge (hw/pci-host/q35.c): where config space is to be seen in memory.
CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
PCIEXBAR = 0x60
PCIEXBAR_ENABLE = 0x1
ECAM = 0xB0000000

# Where BARs go: nothing else of a q35 machine is there.
MEMORY_START = 0xC0000000
PORT_START = 0xC000

COMMAND = 0x04
COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_MASTER = 0x4
STATUS = 0x06
STATUS_CAP_LIST = 0x10
BASE_ADDRESS_0 = 0x10
BAR_IO = 0x1
BAR_64BIT = 0x4
CAPABILITY_LIST = 0x34

CAP_ID_MSI = 0x05
CAP_ID_MSIX = 0x11
MSI_FLAGS = 2
MSI_FLAGS_ENABLE = 0x1
MSI_FLAGS_64BIT = 0x80
MSIX_FLAGS_ENABLE = 0x8000
MSIX_TABLE = 4
MSIX_BAR_MASK = 0x7
MSIX_ENTRY_SIZE = 16


class Bar(NamedTuple):
    """A BAR as its low bits and its size tell it; `address` is where it was put."""

    size: int
    flags: int
    address: int = 0

    @property
    def is_io(self) -> bool:
        return bool(self.flags & BAR_IO)


class PciHost:
    """The root bus. Gives out addresses for BARs, upwards and never back."""

    def __init__(self, qtest: Qtest) -> None:
        """Make config space appear in memory, which is how more than 256 bytes are reached."""
        self.qtest = qtest
        self._memory = MEMORY_START
        self._port = PORT_START
        self.map_config()

    def map_config(self) -> None:
        """Again after a reset of the machine."""
        for offset, value in ((PCIEXBAR + 4, 0), (PCIEXBAR, ECAM | PCIEXBAR_ENABLE)):
            self.qtest.port_out(CONFIG_ADDRESS, 4, 1 << 31 | offset)
            self.qtest.port_out(CONFIG_DATA, 4, value)

    def device(self, slot: int, function: int = 0, bus: int = 0) -> PciDevice:
        return PciDevice(self, ECAM + (bus << 20 | slot << 15 | function << 12))

    def allocate(self, bar: Bar) -> int:
        """Return an address for `bar`, aligned to its size as BARs must be."""
        if bar.is_io:
            start = _align(self._port, bar.size)
            self._port = start + bar.size
        else:
            start = _align(self._memory, bar.size)
            self._memory = start + bar.size
        return start


class PciDevice:
    """One function."""

    def __init__(self, host: PciHost, config_address: int) -> None:
        self.qtest = host.qtest
        self.bars: dict[int, Bar] = {}
        self._host = host
        self._config = config_address

    # ---- Config space -----------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """Read `size` (1, 2 or 4) bytes; `offset` is below 4096."""
        return self.qtest.load(self._config + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.qtest.store(self._config + offset, size, value)

    def config_space(self, size: int = 256) -> bytes:
        """Return config space as 4-byte reads give it."""
        return b"".join(
            self.read_config(offset, 4).to_bytes(4, "little") for offset in range(0, size, 4)
        )

    def capabilities(self) -> dict[int, int]:
        """Return the offset of each capability, by its id, in the order of the list."""
        found: dict[int, int] = {}
        if self.read_config(STATUS, 2) & STATUS_CAP_LIST:
            offset = self.read_config(CAPABILITY_LIST, 1)
            while offset and offset not in found.values():
                found[self.read_config(offset, 1)] = offset
                offset = self.read_config(offset + 1, 1)
        return found

    # ---- BARs -------------------------------------------------------------------------------

    def size_bars(self) -> dict[int, Bar]:
        """Return the device's BARs by number, found by writing all ones, and leave them at 0."""
        bars: dict[int, Bar] = {}
        numbers = iter(range(6))
        for number in numbers:
            offset = BASE_ADDRESS_0 + 4 * number
            flags = self.read_config(offset, 4)
            flags &= 0x3 if flags & BAR_IO else 0xF
            writable = self._probe(offset) & ~flags
            upper = 0xFFFFFFFF
            if not flags & BAR_IO and flags & BAR_64BIT:
                next(numbers)
                upper = self._probe(offset + 4)
            if writable:  # a BAR of 4 GiB or more would have nothing here; none is tested
                bars[number] = Bar((1 << 64) - (upper << 32 | writable), flags)
        return bars

    def _probe(self, offset: int) -> int:
        self.write_config(offset, 4, 0xFFFFFFFF)
        answer = self.read_config(offset, 4)
        self.write_config(offset, 4, 0)
        return answer

    def enable(self) -> None:
        """Give every BAR an address, then let the device answer there and be bus master."""
        for number, bar in self.size_bars().items():
            address = self._host.allocate(bar)
            self.bars[number] = bar._replace(address=address)
            self.write_config(BASE_ADDRESS_0 + 4 * number, 4, address & 0xFFFFFFFF)
        self.write_config(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)

    def load(self, bar: int, offset: int, size: int) -> int:
        """Read `size` (1, 2, 4 or 8) bytes at `offset` of a BAR."""
        place = self.bars[bar]
        if place.is_io:
            return self.qtest.port_in(place.address + offset, size)
        return self.qtest.load(place.address + offset, size)

    def store(self, bar: int, offset: int, size: int, value: int) -> None:
        place = self.bars[bar]
        if place.is_io:
            self.qtest.port_out(place.address + offset, size, value)
        else:
            self.qtest.store(place.address + offset, size, value)

    # ---- Interrupts -------------------------------------------------------------------------

    def enable_msi(self, address: int, data: int) -> None:
        """Send vector 0 as `data`, 16 bits, to `address`, which may be plain memory."""
        offset = self.capabilities()[CAP_ID_MSI]
        flags = self.read_config(offset + MSI_FLAGS, 2)
        self.write_config(offset + 4, 4, address & 0xFFFFFFFF)
        if flags & MSI_FLAGS_64BIT:
            self.write_config(offset + 8, 4, address >> 32)
        self.write_config(offset + (12 if flags & MSI_FLAGS_64BIT else 8), 2, data)
        self.write_config(offset + MSI_FLAGS, 2, flags | MSI_FLAGS_ENABLE)

    def disable_msi(self) -> None:
        offset = self.capabilities()[CAP_ID_MSI]
        flags = self.read_config(offset + MSI_FLAGS, 2)
        self.write_config(offset + MSI_FLAGS, 2, flags & ~MSI_FLAGS_ENABLE)

    def enable_msix(self, messages: dict[int, tuple[int, int]]) -> None:
        """Enable MSI-X with (address, data) for each vector named; the others stay masked."""
        offset = self.capabilities()[CAP_ID_MSIX]
        table = self.read_config(offset + MSIX_TABLE, 4)
        flags = self.read_config(offset + MSI_FLAGS, 2)
        self.write_config(offset + MSI_FLAGS, 2, flags | MSIX_FLAGS_ENABLE)
        for vector, (address, data) in messages.items():
            entry = (table & ~MSIX_BAR_MASK) + vector * MSIX_ENTRY_SIZE
            for at, value in enumerate((address & 0xFFFFFFFF, address >> 32, data, 0)):
                self.store(table & MSIX_BAR_MASK, entry + 4 * at, 4, value)


def _align(address: int, size: int) -> int:
    return -(-address // size) * size

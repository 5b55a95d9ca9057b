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
MEMORY_START, MEMORY_END = 0xC0000000, 0xFE000000
PORT_START, PORT_END = 0xC000, 0x10000

COMMAND = 0x04
COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_MASTER = 0x4
STATUS = 0x06
STATUS_CAP_LIST = 0x10
BASE_ADDRESS_0 = 0x10
BAR_IO = 0x1
BAR_64BIT = 0x4
ROM_ADDRESS = 0x30
ROM_ADDRESS_ENABLE = 0x1
ROM_ADDRESS_MASK = 0xFFFFF800
CAPABILITY_LIST = 0x34
EXTENDED_CAPABILITIES = 0x100
CONFIG_SIZE = 4096

# A bridge's header has these where other devices have BARs.
PRIMARY_BUS = 0x18  # and secondary and subordinate, a byte each
IO_BASE, IO_LIMIT = 0x1C, 0x1D
MEMORY_BASE, MEMORY_LIMIT = 0x20, 0x22
PREFETCHABLE_BASE, PREFETCHABLE_LIMIT = 0x24, 0x26

CAP_ID_PM = 0x01
CAP_ID_MSI = 0x05
CAP_ID_EXPRESS = 0x10
CAP_ID_MSIX = 0x11
CAP_ID_AF = 0x13
MSI_FLAGS = 2
MSI_FLAGS_ENABLE = 0x1
MSI_FLAGS_QSIZE = 0x70  # log2 of how many vectors are enabled
MSI_FLAGS_64BIT = 0x80
MSIX_FLAGS_ENABLE = 0x8000
MSIX_FLAGS_QSIZE = 0x7FF
MSIX_TABLE = 4
MSIX_PBA = 8
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


class Capability(NamedTuple):
    """Where one is in config space, in bytes, and what it is; `version` is 0 for those of PCI."""

    id: int
    version: int
    offset: int


class PciHost:
    """The root bus and what is behind it. Gives out addresses for BARs, upwards and never back."""

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

    def open_port(self, slot: int, bus: int) -> None:
        """Make the root port in `slot` of the root bus lead to `bus`, with all room for BARs.

        A reset of the machine closes it.
        """
        port = self.device(slot)
        port.write_config(PRIMARY_BUS, 4, bus << 16 | bus << 8)
        port.write_config(IO_BASE, 1, PORT_START >> 8 & 0xF0)
        port.write_config(IO_LIMIT, 1, PORT_END - 1 >> 8 & 0xF0)
        port.write_config(MEMORY_BASE, 2, MEMORY_START >> 16)
        port.write_config(MEMORY_LIMIT, 2, MEMORY_END - 1 >> 16)
        port.write_config(PREFETCHABLE_BASE, 2, 0xFFF0)  # above its limit: there is none
        port.write_config(PREFETCHABLE_LIMIT, 2, 0)
        port.write_config(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)

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

    def config_space(self, size: int = 256, start: int = 0) -> bytes:
        """Return config space as 4-byte reads give it: ECAM has none that are wider."""
        return self.qtest.read(self._config + start, size)

    def fill_config(self, start: int, data: bytes) -> None:
        """Write `data`, a multiple of 4 bytes, as 4-byte writes."""
        self.qtest.write(self._config + start, data)

    def capabilities(self) -> dict[int, int]:
        """Return the offset of each capability, by its id, in the order of the list."""
        return {capability.id: capability.offset for capability in self.capability_list()}

    def capability_list(self) -> list[Capability]:
        """Return PCI's capabilities as they are chained; an id may be there more than once."""
        found: list[Capability] = []
        seen: set[int] = {0}
        if self.read_config(STATUS, 2) & STATUS_CAP_LIST:
            offset = self.read_config(CAPABILITY_LIST, 1)
            while offset not in seen:
                seen.add(offset)
                found.append(Capability(self.read_config(offset, 1), 0, offset))
                offset = self.read_config(offset + 1, 1)
        return found

    def extended_capability_list(self) -> list[Capability]:
        """Return PCI Express's capabilities as they are chained; none for a device of PCI."""
        found: list[Capability] = []
        offset = EXTENDED_CAPABILITIES
        seen: set[int] = {0}
        while offset not in seen:
            seen.add(offset)
            header = self.read_config(offset, 4)
            if header not in (0, 0xFFFFFFFF):
                found.append(Capability(header & 0xFFFF, header >> 16 & 0xF, offset))
                offset = header >> 20 & 0xFFC
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

    def rom_size(self) -> int:
        """Return the expansion ROM's size in bytes, 0 if there is none, and leave its BAR at 0."""
        self.write_config(ROM_ADDRESS, 4, ROM_ADDRESS_MASK)
        writable = self.read_config(ROM_ADDRESS, 4) & ROM_ADDRESS_MASK
        self.write_config(ROM_ADDRESS, 4, 0)
        return -writable & 0xFFFFFFFF

    def rom(self) -> bytes:
        """Return the expansion ROM, shown for as long as it takes."""
        size = self.rom_size()
        if not size:
            return b""
        address = self._host.allocate(Bar(size, 0))
        self.write_config(ROM_ADDRESS, 4, address | ROM_ADDRESS_ENABLE)
        data = self.qtest.read(address, size)
        self.write_config(ROM_ADDRESS, 4, 0)
        return data

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

    def page(self, bar: int) -> bytes:
        """Return a BAR's first 4096 bytes, or as many as there are.

        I/O ports are read by 4 bytes, memory by the most that it takes: 8 where QEMU maps it.
        """
        place = self.bars[bar]
        size = min(place.size, 4096)
        if not place.is_io:
            return self.qtest.read(place.address, size)
        return b"".join(self.load(bar, at, 4).to_bytes(4, "little") for at in range(0, size, 4))

    # ---- Interrupts -------------------------------------------------------------------------

    def enable_msi(self, address: int, data: int, vectors_log2: int = 0) -> None:
        """Send vector n of 2 ** `vectors_log2` as `data` + n to `address`, which may be memory.

        `data` has 16 bits, of which the lowest `vectors_log2` are 0.
        """
        offset = self.capabilities()[CAP_ID_MSI]
        flags = self.read_config(offset + MSI_FLAGS, 2) & ~MSI_FLAGS_QSIZE
        flags |= vectors_log2 << 4
        self.write_config(offset + 4, 4, address & 0xFFFFFFFF)
        if flags & MSI_FLAGS_64BIT:
            self.write_config(offset + 8, 4, address >> 32)
        self.write_config(offset + (12 if flags & MSI_FLAGS_64BIT else 8), 2, data)
        self.write_config(offset + MSI_FLAGS, 2, flags | MSI_FLAGS_ENABLE)

    def disable_msi(self) -> None:
        offset = self.capabilities()[CAP_ID_MSI]
        flags = self.read_config(offset + MSI_FLAGS, 2)
        self.write_config(offset + MSI_FLAGS, 2, flags & ~MSI_FLAGS_ENABLE)

    def msi_vectors_log2(self) -> int:
        """Return the log2 of how many vectors the device can have."""
        return self.read_config(self.capabilities()[CAP_ID_MSI] + MSI_FLAGS, 2) >> 1 & 0x7

    def enable_msix(self, messages: dict[int, tuple[int, int]]) -> None:
        """Enable MSI-X with (address, data) for each vector named; the others stay masked."""
        self._set_msix_flags(MSIX_FLAGS_ENABLE, 0)
        self.fill_msix(messages)

    def fill_msix(self, messages: dict[int, tuple[int, int]]) -> None:
        """Write these vectors' (address, data) into the table, and unmask them."""
        for vector, (address, data) in messages.items():
            for at, value in enumerate((address & 0xFFFFFFFF, address >> 32, data, 0)):
                self._store_msix(vector, at, value)

    def disable_msix(self) -> None:
        self._set_msix_flags(0, MSIX_FLAGS_ENABLE)

    def mask_msix(self, vector: int, masked: bool = True) -> None:
        self._store_msix(vector, 3, int(masked))

    def read_msix(self) -> tuple[bytes, bytes]:
        """Return the table and the pending bits, as the BARs have them."""
        offset = self.capabilities()[CAP_ID_MSIX]
        vectors = (self.read_config(offset + MSI_FLAGS, 2) & MSIX_FLAGS_QSIZE) + 1
        found = []
        for at, size in (
            (MSIX_TABLE, vectors * MSIX_ENTRY_SIZE),
            (MSIX_PBA, -(-vectors // 64) * 8),
        ):
            where = self.read_config(offset + at, 4)
            bar, start = where & MSIX_BAR_MASK, where & ~MSIX_BAR_MASK
            found.append(self.qtest.read(self.bars[bar].address + start, size))
        return found[0], found[1]

    def _set_msix_flags(self, on: int, off: int) -> None:
        offset = self.capabilities()[CAP_ID_MSIX] + MSI_FLAGS
        self.write_config(offset, 2, self.read_config(offset, 2) & ~off | on)

    def _store_msix(self, vector: int, word: int, value: int) -> None:
        table = self.read_config(self.capabilities()[CAP_ID_MSIX] + MSIX_TABLE, 4)
        place = (table & ~MSIX_BAR_MASK) + vector * MSIX_ENTRY_SIZE + 4 * word
        self.store(table & MSIX_BAR_MASK, place, 4, value)


def _align(address: int, size: int) -> int:
    return -(-address // size) * size

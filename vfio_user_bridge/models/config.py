# SPDX-License-Identifier: BSD-3-Clause
"""The config space of a conventional PCI device: 256 bytes, and which bits may be written.

Which bits may be written is what QEMU gives its own devices (hw/pci/pci.c and msi.c), so that a
guest can't tell a model from those. Names and bits are those of linux/pci_regs.h. Status bits that
are cleared by writing 1 tell of errors on the bus; none ever happens here.
"""

from __future__ import annotations

from collections.abc import Mapping

from vfio_user_bridge.protocol import Buffer

CONFIG_SIZE = 256
HEADER_SIZE = 64

COMMAND = 0x04
COMMAND_MASTER = 0x4
COMMAND_INTX_DISABLE = 0x400
#: I/O, memory, bus master, SERR#, INTx disable
COMMAND_WRITABLE = 0x507
STATUS = 0x06
STATUS_INTERRUPT = 0x8
STATUS_CAP_LIST = 0x10
CACHE_LINE_SIZE = 0x0C
BASE_ADDRESS_0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
CAPABILITY_LIST = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D

CAP_ID_MSI = 0x05
MSI_FLAGS = 2
MSI_FLAGS_ENABLE = 0x1
MSI_FLAGS_QSIZE = 0x70
MSI_FLAGS_64BIT = 0x80
MSI_ADDRESS_LO = 4
MSI_ADDRESS_HI = 8
MSI_DATA_64 = 12
MSI_64_SIZE = 14

#: The only capability, where QEMU puts the first.
MSI = HEADER_SIZE


class ConfigSpace:
    """A device with memory BARs of 32 bits, INTA# and one MSI vector with a 64-bit address."""

    def __init__(
        self,
        device_id: tuple[int, int],
        *,
        revision: int,
        class_code: int,
        subsystem_id: tuple[int, int],
        bars: Mapping[int, int],
    ) -> None:
        """Ids are (vendor, device); *class_code* has 24 bits; *bars* gives the size of each BAR."""
        self._values = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        # QEMU's devices have plain memory where they have neither header nor capability.
        self._writable[HEADER_SIZE:] = b"\xff" * (CONFIG_SIZE - HEADER_SIZE)

        vendor, device = device_id
        self._field(0x00, 4, vendor | device << 16)
        self._field(COMMAND, 2, 0, writable=COMMAND_WRITABLE)
        self._field(STATUS, 2, STATUS_CAP_LIST)
        self._field(0x08, 4, revision | class_code << 8)
        self._field(CACHE_LINE_SIZE, 1, 0, writable=0xFF)
        for number, size in bars.items():
            self._field(BASE_ADDRESS_0 + 4 * number, 4, 0, writable=(1 << 32) - size)
        vendor, device = subsystem_id
        self._field(SUBSYSTEM_VENDOR_ID, 4, vendor | device << 16)
        self._field(CAPABILITY_LIST, 1, MSI)
        self._field(INTERRUPT_LINE, 1, 0, writable=0xFF)
        self._field(INTERRUPT_PIN, 1, 1)
        self._field(MSI, 2, CAP_ID_MSI)
        self._field(
            MSI + MSI_FLAGS, 2, MSI_FLAGS_64BIT, writable=MSI_FLAGS_ENABLE | MSI_FLAGS_QSIZE
        )
        self._field(MSI + MSI_ADDRESS_LO, 4, 0, writable=0xFFFFFFFC)
        self._field(MSI + MSI_ADDRESS_HI, 4, 0, writable=0xFFFFFFFF)
        self._field(MSI + MSI_DATA_64, 2, 0, writable=0xFFFF)
        self._initial = bytes(self._values)

    def _field(self, offset: int, size: int, value: int, *, writable: int = 0) -> None:
        _put(self._values, offset, size, value)
        _put(self._writable, offset, size, writable)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._values[offset : offset + count])

    def write(self, offset: int, data: Buffer) -> None:
        """Write what may be written; the rest stays, without a complaint, as on a PCI bus."""
        for at, byte in enumerate(data, offset):
            writable = self._writable[at]
            self._values[at] = self._values[at] & ~writable | byte & writable
        # One vector is all there is: asking for more of them gives one, once MSI is enabled.
        if self.msi_enabled:
            self._set_bits(MSI + MSI_FLAGS, MSI_FLAGS_QSIZE, on=False)

    def reset(self) -> None:
        self._values[:] = self._initial

    def save(self) -> bytes:
        return bytes(self._values)

    def restore(self, saved: bytes) -> None:
        self._values[:] = saved

    @property
    def bus_master(self) -> bool:
        """Whether the device may reach memory."""
        return self._has_bits(COMMAND, COMMAND_MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self._set_bits(COMMAND, COMMAND_MASTER, on=on)

    @property
    def intx_disabled(self) -> bool:
        return self._has_bits(COMMAND, COMMAND_INTX_DISABLE)

    @property
    def interrupt_status(self) -> bool:
        """Whether the device wants INTx, be it disabled or not."""
        return self._has_bits(STATUS, STATUS_INTERRUPT)

    @interrupt_status.setter
    def interrupt_status(self, on: bool) -> None:
        self._set_bits(STATUS, STATUS_INTERRUPT, on=on)

    @property
    def msi_enabled(self) -> bool:
        return self._has_bits(MSI + MSI_FLAGS, MSI_FLAGS_ENABLE)

    @msi_enabled.setter
    def msi_enabled(self, on: bool) -> None:
        self._set_bits(MSI + MSI_FLAGS, MSI_FLAGS_ENABLE, on=on)

    def _has_bits(self, offset: int, bits: int) -> bool:
        return int.from_bytes(self._values[offset : offset + 2], "little") & bits != 0

    def _set_bits(self, offset: int, bits: int, *, on: bool) -> None:
        value = int.from_bytes(self._values[offset : offset + 2], "little")
        _put(self._values, offset, 2, value | bits if on else value & ~bits)


def _put(target: bytearray, offset: int, size: int, value: int) -> None:
    target[offset : offset + size] = value.to_bytes(size, "little")

# SPDX-License-Identifier: BSD-3-Clause
"""PCI addresses in libvirt's domains: what they are called by QEMU, and keeping them from others.

libvirt hands an address out that no device of the domain has, at any time: when the domain is
defined, changed or running. What is told to QEMU alone it knows nothing of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.dom import minidom

from vfio_user_bridge.errors import BridgeError

from . import xmltree

_PORT = "pcie-root-port"
_SLOTS = 32


@dataclass(frozen=True, slots=True)
class Address:
    """Where a guest sees a device."""

    bus: int
    slot: int
    function: int = 0
    multifunction: bool = False

    @classmethod
    def of(cls, device: minidom.Element) -> Address | None:
        """That of an element of <devices>; None if libvirt is to choose one."""
        found = xmltree.find(device, "address")
        if not found or found.getAttribute("type") != "pci" or not found.hasAttribute("slot"):
            return None
        bus, slot, function = (number(found, name) for name in ("bus", "slot", "function"))
        return cls(bus, slot, function, found.getAttribute("multifunction") == "on")

    def element(self) -> minidom.Element:
        made = xmltree.element(
            "address",
            type="pci",
            domain="0x0000",
            bus=f"{self.bus:#04x}",
            slot=f"{self.slot:#04x}",
            function=f"{self.function:#x}",
        )
        if self.multifunction:
            made.setAttribute("multifunction", "on")
        return made


def number(element: minidom.Element, attribute: str) -> int:
    """An attribute that libvirt reads as a C number; 0 if it isn't there.

    :raise BridgeError: it is none
    """
    text = element.getAttribute(attribute) or "0"
    try:
        return int(text, 0)
    except ValueError:
        tag = element.tagName
        raise BridgeError(
            f"{attribute}={text!r} of <{tag}> is no number: write 10 or 0x0a"
        ) from None


class GuestPci:
    """The PCI buses of a domain, and what is on them."""

    def __init__(self, domain: minidom.Element) -> None:
        devices = xmltree.find(domain, "devices")
        assert devices
        self._devices = devices
        kind = xmltree.find(domain, "os", "type")
        machine = kind.getAttribute("machine") if kind else ""
        arch = kind.getAttribute("arch") if kind else ""
        # Arm's and RISC-V's "virt", which is what libvirt takes for them, is like q35 in this.
        self._express = bool(re.search("q35|virt", machine)) or (
            not machine and arch.startswith(("aarch64", "riscv"))
        )

    def bus(self, number: int) -> str:
        """What QEMU calls the bus that libvirt numbers so (qemuAliasControllerPCI...)."""
        for controller in self._controllers("pci"):
            alias = xmltree.find(controller, "alias")
            if alias and controller.getAttribute("index") == str(number):
                return alias.getAttribute("name")
        return "pcie.0" if self._express and not number else f"pci.{number}"

    def vacant(self) -> Address:
        """Make room for one more device, where a device can be plugged in while the guest runs.

        :raise BridgeError: there is none
        """
        if not self._express:
            return self._vacant_slot()
        ports = self._controllers("pci")
        buses = [address.bus for address in self._addresses()]
        indices = [number(port, "index") for port in ports]
        # Ports without an index get the first that are free.
        unnumbered = sum(not port.hasAttribute("index") for port in ports)
        index = max([0, *buses, *indices]) + unnumbered + 1
        port = xmltree.element("controller", type="pci", index=str(index), model=_PORT)
        xmltree.insert(self._devices, port, after=("controller",))
        return Address(index, 0)

    def reserve(self, device: minidom.Element, address: Address) -> None:
        """Keep *address*, in place of *device*.

        By a floppy controller. What libvirt makes of one depends on the floppy drives alone, which
        it finds by the index, and QEMU is told of none for this one. But an address that any device
        has is taken, one that shouldn't have any (qemuDomainCollectPCIAddress, which warns) too.
        """
        index = max([0, *(number(fdc, "index") for fdc in self._controllers("fdc"))]) + 1
        holder = xmltree.element("controller", address.element(), type="fdc", index=str(index))
        xmltree.replace(device, holder)

    def _controllers(self, kind: str) -> list[minidom.Element]:
        every = xmltree.elements(self._devices, "controller")
        return [controller for controller in every if controller.getAttribute("type") == kind]

    def _addresses(self) -> Iterator[Address]:
        for device in xmltree.elements(self._devices):
            if address := Address.of(device):
                yield address

    def _vacant_slot(self) -> Address:
        """From the end: libvirt takes the first."""
        taken = {address.slot for address in self._addresses() if not address.bus}
        for slot in reversed(range(1, _SLOTS)):
            if slot not in taken:
                return Address(0, slot)
        raise BridgeError("the domain's PCI bus is full: give a device an address by hand")

# SPDX-License-Identifier: BSD-3-Clause
"""libvirt domains whose PCI host devices come over the bridge's sockets.

libvirt (up to 12.8) has no vfio-user device of its own. So QEMU is told by <qemu:commandline>; the
<hostdev> elements move into <metadata>, where the hook script finds what to bind and serve.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import NamedTuple
from xml.dom import minidom

from vfio_user_bridge.errors import BridgeError, UsageError
from vfio_user_bridge.kernel.pci import parse_bdf
from vfio_user_bridge.qemu import compact, device
from vfio_user_bridge.sockets import socket_name

from . import xmltree
from .pci import Address, GuestPci, number

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
#: of the element in <metadata> that holds what were the domain's PCI host devices
NAMESPACE = "urn:vfio-user-bridge:domain:1"

#: What a <hostdev> may say that comes over, or is of no concern: the driver is vfio-pci.
_CARRIED = frozenset({"source", "driver", "address", "alias", "boot", "rom", "acpi"})


class Bridged(NamedTuple):
    """A domain's XML, and a line on each thing that it couldn't take over."""

    text: str
    lost: list[str]


def bridged(text: str, folder: Path) -> Bridged:
    """The domain *text* with its PCI host devices on sockets in *folder*, named by their addresses.

    :raise BridgeError: it is no domain, or has no such device
    """
    document = xmltree.parse(text)
    domain = document.documentElement
    assert domain
    if domain.tagName != "domain":
        raise BridgeError(
            f"this is no libvirt domain but a <{domain.tagName}>: virsh dumpxml prints domains"
        )
    every = xmltree.elements(xmltree.find(domain, "devices"), "hostdev")
    hostdevs = [hostdev for hostdev in every if hostdev.getAttribute("type") == "pci"]
    if not hostdevs:
        raise BridgeError(
            "the domain has no <hostdev mode='subsystem' type='pci'>: give it one, or see --device"
        )

    guest = GuestPci(domain)
    moved = _moved(domain, folder)
    devices, lost = [], []
    for hostdev in hostdevs:
        bdf = _bdf(hostdev)
        if _unassigned(hostdev):
            xmltree.remove(hostdev)
        else:
            address = Address.of(hostdev) or guest.vacant()
            devices.append(
                {
                    **device(folder / socket_name(bdf)),
                    "id": _identity(hostdev, bdf),
                    **_place(guest, address),
                    **_settings(hostdev),
                }
            )
            left = {child.tagName for child in xmltree.elements(hostdev)} - _CARRIED
            lost += [f"{bdf}: vfio-user-pci has no <{name}>; left out" for name in sorted(left)]
            guest.reserve(hostdev, address)
        xmltree.insert(moved, hostdev)
    _share_memory(domain)
    _keep_boot_order(domain, devices)
    _add_arguments(domain, devices)
    return Bridged(xmltree.written(document), lost)


def pieces(socket: Path) -> str:
    """What a domain needs for the device behind *socket*, for somebody to put there."""
    domain = xmltree.element("domain")
    _share_memory(domain)
    _add_arguments(domain, [device(socket)])
    xmltree.elements(domain)[-1].setAttribute("xmlns:qemu", QEMU_NAMESPACE)
    inside = "".join(map(xmltree.written, domain.childNodes))
    return dedent(inside).lstrip()


# ---- One device -----------------------------------------------------------------------------


def _bdf(hostdev: minidom.Element) -> str:
    source = xmltree.find(hostdev, "source", "address")
    if not source:
        raise BridgeError(
            "a <hostdev> has no <source> with an <address>: say which device of the host it is"
        )
    domain, bus, slot, function = (
        number(source, name) for name in ("domain", "bus", "slot", "function")
    )
    return parse_bdf(f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")


def _unassigned(hostdev: minidom.Element) -> bool:
    """Whether the guest isn't to get it: it is there for the sake of its IOMMU group."""
    address = xmltree.find(hostdev, "address")
    return address is not None and address.getAttribute("type") == "unassigned"


def _identity(hostdev: minidom.Element, bdf: str) -> str:
    """What QEMU calls the device: the user's own alias, if they gave one."""
    alias = xmltree.find(hostdev, "alias")
    name = alias.getAttribute("name") if alias else ""
    # In QEMU's identifiers there are no colons; libvirt's own aliases are for its own devices.
    return name if name.startswith("ua-") else f"vfio-user-{bdf.replace(':', '-')}"


def _place(guest: GuestPci, address: Address) -> dict[str, object]:
    function = f".{address.function:#x}" if address.function else ""
    place: dict[str, object] = {
        "bus": guest.bus(address.bus),
        "addr": f"{address.slot:#x}{function}",
    }
    return {**place, "multifunction": True} if address.multifunction else place


def _settings(hostdev: minidom.Element) -> dict[str, object]:
    settings: dict[str, object] = {}
    if boot := xmltree.find(hostdev, "boot"):
        settings["bootindex"] = number(boot, "order")
    if rom := xmltree.find(hostdev, "rom"):
        if rom.hasAttribute("bar"):
            settings["rombar"] = int(rom.getAttribute("bar") == "on")
        if rom.getAttribute("enabled") == "no":
            settings["romfile"] = ""
        elif rom.hasAttribute("file"):
            settings["romfile"] = rom.getAttribute("file")
    if acpi := xmltree.find(hostdev, "acpi"):
        settings["acpi-index"] = number(acpi, "index")
    return settings


# ---- The domain -----------------------------------------------------------------------------


def _moved(domain: minidom.Element, folder: Path) -> minidom.Element:
    """The element that holds what were the host devices, for the hook script."""
    metadata = xmltree.find(domain, "metadata")
    if not metadata:
        before = ("name", "uuid", "genid", "title", "description")
        metadata = xmltree.insert(domain, xmltree.element("metadata"), after=before)
    for found in xmltree.elements(metadata):
        if found.namespaceURI == NAMESPACE:
            if (there := found.getAttribute("sockets")) != str(folder):
                raise UsageError(f"the domain has devices in {there}: give --socket-dir {there}")
            return found
    moved = xmltree.element("bridge:hostdevs", sockets=str(folder))
    moved.setAttribute("xmlns:bridge", NAMESPACE)
    return xmltree.insert(metadata, moved)


def _share_memory(domain: minidom.Element) -> None:
    """Have the guest's RAM in files that QEMU can pass on and the kernel can pin."""
    backing = xmltree.find(domain, "memoryBacking")
    if not backing:
        before = ("memory", "currentMemory", "maxMemory", "blkiotune", "memtune")
        backing = xmltree.insert(domain, xmltree.element("memoryBacking"), after=before)
    source = xmltree.find(backing, "source") or xmltree.insert(backing, xmltree.element("source"))
    access = xmltree.find(backing, "access") or xmltree.insert(backing, xmltree.element("access"))
    # A file that was shared already was chosen with care; by default it is on a disk.
    if access.getAttribute("mode") != "shared" or source.getAttribute("type") != "file":
        source.setAttribute("type", "memfd")
    access.setAttribute("mode", "shared")
    for cell in xmltree.elements(xmltree.find(domain, "cpu", "numa"), "cell"):
        if cell.hasAttribute("memAccess"):
            cell.setAttribute("memAccess", "shared")
    for dimm in xmltree.elements(xmltree.find(domain, "devices"), "memory"):
        if dimm.hasAttribute("access"):
            dimm.setAttribute("access", "shared")


def _keep_boot_order(domain: minidom.Element, devices: list[dict[str, object]]) -> None:
    """Where nothing is left that says what to boot, libvirt would say "the first disk".

    That would be a second device of the same order. A floppy drive that isn't there is none.
    """
    system = xmltree.find(domain, "os")
    rest = xmltree.elements(xmltree.find(domain, "devices"))
    says = [system, *rest]
    if any("bootindex" in device for device in devices) and not any(
        xmltree.find(element, "boot") for element in says
    ):
        assert system
        xmltree.insert(system, xmltree.element("boot", dev="fd"), after=("type",))


def _add_arguments(domain: minidom.Element, devices: list[dict[str, object]]) -> None:
    commandline = next(
        (
            element
            for element in xmltree.elements(domain)
            if (element.namespaceURI, element.localName) == (QEMU_NAMESPACE, "commandline")
        ),
        None,
    )
    if not commandline:
        domain.setAttribute("xmlns:qemu", QEMU_NAMESPACE)
        commandline = xmltree.insert(domain, xmltree.element("qemu:commandline"))
    prefix = commandline.tagName.removesuffix("commandline")
    for properties in devices:
        for value in ("-device", compact(properties)):
            xmltree.insert(commandline, xmltree.element(f"{prefix}arg", value=value))

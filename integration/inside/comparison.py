# SPDX-License-Identifier: BSD-3-Clause
"""The same devices in the same guest, by QEMU's own vfio-pci and through the bridge, under qtest.

A check drives a guest's devices and returns what it saw. What it sees of the one must be what it
sees of the other.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from integration import devices
from integration.pci import PciDevice, PciHost
from integration.qtest import Qtest
from vfio_user_bridge import qemu

from .bridge import Bridge, command

SLOT = 4  # in the guest: of the devices themselves, or of the root port that they are behind
BUS = 1  # behind the root port
LINK_TIME = 30.0  # seconds
VF_ADDRESS = "52:54:00:12:34:7f"  # the driver's own choice is another each time

#: what a check saw, by what it looked at; only compared, and shown where it differs
Seen = dict[str, object]
Check = Callable[["Guest"], Seen]


@dataclass(frozen=True)
class Subject:
    """Functions of one slot that are compared."""

    name: str  # a row of the table
    functions: tuple[str, ...]  # their addresses in the test machine
    behind_port: bool = False  # in the guest, as in the test machine
    #: 8 bytes of registers, by BAR and offset, that just keep what is written
    scratch: tuple[tuple[int, int], ...] = ()
    #: 4 bytes of registers that change by themselves, or by the host's driver
    running: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return self.name


# nvme: ASQ, the admin submission queue's address. e1000*, igb: the table of VLANs or of multicast
# addresses. rtl8139: MAR, multicast addresses, in both BARs. virtio-blk: queue_desc of queue 0.
# xhci: DCBAAP, the device contexts' address. edu: the DMA's source. igb VF: RDBA of queue 0.
SUBJECTS = (
    Subject("edu", (devices.EDU_ALONE,), scratch=((0, 0x80),)),
    Subject("edu pair", devices.EDU_PAIR, scratch=((0, 0x80),)),
    Subject("edu pair, port", devices.EDU_PORT_PAIR, behind_port=True, scratch=((0, 0x80),)),
    Subject("nvme", (devices.NVME,), scratch=((0, 0x28),)),
    Subject("nvme, port", (devices.NVME_PORT,), behind_port=True, scratch=((0, 0x28),)),
    Subject("e1000", (devices.E1000,), scratch=((0, 0x5600), (1, 0))),
    Subject(
        "rtl8139",
        (devices.RTL8139,),
        scratch=((0, 0x08), (1, 0x08)),
        running=((0, 0x48), (1, 0x48)),  # TCTR, the timer's count
    ),
    Subject("virtio-blk", (devices.VIRTIO_BLK,), scratch=((4, 0x20),)),
    Subject("xhci", (devices.XHCI,), scratch=((0, 0x70),)),
    Subject("xhci msi", (devices.XHCI_MSI,), scratch=((0, 0x70),)),
    Subject("e1000e", (devices.E1000E,), behind_port=True, scratch=((0, 0x5600), (2, 0))),
    Subject("igb", (devices.IGB,), behind_port=True, scratch=((0, 0x5600), (2, 0))),
    Subject(
        "igb vf",
        (devices.IGB_VF,),
        behind_port=True,
        scratch=((0, 0x2800),),
        running=((0, 0xC40),),  # V2PMAILBOX, where the card's driver leaves word
    ),
)


class Guest:
    """A machine with a subject's functions, which have no addresses yet."""

    def __init__(self, subject: Subject, bridge: Bridge | None = None) -> None:
        """Start it, with the functions behind `bridge` if there is one, else by vfio-pci."""
        self.subject = subject
        self.qtest = Qtest(*_arguments(subject, bridge))
        self.qtest.intercept_irqs()
        self.host = PciHost(self.qtest)
        slot, bus = (0, BUS) if subject.behind_port else (SLOT, 0)
        numbers = range(len(subject.functions))
        self.functions = [self.host.device(slot, number, bus) for number in numbers]
        self._open_port()

    def _open_port(self) -> None:
        if self.subject.behind_port:
            self.host.open_port(SLOT, BUS)

    def reset(self) -> None:
        """Reset the machine; config space is within reach again, but BARs have no addresses."""
        self.qtest.reset()
        self.host.map_config()
        self._open_port()

    @property
    def function(self) -> PciDevice:
        """The only function, or the first."""
        return self.functions[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.qtest.__exit__(kind, error, traceback)


def _arguments(subject: Subject, bridge: Bridge | None) -> list[str]:
    arguments = []
    place: dict[str, object] = {"bus": "pcie.0"}
    slot = SLOT
    if subject.behind_port:
        arguments += ["-device", f"pcie-root-port,id=above,chassis=1,addr={SLOT}.0"]
        place["bus"], slot = "above", 0
    if len(subject.functions) > 1:
        place["multifunction"] = True
    for number, bdf in enumerate(subject.functions):
        device: dict[str, object] = {"driver": "vfio-pci", "host": bdf}
        if bridge:
            device = qemu.device(bridge.socket(bdf))
        device |= {**place, "addr": f"{slot:x}.{number}"}
        arguments += ["-device", json.dumps(device)]
    return arguments


def compare(subject: Subject, checks: Sequence[Check]) -> dict[str, tuple[Seen, Seen]]:
    """Take a guest through the checks, direct and bridged; gives both by the check's name."""
    with assigned(subject):
        with Guest(subject) as guest:
            direct = [check(guest) for check in checks]
        with Bridge(*subject.functions) as bridge, Guest(subject, bridge) as guest:
            bridged = [check(guest) for check in checks]
    names = [check.__name__ for check in checks]
    return dict(zip(names, zip(direct, bridged, strict=True), strict=True))


@contextlib.contextmanager
def assigned(subject: Subject) -> Iterator[None]:
    """Have a subject's functions at vfio-pci; they go back to the host's drivers afterwards."""
    with virtual_function() if devices.IGB_VF in subject.functions else contextlib.nullcontext():
        _must("bind", *subject.functions)
        try:
            yield
        finally:
            _must("unbind", *subject.functions)


@contextlib.contextmanager
def virtual_function() -> Iterator[None]:
    """Have igb's driver make the first virtual function; the card is up, or that is dead."""
    subprocess.run(("modprobe", "igb"), check=True)
    card = Path("/sys/bus/pci/devices", devices.IGB_HOST)
    (card / "sriov_drivers_autoprobe").write_text("0")
    (card / "sriov_numvfs").write_text("1")
    (interface,) = (card / "net").iterdir()
    for what in (("up",), ("vf", "0", "mac", VF_ADDRESS)):
        subprocess.run(("ip", "link", "set", interface.name, *what), check=True)
    deadline = time.monotonic() + LINK_TIME
    while (interface / "carrier").read_text() != "1\n":
        assert time.monotonic() < deadline, "igb's link doesn't come up"
        time.sleep(0.05)
    try:
        yield
    finally:
        (card / "sriov_numvfs").write_text("0")


def _must(*arguments: str) -> None:
    done = command(*arguments)
    assert not done.returncode, done.stderr

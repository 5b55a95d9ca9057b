# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts of real hardware in a guest, direct against bridged: lines, MSI, MSI-X."""

from __future__ import annotations

import functools

import pytest

from integration.pci import COMMAND, STATUS

from .comparison import SUBJECTS, Check, Guest, Seen, compare
from .interrupters import E1000, E1000e, Igb, IgbVf, Interrupter, Nvme, Rtl8139, Xhci

PCI_LINES = range(16, 24)  # inputs of the I/O APIC that q35 has for INTA# to INTH#
INTX_DISABLE = 0x400
MESSAGES = 0x200000  # where the messages go: plain memory, so that they can be seen
DATA = 0x4320
SETTLED = 0.05  # seconds in which nothing must happen, or everything has

DRIVERS: dict[str, type[Interrupter]] = {
    "e1000": E1000,
    "rtl8139": Rtl8139,
    "e1000e": E1000e,
    "igb": Igb,
    "igb vf": IgbVf,
    "nvme": Nvme,
    "xhci": Xhci,
    "xhci msi": Xhci,
}
BY_NAME = {subject.name: subject for subject in SUBJECTS}


def driver(guest: Guest) -> Interrupter:
    """The guest begins anew, with a driver."""
    guest.reset()
    guest.qtest.memset(MESSAGES, 0x1000, 0)
    guest.function.enable()
    return DRIVERS[guest.subject.name](guest.qtest, guest.function)


def intx(guest: Guest) -> Seen:
    """A line that is raised, looked at, switched off and on, acknowledged, raised, and reset."""
    device = driver(guest)
    seen: Seen = {"at first": line(guest, high=False)}
    device.fire()
    seen["raised"] = line(guest, high=True)
    device.get(0)  # QEMU takes any access for an acknowledgement, and finds out
    seen["still raised"] = line(guest, high=True)
    command = guest.function.read_config(COMMAND, 2)
    guest.function.write_config(COMMAND, 2, command | INTX_DISABLE)
    seen["off"] = line(guest, high=False)
    guest.function.write_config(COMMAND, 2, command)
    seen["on"] = line(guest, high=True)
    device.acknowledge()
    seen["acknowledged"] = line(guest, high=False)
    device.fire()
    seen["raised again"] = line(guest, high=True)
    guest.reset()
    seen["reset"] = line(guest, high=False)
    guest.function.enable()
    device.acknowledge()
    assert seen["raised"] != seen["at first"]
    return seen


def line(guest: Guest, high: bool) -> tuple[list[int], int]:
    """Which lines are high once things have settled, and STATUS; `high` is worth waiting for."""
    qtest = guest.qtest
    qtest.until(lambda: any(line in PCI_LINES for line in qtest.lines) == high)
    qtest.until(lambda: False, timeout=SETTLED)
    lines = sorted(qtest.lines.intersection(PCI_LINES))
    return lines, guest.function.read_config(STATUS, 2)


def messages(guest: Guest, awaited: int | None) -> dict[int, int]:
    """The messages in memory, by vector, taken; the one that is `awaited` is waited for."""
    qtest = guest.qtest
    if awaited is None:
        qtest.until(lambda: False, timeout=SETTLED)
    else:
        qtest.until(lambda: qtest.load(MESSAGES + 4 * awaited, 4) != 0)
    words = memoryview(qtest.read(MESSAGES, 0x400)).cast("I")
    qtest.memset(MESSAGES, 0x400, 0)
    return {vector: data for vector, data in enumerate(words) if data}


def msi(guest: Guest) -> Seen:
    """Vector 0 of as many as the device has; off, on, and by one vector only."""
    device = driver(guest)
    seen: Seen = {}
    most = guest.function.msi_vectors_log2()
    for vectors in (most, 0, most):
        guest.function.enable_msi(MESSAGES, DATA, vectors)
        device.start()
        for turn in range(3):
            device.fire()
            seen[f"{vectors} {turn}"] = messages(guest, 0)
            assert seen[f"{vectors} {turn}"] == {0: DATA}
            device.acknowledge()
        seen[f"{vectors} enabled"] = guest.function.config_space()
        guest.function.disable_msi()
    return seen


def msix(guest: Guest) -> Seen:
    """All vectors enabled at once, and fired; masked and unmasked; off; one by one, and fired."""
    device = driver(guest)
    pci = guest.function
    all_ = {vector: (MESSAGES + 4 * vector, DATA + vector) for vector in range(device.vectors)}
    seen: Seen = {"at first": pci.read_msix()}
    pci.fill_msix(all_)
    pci.enable_msix({})
    device.start_msix()
    messages(guest, None)
    seen["all enabled"] = pci.read_msix()
    for vector in device.fired:
        device.fire(vector)
        seen[f"{vector} fired"] = messages(guest, vector)
        assert seen[f"{vector} fired"] == {vector: DATA + vector}
    for vector in {device.fired[0], device.fired[-1]}:
        pci.mask_msix(vector)
        device.fire(vector)
        table, _pending = pci.read_msix()  # see test_pending_bits
        seen[f"{vector} masked"] = (messages(guest, None), table)
        pci.mask_msix(vector, masked=False)
        seen[f"{vector} unmasked"] = (messages(guest, vector), pci.read_msix())
    pci.disable_msix()
    device.fire()
    seen["off"] = (messages(guest, None), pci.read_msix())
    pci.enable_msix({0: (MESSAGES + 4, DATA + 1)})
    messages(guest, None)
    device.fire()
    seen["on again"] = (messages(guest, 1), pci.read_msix())
    pci.disable_msix()
    return seen


CHECKS: dict[Check, tuple[str, ...]] = {
    intx: ("e1000", "rtl8139", "e1000e"),
    msi: ("e1000e", "xhci msi"),
    msix: ("e1000e", "igb", "igb vf", "nvme", "xhci"),
}


@functools.cache
def seen(name: str) -> dict[str, tuple[Seen, Seen]]:
    return compare(BY_NAME[name], [check for check, names in CHECKS.items() if name in names])


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check.__name__,
            id=f"{name}-{check.__name__}",
            marks=pytest.mark.fidelity(name, check.__name__),
        )
        for check, names in CHECKS.items()
        for name in names
    ],
)
def test_interrupts(name: str, check: str) -> None:
    direct, bridged = seen(name)[check]
    assert bridged == direct


def test_pending_bits() -> None:
    """The one difference: of a masked vector that has fired, the guest can't see that it did.

    It is QEMU's, in whose vfio-pci the pending bits are those that QEMU sets when it holds a
    message back, while its vfio-user-pci asks the server (vfio_user_pba_read). The server is never
    told that the guest has masked a vector, so neither is hardware. The message comes all the same.
    """

    def pending(guest: Guest) -> Seen:
        device = driver(guest)
        guest.function.enable_msix({0: (MESSAGES, DATA)})
        device.start_msix()
        guest.function.mask_msix(0)
        device.fire()
        nothing = messages(guest, None)
        _table, bits = guest.function.read_msix()
        guest.function.mask_msix(0, masked=False)
        return {"masked": nothing, "bits": bits, "unmasked": messages(guest, 0)}

    ((direct, bridged),) = compare(BY_NAME["xhci"], [pending]).values()
    assert direct == {"masked": {}, "bits": (1).to_bytes(8, "little"), "unmasked": {0: DATA}}
    assert bridged == {**direct, "bits": bytes(8)}

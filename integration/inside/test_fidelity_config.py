# SPDX-License-Identifier: BSD-3-Clause
"""What a guest's firmware sees of a device: config space, BARs, ROM, registers at rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from integration.pci import (
    CAP_ID_AF,
    CAP_ID_EXPRESS,
    CAP_ID_MSI,
    CAP_ID_MSIX,
    CAP_ID_PM,
    CONFIG_SIZE,
    EXTENDED_CAPABILITIES,
    PciDevice,
)

from .comparison import SUBJECTS, Check, Guest, Seen, Subject, compare

PATTERNS = (0xFFFFFFFF, 0x00000000, 0x5AC39669)
#: Bits that are never set when write masks are probed, by capability and offset within it, because
#: setting them does more than that: change the power state, reset the function, enable MSI or
#: MSI-X (which test_fidelity_interrupts does).
NEVER_SET = {
    (CAP_ID_PM, 4): 0x00000003,  # PCI_PM_CTRL_STATE_MASK
    (CAP_ID_EXPRESS, 8): 0x00008000,  # PCI_EXP_DEVCTL_BCR_FLR
    (CAP_ID_AF, 4): 0x00000001,  # PCI_AF_CTRL_FLR
    (CAP_ID_MSI, 0): 0x00010000,  # PCI_MSI_FLAGS_ENABLE
    (CAP_ID_MSIX, 0): 0x80000000,  # PCI_MSIX_FLAGS_ENABLE
}


def rows(data: bytes | bytearray) -> dict[int, str]:
    """Sixteen bytes a row, as `lspci -xxxx` has them, so that a difference is easy to see."""
    return {at: data[at : at + 16].hex(" ") for at in range(0, len(data), 16)}


def config(guest: Guest) -> Seen:
    """All of config space: as it comes, with the BARs assigned, and after a reset."""
    seen: Seen = {}

    def look(when: str) -> None:
        for number, function in enumerate(guest.functions):
            seen[f"{when} {number}"] = rows(function.config_space(CONFIG_SIZE))

    look("new")
    for function in guest.functions:
        function.enable()
    look("assigned")
    guest.reset()
    look("reset")
    return seen


def capabilities(guest: Guest) -> Seen:
    """Both chains, in order."""
    return {
        str(number): (function.capability_list(), function.extended_capability_list())
        for number, function in enumerate(guest.functions)
    }


def masks(guest: Guest) -> Seen:
    """What the header and every capability keep of ones, of zeros, and of a mixture.

    Four bytes at a time; `edu_script.config_write_masks` has the other sizes.
    """
    seen: Seen = {}
    for number, function in enumerate(guest.functions):
        for start, size, kind in _extents(function):
            for at in range(0, size, 4):
                never = NEVER_SET.get((kind, at), 0) if start < EXTENDED_CAPABILITIES else 0
                name = f"{number}: capability {kind:#x} at {start:#x} + {at:#x}"
                seen[name] = _kept(function, start + at, never)
    return seen


def _extents(function: PciDevice) -> Iterator[tuple[int, int, int]]:
    """The header and each capability up to what is next: offset, size in bytes, capability's id."""
    yield 0, 0x40, 0
    for chain, end in (
        (function.capability_list(), EXTENDED_CAPABILITIES),
        (function.extended_capability_list(), CONFIG_SIZE),
    ):
        places = sorted((capability.offset, capability.id) for capability in chain)
        ends = [*(offset for offset, _ in places), end][1:]
        for (offset, kind), limit in zip(places, ends, strict=True):
            yield offset, min(limit - offset, 0x100), kind


def _kept(function: PciDevice, offset: int, never: int) -> list[str]:
    before = function.read_config(offset, 4)
    kept = []
    for pattern in PATTERNS:
        function.write_config(offset, 4, pattern & ~never)
        kept.append(f"{function.read_config(offset, 4):08x}")
    function.write_config(offset, 4, before)
    return kept


def bars(guest: Guest) -> Seen:
    """Each BAR's size, and its type bits."""
    return {str(number): f.size_bars() for number, f in enumerate(guest.functions)}


def registers(guest: Guest) -> Seen:
    """The first page of each BAR.

    Some registers are cleared by reading. That is no trouble: both are read in the same order.
    """
    seen: Seen = {}
    for number, function in enumerate(guest.functions):
        function.enable()
        for bar in function.bars:
            page = bytearray(function.page(bar))
            for _, offset in (place for place in guest.subject.running if place[0] == bar):
                page[offset : offset + 4] = bytes(4)
            seen[f"{number} {bar}"] = rows(page)
    return seen


def sizes(guest: Guest) -> Seen:
    """Accesses of every size, aligned or not, to registers that just keep what they are given."""
    seen: Seen = {}
    for number, function in enumerate(guest.functions):
        function.enable()
        for bar, start in guest.subject.scratch:
            words = (start, start + 4)
            before = [function.load(bar, word, 4) for word in words]
            for size in (1, 2, 4) if function.bars[bar].is_io else (1, 2, 4, 8):
                for at in range(start, start + 8 - size + 1):
                    for word in words:
                        function.store(bar, word, 4, 0)
                    function.store(bar, at, size, 0x1122_3344_5566_7788 & (1 << 8 * size) - 1)
                    seen[f"{number}: {size} bytes at {at:#x} of BAR {bar}"] = [
                        f"{function.load(bar, place, width):#x}"
                        for place, width in ((at, size), *((word, 4) for word in words))
                    ]
            for word, value in zip(words, before, strict=True):
                function.store(bar, word, 4, value)
    return seen


def rom(guest: Guest) -> Seen:
    """The bytes of the expansion ROM."""
    return {str(number): f.rom().hex() for number, f in enumerate(guest.functions)}


# `config` is first, with the device as it comes; it, and only it, ends with a reset.
CHECKS: tuple[Check, ...] = (config, capabilities, masks, bars, registers, sizes, rom)


@functools.cache
def seen(subject: Subject) -> dict[str, tuple[Seen, Seen]]:
    """All checks in one go: guests and bridges take longer to start than to be looked at."""
    return compare(subject, CHECKS)


@pytest.mark.parametrize(
    ("subject", "check"),
    [
        pytest.param(
            subject,
            check.__name__,
            id=f"{subject}-{check.__name__}",
            marks=pytest.mark.fidelity(subject.name, check.__name__),
        )
        for subject in SUBJECTS
        for check in CHECKS
    ],
)
def test_config(subject: Subject, check: str) -> None:
    direct, bridged = seen(subject)[check]
    assert bridged == direct
